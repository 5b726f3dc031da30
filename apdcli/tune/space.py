"""What can be tuned of each strategy: its knobs, their ranges and where the search begins.

Knows no search library and loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apdcli.decode.params import STRATEGIES
from apdcli.errors import UsageError

Value = float | int | str | bool
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Real:
    """A knob that is a number.

    Attributes:
        step: settings closer than this are one.
        log: searched by its logarithm.
    """

    name: str
    low: float
    high: float
    step: float = 0.01
    log: bool = False

    def tidy(self, value: float) -> float:
        """The value, rounded to what is told apart and inside the range."""
        digits = max(0, round(-math.log10(self.step)))
        return round(min(self.high, max(self.low, float(value))), digits)


@dataclass(frozen=True)
class Ladder:
    """A knob with a few values in an order: neighbours behave alike."""

    name: str
    values: tuple[Value, ...]

    def tidy(self, value: Any) -> Value:
        """The value itself, or the nearest rung; "all" of what is more than every number."""
        if value in self.values:
            return next(v for v in self.values if v == value)
        numbers = [v for v in self.values if not isinstance(v, str)]
        if value is None or isinstance(value, str) or not numbers:
            return self.values[-1]
        if "all" in self.values and value > max(numbers):
            return "all"
        return min(numbers, key=lambda v: abs(v - value))


@dataclass(frozen=True)
class Choice:
    """A knob whose values have no order."""

    name: str
    values: tuple[Value, ...]

    def tidy(self, value: Any) -> Value:
        """The value if there is such a one, else the first."""
        return value if value in self.values else self.values[0]


Knob = Real | Ladder | Choice

_WINDOWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, "all")
_LOOKAHEADS = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 128, 200, 256, "all")
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
_W, _M = Ladder("recompute_window", _WINDOWS), Ladder("max_lookahead", _LOOKAHEADS)
_BLOCKS = Ladder("block_length", (8, 16, 32, 64, 128, 256, "all"))
_CACHE = Choice("cache", ("none", "prefix", "dual"))
_CONFIDENCE = Real("confidence_threshold", 0.3, 0.99)

_KNOBS: dict[str, tuple[Knob, ...]] = {
    "apd": (Real("mixture_weight", 0.0, 1.0), _W, _M),
    "left_to_right": (Ladder("k", _COUNTS), _W, _M),
    "dico": (
        _BLOCKS,
        Ladder("seeds", (1, 2, 3, 4, 6, 8, 10)),
        Real("seed_threshold", 0.05, 0.9),
        Ladder("tolerance", (0, 1, 2, 3, 4)),
        Choice("guidance", (True, False)),
        Real("factor", 0.25, 4.0, log=True),
        Real("low_threshold", 0.3, 0.9),
        Real("sure_threshold", 0.7, 1.0),
        Real("gate", 0.3, 1.0),
        Real("margin", 0.5, 10.0, step=0.1, log=True),
        _CACHE,
    ),
    "confidence": (Ladder("k", _COUNTS), _BLOCKS, _CACHE),
    "threshold": (_CONFIDENCE, _BLOCKS, _CACHE),
    "factor": (Real("factor", 0.1, 8.0, log=True), _BLOCKS, _CACHE),
    "entropy_bound": (Real("gamma", 0.001, 3.0, step=0.001, log=True), _BLOCKS, _CACHE),
    "klass": (
        _CONFIDENCE,
        Real("kl_threshold", 0.001, 0.3, step=0.001, log=True),
        Ladder("kl_history_length", (1, 2, 3, 4)),
        Choice("parallel", (True, False)),
        _BLOCKS,
    ),
    **{name: (Ladder("steps", ()), _BLOCKS) for name in ("random", "margin", "entropy")},
}
TUNABLE = tuple(name for name in STRATEGIES if name in _KNOBS)
# Where the search begins, after the profile's own setting: what the papers found good.
_KNOWN_GOOD: dict[str, tuple[Values, ...]] = {
    "apd": (  # arXiv 2506.00413: table 2's two settings, and R as in figure 3
        {"mixture_weight": 0.7, "recompute_window": 16, "max_lookahead": 100},
        {"mixture_weight": 0.6, "recompute_window": 32, "max_lookahead": 200},
        *(
            {"mixture_weight": r, "recompute_window": 16, "max_lookahead": 100}
            for r in (0.1, 0.5, 0.9)
        ),
    ),
    "left_to_right": tuple({"k": k} for k in (2, 4, 8)),
    "dico": ({}, {"seeds": 2}, {"guidance": False}, {"block_length": "all"}),  # 2602.23792
    "confidence": tuple({"k": k} for k in (2, 4, 8)),
    "threshold": tuple({"confidence_threshold": t} for t in (0.9, 0.7, 0.5)),  # 2505.22618
    "factor": tuple({"factor": f} for f in (1.0, 2.0, 0.5)),
    "entropy_bound": tuple({"gamma": g} for g in (0.1, 0.5, 0.01)),  # 2505.24857
    "klass": ({}, {"parallel": True}, {"confidence_threshold": 0.6, "parallel": True}),
}
_NO_LONGER = ("max_lookahead", "block_length")  # as long as the answer is the same as "all"
_STEP_SHARES = (1, 2, 3, 4, 6, 8, 16)  # tokens a step of Dream's schedules


def knobs(strategy: str, max_tokens: int, own: Values) -> tuple[Knob, ...]:
    """The knobs of a strategy for answers of at most `max_tokens`.

    Args:
        own: the profile's own values; a ladder that lacks one gets it as a rung.

    Raises:
        UsageError: the strategy has nothing to tune.
    """
    if strategy not in _KNOBS:
        raise UsageError(
            f"strategy {strategy} has nothing to tune; strategies that have: {', '.join(TUNABLE)}"
        )
    return tuple(_fitted(knob, max_tokens, own.get(knob.name)) for knob in _KNOBS[strategy])


def known_good(strategy: str, space: Sequence[Knob], own: Values) -> list[dict[str, Any]]:
    """Settings to try first: the profile's own, then the papers', each once."""
    found: list[dict[str, Any]] = []
    for values in ({}, *_KNOWN_GOOD.get(strategy, ())):
        tidied = {k.name: k.tidy(values.get(k.name, own[k.name])) for k in space}
        setting = together(space, tidied)
        if setting not in found:
            found.append(setting)
    return found


def possible(values: Values) -> bool:
    """Whether the values can hold together: no more tokens a step (K) than positions drafted."""
    k, most = values.get("k"), values.get("max_lookahead")
    return k is None or not isinstance(most, int) or k <= most


def together(space: Sequence[Knob], values: Values) -> dict[str, Any]:
    """The setting itself, or where it is none the nearest one: M is raised to K's tokens."""
    if possible(values):
        return dict(values)
    rungs = next(k.values for k in space if k.name == "max_lookahead" and isinstance(k, Ladder))
    tried = ({**values, "max_lookahead": rung} for rung in rungs)  # rising; "all" always fits
    return next(setting for setting in tried if possible(setting))


