"""As many positions as are jointly safe (Fast-dLLM, arXiv 2505.22618, section 3.3)."""

from __future__ import annotations

from apdcli.decode.any_order_params import FactorParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.blocks import AnyOrder, Reading, ranked


class Factor(AnyOrder):
    """Commit the longest prefix of k positions, by confidence, with (k + 1)(1 - c_k) < f."""

    def __init__(
        self, shared: DecodeParams, own: FactorParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.f = own.factor

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """The prefix that the rule allows."""
        (c,) = scores
        order = ranked(c)
        return order[: safe_prefix([c[j] for j in order], self.f)]


def safe_prefix(c: list[float], f: float) -> int:
    """The largest k with int(f / (1 - c_k + 1e-6) - 1) >= k, for c_1 >= c_2 >= ...; or 0.

    Up to rounding that is (k + 1)(1 - c_k) < f: greedy choices of k positions, each with at least
    confidence c_k, are then the mode of their joint distribution too (theorem 1).
    """
    for k in range(len(c), 0, -1):
        if int(f / (1 - c[k - 1] + 1e-6) - 1) >= k:
            return k
    return 0
