"""One line of `apd generate --input`: what it asks, and the settings it brings. Loads no torch.

Knows nothing of models and nothing of answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from apdcli.cli.context import Context
from apdcli.cli.options import FLAGS, OWN_FIELDS, SETTINGS
from apdcli.cli.prompt import STDIN
from apdcli.errors import InputError, ParameterError, PromptError, reason
from apdcli.load.chat_template import as_messages
from apdcli.render.terminal import is_terminal

_JSON_LINES = (".jsonl", ".ndjson")
_MOST_BYTES = 64 * 2**20
_LOADED = ("profile", "device", "dtype", "quantize", "engine")  # the pair is loaded once
_OF_A_LINE = {  # every spelling of a flag that a line may set, as the setting's name
    spelling.lstrip("-").replace("-", "_"): flag.name
    for flag in FLAGS
    if flag.name in (*SETTINGS, "raw") and flag.name not in _LOADED
    for spelling in flag.flags
    if spelling.startswith("--")
} | {name: name for name in OWN_FIELDS}
_OF_THE_RUN = frozenset(flag.name for flag in FLAGS) - frozenset(_OF_A_LINE.values())
_DATA = ("prompt", "messages", "id")
_TAKES = "a line takes a prompt, an id, and settings by their long names, as max_tokens"


@dataclass(frozen=True)
class Line:
    """A line.

    Attributes:
        number: counted from 1, blank lines too.
        data: its bytes, without the newline.
    """

    number: int
    data: bytes

    @property
    def head(self) -> dict[str, Any]:
        """How its answer begins: which line of which input it answers."""
        return {"line": self.number, "input": hashlib.sha256(self.data).hexdigest()[:16]}


@dataclass(frozen=True)
class Asked:
    """What a line asks.

    Attributes:
        prompt: a user message, raw text, or messages of {"role", "content"}.
        settings: those that the line sets itself, by name.
        raw: no chat template; None: as the command line says.
    """

    prompt: str | Sequence[Mapping[str, str]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    raw: bool | None = None


@dataclass(frozen=True)
class Source:
    """Where lines come from.

    Attributes:
        name: for messages.
        json_lines: each line is a JSON object; else a line is a prompt.
        total: lines that are not blank, where that can be known beforehand.
        live: they come as somebody writes them, so that a reader must not run ahead.
    """

    name: str
    json_lines: bool
    total: int | None
    live: bool
    lines: Callable[[], Iterator[Line]]


@contextmanager
def open_source(path: str, json_lines: bool, context: Context) -> Iterator[Source]:
    """The lines of a file, or of standard input for "-".

    Raises:
        InputError: it cannot be read. UsageError: nothing is piped.
    """
    json_lines = json_lines or path.lower().endswith(_JSON_LINES)
    if path == STDIN:
        stdin = context.stdin
        if stdin is None or is_terminal(stdin):
            raise InputError("nothing is piped to standard input; name a file: --input FILE")
        file: Any = getattr(stdin, "buffer", stdin)
        name = "standard input"
        yield Source(name, json_lines, None, True, lambda: lines_of(file, name))
        return
    try:
        opened = Path(path).open("rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise _unreadable(path, error) from error
    with opened:
        regular = Path(path).is_file()
        total = sum(1 for _ in lines_of(opened, path)) if regular else None
        if regular:
            opened.seek(0)
        yield Source(path, json_lines, total, not regular, lambda: lines_of(opened, path))


def lines_of(file: BinaryIO, name: str, *, blanks: bool = False) -> Iterator[Line]:
    """The lines of a stream as they come; blank ones are passed over unless `blanks`.

    Raises:
        InputError: it cannot be read, or a line is longer than any context; `name` is in both.
    """
    number = 0
    while True:
        try:
            data = file.readline(_MOST_BYTES + 1)
        except OSError as error:
            raise _unreadable(name, error) from error
        except ValueError:  # closed
            return
        if not data:
            return
        number += 1
        if len(data) > _MOST_BYTES:
            raise InputError(f"{name}: line {number} is longer than {_MOST_BYTES >> 20} MiB")
        data = data.removesuffix(b"\n").removesuffix(b"\r")
        data = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if blanks or data.strip():
            yield Line(number, data)


def _unreadable(name: str, error: OSError) -> InputError:
    return InputError(f"cannot read {name}: {reason(error)}")


def id_of(line: Line, json_lines: bool) -> dict[str, Any]:
    """{"id": ...} as the line has it, null too, though something else in it may be wrong."""
    try:
        record = json.loads(line.data) if json_lines else None
        if not isinstance(record, dict) or "id" not in record:
            return {}
        json.dumps(record["id"], allow_nan=False)
    except (ValueError, RecursionError):
        return {}
    return {"id": record["id"]}


def read_line(line: Line, json_lines: bool, *, messages: bool = True) -> Asked:
    """What the line asks, every value checked.

    Args:
        line: as it was read.
        json_lines: it is an object, not a text.
        messages: it may bring a whole conversation.

    Raises:
        InputError: what is wrong with it.
    """
    try:
        text = line.data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line.data[error.start]
        raise InputError(f"not UTF-8 text: byte {error.start} is 0x{byte:02x}") from error
    if not json_lines:
        return Asked(text)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError('not an object; write {"prompt": "..."} or {"messages": [...]}')
    if not messages and "messages" in record:
        raise InputError("a chat keeps its messages itself: give the next one as prompt")
    if not messages and "prompt" not in record:
        raise InputError('it needs prompt, as in {"prompt": "..."}')
    if "id" in record and not id_of(line, json_lines):
        raise InputError("id must be JSON, which has no NaN and no Infinity")
    return Asked(_prompt(record), _settings(record), _raw(record))


def _prompt(record: Mapping[str, Any]) -> str | list[dict[str, str]]:
    given = [name for name in ("prompt", "messages") if name in record]
    if len(given) != 1:
        has = "both prompt and messages: give one" if given else "neither prompt nor messages"
        raise InputError(f"it has {has}")
    value = record[given[0]]
    if given == ["prompt"]:
        if not isinstance(value, str) or not value.strip():
            raise InputError("prompt must be a text that is not empty")
        return _checked_text("prompt", value)
    if not isinstance(value, list) or not value:
        raise InputError('messages must be a list of {"role": "...", "content": "..."}')
    try:
        as_messages(value)
    except PromptError as error:
        raise InputError(str(error)) from error
    for place, message in enumerate(value):
        _checked_text(f"messages[{place}].content", message["content"])
    return value


def _raw(record: Mapping[str, Any]) -> bool | None:
    value = record.get("raw")
    if value is not None and not isinstance(value, bool):
        raise InputError(f"raw = {_written(value)}: it must be true or false")
    return value


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    from apdcli.decode.params import STRATEGIES
    from apdcli.load.profile import check_value, nearest
    from apdcli.load.settings import meant

    found: dict[str, Any] = {}
    keys: dict[str, str] = {}  # by which each was given
    for key, value in record.items():
        if key in _DATA:
            continue
        name = _OF_A_LINE.get(key.replace("-", "_"))
        if name is None:
            if key.replace("-", "_") in _OF_THE_RUN:
                raise InputError(f"{key} is the same for all lines: give it as a flag")
            near = meant(key, (*_OF_A_LINE, *_DATA))
            raise InputError(f"unknown key {key!r}; {near or _TAKES}")
        if name == "raw" or value is None:
            continue
        if name == "system":
            if not isinstance(value, str):
                raise InputError(f"{key} = {_written(value)}: it must be a text")
            found[name] = _checked_text(key, value)
            continue
        value = [value] if name == "stop" and isinstance(value, str) else value
        try:
            check_value(name, value)
        except ParameterError as error:
            near = nearest(str(value), STRATEGIES) if name == "strategy" else ""
            raise InputError(
                f"{key} = {_written(value)}: it must be {error.allowed}{near and f'; {near}'}"
            ) from error
        if name in found and found[name] != value:
            raise InputError(f"{keys[name]} and {key} are one setting: give one")
        found[name], keys[name] = value, key
    return found


def _written(value: Any) -> str:
    """A value as JSON has it; what a terminal could not show is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else json.dumps(value)


def _checked_text(key: str, text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # "\ud800" is JSON, but no character
        raise InputError(f"{key} is no text: half a character at {error.start}") from error
    return text
