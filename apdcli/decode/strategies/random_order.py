"""Random order: the reverse process as it is derived.

Dream's origin (arXiv 2508.15487) and LLaDA's random remasking (arXiv 2502.09992).
"""

from __future__ import annotations

import random

from apdcli.decode.any_order_params import ScheduledParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.blocks import AnyOrder
from apdcli.decode.strategies.schedule import DreamSchedule, EvenSchedule
from apdcli.decode.types import Canvas, Commit, Pair


class RandomOrder(AnyOrder):
    """Unmask whatever falls, whatever the model thinks of it.

    Dream: each position with probability 1 - s/t. LLaDA: as many at each step.
    """

    def __init__(
        self, shared: DecodeParams, own: ScheduledParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.coins = DreamSchedule(own.steps)
        self.even = EvenSchedule(own.steps) if own.schedule == "llada" else None
        self.dice = random.Random(shared.seed)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Choose the positions, then make the forward that fills them."""
        b0, b1 = self.block(canvas)
        masked = [j for j in range(b0, b1) if canvas.masked[j]]
        if self.even is not None:
            fallen = sorted(self.dice.sample(masked, self.even.count((b0, b1), len(masked))))
        else:
            fallen = self._toss((b0, b1), masked)
        x = self.read(canvas, pair)
        ids, _ = x.to_host()
        drawn = dict(zip(x.positions, ids, strict=True))
        return Commit(tuple(fallen), tuple(drawn[j] for j in fallen), proposed=len(fallen))

    def _toss(self, block: tuple[int, int], masked: list[int]) -> list[int]:
        """Toss until some position falls: a step where none does needs no forward."""
        while True:
            share = self.coins.share(block, len(masked))
            fallen = [j for j in masked if self.dice.random() < share]
            if fallen:
                return fallen
