"""Ctrl-C pressed more than once, and Ctrl-\\ that leaves the terminal in order."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apdcli.chat.sessions import Store
from apdcli.cli.signals import Signals, Terminated, _terminate
from tests.cli.seat import TALK, Seat, pair, seat
from tests.cli.test_chat_terminal import LONG as LONG_CHAT
from tests.cli.test_chat_terminal import Person, data
from tests.cli.test_shell import APD, LONG, environ, finish, on_terminal, pexpect

__all__ = ["data", "environ", "pair", "seat"]  # fixtures
termios = pytest.importorskip("termios")
QUIT = signal.SIGQUIT


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def press(signals: Signals) -> None:
    signals._on_interrupt(signal.SIGINT, None)


def test_held_it_is_only_noted_unless_what_holds_it_hangs() -> None:
    clock = Clock()
    signals = Signals(clock)
    with signals.held():
        for _ in range(3):
            press(signals)
        assert signals.interrupted
        clock.now += 10.0
        with pytest.raises(KeyboardInterrupt):
            press(signals)
        press(signals)  # what is unwinding is left in peace
    with pytest.raises(KeyboardInterrupt):
        press(signals)
    signals.rearm()
    assert not signals.interrupted


def test_the_second_one_ends_the_wait_for_an_item_and_only_that() -> None:
    signals = Signals(Clock())

    def items() -> Iterator[int]:
        yield 1
        press(signals)
        yield 2
        press(signals)
        raise AssertionError("it went on")

    with signals.held():
        each = signals.each(items())
        seen = [next(each), next(each)]
        with pytest.raises(KeyboardInterrupt):
            next(each)
        press(signals)
        with pytest.raises(KeyboardInterrupt), signals.held():
            raise AssertionError("something new was begun")
    assert seen == [1, 2]


@pytest.mark.parametrize("when", ["view", "save", "line"])
def test_a_turn_outlives_every_further_ctrl_c(
    seat: Seat, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the second, third, ... one falls, the turn is kept and its line is there."""
    signals = seat.loop.context.signals
    out, save, write = seat.out, seat.store.save, seat.out.write
    told: list[str] = []

    def writing(text: str) -> int:
        told.append(text)
        answering = "".join(told).strip() and not seat.said
        if (when == "view" and answering) or (when == "line" and seat.said):
            press(signals)
        return write(text)

    def saving(*args: Any) -> Any:
        press(signals)
        press(signals)
        return save(*args)

    seat("/set M 2")
    monkeypatch.setattr(out, "write", writing)
    if when == "save":
        monkeypatch.setattr(seat.store, "save", saving)
    shown = seat(TALK[0])
    assert " tokens/s" in shown
    assert ("interrupted" in shown) is (when == "view")
    assert "Ctrl-D" not in shown
    assert seat.on_disk() == [TALK[0]]


def test_many_at_a_terminal(environ: dict[str, str], data: Path, profile: Path) -> None:
    person = Person(environ, "-p", profile, *LONG_CHAT, size=(80, 24))
    person.child.delaybeforesend = None
    person.ready()
    for count in (2, 3, 6):
        person.say(f"tell me {count} stories")
        person.wait("step ")
        for _ in range(count):
            person.type("\x03")
            time.sleep(0.004)
        person.wait("interrupted")
        person.ready()
        assert "^C" not in "".join(person.lines())
        hints = [line for line in person.lines() if "Ctrl-D or /bye" in line]
        assert all(line.startswith("Ctrl-D") for line in hints)
    person.say("/bye")
    assert finish(person.child)[1] == 0
    turns = Store(data / "sessions").load().turns
    assert [(t.message, t.reason) for t in turns] == [
        (f"tell me {count} stories", "interrupted") for count in (2, 3, 6)
    ]


def test_generate_hands_over_what_there_is(environ: dict[str, str], profile: Path) -> None:
    """However often it is pressed: here every few milliseconds until it is over."""
    child = on_terminal(environ, *LONG, "-p", profile)
    child.delaybeforesend = None
    child.expect("step ")
    child.expect(r"[a-z]{2}")
    for _ in range(6):
        child.send("\x03")
        time.sleep(0.004)
    rest, status = finish(child)
    assert status == 130
    assert "Traceback" not in rest
    assert re.search(r"tokens? in \d+ steps?.* · interrupted", rest)
    assert rest.rindex("\x1b[?25h") > rest.rfind("\x1b[?25l")


def test_no_key_is_drawn_where_the_prompt_is_piped(environ: dict[str, str], profile: Path) -> None:
    command = f"echo hello | {shlex.join([*APD, *LONG, '-p', str(profile)])}"
    child = pexpect.spawn(
        "sh", ["-c", command], env=environ, dimensions=(24, 80), encoding="utf-8", timeout=120
    )
    child.expect("tok/step")
    child.send("x\x03\x03")
    rest, _ = finish(child)
    assert "interrupted" in rest
    assert "^C" not in rest


def no_core() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def quit_and_end(child: Any, how: str) -> str:
    """What was written after Ctrl-\\ or kill -QUIT; the process ended by it, the modes are back."""
    before = termios.tcgetattr(child.child_fd)
    assert not before[3] & termios.ECHO
    if how == "key":
        child.send("\x1c")
    else:
        child.kill(QUIT)
    child.expect(pexpect.EOF)
    written = str(child.before)
    assert termios.tcgetattr(child.child_fd)[3] & termios.ECHO
    child.close()
    assert (child.exitstatus, child.signalstatus) == (None, QUIT), written
    assert "Traceback" not in written
    return written


