"""A picture of the view, as SVG or HTML. Knows no terminal."""

from __future__ import annotations

import io
from itertools import groupby
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from apdcli.errors import UsageError
from apdcli.render.layout import ahead, glyphs
from apdcli.render.output_file import OutputFile
from apdcli.render.palette import Look, Palette
from apdcli.render.safe import visible
from apdcli.render.state import ViewState
from apdcli.render.summary import status_spans

_THEME = TerminalTheme(
    (22, 24, 29),
    (222, 225, 230),
    [
        (22, 24, 29),
        (213, 94, 0),
        (0, 145, 106),
        (196, 127, 0),
        (31, 127, 196),
        (138, 111, 209),
        (47, 155, 216),
        (222, 225, 230),
    ],
)


def export_picture(
    path: str | Path, state: ViewState, title: str = "apd", *, prompt: str = "", columns: int = 80
) -> None:
    """Write what the view shows in this state: the text, what lies ahead, and the status.

    Args:
        path: ends in .svg or .html.
        state: finished, or stopped anywhere in between.
        title: the window's, in an SVG; an HTML page has none.
        prompt: a line to show above the answer.
        columns: the picture's width in characters.

    Raises:
        UsageError: the path has another ending.
        OutputError: the file cannot be written.
    """
    save_picture(path, picture(state, prompt, columns), title, columns=columns)


def save_picture(path: str | Path, content: Text, title: str, *, columns: int = 80) -> None:
    """Write text, as a terminal of that width would wrap it; raises what export_picture does.

    The file is written whole or not at all.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".html"):
        raise UsageError(f"cannot tell the picture's format from {path}: end it in .svg or .html")
    console = Console(
        record=True,
        width=columns,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
        _environ={},
    )
    console.print(content, soft_wrap=False)
    if suffix == ".svg":
        drawn = console.export_svg(title=visible(title), theme=_THEME)
    else:
        drawn = console.export_html(theme=_THEME)
    with OutputFile(path) as file:
        file.write(drawn)


def picture(state: ViewState, prompt: str = "", columns: int = 80) -> Text:
    """The view as Rich text; never by way of markup, which model output could contain."""
    palette = Palette("truecolor")
    text = Text()
    if prompt:
        text.append(visible(prompt) + "\n\n", Style(bold=True))
    text.append(answer_text(state, columns))
    text.rstrip()
    text.append("\n\n")
    for part, look in status_spans(state, palette, columns - 1):
        text.append(part, style_of(look))
    return text


def answer_text(state: ViewState, columns: int = 80) -> Text:
    """The answer alone, each step in its colour."""
    palette, text = Palette("truecolor"), Text()
    drawn = (*glyphs(state.settled), *ahead(state.tail(), columns))
    for look, run in groupby(drawn, key=lambda glyph: palette.cell(glyph.cell)):
        text.append("".join(glyph.text for glyph in run), style_of(look))
    return text


def style_of(look: Look) -> Style:
    """The same look for Rich."""
    return Style(
        color=look.colour or None,
        dim=look.dim or None,
        bold=look.bold or None,
        underline=look.underline or None,
    )
