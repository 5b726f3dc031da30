"""Range checks that the parameter classes share. Loads no torch."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, Literal

from apdcli.errors import ParameterError

Window = int | Literal["all"]
Lookahead = Window | Literal["auto"]


def check(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise :class:`ParameterError` naming the field, the value and the range unless `ok`."""
    if not ok:
        raise ParameterError(name, value, allowed)


def plain_number(value: Any) -> Any:
    """A number of any library, numpy's for example, as Python's own; all else as it is."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def is_int(value: object, at_least: int) -> bool:
    """True for an integer (not a bool) that is `at_least` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def is_real(value: object, low: float, high: float) -> bool:
    """True for a number in [low, high], both finite; bools are not numbers here."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def is_window(value: object) -> bool:
    """True for a positive integer or "all"."""
    return value == "all" or is_int(value, 1)


def is_lookahead(value: object) -> bool:
    """True for a window, or "auto"."""
    return value == "auto" or is_window(value)
