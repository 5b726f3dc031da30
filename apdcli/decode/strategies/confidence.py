"""The most confident first: LLaDA (arXiv 2502.09992, algorithm 5), Dream's maskgit_plus."""

from __future__ import annotations

import math
import random

from apdcli.decode.any_order_params import ConfidenceParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.blocks import AnyOrder, Reading
from apdcli.decode.strategies.schedule import Schedule, make_schedule
from apdcli.decode.types import Canvas, Pair


class Confidence(AnyOrder):
    """Commit the k surest positions; with `steps`, k follows the schedule.

    With `alg_temp` the order is drawn: the k highest of c + alg_temp g, with Gumbel noise g, are
    k draws without replacement from softmax(c / alg_temp) (arXiv 1903.06059).
    """

    def __init__(
        self, shared: DecodeParams, own: ConfidenceParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.k = own.k
        self.schedule: Schedule | None = (
            None if own.steps is None else make_schedule(own.schedule, own.steps)
        )
        self.alg_temp = own.alg_temp
        self.dice = random.Random(shared.seed)

    def read(self, canvas: Canvas, pair: Pair) -> Reading:
        """As ever; the schedule settles k before the forward."""
        if self.schedule is not None:
            b0, b1 = self.block(canvas)
            self.k = self.schedule.count((b0, b1), sum(canvas.masked[b0:b1]))
        return super().read(canvas, pair)

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """The k highest, or k drawn by their scores."""
        (score,) = scores
        if self.alg_temp > 0:
            score = [s + self.alg_temp * self._gumbel() for s in score]
        return x.top(self.k, score)

    def _gumbel(self) -> float:
        # random() may be 0 and is never 1, so one logarithm needs care.
        return -math.log(-math.log(self.dice.random() or math.ulp(0.0)))
