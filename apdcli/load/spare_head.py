"""A head that a folder's files hold although its config.json ties the head to the embedding."""

from __future__ import annotations

from safetensors import SafetensorError, safe_open
from torch import Tensor

from apdcli.load.layout import CONFIG, Entry, Layout, damaged
from apdcli.models.names import EMBEDDING

_ROWS = 16  # that are compared: a head of its own differs in nearly all


def spare_head(layout: Layout) -> str | None:
    """What to know of a head that is stored, not used, and no copy of the embedding; else None.

    Transformers 4, which the published models' code is made for, ignores such a head too;
    transformers 5 keeps it and warns.

    Raises:
        ModelError: the file cannot be read there.
    """
    embedding, entry = layout.entries[EMBEDDING]
    for name, head in layout.ignored.items():
        if not _alike((name, head), (embedding, entry)):
            return (
                f"{name} in {head.file} is not used, though it is another matrix than {embedding}: "
                f"{CONFIG} ties them; with {layout.config.tied_key} = false it is used"
            )
    return None


def _alike(one: tuple[str, Entry], other: tuple[str, Entry]) -> bool:
    """Whether two matrices are equal in some rows, from the first to the last."""
    shape = one[1].shape
    if shape != other[1].shape:
        return False
    step = max(1, (shape[0] - 1) // (_ROWS - 1))
    rows = range(0, shape[0], step)
    return all(bool((_row(one, row) == _row(other, row)).all()) for row in rows)


def _row(tensor: tuple[str, Entry], row: int) -> Tensor:
    name, entry = tensor
    try:
        with safe_open(str(entry.file), framework="pt") as opened:
            value: Tensor = opened.get_slice(name)[row : row + 1]
    except (SafetensorError, OSError) as error:
        raise damaged(entry.file, error) from error
    return value.float()
