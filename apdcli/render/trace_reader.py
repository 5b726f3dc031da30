"""Reads a trace back: what was generated, step by step, checked line by line.

Knows no terminal, no clock, no model and no torch: a step here is what the view reads of a
StepEvent. A file that ends early is still a trace; one that is damaged inside is not played.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from apdcli.errors import InputError, reason
from apdcli.render.jsonl import FORMAT, VERSION, piece_bytes

if TYPE_CHECKING:
    from apdcli.render.state import Event, TokenBytes

_MAKE_ONE = "record one with: apd generate --trace FILE"
_REASONS = ("stop", "length", "interrupted")
_MOST_POSITIONS = 2**22  # the view walks over positions, so one far out would never end


@dataclass(frozen=True)
class Step:
    """The part of a StepEvent that the view reads; that class itself comes with torch."""

    step: int
    committed: tuple[tuple[int, int], ...]
    accepted: int
    elapsed_s: float
    rejected: tuple[tuple[int, int], ...]
    phase: str
    clusters: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class End:
    """The part of a Finished that the view reads."""

    reason: str
    steps: int
    elapsed_s: float


@dataclass(frozen=True)
class Trace:
    """A whole trace.

    Attributes:
        prompt_len: the position of the first token shown.
        settings: what the generation ran with, as the header has it.
        stop_ids, skip_ids: tokens that end the text, tokens that write nothing.
        stop: strings that end the text.
        given: (position, text) that was there from the start (infilling).
        length: up to which position something would stand, 0 where that was not known (infilling).
        events: the steps, then the end, for `ViewState.apply`.
        complete: the end is there; without it the generation was killed.
        token_bytes: the exact bytes of every token in `events`.
    """

    prompt_len: int
    settings: Mapping[str, Any]
    stop_ids: frozenset[int]
    skip_ids: frozenset[int]
    stop: tuple[str, ...]
    given: tuple[tuple[int, str], ...]
    length: int
    events: tuple[Event, ...]
    complete: bool
    token_bytes: TokenBytes

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return len(self.events) - self.complete


def read_trace(path: str | Path) -> Trace:
    """Read and check a trace file.

    Raises:
        InputError: unreadable, empty, not a trace, of another version, or damaged (which line).
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {reason(error)}") from error
    return trace_of(data, path)


def trace_of(data: bytes, name: str | Path) -> Trace:
    """Check the bytes of a trace; `name` says in messages where they come from.

    Raises:
        InputError: as `read_trace`.
    """
    if not data:
        raise InputError(f"{name} is empty: no trace; {_MAKE_ONE}")
    *lines, rest = data.split(b"\n")
    reader = _Reader(name)
    if not lines:  # killed, or not a trace, before the first newline
        reader.header(rest)
        return reader.trace()
    reader.header(lines[0])
    for number, line in enumerate(lines[1:], start=2):
        reader.line(number, line)
    if rest and reader.ended:
        reader.damaged(len(lines) + 1, "text after the end")
    return reader.trace()  # what stands behind the last newline was never finished


