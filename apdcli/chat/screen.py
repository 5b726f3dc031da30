"""What the chat says beside the answers: notes, errors, tables, pictures of numbers.

Everything goes through one writer that makes it safe: file names, session names and old messages
are no more to be trusted than a model's answer. Knows no commands.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from apdcli.render.palette import Look, Palette, depth_of
from apdcli.render.safe import visible
from apdcli.render.summary import sparkline, summary_text
from apdcli.render.text import width
from apdcli.render.words import wrapped_text
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.chat.sessions import Turn
    from apdcli.render.terminal import Output, Size

PROMPT = ">>> "
_MOST_CLIPBOARD = 74_994  # bytes: base64 of it is what xterm takes, 99,992 characters
_WORST_BARS = 8  # columns for the bars, however narrow the terminal


class Screen:
    """The terminal below the prompt."""

    def __init__(self, out: Output, size: Size, environ: Mapping[str, str]) -> None:
        self.out = out
        self.size = size
        self.palette = Palette(depth_of(environ))
        self._plain = environ.get("TERM", "") in ("", "dumb", "unknown")  # no escapes at all

    @property
    def columns(self) -> int:
        """The terminal's width."""
        return max(2, self.size()[0])

    def say(self, text: str) -> None:
        """Something that was asked for, in the terminal's own colours, in lines of whole words."""
        self._lines(wrapped_text(text, self.columns), Look())

    def note(self, text: str) -> None:
        """A dim remark."""
        self._wrapped(text, self.palette.quiet)

    def error(self, text: str) -> None:
        """What went wrong, in one line."""
        self._wrapped(" ".join(text.splitlines()), Look(bold=True))

    def echo(self, text: str) -> None:
        """A message as it stood at the prompt."""
        first, *rest = text.split("\n")
        lines = [PROMPT + first, *("... " + line for line in rest)]
        self._lines("\n".join(lines), Look(bold=True))

    def paint(self, text: str, look: Look) -> str:
        """Safe text with the escape codes of a look, where the terminal knows any."""
        return text if self._plain else self.palette.paint(text, look)

    def raw(self, text: str) -> None:
        """Escape codes of our own making; untrusted text must be safe already."""
        self.out.write(text)
        self.out.flush()

    def table(self, rows: Iterable[tuple[str, str]]) -> None:
        """Two columns; the second starts at one place and wraps under itself."""
        safe = [(visible(left), visible(right)) for left, right in rows]
        indent = min(max((width(left) for left, _ in safe), default=0) + 2, self.columns // 2)
        room = max(8, self.columns - indent - 1)
        for left, right in safe:
            first, *rest = wrapped(right, room)
            if width(left) + 2 > indent:  # too long for its column: a row of its own
                self._lines(left, Look())
                left = ""
            self._row(left + " " * (indent - width(left)), first)
            for line in rest:
                self._row(" " * indent, line)

    def _wrapped(self, text: str, look: Look) -> None:
        lines = [wrapped(line, self.columns - 1) for line in visible(text).split("\n")]
        self._lines("\n".join(itertools.chain.from_iterable(lines)), look)

    def _row(self, left: str, right: str) -> None:
        self.raw(left + self.paint(right, self.palette.quiet) + "\r\n")

    def _lines(self, text: str, look: Look) -> None:
        lines = visible(text).split("\n")
        self.raw("".join(self.paint(line, look) + "\r\n" for line in lines))


def wrapped(text: str, columns: int) -> list[str]:
    """Text cut at spaces into lines of at most `columns`; words that are longer stay whole."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined) <= columns or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def answer_line(turn: Turn) -> str:
    """How the answer was made, in the words of `apd generate`'s summary."""
    return summary_text(turn.tokens, len(turn.accepted), turn.seconds, turn.reason)


def stats_lines(turns: Sequence[Turn], columns: int) -> list[str]:
    """Tokens of each step as bars, a row an answer, and the whole in the last row."""
    numbered = [(number, turn) for number, turn in enumerate(turns, 1) if turn.accepted]
    if not numbered:
        return ["nothing was generated yet"]
    digits = len(str(numbered[-1][0]))
    ends = [
        f"{t.tokens / len(t.accepted):.1f} a step, {plural(t.tokens, 'token')}" for _, t in numbered
    ]
    room = max(_WORST_BARS, columns - digits - 4 - max(map(len, ends)) - 1)
    bars = [sparkline(_squeezed(turn.accepted, room)) for _, turn in numbered]
    wide = max(map(len, bars))
    lines = [
        f"{number:>{digits}}  {bar:<{wide}}  {end}"
        for (number, _), bar, end in zip(numbered, bars, ends, strict=True)
    ]
    tokens = sum(turn.tokens for _, turn in numbered)
    steps = sum(len(turn.accepted) for _, turn in numbered)
    seconds = sum(turn.seconds for _, turn in numbered)
    speed = f", {tokens / seconds:.0f} tokens/s" if seconds > 0 else ""
    whole = (
        f"{plural(tokens, 'token')} in {plural(steps, 'step')}: {tokens / steps:.2f} a step{speed}"
    )
    legend = "each bar is a step, its height the tokens taken at once (full: 8 or the most)"
    return [*lines, *wrapped(whole, columns - 1), *wrapped(legend, columns - 1)]


def _squeezed(counts: Sequence[int], columns: int) -> list[int]:
    """At most `columns` numbers: means of neighbours where there are more."""
    if len(counts) <= columns:
        return list(counts)
    edges = [round(at * len(counts) / columns) for at in range(columns + 1)]
    return [max(1, round(sum(counts[a:b]) / (b - a))) for a, b in itertools.pairwise(edges)]


def clipboard_code(text: str) -> str | None:
    """The escape sequence that puts a text on the terminal's clipboard; None if it is too long.

    OSC 52: the terminal, not a program beside it, holds the clipboard, so it works over ssh too.
    """
    data = text.encode("utf-8", "replace")
    if len(data) > _MOST_CLIPBOARD:
        return None
    return f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07"
