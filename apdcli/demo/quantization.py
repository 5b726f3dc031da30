"""What weights of fewer bits cost in accuracy: the rows and the table of `evaluate --quantization`.

Both models are quantized. Every format answers the same prompts by the same decoding, so that
differences to the weights as they are can be paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from apdcli.demo.metrics import paired_difference, wilson
from apdcli.engine.pair import LoadedPair, load_pair
from apdcli.models.quantized import weight_bytes

FORMATS = ("none", "int8", "int4")
HEAD = (
    "setting", "weights", "MB", "accuracy, % (95 %)", "against none, points (95 %)",
    "same text, %", "tokens a step",
)  # fmt: skip


class Answered(Protocol):
    """What the table wants to know of an answer."""

    @property
    def right(self) -> bool: ...
    @property
    def text(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def steps(self) -> int: ...


def name_of(setting: str, quantize: str) -> str:
    """What a row is called."""
    return f"{setting}, {quantize}"


def quantized_rows(
    table: Sequence[tuple[str, Mapping[str, Any]]],
) -> list[tuple[str, dict[str, Any]]]:
    """Every setting of the table in every format; "quantize" is among its values."""
    return [
        (name_of(name, quantize), {**settings, "quantize": quantize})
        for name, settings in table
        for quantize in FORMATS
    ]


def held(profile: str) -> dict[str, int]:
    """Bytes of both models' weights in each format."""
    return {quantize: _held(load_pair(profile, quantize=quantize)) for quantize in FORMATS}


def _held(pair: LoadedPair) -> int:
    nets = [net for net in (pair.denoiser, pair.verifier) if net is not None]
    return sum(map(weight_bytes, nets))


def markdown(
    settings: Sequence[str], results: Mapping[str, Sequence[Answered]], sizes: Mapping[str, int]
) -> str:
    """The table.

    Args:
        settings: names of the decodings, in order.
        results: the answers to the same prompts by :func:`name_of`.
        sizes: see :func:`held`.
    """
    rows = [list(HEAD), ["---"] * len(HEAD)]
    for setting in settings:
        reference = results[name_of(setting, "none")]
        for quantize in FORMATS:
            answers = results[name_of(setting, quantize)]
            rows.append([setting, quantize, f"{sizes[quantize] / 1e6:.2f}"])
            rows[-1] += _cells(answers, None if answers is reference else reference)
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _cells(answers: Sequence[Answered], reference: Sequence[Answered] | None) -> list[str]:
    count, right = len(answers), [a.right for a in answers]
    low, high = wilson(sum(right), count)
    difference = same = "-"
    if reference is not None:
        change = paired_difference([a.right for a in reference], right)
        points, least, most = (100 * x for x in change)
        difference = f"{points:+.1f} ({least:+.1f} to {most:+.1f})"
        equal = sum(a.text == b.text for a, b in zip(answers, reference, strict=True))
        same = f"{100 * equal / count:.1f}"
    return [
        f"{100 * sum(right) / count:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        difference,
        same,
        f"{sum(a.tokens for a in answers) / sum(a.steps for a in answers):.2f}",
    ]
