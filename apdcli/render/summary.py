"""The numbers of a generation in one line: the status while it runs, the summary at its end.

Knows no streams. Speeds count generated tokens up to the end token, never the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from apdcli.render.palette import Look, Palette
from apdcli.render.safe import visible
from apdcli.render.state import HISTORY, ViewState
from apdcli.render.text import width
from apdcli.words import plural

BARS = "▁▂▃▄▅▆▇█"
_SEPARATOR = "  "
_ENDS = {"length": "cut at max-tokens"}


def sparkline(counts: Iterable[int]) -> str:
    """One bar a count. Up to eight tokens a bar's height is the count itself; 0 is a dot."""
    values = list(counts)
    top = max(len(BARS), *values) if values else 1
    return "".join(BARS[(v * len(BARS) - 1) // top] if v > 0 else "·" for v in values)


def summary_line(state: ViewState) -> str:
    """The summary of what a view shows; without an end while it runs."""
    reason = "" if state.finished is None else state.finished.reason
    return summary_text(state.tokens, state.step, state.elapsed_s, reason)


def summary_text(tokens: int, steps: int, seconds: float, reason: str) -> str:
    """For example "142 tokens in 41 steps · 3.46 tokens/step · 58.3 tokens/s · 2.4 s · stop"."""
    parts = [
        f"{plural(tokens, 'token')} in {plural(steps, 'step')}",
        f"{tokens / max(1, steps):.2f} tokens/step",
        f"{tokens / seconds if seconds > 0 else 0:.1f} tokens/s",
        f"{seconds:.1f} s",
    ]
    if reason:
        parts.append(_ENDS.get(reason, reason))
    return " · ".join(parts)


@dataclass(frozen=True)
class Part:
    """A part of the status line; the lowest `rank` is the last to go when room is short."""

    rank: int
    spans: tuple[tuple[str, Look], ...]

    @property
    def columns(self) -> int:
        return sum(width(text) for text, _ in self.spans)


def status_spans(state: ViewState, palette: Palette, columns: int) -> list[tuple[str, Look]]:
    """The status line in at most `columns` columns, the settings at its right end."""
    parts = _status_parts(state, palette, HISTORY if columns >= _NARROW else _FEW_BARS)
    while len(parts) > 1 and _length(parts) > columns:
        parts.remove(max(parts, key=lambda part: part.rank))
    if _length(parts) > columns:
        return []
    *left, last = parts
    spans: list[tuple[str, Look]] = []
    for part in left:
        spans += [*part.spans, (_SEPARATOR, Look())]
    if last.rank == _SETTINGS_RANK:
        spans.append((" " * min(columns - _length(parts), _MOST_SPACE), Look()))
    return spans + list(last.spans)


_SETTINGS_RANK = 4
_MOST_SPACE = 12
_NARROW = 32
_FEW_BARS = 5


def _length(parts: Sequence[Part]) -> int:
    return sum(part.columns for part in parts) + len(_SEPARATOR) * (len(parts) - 1)


def _status_parts(state: ViewState, palette: Palette, most_bars: int) -> list[Part]:
    quiet, strong = palette.quiet, palette.strong
    name = _one_line(state.settings.strategy)
    phase = _one_line(state.phase[:1].upper())
    parts = []
    if name:
        letter = ((f" {phase}", palette.run(state.history[-1][1] or 1)),) if phase else ()
        parts.append(Part(5, ((name, strong), *letter)))
    if not state.step:
        return [*parts, Part(0, (("reading the prompt", quiet),))]
    recent = list(state.history)[-most_bars:]
    bars = sparkline(accepted for accepted, _ in recent)
    coloured = [
        (bar, palette.run(run) if accepted else quiet)
        for bar, (accepted, run) in zip(bars, recent, strict=True)
    ]
    if palette.depth == "none":  # underlined bars would read as baselines
        coloured = [(bars, Look())]
    parts += [
        Part(6, (("step ", quiet), (str(state.step), Look()))),
        Part(2, tuple(coloured)),
        Part(0, ((f"{state.tokens_per_step:.1f}", strong), (" tok/step", quiet))),
        Part(3, ((f"{state.tokens_per_second:.0f}", strong), (" tok/s", quiet))),
    ]
    if state.settings.shown:
        spans: list[tuple[str, Look]] = []
        for key, value in state.settings.shown:
            spans += [(f"  {_one_line(key)} " if spans else f"{_one_line(key)} ", quiet)]
            spans += [(_one_line(value), Look())]
        parts.append(Part(_SETTINGS_RANK, tuple(spans)))
    return parts


def _one_line(text: str) -> str:
    """Safe for the status line: a control in a setting's name must not break it either."""
    return visible(text.replace("\n", " ").replace("\t", " "))