class _Reader:
    """Takes a trace's lines in order, and complains of the first that is wrong."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.ended = False
        self._header: dict[str, Any] = {}
        self._prompt_len = 0
        self._given: tuple[tuple[int, str], ...] = ()
        self._length = 0
        self._events: list[Step | End] = []
        self._bytes: dict[int, bytes] = {}
        self._written: set[int] = set()

    def header(self, line: bytes) -> None:
        """The first line."""
        try:
            header = json.loads(line)
        except (ValueError, RecursionError):
            header = None
        if header is None and line.startswith(b'{"format": "%s"' % FORMAT.encode()):
            self.damaged(1, "it breaks off, so there is nothing to play")
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(f"{self.path} is not a trace of apd; {_MAKE_ONE}")
        if header.get("version") != VERSION:
            raise InputError(
                f"{self.path} is a trace of version {header.get('version')!r} "
                f"and this apd plays version {VERSION}; {_MAKE_ONE}"
            )
        self._header = header
        try:
            self._prompt_len = _position(header["prompt_len"])
            given = [(_position(p), _text(t)) for p, t in header.get("given", ())]
            self._given = tuple(given)
            self._length = _position(header.get("length", 0))
            self._written = {position for position, _ in given}
            _require(isinstance(header.get("settings", {}), dict))
        except _WRONG as error:
            self.damaged(1, "the header is not complete", error)

    def line(self, number: int, line: bytes) -> None:
        """Any line after it."""
        if self.ended:
            self.damaged(number, "text after the end")
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            self.damaged(number, "not JSON", error)
        try:
            if record["event"] == "finished":
                self._end(record)
            else:
                _require(record["event"] == "step")
                self._step(record)
        except _WRONG as error:
            self.damaged(number, "not a step that follows the ones before", error)

    def damaged(self, number: int, why: str, cause: Exception | None = None) -> NoReturn:
        """Raise InputError naming the line."""
        raise InputError(f"{self.path} is damaged: line {number}: {why}") from cause

    def trace(self) -> Trace:
        """Everything that was read."""
        header = self._header

        def ids(name: str) -> frozenset[int]:
            return frozenset(_list(header.get(name, []), int))

        try:
            return Trace(
                self._prompt_len,
                header.get("settings", {}),
                ids("stop_ids"),
                ids("skip_ids"),
                tuple(_list(header.get("stop", []), str)),
                self._given,
                self._length,
                # they have what the view reads of an event
                cast("tuple[Event, ...]", tuple(self._events)),
                self.ended,
                self._bytes.__getitem__,
            )
        except _WRONG as error:
            self.damaged(1, "the header is not complete", error)

    def _step(self, record: Mapping[str, Any]) -> None:
        step = Step(
            step=record["step"],
            committed=_pairs(record["committed"]),
            accepted=record["accepted"],
            elapsed_s=_seconds(record["elapsed_s"]),
            rejected=_pairs(record["rejected"]),
            phase=_text(record["phase"]),
            clusters=_pairs(record["clusters"]),
        )
        _require(step.step == len(self._events) + 1)
        _require(step.accepted == len(step.committed))
        _require(all(end < _MOST_POSITIONS for _, end in step.clusters))
        positions = [position for position, _ in step.committed]
        _require(len(set(positions)) == len(positions) and self._written.isdisjoint(positions))
        self._written.update(positions)
        self._learn(step.committed, record["pieces"])
        self._learn(step.rejected, record["rejected_pieces"])
        self._events.append(step)

    def _learn(self, tokens: Iterable[tuple[int, int]], pieces: Any) -> None:
        for (_, id_), piece in zip(tokens, pieces, strict=True):
            self._bytes[id_] = piece_bytes(piece)

    def _end(self, record: Mapping[str, Any]) -> None:
        end = End(record["reason"], record["steps"], _seconds(record["elapsed_s"]))
        _require(end.reason in _REASONS and end.steps == len(self._events))
        self._events.append(end)
        self.ended = True


_WRONG = (ValueError, TypeError, KeyError, AttributeError)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError("not as a trace is written")


def _position(value: Any) -> int:
    _require(type(value) is int and 0 <= value < _MOST_POSITIONS)
    return int(value)


def _pairs(value: Any) -> tuple[tuple[int, int], ...]:
    """[[position, number], ...], none negative."""
    pairs = tuple((_position(p), n) for p, n in value)
    _require(all(type(n) is int and n >= 0 for _, n in pairs))
    return pairs


def _seconds(value: Any) -> float:
    _require(type(value) in (int, float) and 0 <= value < 1e9)  # NaN is not, either
    return float(value)


def _text(value: Any) -> str:
    _require(isinstance(value, str))
    value.encode("utf-8")  # a lone surrogate could not be printed
    return str(value)


def _list(value: Any, kind: Callable[..., Any]) -> list[Any]:
    _require(isinstance(value, list) and all(type(item) is kind for item in value))
    return list(value)
