"""Tables on a terminal: as wide as it is, with words whole; a row under the other where it is too
narrow for that. Knows no command; texts come from anywhere and are never markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from apdcli.cli.context import Context
from apdcli.render.safe import visible
from apdcli.render.terminal import stream_size
from apdcli.render.text import width

_GAP = 2  # columns between two of a table
_AS_IT_IS = "Again: "  # begins a command, which is copied


@dataclass(frozen=True)
class Sheet:
    """A table; without heads two columns, names and values."""

    heads: tuple[str, ...]
    rows: Sequence[Sequence[str]]

    @property
    def lines(self) -> list[Sequence[str]]:
        """The heads, if there are any, and the rows."""
        return [*([self.heads] if self.heads else []), *self.rows]

    @property
    def widths(self) -> list[int]:
        """What each column takes unbroken."""
        return [max(map(width, column)) for column in zip(*self.lines, strict=True)]

    @property
    def both_ways(self) -> tuple[Sheet, ...]:
        """Itself, and if it has heads the same with its columns as rows."""
        if not self.heads:
            return (self,)
        heads, *rows = zip(*self.lines, strict=True)
        return self, Sheet(heads, rows)


def aligned(sheet: Sheet) -> str:
    """A table as text, its columns padded with spaces."""
    widths = [max(map(len, column)) for column in zip(*sheet.lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(wide) for cell, wide in zip(line, widths, strict=True)).rstrip()
        for line in sheet.lines
    )


def column_widths(sheet: Sheet, room: int) -> list[int] | None:
    """Widths at which a table is at most `room` wide and nothing is cut; None: there are none.

    The widest columns give way first, by breaking their texts between words.
    """
    columns, widths = list(zip(*sheet.lines, strict=True)), sheet.widths
    least = [max(width(piece.lstrip()) for cell in c for piece in _pieces(cell)) for c in columns]
    room -= _GAP * (len(columns) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        wide = [place for place, size in enumerate(widths) if size > least[place]]
        widths[max(wide, key=lambda place: widths[place])] -= 1
    return widths


def _pieces(cell: str) -> list[str]:
    """What a text can be broken into: words, and of apd:R=0.5,M=32 the parts, but not of 1,024."""
    return re.findall(r"\s*(?:[^\s,]|,(?=\d))+,?|\s*,", cell) or [""]


def _broken(cell: str, room: int) -> str:
    """A text as lines that are no wider than that."""
    first, *pieces = _pieces(cell)
    lines = [first.lstrip()]
    for piece in pieces:
        if width(lines[-1] + piece) <= room:
            lines[-1] += piece
        else:
            lines.append(piece.lstrip())
    return "\n".join(lines)


class Page:
    """Texts and tables, one below the other, on the terminal that standard output is."""

    def __init__(self, context: Context) -> None:
        from rich.console import Console

        out = context.out
        self._encoding = out.encoding or "utf-8"
        self.columns = stream_size(out)()[0]
        self.console = Console(
            file=out, width=self.columns, _environ=dict(context.environ), highlight=False
        )

    def text(self, text: str, style: str = "") -> None:
        """Lines, each broken between words; a command to run again is left to the terminal."""
        from rich.text import Text

        for line in text.split("\n"):
            whole = line.startswith(_AS_IT_IS)
            self.console.print(Text(self.safe(line), style=style), soft_wrap=whole)

    def sheet(self, sheet: Sheet) -> None:
        """A table."""
        sheet = Sheet(
            tuple(map(self.safe, sheet.heads)), [[*map(self.safe, row)] for row in sheet.rows]
        )
        # As it is, or its columns as rows: better what fits whole than what has to be broken.
        shapes = [(one, column_widths(one, self.columns)) for one in sheet.both_ways]
        fitting = [(one, widths) for one, widths in shapes if widths is not None]
        if not fitting:
            self._stacked(sheet)
            return
        whole = [(one, widths) for one, widths in fitting if widths == one.widths]
        self._drawn(*(whole or fitting)[0])

    def _drawn(self, sheet: Sheet, widths: Sequence[int]) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=box.SIMPLE_HEAD,
            show_header=bool(sheet.heads),
            show_edge=False,
            pad_edge=False,
            padding=(0, _GAP - 1, 0, 0),  # the box has a column, too
        )
        for place, size in enumerate(widths):
            right = bool(sheet.heads) and place > 0
            head = Text(_broken(sheet.heads[place], size)) if sheet.heads else ""
            table.add_column(head, justify="right" if right else "left", width=size)
        for row in sheet.rows:
            cells = zip(row, widths, strict=True)
            table.add_row(*(Text(_broken(cell, size)) for cell, size in cells))
        self.console.print(table)

    def _stacked(self, sheet: Sheet) -> None:
        """Each row as lines of names and values; a blank line between rows."""
        if not sheet.heads:
            for name, value in sheet.rows:
                self.text(f"{name}: {value}")
            return
        first, *names = sheet.heads
        wide = max(map(width, names), default=0)
        for place, (name, *values) in enumerate(sheet.rows):
            self.text(f"{'' if place == 0 else chr(10)}{first}: {name}", style="bold")
            for head, value in zip(names, values, strict=True):
                self.text(f"  {head}{' ' * (wide - width(head))}  {value}")

    def safe(self, text: str) -> str:
        """What this terminal can show, and nothing that drives it."""
        return visible(text).encode(self._encoding, "replace").decode(self._encoding)


def show_markdown(text: str, context: Context) -> None:
    """Lay out a text in which tables of Markdown stand."""
    page = Page(context)
    for is_table, lines in groupby(text.rstrip("\n").split("\n"), lambda line: line[:1] == "|"):
        found = list(lines)
        heads, _, *rows = map(_cells, found) if is_table else ([], [])
        if is_table and all(len(row) == len(heads) for row in rows):
            page.sheet(Sheet(tuple(heads), rows))
        else:
            page.text("\n".join(found))


def _cells(line: str) -> list[str]:
    """Of a line that `bench.units.markdown` wrote; a | within a word is part of it."""
    return [cell.strip() for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]
