"""Cells to columns and rows, as a terminal of a given width would place them.

Knows widths only: no escape codes, no streams. Wrapping is the terminal's own, at whole clusters,
so that text which has scrolled away and text on the screen are one and the same; `words` breaks
prose before it comes to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from apdcli.render.safe import visible
from apdcli.render.state import Cell
from apdcli.render.text import ORPHAN_BASE, extends, width

TAB = 8
NEWLINE_DRAWN = "\u21b5"
_DRAFT_ROWS = 3
_DRAFT_COLUMNS = 60


@dataclass(frozen=True)
class Glyph:
    """One place on the screen: a cluster, safe to print, and the cell whose look it has.

    Attributes:
        soft: a newline that is not of the text.
    """

    text: str
    columns: int
    cell: Cell
    soft: bool = False

    @property
    def is_newline(self) -> bool:
        return self.text == "\n"


Row = list[Glyph]


def glyphs(cells: Iterable[Cell]) -> list[Glyph]:
    """Cut safe text into clusters; what combines joins the cell in which its base is."""
    out: list[Glyph] = []
    text, owner = "", None
    for cell in cells:
        for character in visible(cell.text):
            if owner is not None and extends(text, character):
                text += character
                continue
            if owner is not None:
                out.append(_glyph(text, owner))
            text, owner = character, cell
    if owner is not None:
        out.append(_glyph(text, owner))
    return out


def ahead(cells: Iterable[Cell], columns: int) -> list[Glyph]:
    """Glyphs of what is not settled. Drafts stay low: newlines as ↵, and at most three rows.

    A draft with real newlines would throw the status line up and down at every step.
    """
    out: list[Glyph] = []
    room = max(_DRAFT_ROWS * columns, _DRAFT_COLUMNS)
    inline = (
        replace(cell, text=cell.text.replace("\n", NEWLINE_DRAWN).replace("\t", " "))
        if cell.kind == "draft"
        else cell
        for cell in cells
    )
    for glyph in glyphs(inline):
        if glyph.cell.kind == "draft":
            room -= glyph.columns
            if room < 0:
                continue
        out.append(glyph)
    return out


def _glyph(text: str, cell: Cell) -> Glyph:
    columns = width(text)
    if columns == 0 and text not in ("\n", "\t"):
        text = ORPHAN_BASE + text  # a mark with no base would fall on the text before it
        columns = 1
    return Glyph(text, columns, cell)


class Line:
    """Where the cursor stands in the current line of text, for any terminal width.

    The clusters since the last newline are remembered, so that after a resize the column is that
    to which a terminal that reflows has moved the cursor.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.column = 0
        self._widths: list[int] = []
        self._offset = 0

    def resize(self, columns: int) -> None:
        if columns == self.columns:
            return
        self.columns = columns
        self.column = 0
        for wide in self._widths:
            self.column = self._after(wide)
        self.column %= columns

    def expand(self, glyph: Glyph) -> list[Glyph]:
        """A tab as the spaces that it takes here (they wrap, tabs do not); else the glyph."""
        if glyph.text != "\t":
            return [glyph]
        return [Glyph(" ", 1, glyph.cell)] * (TAB - self._offset % TAB)

    def wraps(self, glyph: Glyph) -> bool:
        """Whether the glyph does not fit in what is left of this row."""
        return self.column + glyph.columns > self.columns

    def write(self, glyph: Glyph) -> None:
        """Move past an expanded glyph; the column may become `columns` (a full row)."""
        if glyph.is_newline:
            self.column = self._offset = 0
            self._widths.clear()
            return
        self.column = self._after(glyph.columns)
        self._offset += glyph.columns
        self._widths.append(glyph.columns)

    def copy(self) -> Line:
        other = Line(self.columns)
        other.column, other._offset = self.column, self._offset
        return other

    def _after(self, wide: int) -> int:
        column = self.column if self.column + wide <= self.columns else 0
        return column + wide


def rows(tail: Iterable[Glyph], line: Line, most: int) -> tuple[list[Row], bool]:
    """Lay glyphs out from where `line` stands; at most `most` rows, and whether any were cut.

    The last column is left free, but for the settled glyph under the cursor: where settled text
    later wraps in front of a wide character, that column must be as if never written.
    """
    start, full = line.column, line.columns
    line = line.copy()
    line.columns = max(2, line.columns - 1)
    out: list[Row] = [[]]
    for raw in tail:
        for glyph in line.expand(raw):
            last_column = out == [[]] and start + glyph.columns == full and not glyph.is_newline
            if glyph.is_newline or (line.wraps(glyph) and not last_column):
                if len(out) == most:
                    return out, True
                out.append([])
            if not glyph.is_newline:
                out[-1].append(glyph)
            line.write(glyph)
            if last_column:
                line.column = line.columns
    return out, False
