"""Untrusted text made safe for a terminal, and cut where a terminal may cut it.

Knows no events, no colours and no streams. Pipes and files never pass through here: they get the
exact bytes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from rich.cells import cell_len, get_character_cell_size

ORPHAN_BASE = "\u25cc"
_ZWJ = "\u200d"
_SHOWN_AS_CODE = (
    *range(0x80, 0xA0),  # C1: 0x9B alone starts an escape sequence in some terminals
    0x061C,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),  # line and paragraph separators, bidi embeddings and overrides
    *range(0x2066, 0x206A),  # bidi isolates
    *range(0xD800, 0xE000),  # lone surrogates cannot be written at all
    0xFFF9,
    0xFFFA,
    0xFFFB,
    *range(0xE0000, 0xE0080),  # tag characters: invisible text
)
_PICTURES: dict[int, str] = {
    **{c: chr(0x2400 + c) for c in range(0x20) if c not in (0x09, 0x0A)},
    0x7F: "\u2421",
    **{c: f"\u27e6U+{c:04X}\u27e7" for c in _SHOWN_AS_CODE},
}


def visible(text: str) -> str:
    """Text with every control character but newline and tab replaced by a picture of it.

    C0 and DEL become their Unicode pictures (ESC is ␛), C1 and bidirectional controls ⟦U+202E⟧.
    """
    return text.translate(_PICTURES)


def width(cluster: str) -> int:
    """Columns that a cluster takes in a terminal (a tab or newline counts 0)."""
    return cell_len(cluster)


def extends(cluster: str, character: str) -> bool:
    """Whether `character` belongs to the same place on the screen as the cluster before it."""
    if not cluster or cluster in ("\n", "\t"):
        return False
    if character in ("\n", "\t"):
        return False
    if character.isascii():
        return False
    if cluster.endswith(_ZWJ):
        return True
    if get_character_cell_size(character) == 0 or unicodedata.category(character) in ("Mn", "Me"):
        return True
    if "\U0001f3fb" <= character <= "\U0001f3ff":  # skin tone modifiers
        return get_character_cell_size(cluster[0]) == 2
    flags = _is_flag_half(character) and all(_is_flag_half(c) for c in cluster)
    return flags and len(cluster) % 2 == 1


def clusters(text: str) -> Iterator[str]:
    """Pieces that are never split: a base with what combines with it, a newline, a tab."""
    cluster = ""
    for character in text:
        if cluster and not extends(cluster, character):
            yield cluster
            cluster = ""
        cluster += character
    if cluster:
        yield cluster


def _is_flag_half(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"
