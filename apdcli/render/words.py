"""Where streamed prose breaks: at blanks, so that no word is cut at the edge of the terminal.

A break takes the place of the blanks there, and nothing else is added. What must be copied as it
stands is left to the terminal, which joins what it has wrapped: lines that begin with a blank, code
between fences, words longer than a row, and wide characters, which may wrap anywhere.

Knows widths only: no escape codes, no streams.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from apdcli.render.layout import NEWLINE_DRAWN, TAB, Glyph, Line, glyphs
from apdcli.render.state import Cell

_FENCE = re.compile(r"\s*(?:`{3,}[^`]*|~{3,}.*)")
_FENCE_END = re.compile(r"\s*(?:`{3,}|~{3,})\s*")


class Prose(Line):
    """A line's place on the screen, and whether words may be kept whole in it."""

    def __init__(self, columns: int) -> None:
        super().__init__(columns)
        self._text: list[str] = []  # of the line since the text's own last newline
        self._fenced = False
        self._last: Glyph | None = None  # in this row, or before the edge that it wrapped at

    def copy(self) -> Prose:
        other = Prose(self.columns)
        other.column, other._offset = self.column, self._offset
        other._text, other._fenced, other._last = list(self._text), self._fenced, self._last
        return other

    def write(self, glyph: Glyph) -> None:
        """See `Line`."""
        super().write(glyph)
        if not glyph.is_newline:
            self._text.append(glyph.text)
            self._last = glyph
            return
        self._last = None
        if not glyph.soft:
            line = "".join(self._text)
            fence = _FENCE_END if self._fenced else _FENCE
            self._fenced ^= fence.fullmatch(line) is not None
            self._text.clear()

    def broken(self, ready: Iterable[Glyph], *, final: bool) -> tuple[list[Glyph], list[Glyph]]:
        """Settle where what follows breaks; the place itself stays as it is.

        Args:
            ready: what comes next, newlines being the text's own.
            final: nothing more will come.

        Returns:
            What can be written, with `soft` newlines in place of blanks; and what waits behind it
            for the end of its word.
        """
        filling = _Filling(self.copy())
        for glyph in ready:
            filling.take(glyph)
        if final:
            filling.end_word()
            filling.end_blanks()
        return filling.out, [*filling.blanks, *filling.word]

    @property
    def _is_code(self) -> bool:
        return self._fenced or (bool(self._text) and self._text[0] in " \t")


class _Filling:
    """Words on their way into rows."""

    def __init__(self, line: Prose) -> None:
        self.line = line
        self.out: list[Glyph] = []
        self.blanks: list[Glyph] = []
        self.word: list[Glyph] = []

    def take(self, glyph: Glyph) -> None:
        line = self.line
        if glyph.is_newline:
            self.end_word()
            self.end_blanks()
            self._put(glyph)
        elif line._is_code or (_is_blank(glyph) and not (line._text or self.word)):
            self._put(glyph)
        elif _is_blank(glyph):
            self.end_word()
            self.blanks.append(glyph)
        elif _wraps_anywhere(glyph):
            self.end_word()
            if self.blanks and self._room() < glyph.columns:
                self._break(glyph)
            self.word = [glyph]
            self.end_word()
        elif not (self.blanks or self.word) and self._goes_on():
            self._put(glyph)
        else:
            self.word.append(glyph)
            if self._room() < sum(g.columns for g in self.word):
                self._break(glyph)
                self.end_word()

    def end_word(self) -> None:
        """Put a word that is whole, with the blanks before it; it is known to fit."""
        if self.word:
            self._put(*self.blanks, *self.word)
            self.blanks, self.word = [], []

    def end_blanks(self) -> None:
        """Put those blanks at the end of a line that are still within its row."""
        for blank in self.blanks:
            if self._room([blank]) < 0:
                break
            self._put(blank)
        self.blanks = []

    def _goes_on(self) -> bool:
        """Whether a word has begun on the screen already, or begins a row: it cannot move."""
        last = self.line._last
        return last is None or not (_is_blank(last) or _wraps_anywhere(last))

    def _room(self, blanks: Sequence[Glyph] | None = None) -> int:
        """Columns left in this row behind the blanks; the last one is never used."""
        offset = self.line._offset
        for blank in self.blanks if blanks is None else blanks:
            offset += TAB - offset % TAB if blank.text == "\t" else 1
        return self.line.columns - 1 - self.line.column - (offset - self.line._offset)

    def _break(self, before: Glyph) -> None:
        self._put(Glyph("\n", 0, before.cell, soft=True))
        self.blanks = []

    def _put(self, *glyphs: Glyph) -> None:
        for glyph in glyphs:
            self.out.append(glyph)
            for piece in self.line.expand(glyph):
                self.line.write(piece)


def _is_blank(glyph: Glyph) -> bool:
    return glyph.text in (" ", "\t")


def _wraps_anywhere(glyph: Glyph) -> bool:
    """Wide characters; and what stands for text that is not there yet."""
    ahead = glyph.cell.kind == "mask" or glyph.text == NEWLINE_DRAWN
    return glyph.columns > 1 or ahead


def wrapped_text(text: str, columns: int) -> str:
    """A whole text as the views write it to a terminal: breaks at words, safe characters."""
    out, _ = Prose(max(2, columns)).broken(glyphs([Cell(text)]), final=True)
    return "".join(glyph.text for glyph in out)
