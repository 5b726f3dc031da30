"""As many positions as a bound on entropy allows (EB-Sampler, arXiv 2505.24857, algorithm 1)."""

from __future__ import annotations

from torch import Tensor

from apdcli.decode.any_order_params import EntropyBoundParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler, confidence, entropy
from apdcli.decode.strategies.blocks import AnyOrder, Reading, ranked


class EntropyBound(AnyOrder):
    """Commit the longest prefix U, by confidence, with sum H_j - max H_j <= gamma over U."""

    def __init__(
        self, shared: DecodeParams, own: EntropyBoundParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.gamma = own.gamma

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """c and H."""
        return confidence(x.logits, x.ids), entropy(x.logits)

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """Grow U while the joint entropy that is left open stays within gamma."""
        c, H = scores
        U: list[int] = []
        total = largest = 0.0
        for j in ranked(c):
            total, largest = total + H[j], max(largest, H[j])
            if total - largest > self.gamma:
                break
            U.append(j)
        return U
