"""What a search is to reach: a speed, a quality, or neither. Pure; loads nothing."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from apdcli.errors import UsageError

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
Kind = Literal["speed", "quality"]


@dataclass(frozen=True)
class Target:
    """A speed or a quality to reach.

    Attributes:
        kind: "speed": tokens a second; "quality": 0 to 1.
        value: in these units, or with `relative` as a multiple of one token a step.
        text: as the user wrote it.
    """

    kind: Kind
    value: float
    relative: bool
    text: str

    def absolute(self, one_a_step: float) -> float:
        """The target in tokens a second, or as a quality, given what one token a step has."""
        return self.value * one_a_step if self.relative else self.value

    def __str__(self) -> str:
        return f"{self.text} tokens/s" if self.kind == "speed" and not self.relative else self.text


def parse_speed(text: str) -> Target:
    """ "60" tokens a second, or "3x" one token a step.

    Raises:
        UsageError: neither.
    """
    found = re.fullmatch(rf"{_NUMBER}\s*([xX×]?)", text.strip())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise UsageError(
            f"--target-speed {text}: it must be tokens a second above 0, like 60, or a multiple "
            "of one token a step, like 3x"
        )
    return Target("speed", float(found[1]), bool(found[2]), text.strip().replace("X", "x"))


def parse_quality(text: str) -> Target:
    """ "0.8" or "80" points, or "98%" of one token a step.

    Raises:
        UsageError: none of them.
    """
    found = re.fullmatch(rf"{_NUMBER}\s*(%?)", text.strip())
    number = float(found[1]) if found else 0.0
    if found is None or not 0 < number < math.inf or (not found[2] and number > 100):
        raise UsageError(
            f"--target-quality {text}: it must be a quality from 0 to 1 or in points up to 100, "
            "or a share of one token a step, like 98%"
        )
    if found[2]:
        return Target("quality", number / 100, True, text.strip())
    return Target("quality", number / 100 if number > 1 else number, False, text.strip())


def parse_seconds(text: str) -> float:
    """ "90", "90s", "5m" or "2h" as seconds.

    Raises:
        UsageError: none of them.
    """
    found = re.fullmatch(rf"{_NUMBER}\s*([smh]?)", text.strip().lower())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise UsageError(f"--timeout {text}: it must be a time above 0, like 90, 90s, 5m or 1h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
