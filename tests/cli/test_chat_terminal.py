"""`apd chat` as a process: a real pseudo-terminal, real signals, a co-process."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pyte
import pytest

import apdcli
from apdcli.chat.sessions import Session, Store, Turn
from tests.cli.test_shell import APD, environ, finish, pexpect

__all__ = ["environ"]  # a fixture
termios = pytest.importorskip("termios")

TALK = ("My name is Mia.", "What is my name?")
LONG = ("--strategy", "random", "-n", "900", "-O", "block_length=1", "-O", "early_stop=false")
IDLE = ">>> "


@pytest.fixture
def data(environ: dict[str, str], tmp_path: Path) -> Path:
    environ["APD_DATA_DIR"] = str(tmp_path / "data")
    return tmp_path / "data"


class Person:
    """Someone at a terminal, and what is on it.

    Who waits looks below the line that was said last: the words waited for may stand above it, too.
    """

    def __init__(
        self, environ: dict[str, str], *args: object, size: tuple[int, int], **more: Any
    ) -> None:
        columns, lines = size
        self.child = pexpect.spawn(
            APD[0],
            [*APD[1:], "chat", *map(str, args)],
            env=environ,
            dimensions=(lines, columns),
            encoding="utf-8",
            timeout=120,
            **more,
        )
        self.screen = pyte.HistoryScreen(columns, lines, history=1000, ratio=0.5)
        self.stream = pyte.Stream(self.screen)
        self.before = termios.tcgetattr(self.child.child_fd)
        self.said_at = -1  # the line that was said last, among `lines`

    def wait(self, wanted: str, also: str = "") -> None:
        """Until it is there, below what was said last."""
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:  # a live view may never be silent for long, so every read is looked at
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                break
            shown = self.lines()[self.said_at + 1 :]
            if any(wanted in line for line in shown) and also in "".join(shown):
                return
        raise AssertionError(f"no {wanted!r} in {self.lines()}")

    def ready(self) -> None:
        """Until the next prompt is the last line."""
        until = time.monotonic() + 90
        while time.monotonic() < until:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.1))
            except pexpect.TIMEOUT:
                shown = self.lines()[self.said_at + 1 :]
                if shown and shown[-1].startswith(IDLE.strip()):
                    return
        raise AssertionError(self.lines())

    def type(self, text: str) -> None:
        self.child.send(text)

    def mark(self) -> None:
        """From here on, look below the prompt, which must be the last line."""
        self.said_at = len(self.lines()) - 1

    def say(self, text: str) -> None:
        """A line at the prompt."""
        self.mark()
        self.type(text + "\r")

    def leave(self) -> None:
        """Ctrl-C on an empty line, and Ctrl-D as soon as the hint is there."""
        self.mark()
        self.type("\x03")
        self.wait("Ctrl-D")
        self.type("\x04")
        rest, status = finish(self.child)
        assert status == 0
        assert "Traceback" not in rest

    def lines(self) -> list[str]:
        """History and screen, without empty lines."""
        past = ["".join(c.data for _, c in sorted(row.items())) for row in self.screen.history.top]
        return [line.rstrip() for line in (*past, *self.screen.display) if line.strip()]

    @property
    def restored(self) -> bool:
        """Whether the terminal's modes are those it was found with."""
        return bool(termios.tcgetattr(self.child.child_fd)[3] == self.before[3])


@pytest.mark.parametrize("size", [(40, 12), (80, 24), (160, 50)], ids=str)
def test_a_conversation(
    environ: dict[str, str], data: Path, profile: Path, size: tuple[int, int]
) -> None:
    pair, said = apdcli.load_pair(str(profile)), []
    person = Person(environ, "-p", profile, "-W", "all", size=size)
    person.ready()
    for message in TALK:
        said.append({"role": "user", "content": message})
        answer = apdcli.generate(pair, said, recompute_window="all").text
        said.append({"role": "assistant", "content": answer})
        person.say(message)
        person.wait("tokens/s")
        person.ready()
        squeezed = "".join("".join(person.lines()).split())
        assert squeezed.count("".join(answer.split())) >= 1
        assert squeezed.count(">>>" + "".join(message.split())) == 1
    person.leave()
    assert [t.answer for t in Store(data / "sessions").load().turns] == [
        m["content"] for m in said[1::2]
    ]


