"""Terminals, clocks and events that the tests of render share."""

from __future__ import annotations

import io
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyte
from wcwidth import wcwidth

from apdcli.decode.types import Finished, StepEvent
from apdcli.render import LiveView, Settings, ViewState
from apdcli.render.terminal import Terminal

PROMPT_LEN = 10
COLOUR = {"TERM": "xterm-256color"}
NO_COLOUR = {"TERM": "xterm-256color", "NO_COLOR": "1"}


class Vocabulary:
    """Ids 0.. are the given pieces; the one after them ends the text."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)
        self.end = len(self.pieces)

    def __call__(self, id_: int) -> bytes:
        return b"<|end|>" if id_ == self.end else self.pieces[id_]

    def state(self, **kwargs: object) -> ViewState:
        defaults: dict[str, object] = {
            "stop_ids": frozenset([self.end]),
            "settings": Settings("apd", (("R", "0.7"), ("W", "16"), ("M", "100"))),
        }
        return ViewState(self, PROMPT_LEN, **(defaults | kwargs))  # type: ignore[arg-type]


def split(data: bytes, seed: int = 0, most: int = 6) -> list[bytes]:
    """Tokens of 1 to `most` bytes, wherever that cuts."""
    rng = random.Random(seed)
    out = []
    while data:
        n = rng.randint(1, most)
        out.append(data[:n])
        data = data[n:]
    return out


def step(
    number: int,
    committed: Iterable[tuple[int, int]],
    *,
    rejected: Iterable[tuple[int, int]] = (),
    phase: str = "",
    clusters: tuple[tuple[int, int], ...] = (),
) -> StepEvent:
    """An event; positions count from the first generated token."""
    committed = tuple((PROMPT_LEN + p, i) for p, i in committed)
    rejected = tuple((PROMPT_LEN + p, i) for p, i in rejected)
    return StepEvent(
        step=number,
        committed=committed,
        proposed=len(committed) + len(rejected),
        accepted=len(committed),
        masked_left=0,
        denoiser_forwards=number,
        verifier_forwards=number,
        tokens_forwarded=number * 20,
        elapsed_s=number * 0.1,
        rejected=rejected,
        phase=phase,
        clusters=tuple((PROMPT_LEN + a, PROMPT_LEN + b) for a, b in clusters),
    )


def finished(steps: int, reason: str = "stop") -> Finished:
    return Finished(reason, steps, steps, steps, steps * 20, steps * 0.1)  # type: ignore[arg-type]


def apd_events(
    vocabulary: Vocabulary, seed: int = 0, drafts: int = 20
) -> Iterator[StepEvent | Finished]:
    """Left to right, several tokens a step, a draft of wrong and right tokens behind."""
    rng = random.Random(seed)
    at, number, end = 0, 0, vocabulary.end
    while at <= end:
        number += 1
        take = min(end + 1 - at, rng.choice([1, 1, 2, 3, 5, 8]))
        behind = range(at + take, at + take + rng.randrange(drafts + 1))
        rejected = [(p, rng.randrange(end)) for p in behind] if at + take <= end else []
        yield step(number, [(p, p) for p in range(at, at + take)], rejected=rejected)
        at += take
    yield finished(number)


def any_order_events(vocabulary: Vocabulary, seed: int = 0) -> Iterator[StepEvent | Finished]:
    """In any order, with clusters and phases."""
    rng = random.Random(seed)
    left = list(range(vocabulary.end + 1))
    number = 0
    while left:
        number += 1
        pick = rng.sample(left, min(len(left), rng.choice([1, 2, 3])))
        left = [p for p in left if p not in pick]
        cluster = ((left[0], left[0] + 4),) if left else ()
        phase = "divide" if number % 3 else "conquer"
        yield step(number, [(p, p) for p in sorted(pick)], phase=phase, clusters=cluster)
    yield finished(number)


class Clock:
    """Advances by `tick` each time it is read."""

    def __init__(self, tick: float = 1.0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now

    def pass_(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds


class Screen(pyte.HistoryScreen):
    """pyte, with wide and combining characters as real terminals place them."""

    def draw(self, data: str) -> None:
        for character in data:
            if wcwidth(character) == 2 and self.cursor.x == self.columns - 1:
                self.cursor.x = self.columns  # no half of it fits: wrap
            if unicodedata.combining(character) and self.cursor.x:
                row = self.buffer[self.cursor.y]
                at = self.cursor.x - (1 if row[self.cursor.x - 1].data else 2)
                joined = unicodedata.normalize("NFC", row[at].data + character)
                row[at] = row[at]._replace(data=joined)
                continue
            super().draw(character)


class FakeTerminal:
    """A terminal emulator with scrollback; `sent` is everything that was written to it."""

    def __init__(self, columns: int = 80, lines: int = 24) -> None:
        self.screen = Screen(columns, lines, history=10_000, ratio=0.5)
        self._stream = pyte.Stream(self.screen)
        self.sent = ""

    def write(self, text: str) -> int:
        self.sent += text
        self._stream.feed(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True

    def size(self) -> tuple[int, int]:
        return self.screen.columns, self.screen.lines

    def resize(self, columns: int, lines: int) -> None:
        self.screen.resize(lines, columns)

    def rows(self) -> list[str]:
        """Scrollback and screen, without the empty rows at the end."""
        above = [
            "".join(line[x].data for x in range(self.screen.columns)).rstrip()
            for line in self.screen.history.top
        ]
        rows = above + [row.rstrip() for row in self.screen.display]
        # pyte shows a wide character's second half as an empty cell in history as on the screen
        while rows and not rows[-1]:
            rows.pop()
        return rows


def show(
    state: ViewState,
    events: Iterable[StepEvent | Finished],
    terminal: FakeTerminal,
    *,
    environ: dict[str, str] = COLOUR,
    clock: Callable[[], float] | None = None,
    each: Callable[[int], None] = lambda index: None,
    summary_to: io.StringIO | None = None,
) -> None:
    """Run the live view over the events; `each` is called before each of them."""
    target = Terminal(terminal, terminal.size, environ, clock or Clock())
    with LiveView(state, target, summary_to=summary_to) as view:
        for index, event in enumerate(events):
            each(index)
            view(event)


def typed(text: str, columns: int, lines: int) -> list[str]:
    """What the terminal shows when the text is simply printed."""
    terminal = FakeTerminal(columns, lines)
    terminal.write(text.replace("\n", "\r\n"))
    return terminal.rows()


def worded(text: str, columns: int) -> str:
    """Safe text as a terminal of that width gets it: prose ends its lines at words."""
    lines, fenced = [], False
    for line in text.split("\n"):
        lines.append(line if fenced or line[:1] in (" ", "\t") else _filled(line, columns))
        fenced ^= line.startswith("```")
    return "\n".join(lines)


def _filled(line: str, columns: int) -> str:
    filled, at = "", 0
    for blanks, word in re.findall("( *)([^ ]+)", line):
        gap = len(blanks)
        for part in re.findall("\0.|[^\0]+", re.sub("(.)", _marked, word)):
            bare = part.removeprefix("\0")
            fits = at + gap + sum(map(wcwidth, bare)) < columns
            if at and not fits and (gap or bare == part):
                filled, at = filled + "\n", 0
            else:
                filled, at = filled + " " * gap, at + gap
            gap = 0
            for character in bare:  # the terminal's own edge
                wide = wcwidth(character)
                at = at + wide if at + wide <= columns else wide
            filled += bare
    return filled


def _marked(match: re.Match[str]) -> str:
    return "\0" * (wcwidth(match[0]) == 2) + match[0]
