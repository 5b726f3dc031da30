"""Linear layers whose weights are integers of 8 or 4 bits; activations stay as they are.

A weight is integer times scale: at 8 bits one scale a row, at 4 bits a scale and a zero point for
every 32 inputs, two integers a byte. A product turns a block of rows to floating point, small
enough to stay in a processor's cache, multiplies, and forgets it. On a CPU in bfloat16 torch's own
integer kernels do it instead, once a first result of theirs has been compared with the plain one.
On CUDA they do not: there torch's product of int8 makes every output by itself, without tensor
cores, and reads the weights again for every row of the input (aten/src/ATen/native/cuda/int8mm.cu).
Knows nothing of files, nor of how the integers are chosen: that is `load.quantize`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from apdcli.models.formats import GROUP, KERNEL_ROWS
from apdcli.models.transformer import Transformer

# Weights in floating point at a time: so many fit into a CPU's cache; a GPU wants few launches, and
# the largest matrix of a layer of 7 or 8 billion weights (18,944 x 3,584) in one piece.
_CPU_BLOCK, _BLOCK = 2**21, 72 * 2**20
_KERNEL_ERROR = 0.03  # in units of the result's spread; bfloat16 keeps 8 bits


class QuantizedLinear(nn.Module):
    """y = x W^T + bias with integers for W; made empty, filled by `load.weights`.

    Attributes:
        in_features, out_features: as of `nn.Linear`.
        quantized: the integers.
        scale: [out, groups] in the dtype that is computed in.
        bias: [out], or None.
    """

    name: ClassVar[str]  # of the format
    _range: ClassVar[tuple[int, int, float]]  # of the stored bytes, and the integers' deviation
    quantized: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._empty("scale", self.groups)
        if bias:
            self._empty("bias")
        else:
            self.register_parameter("bias", None)

    def _empty(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> None:
        made = torch.empty(self.out_features, *shape, dtype=dtype)
        self.register_parameter(name, nn.Parameter(made, requires_grad=False))

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return 1

    def randomize(self, spread: float, generator: torch.Generator) -> None:
        """Random integers, and scales that give the weights a standard deviation of `spread`."""
        low, high, deviation = self._range
        self.quantized.random_(low, high, generator=generator)
        self.scale.fill_(spread / deviation)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out]."""
        out = self.product(x.reshape(-1, self.in_features))
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], self.out_features)

    def product(self, x: Tensor) -> Tensor:
        """x [rows, in] W^T -> [rows, out], row behind row, without the bias; by blocks of W."""
        block = _CPU_BLOCK if x.device.type == "cpu" else _BLOCK
        pieces = math.ceil(self.out_features * self.in_features / block)
        if pieces == 1:
            whole = x.new_empty(self.out_features, self.in_features)
            return self._scaled(torch.mm(x, self._floats(0, whole).t()))
        step = max(64, math.ceil(self.out_features / pieces))
        out = x.new_empty(x.shape[0], self.out_features)
        scratch = x.new_empty(step, self.in_features)
        for begin in range(0, self.out_features, step):
            columns = out[:, begin : begin + step]
            weights = self._floats(begin, scratch[: columns.shape[1]])
            torch.mm(x, weights.t(), out=columns)
        return self._scaled(out)

    def _floats(self, begin: int, into: Tensor) -> Tensor:
        """Rows of W from `begin` on, as many as `into` [rows, in] holds; it is returned."""
        raise NotImplementedError

    def _scaled(self, product: Tensor) -> Tensor:
        """What `_floats` left undone, done to x W^T [rows, out] in place."""
        return product


class Int8Linear(QuantizedLinear):
    """8 bits, one scale a row.

    Attributes:
        quantized: [out, in] int8; W = quantized * scale.
    """

    name = "int8"
    _range = (-128, 128, 73.9)

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._empty("quantized", in_features, dtype=torch.int8)

    def first(self, count: int) -> Int8Linear:
        """The first `count` outputs alone, over the same memory."""
        with torch.device("meta"):
            made = Int8Linear(self.in_features, count, bias=self.bias is not None)
        for name, value in self.named_parameters():
            made.register_parameter(name, nn.Parameter(value[:count], requires_grad=False))
        return made

    def product(self, x: Tensor) -> Tensor:
        if has_kernels(x.device, x.dtype) and _int8_kernel_works():
            return _int8_kernel(x, self.quantized, self.scale)
        return super().product(x)

    def _floats(self, begin: int, into: Tensor) -> Tensor:
        return into.copy_(self.quantized[begin : begin + len(into)])

    def _scaled(self, product: Tensor) -> Tensor:
        return product.mul_(self.scale[:, 0])


