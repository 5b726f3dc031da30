"""English that every layer says alike. Below all of them: it imports nothing of ours."""

from __future__ import annotations


def plural(count: int, noun: str) -> str:
    """1 step, 2 steps, 1,200 steps."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
