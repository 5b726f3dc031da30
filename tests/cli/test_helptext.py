"""Help as wide as the terminal, however narrow that is."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from apdcli.cli.app import build
from apdcli.cli.helptext import folded
from apdcli.cli.main import main


def named(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from named(command, (*path, name))


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(columns: int, *path: str) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*path, "--help"]) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", list(named(get_command(build()))), ids=" ".join)
def test_it_fits_and_nothing_is_lost(help_of: Any, path: tuple[str, ...]) -> None:
    whole = help_of(300, *path)
    assert max(map(len, whole.splitlines())) <= 80
    assert "\b" not in whole
    for columns in (20, 40, 60, 80):
        shown = help_of(columns, *path)
        prose = shown.partition("Examples:")[0] if columns < 40 else shown
        assert max(map(len, prose.splitlines())) <= columns, f"at {columns} columns"
        assert "".join(shown.replace("\\\n", "").split()) == "".join(whole.split())


def test_a_line_for_each_command_is_never_cut(help_of: Any) -> None:
    for columns in (30, 80):
        listed = help_of(columns).partition("Commands:")[2]
        assert "..." not in listed
        assert "a step's time goes, and its floor." in " ".join(listed.split())
    below = help_of(40).partition("  replay    ")[2]  # beside its name, and on under itself
    assert below.startswith("Play a recorded generation\n            again, without its models.")


def test_options_stand_above_what_they_do_where_there_is_no_room_beside(help_of: Any) -> None:
    assert "  --seed N\n      Same seed, same text [default:\n" in help_of(40, "generate")
    assert "  --seed N                     Same seed, same text [default" in help_of(80, "generate")


def test_a_profile_comes_before_the_defaults_that_the_help_names(help_of: Any) -> None:
    text = " ".join(help_of(80, "generate").split())
    for default in ("0.7", "16", "100", "256", "0.0", "apd", "new each run", "auto"):
        assert f"[default: the profile's, else {default}]." in text


@pytest.mark.parametrize("width", [1, 12, 30, 44, 76])
def test_an_example_can_be_copied_at_any_width(width: int) -> None:
    line = """  printf '%s\\n' "My name is Mia." "I live in Oslo" | apd chat -s "Be brief." > a"""
    made = folded(line, width)
    assert shlex.split(made.replace("\\\n", "")) == shlex.split(line)
    for part in made.split("\n"):
        alone = len(shlex.split(part.rstrip("\\"))) == 1
        assert len(part) <= width or alone
    assert folded(line, len(line)) == line


@pytest.mark.parametrize(
    ("path", "usage", "named"),
    [
        (("profiles", "show"), "[OPTIONS] [NAME]", "  NAME  A name, or"),
        (("profiles", "path"), "[OPTIONS] [NAME]", "  NAME  Print this"),
        (("profiles", "edit"), "[OPTIONS] NAME", "  NAME  A name, or"),
        (("replay",), "[OPTIONS] [TRACE]", "  TRACE  A file that"),
        (("bench",), "[OPTIONS] [PROMPT]...", "  PROMPT  Messages, each"),
        (("generate",), "[OPTIONS] [PROMPT]", "  PROMPT  The message, or"),
    ],
)
def test_arguments_go_by_their_names(
    help_of: Any, path: tuple[str, ...], usage: str, named: str
) -> None:
    first, *rest = help_of(80, *path).splitlines()
    assert first == f"Usage: apd {' '.join(path)} {usage}"
    assert any(line.startswith(named) for line in rest)


@pytest.mark.parametrize("path", list(named(get_command(build()))), ids=" ".join)
def test_no_word_of_the_programs_inside(help_of: Any, path: tuple[str, ...]) -> None:
    shown = help_of(80, *path)
    assert re.findall(r"<(?:str|list|int|bool|float)\b|\[\[NAME\]|\{[A-Z]+\}", shown) == []
