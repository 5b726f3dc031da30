"""Results on disk: a header line, then one line an answer, so that a killed run goes on.

Lines are only appended, each in one write; what is half-written at the end is taken away before
the next. A file of another task, pair or setting is refused and never touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from apdcli.errors import InputError, OutputError, reason
from apdcli.load.appending import append, lock
from apdcli.tasks.types import Outcome

KIND, VERSION = "apd eval", 1
_START = b'{"results": "' + KIND.encode()
_MEND = "choose another file, or move this one away"
Key = tuple[Any, str]  # the swept value (None without a sweep), the item


@dataclass(frozen=True)
class Header:
    """What results belong to.

    Attributes:
        task: name, split, scorer, digest, number of prompts.
        profile: its name, for people.
        pair: digest of the models; "" while they are not loaded.
        settings: every setting that counts, the swept one left out.
        knob: the swept setting, or None.
        versions: of what matters, for people.
    """

    task: Mapping[str, Any]
    profile: str
    pair: str
    settings: Mapping[str, Any]
    knob: str | None
    versions: Mapping[str, str]

    def line(self) -> bytes:
        """As the file's first line."""
        return _line({"results": KIND, "version": VERSION, **asdict(self)})


class Results:
    """A results file that is open for more; a context manager.

    Attributes:
        outcomes: what is known, by swept value and item.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        """Open it, or begin it.

        Raises:
            InputError: it is of another task, pair or setting, or damaged (with the line).
            OutputError: it cannot be written, or another process is writing it.
        """
        self.path = Path(path)
        try:
            _refuse_special(self.path)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise _failed(self.path, error) from error
        try:
            if not lock(self._file):
                raise OutputError(f"{self.path} is being written by another apd eval")
            data = self._read()
            self.outcomes = _outcomes(self.path, data, header)
            end = _whole_lines(data)
            os.ftruncate(self._file, end)
            os.lseek(self._file, end, os.SEEK_SET)
            if end == 0:
                self._write(header.line())
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)

    def add(self, value: Any, outcome: Outcome) -> None:
        """Keep an outcome.

        Raises:
            OutputError: the disk is full, or the like; every earlier outcome is kept.
        """
        swept = {} if value is None else {"value": value}
        self._write(_line({**swept, **asdict(outcome)}))
        self.outcomes[value, outcome.item] = outcome

    def _read(self) -> bytes:
        parts = []
        while part := os.read(self._file, 1 << 20):
            parts.append(part)
        return b"".join(parts)

    def _write(self, line: bytes) -> None:
        try:
            append(self._file, line, os.lseek(self._file, 0, os.SEEK_CUR))
        except OSError as error:
            raise OutputError(
                f"{_failed(self.path, error)}; the results before are kept"
            ) from error


def read_results(path: str | Path, header: Header) -> dict[Key, Outcome]:
    """The outcomes in a file, once it is known to be of `header`; none where there is no file.

    Raises:
        InputError: it is of another task, pair or setting, or damaged. OutputError: unreadable.
    """
    path = Path(path)
    try:
        _refuse_special(path)
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _failed(path, error) from error
    return _outcomes(path, data, header)


def _refuse_special(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is not a plain file: results cannot be kept there")


def _outcomes(path: Path, data: bytes, header: Header) -> dict[Key, Outcome]:
    """The outcomes in what a file holds; raises as :func:`read_results` does."""
    data = data[: _whole_lines(data)]
    if not data:
        return {}
    first, *lines = data.removesuffix(b"\n").split(b"\n")
    _check(path, first, header)
    outcomes: dict[Key, Outcome] = {}
    for number, line in enumerate(lines, 2):
        try:
            value, outcome = _read_line(line)
            outcomes.setdefault((value, outcome.item), outcome)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: damaged result; {_MEND}") from error
    return outcomes


def _whole_lines(data: bytes) -> int:
    """Bytes up to the last whole line; 0 of a header that is half-written.

    A file that is nobody's results keeps all its bytes: it is refused by its first line.
    """
    end = data.rfind(b"\n") + 1
    ours = data.startswith(_START) or _START.startswith(data)
    return end if end or ours else len(data)


def _check(path: Path, first: bytes, header: Header) -> None:
    try:
        found = json.loads(first)
        ours = found["results"] == KIND and isinstance(found["task"], dict)
        known, wanted = dict(found["settings"]), json.loads(header.line())["settings"]
        facts = found["task"], found["pair"], found["knob"], found["version"]
    except (ValueError, TypeError, KeyError, RecursionError):
        ours = False
    if not ours:
        raise InputError(f"{path} does not hold results of apd eval; {_MEND}")
    task, pair, knob, version = facts
    if version != VERSION:
        raise InputError(f"{path} was written by another version of apd; {_MEND}")
    if task.get("digest") != header.task["digest"]:
        which = f"{_said(task)}, not {_said(header.task)}"
        raise InputError(f"{path} holds results of another task ({which}); {_MEND}")
    if header.pair and pair != header.pair:
        raise InputError(f"{path} holds results of another pair ({found.get('profile')}); {_MEND}")
    if knob != header.knob:
        what = f"a sweep of {knob}" if knob else "one setting, not of a sweep"
        raise InputError(f"{path} holds results of {what}; {_MEND}")
    for name in sorted(known.keys() | wanted.keys()):
        if known.get(name) != wanted.get(name):
            raise InputError(
                f"{path} holds results of other settings ({name} = {_json(known.get(name))}, "
                f"not {_json(wanted.get(name))}); {_MEND}"
            )


def _said(task: Mapping[str, Any]) -> str:
    split = f" {task['split']}" if task.get("split") else ""
    return f"{task.get('name')}{split}, {task.get('prompts')} prompts, {task.get('scorer')}"


def _read_line(line: bytes) -> tuple[Any, Outcome]:
    record = json.loads(line)
    outcome = Outcome(**{f.name: record[f.name] for f in fields(Outcome)})
    numbers = (outcome.score, outcome.tokens, outcome.steps, outcome.seconds)
    if not all(isinstance(n, int | float) for n in numbers) or not isinstance(outcome.item, str):
        raise ValueError("wrong types")
    return record.get("value"), outcome


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, default=str) + "\n").encode()


def _json(value: Any) -> str:
    return json.dumps(value, default=str)


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason(error)}")
