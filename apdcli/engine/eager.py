"""The readable reference engine: `decode`'s protocols over a Transformer and a static KV cache.

Everything a strategy must not know is settled here: the published shift, padding rows of the
head, the mask id, ids that only one of the two models has.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor

from apdcli.decode.sampling import NEVER
from apdcli.models.cache import KVCache
from apdcli.models.transformer import Transformer


def banned_ids(allowed: Iterable[int], vocab_size: int, device: torch.device | str) -> Tensor:
    """[vocab_size] bool, True for ids that may never be produced; not to be written to."""
    return _banned_ids(tuple(allowed), vocab_size, torch.device(device))


@lru_cache(maxsize=8)  # every generation asks for its pair's
def _banned_ids(allowed: tuple[int, ...], vocab_size: int, device: torch.device) -> Tensor:
    banned = torch.ones(vocab_size, dtype=torch.bool, device=device)
    banned[torch.tensor(allowed, dtype=torch.int64, device=device)] = False
    return banned


def verifies_less(verifier: Transformer) -> bool:
    """Whether this network had better verify a draft by parts.

    On a CPU a position less is so much less work. A GPU takes as long for few as for many, and
    between two parts it would wait for the host.
    """
    return verifier.model.embed_tokens.weight.device.type == "cpu"


class EagerModel:
    """What both models share: the network, its cache and the ids it may produce.

    Args:
        net: the network; its device and dtype are kept.
        banned: [vocab] bool, see :func:`banned_ids`; logits are trimmed to this length.
        capacity: positions to allocate KV for; clipped to what the network was made for.
    """

    def __init__(self, net: Transformer, banned: Tensor, capacity: int) -> None:
        weight = net.model.embed_tokens.weight
        self.net = net
        self.banned = banned
        self.cache = KVCache(
            net.config,
            min(capacity, net.config.max_positions),
            device=weight.device,
            dtype=weight.dtype,
        )

    @property
    def length(self) -> int:
        """Positions whose keys and values are cached."""
        return self.cache.length

    def crop(self, length: int) -> None:
        """Forget keys and values at and after `length`."""
        self.cache.crop(length)

    def _run(self, tokens: Tensor, start: int) -> Tensor:
        """Hidden states [len(tokens) - start, hidden] of the positions from `start` on."""
        device = self.net.model.embed_tokens.weight.device
        return self.net.hidden(tokens[None, start:].to(device), start, self.cache)[0]

    def _rows(self, hidden: Tensor) -> Tensor:
        """Hidden states [rows, hidden] to trimmed float32 logits [rows, vocab]."""
        logits = self.net.head(hidden)[:, : len(self.banned)].float()
        return logits.to(self.banned.device).masked_fill_(self.banned, NEVER)


class EagerDenoiser(EagerModel):
    """A diffusion model behind :class:`apdcli.decode.types.Denoiser`."""

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        assert self.net.config.mask_id is not None
        return self.net.config.mask_id

    @property
    def lookback(self) -> int:
        """1 with the shift: position j is predicted by output j - 1."""
        return int(self.net.config.shift)

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        """See the protocol."""
        if not keep_after:
            self.crop(start)
        # Position 0 has no output before it; like the published code, its own output stands in.
        made_at = (torch.arange(first, len(tokens)) - self.lookback).clamp_min(0)
        if made_at[0] < start:
            raise ValueError(f"the logits for {first} are made at {made_at[0]}, before {start}")
        return self._rows(self._run(tokens, start)[made_at - start])


class EagerVerifier(EagerModel):
    """A causal language model behind :class:`apdcli.decode.types.ThriftyVerifier`."""

    def __init__(self, net: Transformer, banned: Tensor, capacity: int) -> None:
        super().__init__(net, banned, capacity)
        self.verify_less = verifies_less(net)

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """See the protocol. Output j predicts position j + 1."""
        start = self.cache.length
        if first - 1 < start:
            raise ValueError(f"the logits for {first} need position {first - 1}, already cached")
        return self._rows(self._run(tokens, start)[first - 1 - start :])
