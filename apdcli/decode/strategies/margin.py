"""The clearest choices first: Dream's topk_margin (arXiv 2508.15487; arXiv 2502.06768)."""

from __future__ import annotations

from torch import Tensor

from apdcli.decode.any_order_params import ConfidenceParams, RankedParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler, probability_margin
from apdcli.decode.strategies.blocks import Reading
from apdcli.decode.strategies.confidence import Confidence
from apdcli.decode.strategies.schedule import make_schedule


class Margin(Confidence):
    """Commit the positions with the widest gap between their two best probabilities."""

    def __init__(
        self, shared: DecodeParams, own: RankedParams, sampler: Sampler | None = None
    ) -> None:
        by_confidence = ConfidenceParams(
            own.block_length, own.early_stop, own.cache, alg_temp=own.alg_temp
        )
        super().__init__(shared, by_confidence, sampler)
        self.schedule = make_schedule(own.schedule, own.steps)

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """p(best) - p(second best), after temperature and filters as in the original."""
        return (probability_margin(self.sampler.shaped(x.logits)),)
