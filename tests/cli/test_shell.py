"""`apd` as a process: real pipes, a real terminal, real signals, and what it does not import."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyte
import pytest

import apdcli
from apdcli import load_pair
from apdcli.cli.app import _as_meant
from apdcli.cli.signals import Signals

pexpect = pytest.importorskip("pexpect")
termios: Any = pytest.importorskip("termios")
if os.name == "nt":
    pytest.skip("needs a POSIX terminal", allow_module_level=True)

PROMPT = "tell me a story"
# One forward a token, and an end token ends nothing: hundreds of steps whatever the model says.
LONG = (
    *("generate", PROMPT, "--strategy", "random", "-n", "900"),
    *("-O", "block_length=1", "-O", "early_stop=false"),
)
APD = (sys.executable, "-m", "apdcli")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A user without profiles and settings of their own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("APD_", "NO_COLOR"))}
    root = str(Path(apdcli.__file__).parents[1])
    own = {"APD_CONFIG_DIR": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    return {**kept, **own, "TERM": "xterm-256color"}


def start(environ: dict[str, str], *args: object, **streams: Any) -> subprocess.Popen[bytes]:
    streams = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1} | streams
    return subprocess.Popen([*APD, *map(str, args)], env=environ, **streams)


def on_terminal(environ: dict[str, str], *args: object, columns: int = 80, **more: Any) -> Any:
    return pexpect.spawn(
        APD[0],
        [*APD[1:], *map(str, args)],
        env=environ,
        dimensions=(24, columns),
        encoding="utf-8",
        timeout=120,
        **more,
    )


def finish(child: Any) -> tuple[str, int]:
    """What was written since the last look, and the exit status."""
    child.expect(pexpect.EOF)
    child.close()
    return child.before, child.exitstatus


def screen(text: str, columns: int = 80) -> list[str]:
    """The lines that a terminal shows after `text`."""
    terminal = pyte.Screen(columns, 24)
    stream = pyte.Stream(terminal)
    # pyte takes IND (ESC D) and DEC 2026 as real terminals do
    stream.feed(text)
    return [line.rstrip() for line in terminal.display if line.strip()]


def test_help_profiles_and_usage_errors_load_no_torch(environ: dict[str, str]) -> None:
    code = """
