"""Conversations on disk: one JSON file each, in the platform's data folder, whole or not at all.

A file is written beside its target, flushed to the disk and renamed over it: whoever is killed in
the middle leaves the file as it was after the last turn. A damaged file is reported and never
written over. Knows no models.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from apdcli.chat.session_names import LONGEST, check_name, is_automatic, is_name
from apdcli.errors import InputError, OutputError, UsageError, reason
from apdcli.load.home import home_path
from apdcli.load.profile import nearest

FORMAT, VERSION = "apd-session", 1
_SUFFIX, _TEMPORARY = ".json", ".part"
_STALE_S = 3600.0
_LOCK_S = 10.0  # a save takes milliseconds
_DAMAGED = "the session {} is damaged: {}; it is left as it is: mend or delete it, or begin another"
_MOST_S = 2.0**37  # a date after the year 6000 is none


@dataclass(frozen=True)
class Turn:
    """One message and its answer, as they are kept.

    Attributes:
        message: what the model was given, files included.
        answer: what it said; of an interrupted answer, as far as it came.
        typed: what the user typed, where that is not the whole message.
        reason: "stop", "length" or "interrupted".
        accepted: tokens of each step.
        seconds: of decoding.
        seed: that the answer was drawn with.
        strategy: that decoded it.
    """

    message: str
    answer: str
    typed: str | None = None
    reason: str = "stop"
    accepted: tuple[int, ...] = ()
    seconds: float = 0.0
    seed: int = 0
    strategy: str = ""

    @property
    def shown(self) -> str:
        """What the user typed."""
        return self.message if self.typed is None else self.typed

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return sum(self.accepted)


@dataclass
class Session:
    """A conversation as it is on disk.

    Attributes:
        name: the file's, without .json.
        profile: whose models answer.
        system: the system message, None for the profile's own.
        settings: what the user set, by parameter name.
        turns: everything that was said.
        left_out: how many of the oldest turns the models do not see.
        created, updated: seconds since the epoch.
        markdown: answers settle as Markdown.
    """

    name: str
    profile: str = "demo"
    system: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    left_out: int = 0
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    markdown: bool = False


@dataclass(frozen=True)
class Entry:
    """A line of the list of sessions; `problem` is what makes the file unusable, or None."""

    name: str
    turns: int
    updated: float
    first: str
    problem: str | None = None


class Store:
    """The folder of sessions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[int, int, int]] = {}  # what our own last look found

    def path(self, name: str) -> Path:
        """The file of a session.

        Raises:
            UsageError: the name is not one.
        """
        return self.folder / (check_name(name) + _SUFFIX)

    def names(self) -> list[str]:
        """The names of all sessions, the one that was changed last first."""
        with contextlib.suppress(OSError):
            found = [p for p in self.folder.glob(f"*{_SUFFIX}") if is_name(p.stem)]
            return [p.stem for p in sorted(found, key=_changed, reverse=True)]
        return []

    def entries(self) -> Iterator[Entry]:
        """Every session in that order, damaged ones with what is wrong."""
        for name in self.names():
            try:
                session = self._read(name)
            except InputError as error:
                yield Entry(name, 0, _changed(self.path(name)), "", str(error))
                continue
            first = session.turns[0].shown if session.turns else ""
            yield Entry(name, len(session.turns), session.updated, first)

    def fresh_name(self, base: str | None = None) -> str:
        """A name that no session has: from the time, or from another name."""
        base = base or datetime.now().strftime("%Y-%m-%d-%H%M%S")
        number, name = 1, base
        while self.path(name).exists():
            number += 1
            ending = f"-{number}"
            name = base[: LONGEST - len(ending)] + ending
        return name

    def has(self, name: str) -> bool:
        """Whether there is a session of that name; raises UsageError, InputError as `load`."""
        path = self.path(name)
        try:
            return path.exists()
        except OSError as error:
            raise InputError(f"cannot read {path}: {reason(error)}") from error

    def load(self, name: str | None = None) -> Session:
        """A session by name; None takes the one that was changed last.

        Raises:
            UsageError: not a name, or no such session (the nearest are listed).
            InputError: the file is damaged; it is left as it is.
        """
        if name is None:
            names = self.names()
            if not names:
                raise UsageError(f"there is no session to resume yet (in {self.folder})")
            name = names[0]
        path = self.path(name)
        if not self.has(name):
            known = self.names()
            hint = nearest(name, known) or "there are: " + (", ".join(known[:5]) or "none yet")
            raise UsageError(f"no session is called {name!r}; {hint}")
        session = self._read(name)
        self._seen[name] = _mark(path)
        return session

    def save(self, session: Session) -> str | None:
        """Write a session, whole or not at all.

        Returns:
            None, or the name that it was given because another `apd` had changed the file since.

        Raises:
            OutputError: the disk is full, the folder cannot be written.
        """
        path, renamed = self.path(session.name), None
        try:
            with self._alone():
                if path.exists() and _mark(path) != self._seen.get(session.name):
                    renamed = session.name = self.fresh_name(session.name)
                    path = self.path(renamed)
                session.updated = time.time()
                record = {"format": FORMAT, "version": VERSION, **asdict(session)}
                text = json.dumps(record, ensure_ascii=True, indent=1) + "\n"
                self._write(path, text.encode("ascii"))
                self._seen[session.name] = _mark(path)
        except OSError as error:
            raise OutputError(
                f"the conversation cannot be saved: {path}: {reason(error)}"
            ) from error
        return renamed

    def rename(self, session: Session, name: str) -> None:
        """Give a session another name, on disk too; what the user has named stays as well.

        Raises:
            UsageError: not a name, or another session has it.
            OutputError: it cannot be written; it keeps its name.
        """
        path = self.path(name)
        if name == session.name:
            return
        if path.exists():
            raise UsageError(f"there is a session called {name!r} already; choose another name")
        old, session.name = self.path(session.name), name
        before = self._seen.pop(old.stem, None)
        try:
            self.save(session)
        except OutputError:
            session.name = old.stem
            if before is not None:
                self._seen[old.stem] = before
            raise
        ours = before is not None and old.exists() and _mark(old) == before
        if ours and is_automatic(old.stem):
            old.unlink()

    def _read(self, name: str) -> Session:
        path = self.path(name)
        try:
            record = json.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {reason(error)}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(_DAMAGED.format(path, "not JSON")) from error
        try:
            return _session(name, record)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(_DAMAGED.format(path, "not as apd writes it")) from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Within it no other `apd` looks which names are free, or writes; raises OSError.

        Where the file system has no locks, or another holds this one for long, it does without:
        a session that was changed in between is still seen to be another's, but not at the same
        instant.
        """
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(self.folder / ".lock", timeout=_LOCK_S, mode=0o600)
        with contextlib.suppress(Timeout, NotImplementedError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _write(self, path: Path, data: bytes) -> None:
        self._sweep()
        descriptor, temporary = tempfile.mkstemp(
            dir=self.folder, prefix=f".{path.stem}.", suffix=_TEMPORARY
        )
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)

    def _sweep(self) -> None:
        """Remove what killed processes left half written."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f".*{_TEMPORARY}"):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    path.unlink()