@pytest.mark.parametrize("args", [(), ("--markdown",)], ids=["live", "markdown"])
def test_quit_in_an_answer_of_a_chat(
    environ: dict[str, str], data: Path, profile: Path, args: tuple[str, ...]
) -> None:
    person = Person(environ, "-p", profile, *LONG_CHAT, *args, size=(80, 24), preexec_fn=no_core)
    person.ready()
    person.say("tell me a story")
    person.wait("step ")
    person.stream.feed(written := quit_and_end(person.child, "key"))
    assert written.rindex("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert not any("tok/step" in line for line in person.lines())  # the status line is gone
    assert person.screen.cursor.x == 0


def test_quit_at_the_prompt(environ: dict[str, str], data: Path, profile: Path) -> None:
    person = Person(environ, "-p", profile, size=(80, 24), preexec_fn=no_core)
    person.ready()
    assert "\x1b[?2004l" in quit_and_end(person.child, "kill")


def test_quit_in_generate(environ: dict[str, str], profile: Path) -> None:
    child = on_terminal(environ, *LONG, "-p", profile, preexec_fn=no_core)
    child.expect("step ")
    written = quit_and_end(child, "key")
    assert written.rindex("\x1b[?25h") > written.rfind("\x1b[?25l")
    assert written.endswith("\n")


@pytest.mark.skipif(sys.platform != "linux", reason="a zeroed mutex is a mutex on Linux")
def test_quit_where_the_main_thread_hangs(environ: dict[str, str]) -> None:
    code = """
import ctypes, sys
from apdcli.cli.signals import Signals
from apdcli.render.terminal import no_echo
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
with Signals(), no_echo(sys.stdin):
    print("\\x1b[?25lhangs", flush=True)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""
    child = pexpect.spawn(
        APD[0], ["-c", code], env=environ, encoding="utf-8", timeout=60, preexec_fn=no_core
    )
    child.expect("hangs")
    assert "\x1b[?25h" in quit_and_end(child, "key")


def test_ctrl_c_throws_nothing_away_that_is_yet_to_be_shown(
    environ: dict[str, str], tmp_path: Path
) -> None:
    written = tmp_path / "written"
    code = f"""
import pathlib, signal, sys, time
from apdcli.render.terminal import no_echo
signal.signal(signal.SIGINT, lambda *_: pathlib.Path({str(written)!r}).write_text("pressed"))
with no_echo(sys.stdout):
    print("x" * 6000, "kept", flush=True)  # more than the reading side takes unasked
    pathlib.Path({str(written)!r}).write_text("")
    while not pathlib.Path({str(written)!r}).read_text():
        time.sleep(0.01)
"""
    child = pexpect.spawn(APD[0], ["-c", code], env=environ, encoding="utf-8", timeout=60)
    until = time.monotonic() + 60
    while not written.exists() and time.monotonic() < until:
        time.sleep(0.01)
    child.send("\x03")  # nobody has read the line yet
    while not written.read_text() and time.monotonic() < until:
        time.sleep(0.01)
    assert "kept" in finish(child)[0]


class Falls:
    """Its finalizer is what the signal falls into: nothing that is raised there gets out."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)
        assert self.number is None  # the handler has raised before this line


def fall_and_wait(number: int) -> None:
    Falls(number)
    time.sleep(20)


@pytest.mark.parametrize(
    ("number", "error", "status"),
    [
        (signal.SIGINT, KeyboardInterrupt, None),
        (signal.SIGTERM, Terminated, 143),
        (signal.SIGQUIT, Terminated, 131),
    ],
)
def test_a_signal_that_falls_into_a_finalizer_is_obeyed_and_says_nothing(
    number: int, error: type[BaseException], status: int | None, capfd: pytest.CaptureFixture[str]
) -> None:
    def state() -> object:
        return signal.getsignal(number), signal.getsignal(signal.SIGALRM), sys.unraisablehook

    before = state()
    with pytest.raises(error) as raised, Signals():
        fall_and_wait(number)
    assert getattr(raised.value, "code", None) == status
    assert state() == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert capfd.readouterr() == ("", "")


def test_what_unwound_already_is_not_raised_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("apdcli.cli.signals._AGAIN_S", 60.0)
    with Signals() as signals:
        Falls(signal.SIGINT)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        with pytest.raises(KeyboardInterrupt), signals.held():
            raise AssertionError("something new was begun")
        signal.raise_signal(signal.SIGALRM)
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_else_cannot_be_raised_is_still_told() -> None:
    told: list[str] = []

    class Broken:
        def __del__(self) -> None:
            raise ValueError("broken")

    before, sys.unraisablehook = sys.unraisablehook, lambda args: told.append(str(args.exc_value))
    try:
        with Signals():
            Broken()
    finally:
        sys.unraisablehook = before
    assert told == ["broken"]


def test_many_at_the_prompt(environ: dict[str, str], data: Path, profile: Path) -> None:
    """Ctrl-C in quick succession where there is nothing to stop, and Ctrl-D right behind it."""
    person = Person(environ, "-p", profile, size=(80, 24))
    person.child.delaybeforesend = None
    person.ready()
    for pause in (0.0, 0.001, 0.003, 0.006, 0.012):
        for _ in range(6):
            person.type("\x03")
            time.sleep(pause)
        person.ready()
        assert "^C" not in "".join(person.lines())
    person.leave()


def test_a_signal_that_ends_the_process_goes_through_asyncio() -> None:
    """In a callback and in a task; any other exception would be kept there."""

    async def beside() -> None:
        raise Terminated(signal.SIGTERM)

    async def program(in_task: bool) -> None:
        task = asyncio.ensure_future(beside()) if in_task else None
        if task is None:
            asyncio.get_running_loop().call_soon(_terminate, signal.SIGTERM, None)
        await asyncio.sleep(5)

    for in_task in (False, True):
        began = time.monotonic()
        with pytest.raises(Terminated):
            asyncio.run(program(in_task))
        assert time.monotonic() - began < 4
