"""The answer while it is made, for a view that goes away: what stays is set in Markdown after it.

Shows the last rows that fit and the status line. Knows no conversation; it only consumes events.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from apdcli.chat.markdown import COLOUR_SYSTEMS
from apdcli.render.live import REDRAW_S
from apdcli.render.picture import picture
from apdcli.render.state import ViewState
from apdcli.render.terminal import Suspension, Terminal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

    from apdcli.render.state import Event


class DraftView:
    """Draws the end of a growing answer, and takes it away at the end; a context manager."""

    def __init__(self, state: ViewState, terminal: Terminal) -> None:
        from rich.console import Console

        from apdcli.render.palette import depth_of

        self.state = state
        self._terminal = terminal
        depth = depth_of(terminal.environ)
        self._console = Console(
            file=terminal.out,  # type: ignore[arg-type]
            force_terminal=True,
            color_system=COLOUR_SYSTEMS.get(depth),
            no_color=depth == "none",
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
        )
        self._drawn_at: float | None = None
        self._suspension = Suspension()
        self._live = self._begun()

    def __enter__(self) -> DraftView:
        self._suspension.__enter__()
        self._fit()
        self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._suspension:
            self.state.close()
            self._live.stop()

    def __call__(self, event: Event) -> None:
        """Take one event; redraws at most every 50 ms."""
        self.state.apply(event)
        now = self._terminal.clock()
        if self._drawn_at is None or now - self._drawn_at >= REDRAW_S:
            self._drawn_at = now
            self._fit()
            self._live.refresh()
        if self._suspension.asked:  # Ctrl-Z: take the draft away, stop, and begin below the shell's
            self._live.stop()
            self._suspension.stop()
            self._fit()
            self._live = self._begun()
            self._live.start(refresh=True)

    def _begun(self) -> Live:
        """A drawing that starts where the cursor is."""
        from rich.live import Live

        return Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            get_renderable=self._content,
        )

    def _fit(self) -> None:
        from rich.console import ConsoleDimensions

        self._console.size = ConsoleDimensions(*self._terminal.size())

    def _content(self) -> Text:
        from rich.text import Text

        columns, rows = self._terminal.size()
        whole = picture(self.state, columns=max(2, columns))
        lines = whole.wrap(self._console, max(2, columns - 1))
        return Text("\n").join(lines[-max(1, rows - 1) :])
