"""Many texts through one forward: packed positions, each row at its own place in its own text.

The rows' windows stand one behind the other in one long sequence, so that every matrix product
runs once over all of them and no padding is computed. Only attention tells rows apart: a row sees
the keys in its own slot of the cache and nothing else. The weights and the arithmetic are those of
`models.packed`; knows nothing of prompts, strategies or logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from apdcli.models.config import ModelConfig
from apdcli.models.packed import Packed


class RowCache:
    """Keys and values of every layer for a number of texts, one slot a row.

    Allocated once, at the first use: a model that no strategy asks costs nothing.

    Attributes:
        capacity: positions there is room for in each row.
        keys, values: [layers, rows, kv_heads, capacity, head_dim].
        lengths: for each row, the positions [0, length) that are valid; the rest is never read.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.capacity = capacity
        self.lengths = [0] * rows
        self._shape = (config.num_layers, rows, config.num_kv_heads, capacity, config.head_dim)
        self._zeros = partial(torch.zeros, device=device, dtype=dtype)

    @cached_property
    def keys(self) -> Tensor:
        """Of every layer and row, for positions [0, lengths[row])."""
        return self._zeros(self._shape)

    @cached_property
    def values(self) -> Tensor:
        """As `keys`."""
        return self._zeros(self._shape)

    def crop(self, row: int, length: int) -> None:
        """Keep positions [0, length) of a row. Longer than now: no effect."""
        self.lengths[row] = min(self.lengths[row], max(length, 0))


@dataclass(frozen=True)
class Span:
    """The positions of one row that a forward computes.

    Attributes:
        row: the slot in the cache; a forward holds at most one span of a row.
        tokens: [T] int64, the ids at positions start .. start + T - 1; T >= 1.
        start: the first position.
        wanted: which of the T hidden states are asked for, counted from the first.
    """

    row: int
    tokens: Tensor
    start: int
    wanted: range

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.start + len(self.tokens)


class _Attention(Protocol):
    """Attention of one forward's packed queries, each to the keys of its own row."""

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store k and v [kv_heads, P, head_dim] at their rows and positions."""
        ...

    def narrow(self, wanted: Tensor) -> None:
        """From now on only the wanted ones of the P positions ask."""
        ...

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        """q [heads, asking, head_dim] -> [asking, heads * head_dim]."""
        ...


def hidden_rows(
    net: Packed, cache: RowCache, spans: Sequence[Span], *, padded: bool | None = None
) -> Tensor:
    """Hidden states after the last norm: those wanted of all spans, one behind the other.

    Each row's numbers are those of `Packed.hidden` on the row alone: it attends to what is valid
    in its slot, before its span, in it and behind it, and its span is written there.

    Args:
        net: the network.
        cache: one slot for each row.
        spans: at least one, of different rows, each within the cache's capacity.
        padded: attention in one call over rows padded to the longest span, which a GPU prefers,
            or in one call a row, which computes no padding; None chooses by device.

    Returns:
        [sum of wanted, hidden].
    """
    for span in spans:
        if span.end > cache.capacity:
            raise ValueError(f"position {span.end - 1} in a cache of {cache.capacity}")
    device = net.embedding.device
    if padded is None:
        padded = device.type == "cuda"
    attention: _Attention = (_Padded if padded else _Each)(net, cache, spans)
    cos, sin = _rope(net, spans)
    wanted = torch.tensor(_packed_places(spans), device=device)
    x = F.embedding(torch.cat([span.tokens for span in spans]).to(device), net.embedding)
    for index, layer in enumerate(net.layers):
        q, k, v = net.project(layer, x, cos, sin)
        attention.write(index, k, v)
        if index == len(net.layers) - 1 and len(wanted) < len(x):
            x, q = x[wanted], q[:, wanted]
            attention.narrow(wanted)
        x = net.mlp(layer, x.addmm_(attention(index, q), layer.out))
    for span in spans:
        cache.lengths[span.row] = max(cache.lengths[span.row], span.end)
    return net.rms(x, net.norm)


def _rope(net: Packed, spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Cosines and sines [P, head_dim] as `Packed.project` takes them."""
    tables = net.rope(0, max(span.end for span in spans))
    cos, sin = (torch.cat([t[span.start : span.end] for span in spans]) for t in tables)
    return cos, sin


