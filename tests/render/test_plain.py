"""The plain writer, and which of the two views is chosen."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from apdcli.render import LiveView, PlainWriter, open_view
from tests.render.fakes import Vocabulary, any_order_events, apd_events, split, step


class Stream(io.TextIOWrapper):
    def __init__(self, tty: bool = False, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, newline="\r\n")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    @property
    def bytes(self) -> bytes:
        return self.buffer.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize("events", [apd_events, any_order_events])
@pytest.mark.parametrize("text", ["", "one", "one\n", "日本 é\r\n\x1b[31m\n\nend", "\n"])
def test_a_pipe_gets_the_exact_text_and_one_newline(text, events) -> None:
    out = Stream(encoding="latin-1")
    words = Vocabulary(split(text.encode(), 3, 2))
    with PlainWriter(words.state(), out) as writer:
        for event in events(words):
            writer(event)
    assert out.bytes == (text if text.endswith("\n") else text + "\n").encode()


def test_text_is_there_as_soon_as_it_is_accepted_and_never_half_a_character() -> None:
    out = Stream()
    words = Vocabulary([b"a\xc3", b"\xa9", b"b"])
    with PlainWriter(words.state(), out) as writer:
        writer(step(1, [(0, 0)]))
        assert out.bytes == b"a"
        writer(step(2, [(2, 2)]))
        assert out.bytes == b"a"
        writer(step(3, [(1, 1)]))
        assert out.bytes == "aéb".encode()


def test_an_interruption_ends_the_line_and_a_failure_before_any_text_is_silent() -> None:
    words = Vocabulary([b"a\xc3"])
    out = Stream()

    def interrupted() -> None:
        with PlainWriter(words.state(), out) as writer:
            writer(step(1, [(0, 0)]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert out.bytes == "a\ufffd\n".encode()
    out = Stream()
    with pytest.raises(RuntimeError), PlainWriter(words.state(), out):
        raise RuntimeError
    assert out.bytes == b""


def test_a_closed_pipe_is_the_callers() -> None:
    read, write = os.pipe()
    os.close(read)
    words = Vocabulary([b"a"])
    with os.fdopen(write, "w") as out:

        def written() -> None:
            with PlainWriter(words.state(), out) as writer:
                writer(step(1, [(0, 0)]))

        with pytest.raises(BrokenPipeError):
            written()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, out.fileno())
        os.close(null)


@pytest.mark.parametrize(
    ("tty", "term", "encoding", "live", "expected"),
    [
        (True, "xterm-256color", "utf-8", True, LiveView),
        (True, "xterm-256color", "utf-8", False, PlainWriter),
        (True, "dumb", "utf-8", True, PlainWriter),
        (True, "", "utf-8", True, PlainWriter),
        (True, "xterm", "latin-1", True, PlainWriter),
        (False, "xterm-256color", "utf-8", True, PlainWriter),
    ],
)
def test_which_view(tty, term, encoding, live, expected) -> None:
    state = Vocabulary([b"a"]).state()
    view = open_view(
        state,
        live=live,
        out=Stream(tty, encoding),
        err=Stream(),
        keyboard=Stream(),
        environ={"TERM": term},
    )
    assert type(view) is expected


@pytest.mark.parametrize(
    ("options", "err_tty", "says"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"quiet": True}, True, False),
        ({"verbose": True}, False, True),
    ],
)
def test_who_hears_the_summary(options, err_tty, says) -> None:
    words = Vocabulary([b"a"])
    err = Stream(err_tty)
    with open_view(
        words.state(),
        out=Stream(True),
        err=err,
        keyboard=Stream(),
        environ={"TERM": "xterm"},
        **options,
    ) as view:
        for event in apd_events(words):
            view(event)
    assert (b"tokens in" in err.bytes) == says


def test_render_imports_no_torch() -> None:
    code = (
        "import sys, apdcli.render, apdcli.render.picture\n"
        "print(*{'torch', 'transformers', 'typer', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
