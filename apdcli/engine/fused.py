"""Mixture, greedy choice, comparison and prefix count in one pass over the logits.

How much of a draft is accepted depends on an argmax a row of ``R * d + (1 - R) * a`` and on nothing
else of that array, so it is never made: each entry is computed in registers and compared with the
best so far. On CUDA by two small Triton kernels; elsewhere, and where these fail, by torch, a few
rows at a time. Both give the token that `decode.sampling.greedy` of `decode`'s `mixture` gives,
the first among equals.

The kernel rounds `(1 - R) * a` to float32 and adds `R * d` in one fused multiply-add, as torch's
own `add` with `alpha` does where its compiler contracts it. Where it does not, the two may choose
differently between entries that are within one rounding of each other; nowhere else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings

import torch
from torch import Tensor

from apdcli.decode.sampling import NEVER, greedy
from apdcli.decode.strategies.apd import mixture

# Rows of the mixture that the torch version holds at once.
_ROWS = 8
# What stands for "Triton failed here": set once, with a warning.
_failed = False


def accepted(d: Tensor, a: Tensor, draft: Tensor, count: Tensor, weight: float) -> Tensor:
    """How long a prefix of a greedy draft the mixture of both models agrees with.

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

    Returns:
        [1] int64, from 1 to count: the first token is always accepted.
    """
    global _failed
    if not usable(d.device):
        return plain(d, a, draft, count, weight)
    try:
        return by_triton(d, a, draft, count, weight)
    except Exception as error:
        # Whatever a compiler or a driver raises: the answer is the same without it.
        fail(f"{type(error).__name__}: {str(error).strip()}".split("\n")[0])
        return plain(d, a, draft, count, weight)


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


def plain(d: Tensor, a: Tensor, draft: Tensor, count: Tensor, weight: float) -> Tensor:
    """What :func:`accepted` means, by torch: at most eight rows of the mixture are held at once."""
    rows, vocab = len(draft), d.shape[1]
    index = torch.arange(1, rows, device=d.device)
    target = draft.new_empty(rows - 1)
    for r in range(0, rows - 1, _ROWS):
        part = slice(r, min(r + _ROWS, rows - 1))
        of_d = d[1 + part.start : 1 + part.stop]
        of_a = a[part, :vocab].to(torch.float32, copy=True)
        mixed = mixture(of_d, of_a, weight)
        if weight == 0.0:  # the verifier alone, which knows of no ban
            mixed = mixed.masked_fill(of_d == NEVER, NEVER)
        target[part] = greedy(mixed)
    # The first row that differs, or the draft's length.
    differs = (draft[1:] != target) & (index < count)
    places = torch.where(differs, index, count)
    return torch.minimum(places.amin(dim=0, keepdim=True), count) if rows > 1 else count.clone()


def by_triton(d: Tensor, a: Tensor, draft: Tensor, count: Tensor, weight: float) -> Tensor:
    """What :func:`accepted` means, by the kernels; raises what Triton raises."""
    from apdcli.engine import fused_kernels as kernels

    return kernels.accepted(d, a, draft, count, weight)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, which its tests ask for."""
    return os.environ.get("TRITON_INTERPRET") == "1"