class Int4Linear(QuantizedLinear):
    """4 bits; a scale and a zero point for every GROUP inputs.

    Attributes:
        quantized: [out, groups, GROUP / 2] uint8: the low halves of its bytes are the first half
            of a group, the high halves the second. W = (integer - zero) * scale.
        zero: [out, groups] uint8.
        packed, scales: the same as torch's CPU kernel wants it, and then in place of the others:
            [out, in / 2] uint8 and [groups, out, 2].
    """

    name = "int4"
    _range = (0, 256, 4.61)
    zero: Tensor
    packed: Tensor | None
    scales: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self._empty("quantized", self.groups, GROUP // 2, dtype=torch.uint8)
        self._empty("zero", self.groups, dtype=torch.uint8)
        self.register_parameter("packed", None)
        self.register_parameter("scales", None)

    @property
    def groups(self) -> int:
        """How many scales a row has."""
        return self.in_features // GROUP

    def randomize(self, spread: float, generator: torch.Generator) -> None:
        """See the base class."""
        super().randomize(spread, generator)
        self.zero.random_(7, 9, generator=generator)
        self.pack()

    def pack(self) -> None:
        """Take the order of torch's CPU kernel, where the layer is of its kind."""
        plain = self.scale
        if not has_kernels(plain.device, plain.dtype) or self.out_features % KERNEL_ROWS:
            return
        if not _int4_kernel_works():
            return
        packed, scales = _kernel_order(self)
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        for name in ("quantized", "scale", "zero"):
            self.register_parameter(name, None)

    def integers(self) -> Tensor:
        """[out, in] uint8, 0 to 15."""
        halves = torch.stack((self.quantized & 15, self.quantized >> 4), dim=2)
        return halves.view(self.out_features, self.in_features)

    def product(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return _int4_kernel(x, self.packed, self.scales)
        return super().product(x)

    def _floats(self, begin: int, into: Tensor) -> Tensor:
        rows = slice(begin, begin + len(into))
        made = into.view(len(into), self.groups, 2, GROUP // 2)
        made[:, :, 0] = self.quantized[rows] & 15
        made[:, :, 1] = self.quantized[rows] >> 4
        made.sub_(self.zero[rows, :, None, None]).mul_(self.scale[rows, :, None, None])
        return into


LINEARS: dict[str, type[QuantizedLinear]] = {"int8": Int8Linear, "int4": Int4Linear}


def quantization_of(net: Transformer) -> str:
    """What a network's layers are in: "none", "int8" or "int4"."""
    for module in net.model.layers.modules():
        if isinstance(module, QuantizedLinear):
            return module.name
    return "none"


def weight_bytes(net: Transformer) -> int:
    """Memory that a network's weights take."""
    return sum(weight.nbytes for weight in net.parameters())


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Where torch's integer kernels are the faster way: elsewhere they are slower by far."""
    return device.type == "cpu" and dtype == torch.bfloat16


def _int8_kernel(x: Tensor, quantized: Tensor, scale: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x.contiguous(), quantized, scale.flatten())


def _int4_kernel(x: Tensor, packed: Tensor, scales: Tensor | None) -> Tensor:
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu
    made: Tensor = kernel(x.contiguous(), packed, GROUP, scales)
    return made


def _kernel_order(layer: Int4Linear) -> tuple[Tensor, Tensor]:
    """(packed, scales) of a layer, see :class:`Int4Linear`."""
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(layer.integers().int(), 1)
    # The kernel's weight is (integer - 8) * scale + offset.
    offset = (8 - layer.zero.float()) * layer.scale.float()
    scales = torch.stack((layer.scale, offset.to(layer.scale.dtype)), dim=-1)
    return packed, scales.transpose(0, 1).contiguous()


@functools.cache
def _int8_kernel_works() -> bool:
    """Whether torch's kernel is there and gives what the plain product gives."""
    layer = _sample(Int8Linear)
    return _agrees(layer, lambda x: _int8_kernel(x, layer.quantized, layer.scale))


@functools.cache
def _int4_kernel_works() -> bool:
    """The same of the other kernel."""
    layer = _sample(Int4Linear)
    return _agrees(layer, lambda x: _int4_kernel(x, *_kernel_order(layer)))


_Kind = TypeVar("_Kind", bound=QuantizedLinear)


def _sample(kind: type[_Kind]) -> _Kind:
    """A small layer with integers of every size, in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False):
        layer = kind(64, 48, bias=False)
        layer.randomize(1.0, generator)
        if isinstance(layer, Int4Linear):
            layer.zero.random_(0, 16, generator=generator)
        layer.scale.mul_(torch.rand(layer.scale.shape, generator=generator) + 0.5)
        return layer.to(torch.bfloat16)


def _agrees(layer: QuantizedLinear, kernel: Callable[[Tensor], Tensor]) -> bool:
    """Whether `kernel` of some x is the layer's plain product, as far as bfloat16 goes."""
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        x = torch.randn(5, layer.in_features, generator=generator).bfloat16()
        plain = QuantizedLinear.product(layer, x).float()
        try:
            made = kernel(x).float()
        except (RuntimeError, AttributeError, NotImplementedError):
            return False
        return bool((made - plain).abs().max() <= _KERNEL_ERROR * plain.std())
