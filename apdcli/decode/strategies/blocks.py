"""What the any-order strategies share: the block being decoded, and one forward's reading of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from apdcli.decode.any_order_params import AnyOrderParams
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler, confidence
from apdcli.decode.types import Canvas, Commit, Pair


@dataclass(frozen=True)
class Reading:
    """What one forward says about the n masked positions of the block.

    Attributes:
        length: L, positions of the whole canvas.
        positions: absolute, ascending.
        logits: [n, vocab].
        ids: [n] int64, the token drawn for each position.
    """

    length: int
    positions: list[int]
    logits: Tensor
    ids: Tensor

    def to_host(self, *scores: Tensor) -> tuple[list[int], list[list[float]]]:
        """The ids and any scores [n] as lists: the step's only device-to-host transfer."""
        # Ids are exact in float32, vocabularies being far smaller than 2^24.
        ids, *values = torch.stack((self.ids.float(), *scores)).tolist()
        return [int(i) for i in ids], values

    def top(self, k: int, score: list[float], rows: Iterable[int] | None = None) -> list[int]:
        """The k of `rows` (of all rows) with the highest score; none where there are none."""
        rows = list(range(len(score)) if rows is None else rows)
        # Over the whole canvas, as the published codes do it: confidences of exactly 1 are
        # common, and topk's choice among equals depends on where they stand.
        everywhere = torch.full((self.length,), -torch.inf)
        everywhere[[self.positions[r] for r in rows]] = torch.tensor([score[r] for r in rows])
        best = set(everywhere.topk(min(k, len(rows))).indices.tolist())
        return [r for r in rows if self.positions[r] in best]


class AnyOrder:
    """Block by block; in a block, the positions that `choose` picks from the scores of `score`.

    A block is finished before the next begins, so the cursor tells which one it is.
    """

    def __init__(
        self, shared: DecodeParams, own: AnyOrderParams, sampler: Sampler | None = None
    ) -> None:
        self.early_stop = own.early_stop
        self.block_length = own.block_length
        self.cache = own.cache
        self._cached: tuple[int, int] | None = None  # the block whose first forward was made
        self.sampler = sampler or Sampler(shared)

    def block(self, canvas: Canvas) -> tuple[int, int]:
        """[b0, b1) of the block being decoded; the last block may be shorter."""
        if self.block_length == "all":
            return canvas.prompt_len, canvas.end
        before = (canvas.cursor - canvas.prompt_len) // self.block_length
        b0 = canvas.prompt_len + before * self.block_length
        return b0, min(b0 + self.block_length, canvas.end)

    def read(self, canvas: Canvas, pair: Pair) -> Reading:
        """One forward of the denoiser, over as much of the canvas as is not cached."""
        b0, b1 = self.block(canvas)
        positions = [j for j in range(b0, b1) if canvas.masked[j]]
        logits = self._forward_block(canvas, pair, b0, b1)[[j - b0 for j in positions]]
        ids = self.sampler.draw(logits, self.sampler.noise(logits))
        return Reading(canvas.end, positions, logits, ids)

    def _forward_block(self, canvas: Canvas, pair: Pair, b0: int, b1: int) -> Tensor:
        """Logits [at least b1 - b0, vocab] from b0 on."""
        denoiser = pair.denoiser
        start = max(0, b0 - denoiser.lookback)
        if self.cache == "none" or self._cached != (b0, b1):
            self._cached = (b0, b1)
            return denoiser.logits(canvas.tokens, 0, b0)
        if self.cache == "prefix":
            return denoiser.logits(canvas.tokens, start, b0)
        return denoiser.logits(canvas.tokens[:b1], start, b0, keep_after=True)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Denoise, score, choose; where nothing is chosen, the best position by the first score."""
        x = self.read(canvas, pair)
        ids, scores = x.to_host(*self.score(x))
        chosen = sorted(self.choose(x, scores) or x.top(1, scores[0]))
        return Commit(
            positions=tuple(x.positions[r] for r in chosen),
            ids=tuple(ids[r] for r in chosen),
            proposed=len(chosen),
        )

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """What the choice depends on, each [n] and better when higher; by default c alone."""
        return (confidence(x.logits, x.ids),)

    def choose(self, x: Reading, scores: list[list[float]]) -> list[int]:
        """Rows of the reading to commit, given its scores as lists."""
        raise NotImplementedError


def ranked(scores: list[float]) -> list[int]:
    """Rows from the highest score to the lowest; among equals, the leftmost first."""
    return sorted(range(len(scores)), key=lambda r: -scores[r])
