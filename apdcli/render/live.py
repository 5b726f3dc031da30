"""The live view: text that settles into the scrollback, and what lies ahead of it redrawn below.

Settled text is written once, as ordinary output in lines that end at words, and never touched
again; only the tail (the word that may still grow, the draft, masks, the status line) is redrawn.
The cursor rests, hidden, on settled text that is kept back for that: a terminal that reflows on a
resize takes the cursor along with it, so the next redraw starts at the right place without counting
rows.
A multiplexer tells of its size late and may leave the cursor behind: there nothing is drawn until a
resize is surely over, and after a new width the text begins anew below.

Ctrl-Z gives the terminal back before the process stops; in the background nothing is drawn. When
the terminal is ours again, the text begins anew below what the shell has written meanwhile.

Knows nothing of decoding; it only consumes events.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from apdcli.render.layout import Glyph, Row, ahead, glyphs, rows
from apdcli.render.palette import RESET, Palette, depth_of
from apdcli.render.remark import remark
from apdcli.render.state import Cell, ViewState
from apdcli.render.summary import status_spans, summary_line
from apdcli.render.terminal import Suspension, Terminal, no_echo
from apdcli.render.text import width
from apdcli.render.words import Prose

if TYPE_CHECKING:
    from apdcli.render.state import Event

REDRAW_S = 0.05  # at most 20 redraws a second
RESIZE_S = 0.3  # tmux tells of a second resize up to 0.25 s after it has reflowed its lines
_MOST_RESIZES_S = 3.0  # at the end, who still drags the window then gets the text all the same
_SYNC = "\x1b[?2026h"
_SYNC_END = "\x1b[?2026l"
_HIDE = "\x1b[?25l"
_SHOW = "\x1b[?25h"
_CLEAR_ROW = "\x1b[K"
_CLEAR_BELOW = "\x1b[J"
_INDEX = "\x1bD"  # down one row, same column, scrolling at the bottom
_SAVE = "\x1b7"
_RESTORE = "\x1b8"
_NO_WRAP = "\x1b[?7l"  # a resize not yet known of cuts the tail's rows instead of moving them
_WRAP = "\x1b[?7h"
_CUT = " …"


class LiveView:
    """Draws a generation on a terminal while it runs; a context manager.

    Leaving it, by whatever way, leaves the whole answer as plain scrollback text and the cursor
    shown.
    """

    def __init__(
        self,
        state: ViewState,
        terminal: Terminal,
        *,
        summary_to: TextIO | None = None,
        keyboard: TextIO | None = None,
    ) -> None:
        """Args:
        state: folds the events; its settings are what the status line shows.
        terminal: standard output's.
        summary_to: gets the closing one-line summary (standard error, or None for quiet).
        keyboard: the stream whose echo is off while the view is up (standard input).
        """
        self.state = state
        self._terminal = terminal
        self._summary_to = summary_to
        self._palette = Palette(depth_of(terminal.environ))
        self._size_seen = terminal.size()
        self._resized_at: float | None = None
        self._line = Prose(max(2, self._size_seen[0]))
        self._taken = 0  # settled cells that were laid out
        self._kept: list[Cell] = []  # settled, but not yet written
        self._tail_rows = 0
        self._settled_rows = 0
        self._drawn_at: float | None = None
        self._stack = contextlib.ExitStack()
        self._keyboard = keyboard
        self._broken = False
        self._away = True  # the terminal is not ours
        self._suspension = Suspension()

    def __enter__(self) -> LiveView:
        self._suspension.__enter__()
        try:
            self._draw()
        except BaseException:
            with self._suspension, self._stack:
                self._give_back()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._suspension, self._stack:
            try:
                if not self._broken:
                    self._close()
            except BaseException:  # a second Ctrl-C
                self._give_back()
                raise

    def __call__(self, event: Event) -> None:
        """Take one event; redraws unless the last redraw was less than 50 ms ago."""
        self.state.apply(event)
        now = self._terminal.clock()
        if self._drawn_at is None or now - self._drawn_at >= REDRAW_S:
            self._draw()
        self.obey()

    def obey(self) -> None:
        """Stop if Ctrl-Z was pressed; called where no event comes for long, too."""
        if self._suspension.asked:
            if not self._away:
                self._leave()
            self._suspension.stop()
            self._draw()

    def _leave(self) -> None:
        """Give the terminal back with the text so far on it."""
        self._await_resize()
        self._size()
        self._send(_SYNC + self._settled_to_the_end() + _CLEAR_BELOW + RESET + _WRAP + _SYNC_END)
        self._send(_SHOW)
        self._stack.close()
        self._away = True

    def _begin_anew(self) -> None:
        """Draw from the start of the text, wherever the cursor is now."""
        self._line = Prose(max(2, self._terminal.size()[0]))
        self._taken = self._tail_rows = 0
        self._kept = []

    def _draw(self) -> None:
        self._drawn_at = self._terminal.clock()
        if not self._terminal.foreground():
            self._away = True
            return
        if self._away:
            self._begin_anew()
            self._stack.enter_context(no_echo(self._keyboard, self._terminal.out))
            self._send(_HIDE)
            self._away = False
        if self._is_resizing():
            return
        columns, height = self._size()
        settled = self._settle(final=False)
        self._send(_SYNC + settled + self._tail(columns, height) + _SYNC_END)

    def _close(self) -> None:
        self.state.close()
        text = ""
        if self._away:  # the shell's prompt is in this row
            self._begin_anew()
            text = "\r\n"
        self._await_resize()
        self._size()
        text += self._settled_to_the_end()
        self._send(_SYNC + text + _CLEAR_BELOW + RESET + _WRAP + _SYNC_END + _SHOW)
        if self._summary_to is not None and self.state.step:
            line = remark(summary_line(self.state), self._summary_to, self._terminal.environ)
            self._summary_to.write(line + "\n")
            self._summary_to.flush()

    def _settled_to_the_end(self) -> str:
        """What has settled and is not written yet, and the end of its row."""
        text = self._settle(final=True)
        if self._line.column:  # a full row, too, ends here and not one row further down
            text += self._end_row(self._line.column) + "\r\n"
        return text

    def _give_back(self) -> None:
        """Leave the terminal as it was found, whatever has happened."""
        with contextlib.suppress(OSError):
            self._send(RESET + _WRAP + _SYNC_END + _SHOW)

    def _is_resizing(self) -> bool:
        """Whether the terminal may have another size by now than it says."""
        size, now = self._terminal.size(), self._terminal.clock()
        if size != self._size_seen:
            self._size_seen, self._resized_at = size, now
        if not self._terminal.resizes_late or self._resized_at is None:
            return False
        return now - self._resized_at < RESIZE_S

    def _await_resize(self) -> None:
        until = self._terminal.clock() + _MOST_RESIZES_S
        while self._is_resizing() and self._terminal.clock() < until:
            self._terminal.sleep(REDRAW_S)

    def _size(self) -> tuple[int, int]:
        columns, height = self._terminal.size()
        columns = max(2, columns)
        if columns != self._line.columns:
            if self._terminal.resizes_late:
                self._send(_CLEAR_BELOW + "\r\n")
                self._begin_anew()
            self._line.resize(columns)
            self._tail_rows = 0
        return columns, height

    def _send(self, text: str) -> None:
        try:
            self._terminal.out.write(text)
            self._terminal.out.flush()
        except OSError:  # the terminal is gone: say so once, and do not write again
            self._broken = True
            raise

    def _settle(self, *, final: bool) -> str:
        """Escape codes and text of what has settled since, but for a word that may still grow.

        At least the last cluster is kept for the cursor, and one more when the row would be exactly
        full: a cursor past the last column is where terminals disagree.
        """
        cells = [*self._kept, *self.state.settled[self._taken :]]
        self._taken = len(self.state.settled)
        ready, waiting = self._line.broken(glyphs(cells), final=final)
        count = len(ready) if final else self._writable(ready, stays=bool(waiting))
        kept = [*ready[count:], *waiting]
        self._kept = [replace(glyph.cell, text=glyph.text) for glyph in kept]
        return self._written(ready[:count])

    def _writable(self, ready: list[Glyph], stays: bool) -> int:
        """How many clusters may be written so that one stays and the row is not exactly full."""
        probe = self._line.copy()
        most = len(ready) if stays else len(ready) - 1
        best = 0
        for count, glyph in enumerate(ready, start=1):
            for piece in probe.expand(glyph):
                probe.write(piece)
            if glyph.is_newline or (count <= most and probe.column < probe.columns):
                best = count
        return best

    def _written(self, settling: list[Glyph]) -> str:
        """Move past the clusters; what to send for them."""
        line, parts, on = self._line, list[str](), ""
        self._settled_rows = 0
        for glyph in (piece for raw in settling for piece in line.expand(raw)):
            code = self._palette.cell(glyph.cell).sgr(self._palette.depth)
            breaks = glyph.is_newline or line.wraps(glyph)
            if on and (breaks or code != on):
                parts.append(RESET)
                on = ""
            if breaks:  # what the tail had drawn behind the end of this row must go
                self._settled_rows += 1
                parts.append(self._end_row(line.column) + ("\r\n" if glyph.is_newline else ""))
            if not glyph.is_newline:
                parts.append((code if code != on else "") + glyph.text)
                on = code
            line.write(glyph)
        return "".join(parts) + (RESET if on else "")

    def _end_row(self, column: int) -> str:
        # clearing right of a full row would take its last character in some terminals
        return _CLEAR_ROW if column < self._line.columns else ""

    def _tail(self, columns: int, height: int) -> str:
        """Paint what lies ahead and the status below the cursor, and come back to it."""
        below = 2 if height > 8 else 1 if height > 1 else 0  # a blank row and the status
        tail = ahead([*self._kept, *self.state.tail()], columns)
        tail, _ = self._line.broken(tail, final=True)
        drawn, cut = rows(tail, self._line, max(1, height - below))
        if self._kept and not drawn[0]:  # the cursor rests on the blank before a word that moved
            drawn[0].append(Glyph(" ", 1, self._kept[0]))
        if cut:
            _mark_cut(drawn[-1], columns, self._line.column if len(drawn) == 1 else 0)
        painted, start = list[str](), self._line.column
        for row in drawn:
            end = start + sum(glyph.columns for glyph in row)
            painted.append(self._paint(row) + self._end_row(end))
            start = 0
        # the status only moves down: a bar that jumps with every draft is hard to read
        least = min(height, self._tail_rows - self._settled_rows)
        self._tail_rows = max(len(drawn) + below, least)
        painted += [_CLEAR_ROW] * (self._tail_rows - len(drawn) - 1 if below else 0)
        if below:
            painted.append(self._status(columns) + _CLEAR_BELOW)
        down = len(painted) - 1
        room = f"{_INDEX * down}\x1b[{down}A" if down else ""
        return room + _SAVE + _NO_WRAP + "\r\n".join(painted) + _RESTORE + _WRAP

    def _paint(self, row: Row) -> str:
        looks = groupby(row, key=lambda glyph: self._palette.cell(glyph.cell))
        return "".join(
            self._palette.paint("".join(glyph.text for glyph in run), look) for look, run in looks
        )

    def _status(self, columns: int) -> str:
        spans = status_spans(self.state, self._palette, columns - 1)
        return "".join(self._palette.paint(text, look) for text, look in spans)


def _mark_cut(last: Row, columns: int, start: int) -> None:
    """End the last row with an ellipsis: there is more than the terminal is tall."""
    taken = start + sum(glyph.columns for glyph in last)
    while last and taken + width(_CUT) > columns:
        taken -= last.pop().columns
    if taken + width(_CUT) <= columns:
        last.append(Glyph(_CUT, width(_CUT), Cell(_CUT, "draft")))
