"""Mixture, filter, noise, choice, comparison and prefix count in one pass over the logits.

How much of a draft is accepted depends on an argmax a row of ``R * d + (1 - R) * a``, at T > 0
filtered and noised, and on nothing else of that array, so it is never made: each entry is computed
in registers and compared with the best so far. On CUDA by a few small Triton kernels; elsewhere,
and where these fail, by torch, a few rows at a time. Both give the tokens that
`decode.sampling` gives for `decode`'s `mixture`, the first among equals.

A kernel rounds `(1 - R) * a` to float32 and adds `R * d` in one fused multiply-add, as torch's
own `add` with `alpha` does where its compiler contracts it. Where it does not, and at T > 0, where
logarithms and quotients are rounded too, the two may choose differently between entries that are
within a few roundings of each other; nowhere else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from collections.abc import Hashable

import torch
from torch import Tensor

from apdcli.decode import sampling
from apdcli.decode.noise import KeyedNoise
from apdcli.decode.sampling import NEVER, greedy
from apdcli.decode.strategies.apd import mixture

# Rows of the mixture that the torch version holds at once.
_ROWS = 8
# What stands for "Triton failed here": set once, with a warning.
_failed = False
# Entries that are nearer to each other, relative to the larger or to 1, are a matter of rounding.
_TIE = 1e-5
# Devices and shapings of which a draw by the kernels was compared with torch's.
_compared: set[Hashable] = set()


def accepted(
    d: Tensor,
    a: Tensor,
    draft: Tensor,
    count: Tensor,
    weight: float,
    noise: KeyedNoise | None = None,
) -> Tensor:
    """How long a prefix of a draft the mixture of both models agrees with.

    Waits for nothing and reads `count` on the device, so that it can be recorded in a graph.
    What lies at and after `count` is padding: it is not looked at, whatever it holds.

    Args:
        d: [rows, vocab] float32, the marginals of the draft's positions; -inf for ids that may
            never be produced.
        a: [rows - 1 or more, vocab or more] raw logits in the verifier's dtype: row r - 1 judges
            draft r, and columns past d's are not looked at. No ids need be -inf here.
        draft: [rows] int64.
        count: [1] int64, the draft's length, 1 <= count <= rows.
        weight: R in [0, 1).
        noise: of the draft, row r that of draft r; None at T = 0.

    Returns:
        [1] int64, from 1 to count: the first token is always accepted.
    """
    if not usable(d.device):
        return plain(d, a, draft, count, weight, noise)
    try:
        return by_triton(d, a, draft, count, weight, noise)
    except Exception as error:
        # Whatever a compiler or a driver raises: the answer is the same without it.
        fail(_reason(error))
        return plain(d, a, draft, count, weight, noise)


def drawn(logits: Tensor, noise: KeyedNoise, first: int = 0) -> Tensor:
    """What `decode.sampling.drawn` gives; by the kernels no array of that size is made.

    The first draw of each kind waits for the device and is compared with torch's.

    Args: see there; the noise knows the parameters.
    """
    if not usable(logits.device):
        return sampling.drawn(logits, noise.params, noise, first)
    try:
        ids = draw_by_triton(logits, noise, first)
    except Exception as error:
        fail(_reason(error))
        return sampling.drawn(logits, noise.params, noise, first)
    kind = logits.device, noise.params.top_k is None, noise.params.top_p is None
    if kind in _compared:
        return ids
    _compared.add(kind)
    expected = sampling.drawn(logits, noise.params, noise, first)
    for row in (ids != expected).nonzero().flatten().tolist():
        noised = sampling.filtered(logits[row : row + 1], noise.params)
        if not _tied(noised + noise.piece(first + row, first + row + 1)):
            fail("its first draw is not torch's")
            return expected
    return ids


def agree(
    made: Tensor,
    expected: Tensor,
    d: Tensor,
    a: Tensor,
    weight: float,
    noise: KeyedNoise | None = None,
) -> bool:
    """Whether two counts are equal, or were it but for rounding. Waits for the device.

    Args:
        made, expected: [1] int64, what :func:`accepted` and :func:`plain` gave.
        d, a, weight, noise: what it was given.
    """
    first = min(int(made), int(expected))
    if first == max(int(made), int(expected)):
        return True
    if not 1 <= first < len(d):  # no count at all
        return False
    mixed = _mixed(d[first : first + 1], a[first - 1 : first], weight)
    if noise is not None:
        mixed = sampling.filtered(mixed, noise.params) + noise.piece(first, first + 1)
    return _tied(mixed)


def _tied(row: Tensor) -> bool:
    """Whether the best two of [1, vocab] are as good as each other."""
    best, second = row.topk(2).values[0].tolist()
    return bool(best - second <= _TIE * max(1.0, abs(best)))


def has_kernels(device: torch.device) -> bool:
    """Whether there are kernels for tensors there, be it that they fail."""
    return _installed() and (device.type == "cuda" or _interpreted())


def usable(device: torch.device) -> bool:
    """Whether the kernels are to be used for tensors there."""
    if _failed or not _installed():
        return False
    return device.type == "cuda" or _interpreted()


def fail(why: str) -> None:
    """Use torch from now on, and say so once."""
    global _failed
    if not _failed:
        _failed = True
        message = f"Triton does not work here ({why}); torch computes instead, a bit slower"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def plain(
    d: Tensor,
    a: Tensor,
    draft: Tensor,
    count: Tensor,
    weight: float,
    noise: KeyedNoise | None = None,
) -> Tensor:
    """What :func:`accepted` means, by torch: at most eight rows of the mixture are held at once."""
    rows = len(draft)
    index = torch.arange(1, rows, device=d.device)
    target = draft.new_empty(rows - 1)
    for r in range(0, rows - 1, _ROWS):
        part = slice(r, min(r + _ROWS, rows - 1))
        mixed = _mixed(d[1 + part.start : 1 + part.stop], a[part], weight)
        if noise is None:
            target[part] = greedy(mixed)
        else:
            target[part] = sampling.drawn(mixed, noise.params, noise, 1 + r)
    # The first row that differs, or the draft's length.
    differs = (draft[1:] != target) & (index < count)
    places = torch.where(differs, index, count)
    return torch.minimum(places.amin(dim=0, keepdim=True), count) if rows > 1 else count.clone()


def _mixed(d: Tensor, a: Tensor, weight: float) -> Tensor:
    """The mixture of d [n, vocab] and raw logits a [n, vocab or more]: a new array."""
    mixed = mixture(d, a[:, : d.shape[1]].to(torch.float32, copy=True), weight)
    if weight == 0.0:  # the verifier alone, which knows of no ban
        mixed = mixed.masked_fill(d == NEVER, NEVER)
    return mixed


def by_triton(
    d: Tensor,
    a: Tensor,
    draft: Tensor,
    count: Tensor,
    weight: float,
    noise: KeyedNoise | None = None,
) -> Tensor:
    """What :func:`accepted` means, by the kernels; raises what Triton raises."""
    if noise is None:
        from apdcli.engine import fused_kernels

        return fused_kernels.accepted(d, a, draft, count, weight)
    from apdcli.engine import draw_kernels

    return draw_kernels.accepted(d, a, draft, count, weight, noise)


def draw_by_triton(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    """What :func:`drawn` means, by the kernels; raises what Triton raises."""
    from apdcli.engine import draw_kernels

    return draw_kernels.drawn(logits, noise, first)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n")[0]


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, which its tests ask for."""
    return os.environ.get("TRITON_INTERPRET") == "1"
