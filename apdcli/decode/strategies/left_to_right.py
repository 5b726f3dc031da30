"""A fixed number of tokens a step, left to right: the baseline of arXiv 2506.00413, figure 2."""

from __future__ import annotations

from apdcli.decode.params import DecodeParams, LeftToRightParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.window import AUTO_LEAST, Sliding, SlidingWindow
from apdcli.decode.types import Canvas, Commit, Pair


class LeftToRight(Sliding):
    """Take the denoiser's first K tokens, whatever they depend on."""

    early_stop = True

    def __init__(
        self, shared: DecodeParams, own: LeftToRightParams, sampler: Sampler | None = None
    ) -> None:
        self.k = own.k
        lookahead = (
            max(own.max_lookahead, own.k)
            if isinstance(own.max_lookahead, int)
            else own.max_lookahead
        )
        least = max(AUTO_LEAST, own.k)
        super().__init__(SlidingWindow(own.recompute_window, lookahead, least))
        self.sampler = sampler or Sampler(shared)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Denoise the window at the cursor i and commit the next K positions."""
        i = canvas.cursor
        d = self.marginals(canvas, pair)[: self.k]
        taken = len(d)
        ids = self.sampler.draw(d, self.sampler.noise(d)).tolist()
        self.window.advance(taken)
        return Commit(positions=tuple(range(i, i + taken)), ids=tuple(ids), proposed=taken)