import sys
from apdcli.cli.main import main
for line in sys.argv[1:]:
    main(line.split())
    heavy = {"torch", "transformers", "numpy", "rich", "huggingface_hub"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    lines = (
        *("--help", "--version", "generate --help", "profiles --help", "profiles list"),
        *("profiles show demo", "profiles path", "generate -W 0 x", "generate --nonsense"),
        *("generate -p nonsense x", "profiles new mine"),
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        env=environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_ends_it_quietly(environ: dict[str, str], profile: Path) -> None:
    child = start(environ, *LONG, "-p", profile)
    assert child.stdout is not None
    assert child.stderr is not None
    first = os.read(child.stdout.fileno(), 3)
    child.stdout.close()
    assert (first != b"", child.stderr.read(), child.wait()) == (True, b"", 141)
    child.stderr.close()


def test_a_full_or_closed_stdout_is_one_line(environ: dict[str, str], profile: Path) -> None:
    code = f"exec {sys.executable} -m apdcli generate -p {profile} hello >&-"
    done = subprocess.run(
        ["sh", "-c", code], env=environ, stdin=subprocess.DEVNULL, stderr=-1, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "closed" in done.stderr
    if Path("/dev/full").exists():
        with Path("/dev/full").open("wb") as full:
            child = start(environ, "generate", "-p", profile, "hello", stdout=full)
            _, err = child.communicate()
        assert (child.returncode, err.count(b"\n")) == (1, 1)
        assert b"no space left" in err


def test_help_has_nowhere_to_go_when_stdout_is_closed(environ: dict[str, str]) -> None:
    for words in ("--help", "generate -h", "", "--version"):
        code = f"exec {sys.executable} -m apdcli {words} >&-"
        done = subprocess.run(["sh", "-c", code], env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), words
        assert done.stderr.startswith("apd: standard output is closed")
        both = ["sh", "-c", f"{code} 2>&-"]
        done = subprocess.run(both, env=environ, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, ""), words


@pytest.mark.parametrize("module", ["torch", "torch.nn", "tokenizers"])
def test_ctrl_c_while_it_loads_ends_at_once(
    environ: dict[str, str], profile: Path, module: str
) -> None:
    """In an import, and in one within another's; not before there are handlers of signals."""
    code = """
import sys, time
from apdcli.cli.main import main

class Waits:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            sys.stderr.write("r")
            sys.stderr.flush()
            time.sleep(60)

sys.meta_path.insert(0, Waits())
sys.exit(main(sys.argv[2:]))
"""
    child = subprocess.Popen(
        [sys.executable, "-c", code, module, "generate", "-p", str(profile), PROMPT],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=-1,
        stderr=-1,
    )
    assert child.stderr is not None
    assert child.stderr.read(1) == b"r"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out, err) == (130, b"", b"")


def test_ctrl_c_on_a_terminal_keeps_what_was_said(environ: dict[str, str], profile: Path) -> None:
    child = on_terminal(environ, *LONG, "-p", profile)
    child.expect("step ")
    child.expect(r"[a-z]{2}")
    child.sendintr()
    rest, status = finish(child)
    assert status == 130
    assert "Traceback" not in rest
    assert "interrupted" in rest
    assert rest.rindex("\x1b[?25h") > rest.rfind("\x1b[?25l")  # the cursor is back


def test_kill_puts_the_terminal_in_order(environ: dict[str, str], profile: Path) -> None:
    child = on_terminal(environ, *LONG, "-p", profile)
    child.expect("step ")
    child.kill(signal.SIGTERM)
    rest, status = finish(child)
    assert status == 143
    assert "Traceback" not in rest
    assert "\x1b[?25h" in rest


@pytest.mark.parametrize(("columns", "no_color"), [(80, False), (40, True)])
def test_the_live_view_leaves_the_answer_once(
    environ: dict[str, str], profile: Path, columns: int, no_color: bool
) -> None:
    answer = apdcli.generate(load_pair(profile), PROMPT).text.split()
    more = {"NO_COLOR": "1"} if no_color else {}
    child = on_terminal(environ | more, "generate", PROMPT, "-p", profile, columns=columns)
    written, status = finish(child)
    assert status == 0
    lines = screen(written, columns)
    shown = "".join(lines).replace(" ", "")
    assert re.search(r"[0-9.]s·(stop|cutatmax-tokens)$", shown)
    assert shown.startswith("".join(answer))
    assert shown.count("".join(answer)) == 1
    assert ("\x1b[38;5;" in written) is not no_color


def test_a_terminal_on_stdin_is_not_waited_for(environ: dict[str, str], profile: Path) -> None:
    written, status = finish(on_terminal(environ, "generate"))
    assert status == 2
    assert "no prompt" in written
    assert written.count("\n") <= 3  # one line, wrapped by the terminal


def test_a_ctrl_c_that_an_import_swallowed_still_ends_before_decoding() -> None:
    signals = Signals()
    with pytest.raises(KeyboardInterrupt):
        signals._on_interrupt(signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt), signals.patient():
        raise AssertionError("decoding began")


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["Write a haiku", "-n", "3"], ["generate", "Write a haiku", "-n", "3"]),
        (["Hello"], ["Hello"]),
        (["generate", "a b"], ["generate", "a b"]),
        (["--no such"], ["--no such"]),
        (["help"], ["--help"]),
        (["help", "replay"], ["replay", "--help"]),
        (["--show-completion"], ["--show-completion", "auto"]),
        (["--show-completion", "zsh"], ["--show-completion", "zsh"]),
        ([], []),
    ],
    ids=str,
)
def test_what_other_tools_let_one_leave_out(args: list[str], meant: list[str]) -> None:
    assert _as_meant(args, {"generate", "replay"}) == meant


def test_generate_loads_only_what_it_needs(environ: dict[str, str]) -> None:
    code = """
import sys
from apdcli.cli.main import main
assert main(["Copy the list: dog, moon.", "-n", "8"]) == 0
heavy = {"transformers", "torch._dynamo", "torch._inductor", "sympy", "triton", "huggingface_hub"}
heavy |= {"rich", "matplotlib", "optuna", "prompt_toolkit", "scipy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, stdin=subprocess.DEVNULL, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
