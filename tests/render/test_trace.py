"""The trace: complete, readable by any JSON reader, and never at the cost of the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apdcli.decode.types import Finished, StepEvent
from apdcli.errors import OutputError
from apdcli.render import TraceWriter
from apdcli.render.jsonl import piece_bytes
from tests.render.fakes import PROMPT_LEN, Vocabulary, any_order_events, apd_events, split


def writer(path: Path | str, words: Vocabulary) -> TraceWriter:
    return TraceWriter(
        path,
        token_bytes=words,
        prompt_len=PROMPT_LEN,
        settings={"strategy": "apd", "mixture_weight": 0.7},
        stop_ids=[words.end],
    )


@pytest.mark.parametrize("events", [apd_events, any_order_events])
def test_events_and_bytes_come_back(tmp_path: Path, events) -> None:
    words = Vocabulary(split("日本 é\x1b[31m \u202e end\n".encode() * 4, 5, 4))
    made = list(events(words))
    with writer(tmp_path / "t.jsonl", words) as trace:
        for event in made:
            trace(event)
    raw = (tmp_path / "t.jsonl").read_bytes()
    assert raw.isascii()
    assert b"\x1b" not in raw
    header, *steps, last = [json.loads(line) for line in raw.splitlines()]
    assert header == {
        "format": "apd-trace",
        "version": 1,
        "prompt_len": PROMPT_LEN,
        "settings": {"strategy": "apd", "mixture_weight": 0.7},
        "stop_ids": [words.end],
    }
    back = []
    for record in steps:
        assert record.pop("event") == "step"
        pieces = [piece_bytes(p) for p in record.pop("pieces")]
        drafts = [piece_bytes(p) for p in record.pop("rejected_pieces")]
        assert pieces == [words(i) for _, i in record["committed"]]
        assert drafts == [words(i) for _, i in record["rejected"]]
        assert record.pop("text") == b"".join(pieces).decode("utf-8", "replace")
        for field in ("committed", "rejected", "clusters"):
            record[field] = tuple(tuple(pair) for pair in record[field])
        back.append(StepEvent(**record))
    assert last.pop("event") == "finished"
    assert [*back, Finished(**last)] == made


def test_each_line_is_on_disk_when_its_step_is_done(tmp_path: Path) -> None:
    words = Vocabulary([b"a"])
    trace = writer(tmp_path / "t.jsonl", words)
    for count, event in enumerate(apd_events(words), start=2):
        trace(event)
        assert len((tmp_path / "t.jsonl").read_text().splitlines()) == count
    trace.close()


def test_a_file_that_cannot_be_opened_is_found_before_generation(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        writer(tmp_path / "nowhere" / "t.jsonl", Vocabulary([b"a"]))
    with pytest.raises(OutputError):
        writer(tmp_path, Vocabulary([b"a"]))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_recorded_and_nothing_raises() -> None:
    words = Vocabulary([b"a"] * 20)
    with writer("/dev/full", words) as trace:
        for event in apd_events(words):
            trace(event)
    assert isinstance(trace.failure, OutputError)
    assert "/dev/full" in str(trace.failure)
    assert "no space left" in str(trace.failure)


def test_a_disk_that_fills_on_the_way_leaves_whole_lines(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    words = Vocabulary([b"a"] * 50)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        with writer(tmp_path / "t.jsonl", words) as trace:
            for event in apd_events(words):
                trace(event)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert trace.failure is not None
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[1:]] == ["step"] * (len(lines) - 1)
    assert len(lines) > 2
