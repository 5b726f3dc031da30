"""The README's table of behaviour: a row a test, on real terminals, pipes, files and signals."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.name == "nt":
    pytest.skip("needs a POSIX shell", allow_module_level=True)
pexpect = pytest.importorskip("pexpect")

from tests.cli.conftest import Apd  # noqa: E402
from tests.cli.shell import APD, Result, clean_environ, run, screen, write_trace  # noqa: E402

WORDS = ["One ", "fox ", "was ", "very ", "brave. ", "日本", "é ", "\x1b[31m", "red.\n", "End."]
SHOWN = "One fox was very brave. 日本é ␛[31mred."
# One token a step, each as likely as any other: hundreds of steps whatever the model says.
LONG = ("generate", "Tell me a story.", "--strategy", "left_to_right", "-K", "1", "-M", "1")
LONG += ("-n", "400", "-t", "100", "--seed", "1")
Run = Callable[..., Result]


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return clean_environ(tmp_path / "config")


@pytest.fixture
def apd(environ: dict[str, str], tmp_path: Path) -> Run:
    def start(*args: object, **streams: Any) -> Result:
        more = streams.pop("more", {})
        return run({**environ, **more}, *args, folder=tmp_path, **streams)

    return start


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    write_trace(path, WORDS)
    return path


KINDS = ("terminal", "pipe", "file", "closed")


@pytest.mark.parametrize(("out", "err"), list(itertools.product(KINDS, KINDS)))
def test_each_stream_may_be_anything(apd: Run, trace: Path, out: str, err: str) -> None:
    ran = apd("replay", trace, "--speed", "max", out=out, err=err)
    exact = ("".join(WORDS) + "\n").encode()
    if out == "closed":
        assert (ran.status, ran.out) == (1, b"")
        assert ran.err.startswith(b"" if err == "closed" else b"apd: standard output is closed;")
        assert ran.err.count(b"\n") == int(err != "closed")
        return
    assert ran.status == 0
    if out == "terminal":
        assert screen(ran.out)[:2] == [SHOWN, "End."]
        assert b"\x1b[31m" not in ran.out
    else:
        assert ran.out == exact
    summary = out == err == "terminal"
    assert (b"tokens in 5 steps" in ran.err) is summary
    assert ran.err.count(b"\n") == int(summary)


def test_generate_on_a_terminal_shows_what_json_says(apd: Run, tmp_path: Path) -> None:
    args = ("generate", "Copy the list: dog, moon.", "-n", "12")
    answer = apd(*args, "--json", "-o", "a.json", stdin="closed")
    assert (answer.status, answer.out, answer.err) == (0, b"", b"")
    text = json.loads((tmp_path / "a.json").read_text())["text"]
    ran = apd(*args, out="terminal", err="terminal", stdin="terminal")
    assert (ran.status, ran.err.count(b"\n")) == (0, 1)
    assert "".join(screen(ran.out)).replace(" ", "") == "".join(text.split())


def test_a_pipe_on_stdin_is_what_the_command_takes(apd: Run, trace: Path) -> None:
    for named in ((), ("-",)):
        ran = apd(
            "replay", *named, "--speed", "max", out="pipe", err="pipe", stdin=trace.read_bytes()
        )
        assert (ran.status, ran.out, ran.err) == (0, ("".join(WORDS) + "\n").encode(), b"")


def test_a_variable_that_nothing_reads_is_named_to_who_looks(apd: Run) -> None:
    more = {"APD_MAXTOKENS": "5"}
    note = b"APD_MAXTOKENS is not read; did you mean APD_MAX_TOKENS?"
    assert note in apd("profiles", "list", out="pipe", err="terminal", more=more).err
    assert apd("profiles", "list", out="pipe", err="pipe", more=more).err == b""


@pytest.mark.parametrize("stdin", ["closed", b"", "terminal"])
def test_no_prompt_anywhere_is_one_line_and_nobody_is_waited_for(apd: Run, stdin: Any) -> None:
    for args in (("generate",), ("fill",), ("generate", "--input", "-", "-W", "0")):
        ran = apd(*args, stdin=stdin)
        assert ran.status in (1, 2)
        assert (ran.out, ran.err.count(b"\n")) == (b"", 1)
    if stdin == "closed":
        ran = apd("chat", stdin=stdin)
        assert (ran.status, ran.out) == (1, b"")
        assert ran.err == b"apd: standard input is closed: there is nobody to talk to\n"


@pytest.mark.parametrize(
    ("more", "drawn", "coloured"),
    [
        ({"TERM": "xterm-256color"}, True, b"38;5;"),
        ({"TERM": "xterm"}, True, b"\x1b[3"),
        ({"COLORTERM": "truecolor"}, True, b"38;2;"),
        ({"NO_COLOR": "1"}, True, None),
        ({"NO_COLOR": "1", "FORCE_COLOR": "3"}, True, None),
        ({"NO_COLOR": ""}, True, b"38;5;"),
        ({"FORCE_COLOR": "0"}, True, None),
        ({"TERM": "xterm", "FORCE_COLOR": "3"}, True, b"38;2;"),
        ({"TERM": "dumb"}, False, None),
        ({"TERM": "dumb", "FORCE_COLOR": "1"}, False, None),
        ({"TERM": ""}, False, None),
    ],
    ids=str,
)
def test_term_and_colour(
    apd: Run, trace: Path, more: dict[str, str], drawn: bool, coloured: bytes | None
) -> None:
    ran = apd("replay", trace, "--speed", "max", out="terminal", err="terminal", more=more)
    assert ran.status == 0
    assert (b"\x1b[?25l" in ran.out) is drawn
    colours = re.findall(rb"\x1b\[(?:[0-9;]*;)?[39][0-9][0-9;]*m", ran.out)
    assert bool(colours) is (coloured is not None)
    assert any((coloured or b"") in code for code in colours) is (coloured is not None)
    assert screen(ran.out)[:2] == [SHOWN, "End."]


def test_no_variable_colours_a_pipe(apd: Run, trace: Path) -> None:
    ran = apd("replay", trace, more={"FORCE_COLOR": "3", "COLORTERM": "truecolor"})
    assert (ran.out, ran.err) == (("".join(WORDS) + "\n").encode(), b"")


@pytest.mark.parametrize("columns", [20, 300])
def test_narrow_and_wide(apd: Run, trace: Path, columns: int) -> None:
    ran = apd("replay", trace, "--speed", "max", out="terminal", err="terminal", columns=columns)
    assert "".join(screen(ran.out, columns)).replace(" ", "") == (SHOWN + "End.").replace(" ", "")
    ran = apd("profiles", out="terminal", columns=columns)
    longest = max(map(len, ran.out.decode().splitlines()))
    assert longest <= columns
    assert (longest > 60) is (columns == 300)


def test_columns_is_for_help_and_lists(apd: Run, trace: Path) -> None:
    wide = max(map(len, apd("--help").out.splitlines()))
    narrow = apd("generate", "--help", more={"COLUMNS": "60"}).out.decode()
    prose = narrow.partition("Examples:")[0].splitlines()
    assert max(map(len, prose)) <= 60 < wide <= 80
    listed = apd("profiles", out="terminal", more={"COLUMNS": "40"}).out.decode().splitlines()
    assert max(map(len, listed)) <= 40
    ran = apd("replay", trace, "--speed", "max", out="terminal", more={"COLUMNS": "10"})
    assert screen(ran.out)[0] == SHOWN


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    "more", [{"LC_ALL": "C"}, {"LC_ALL": "POSIX"}, ASCII, {"PYTHONIOENCODING": "latin-1"}], ids=str
)
def test_locales(apd: Run, trace: Path, more: dict[str, str]) -> None:
    exact = ("".join(WORDS) + "\n").encode()
    ran = apd("replay", trace, more=more)
    assert (ran.status, ran.out, ran.err) == (0, exact, b"")
    ran = apd("replay", trace, "--speed", "max", out="terminal", err="terminal", more=more)
    assert ran.status == 0
    assert b"brave." in ran.out
    if "PYTHONUTF8" in more or "PYTHONIOENCODING" in more:  # a terminal that has no such letters
        assert "日".encode() not in ran.out
        assert b"\x1b" not in ran.out
        assert ran.out.startswith(b"One fox was very brave. ??")
        assert ran.err.count(b"\n") == 1
    ran = apd("generate", "-p", "naïve日", "x", more=more)
    assert (ran.status, ran.err.count(b"\n")) == (1, 1)
    assert b"no profile is called" in ran.err


def test_signals_end_it_with_their_status_and_what_there_is(environ: dict[str, str]) -> None:
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1}
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    children = [subprocess.Popen([*APD, *LONG], env=environ, **streams) for _ in numbers]
    for number, child in zip(numbers, children, strict=True):
        assert child.stdout is not None
        assert os.read(child.stdout.fileno(), 1) != b""
        child.send_signal(number)
    for number, child in zip(numbers, children, strict=True):
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (128 + number, b"")
        assert out.endswith(b"\n")


def test_an_ignored_hangup_stays_ignored(environ: dict[str, str], tmp_path: Path) -> None:
    write_trace(tmp_path / "slow.jsonl", WORDS, step_s=0.3)
    command = ["nohup", *APD, "replay", str(tmp_path / "slow.jsonl"), "--speed", "1"]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": -1, "stderr": -1}
    child = subprocess.Popen(command, env=environ, **streams)
    assert child.stdout is not None
    first = os.read(child.stdout.fileno(), 1)
    child.send_signal(signal.SIGHUP)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, first + out) == (0, ("".join(WORDS) + "\n").encode())


@pytest.fixture
def bash(environ: dict[str, str], tmp_path: Path) -> Callable[[str], tuple[int, str, str]]:
    """Runs a script in which `apd` is a command."""
    command = tmp_path / "bin" / "apd"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m apdcli "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"

    def script(code: str) -> tuple[int, str, str]:
        done = subprocess.run(
            ["bash", "-c", code],
            env={**environ, "PATH": path},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    return script


def test_scripts_see_the_status(bash: Callable[[str], tuple[int, str, str]], trace: Path) -> None:
    long = " ".join(f"'{word}'" for word in LONG)
    status, out, err = bash(
        f"set -o pipefail; apd {long} | head -c 1 | wc -c; echo ${{PIPESTATUS[*]}}"
    )
    assert (status, out.split(), err) == (0, ["1", "141", "0", "0"], "")
    code = "set -euo pipefail; apd replay t.jsonl | cat | wc -c; apd replay gone | cat; echo never"
    status, out, err = bash(code)
    assert (status, out) == (1, f"{len(''.join(WORDS).encode()) + 1}\n")
    assert err == "apd: cannot read gone: no such file or folder\n"
    statuses = ("--version", "generate -W 0 x", "profiles show gone", "nonsense", "fill none")
    status, out, err = bash("; ".join(f"apd {args} >&2; echo $?" for args in statuses))
    assert (status, out.split()) == (0, ["0", "2", "1", "2", "1"])
    status, out, err = bash("answer=$(apd replay t.jsonl) && [ ${#answer} -gt 9 ] && echo ok")
    assert (status, out, err) == (0, "ok\n", "")


def test_xargs_runs_four_at_once(
    bash: Callable[[str], tuple[int, str, str]],
    environ: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = "dog\nmoon\npear\ndrum\n"
    each = "apd generate -n 12 --no-stream"
    asked = "".join(f"Copy the list: {name}, hat.\n" for name in names.split())
    status, out, err = bash(f"printf '{asked}' | xargs -P 4 -I{{}} {each} {{}}")
    assert (status, err) == (0, "")
    monkeypatch.setenv("APD_CONFIG_DIR", environ["APD_CONFIG_DIR"])
    here = Apd(environ)  # where torch is loaded already
    expected = [here("generate", "-n", "12", prompt).out for prompt in asked.splitlines()]
    assert sorted(out.splitlines(keepends=True)) == sorted(expected)


def test_ctrl_z_gives_the_terminal_back_and_takes_it_again(
    environ: dict[str, str], tmp_path: Path
) -> None:
    words = [f"word{number} " for number in range(60)]
    write_trace(tmp_path / "slow.jsonl", words, step_s=0.1)
    path = {**environ, "PS1": "ready> ", "BASH_SILENCE_DEPRECATION_WARNING": "1"}
    child = pexpect.spawn(
        shutil.which("bash"),
        ["--norc", "--noprofile", "-i"],
        env=path,
        cwd=tmp_path,
        dimensions=(24, 100),
        encoding="utf-8",
        timeout=60,
    )
    child.delaybeforesend = None
    child.expect("ready> ")
    child.sendline(f"{' '.join(APD)} replay slow.jsonl --export p.svg")
    child.expect("word8")
    child.send("\x1a")
    child.expect("Stopped.*ready> ")
    assert "\x1b[?25h" in child.before  # the cursor
    child.sendline("stty -a")
    child.expect("[ -]echo ")
    assert child.after == " echo "
    child.expect("ready> ")
    child.sendline("fg")
    child.expect("slow.jsonl")
    child.expect("word0 .*word20")  # from the start, in one piece
    child.send("\x1a")
    child.expect("Stopped.*ready> ")
    child.sendline("bg")
    child.expect("ready> ")
    child.expect("in 30 steps")  # nothing is drawn in the background, and the whole at its end
    whole = "".join(words).strip()
    shown = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]|\x1b[78D]", "", child.before)
    assert whole in " ".join(shown.split())
    assert "tok/step" not in shown
    child.sendline("wait; exit")
    child.expect(pexpect.EOF)
    assert (tmp_path / "p.svg").exists()