def _fitted(knob: Knob, max_tokens: int, own: Value | None) -> Knob:
    """The knob without values that mean the same, or nothing, for answers so long."""
    if not isinstance(knob, Ladder):
        return knob
    if knob.name == "steps":
        # None, the default, is one step a token: as many steps as tokens
        counts = sorted({max(1, max_tokens // share) for share in _STEP_SHARES})
        return Ladder(knob.name, tuple(counts))
    kept = list(knob.values)
    if knob.name in _NO_LONGER:
        kept = [v for v in kept if isinstance(v, str) or v < max_tokens]
    if knob.name == "block_length":
        kept = [v for v in kept if isinstance(v, str) or max_tokens % v == 0]
    meant = isinstance(own, str) or knob.name not in _NO_LONGER or (own or 0) < max_tokens
    if own is not None and own not in kept and meant:
        kept.append(own)
    texts = [v for v in kept if isinstance(v, str)]
    return Ladder(knob.name, (*sorted(v for v in kept if not isinstance(v, str)), *texts))


def space_as_json(space: Sequence[Knob]) -> list[dict[str, Any]]:
    """For the study, so that whoever joins searches the same space."""
    return [
        {"kind": "real", **{n: getattr(k, n) for n in ("name", "low", "high", "step", "log")}}
        if isinstance(k, Real)
        else {"kind": type(k).__name__.lower(), "name": k.name, "values": list(k.values)}
        for k in space
    ]


def space_from_json(table: Sequence[Mapping[str, Any]]) -> tuple[Knob, ...]:
    """The same space back."""
    made: list[Knob] = []
    for row in table:
        given = {name: value for name, value in row.items() if name != "kind"}
        if row["kind"] == "real":
            made.append(Real(**given))
        else:
            kind = Ladder if row["kind"] == "ladder" else Choice
            made.append(kind(given["name"], tuple(given["values"])))
    return tuple(made)
