"""The reader on a real pseudo-terminal: keys, several lines, paste, history, completion."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import apdcli
from apdcli.chat.reader import PlainReader, is_open, unquoted

pexpect = pytest.importorskip("pexpect")
if os.name == "nt":
    pytest.skip("needs a POSIX terminal", allow_module_level=True)

SCRIPT = """
import os, sys
from pathlib import Path
from apdcli.chat.completion import Sources
from apdcli.chat.reader import PromptReader
assert "torch" not in sys.modules
sources = Sources(lambda: ["R", "strategy", "temperature"], {"strategy": lambda: ["apd", "dico"]},
                  lambda: ["demo", "dream"], lambda: ["fox-talk"])
reader = PromptReader(sys.stdin, sys.stdout, os.environ, history=Path(sys.argv[1]), sources=sources)
default = ""
while True:
    print("READY", flush=True)
    try:
        text, default = reader.read(default), ""
        print("GOT", ascii(text), flush=True)
        default = "edit me" if text == "back" else ""
    except (KeyboardInterrupt, EOFError) as error:
        print("GOT", type(error).__name__, flush=True)
        if isinstance(error, EOFError):
            break
"""
ESC, ENTER, TAB, UP = "\x1b", "\r", "\t", "\x1b[A"
Start = Callable[[], Any]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    kept = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    environ = {
        **kept,
        "TERM": "xterm-256color",
        "PYTHONPATH": str(Path(apdcli.__file__).parents[1]),
        "EDITOR": "true",
    }

    def begin() -> Any:
        child = pexpect.spawn(
            sys.executable,
            ["-c", SCRIPT, str(tmp_path / "deep" / "history")],
            env=environ,
            cwd=str(tmp_path),
            dimensions=(24, 80),
            encoding="utf-8",
            timeout=60,
        )
        child.expect("READY")
        child.expect(">>> ")
        return child

    return begin


def typed(child: Any, *keys: str) -> str:
    """What the reader returns for these keys, as Python would write it."""
    for place, part in enumerate(keys):
        if place:
            time.sleep(0.1)  # as a person would, so that the menu is there
        child.send(part)
    child.expect(r"GOT ([^\r\n]*)\r")
    got: str = child.match.group(1)
    if got != "EOFError":
        child.expect("READY")
        child.expect(">>> ")
    return got


def test_keys(start: Start, tmp_path: Path) -> None:
    child = start()
    assert typed(child, "hello" + ENTER) == "'hello'"
    assert typed(child, f"one{ESC}{ENTER}two{ENTER}") == r"'one\ntwo'"
    assert typed(child, f'"""{ENTER}a{ENTER}  b{ENTER}"""{ENTER}') == r"'a\n  b'"
    assert typed(child, f'"""one"""{ENTER}') == "'one'"
    paste = "\x1b[200~line 1\nline 2\r\nline 3\n\x1b[201~"
    assert typed(child, paste + ENTER) == r"'line 1\nline 2\nline 3'"
    assert typed(child, UP, ENTER) == r"'line 1\nline 2\nline 3'"
    assert typed(child, "\x12", "hel", ENTER, ENTER) == "'hello'"  # Ctrl-R
    assert typed(child, "dropped\x03") == "''"
    assert typed(child, "\x03") == "KeyboardInterrupt"
    assert typed(child, "back" + ENTER) == "'back'"
    assert typed(child, "!" + ENTER) == "'edit me!'"
    assert typed(child, "\x04") == "EOFError"
    child.expect(pexpect.EOF)
    history = tmp_path / "deep" / "history"
    assert history.stat().st_mode & 0o777 == 0o600
    child = start()  # across sessions
    assert typed(child, UP, UP, ENTER) == "'back'"
    assert typed(child, "\x03") == "''"
    assert typed(child, "\x04") == "EOFError"


def test_completion(start: Start, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "my notes.md").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep.txt").write_text("")
    (tmp_path / "bad\x1bname").write_text("")
    (tmp_path / "old talks").mkdir()
    (tmp_path / "old talks" / "fox story.md").write_text("")
    child = start()
    assert typed(child, "/sess", TAB, ENTER) == "'/sessions'"
    assert typed(child, "/set te", TAB, "0.5", ENTER) == "'/set temperature 0.5'"
    assert typed(child, "/set te\t0.5\r") == "'/set temperature 0.5'"  # in one go
    assert typed(child, "/set str\td\t\r") == "'/set strategy dico'"
    # the space is there, so that the next Tab asks for the values
    assert typed(child, "/set str", TAB, "d", TAB, ENTER) == "'/set strategy dico'"
    assert typed(child, "/profile de", TAB, ENTER) == "'/profile demo'"
    # two of them: what they share, then each in turn; Enter takes one and another sends it
    assert typed(child, "/profile ", TAB, TAB, ENTER, ENTER) == "'/profile demo'"
    assert typed(child, "/profile ", TAB, TAB, TAB, ENTER, ENTER) == "'/profile dream'"
    assert typed(child, "/load f", TAB, ENTER) == "'/load fox-talk'"
    assert typed(child, "sum up @no", TAB, ENTER) == "'sum up @notes.txt'"
    assert typed(child, "@my", TAB, ENTER) == "'@\"my notes.md\"'"
    assert typed(child, "/file folder/d", TAB, ENTER) == "'/file folder/deep.txt'"
    # a folder with a space: in quotes, which stay open for the next Tab
    assert typed(child, "see @ol", TAB, TAB, ENTER) == "'see @\"old talks/fox story.md\"'"
    assert typed(child, '/file "old talks/f', TAB, ENTER) == "'/file \"old talks/fox story.md\"'"
    assert typed(child, '/file "no', TAB, ENTER) == "'/file \"notes.txt\"'"
    assert typed(child, "@bad", TAB, ENTER) == "'@bad'"
    for part in ('see @"old talks', "/", "f"):
        child.send(part)
        time.sleep(0.1)
    child.expect("fox story.md")  # the menu is there while typing, behind a space in quotes too
    assert typed(child, "\x03") == "''"
    assert typed(child, "/tr", TAB, "on n", TAB, ENTER) == "'/trace on notes.txt'"
    typed(child, "\x04")


def test_what_a_paste_hides_is_seen(start: Start) -> None:
    child = start()
    child.send("\x1b[200~a\u202ecod\u2066.exe\x1b[201~")
    child.expect("exe")
    assert "\u202e" not in child.before
    assert "\u2066" not in child.before
    assert "\u27e6U+202E\u27e7" in child.before
    # the cursor goes over a picture in one step, and what is sent is what was pasted
    assert typed(child, "\x1b[D" * 4 + "\x7f" + "-" + ENTER) == "'a\\u202ecod-.exe'"
    typed(child, "\x04")


def test_a_search_is_not_written_over(start: Start) -> None:
    child = start()
    typed(child, "a story" + ENTER)
    child.send("\x12stor")
    child.expect("a.*stor.*y")
    child.send("\x07")
    child.expect("a message, or /help")
    assert "or /help" not in child.before
    typed(child, "\x04")


def test_a_hang_up_ends_it(start: Start) -> None:
    child = start()
    child.close(force=True)
    assert not child.isalive()


@pytest.mark.parametrize(
    ("text", "open_", "inner"),
    [
        ("a", False, "a"),
        ('"""', True, '"""'),
        ('"""a', True, '"""a'),
        ('""""', True, '""""'),
        ('"""a"""', False, "a"),
        ('"""\na\n\nb\n"""', False, "a\n\nb"),
        ('""""""', False, ""),
        ('a """b"""', False, 'a """b"""'),
        ('  """a"""  ', False, "a"),
    ],
)
def test_quotes(text: str, open_: bool, inner: str) -> None:
    assert is_open(text) is open_
    assert unquoted(text) == inner


def test_plain_lines() -> None:
    out = io.StringIO()
    reader = PlainReader(io.StringIO('hi\r\n"""\na\n"""\nlast'), out)
    assert [reader.read() for _ in range(3)] == ["hi", "a", "last"]
    with pytest.raises(EOFError):
        reader.read()
    assert out.getvalue() == ">>> >>> ... ... >>> >>> \n"
