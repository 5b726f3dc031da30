"""The Triton kernels of :mod:`apdcli.engine.layer`. Importing this needs triton.

There is no loop in them, so Triton's interpreter, on which the tests run these, takes them too.
Nothing waits, and nothing is allocated but results, by torch: all of it can be recorded. Products
and sums are in float32 and never contracted (`enable_fp_fusion`): they round as torch's do.
"""

# Triton's functions are no Python functions: their arguments are pointers and tensors of its own.
# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries a thread holds of an array: one load of 16 bytes of a 16-bit dtype, two of float32.
ENTRIES = 8
# Positions a program of `turn` takes, by halves of a head: of 128, a load a thread with 4 warps.
ROWS = 16
# Columns a program of `gate` takes.
BLOCK = 1024


@triton.jit
def _rotated(x, other, cos, sin):
    """x * cos, rounded to x's dtype, + other * sin: as torch's `mul_` and `addcmul_` round."""
    kept = (x.to(tl.float32) * cos.to(tl.float32)).to(x.dtype).to(tl.float32)
    return (kept + other.to(tl.float32) * sin.to(tl.float32)).to(x.dtype)


@triton.jit(do_not_specialize=["length"])
def turn(
    joined, cos, sin, positions, q, k, v, stride, head_stride, row_stride, length,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Program (rows, head): rotate a head of q or k, and put it or a head of v where it belongs.

    Args:
        joined: [length, HEADS + 2 * KV_HEADS heads], rows `stride` apart: q, then k, then v.
        cos, sin, positions: see `static.Window`.
        q: [HEADS, length, 2 * HALF], the result.
        k, v: [KV_HEADS, capacity, 2 * HALF], the cache; `head_stride` and `row_stride` of both.
        COLUMNS: the power of two that holds HALF.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    column = tl.arange(0, COLUMNS)[None, :]
    valid = (row < length)[:, None]
    if COLUMNS > HALF:
        valid = valid & (column < HALF)
    here = joined + row.to(tl.int64)[:, None] * stride + head * (2 * HALF) + column
    low = tl.load(here, mask=valid, other=0.0)
    high = tl.load(here + HALF, mask=valid, other=0.0)
    if head < HEADS + KV_HEADS:
        angle = row[:, None] * (2 * HALF) + column
        cos_low = tl.load(cos + angle, mask=valid, other=0.0)
        sin_low = tl.load(sin + angle, mask=valid, other=0.0)
        cos_high = tl.load(cos + angle + HALF, mask=valid, other=0.0)
        sin_high = tl.load(sin + angle + HALF, mask=valid, other=0.0)
        turned_low = _rotated(low, high, cos_low, sin_low)
        high = _rotated(high, low, cos_high, sin_high)
        low = turned_low
    if head < HEADS:
        into = q + (head.to(tl.int64) * length + row)[:, None] * (2 * HALF) + column
        tl.store(into, low, mask=valid)
        tl.store(into + HALF, high, mask=valid)
    else:
        # Of all padding the position is the same: who writes it last does not matter, since no
        # query may look there.
        at = tl.load(positions + row, mask=row < length, other=0)[:, None] * row_stride + column
        if head < HEADS + KV_HEADS:
            own = k + (head - HEADS).to(tl.int64) * head_stride + at
            tl.store(own, low, mask=valid)
            tl.store(own + HALF, high, mask=valid)
        else:
            own = v + (head - HEADS - KV_HEADS).to(tl.int64) * head_stride + at
            tl.store(own, low, mask=valid)
            tl.store(own + HALF, high, mask=valid)


@triton.jit
def gate(both, stride, width, BLOCK: tl.constexpr):
    """Program (row, block): silu(gate) * up, over the gate.

    Args:
        both: [rows, 2 * width], rows `stride` apart: the gate, then what it lets through.
    """
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    here = both + tl.program_id(0).to(tl.int64) * stride + column
    x = tl.load(here, mask=inside, other=0.0)
    up = tl.load(here + width, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    open_ = (wide / (1.0 + tl.exp(-wide))).to(x.dtype)
    tl.store(here, (open_.to(tl.float32) * up.to(tl.float32)).to(x.dtype), mask=inside)


@triton.jit
def norm(x, weight, out, stride, width, eps, COLUMNS: tl.constexpr):
    """Program (row): x to unit root mean square, times the weight; x is read once.

    Args:
        x: [rows, width], rows `stride` apart; weight: [width]; out: [rows, width].
        COLUMNS: the power of two that holds `width`.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    inside = column < width
    entries = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(entries * entries, 0) / width + eps)
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    made = (entries * scale * factor).to(out.dtype.element_ty)
    tl.store(out + row * width + column, made, mask=inside)


def turned(
    joined: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Rotated q [heads, T, head_dim]; rotated keys and the values are in the cache.

    Args:
        joined: [T, (heads + 2 * kv_heads) * head_dim], of q, k and v with their biases.
        cos, sin, positions: see `static.Window`.
        k, v: [kv_heads, capacity, head_dim], a layer of the cache.
    """
    joined, cos, sin = joined.contiguous(), cos.contiguous(), sin.contiguous()
    length, (kv_heads, _, size) = len(joined), k.shape
    if k.stride() != v.stride() or k.stride(2) != 1:
        raise ValueError("keys and values must stand alike, a head's entries side by side")
    heads = joined.shape[1] // size - 2 * kv_heads
    q = joined.new_empty(heads, length, size)
    columns = triton.next_power_of_2(size // 2)
    with torch.cuda.device_of(joined):  # where Triton launches; without CUDA nothing
        turn[(triton.cdiv(length, ROWS), heads + 2 * kv_heads)](
            joined, cos, sin, positions, q, k, v,
            joined.stride(0), k.stride(0), k.stride(1), length,
            HEADS=heads, KV_HEADS=kv_heads, HALF=size // 2, COLUMNS=columns, ROWS=ROWS,
            num_warps=warps(ROWS * columns), enable_fp_fusion=False,
        )  # fmt: skip
    return q


def gated(both: Tensor) -> Tensor:
    """both [T, 2 * width] -> silu(first half) * second [T, width], written over the first."""
    both = both.contiguous()
    rows, width = len(both), both.shape[1] // 2
    with torch.cuda.device_of(both):
        gate[(rows, triton.cdiv(width, BLOCK))](
            both, both.stride(0), width, BLOCK=BLOCK, num_warps=warps(BLOCK), enable_fp_fusion=False
        )
    return both[:, :width]


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`transformer.RMSNorm` of x [T, hidden], rounded once."""
    x = x.contiguous()
    rows, width = x.shape
    out = torch.empty_like(x)
    columns = triton.next_power_of_2(width)
    with torch.cuda.device_of(x):
        norm[(rows,)](
            x, weight, out, x.stride(0), width, eps,
            COLUMNS=columns, num_warps=warps(columns), enable_fp_fusion=False,
        )  # fmt: skip
    return out


def warps(entries: int) -> int:
    """How many warps a program of so many entries, a power of two, is given."""
    return max(1, min(16, entries // (32 * ENTRIES)))
