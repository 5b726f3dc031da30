"""The packed form of a network with quantized layers: what `models.packed` does, over integers.

`Packed` and who runs it multiply by matrices [in, out] through a handful of torch functions. A
:class:`Matrix` stands where such a matrix would and answers these by its layers' own products, so
that engines and batches need not know. Nothing is joined, and no weight is held twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from apdcli.models.packed import Packed, PackedLayer, packed
from apdcli.models.quantized import Int8Linear, QuantizedLinear, quantization_of
from apdcli.models.transformer import Layer, Transformer


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

    def __init__(self, net: Transformer) -> None:
        # The parent joins weights; it is shown a network that has none to join.
        config = replace(net.config, tied=True)
        body = SimpleNamespace(embed_tokens=net.model.embed_tokens, layers=[], norm=net.model.norm)
        empty = SimpleNamespace(config=config, model=body, cos=net.cos, sin=net.sin)
        super().__init__(cast(Transformer, empty))
        self.net = net
        self.layers = [_pack(cast(Layer, layer)) for layer in net.model.layers]
        if not net.config.tied:
            self.head = _matrix(net.lm_head)


def pack(net: Transformer) -> Packed:
    """The packed form of a network, quantized or not; made once, kept with the network."""
    if net.packed is None and quantization_of(net) != "none":
        with torch.inference_mode(False), torch.no_grad():
            net.packed = QuantizedPacked(net)
    return packed(net)


def _pack(layer: Layer) -> PackedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    bias = None
    if attention.q_proj.bias is not None:
        bias = torch.cat([linear.bias for linear in projections])
    return PackedLayer(
        attention_norm=layer.input_layernorm.weight,
        qkv=_matrix(*projections),
        qkv_bias=bias,
        out=_matrix(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight,
        gate_up=_matrix(mlp.gate_proj, mlp.up_proj),
        down=_matrix(mlp.down_proj),
    )


def _matrix(*linears: Any) -> Tensor:
    """The layers as `Packed` multiplies by them: not a tensor, but it answers for one."""
    return cast(Tensor, Matrix(linears))