def data_folder(environ: Mapping[str, str]) -> Path:
    """Where apd keeps the user's data; APD_DATA_DIR replaces the platform's folder."""
    import platformdirs

    own = environ.get("APD_DATA_DIR")
    return home_path(own) if own else platformdirs.user_data_path("apd", False)


def user_store(environ: Mapping[str, str]) -> Store:
    """The user's own sessions."""
    return Store(data_folder(environ) / "sessions")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _mark(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _sync_folder(folder: Path) -> None:
    """So that the new name, too, survives a loss of power."""
    with contextlib.suppress(OSError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _session(name: str, record: Any) -> Session:
    """The session of a parsed file; ValueError, TypeError or KeyError when it is not one.

    Raises:
        InputError: it is one of a later format.
    """
    _require(record["format"] == FORMAT and _typed(record["version"], int) >= 1)
    if record["version"] > VERSION:
        raise InputError(f"the session {name} was written by a newer apd; update apd to go on")
    turns = [_turn(turn) for turn in record["turns"]]
    session = Session(
        name=name,
        profile=_typed(record["profile"], str),
        system=_typed(record["system"], str, type(None)),
        settings={_typed(k, str): v for k, v in _typed(record["settings"], dict).items()},
        turns=turns,
        left_out=_typed(record["left_out"], int),
        created=_seconds(record["created"]),
        updated=_seconds(record["updated"]),
        markdown=_typed(record.get("markdown", False), bool),  # earlier files have none
    )
    _require(0 <= session.left_out <= len(turns))
    return session


def _turn(record: Any) -> Turn:
    known = {f.name for f in fields(Turn)}
    turn = Turn(**{**{k: v for k, v in record.items() if k in known}, "accepted": ()})
    for text in (turn.message, turn.answer, turn.reason, turn.strategy, turn.typed or ""):
        _typed(text, str)
    accepted = tuple(_typed(count, int) for count in record["accepted"])
    _require(all(count >= 0 for count in accepted))
    seconds, seed = _seconds(turn.seconds), _typed(turn.seed, int)
    return Turn(
        turn.message,
        turn.answer,
        turn.typed,
        turn.reason,
        accepted,
        seconds,
        seed,
        turn.strategy,
    )


def _seconds(value: Any) -> float:
    _require(type(value) in (int, float) and 0 <= value < _MOST_S)  # NaN is not, either
    return float(value)


def _typed(value: Any, *kinds: type) -> Any:
    _require(type(value) in kinds)
    return value


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not as a session is written")
