"""Positions whose prediction has settled (KLASS, arXiv 2511.05664, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.decode.any_order_params import KlassParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import confidence
from apdcli.decode.strategies.blocks import AnyOrder, Reading
from apdcli.decode.types import Canvas, Pair

_TINY = 1e-12  # keeps the logarithm of an impossible token finite


class Klass(AnyOrder):
    """Commit what is confident and whose last n divergences KL(p_t || p_{t-1}) are all small."""

    def __init__(
        self, shared: DecodeParams, own: KlassParams, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(shared, own, device)
        self.tau = own.confidence_threshold
        self.epsilon = own.kl_threshold
        self.n = own.kl_history_length
        self.parallel = own.parallel
        self._block = (0, 0)
        self._before: dict[int, int] = {}  # position -> row of _p, the last forward's p
        self._p: Tensor | None = None
        self._calm: dict[int, int] = {}  # position -> small divergences in a row

    def read(self, canvas: Canvas, pair: Pair) -> Reading:
        """As ever; the history is that of one block."""
        if self._block != self.block(canvas):
            self._block, self._p, self._calm = self.block(canvas), None, {}
        return super().read(canvas, pair)

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """c and the divergence from the last forward (infinite at the first)."""
        p = x.logits.softmax(dim=-1)
        if self._p is None:
            kl = torch.full_like(p[:, 0], torch.inf)
        else:
            before = self._p[[self._before[j] for j in x.positions]]
            kl = (p * ((p + _TINY).log() - (before + _TINY).log())).sum(dim=-1)
        self._p, self._before = p, {j: r for r, j in enumerate(x.positions)}
        return confidence(x.logits, x.ids), kl

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """Of the settled positions all that are confident, or only the most confident one."""
        c, kl = scores
        self._calm = {
            j: self._calm.get(j, 0) + 1 if kl_j < self.epsilon else 0
            for j, kl_j in zip(x.positions, kl, strict=True)
        }
        settled = [r for r, j in enumerate(x.positions) if self._calm[j] >= self.n]
        if self.parallel:
            return [r for r in settled if c[r] > self.tau]
        return x.top(1, c, settled)
