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

from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig
from apdcli.models.packed import NEVER, Packed

# To what a padded forward rounds up the longest of its spans, beyond the last of these to a
# multiple of it, and its keys to a multiple of KEYS: some kernels are planned anew for each shape.
LENGTHS = (1, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
KEYS = 256
_ALIGNED = 8  # kernels that take a mask like multiples of it, and copy any other


class RowCache:
    """Keys and values of every layer for a number of texts, one slot a row.

    Allocated once, at the first use: a model that no strategy asks costs nothing.

    Attributes:
        capacity: positions there is room for in each row.
        keys, values: [layers, rows, kv_heads, capacity and a few more, head_dim].
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
        room = _up(capacity, _ALIGNED)
        self._shape = (config.num_layers, rows, config.num_kv_heads, room, config.head_dim)
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


class RowSlot(KVCache):
    """A row's slot as a cache of its own: what is written here is written there."""

    def __init__(self, cache: RowCache, row: int) -> None:
        self.capacity = cache.capacity
        self._cache, self._row = cache, slice(row, row + 1)

    @property
    def length(self) -> int:
        """Positions that are valid."""
        return self._cache.lengths[self._row.start]

    @length.setter
    def length(self, length: int) -> None:
        self._cache.lengths[self._row.start] = length

    @property
    def keys(self) -> Tensor:
        """[layers, 1, kv_heads, capacity and a few more, head_dim]."""
        return self._cache.keys[:, self._row]

    @property
    def values(self) -> Tensor:
        """As `keys`."""
        return self._cache.values[:, self._row]


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
    places = _Places.of(spans, cache, device)
    attention: _Attention
    attention = _Padded(net, cache, spans, places) if padded else _Each(net, cache, spans)
    tables = net.rope(0, max(span.end for span in spans))
    cos, sin = (table[places.position] for table in tables)
    wanted = places.wanted
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


@dataclass(frozen=True)
class _Places:
    """Where everything of a forward stands, on the network's device.

    Attributes:
        row, place, position: [P] int64, of each packed position: its row, its place in the span,
            and in the text.
        wanted: [W] int64, which of the packed positions are asked for.
        start, end: [rows] int64, of each row up to the last one asked: where its span begins, and
            one past the last key it sees; a row without a span sees nothing.
    """

    row: Tensor
    place: Tensor
    position: Tensor
    wanted: Tensor
    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], cache: RowCache, device: torch.device) -> _Places:
        """In one copy to the device, for which a CUDA host does not wait."""
        # Lists: for so few numbers each of torch's operations takes longer than all of these.
        row: list[int] = []
        place: list[int] = []
        position: list[int] = []
        wanted: list[int] = []
        rows = 1 + max(span.row for span in spans)
        start, end = [0] * rows, [0] * rows
        for span in spans:
            length, begin = len(span.tokens), len(row)
            row += [span.row] * length
            place += range(length)
            position += range(span.start, span.end)
            wanted += range(begin + span.wanted.start, begin + span.wanted.stop)
            start[span.row], end[span.row] = span.start, _visible(cache, span)
        parts = (row, place, position, wanted, start, end)
        together = torch.tensor([number for part in parts for number in part])
        cuda = device.type == "cuda"
        if cuda:  # read while the host goes on; torch lends this memory again only after that
            together = together.pin_memory()
        there = together.to(device, non_blocking=cuda)
        return cls(*torch.split(there, [len(part) for part in parts]))


def _up(size: int, multiple: int) -> int:
    """The multiple that is next above, or the same."""
    return -(-size // multiple) * multiple


def padded_length(length: int) -> int:
    """To what a span of that length is padded."""
    return next((n for n in LENGTHS if n >= length), _up(length, LENGTHS[-1]))


def padded_bytes(config: ModelConfig, length: int, keys: int, size: int) -> int:
    """Memory that each row of a padded forward takes for its mask, its queries and their answers.

    Args:
        config: of the network.
        length: of the longest span.
        keys: how many the longest text has.
        size: bytes of a number.
    """
    queries = padded_length(length)
    groups = config.num_heads // config.num_kv_heads
    total = 2 * queries * config.num_heads * config.head_dim * size
    if config.causal:  # else one line of the mask serves all queries of a row
        total += queries * _up(keys, _ALIGNED) * ((groups + 1) * size + 2)  # with its beginnings
    return total


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

    def __init__(
        self, net: Packed, cache: RowCache, spans: Sequence[Span], places: _Places
    ) -> None:
        self.cache = cache
        self.kv_heads = net.kv_heads
        self.rows = len(places.end)
        self.longest = padded_length(max(len(span.tokens) for span in spans))
        seen = max(_visible(cache, span) for span in spans)
        self.keys = min(_up(seen, KEYS), cache.keys.shape[3])
        self.row, self.place, self.position = places.row, places.place, places.position
        self.mask = self._mask(net, places)
        shape = (self.rows, net.heads, self.longest, net.head_dim)
        # Of all layers: each writes to the same places, and what lies between is never looked at.
        self.queries = net.embedding.new_zeros(shape)

    def _mask(self, net: Packed, places: _Places) -> Tensor:
        """[rows, 1, groups * longest, keys]: 0 where a query may look, -inf where it may not.

        A view of [rows, keys] where the queries of a row see the same.
        In the weights' dtype, once for all layers: given as booleans, every layer would turn it so.
        """
        weight = net.embedding
        key = torch.arange(self.keys, device=weight.device)
        seen = (key < places.end[:, None])[:, None]  # [rows, 1, keys]
        if net.net.config.causal:
            query = places.start[:, None] + torch.arange(self.longest, device=weight.device)
            seen = seen & (key <= query[:, :, None])
        mask = torch.zeros(seen.shape, dtype=weight.dtype, device=weight.device)
        mask = mask.masked_fill_(~seen, NEVER).expand(-1, self.longest, -1)[:, None]
        groups = net.heads // net.kv_heads
        return mask.expand(-1, groups, -1, -1).reshape(self.rows, 1, -1, self.keys)

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        self.cache.keys[layer][self.row, :, self.position] = k.transpose(0, 1)
        self.cache.values[layer][self.row, :, self.position] = v.transpose(0, 1)

    def narrow(self, wanted: Tensor) -> None:
        self.row, self.place = self.row[wanted], self.place[wanted]

    def __call__(self, layer: int, q: Tensor) -> Tensor:
        _, asking, size = q.shape
        self.queries[self.row, :, self.place] = q.transpose(0, 1)
        out = F.scaled_dot_product_attention(
            self.queries.view(self.rows, self.kv_heads, -1, size),
            self.cache.keys[layer, : self.rows, :, : self.keys],
            self.cache.values[layer, : self.rows, :, : self.keys],
            attn_mask=self.mask,
        )
        # Kernels differ in how their result lies in memory: a dimension split is a view of each.
        by_head = out.view(self.rows, self.kv_heads, -1, self.longest, size)
        return by_head[self.row, :, :, self.place].reshape(asking, -1)
