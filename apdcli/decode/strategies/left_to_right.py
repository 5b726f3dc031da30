"""A fixed number of tokens a step, left to right: the baseline of arXiv 2506.00413, figure 2."""

from __future__ import annotations

import torch

from apdcli.decode.params import DecodeParams, LeftToRightParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.window import SlidingWindow
from apdcli.decode.types import Canvas, Commit, Pair


class LeftToRight:
    """Take the denoiser's first K tokens, whatever they depend on."""

    early_stop = True

    def __init__(
        self, shared: DecodeParams, own: LeftToRightParams, device: torch.device | str = "cpu"
    ) -> None:
        self.k = own.k
        lookahead = (
            own.max_lookahead if own.max_lookahead == "all" else max(own.max_lookahead, own.k)
        )
        self.window = SlidingWindow(own.recompute_window, lookahead)
        self.sampler = Sampler(shared, device)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Denoise the window at the cursor i and commit the next K positions."""
        i = canvas.cursor
        left, right = self.window.bounds(canvas)
        taken = min(self.k, right - i)
        pair.denoiser.crop(left)
        d = pair.denoiser.logits(canvas.tokens[:right], left, i)[:taken]
        ids = self.sampler.draw(d, self.sampler.noise(d)).tolist()
        self.window.advance(taken)
        return Commit(positions=tuple(range(i, i + taken)), ids=tuple(ids), proposed=taken)
