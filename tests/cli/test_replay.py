"""`apd replay`: the text, the pace, the picture, and one line where a file is no whole trace."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from apdcli.cli import replay
from apdcli.cli.context import Context
from apdcli.cli.main import main
from apdcli.cli.signals import Signals
from apdcli.render import TraceWriter
from tests.cli.conftest import Apd, Stream
from tests.render.fakes import PROMPT_LEN, Vocabulary, apd_events, split

TEXT = "日本 é\nand the rest of it, at length, in several steps"
WORDS = Vocabulary(split(TEXT.encode(), 5, 4))


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    settings = {"strategy": {"value": "apd", "from": "default"}, "mixture_weight": {"value": 0.7}}
    stop = [WORDS.end]
    with TraceWriter(
        path, token_bytes=WORDS, prompt_len=PROMPT_LEN, settings=settings, stop_ids=stop
    ) as writer:
        for event in apd_events(WORDS):
            writer(event)
    return path


def cut(trace: Path, steps: int) -> Path:
    """The trace as if its writer had been killed in the middle of a line."""
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join(lines[: 1 + steps]) + lines[1 + steps][:40])
    return trace


def test_piped_it_is_the_text_at_once_and_nothing_else(apd: Apd, trace: Path) -> None:
    ran = apd("replay", trace)
    assert (ran.status, ran.out, ran.err) == (0, TEXT + "\n", "")


def test_on_a_terminal_it_is_the_live_view(apd: Apd, trace: Path) -> None:
    ran = apd("replay", trace, "--speed", "max", terminal=True)
    assert ran.status == 0
    assert "\x1b[?25l" in ran.out
    assert "apd" in ran.out
    assert "tokens in" in ran.err
    plain = apd("replay", trace, "--speed", "0", "--no-live", terminal=True)
    assert plain.out == TEXT + "\n"
    assert plain.err.endswith("· stop\x1b[0m\n")  # dim, as everything beside the answer


def test_a_trace_of_generate_gives_its_text(apd: Apd, profile: Path, tmp_path: Path) -> None:
    made = apd("generate", "-p", profile, "-n", 12, "--trace", "made.jsonl", "Count to 3")
    assert made.status == 0
    assert apd("replay", "made.jsonl").raw == made.raw


class Naps:
    """Stands for time.sleep and counts."""

    def __init__(self, signals: Signals | None = None, after: int = 0) -> None:
        self.total, self.count = 0.0, 0
        self.signals, self.after = signals, after

    def __call__(self, seconds: float) -> None:
        self.total += seconds
        self.count += 1
        if self.signals is not None and self.count == self.after:
            self.signals.interrupted = True


def context(signals: Signals | None = None, *, terminal: bool = False) -> Context:
    streams = (Stream(), Stream(terminal=terminal), Stream(terminal=terminal))
    return Context(*streams, {"TERM": "xterm"}, signals or Signals())


@pytest.mark.parametrize("speed", [1.0, 4.0, None, 0.0])
def test_speed_divides_the_time_it_took(
    trace: Path, speed: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps = Naps()
    monkeypatch.setattr(replay.time, "monotonic", lambda: naps.total)
    job = replay.Job(str(trace), speed, None, no_live=True)
    assert replay.run(job, context(), sleep=naps) == 0
    steps = sum(1 for _ in apd_events(WORDS)) - 1
    expected = 0.1 * steps / speed if speed else 0.0
    assert naps.total == pytest.approx(expected)


def test_ctrl_c_ends_quietly_with_what_was_shown(
    trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signals = Signals()
    naps = Naps(signals, after=7)  # in the fourth step's wait
    monkeypatch.setattr(replay.time, "monotonic", lambda: naps.total)
    here = context(signals)
    assert replay.run(replay.Job(str(trace), 1.0, None, no_live=False), here, sleep=naps) == 130
    assert isinstance(here.stdout, Stream)
    assert isinstance(here.stderr, Stream)
    shown = here.stdout.bytes().decode()
    assert TEXT.startswith(shown.rstrip("\n\ufffd"))
    assert 0 < len(shown) < len(TEXT)
    assert here.stderr.bytes() == b""


@pytest.mark.parametrize("name", ["p.svg", "p.HTML"])
def test_export_saves_the_picture(apd: Apd, trace: Path, tmp_path: Path, name: str) -> None:
    ran = apd("replay", trace, "--export", name)
    assert (ran.status, ran.out) == (0, TEXT + "\n")
    picture = (tmp_path / name).read_text()
    assert "日本" in picture
    assert "tok/step" in picture.replace("&#160;", " ")


def test_a_trace_that_breaks_off_is_played_and_said(apd: Apd, trace: Path, tmp_path: Path) -> None:
    ran = apd("replay", cut(trace, 3), "--export", "p.svg")
    assert ran.status == 1
    assert TEXT.startswith(ran.out.rstrip("\n\ufffd"))
    assert len(ran.out) > 1
    assert "breaks off after step 3" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert (tmp_path / "p.svg").exists()


def test_damage_is_one_line_and_nothing_is_played(apd: Apd, trace: Path) -> None:
    lines = trace.read_bytes().splitlines(keepends=True)
    trace.write_bytes(b"".join([*lines[:2], b"{{{\n", *lines[3:]]))
    ran = apd("replay", trace)
    assert ran.status == 1
    assert "is damaged: line 3" in ran.complaint


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("nowhere",), 1, "cannot read nowhere: no such file"),
        ((".",), 1, "cannot read .: "),
        (("-",), 1, "standard input is empty: no trace; record one"),
        ((), 1, "standard input is empty: no trace; record one"),
        (("t.jsonl", "--speed", "fast"), 2, "--speed fast: it must be a number"),
        (("t.jsonl", "--speed", "-1"), 2, "--speed -1"),
        (("t.jsonl", "--speed", "nan"), 2, "--speed nan"),
        (("t.jsonl", "--export", "p.png"), 2, "it must end in .svg or .html; see 'apd replay"),
        (("t.jsonl", "--export", "no/p.svg"), 1, "cannot write no/p.svg"),
    ],
)
def test_mistakes_are_one_line(
    apd: Apd, trace: Path, args: tuple[str, ...], status: int, message: str
) -> None:
    ran = apd("replay", *args)
    assert ran.status == status
    assert message in ran.complaint


@pytest.mark.parametrize("args", [("-",), (), ("--speed", "max")])
def test_a_trace_that_is_piped(apd: Apd, trace: Path, args: tuple[str, ...]) -> None:
    ran = apd("replay", *args, stdin=trace.read_bytes())
    assert (ran.status, ran.out, ran.err) == (0, TEXT + "\n", "")
    broken = apd("replay", *args, stdin=cut(trace, 3).read_bytes())
    assert broken.status == 1
    assert "standard input breaks off after step 3" in broken.err
    assert "standard input is not a trace" in apd("replay", *args, stdin="hello\n").complaint


def test_no_trace_and_nobody_pipes_one(apd: Apd) -> None:
    ran = apd("replay", stdin=None)
    assert ran.status == 2
    assert "no trace: name one, as in: apd replay trace.jsonl" in ran.complaint
    err = Stream()
    assert main(["replay"], Context(None, Stream(), err, {})) == 2
    assert "no trace: name one" in err.bytes().decode()


def test_replay_loads_no_torch(trace: Path) -> None:
    code = (
        "import sys\nfrom apdcli.cli.main import main\n"
        f"assert main(['replay', {str(trace)!r}]) == 0\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert done.stdout.decode() == TEXT + "\n"
