"""The Triton kernels that draw at T > 0, for :mod:`apdcli.engine.fused`. Importing needs triton.

Mixture, temperature, top-k, top-p, noise and the choice of the largest, each entry in registers:
nothing of the size of [rows, vocab] is written. Top-k and top-p first take a search of a row for
the smallest logit that they keep; then one pass over the row finds the best that is not below it.

Loop bounds are compile-time constants, see :mod:`apdcli.engine.fused_kernels`.
"""

# Triton's functions are no Python functions: their arguments are pointers and tensors of its own.
# ruff: noqa: SIM108 (Triton has no conditional expression that loads)
# mypy: disable-error-code="no-untyped-call,no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from apdcli.decode.noise import RUN, KeyedNoise
from apdcli.decode.sampling import COLDEST
from apdcli.engine import fused_kernels as greedy

# Entries that a program reads at a time while it searches a row, by so many warps.
SEARCHED, SEARCH_WARPS = 2048, 16
# Below it float32 has few numbers; the best alone reaches it.
LEAST_P = 1e-37
# Bits of a logit that one pass of the search finds.
BITS = 3
_RUN = tl.constexpr(RUN)
_NO_ID = tl.constexpr(2**31 - 1)


@triton.jit
def mixture(of_d, of_a, begin, lane, vocab, weight, rest, MIX: tl.constexpr, SIZE: tl.constexpr):
    """R * d + (1 - R) * a of SIZE ids from `begin` on; -inf where d forbids and behind the last."""
    at = begin + lane
    whole = begin + SIZE <= vocab
    if whole:  # without a mask, loads of 16 bytes
        x = tl.load(of_d + at)
    else:
        x = tl.load(of_d + at, mask=at < vocab, other=float("-inf"))
    if MIX:
        if whole:
            y = tl.load(of_a + at).to(tl.float32)
        else:
            y = tl.load(of_a + at, mask=at < vocab, other=0.0).to(tl.float32)
        never = x == float("-inf")
        mixed = tl.fma(tl.where(never, 0.0, x), weight, y * rest)  # 0 * -inf is no number
        x = tl.where(never, x, mixed)
    return x


