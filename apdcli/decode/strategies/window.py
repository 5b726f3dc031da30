"""The denoiser's window in left-to-right decoding: which positions one step recomputes."""

from __future__ import annotations

import math

from torch import Tensor

from apdcli.decode.checks import Lookahead, Window
from apdcli.decode.types import Canvas, Pair

# M of "auto": before anything was accepted, at least, at most; and per token accepted lately.
AUTO_FIRST, AUTO_LEAST, AUTO_MOST, AUTO_FACTOR = 32, 8, 128, 2.0
# Weight of the last step in what was accepted lately.
RECENT = 0.25


class SlidingWindow:
    """[left, right) of each step (arXiv 2506.00413, section 4; spec/apd.md, step 1).

    The tokens accepted last were computed while they were masks, so they are recomputed, and
    W - 1 tokens before them are refreshed too.

    With M = "auto" the lookahead follows the acceptance: 32 at first, then twice the running
    mean of the tokens accepted a step, from 8 to 128, doubled after a step that accepted all of
    its draft. Easy text gets a long lookahead, hard text cheap steps, and the same text the same.

    Args:
        recompute_window: W.
        max_lookahead: M.
        least: the smallest M that "auto" may choose.
    """

    def __init__(
        self, recompute_window: Window, max_lookahead: Lookahead, least: int = AUTO_LEAST
    ) -> None:
        self.recompute_window = recompute_window
        self.max_lookahead = max_lookahead
        self._recent: float | None = None
        self.least = least
        self._auto = max(AUTO_FIRST, least)
        self._accepted_last: int | None = None

    @property
    def recent(self) -> float | None:
        """Running mean of the tokens accepted a step; None before any was."""
        return self._recent

    def bounds(self, canvas: Canvas) -> tuple[int, int]:
        """left and right of the step at the canvas's cursor."""
        i, end = canvas.cursor, canvas.end
        right = end
        if self.max_lookahead != "all":
            ahead = self._auto if self.max_lookahead == "auto" else self.max_lookahead
            right = min(i + ahead, end)
        if self._accepted_last is None or self.recompute_window == "all":
            return 0, right
        return max(0, i - (self._accepted_last + self.recompute_window - 1)), right

    def advance(self, accepted: int) -> None:
        """Remember how many tokens the step accepted."""
        self._accepted_last = accepted
        mean = accepted if self._recent is None else self._recent
        self._recent = mean + RECENT * (accepted - mean)
        wanted = math.ceil(AUTO_FACTOR * self._recent)
        if accepted >= self._auto:
            wanted = max(wanted, 2 * self._auto)
        self._auto = max(min(wanted, AUTO_MOST), self.least)


class Sliding:
    """What strategies over a sliding window share: the marginals at the cursor, also ahead of time.

    Attributes:
        window: whose bounds are asked for once a step.
    """

    window: SlidingWindow

    def __init__(self, window: SlidingWindow) -> None:
        self.window = window
        self._ahead: Tensor | None = None

    def ahead(self, canvas: Canvas, pair: Pair) -> None:
        """Ask for the marginals of the next step: see `decode.types.ForesightedStrategy`."""
        self._ahead = self.marginals(canvas, pair)

    def marginals(self, canvas: Canvas, pair: Pair) -> Tensor:
        """[right - i, vocab], those of the window's positions from the cursor i on."""
        if self._ahead is not None:
            made, self._ahead = self._ahead, None
            return made
        left, right = self.window.bounds(canvas)
        return pair.denoiser.logits(canvas.tokens[:right], left, canvas.cursor)
