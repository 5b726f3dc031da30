"""The Triton kernels of :mod:`apdcli.engine.fused`. Importing this needs triton.

Loop bounds are compile-time constants: Triton's interpreter, on which the tests run these, knows
no others with every numpy.
"""

# Triton's functions are no Python functions: their arguments are pointers and tensors of its own.
# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Entries that a program reads at a time: with 8 warps, 16 a thread, in loads of 16 bytes.
BLOCK = 4096
WARPS = 8
# Into how many parts a row is cut at most, where rows are few and where they are many: enough
# programs for every multiprocessor, not more partial results than needed.
PARTS_OF_FEW, PARTS_OF_MANY = 64, 16
FEW = 32
# Rows whose partial results are compared at once.
ROWS = 256
_NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def best_of_part(
    d, a, count, value, id_, d_stride, a_stride, vocab, weight, rest,
    PARTS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row, part): the largest of R * d + (1 - R) * a and its first id.

    Args:
        d, a: logits, see `fused.accepted`; row r of `a` and row r + 1 of `d` belong together.
        count: the draft's length.
        value, id_: [rows, PARTS], the result.
        d_stride, a_stride: from row to row.
        weight, rest: R and 1 - R.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    if row + 1 < tl.load(count):
        begin = part * BLOCKS * BLOCK
        of_d = d + (row + 1).to(tl.int64) * d_stride
        of_a = a + row.to(tl.int64) * a_stride
        top = tl.full((BLOCK,), float("-inf"), tl.float32)
        at = begin + tl.arange(0, BLOCK)
        for block in range(BLOCKS):
            here = begin + block * BLOCK + tl.arange(0, BLOCK)
            if begin + (block + 1) * BLOCK <= vocab:  # without a mask, loads of 16 bytes
                x = tl.load(of_d + here)
                y = tl.load(of_a + here).to(tl.float32)
            else:
                x = tl.load(of_d + here, mask=here < vocab, other=float("-inf"))
                y = tl.load(of_a + here, mask=here < vocab, other=0.0).to(tl.float32)
            never = x == float("-inf")
            mixed = tl.fma(tl.where(never, 0.0, x), weight, y * rest)  # 0 * -inf is no number
            mixed = tl.where(never, x, mixed)
            better = mixed > top  # not >=: the first among equals
            top = tl.where(better, mixed, top)
            at = tl.where(better, here, at)
        best = tl.max(top, 0)
        cell = row * PARTS + part
        tl.store(value + cell, best)
        tl.store(id_ + cell, tl.min(tl.where(top == best, at, _NO_ID), 0))


@triton.jit
def agreeing_prefix(
    value, id_, draft, count, out,
    PARTS: tl.constexpr, CELLS: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """One program: put the parts together, compare with the draft, count.

    Args:
        value, id_: from `best_of_part`.
        draft, count, out: see `fused.accepted`; `out` [1] int64.
        CELLS: the power of two that holds PARTS.
    """
    length = tl.load(count)
    first = length  # the first that differs
    part = tl.arange(0, CELLS)
    for block in range(BLOCKS):
        row = block * ROWS + tl.arange(0, ROWS)
        valid = row + 1 < length
        cell = row[:, None] * PARTS + part[None, :]
        inside = valid[:, None] & (part < PARTS)[None, :]
        best = tl.load(value + cell, mask=inside, other=float("-inf"))
        ids = tl.load(id_ + cell, mask=inside, other=_NO_ID)
        top = tl.max(best, 1)
        target = tl.min(tl.where(best == top[:, None], ids, _NO_ID), 1)
        drafted = tl.load(draft + row + 1, mask=valid, other=0)
        differs = valid & (target.to(tl.int64) != drafted)
        place = tl.where(differs, (row + 1).to(tl.int64), length)
        first = tl.minimum(first, tl.min(place, 0))
    tl.store(out, first)


def accepted(
    d: Tensor, a: Tensor, draft: Tensor, count: Tensor, weight: float, block: int = BLOCK
) -> Tensor:
    """See `fused.accepted`; `block`, a power of two, is what a program reads at a time."""
    if d.stride(1) != 1 or a.stride(1) != 1:
        raise ValueError("logits must stand one behind the other in a row")
    rows, vocab = len(draft), d.shape[1]
    if rows == 1:
        return count.clone()
    blocks, parts = cut(rows - 1, vocab, block)
    value = d.new_empty(rows - 1, parts)
    id_ = torch.empty(rows - 1, parts, dtype=torch.int32, device=d.device)
    with torch.cuda.device_of(d):  # where Triton launches; without CUDA nothing
        best_of_part[(rows - 1, parts)](
            d, a, count, value, id_, d.stride(0), a.stride(0), vocab, weight, 1.0 - weight,
            PARTS=parts, BLOCKS=blocks, BLOCK=block, num_warps=WARPS,
        )  # fmt: skip
        return prefix(value, id_, draft, count)


def cut(rows: int, vocab: int, block: int) -> tuple[int, int]:
    """Into how many parts a row is cut, each of how many blocks: (blocks, parts)."""
    most = PARTS_OF_FEW if rows < FEW else PARTS_OF_MANY
    blocks = triton.cdiv(vocab, block * most)
    return blocks, triton.cdiv(vocab, block * blocks)


def prefix(value: Tensor, id_: Tensor, draft: Tensor, count: Tensor) -> Tensor:
    """How long a prefix the best of all parts [rows - 1, parts] agree with: [1] int64."""
    rows, parts = value.shape
    out = torch.empty_like(count)
    high = min(ROWS, triton.next_power_of_2(rows))
    agreeing_prefix[(1,)](
        value, id_, draft, count, out,
        PARTS=parts, CELLS=triton.next_power_of_2(parts), ROWS=high,
        BLOCKS=triton.cdiv(rows, high), num_warps=WARPS,
    )  # fmt: skip
    return out