@triton.jit
def rank(x):
    """float32 to int32, in the same order."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def unrank(ranked):
    """What `rank` made of which float32; what no number gives is -inf."""
    bits = tl.where(ranked < 0, ranked ^ 0x7FFFFFFF, ranked)
    x = bits.to(tl.float32, bitcast=True)
    return tl.where(x == x, x, float("-inf"))


@triton.jit
def smallest_kept(
    of_d, of_a, vocab, weight, rest, best, scale, wanted,
    MIX: tl.constexpr, MASS: tl.constexpr, BITS: tl.constexpr,
    BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest logit such that those not below it are `wanted` many, or have `wanted` mass.

    Args:
        best: the row's largest.
        scale: 1 / T.
        MASS: whether each counts exp((x - best) * scale) instead of one.
    """
    digit = tl.arange(0, 1 << BITS)
    lane = tl.arange(0, BLOCK)[:, None]
    low = tl.full((), 0, tl.int64)  # twice the rank above the lowest: 33 bits, a multiple of BITS
    for done in range(33 // BITS):
        bounds = low + (digit.to(tl.int64) << (33 - BITS * (done + 1)))
        limits = ((bounds >> 1) - 2147483648).to(tl.int32)
        sums = tl.zeros((BLOCK, 1 << BITS), tl.float32)
        for block in range(BLOCKS):
            x = mixture(of_d, of_a, block * BLOCK, lane, vocab, weight, rest, MIX, BLOCK)
            counts = tl.exp((x - best) * scale) if MASS else tl.where(x > float("-inf"), 1.0, 0.0)
            sums += tl.where(rank(x) >= limits[None, :], counts, 0.0)
        enough = (tl.sum(sums, 0) >= wanted) | (digit == 0)
        low = tl.max(tl.where(enough, bounds, 0), 0)
    return unrank(((low >> 1) - 2147483648).to(tl.int32))


@triton.jit
def edge_of_row(
    d, a, count, edge, d_stride, a_stride, vocab, weight, rest, scale, k, p,
    FIRST: tl.constexpr, MIX: tl.constexpr, TOP_K: tl.constexpr, TOP_P: tl.constexpr,
    BITS: tl.constexpr, BLOCKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program (row): the smallest logit that top-k, then top-p keep.

    Args:
        d, a, count, FIRST, MIX: as of `best_noised_of_part`.
        edge: [rows] float32, the result.
        scale: 1 / T.
        k, p: of top-k and top-p, where TOP_K and TOP_P say that they are asked for.
    """
    row = tl.program_id(0)
    if row + FIRST < tl.load(count):
        of_d = d + (row + FIRST).to(tl.int64) * d_stride
        of_a = a + row.to(tl.int64) * a_stride
        lane = tl.arange(0, BLOCK)
        kept = tl.full((), float("-inf"), tl.float32)
        if TOP_K:
            kept = smallest_kept(
                of_d, of_a, vocab, weight, rest, 0.0, scale, k, MIX, False, BITS, BLOCKS, BLOCK
            )
        if TOP_P:
            top = tl.full((BLOCK,), float("-inf"), tl.float32)
            for block in range(BLOCKS):
                x = mixture(of_d, of_a, block * BLOCK, lane, vocab, weight, rest, MIX, BLOCK)
                top = tl.maximum(top, x)
            best = tl.maximum(tl.max(top, 0), -3.4e38)  # of a row without any id, too, a number
            mass = tl.zeros((BLOCK,), tl.float32)
            for block in range(BLOCKS):
                x = mixture(of_d, of_a, block * BLOCK, lane, vocab, weight, rest, MIX, BLOCK)
                mass += tl.where(x >= kept, tl.exp((x - best) * scale), 0.0)
            wanted = tl.sum(mass, 0) * p
            nucleus = smallest_kept(
                of_d, of_a, vocab, weight, rest, best, scale, wanted, MIX, True, BITS, BLOCKS, BLOCK
            )
            kept = tl.maximum(kept, nucleus)
        tl.store(edge + row, kept)


@triton.jit
def gumbel(bits):
    """32 random bits to standard Gumbel noise; the uniform number is never 0, never 1."""
    uniform = ((bits >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
    return -tl.log(-tl.log(uniform))


@triton.jit(do_not_specialize=["first"])
def best_noised_of_part(
    d, a, count, edge, key, value, id_, d_stride, a_stride, vocab, weight, rest, scale, first,
    FIRST: tl.constexpr, MIX: tl.constexpr, EDGE: tl.constexpr,
    PARTS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Program (row, part): the largest of logit / T + g of those kept, and its first id.

    Args:
        d: logits; -inf for ids that may never be produced. Row r is program r - FIRST's.
        a: the verifier's, mixed into d's where MIX; row r - FIRST belongs to row r of d.
        count: [1] int64, rows of d that are looked at.
        edge: [rows] float32, the smallest that is kept, where EDGE.
        key: [2] int64, see `decode.noise.KeyedNoise`.
        value, id_: [rows, PARTS], the result.
        d_stride, a_stride: from row to row.
        weight, rest: R and 1 - R.
        scale: 1 / T.
        first: the row of the noise that belongs to program 0.
    """
    row = tl.program_id(0)
    part = tl.program_id(1)
    if row + FIRST < tl.load(count):
        of_d = d + (row + FIRST).to(tl.int64) * d_stride
        of_a = a + row.to(tl.int64) * a_stride
        kept = tl.load(edge + row) if EDGE else float("-inf")
        seed = tl.load(key)
        number = tl.load(key + 1)
        lane = tl.arange(0, _RUN)
        zero = tl.zeros((_RUN,), tl.int32)
        of_row = zero + (row + first).to(tl.int32)
        low = zero + number.to(tl.int32)
        high = zero + (number >> 32).to(tl.int32)
        top = tl.full((_RUN,), float("-inf"), tl.float32)
        at = tl.full((_RUN,), _NO_ID, tl.int32)
        for block in range(BLOCKS):
            which = part * BLOCKS + block
            words = tl.philox(seed, which * _RUN + lane, of_row, low, high)
            for run in tl.static_range(4):
                begin = (which * 4 + run) * _RUN
                x = mixture(of_d, of_a, begin, lane, vocab, weight, rest, MIX, _RUN)
                drawn = tl.where(x >= kept, x * scale + gumbel(words[run]), float("-inf"))
                better = drawn > top  # not >=: the first among equals
                top = tl.where(better, drawn, top)
                at = tl.where(better, begin + lane, at)
        best = tl.max(top, 0)
        cell = row * PARTS + part
        tl.store(value + cell, best)
        tl.store(id_ + cell, tl.min(tl.where(top == best, at, _NO_ID), 0))


@triton.jit
def best_of_parts(value, id_, out, PARTS: tl.constexpr, CELLS: tl.constexpr):
    """Program (row): put the parts together; out [rows] int64. A row without any id gives 0."""
    row = tl.program_id(0)
    part = tl.arange(0, CELLS)
    cell = row * PARTS + part
    best = tl.load(value + cell, mask=part < PARTS, other=float("-inf"))
    ids = tl.load(id_ + cell, mask=part < PARTS, other=_NO_ID)
    top = tl.max(best, 0)
    found = tl.min(tl.where(best == top, ids, _NO_ID), 0)
    tl.store(out + row, tl.where(top > float("-inf"), found, 0).to(tl.int64))


def drawn(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    """See `fused.drawn`."""
    rows = len(logits)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    count = torch.full_like(out[:1], rows)
    with torch.cuda.device_of(logits):  # where Triton launches; without CUDA nothing
        value, id_ = _parts(logits, logits, count, 1.0, noise, first, rows, mix=False)
        parts = value.shape[1]
        cells = triton.next_power_of_2(parts)
        best_of_parts[(rows,)](value, id_, out, PARTS=parts, CELLS=cells, num_warps=1)
    return out


def accepted(
    d: Tensor,
    a: Tensor,
    draft: Tensor,
    count: Tensor,
    weight: float,
    noise: KeyedNoise,
) -> Tensor:
    """See `fused.accepted`."""
    rows = len(draft)
    if rows == 1:
        return count.clone()
    with torch.cuda.device_of(d):
        value, id_ = _parts(d, a, count, weight, noise, 1, rows - 1, mix=True)
        return greedy.prefix(value, id_, draft, count)


def _parts(
    d: Tensor, a: Tensor, count: Tensor, weight: float, noise: KeyedNoise, first: int, rows: int,
    mix: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The best of each part of each row and its id, [rows, parts] each.

    Args:
        first: the row of the noise that belongs to the first of these.
        mix: whether `a` is mixed in; then the rows begin with d's second.
    """
    if d.stride(1) != 1 or a.stride(1) != 1:
        raise ValueError("logits must stand one behind the other in a row")
    vocab, params = d.shape[1], noise.params
    scale = 1.0 / max(params.temperature, COLDEST)
    top_k = params.top_k is not None and params.top_k < vocab
    top_p = params.top_p is not None and params.top_p < 1.0
    edge = d.new_empty(rows if top_k or top_p else 1)
    rest = 1.0 - weight
    if top_k or top_p:
        edge_of_row[(rows,)](
            d, a, count, edge, d.stride(0), a.stride(0), vocab, weight, rest, scale,
            float(params.top_k or 0), max(params.top_p or 0.0, LEAST_P),
            FIRST=int(mix), MIX=mix, TOP_K=top_k, TOP_P=top_p, BITS=BITS,
            BLOCKS=triton.cdiv(vocab, SEARCHED), BLOCK=SEARCHED, num_warps=SEARCH_WARPS,
        )  # fmt: skip
    blocks, parts = greedy.cut(rows, vocab, 4 * RUN)
    value = d.new_empty(rows, parts)
    id_ = torch.empty(rows, parts, dtype=torch.int32, device=d.device)
    best_noised_of_part[(rows, parts)](
        d, a, count, edge, noise.key, value, id_, d.stride(0), a.stride(0), vocab,
        weight, rest, scale, first,
        FIRST=int(mix), MIX=mix, EDGE=top_k or top_p, PARTS=parts, BLOCKS=blocks,
        num_warps=greedy.WARPS,
    )  # fmt: skip
    return value, id_
