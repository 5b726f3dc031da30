"""The denoiser's window in left-to-right decoding: which positions one step recomputes."""

from __future__ import annotations

from apdcli.decode.checks import Window
from apdcli.decode.types import Canvas


class SlidingWindow:
    """[left, right) of each step (arXiv 2506.00413, section 4; spec/apd.md, step 1).

    The tokens accepted last were computed while they were masks, so they are recomputed, and
    W - 1 tokens before them are refreshed too.
    """

    def __init__(self, recompute_window: Window, max_lookahead: Window) -> None:
        self.recompute_window = recompute_window
        self.max_lookahead = max_lookahead
        self._accepted_last: int | None = None

    def bounds(self, canvas: Canvas) -> tuple[int, int]:
        """left and right of the step at the canvas's cursor."""
        i, end = canvas.cursor, canvas.end
        right = end if self.max_lookahead == "all" else min(i + self.max_lookahead, end)
        if self._accepted_last is None or self.recompute_window == "all":
            return 0, right
        return max(0, i - (self._accepted_last + self.recompute_window - 1)), right

    def advance(self, accepted: int) -> None:
        """Remember how many tokens the step accepted."""
        self._accepted_last = accepted
