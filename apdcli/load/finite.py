"""Whether stored weights are numbers: all of a small model, some rows of each of a large one's."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from apdcli.errors import ModelError
from apdcli.load.files import AGAIN, one_line
from apdcli.load.layout import Layout, damaged

ROWS = 16  # of each tensor of a large model
_WHOLE = 2**30  # bytes: a model of so many is read in a second or two
_PIECE = 2**24  # values in memory at once


def check_finite(layout: Layout) -> bool:
    """Look for NaN and infinities in the weights that a model uses.

    Returns:
        Whether every value was looked at; of models over 1 GiB only 16 rows of each tensor are.

    Raises:
        ModelError: a tensor holds one, or a file cannot be read.
    """
    whole = layout.num_bytes <= _WHOLE
    for file in layout.files:
        shapes = {n: entry.shape for n, entry in layout.entries.values() if entry.file == file}
        try:
            for name, shape in shapes.items():
                _check(file, name, shape, whole)
        except SafetensorError as error:
            raise damaged(file, error) from error
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({one_line(error)})") from error
    return whole


def _check(file: Path, name: str, shape: tuple[int, ...], whole: bool) -> None:
    # Opened anew for each tensor: closing unmaps the pages that were read.
    with safe_open(str(file), framework="pt") as opened:
        for start, end in _spans(shape, whole):
            low, high = opened.get_slice(name)[start:end].aminmax()  # a NaN is both
            if not (low.isfinite() and high.isfinite()):
                raise ModelError(f"{file}: {name} holds values that are not numbers: {AGAIN}")


def _spans(shape: tuple[int, ...], whole: bool) -> Iterator[tuple[int, int]]:
    """First row and end of the pieces that are read; of one dimension all."""
    rows, wide = shape[0], prod(shape[1:])
    if whole or len(shape) == 1:
        step = max(1, _PIECE // wide)
        yield from ((start, min(start + step, rows)) for start in range(0, rows, step))
        return
    some = {round(place * (rows - 1) / (ROWS - 1)) for place in range(ROWS)}
    yield from ((row, row + 1) for row in sorted(some))