def test_markdown_settles_in_place_of_the_draft(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    from apdcli.chat.markdown import markdown_text

    answer = apdcli.generate(apdcli.load_pair(str(profile)), TALK[0]).text
    wanted = re.sub(r"\x1b\[[0-9;]*m", "", markdown_text(answer, 60, {"TERM": "xterm"}))
    person = Person(environ, "-p", profile, "--markdown", size=(60, 20))
    person.ready()
    person.say(TALK[0])
    person.wait("tokens/s")
    person.ready()
    lines = person.lines()
    start = lines.index(IDLE + TALK[0])
    end = next(i for i, line in enumerate(lines) if "tokens/s" in line)
    want = [line.rstrip() for line in wanted.splitlines() if line.strip()]
    assert lines[start + 1 : end] == want  # and nothing of the draft is left
    person.type("\x04")
    assert finish(person.child)[1] == 0


def test_a_resumed_answer_is_set_in_markdown_too(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    turn = Turn("which?", "# Title\n\n- **one**\n- two")
    Store(data / "sessions").save(Session("marked", str(profile), turns=[turn], markdown=True))
    person = Person(environ, "--resume", "marked", size=(80, 24))
    person.ready()
    lines = person.lines()
    start = lines.index(IDLE + "which?")
    assert [line.strip() for line in lines[start + 1 : start + 4]] == ["Title", "• one", "• two"]
    person.say("/set markdown off")
    person.wait("markdown is off")
    person.ready()
    person.say("/load marked")
    person.wait("**one**")  # as it stands
    person.ready()
    person.type("\x04")
    assert finish(person.child)[1] == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    person = Person(environ, "-p", profile, *LONG, size=(80, 24))
    person.ready()
    for _ in range(2):  # it works again after it has worked
        person.say("tell me a story")
        person.wait("step ")
        person.child.sendintr()
        person.wait("interrupted")
        person.ready()
        person.say("/clear")
        person.wait("a new conversation")
        person.ready()
    person.say("/bye")
    _, status = finish(person.child)
    assert status == 0
    sessions = [Store(data / "sessions").load(n) for n in Store(data / "sessions").names()]
    assert [t.reason for s in sessions for t in s.turns] == ["interrupted"] * 2


def test_killed_in_the_middle_of_an_answer_and_resumed(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    person = Person(environ, "-p", profile, size=(80, 24))
    person.ready()
    person.say(TALK[0])
    person.wait("tokens/s")
    person.ready()
    for setting in ("strategy random", "n 900", "block-length 1", "early-stop false"):
        person.say(f"/set {setting}")
        person.wait(" is " + setting.split()[1])
        person.ready()
    person.say("tell me a long story")
    person.wait("step ")
    person.child.kill(signal.SIGKILL)
    person.child.wait()
    (turn,) = Store(data / "sessions").load().turns
    person = Person(environ, "--resume", "--strategy", "apd", "-n", 32, size=(80, 24))
    person.wait(TALK[0])
    person.ready()
    assert "".join(turn.answer.split()) in "".join("".join(person.lines()).split())
    person.say(TALK[1])
    person.wait("tokens/s")
    person.type("\x04")
    _, status = finish(person.child)
    assert status == 0
    assert [t.message for t in Store(data / "sessions").load().turns] == list(TALK)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_at_the_prompt_leave_the_terminal_in_order(
    environ: dict[str, str], data: Path, profile: Path, number: signal.Signals
) -> None:
    person = Person(environ, "-p", profile, size=(80, 24))
    person.ready()
    assert not person.restored  # editing a line
    person.child.kill(number)
    person.child.expect(pexpect.EOF)
    assert person.restored
    rest = person.child.before
    _, status = finish(person.child)
    assert status == 128 + number
    assert "Traceback" not in rest
    assert "\x1b[?2004l" in rest  # pasting is ordinary again


def test_an_interrupt_from_elsewhere_at_the_prompt_is_ctrl_c(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    person = Person(environ, "-p", profile, size=(80, 24))
    for count in (1, 2):  # the next one hints again
        person.ready()
        person.mark()
        person.child.kill(signal.SIGINT)
        person.wait("Ctrl-D or /bye leaves")
        person.ready()
        assert sum("Ctrl-D or /bye leaves" in line for line in person.lines()) == count
    person.type("dropped")
    person.wait(IDLE + "dropped")
    person.mark()
    person.child.kill(signal.SIGINT)
    person.ready()
    person.say(TALK[0])
    person.wait("tokens/s")
    person.ready()
    person.leave()
    assert [t.message for t in Store(data / "sessions").load().turns] == [TALK[0]]


def test_a_dumb_terminal_gets_plain_lines(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    environ["TERM"] = "dumb"
    person = Person(environ, "-p", profile, size=(80, 24))
    person.child.expect(IDLE)
    person.child.sendline(TALK[0])
    person.child.expect("tokens/s")
    person.child.expect(IDLE)
    person.child.sendintr()
    person.child.expect("Ctrl-D or /bye leaves")
    person.child.expect(IDLE)
    person.child.sendline(TALK[1])
    person.child.expect("tokens/s")
    person.child.sendeof()
    rest, status = finish(person.child)
    assert status == 0
    assert "\x1b[" not in person.child.before + rest


def test_a_co_process_gets_each_answer_at_once(
    environ: dict[str, str], data: Path, profile: Path
) -> None:
    with subprocess.Popen(
        [*APD, "chat", "-p", str(profile), "--json"],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        texts = []
        for line in (TALK[0], "{", json.dumps({"prompt": TALK[1]})):
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
            texts.append(json.loads(child.stdout.readline()))  # before the next line is written
        child.stdin.close()
        assert child.stdout.read() == b""
        assert child.stderr.read().count(b"\n") == 1
    assert child.returncode == 1
    assert ["text" in record for record in texts] == [True, False, True]


def test_ctrl_c_and_readers_that_leave(environ: dict[str, str], data: Path, profile: Path) -> None:
    with subprocess.Popen(
        [*APD, "chat", "-p", str(profile)], env=environ, stdin=-1, stdout=-1, stderr=-1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdin.write(b"hi\n")
        child.stdin.flush()
        assert os.read(child.stdout.fileno(), 1)
        time.sleep(0.5)
        child.send_signal(signal.SIGINT)  # while it waits for a line
        assert child.stderr.read() == b""
    assert child.returncode == 130
    code = f"yes hello | {APD[0]} -m apdcli chat -p {profile} | head -n 1; echo ${{PIPESTATUS[1]}}"
    done = subprocess.run(["bash", "-c", code], env=environ, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "141"


@pytest.mark.parametrize("more", [(), ("--markdown",)], ids=["live", "markdown"])
def test_ctrl_z_stops_it_wherever_it_is(
    environ: dict[str, str], data: Path, profile: Path, more: tuple[str, ...]
) -> None:
    command = shlex.join([*APD, "chat", "-p", str(profile), *LONG, *more])
    child = pexpect.spawn(
        "bash",
        ["--norc", "--noprofile", "-i"],
        env={**environ, "PS1": "shell> "},
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=90,
    )
    child.delaybeforesend = None
    child.expect("shell> ")
    child.sendline(command)
    for _ in range(2):  # in the second answer, too
        child.expect(">>> ")
        child.send("tell me a story\r")
        child.expect("step ")
        child.send("\x1a")
        child.expect("Stopped")
        assert child.before.rfind("\x1b[?25h") > child.before.rfind("\x1b[?25l")  # the cursor
        child.expect("shell> ")
        child.sendline("fg")
        child.expect("step ")
        child.sendintr()
        child.expect("interrupted")
    child.expect(">>> ")
    child.send("half a mess\x1a")  # at the prompt
    child.expect("Stopped")
    child.expect("shell> ")
    child.sendline("fg")
    child.expect("half a mess")
    child.send("\x15/bye\r")
    child.expect("shell> ")
    child.sendline("exit")
    finish(child)
