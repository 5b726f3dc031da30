"""A layer between its matrix products, in few kernels.

In a CUDA graph a small kernel takes two or three microseconds whatever it does, and around its four
products and the attention a layer had eleven. Here there are four, by Triton: each norm, all that
lies between the product for q, k and v and the attention, and the MLP's gate. A fifth is torch's,
which brings the attention's result into the order of the next product's input.

Elsewhere than on CUDA, and where Triton fails, torch does it by `Packed`'s functions. Both round to
the weights' dtype at the same places: a norm once, as `F.rms_norm` does. In float32, before that,
`exp`, `rsqrt`, quotients, the order of sums, and sums that torch contracts may differ in the last
places; in 16 bits what is rotated is the same to the last bit. Only what lies between products is
touched: quantized weights know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apdcli.engine import fused
from apdcli.models.packed import Packed, PackedLayer

if TYPE_CHECKING:
    from apdcli.engine.static import Window

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def queries(
    packed: Packed, weights: PackedLayer, x: Tensor, window: Window, k: Tensor, v: Tensor
) -> Tensor:
    """x [T, hidden] -> q [heads, T, head_dim], rotated; its keys and values are in the cache.

    Args:
        window: where the positions stand.
        k, v: [kv_heads, capacity, head_dim], the layer's part of the cache.
    """

    def by_triton() -> Tensor:
        from apdcli.engine import layer_kernels as kernels

        before = kernels.normed(x, weights.attention_norm, packed.eps)
        bias, weight = weights.qkv_bias, weights.qkv
        joined = torch.mm(before, weight) if bias is None else torch.addmm(bias, before, weight)
        return kernels.turned(joined, window.cos, window.sin, window.positions, k, v)

    q = _tried(x, by_triton)
    if q is None:
        q, own_k, own_v = packed.project(weights, x, window.cos, window.sin)
        k.index_copy_(1, window.positions, own_k)
        v.index_copy_(1, window.positions, own_v)
    return q


def mlp(packed: Packed, weights: PackedLayer, x: Tensor) -> Tensor:
    """x [T, hidden] with the MLP's output added, in place."""

    def by_triton() -> Tensor:
        from apdcli.engine import layer_kernels as kernels

        before = kernels.normed(x, weights.mlp_norm, packed.eps)
        return kernels.gated(torch.mm(before, weights.gate_up))

    gated = _tried(x, by_triton)
    return packed.mlp(weights, x) if gated is None else x.addmm_(gated, weights.down)


def norm(packed: Packed, x: Tensor, weight: Tensor) -> Tensor:
    """`Packed.rms`: x [T, hidden] to unit root mean square, times `weight` [hidden]."""

    def by_triton() -> Tensor:
        from apdcli.engine import layer_kernels as kernels

        return kernels.normed(x, weight, packed.eps)

    made = _tried(x, by_triton)
    return packed.rms(x, weight) if made is None else made


def _tried(x: Tensor, by_triton: Callable[[], Tensor]) -> Tensor | None:
    """What the kernels make of x; None where torch is to do it. Nothing is written over before."""
    if x.dtype not in _DTYPES or not fused.usable(x.device):
        return None
    try:
        return by_triton()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Whatever a compiler or a driver raises: the answer is the same without it.
        fused.fail(f"{type(error).__name__}: {str(error).strip()}".split("\n")[0])
        return None
