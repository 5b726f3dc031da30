"""What a gap in a text is, and which strategies can fill one. Loads no torch."""

from __future__ import annotations

from apdcli.decode.any_order_params import AnyOrderParams
from apdcli.decode.checks import check, is_int
from apdcli.decode.params import STRATEGIES
from apdcli.errors import PromptError

MARKER, GAP = "___", 16
FILLING = tuple(
    name
    for name, info in STRATEGIES.items()
    if issubclass(info.params, AnyOrderParams) and not info.needs_verifier
)


def check_gap(marker: object, gap: object) -> None:
    """Raise ParameterError unless these can mark gaps and say how long they are."""
    check(isinstance(marker, str) and marker != "", "marker", marker, "a text that is not empty")
    check(is_int(gap, 1), "gap", gap, "an integer >= 1")


def split_gaps(text: str, marker: str) -> tuple[str, ...]:
    """The pieces of text before, between and after the gaps.

    Raises:
        PromptError: no text, or no gap in it.
    """
    if not text:
        raise PromptError("the text is empty; give some, with a gap in it")
    pieces = tuple(text.split(marker))
    if len(pieces) == 1:
        raise PromptError(f"the text has no gap: write {marker} where something is to be filled in")
    return pieces
