"""The static KV cache: allocated once, written by position, cropped by length."""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.models.config import ModelConfig


class KVCache:
    """Keys and values of every layer for positions [0, length).

    Attributes:
        keys, values: [layers, batch, kv_heads, capacity, head_dim].
        length: positions that are valid; those at and after it are stale and never read.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        batch: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.keys.shape[3]

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v [batch, kv_heads, T, head_dim] at start; return all that is valid.

        That is [0, start + T), or [0, length) where more than that was valid before.
        """
        end = start + k.shape[2]
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        end = max(end, self.length)
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def crop(self, length: int) -> None:
        """Keep positions [0, length); what lies after is forgotten. Longer than now: no effect."""
        self.length = min(self.length, max(length, 0))
