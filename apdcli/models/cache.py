"""The static KV cache: allocated once, written by position, cropped by length."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from apdcli.models.config import ModelConfig


class KVCache:
    """Keys and values of every layer for positions [0, length).

    On a CPU allocated at the first use: a verifier's are not there yet while the denoiser reads
    a long prompt. On other devices at once, since a graph that is recorded must find them.

    Attributes:
        capacity: positions there is room for.
        both: [layers, batch, 2 * kv_heads, capacity, head_dim], a layer's keys before its values.
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
        self.capacity = capacity
        self.length = 0
        self._kv_heads = config.num_kv_heads
        self._shape = (config.num_layers, batch, 2 * self._kv_heads, capacity, config.head_dim)
        self._device, self._dtype = torch.device(device), dtype
        if self._device.type != "cpu":
            self.both = self._zeros()

    @cached_property
    def both(self) -> Tensor:
        """See the class."""
        return self._zeros()

    def _zeros(self) -> Tensor:
        with torch.inference_mode(False):  # it may be written to in that mode and outside of it
            return torch.zeros(self._shape, device=self._device, dtype=self._dtype)

    @property
    def keys(self) -> Tensor:
        """[layers, batch, kv_heads, capacity, head_dim], a view of `both`."""
        return self.both[:, :, : self._kv_heads]

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        return self.both[:, :, self._kv_heads :]

    def write(self, layer: int, start: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v [batch, kv_heads, T, head_dim] at start; return all that is valid.

        That is [0, start + T), or [0, length) where more than that was valid before.
        """
        end = start + k.shape[2]
        keys, values = self.keys[layer], self.values[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        end = max(end, self.length)
        return keys[:, :, :end], values[:, :, :end]

    def crop(self, length: int) -> None:
        """Keep positions [0, length); what lies after is forgotten. Longer than now: no effect."""
        self.length = min(self.length, max(length, 0))
