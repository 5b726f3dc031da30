"""The packed form of a network with quantized layers: what `models.packed` does, over integers.

`Packed` and who runs it multiply by matrices [in, out] through a handful of torch functions. A
:class:`Matrix` stands where such a matrix would and answers these by its layers' own products, so
that engines and batches need not know. Nothing is joined, and no weight is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from apdcli.models.packed import Packed, packed
from apdcli.models.quantized import Int8Linear, QuantizedLinear, quantization_of
from apdcli.models.transformer import Transformer


class Matrix:
    """[in, sum of outs] of quantized layers that are multiplied with the same input.

    Attributes:
        layers: one or more, without biases (whoever multiplies adds these).
    """

    def __init__(self, layers: Sequence[QuantizedLinear]) -> None:
        self.layers = tuple(layers)

    @property
    def shape(self) -> torch.Size:
        """[in, sum of outs]."""
        outs = sum(layer.out_features for layer in self.layers)
        return torch.Size((self.layers[0].in_features, outs))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.layers[0].parameters()).device

    def product(self, x: Tensor) -> Tensor:
        """x [rows, in] -> [rows, sum of outs]."""
        made = [layer.product(x) for layer in self.layers]
        return made[0] if len(made) == 1 else torch.cat(made, dim=-1)

    def __getitem__(self, key: tuple[slice, slice]) -> Matrix:
        """Columns [:, begin:end]: whole layers, or the first outputs of a single one."""
        rows, columns = key
        begin, end, step = columns.indices(self.shape[1])
        if rows != slice(None) or step != 1:
            raise NotImplementedError(f"columns {key} of a quantized matrix")
        if (begin, end) == (0, self.shape[1]):
            return self
        edge, kept = 0, []
        for layer in self.layers:
            if begin <= edge and edge + layer.out_features <= end:
                kept.append(layer)
            edge += layer.out_features
        if sum(layer.out_features for layer in kept) == end - begin:
            return Matrix(kept)
        if begin == 0 and len(self.layers) == 1 and isinstance(self.layers[0], Int8Linear):
            return Matrix([self.layers[0].first(end)])
        raise NotImplementedError(f"columns {begin} to {end} of a quantized matrix")

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        if function is torch.mm and not kwargs:
            x, matrix = args
            return cast(Matrix, matrix).product(x)
        if function is torch.addmm and not kwargs:
            bias, x, matrix = args
            return cast(Matrix, matrix).product(x).add_(bias)
        if function is Tensor.addmm_ and not kwargs:
            total, x, matrix = args
            return cast(Tensor, total).add_(cast(Matrix, matrix).product(x))
        raise NotImplementedError(f"{getattr(function, '__name__', function)} of quantized weights")


class QuantizedPacked(Packed):
    """`Packed` over quantized layers; made by :func:`pack`."""

    def joined(self, *linears: Any) -> Tensor:
        """The layers as `Packed` multiplies by them: not a tensor, but it answers for one."""
        return cast(Tensor, Matrix(linears))


def pack(net: Transformer) -> Packed:
    """The packed form of a network, quantized or not; made once, kept with the network."""
    if net.packed is None and quantization_of(net) != "none":
        with torch.inference_mode(False), torch.no_grad():
            net.packed = QuantizedPacked(net)
    return packed(net)
