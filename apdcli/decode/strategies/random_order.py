"""Random order: the reverse process as it is derived; Dream's origin (arXiv 2508.15487)."""

from __future__ import annotations

import random

import torch

from apdcli.decode.any_order_params import ScheduledParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.strategies.blocks import AnyOrder
from apdcli.decode.strategies.schedule import Schedule
from apdcli.decode.types import Canvas, Commit, Pair


class RandomOrder(AnyOrder):
    """Unmask each position with probability 1 - s/t, whatever the model thinks of it."""

    def __init__(
        self, shared: DecodeParams, own: ScheduledParams, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(shared, own, device)
        self.schedule = Schedule(own.steps)
        self.coin = random.Random(shared.seed)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Toss until some position falls, then make the forward that fills it."""
        fallen = self._toss(canvas)
        x = self.read(canvas, pair)
        ids, _ = x.to_host()
        drawn = dict(zip(x.positions, ids, strict=True))
        return Commit(tuple(fallen), tuple(drawn[j] for j in fallen), proposed=len(fallen))

    def _toss(self, canvas: Canvas) -> list[int]:
        b0, b1 = self.block(canvas)
        masked = [j for j in range(b0, b1) if canvas.masked[j]]
        while True:
            share = self.schedule.share((b0, b1), len(masked))
            fallen = [j for j in masked if self.coin.random() < share]
            if fallen:
                return fallen
