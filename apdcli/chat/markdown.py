"""An answer as Markdown on a terminal, safely: untrusted text stays text.

Raw HTML is shown as it is written, links and images as text with their address, no control
character and no bidirectional override gets through, not even as an entity (&#27;, &rlm;). Knows
no conversation.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from apdcli.render.palette import depth_of
from apdcli.render.safe import visible

if TYPE_CHECKING:
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token
    from rich.console import Console
    from rich.markdown import Markdown

ColourSystem = Literal["standard", "256", "truecolor"]
COLOUR_SYSTEMS: dict[str, ColourSystem] = {"16": "standard", "256": "256", "truecolor": "truecolor"}
_CODE_THEME = "ansi_dark"  # the terminal's own colours
_MOST_COLUMNS = 100  # longer lines are hard to read


def markdown_text(text: str, columns: int, environ: Mapping[str, str] | None = None) -> str:
    """Escape codes and text that show `text` as Markdown, with a newline at the end.

    Args:
        text: untrusted.
        columns: the terminal's width.
        environ: decides about colours; the process's own unless given.
    """
    console = _console(columns, os.environ if environ is None else environ)
    console.print(markdown(text))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().split("\n")
    return "\n".join(line.rstrip(" ") for line in lines).strip("\n") + "\n"


def markdown(text: str) -> Markdown:
    """The same as something that Rich prints."""
    from markdown_it import MarkdownIt
    from rich.markdown import Markdown

    class Plain(Markdown):
        elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "heading_open": _left_heading()}

    made = Plain("", code_theme=_CODE_THEME, hyperlinks=False)
    made.markup = text = visible(text)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    parser.inline.ruler.at("newline", _kept_line_end)
    made.parsed = _cleaned(parser.parse(text))
    return made


def _kept_line_end(state: StateInline, silent: bool) -> bool:
    """A line ends where the model ended it, and the next keeps its indent: code without a fence."""
    if state.src[state.pos] != "\n":
        return False
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("hardbreak", "br", 0)
    state.pos += 1
    return True


def _left_heading() -> Any:
    from rich.markdown import Heading

    class LeftHeading(Heading):
        """A heading where the text is, not in the middle of the terminal."""

        def __rich_console__(self, console: Console, options: Any) -> Any:
            self.text.justify = "left"
            yield self.text

    return LeftHeading


def _cleaned(tokens: list[Token]) -> list[Token]:
    """Tokens without what entities have brought back in; images and bare links as text."""
    kept: list[Token] = []
    for token in tokens:
        token.content = visible(token.content)
        token.info = visible(token.info)
        token.attrs = {k: visible(v) if isinstance(v, str) else v for k, v in token.attrs.items()}
        if token.type == "image":
            token.type, token.children = "text", None
            token.content = f"[image: {token.content or 'untitled'}] ({token.attrs.get('src')})"
        elif token.children:
            token.children = _cleaned(token.children)
        bare = [t.type for t in kept[-2:]] == ["link_open", "text"]
        if token.type == "link_close" and bare and kept[-1].content == kept[-2].attrs.get("href"):
            del kept[-2]  # the address says it all
            continue
        kept.append(token)
    return kept


def _console(columns: int, environ: Mapping[str, str]) -> Console:
    from rich.console import Console
    from rich.theme import Theme

    depth = depth_of(environ)
    return Console(
        theme=Theme({"markdown.code": "cyan", "markdown.link_url": "underline"}),
        file=io.StringIO(),
        width=max(2, min(columns, _MOST_COLUMNS)),
        force_terminal=True,
        color_system=COLOUR_SYSTEMS.get(depth),
        no_color=depth == "none",
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
        _environ={},
    )
