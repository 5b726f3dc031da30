"""Task files: JSON Lines, JSON, gzipped or not, or a folder of them; every problem has its line.

Knows nothing of scorers and of what a record means.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from apdcli.errors import InputError, reason

_MOST_BYTES = 1 << 30
_KINDS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
T = TypeVar("T")


@dataclass(frozen=True)
class Placed:
    """A JSON value and where it stands, for messages: "tasks.jsonl, line 3"."""

    value: Any
    where: str


def placed(where: str, read: Callable[[], T]) -> T:
    """What `read` gives; its ValueError becomes one that says where.

    Raises:
        InputError: where and what.
    """
    try:
        return read()
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def read_values(path: Path) -> list[Placed]:
    """Every JSON value of a task file, or of the files of a folder in the order of their names.

    Raises:
        InputError: nothing is there, it is not UTF-8 text or not JSON, or it is empty.
    """
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and p.name.endswith(_KINDS))
        if not files:
            raise InputError(f"{path}: no {' or '.join(_KINDS[:2])} file in this folder")
        return [value for file in files for value in read_values(file)]
    values = list(_values(path, read_text(path)))
    if not values:
        raise InputError(f"{path} is empty: a task has at least one prompt")
    return values


def read_text(path: Path) -> str:
    """The text of a file, unpacked where it is gzipped.

    Raises:
        InputError: it cannot be read, unpacked, or is not UTF-8.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data: bytes = file.read(_MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged (not gzip): {error}") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    if len(data) > _MOST_BYTES:
        raise InputError(f"{path} is larger than {_MOST_BYTES >> 20} MiB: no task file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x})"
        ) from error


def _values(path: Path, text: str) -> Iterator[Placed]:
    """One value a line; or where the first line is no value of its own, one JSON text."""
    # Not splitlines: JSON strings may hold U+2028 as it is.
    lines = text.split("\n")
    first = next((line for line in lines if line.strip()), "").strip()
    if first.startswith("[") or (not _is_json(first) and _one_json(text)):
        value = _parse(path, text, 1)
        if isinstance(value, list):
            for number, entry in enumerate(value, 1):
                yield Placed(entry, f"{path}, entry {number}")
        elif first:
            yield Placed(value, str(path))
        return
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield Placed(_parse(path, line, number), f"{path}, line {number}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _one_json(text: str) -> bool:
    """Whether a text means to be one JSON value over several lines, damaged or not.

    A damaged first line of JSON Lines is followed by lines that are values of their own.
    """
    others = [line for line in text.split("\n") if line.strip()][1:]
    return not any(line.lstrip().startswith("{") and _is_json(line) for line in others)


def _parse(path: Path, text: str, line: int) -> Any:
    if not text.strip():
        return None
    try:
        return json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        at = line + error.lineno - 1
        raise InputError(
            f"{path}, line {at}: not JSON ({error.msg.lower()} at column {error.colno})"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {line}: not JSON ({error})") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
