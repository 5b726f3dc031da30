"""Where the answers to many prompts go: standard output, or a file that a later run goes on with.

A line is written whole and at once, so what a killed run leaves is finished lines and at most one
half line, which is recognized by how it must begin. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from apdcli.cli.context import Context
from apdcli.cli.lines import Line
from apdcli.errors import OutputError, UsageError, reason
from apdcli.load.appending import append, lock
from apdcli.render.output_file import given_descriptor, write_all

_PLACES = ("device", "dtype", "engine")  # another machine may go on
_DTYPES = ("denoiser_dtype", "verifier_dtype")  # as asked for; "auto" is the machine's own


class Answers(Protocol):
    """A place for answers."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one answer, whole."""


class StreamedAnswers:
    """Answers to standard output."""

    def __init__(self, context: Context) -> None:
        self._context = context
        _ = context.out  # closed: say so before the work

    def write(self, record: Mapping[str, Any]) -> None:
        self._context.print(json.dumps(record))


class AnswersFile:
    """Answers to a file, after those that it holds already; a context manager.

    Where the path names an open file (/dev/stdout), answers are added to it and nothing is read.

    Attributes:
        finished: the answers that it holds.
        streams: it is such an open file, which no later run goes on with.
    """

    def __init__(self, path: str) -> None:
        """Open it, or make it; nothing is changed before `begin`.

        Raises:
            OutputError: it cannot be written, or another process writes to it.
            UsageError: it holds something else than answers.
        """
        self.path = path
        existed = Path(path).exists()
        self._rest = b""
        self._good = 0
        self.finished: list[dict[str, Any]] = []
        try:
            given = given_descriptor(path)
            self.streams = given is not None
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666) if given is None else given
        except OSError as error:
            raise _failed(path, error) from error
        self._fresh = not existed and not self.streams
        if self.streams:
            return
        try:
            if not lock(self._file) or self._removed():
                raise OutputError(f"another apd is writing to {self.path}")
            if Path(path).is_file():
                self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> AnswersFile:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        empty = self._fresh and error is not None and not self._good
        if empty and os.name != "nt":  # once it is not locked it may be another's
            Path(self.path).unlink(missing_ok=True)
        os.close(self._file)
        if empty and os.name == "nt":  # which removes no open file, and knows no lock
            Path(self.path).unlink(missing_ok=True)

    def _removed(self) -> bool:
        """Whether the path names another file by now, or none."""
        try:
            return not os.path.samestat(os.fstat(self._file), os.stat(self.path))  # noqa: PTH116
        except FileNotFoundError:
            return True

    def check(self, place: int, line: Line, settings: Mapping[str, Any] | None) -> None:
        """See that the answer at `place` is one to this line with these settings.

        Args:
            settings: as --json has them; None where the line was not understood.

        Raises:
            UsageError: it is not.
        """
        record = self.finished[place]
        mend = "name another --output, or remove it to begin anew"
        if any(record.get(key) != value for key, value in line.head.items()):
            raise UsageError(
                f"{self.path} answers another input: its line {place + 1} is no answer to "
                f"line {line.number} of this one; {mend}"
            )
        if settings is None or "error" in record:
            return
        before, now = comparable(record.get("settings")), comparable(settings)
        changed = [name for name in (*now, *before) if before.get(name) != now.get(name)]
        if changed:
            old, new = before.get(changed[0]), now.get(changed[0])
        else:
            changed, old, new = _other_dtype(record.get("settings", {}), settings)
        if changed:
            raise UsageError(
                f"{self.path} was made with {changed[0]} = {json.dumps(old)}, and now it is "
                f"{json.dumps(new)} (line {line.number}); {mend}"
            )

    def begin(self, following: Line | None) -> None:
        """Take away the half-written line at its end: it must be that of the line to answer next.

        Raises:
            UsageError: it is something else.
        """
        if not self._rest:
            return
        if following is not None:
            head = json.dumps(following.head)[:-1].encode()
            if self._rest[: len(head)] == head[: len(self._rest)]:
                os.ftruncate(self._file, self._good)
                self._rest = b""
                return
        raise self._strange(len(self.finished) + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add one answer.

        Raises:
            OutputError: the disk is full, or the like; what was finished stays.
        """
        line = json.dumps(record).encode("ascii") + b"\n"
        try:
            if self.streams:
                write_all(self._file, line)
            else:
                append(self._file, line, self._good)
        except OSError as error:
            raise _failed(self.path, error) from error
        self._good += len(line)

    def _read(self) -> None:
        with os.fdopen(os.dup(self._file), "rb") as file:
            for number, data in enumerate(file, start=1):
                if not data.endswith(b"\n"):
                    self._rest = data
                    break
                self.finished.append(self._answer(data, number))
                self._good += len(data)
        os.lseek(self._file, self._good, os.SEEK_SET)

    def _answer(self, data: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not {"line", "input"} <= record.keys():
            raise self._strange(number)
        settings = record.get("settings", {})
        if not isinstance(settings, dict) or not all(
            isinstance(entry, dict) and "value" in entry for entry in settings.values()
        ):
            raise self._strange(number)
        return record

    def _strange(self, number: int) -> UsageError:
        return UsageError(
            f"{self.path} holds something else than answers to --input (its line {number}), "
            "and is left as it is; name another --output"
        )


def comparable(settings: Any) -> dict[str, Any]:
    """The values that decide what an answer is, of settings as --json has them."""
    table = json.loads(json.dumps(settings, default=str)) if isinstance(settings, dict) else {}
    table.setdefault("raw", {"value": False})  # as in files of versions that did not tell
    return {
        name: entry["value"]
        for name, entry in table.items()
        if not name.endswith(_PLACES) and not (name == "seed" and entry.get("from") == "default")
    }


def _other_dtype(
    made: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[list[str], Any, Any]:
    """Which dtype was asked for differently (none, or its name), what was asked, and what is now.

    Left to itself it is the machine's, and another machine may go on. What somebody asks for is
    kept: in another dtype the same line may get another text. To ask for what "auto" came to is
    no change.
    """
    for name in _DTYPES:
        old, new = (table.get(name, {}).get("value") for table in (made, settings))
        came_to = made.get("dtype", {}).get("value") if old == "auto" else old
        if None not in (old, new) and new not in (old, came_to):
            return [name], came_to, new
    return [], None, None


def _failed(path: str, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason(error)}")
