"""Drafts verified whole, or by parts, whatever the verifier's device would choose."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from apdcli.decode.types import Pair, Verifier


class JudgingVerifier:
    """A verifier that is told how drafts are shown to it, and counts what it is shown.

    It hides an `accept` of its own: that always judges the whole draft.

    Attributes:
        verify_less: whether drafts are verified by parts.
        positions: how many it has run through the network.
    """

    def __init__(self, inner: Verifier, by_parts: bool) -> None:
        self.inner = inner
        self.verify_less = by_parts
        self.crop = inner.crop
        self.positions = 0

    @property
    def length(self) -> int:
        """See the protocol."""
        return self.inner.length

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """See the protocol."""
        self.positions += len(tokens) - self.length
        return self.inner.logits(tokens, first)


def judging(by_parts: bool) -> Callable[[Pair], Pair]:
    """Wraps models so that drafts are verified by parts, or else whole."""

    def wrap(pair: Pair) -> Pair:
        if pair.verifier is None:
            return pair
        return Pair(pair.denoiser, JudgingVerifier(pair.verifier, by_parts))

    return wrap
