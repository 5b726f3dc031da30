"""Every position above a confidence (Fast-dLLM, arXiv 2505.22618, algorithm 1)."""

from __future__ import annotations

from apdcli.decode.any_order_params import ThresholdParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.blocks import AnyOrder, Reading


class Threshold(AnyOrder):
    """Commit all that is surer than tau; if nothing is, the surest."""

    def __init__(
        self, shared: DecodeParams, own: ThresholdParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.tau = own.confidence_threshold

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """{j : c_j > tau}."""
        (c,) = scores
        return [j for j, c_j in enumerate(c) if c_j > self.tau]
