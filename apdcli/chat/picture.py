"""A picture of a conversation, as SVG or HTML. Knows no terminal and no models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from apdcli.render.palette import Look, Palette

if TYPE_CHECKING:
    from apdcli.chat.sessions import Turn
    from apdcli.render.state import ViewState


def export_chat(
    path: str | Path,
    turns: Sequence[Turn],
    states: Mapping[int, ViewState],
    *,
    title: str = "apd chat",
    columns: int = 80,
) -> None:
    """Write the conversation: messages, answers with each step in its colour, their numbers.

    Args:
        path: ends in .svg or .html.
        turns: what was said.
        states: how the answers were made, by the turn's index; others are plain (a resumed
            session keeps texts, not steps).
        title: the window's, in an SVG; an HTML page has none.
        columns: the picture's width in characters.

    Raises:
        UsageError: the path has another ending, or nothing was said.
        OutputError: the file cannot be written.
    """
    from rich.text import Text

    from apdcli.chat.screen import PROMPT, answer_line
    from apdcli.errors import UsageError
    from apdcli.render.picture import answer_text, save_picture, style_of
    from apdcli.render.safe import visible

    if not turns:
        raise UsageError("nothing was said yet: there is nothing to draw")
    palette, text = Palette("truecolor"), Text()
    quiet = style_of(palette.quiet)
    for index, turn in enumerate(turns):
        first, *rest = visible(turn.shown).split("\n")
        lines = [PROMPT + first, *("... " + line for line in rest)]
        text.append("\n".join(lines) + "\n", style_of(Look(bold=True)))
        state = states.get(index)
        text.append(Text(visible(turn.answer)) if state is None else answer_text(state, columns))
        text.rstrip()
        text.append("\n")
        if turn.accepted:
            text.append(answer_line(turn) + "\n", quiet)
        text.append("\n")
    text.rstrip()
    save_picture(path, text, title, columns=columns)
