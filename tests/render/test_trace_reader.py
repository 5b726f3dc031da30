"""Traces read back: the same view, and one clear line for every kind of damage."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from apdcli.errors import InputError
from apdcli.render import TraceWriter, ViewState
from apdcli.render.given import with_given
from apdcli.render.trace_reader import read_trace
from tests.render.fakes import PROMPT_LEN, Vocabulary, any_order_events, apd_events, split

WORDS = Vocabulary(split("日本 é\x1b[31m end\n".encode() * 4, 5, 4))


def write(path: Path, events=apd_events, **more: object) -> Path:
    fields = {"stop_ids": [WORDS.end], "settings": {"strategy": "apd"}, **more}
    with TraceWriter(path, token_bytes=WORDS, prompt_len=PROMPT_LEN, **fields) as trace:  # type: ignore[arg-type]
        for event in events(WORDS):
            trace(event)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "t.jsonl")


@pytest.mark.parametrize("events", [apd_events, any_order_events])
def test_the_view_is_the_same_after_every_event(tmp_path: Path, events) -> None:
    trace = read_trace(write(tmp_path / "t.jsonl", events, skip_ids=[3]))
    assert trace.complete
    original = ViewState(WORDS, PROMPT_LEN, stop_ids=frozenset([WORDS.end]), skip=frozenset([3]))
    again = ViewState(
        trace.token_bytes, trace.prompt_len, stop_ids=trace.stop_ids, skip=trace.skip_ids
    )
    made = list(events(WORDS))
    assert trace.steps == len(made) - 1
    for was, now in zip(made, trace.events, strict=True):
        original.apply(was)
        again.apply(now)
        assert (again.settled, again.tail()) == (original.settled, original.tail())
        assert (again.phase, again.elapsed_s) == (original.phase, original.elapsed_s)


def test_given_text_and_settings_come_back(tmp_path: Path) -> None:
    given = [[0, "a "], [1, ""], [2, "日本\x1b"]]
    trace = read_trace(write(tmp_path / "t.jsonl", given=given, length=7, stop=["END"]))
    assert trace.given == ((0, "a "), (1, ""), (2, "日本\x1b"))
    assert trace.length == 7
    assert trace.stop == ("END",)
    assert trace.settings == {"strategy": "apd"}
    token_bytes, ids = with_given(trace.token_bytes, trace.given)
    assert b"".join(token_bytes(i) for _, i in ids).decode() == "a 日本\x1b"


@pytest.mark.parametrize("keep", [1, 30, 0])
def test_a_file_that_breaks_off_gives_what_is_there(path: Path, keep: int) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:keep])
    trace = read_trace(path)
    assert (trace.complete, trace.steps, len(trace.events)) == (False, 2, 2)


def changed(line: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(line), **fields}).encode() + b"\n"


DAMAGE = {
    "not json": b"\x00\xff garbage\n",
    "no object": b"[]\n",
    "nested": b"[" * 100_000 + b"\n",
    "empty": b"\n",
    "cut": b'{"event": "step"\n',
    "other event": b'{"event": "pause"}\n',
    "missing": b'{"event": "step", "step": 2}\n',
}


@pytest.mark.parametrize("line", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_line_is_named(path: Path, line: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(InputError, match="is damaged: line 3: ") as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"step": 9},
        {"accepted": 99},
        {"elapsed_s": float("nan")},
        {"elapsed_s": "1"},
        {"pieces": []},
        {"pieces": None},
        {"rejected": [[2**60, 1]]},
        {"clusters": [[1, 2**60]]},
        {"committed": [[PROMPT_LEN, 0]], "accepted": 1, "pieces": ["a"]},  # was written by step 1
        {"committed": [[PROMPT_LEN + 50, -1]], "accepted": 1, "pieces": ["a"]},
        {"committed": [[PROMPT_LEN + 50, 1]], "accepted": 1, "pieces": ["\ud800"]},
        {"committed": [[PROMPT_LEN + 50, 1]], "accepted": 1, "pieces": [{"hex": "zz"}]},
        {"phase": 3},
    ],
    ids=str,
)
def test_values_that_no_trace_has_are_damage(path: Path, fields: dict[str, object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], changed(lines[2], **fields), *lines[3:]]))
    with pytest.raises(InputError, match="is damaged: line 3: "):
        read_trace(path)


def test_a_missing_line_and_text_after_the_end_are_damage(path: Path) -> None:
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], *lines[3:]]))
    with pytest.raises(InputError, match="line 3"):
        read_trace(path)
    for more in (b"x", b"x\n", lines[1]):
        path.write_bytes(whole + more)
        with pytest.raises(InputError, match=f"line {len(lines) + 1}: text after the end"):
            read_trace(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello\n", "is not a trace of apd"),
        (b"\x89PNG\r\n\x1a\n", "is not a trace of apd"),
        (b"[1, 2]", "is not a trace of apd"),
        (b'{"format": "apd-tr', "is not a trace of apd"),
        (b'{"format": "apd-trace", "ver', "line 1: it breaks off"),
        (b'{"format": "apd-trace", "version": 2}\n', "of version 2 and this apd plays version 1"),
        (b'{"format": "apd-trace", "version": 1}\n', "line 1: the header is not complete"),
        (
            b'{"format": "apd-trace", "version": 1, "prompt_len": 1, "stop_ids": 7}\n',
            "line 1: the header is not complete",
        ),
        (
            b'{"format": "apd-trace", "version": 1, "prompt_len": 1, "given": [[2, 3]]}\n',
            "line 1: the header is not complete",
        ),
        (
            b'{"format": "apd-trace", "version": 1, "prompt_len": 1, "length": 99999999999}\n',
            "line 1: the header is not complete",
        ),
    ],
)
def test_what_is_no_trace_is_said_so(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "t").write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(tmp_path / "t")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot read"):
        read_trace(tmp_path)


def test_reading_loads_no_torch(path: Path) -> None:
    code = (
        "import sys\nfrom apdcli.render.trace_reader import read_trace\n"
        f"read_trace({str(path)!r})\nassert not {{'torch', 'typer'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
