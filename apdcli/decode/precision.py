"""Keeps the caller's automatic mixed precision out: models compute in what they were loaded in."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch

_KINDS = ("cpu", "cuda", "mps")
_NOTHING = nullcontext()


def own_precision() -> AbstractContextManager[object]:
    """A context without `torch.autocast`, on whatever devices the caller has turned it on for.

    Autocast would cast some operands of a product and not others; what is written over its own
    memory fails then, and the rest is another text than without.
    """
    kinds = [kind for kind in _KINDS if torch.is_autocast_enabled(kind)]
    if not kinds:
        return _NOTHING
    stack = ExitStack()
    for kind in kinds:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack
