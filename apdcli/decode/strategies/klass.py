"""Positions whose prediction has settled (KLASS, arXiv 2511.05664, algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.decode.any_order_params import KlassParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler, confidence
from apdcli.decode.strategies.blocks import AnyOrder, Reading
from apdcli.decode.types import Canvas, Pair

_TINY = 1e-12  # keeps the logarithm of an impossible token finite


class Klass(AnyOrder):
    """Commit what is confident and whose last n divergences KL(p_t || p_{t-1}) are all small."""

    def __init__(
        self, shared: DecodeParams, own: KlassParams, sampler: Sampler | None = None
    ) -> None:
        super().__init__(shared, own, sampler)
        self.tau = own.confidence_threshold
        self.epsilon = own.kl_threshold
        self.n = own.kl_history_length
        self.parallel = own.parallel
        self._block = (0, 0)
        self._forwards = 0  # made in this block
        self._first = 0  # position of row 0 of the two that follow
        self._p: Tensor | None = None  # [rows, vocab] of the last forward
        self._calm: Tensor | None = None  # [rows] small divergences in a row

    def _forward_block(self, canvas: Canvas, pair: Pair, b0: int, b1: int) -> Tensor:
        """As ever; what it says is compared with what the last forward said."""
        if self._block != (b0, b1):
            self._block, self._forwards = (b0, b1), 0
            if not self.parallel:  # the DiCo authors' runs forget between blocks, KLASS does not
                self._p = None
        self._forwards += 1
        logits = super()._forward_block(canvas, pair, b0, b1)
        self._compare((logits if self.parallel else logits[: b1 - b0]).softmax(dim=-1), b0)
        return logits

    def _compare(self, p: Tensor, first: int) -> None:
        """p [rows, vocab] from position `first` on."""
        calm = torch.zeros(len(p), dtype=torch.int64, device=p.device)
        if self._p is not None and self._calm is not None:
            known = slice(first - self._first, first - self._first + len(p))
            # A dual cache leaves later blocks out: those have no history.
            before, streak = self._p[known], self._calm[known]
            now = p[: len(before)]
            kl = (now * ((now + _TINY).log() - (before + _TINY).log())).sum(dim=-1)
            calm[: len(before)] = (streak + 1) * (kl < self.epsilon)
        self._p, self._calm, self._first = p, calm, first

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """c and how many divergences in a row were small."""
        assert self._calm is not None
        rows = [j - self._first for j in x.positions]
        return confidence(x.logits, x.ids), self._calm[rows].float()

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """Of the settled positions all that are confident, or only the most confident one."""
        c, calm = scores
        if self._forwards < self.n:
            return []
        settled = [r for r, streak in enumerate(calm) if streak >= self.n]
        if self.parallel:
            return [r for r in settled if c[r] > self.tau]
        return x.top(1, c, settled)
