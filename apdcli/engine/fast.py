"""The fast engine: `decode`'s protocols over fused weights, for one text at a time.

Gives the eager engine's greedy tokens in float32; a test compares the two over every strategy.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from apdcli.decode.sampling import NEVER
from apdcli.engine.device import attention_kernels
from apdcli.engine.eager import EagerDenoiser, EagerModel, EagerVerifier
from apdcli.models.packed import Packed, packed
from apdcli.models.transformer import Transformer


def forbid(logits: Tensor, banned: Tensor) -> Tensor:
    """Set the ids `banned` [k] to -inf, in place: logits [n, vocab]."""
    return logits.index_fill_(1, banned, NEVER) if len(banned) else logits


@lru_cache(maxsize=8)  # on CUDA the host waits for it, and every generation asks
def _places(banned: Tensor, device: torch.device) -> Tensor:
    return banned.nonzero().flatten().to(device)


class FastModel(EagerModel):
    """What both models share: the packed network and its head, trimmed once.

    Args: see :class:`apdcli.engine.eager.EagerModel`.
    """

    def __init__(self, net: Transformer, banned: Tensor, capacity: int) -> None:
        super().__init__(net, banned, capacity)
        self.packed: Packed = packed(net)
        self._head = self.packed.head[:, : len(banned)]
        self._banned_ids = _places(banned, self._head.device)

    def outputs(self, tokens: Tensor, start: int, first: int, last: int) -> Tensor:
        """Logits [last - first, vocab] float32 of the outputs at positions [first, last).

        Args:
            tokens: [n] int64, of which those from `start` on are run.
            start: positions [0, start) are cached.
            first, last: start <= first < last <= n.
        """
        ids = tokens[start:].to(self._head.device)
        with attention_kernels(self._head.device):
            hidden = self.packed.hidden(ids, start, self.cache, first - start, last - start)
        logits = forbid(torch.mm(hidden, self._head).float(), self._banned_ids)
        return logits.to(self.banned.device)


class FastDenoiser(FastModel, EagerDenoiser):
    """A diffusion model behind :class:`apdcli.decode.types.Denoiser`."""

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        """See the protocol."""
        if not keep_after:
            self.crop(start)
        made_at = first - self.lookback
        if made_at < 0:  # position 0 has no output before it: its own stands in
            logits = self.outputs(tokens, start, 0, max(1, len(tokens) - self.lookback))
            return torch.cat((logits[:1], logits))[: len(tokens)]
        if made_at < start:
            raise ValueError(f"the logits for {first} are made at {made_at}, before {start}")
        return self.outputs(tokens, start, made_at, len(tokens) - self.lookback)


class FastVerifier(FastModel, EagerVerifier):
    """A causal language model behind :class:`apdcli.decode.types.ThriftyVerifier`."""

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """See the protocol. Output j predicts position j + 1."""
        start = self.cache.length
        if first - 1 < start:
            raise ValueError(f"the logits for {first} need position {first - 1}, already cached")
        return self.outputs(tokens, start, first - 1, len(tokens))
