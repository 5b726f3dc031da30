"""The verifier alone, one token a step: what any causal language model does."""

from __future__ import annotations

from apdcli.decode.params import AutoregressiveParams, DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.types import Canvas, Commit, Pair


class Autoregressive:
    """Ask the verifier for the next token and take it."""

    early_stop = True

    def __init__(
        self, shared: DecodeParams, own: AutoregressiveParams, sampler: Sampler | None = None
    ) -> None:
        self.sampler = sampler or Sampler(shared)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """Commit the token that follows everything before the cursor i."""
        assert pair.verifier is not None
        i = canvas.cursor
        a = pair.verifier.logits(canvas.tokens[:i], i)  # [1, vocab]
        ids = self.sampler.draw(a, self.sampler.noise(a)).tolist()
        return Commit(positions=(i,), ids=tuple(ids), proposed=1)
