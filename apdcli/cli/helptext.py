"""Help that fits the terminal: the parser's own is never narrower than 50 columns.

Knows no command and no option.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from typing import Any

_WIDEST, _NARROWEST = 80, 12
_HANG = 4  # columns by which what belongs to the line above stands further in
_WHOLE = 10_000  # more than any first sentence has
# What a shell reads as one word, as far as an example has it.
_WORD = re.compile(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""")


def help_width() -> int:
    """Columns for help: those of the terminal less a margin, 78 at most."""
    return max(min(shutil.get_terminal_size().columns, _WIDEST) - 2, _NARROWEST)


def fitting(command: Any) -> Any:
    """The same command, its help and that of all below it laid out by `_Fitting`.

    Args:
        command: of Click; Typer carries Click inside or takes the installed one.
    """
    base = command.context_class
    formatter = type("Formatter", (_Fitting, base.formatter_class), {})
    command.context_class = type("Context", (base,), {"formatter_class": formatter})
    for param in command.params:
        if param.param_type_name == "argument":
            _name_plainly(param)
    for below in getattr(command, "commands", {}).values():
        # Click cuts a command's line with "..." where it could go on in the next.
        below.short_help = below.get_short_help_str(_WHOLE)
        fitting(below)
    return command


def _name_plainly(argument: Any) -> None:
    """An argument by its name: NAME, or [NAME] in the usage where it may be left out.

    Typer adds braces, or its type in the words of Python.
    """
    name = str(argument.metavar or argument.name.upper())
    shown = (name if argument.required else f"[{name}]") + ("..." if argument.nargs == -1 else "")
    argument.get_usage_pieces = lambda _: [shown]
    argument.get_help_record = lambda _: (name, argument.help or "")


class _Fitting:
    """The parts of Click's formatter that need more room than a narrow terminal has."""

    width: int
    current_indent: int

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The usage; Click lets what stands before the arguments be of any width."""
        text = f"{prefix or 'Usage:'} {prog} {args}".rstrip()
        self._write_lines(text, " " * self.current_indent, " " * (self.current_indent + _HANG))

    def write_heading(self, heading: str) -> None:
        """A section's title."""
        indent = " " * self.current_indent
        self._write_lines(f"{heading}:", indent, indent)

    def write_text(self, text: str) -> None:
        r"""Paragraphs; in those that \b begins a command that is too long goes on after a \."""
        room = self.width - self.current_indent
        paragraphs = text.split("\n\n")
        for index, paragraph in enumerate(paragraphs):
            if paragraph.startswith("\b\n"):
                lines = (folded(line, room) for line in paragraph.split("\n"))
                paragraphs[index] = "\n".join(lines)
        super().write_text("\n\n".join(paragraphs))  # type: ignore[misc]

    def write_dl(
        self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2
    ) -> None:
        """Terms, each with its text beside it; below it where less than half would be left."""
        rows = list(rows)
        first = min(max((len(term) for term, _ in rows), default=0), col_max) + col_spacing
        room = self.width - self.current_indent - first
        longest = max((len(word) for _, text in rows for word in text.split()), default=0)
        if room >= max(self.width / 2, longest):
            super().write_dl(rows, col_max, col_spacing)  # type: ignore[misc]
            return
        indent = " " * self.current_indent
        below = indent + " " * _HANG
        for term, text in rows:
            self._write_lines(term, indent, below)
            for paragraph in text.split("\n\n"):
                self._write_lines(" ".join(paragraph.split()), below, below)

    def _write_lines(self, text: str, first: str, others: str) -> None:
        lines = textwrap.wrap(
            text,
            self.width,
            initial_indent=first,
            subsequent_indent=others,
            break_on_hyphens=False,
        )
        self.write("".join(line + "\n" for line in lines))  # type: ignore[attr-defined]


def folded(line: str, width: int) -> str:
    r"""A command line as lines of that width, each but the last with a \ at its end.

    Only between words, as a shell reads them, so that it can be copied; a word that is wider alone
    stays whole.
    """
    if len(line) <= width:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    lines = [indent]
    for word in _WORD.findall(line):
        blank = "" if lines[-1].isspace() or not lines[-1] else " "
        if blank and len(lines[-1]) + len(blank) + len(word) + 2 > width:
            lines.append(indent + " " * _HANG + word)
        else:
            lines[-1] += blank + word
    return " \\\n".join(lines)
