"""What a generation looks like after each event: a pure fold, no terminal, no clock, no colours.

Knows nothing of tokenizers or models: a token id becomes bytes by the function it is given.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

if TYPE_CHECKING:  # decode imports torch; looking at events must not
    from apdcli.decode.types import Finished, StepEvent

    Event = StepEvent | Finished

TokenBytes = Callable[[int], bytes]
Kind = Literal["text", "draft", "mask"]
HISTORY = 16


@dataclass(frozen=True)
class Settings:
    """What the status line says about how the text is decoded, already in words.

    Attributes:
        strategy: its name.
        shown: (short name, value) in order, for example (("R", "0.7"), ("W", "16")).
    """

    strategy: str
    shown: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Cell:
    """A piece of text on the view with the step that it came from.

    Attributes:
        text: what it reads; several characters, or part of a token, never half a character.
        kind: committed text, a rejected draft, or a mask.
        step: the step that committed it; 0 for drafts, masks and given text.
        run: counts the steps that committed anything, so neighbours in time differ by one.
        clustered: in a range the strategy is working in now.
    """

    text: str
    kind: Kind = "text"
    step: int = 0
    run: int = 0
    clustered: bool = False


@dataclass(frozen=True)
class Token:
    """A committed token, numbered from the moment it was written."""

    id: int
    step: int
    run: int


class ViewState:
    """Events folded into cells.

    `settled` only grows: it is the answer up to the first mask, whole characters only, without the
    end token and what follows it, and without what may yet become a stop string. `tail()` is
    everything behind it as it looks now.
    """

    def __init__(
        self,
        token_bytes: TokenBytes,
        prompt_len: int,
        *,
        settings: Settings | None = None,
        stop_ids: frozenset[int] = frozenset(),
        skip: frozenset[int] = frozenset(),
        stop: Iterable[str] = (),
        given: Iterable[tuple[int, int]] = (),
        length: int = 0,
    ) -> None:
        """Args:
        token_bytes: the exact bytes of a token.
        prompt_len: the position of the first token shown.
        settings: for the status line.
        stop_ids: ids that end the text.
        skip: ids that write nothing (special tokens).
        stop: strings that end the text, themselves left out.
        given: (position, id) of text that is there from the start (infilling).
        length: up to which position something will stand, where that is known from the start
            (infilling); 0: it is not.
        """
        self.settings = settings or Settings("")
        self.settled: list[Cell] = []
        self.history: deque[tuple[int, int]] = deque(maxlen=HISTORY)  # (accepted, run)
        self.accepted: list[int] = []
        self.step = 0
        self.elapsed_s = 0.0
        self.phase = ""
        self.finished: Finished | None = None
        self._bytes = token_bytes
        self._hidden = skip | stop_ids
        self._stop_ids = stop_ids
        self._stop = tuple(s for s in stop if s)
        self._tokens = {position: Token(id_, 0, 0) for position, id_ in given}
        self._given = len(self._tokens)
        self._length = length
        self._run = 0
        self._cursor = prompt_len
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held: list[Cell] = []  # may yet become a stop string
        self._ended = False
        self._stop_at: int | None = None
        self._clusters: tuple[tuple[int, int], ...] = ()
        self._rejected: dict[int, int] = {}

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(cell.text for cell in self.settled)

    @property
    def tokens(self) -> int:
        """Tokens generated, up to and including the end token; given text does not count."""
        end = self._stop_at
        if end is None:
            return len(self._tokens) - self._given
        return sum(position <= end and token.step > 0 for position, token in self._tokens.items())

    @property
    def tokens_per_step(self) -> float:
        return self.tokens / self.step if self.step else 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    def apply(self, event: Event) -> None:
        """Fold one event in."""
        if hasattr(event, "reason"):
            self._finish(cast("Finished", event))
        else:
            self._step(event)

    def tail(self) -> list[Cell]:
        """What stands behind the settled text now: text after gaps, drafts and masks."""
        cells = list(self._held)
        if not self._ended and self.finished is None:
            cells.extend(self._ahead())
        return cells

    def _step(self, event: StepEvent) -> None:
        self.step = event.step
        self.elapsed_s = event.elapsed_s
        self.phase = event.phase
        self._clusters = event.clusters
        self._rejected = dict(event.rejected)
        self._run += bool(event.committed)
        self.history.append((event.accepted, self._run))
        self.accepted.append(event.accepted)
        for position, id_ in event.committed:
            self._tokens[position] = Token(id_, event.step, self._run)
            if id_ in self._stop_ids and (self._stop_at is None or position < self._stop_at):
                self._stop_at = position
        self._advance()

    def _finish(self, event: Finished) -> None:
        self.finished = event
        self.step = event.steps
        self.elapsed_s = event.elapsed_s
        self.close()

    def close(self) -> None:
        """No more events come: bytes that wait for the rest of a character become U+FFFD."""
        self._rejected = {}
        self._clusters = ()
        if self._ended:
            return
        last = self._held[-1] if self._held else (self.settled[-1] if self.settled else Cell(""))
        rest = self._decoder.decode(b"", final=True)
        self._hold(Cell(rest, "text", last.step, last.run))
        self.settled += self._held
        self._held = []
        self._ended = True

    def _advance(self) -> None:
        while not self._ended and (token := self._tokens.get(self._cursor)) is not None:
            self._cursor += 1
            if token.id in self._stop_ids:
                self.close()
            elif token.id not in self._hidden:
                text = self._decoder.decode(self._bytes(token.id))
                self._hold(Cell(text, "text", token.step, token.run))

    def _hold(self, cell: Cell) -> None:
        """Settle what can no longer be part of a stop string."""
        if cell.text:
            self._held.append(cell)
        waiting = "".join(held.text for held in self._held)
        cuts = [waiting.find(s) for s in self._stop if s in waiting]
        keep = max((_overlap(waiting, s) for s in self._stop), default=0)
        settle = min(cuts) if cuts else len(waiting) - keep
        while settle > 0:
            head = self._held.pop(0)
            settle -= len(head.text)
            if settle < 0:
                rest = Cell(head.text[settle:], head.kind, head.step, head.run)
                self._held.insert(0, rest)
                head = Cell(head.text[:settle], head.kind, head.step, head.run)
            self.settled.append(head)
        if cuts:
            self._held = []
            self._ended = True

    def _ahead(self) -> Iterator[Cell]:
        """Cells from the first mask to the last position that anything is known about.

        That something will stand there is to know something of it.
        """
        known = [p + 1 for p in (*self._tokens, *self._rejected)]
        end = max((self._length, *known, *(right for _, right in self._clusters)))
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate(self._decoder.getstate())  # a draft may complete the waiting character
        after_gap = False
        for position in range(self._cursor, end):
            clustered = any(left <= position < right for left, right in self._clusters)
            token = self._tokens.get(position)
            id_ = self._rejected.get(position) if token is None else token.id
            if id_ is None:
                decoder.reset()
                after_gap = True
                yield Cell("\u2591", "mask", clustered=clustered)
                continue
            if id_ in self._stop_ids:
                return
            data = b"" if id_ in self._hidden else self._bytes(id_)
            if after_gap:
                data = _without_orphans(data)
                after_gap = False
            text = decoder.decode(data)
            if not text:
                continue
            if token is None:
                yield Cell(text, "draft", clustered=clustered)
            else:
                yield Cell(text, "text", token.step, token.run, clustered)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if stop.startswith(text[-n:])), 0)


def _without_orphans(data: bytes) -> bytes:
    """Drop up to three leading continuation bytes: their character starts under a mask."""
    start = 0
    while start < min(3, len(data)) and 0x80 <= data[start] <= 0xBF:
        start += 1
    return data[start:]
