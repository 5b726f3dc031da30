"""The chat's slash commands: names, what they take, what they do, and how a line is read as one.

Knows nothing of how they are carried out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from apdcli.errors import UsageError


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: without the slash.
        takes: how its argument is written, "" when it takes none; in [] when it may be left out.
        does: one line of help.
        aliases: other names.
    """

    name: str
    takes: str
    does: str
    aliases: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """As the help writes it: /set NAME VALUE."""
        return f"/{self.name} {self.takes}".rstrip()


COMMANDS = (
    Command("help", "", "this list", ("?", "h")),
    Command(
        "set",
        "NAME [VALUE]",
        "a setting: R, W, M, temperature, strategy, seed, max-tokens, markdown ...; or what it is",
    ),
    Command("show", "", "settings and where they come from, session, context"),
    Command("system", "[TEXT|off]", "set the system message, or show it"),
    Command("retry", "", "the last message again, with a new seed", ("regenerate",)),
    Command("edit", "", "the last message in $EDITOR, and ask again"),
    Command("undo", "", "take back the last message and its answer"),
    Command("clear", "", "a new conversation; the old one stays saved", ("new", "reset")),
    Command("save", "NAME", "name this conversation; one that has a name goes on as a copy"),
    Command("load", "NAME", "go on with a saved conversation"),
    Command("sessions", "[all]", "saved conversations: the last 20, or all", ("ls",)),
    Command("file", "PATH", "add a text file to the next message; @path in a message does it too"),
    Command("profile", "[NAME]", "other models, same conversation; alone: which there are"),
    Command("trace", "[on FILE|off]", "record every step of the answers for apd replay"),
    Command("stats", "", "tokens a step over the conversation"),
    Command("copy", "", "the last answer to the clipboard, by way of the terminal (OSC 52)"),
    Command("export", "FILE", "a picture of the conversation, .svg or .html"),
    Command("bye", "", "leave; the conversation is saved", ("exit", "quit", "q")),
)
_BY_NAME = {name: command for command in COMMANDS for name in (command.name, *command.aliases)}
KEYS = (
    ("Enter", "send"),
    ("Alt-Enter", 'new line; or begin with """ and end with """'),
    ("Up, Ctrl-R", "earlier messages, search in them"),
    ("Tab", "complete commands, settings, profiles, sessions, files"),
    ("Ctrl-C", "stop the answer and keep what was said; clear the line"),
    ("Ctrl-D", "leave"),
)


def is_command(text: str) -> bool:
    """Whether a typed text is meant as a command: it begins with a slash.

    A path such as /etc/hosts is none: no command has a second slash in its name.
    """
    return text.startswith("/") and ("/" not in text.split()[0][1:] or text.strip() == "//")


def parse_command(text: str) -> tuple[Command, str]:
    """The command that a line asks for, and its argument.

    Raises:
        UsageError: unknown (the nearest is named), without what it takes, or with what it does not.
    """
    word, rest = (*text[1:].strip().split(maxsplit=1), "", "")[:2]
    apart = " " if text[1:2].isspace() else ""
    command = None if apart else _BY_NAME.get(word.lower())
    if command is None:
        hint = _nearest(word.lower(), _BY_NAME)
        raise UsageError(f"no command is called /{apart}{word}; {hint}")
    if rest and not command.takes:
        raise UsageError(f"/{command.name} takes nothing after it")
    if not rest and command.takes and not command.takes.startswith("["):
        raise UsageError(f"write it as {command.shown}")
    return command, rest


def _nearest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    starts = [name for name in known if word and name.startswith(word)]
    names = dict.fromkeys(_BY_NAME[name].name for name in (*starts, *close))
    if not names:
        return "/help lists them"
    return "did you mean " + " or ".join(f"/{name}" for name in list(names)[:2]) + "?"


def help_lines() -> list[tuple[str, str]]:
    """What to type and what it does, in the order of the help; commands, then keys."""
    return [(command.shown, command.does) for command in COMMANDS] + list(KEYS)
