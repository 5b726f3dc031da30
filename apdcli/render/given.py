"""Text that stands between gaps, shown exactly as it was written. Knows no tokenizer.

The tokens that a model reads of such a text need not spell it byte for byte (a tokenizer may
normalize), so the view gets ids of its own for them, below those of any token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apdcli.render.state import TokenBytes


def with_given(
    token_bytes: TokenBytes, given: Iterable[tuple[int, str]]
) -> tuple[TokenBytes, list[tuple[int, int]]]:
    """A token_bytes and a `given` for ViewState.

    Args:
        token_bytes: of the tokens that are generated.
        given: (position, text) of the others.
    """
    texts = list(given)
    own = {-1 - k: text.encode("utf-8") for k, (_, text) in enumerate(texts)}

    def bytes_of(id_: int) -> bytes:
        return own[id_] if id_ < 0 else token_bytes(id_)

    return bytes_of, [(position, -1 - k) for k, (position, _) in enumerate(texts)]
