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

# Entries a thread reads of an array: one load of 16 bytes of a 16-bit dtype, two of float32.
ENTRIES = 8
# Entries a program reads of an array: few enough for all multiprocessors to have some. A norm needs
# whole rows.
BLOCK, NORM_BLOCK = 1024, 4096


@triton.jit
def _rotated(x, other, cos, sin):
    """x * cos, rounded to x's dtype, + other * sin: as torch's `mul_` and `addcmul_` round."""
    kept = (x.to(tl.float32) * cos.to(tl.float32)).to(x.dtype).to(tl.float32)
    return (kept + other.to(tl.float32) * sin.to(tl.float32)).to(x.dtype)


@triton.jit(do_not_specialize=["length"])
def turn(
    joined, cos, sin, positions, q, k, v, stride, head_stride, row_stride, length,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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


@triton.jit(do_not_specialize=["rows"])
def gate(both, stride, rows, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Program (rows, columns): silu(gate) * up, over the gate.

    Args:
        both: [rows, 2 * width], rows `stride` apart: the gate, then what it lets through.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    here = both + row.to(tl.int64) * stride + column
    x = tl.load(here, mask=inside, other=0.0)
    up = tl.load(here + width, mask=inside, other=0.0)
    wide = x.to(tl.float32)
    open_ = (wide / (1.0 + tl.exp(-wide))).to(x.dtype)
    tl.store(here, (open_.to(tl.float32) * up.to(tl.float32)).to(x.dtype), mask=inside)


@triton.jit(do_not_specialize=["rows"])
def norm(x, weight, out, stride, rows, width, eps, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Program (rows): x to unit root mean square, times the weight; x is read once.

    Args:
        x: [rows, width], rows `stride` apart; weight: [width]; out: [rows, width].
        COLUMNS: the power of two that holds `width`.
    """
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < width)
    from_, into = x + row.to(tl.int64) * stride + column, out + row * width + column
    entries = tl.load(from_, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(entries * entries, 1) / width + eps)[:, None]
    factor = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
    tl.store(into, (entries * scale * factor).to(out.dtype.element_ty), mask=inside)


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
    rows, columns = tile(size // 2, BLOCK)
    with torch.cuda.device_of(joined):  # where Triton launches; without CUDA nothing
        turn[(triton.cdiv(length, rows), heads + 2 * kv_heads)](
            joined, cos, sin, positions, q, k, v,
            joined.stride(0), k.stride(0), k.stride(1), length,
            HEADS=heads, KV_HEADS=kv_heads, HALF=size // 2, ROWS=rows, COLUMNS=columns,
            num_warps=warps(rows * columns), enable_fp_fusion=False,
        )  # fmt: skip
    return q


def gated(both: Tensor) -> Tensor:
    """both [T, 2 * width] -> silu(first half) * second [T, width], written over the first."""
    both = both.contiguous()
    length, width = len(both), both.shape[1] // 2
    rows, columns = tile(width, BLOCK)
    with torch.cuda.device_of(both):
        gate[(triton.cdiv(length, rows), triton.cdiv(width, columns))](
            both, both.stride(0), length, width,
            ROWS=rows, COLUMNS=columns, num_warps=warps(rows * columns), enable_fp_fusion=False,
        )  # fmt: skip
    return both[:, :width]


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`transformer.RMSNorm` of x [T, hidden], rounded once as `F.rms_norm` does."""
    x = x.contiguous()
    length, width = x.shape
    out = torch.empty_like(x)
    rows, columns = tile(width, max(NORM_BLOCK, triton.next_power_of_2(width)))
    with torch.cuda.device_of(x):
        norm[(triton.cdiv(length, rows),)](
            x, weight, out, x.stride(0), length, width, eps,
            ROWS=rows, COLUMNS=columns, num_warps=warps(rows * columns), enable_fp_fusion=False,
        )  # fmt: skip
    return out


def tile(width: int, entries: int) -> tuple[int, int]:
    """(rows, columns), powers of two, of a program with so many entries of rows of `width`."""
    columns = min(triton.next_power_of_2(width), entries)
    return entries // columns, columns


def warps(entries: int) -> int:
    """How many warps a program of so many entries is given."""
    return max(1, min(16, entries // (32 * ENTRIES)))
