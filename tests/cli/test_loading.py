"""The line that is there while the models load, and not a moment longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Apd
from tests.cli.test_shell import environ, finish, on_terminal, screen

__all__ = ["environ"]  # a fixture
LINE, GONE = "loading the models …", "\r\x1b[K"


def test_it_comes_first_and_is_taken_away(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, "-n", 4, "hello", terminal=True)
    before, after = ran.err.split(LINE)
    assert before == "\x1b[90m"
    assert after.startswith("\x1b[0m\r" + GONE)
    assert screen(ran.err.replace("\n", "\r\n"))[0].startswith(("4 tokens", "3 tokens", "2", "1"))
    assert LINE in apd("generate", "-p", profile, "-n", 4, "hello", "--json", terminal=True).err


@pytest.mark.parametrize(
    ("more", "terminal", "env"),
    [((), False, {}), (("-q",), True, {}), ((), True, {"TERM": "dumb"})],
    ids=["pipe", "quiet", "dumb"],
)
def test_nothing_where_it_would_be_in_the_way(
    apd: Apd, profile: Path, more: tuple[str, ...], terminal: bool, env: dict[str, str]
) -> None:
    args = ("-p", profile, "-n", 4, "hello", *more)
    assert "loading" not in apd("generate", *args, terminal=terminal, environ=env).err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("generate", "hello"), "stopped before the models were loaded"),
        (("chat",), "stopped before the models were loaded"),
        (("tune", "--trials", 2), "stopped before a first result; the same command goes on"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_ctrl_c_meanwhile_is_one_line(
    environ: dict[str, str], profile: Path, tmp_path: Path, args: tuple[str, ...], says: str
) -> None:
    environ["APD_DATA_DIR"] = str(tmp_path / "data")
    child = on_terminal(environ, *args, "-p", profile)
    child.expect("loading the models")
    child.sendintr()
    rest, status = finish(child)
    assert status == 130
    assert screen("loading the models" + rest) == [says], rest
