"""Token ids to text as they arrive, never half a character. Knows no model and no terminal."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable


class TextStream:
    """Decodes ids bit by bit; the pieces joined equal the decoding of all ids at once.

    A token may end inside a character: those bytes wait until the rest comes. Bytes that can be no
    character become U+FFFD, as `bytes.decode(errors="replace")` has it. Linear in the text.
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], skip: frozenset[int] = frozenset()
    ) -> None:
        """Args:
        token_bytes: the exact bytes of a token.
        skip: ids that write nothing (the special tokens).
        """
        self._token_bytes = token_bytes
        self._skip = skip
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete; may be empty, or hold the end of an earlier character."""
        data = b"".join(self._token_bytes(i) for i in ids if i not in self._skip)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """The rest at the end: U+FFFD for bytes whose character never came. Starts anew."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
