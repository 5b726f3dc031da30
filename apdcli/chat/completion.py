"""What Tab offers: commands, settings and their values, profiles, sessions, files.

Knows where names come from only as functions; imported with prompt_toolkit, when it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document

from apdcli.chat.commands import COMMANDS
from apdcli.chat.files import begun_path
from apdcli.load.home import home_path
from apdcli.render.safe import visible

_MOST = 200
_FILES = ("file", "export")


@dataclass(frozen=True)
class Sources:
    """Where names come from, asked when Tab is pressed.

    Attributes:
        settings: names that /set takes.
        values: for some of them the words they can be.
        profiles, sessions: names.
    """

    settings: Callable[[], Iterable[str]]
    values: Mapping[str, Callable[[], Iterable[str]]]
    profiles: Callable[[], Iterable[str]]
    sessions: Callable[[], Iterable[str]]


class ChatCompleter(Completer):
    """Completes slash commands and @paths; ordinary words are left alone."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterator[Completion]:
        """See prompt_toolkit."""
        text = document.text_before_cursor
        if text.startswith("/") and "\n" not in text:
            name, space, rest = text[1:].partition(" ")
            yield from self._argument(name, rest) if space else _commands(name)
            return
        if (path := begun_path(text)) is not None:
            yield from _paths(path)

    def _argument(self, name: str, rest: str) -> Iterator[Completion]:
        first, space, value = rest.partition(" ")
        if name == "set":
            if not space:
                return _words(self.sources.settings(), first, after=" ")
            known = self.sources.values.get(first)
            return _words(known() if known else (), value)
        if name in ("load", "save"):
            return _words(self.sources.sessions(), rest)
        if name == "profile":
            return _words(self.sources.profiles(), rest)
        if name == "trace":
            return _paths(value) if space else _words(("on", "off"), first)
        if name in _FILES:
            return _paths(rest)
        return iter(())


def _commands(typed: str) -> Iterator[Completion]:
    for command in COMMANDS:
        if command.name.startswith(typed.lower()):
            more = " " if command.takes else ""
            yield Completion(
                command.name + more,
                -len(typed),
                display="/" + command.name,
                display_meta=command.does,
            )


def _words(words: Iterable[str], typed: str, after: str = "") -> Iterator[Completion]:
    for word in words:
        if word.lower().startswith(typed.lower()):
            yield Completion(word + after, -len(typed), display=visible(word))


def _paths(typed: str) -> Iterator[Completion]:
    """Files and folders that a path may go on to; hidden ones only once a dot is typed.

    A path with spaces stands in quotes, which stay open behind a folder: more may follow.
    """
    quoted = typed.startswith('"')
    folder, slash, start = typed.removeprefix('"').rpartition("/")
    try:
        base = home_path(folder + slash or ".")
        found = sorted(os.scandir(base), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return
    count = 0
    for entry in found:
        name = entry.name
        hidden = name.startswith(".") and not start.startswith(".")
        if hidden or not name.startswith(start) or not name.isprintable() or count == _MOST:
            continue
        count += 1
        path, last = (name + "/", "") if entry.is_dir() else (name, '"')
        written = folder + slash + path
        if quoted or " " in written:
            written = f'"{written}{last}'
        yield Completion(written, -len(typed), display=visible(name))
