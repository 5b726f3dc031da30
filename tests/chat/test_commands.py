"""Which lines are commands, and what an unknown one is told."""

from __future__ import annotations

import pytest

from apdcli.chat.commands import COMMANDS, help_lines, is_command, parse_command
from apdcli.errors import UsageError


@pytest.mark.parametrize(
    "text", ["/help", "/set R 0.6", "/x", "/system be brief\nand kind", "/?", "/", "// ", "/ x"]
)
def test_commands(text: str) -> None:
    assert is_command(text)


@pytest.mark.parametrize(
    "text", ["", " ", "// a comment", "//x", "/etc/hosts is a file", " /help", "a /b"]
)
def test_messages(text: str) -> None:
    assert not is_command(text)


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("/set R 0.6", "set", "R 0.6"),
        ("/SET  R   0.6 ", "set", "R   0.6"),
        ("/system a\nb", "system", "a\nb"),
        ("/exit", "bye", ""),
        ("/?", "help", ""),
        ("/trace on f.jsonl", "trace", "on f.jsonl"),
        ("/profile", "profile", ""),
    ],
)
def test_parts(text: str, name: str, rest: str) -> None:
    command, argument = parse_command(text)
    assert (command.name, argument) == (name, rest)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/stast", "did you mean /stats"),
        ("/sess", "did you mean /sessions"),
        ("/quti", "did you mean /bye"),
        ("/xyzzy", "/help lists them"),
        ("/set", r"write it as /set NAME \[VALUE\]"),
        ("/undo it", "takes nothing after it"),
        ("/", "no command is called /; /help lists them"),
        ("//", "no command is called //; /help lists them"),
        ("/ help", "no command is called / help; did you mean /help"),
    ],
)
def test_mistakes_name_the_way_out(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_command(text)


def test_the_help_has_them_all() -> None:
    words = " ".join(left for left, _ in help_lines())
    assert all(f"/{command.name}" in words for command in COMMANDS)
    names = [name for command in COMMANDS for name in (command.name, *command.aliases)]
    assert len(names) == len(set(names))
