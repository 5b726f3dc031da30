"""Nothing that a model, a file or a file's name says drives the terminal by way of the chat."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from apdcli.chat.draft_view import DraftView
from apdcli.chat.markdown import markdown_text
from apdcli.chat.picture import export_chat
from apdcli.chat.screen import Screen, answer_line, clipboard_code
from apdcli.chat.sessions import Turn
from apdcli.render.safe import visible
from apdcli.render.terminal import Terminal
from tests.render.fakes import Vocabulary, apd_events, split
from tests.render.test_untrusted import BIDI, CONTROLS, SAMPLES

ENVIRON = {"TERM": "xterm-256color"}
SGR = re.compile(r"\x1b\[[0-9;]*m")
REDRAW = re.compile(r"\x1b\[(\?25[hl]|2K|\d*A|\d*G|[0-9;]*m)|\r\n?")  # what Rich's Live sends
MARKDOWN = [
    "&#27;[31m &#x9b;31m &#7; &#13;over &#x202e; &rlm; &lrm; &ZeroWidthSpace;",
    "<b>x</b> <script>alert(1)</script>\n\n<div onclick='x'>\n",
    "[a](http://x/&#13;&#x202e;) ![pic](http://i/x) <http://auto.example> http://bare.example",
    '[a]: http://x "t\x1b]0;t\x07"\n\n[a]',
    "```py\x1b]52;c;x\x07\nprint('\x1b[2J')\n```\n    \x9bindented",
    "| a\x1b[31m | b |\n|---|---|\n| \x9b | \u202e |",
    "# h\x1b]8;;http://evil\x1b\\x",
    "> \x1b[5mquote\n\n1. \x07one\n   - \x08two\n\n~~\x1b[0m~~ **\x1b[1m** `\x1b[3m`",
]


def left_over(text: str, ours: re.Pattern[str]) -> list[str]:
    return [c for c in ours.sub("", text) if c in CONTROLS or c in BIDI]


@pytest.mark.parametrize("text", [*SAMPLES, *MARKDOWN], ids=ascii)
@pytest.mark.parametrize("environ", [ENVIRON, {"TERM": "xterm", "NO_COLOR": "1"}])
def test_markdown_lets_nothing_through(text: str, environ: dict[str, str]) -> None:
    drawn = markdown_text(text, 60, environ)
    assert not left_over(drawn, SGR)
    assert "\x1b]" not in drawn  # links are text
    if "NO_COLOR" in environ:
        assert not re.search(r"\x1b\[[0-9;]*\b(3[0-7]|9[0-7]|38)\b", drawn)
    plain = SGR.sub("", drawn)
    for piece in set(visible(text)) & set("␛␇⟦") if text in SAMPLES else ():
        assert piece in plain


def test_markdown_shows_what_it_does_not_follow() -> None:
    plain = SGR.sub("", markdown_text("\n\n".join(MARKDOWN), 200, ENVIRON))
    for words in (
        "<b>x</b>",
        "<script>alert(1)</script>",
        "<div onclick='x'>",
        "[image: pic] (http://i/x)",
        "http://auto.example",
        "⟦U+202E⟧",
        "␍over",
    ):
        assert words in plain, words
    assert "http://auto.example (http" not in plain
    assert "[bold]x" in SGR.sub("", markdown_text("[bold]x[/bold] :smile:", 60, ENVIRON))
    assert ":smile:" in markdown_text("[bold]x[/bold] :smile:", 60, ENVIRON)


def test_markdown_is_markdown() -> None:
    drawn = markdown_text("# Head\n\n**b** `c`\n\n- one\n- two\n\n[t](http://x)", 40, ENVIRON)
    plain = SGR.sub("", drawn)
    assert plain.splitlines()[0] == "Head"
    assert " • one\n • two" in plain
    assert "t (http://x)" in plain
    assert "\x1b[1mb" in drawn
    assert all(len(line) <= 40 for line in plain.splitlines())


def test_markdown_keeps_the_lines_and_indents_that_there_are() -> None:
    code = 'def add(a, b):\n    """Return the sum."""\n    return a + b'
    plain = SGR.sub("", markdown_text(f"{code}\n\n- one\n  two  \n  three", 60, ENVIRON))
    assert plain == f"{code}\n\n • one\n   two\n   three\n"


@pytest.mark.parametrize("text", SAMPLES, ids=ascii)
def test_the_view_before_markdown_does_not_either(text: str) -> None:
    out = io.StringIO()
    words = Vocabulary(split(text.encode(), 2, 3))
    with DraftView(words.state(), Terminal(out, lambda: (60, 10), ENVIRON)) as view:
        for event in apd_events(words):
            view(event)
    assert not [c for c in left_over(out.getvalue(), REDRAW) if c != "\n"]


def test_the_view_before_markdown_fits_and_goes_away() -> None:
    import pyte

    out, height = io.StringIO(), 8
    words = Vocabulary(split(b"word after word " * 60, 2, 3))
    screen = pyte.Screen(40, height)
    stream = pyte.Stream(screen)
    out.write("before\r\n")
    with DraftView(words.state(), Terminal(out, lambda: (40, height), ENVIRON)) as view:
        for event in apd_events(words):
            view(event)
    stream.feed(out.getvalue().replace("\r\n", "\n").replace("\n", "\r\n") + "after")
    shown = [line.rstrip() for line in screen.display if line.strip()]
    assert shown[-1] == "after"
    assert "word" not in " ".join(shown)


@pytest.mark.parametrize("text", SAMPLES, ids=ascii)
def test_the_screen_does_not_either(text: str) -> None:
    out = io.StringIO()
    screen = Screen(out, lambda: (60, 10), ENVIRON)
    for write in (screen.say, screen.note, screen.error, screen.echo):
        write(text)
    screen.table([(text, text), ("a", text)])
    assert not left_over(out.getvalue(), re.compile(r"\x1b\[[0-9;]*m|\r\n"))


def test_a_picture_does_not_either(tmp_path: Path) -> None:
    turns = [Turn("[red]q[/red]\x1b", "<script>\x1b[31m[b]a", accepted=(2,)), Turn("x", "plain")]
    words = Vocabulary([b"<script>", b"\x1b[31m[b]a"])
    state = words.state()
    for event in apd_events(words):
        state.apply(event)
    for suffix in ("svg", "html"):
        path = tmp_path / f"p.{suffix}"
        export_chat(path, turns, {0: state}, title="t\x1b")
        content = path.read_text(encoding="utf-8")
        assert "[red]q[/red]" in content
        assert "<script>" not in content
        assert "\x1b" not in content
        assert "plain" in content
        assert answer_line(turns[0]).split(" ")[0] in content


def test_the_clipboard_gets_the_text_and_nothing_more() -> None:
    code = clipboard_code("a\x1b\\b\x07é")
    assert code == "\x1b]52;c;YRtcYgfDqQ==\x07"
    assert clipboard_code("x" * 75_000) is None