def _packed_places(spans: Sequence[Span]) -> list[int]:
    """Where the wanted states of all spans stand among the packed positions."""
    places: list[int] = []
    begin = 0
    for span in spans:
        places += [begin + place for place in span.wanted]
        begin += len(span.tokens)
    return places


def _visible(cache: RowCache, span: Span) -> int:
    """How many keys a row sees; those behind its span too, where they were not cropped."""
    return max(span.end, cache.lengths[span.row])


class _Each:
    """Row by row, by the very calls that serve a row alone."""

    def __init__(self, net: Packed, cache: RowCache, spans: Sequence[Span]) -> None:
        self.net, self.spans = net, spans
        self.new: list[list[tuple[Tensor, ...]]] = []
        self.old: list[list[tuple[Tensor, ...]]] = []
        for span in spans:
            seen = _visible(cache, span)
            slot = cache.keys[:, span.row], cache.values[:, span.row]
            new = (kv[:, :, span.start : span.end].unbind(0) for kv in slot)
            old = (kv[:, :, :seen].unbind(0) for kv in slot)
            self.new.append(list(zip(*new, strict=True)))
            self.old.append(list(zip(*old, strict=True)))
        self.sizes = [len(span.tokens) for span in spans]
        self.first = [span.start for span in spans]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        own = torch.split(k, self.sizes, 1), torch.split(v, self.sizes, 1)
        for new, own_k, own_v in zip(self.new, *own, strict=True):
            new[layer][0].copy_(own_k)
            new[layer][1].copy_(own_v)

    def narrow(self, wanted: Tensor) -> None:
        self.first = [span.start + span.wanted.start for span in self.spans]
        self.sizes = [len(span.wanted) for span in self.spans]

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        seen = (old[layer] for old in self.old)
        rows = zip(torch.split(q, self.sizes, 1), seen, self.first, strict=True)
        return torch.cat([self.net.attend(own, k, v, at) for own, (k, v), at in rows])


class _Padded:
    """All rows in one call: queries padded to the longest span, the keys of others masked.

    Heads that share keys stand behind each other as more queries of one head, so that keys are
    never repeated in memory.
    """

    def __init__(self, net: Packed, cache: RowCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.kv_heads = net.kv_heads
        self.rows = 1 + max(span.row for span in spans)
        self.longest = max(len(span.tokens) for span in spans)
        seen = [_visible(cache, span) for span in spans]
        self.keys = min(-(-max(seen) // 8) * 8, cache.capacity)  # kernels like multiples of 8
        self.device = net.embedding.device
        # Where each packed position stands: its row, its place in the span, and in the text.
        self.row = self._tensor([s.row for s in spans for _ in s.tokens])
        self.place = self._tensor([p for s in spans for p in range(len(s.tokens))])
        self.position = self._tensor([p for s in spans for p in range(s.start, s.end)])
        start, end = [0] * self.rows, [0] * self.rows  # a row without a span sees nothing
        for span, visible in zip(spans, seen, strict=True):
            start[span.row], end[span.row] = span.start, visible
        key = torch.arange(self.keys, device=self.device)
        mask = (key < self._tensor(end)[:, None])[:, None]  # [rows, 1, keys]
        if net.net.config.causal:
            query = self._tensor(start)[:, None] + torch.arange(self.longest, device=self.device)
            mask = mask & (key <= query[:, :, None])
        mask = mask.expand(-1, self.longest, -1)[:, None]
        groups = net.heads // net.kv_heads
        # [rows, 1, groups * T, keys]
        self.mask = mask.expand(-1, groups, -1, -1).reshape(self.rows, 1, -1, self.keys)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self.device)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.cache.keys[layer][self.row, :, self.position] = k.transpose(0, 1)
        self.cache.values[layer][self.row, :, self.position] = v.transpose(0, 1)

    def narrow(self, wanted: Tensor) -> None:
        self.row, self.place = self.row[wanted], self.place[wanted]

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        heads, asking, size = q.shape
        padded = q.new_zeros(self.rows, heads, self.longest, size)
        padded[self.row, :, self.place] = q.transpose(0, 1)
        out = F.scaled_dot_product_attention(
            padded.view(self.rows, self.kv_heads, -1, size),
            self.cache.keys[layer, : self.rows, :, : self.keys],
            self.cache.values[layer, : self.rows, :, : self.keys],
            attn_mask=self.mask,
        )
        return out.view(padded.shape)[self.row, :, self.place].view(asking, -1)
