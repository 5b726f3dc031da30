"""The live view in a real terminal multiplexer, which reflows its lines on a resize."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from apdcli.render.live import RESIZE_S
from tests.render.fakes import worded

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")

SCRIPT = """
import sys, time
from pathlib import Path
from types import SimpleNamespace as E
from apdcli.render import Settings, ViewState, open_view
text, here = open(sys.argv[1], encoding="utf-8").read(), Path(sys.argv[2])
hurry, pause, paused = here / "hurry", here / "pause", here / "paused"
steps = open(sys.argv[3], "w", buffering=1)
data = text.encode()
cuts = [data[i : i + 5] for i in range(0, len(data), 5)]
state = ViewState(lambda i: cuts[i], 0, settings=Settings("apd", (("R", "0.7"),)))
at = n = 0
with open_view(state) as view:
    while at < len(cuts):
        n += 1
        new = range(at, min(len(cuts), at + n % 4 + 1))
        at = new[-1] + 1
        draft = tuple((p, p) for p in range(at, min(len(cuts), at + 12)))
        time.sleep(0.001 if hurry.exists() else 0.03)
        if pause.exists():
            paused.touch()
            while pause.exists():
                time.sleep(0.01)
        view(E(step=n, committed=tuple((p, p) for p in new), accepted=len(new), elapsed_s=n * 0.1,
               rejected=draft, phase="", clusters=()))
        print(n, file=steps)
    view(E(reason="length", steps=n, elapsed_s=n * 0.1))
print("end", file=steps)
"""
PARAGRAPH = "Several tokens at a time, each step in its own colour; the draft lies behind. "
TEXT = "".join(
    f"{n}. {PARAGRAPH * (n % 4)}日本語のテキスト{n}\n\n    indented(e\u0301, {n})\n"
    for n in range(9)
)


class Tmux:
    """A multiplexer of its own, with one window."""

    def __init__(self, socket: str, columns: int, lines: int) -> None:
        self.socket = socket
        size = ("-x", str(columns), "-y", str(lines))
        self("-f", os.devnull, "new-session", "-d", "-s", "t", *size, "env PS1='$ ' sh")
        self("set-option", "-g", "window-size", "manual")

    def __call__(self, *arguments: str) -> str:
        command = ["tmux", "-S", self.socket, *arguments]
        environ = {**os.environ, "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", env=environ
        )
        return done.stdout

    def resize(self, columns: int, lines: int) -> None:
        self("resize-window", "-t", "t", "-x", str(columns), "-y", str(lines))

    def wait(self, wanted: str) -> None:
        until = time.monotonic() + 90  # on a busy machine
        while time.monotonic() < until:
            if wanted in self.lines():
                return
            time.sleep(0.05)
        raise AssertionError(f"no {wanted!r} in {self.lines()}")

    def lines(self) -> list[str]:
        """Scrollback and screen, with what the terminal wrapped joined again."""
        return [row.rstrip() for row in self("capture-pane", "-p", "-J", "-S", "-").splitlines()]


def drawn(steps: Path) -> None:
    """Wait until the view has certainly been drawn again: three steps, or the end."""

    def lines() -> list[str]:
        return steps.read_text().splitlines() if steps.exists() else []

    before, until = len(lines()), time.monotonic() + 10
    while time.monotonic() < until and len(lines()) < before + 3 and "end" not in lines():
        time.sleep(0.02)


@contextlib.contextmanager
def no_frame_on_its_way(folder: Path) -> Iterator[None]:
    """While this lasts the program waits between two frames, and tmux has the last of them.

    A frame that was sent for the old size and read after the resize no program can help.
    """
    pause, paused, end = folder / "pause", folder / "paused", time.monotonic() + 10
    pause.touch()
    while not paused.exists() and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    try:
        yield
    finally:
        paused.unlink(missing_ok=True)
        pause.unlink()


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[type[Tmux]]:
    socket = str(tmp_path / "tmux")
    yield lambda columns, lines: Tmux(socket, columns, lines)  # type: ignore[misc]
    subprocess.run(["tmux", "-S", socket, "kill-server"], check=False, capture_output=True)


@pytest.mark.parametrize(
    ("size", "resizes"),
    [
        ((80, 24), []),
        ((20, 8), []),
        ((39, 9), []),
        ((200, 50), []),
        ((80, 24), [[(50, 24)], [(120, 12)], [(33, 30)], [(80, 24)]]),
        ((40, 10), [[(50, 10)], [(30, 10)], [(60, 10)], [(44, 12)]]),
        # of the second one tmux tells the program only when it has reflowed its lines
        ((80, 24), [[(70, 24), (50, 24)], [(90, 24), (60, 24)], [(50, 24), (100, 24)]]),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_every_line_is_there(tmux, tmp_path, size, resizes) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "run.py").write_text(SCRIPT, encoding="utf-8")
    terminal = tmux(*size)
    steps, hurry = tmp_path / "steps", tmp_path / "hurry"
    if not resizes:
        hurry.touch()
    command = f"{sys.executable} {tmp_path}/run.py {tmp_path}/text {tmp_path} {steps} 2>/dev/null"
    terminal("send-keys", "-t", "t", f"clear; {command}; echo DO''NE", "Enter")
    for together in resizes:
        drawn(steps)
        with no_frame_on_its_way(tmp_path):
            for columns, lines in together:
                terminal.resize(columns, lines)
        time.sleep(RESIZE_S)  # until then nothing is drawn
    drawn(steps)
    hurry.touch()
    terminal.wait("DONE")
    lines = terminal.lines()
    # after a new width the text begins anew: the last one is whole
    start = max(i for i, line in enumerate(lines) if line.startswith("0. "))
    last = resizes[-1][-1] if resizes else size
    assert lines[start : lines.index("DONE")] == worded(TEXT, last[0]).splitlines()
