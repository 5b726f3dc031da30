"""The plain writer: nothing but the answer, streamed as it is accepted.

Knows no colours and no cursor. A pipe or file gets the exact text in UTF-8, a terminal the same
text with its control characters made visible, in lines that end at words: there the last word
waits until it is whole.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, TextIO

from apdcli.render.safe import visible
from apdcli.render.state import Cell, ViewState
from apdcli.render.terminal import is_terminal, known_columns

if TYPE_CHECKING:
    from apdcli.render.state import Event
    from apdcli.render.words import Prose


class PlainWriter:
    """Writes the contiguous answer to a stream, flushed after every step; a context manager.

    One newline is added at the end when the answer lacks one. BrokenPipeError is the caller's.
    """

    def __init__(self, state: ViewState, out: TextIO) -> None:
        """Args:
        state: folds the events.
        out: standard output, or any text stream. Bytes go to its buffer where it has one, so that
            neither the locale nor the platform's newlines change them.
        """
        self.state = state
        self._terminal = is_terminal(out)
        self._out = out
        self._raw: BinaryIO | None = None if self._terminal else getattr(out, "buffer", None)
        self._written = 0
        self._last = ""
        self._waiting = ""  # of what has settled, on a terminal
        self._line: Prose | None = None

    def __enter__(self) -> PlainWriter:
        self._out.flush()  # what was printed before stays before
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):  # nobody reads any more
            return
        self.state.close()
        self._settled(final=True)
        # after a failure with nothing written there is no line to end
        if self._last != "\n" and (error is None or self._last):
            self._write("\n")

    def __call__(self, event: Event) -> None:
        """Take one event and write what it settled."""
        self.state.apply(event)
        self._settled()

    def obey(self) -> None:
        """Ctrl-Z stops the process by itself: there is nothing to put in order."""

    def _settled(self, final: bool = False) -> None:
        cells = self.state.settled[self._written :]
        self._written = len(self.state.settled)
        text = "".join(cell.text for cell in cells)
        if self._terminal:
            text = self._in_words(text, final)
        if text:
            self._write(text)

    def _in_words(self, text: str, final: bool) -> str:
        """What can be shown of text for the terminal; the rest waits for the end of its word."""
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        text = self._waiting + visible(text).encode(encoding, "replace").decode(encoding)
        self._waiting, columns = "", known_columns(self._out)
        if not text or columns is None:
            return text
        from apdcli.render.layout import glyphs  # late: a pipe needs no widths
        from apdcli.render.words import Prose

        self._line = self._line or Prose(columns)
        self._line.resize(columns)
        ready, waiting = self._line.broken(glyphs([Cell(text)]), final=final)
        if ready and not (final or waiting or ready[-1].is_newline):
            waiting = [ready.pop()]  # what comes next may belong to it
        for glyph in ready:
            for piece in self._line.expand(glyph):
                self._line.write(piece)
        self._waiting = "".join(glyph.text for glyph in waiting)
        return "".join(glyph.text for glyph in ready)

    def _write(self, text: str) -> None:
        self._last = text[-1]
        if self._raw is not None:
            self._raw.write(text.encode("utf-8", "surrogatepass"))
            self._raw.flush()
            return
        self._out.write(text)
        self._out.flush()
