"""What CUDA graphs run over: static buffers, the forward between them, and its recording.

Everything stands where it stood at every replay. Windows are padded to a few lengths ("buckets")
and keys likewise; where a window begins and ends is read on the device, so that a step has two
small copies to make before a replay and nothing else to launch.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from apdcli.decode.noise import KeyedNoise
from apdcli.decode.sampling import NEVER
from apdcli.engine import layer as layers
from apdcli.engine.device import attention_kernels
from apdcli.models.cache import KVCache
from apdcli.models.packed import Packed, PackedLayer
from apdcli.models.rows import LENGTHS

# Positions that one graph runs, and rows of the head; longer forwards are not recorded.
BUCKETS = LENGTHS
# Keys that a graph attends to: this, doubled until it is enough. Room for texts grows by it, too.
KEYS = 256
# Positions behind a text where the padding of windows is written, all of it to the first: as many
# as kernels that take a mask want a number of keys to be a multiple of.
SPARE = 8
# Columns of logits, so that rows begin where fast kernels like them to.
COLUMNS = 64

Function = Callable[[], Tensor]


class Window(NamedTuple):
    """Where the positions that are run stand, and what they see.

    Attributes:
        positions: [T] int64; that of all padding is the first behind the text.
        cos, sin: [T, head_dim], see `Packed.project`.
        mask: [groups * T, keys], 0 or -inf; `groups` query heads share a key.
    """

    positions: Tensor
    cos: Tensor
    sin: Tensor
    mask: Tensor


# (weights, x [T, hidden], window, k and v [kv_heads, capacity, head_dim]) -> x [T, hidden]
Layer = Callable[[PackedLayer, Tensor, Window, Tensor, Tensor], Tensor]


def bucket(size: int) -> int | None:
    """The smallest bucket that holds `size`; None where none does."""
    return next((b for b in BUCKETS if b >= size), None)


def record(function: Function, device: torch.device, pool: Any) -> Function:
    """The same function, replayed by the GPU alone; on other devices the function itself.

    Args:
        function: reads and writes the same tensors at every call, and waits for nothing.
        device: where these are.
        pool: see `Buffers`.
    """
    if device.type != "cuda":
        return function
    with torch.cuda.device(device), attention_kernels(device):
        # Warm-up compiles kernels and allocates workspaces, which must not be recorded. Always on
        # the same stream: a matrix library keeps a workspace for every stream that it has seen.
        aside = _aside(torch.cuda.current_device())
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            function()
            function()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # What another thread asks of the device is no part of it, and no fault.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode=mode):
            made = function()

    def replay() -> Tensor:
        graph.replay()
        return made

    return replay


@functools.cache
def _aside(device: int) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@functools.cache
def _pool(device: int, stream: int) -> Any:
    return torch.cuda.graph_pool_handle()


@dataclass
class Buffers:
    """What one network's graphs read and write; lent to one generation at a time.

    Attributes:
        cache: with room for the padding of a window behind the longest text.
        tokens: [largest bucket] int64, the window.
        draft: [largest bucket] int64, what the verifier is to judge.
        facts: [6] int64: where the window begins in the text, the first of its outputs whose
            logits are wanted (counted from the window's first), one past the last valid position,
            the draft's length, and the key of its noise (`decode.noise.KeyedNoise`).
        accepted: [1] int64, the verifier's answer.
        up: [largest bucket] int64, 0, 1, 2, ...
        cos, sin: [positions, head_dim]; `sin` negative in its first half.
        logits: [rows, columns] float32, the denoiser's answer; grows when more rows are asked for.
        banned: [vocab] bool, the ids that the graphs' logits may not hold.
        banned_ids: [k] int64, the same. The graphs read it: it lives as long as they.
        graphs: by what was recorded, the function that runs it again.
        pool: the memory of what is made on the way. All graphs of a stream share one: they run
            one after another, and leave nothing in it.
    """

    cache: KVCache
    tokens: Tensor
    draft: Tensor
    facts: Tensor
    accepted: Tensor
    up: Tensor
    cos: Tensor
    sin: Tensor
    logits: Tensor
    banned: Tensor
    banned_ids: Tensor
    graphs: dict[Hashable, Function] = field(default_factory=dict)
    pool: Any = None

    @classmethod
    def allocate(cls, packed: Packed, capacity: int) -> Buffers:
        """Buffers for texts of `capacity` positions, or a few more."""
        config, weight = packed.net.config, packed.embedding
        device, largest = weight.device, BUCKETS[-1]
        room = room_for(capacity)
        cos, sin = packed.rope(0, min(room, config.max_positions))
        if len(cos) < room:  # nothing stands behind the context but padding, which needs some angle
            behind = (0, 0, 0, room - len(cos))
            cos, sin = F.pad(cos, behind), F.pad(sin, behind)

        def ids(size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int64, device=device)

        pool = None
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device)
            pool = _pool(stream.device_index, stream.cuda_stream)
        return cls(
            cache=KVCache(config, room, device=device, dtype=weight.dtype),
            tokens=ids(largest),
            draft=ids(largest),
            facts=ids(6),
            accepted=ids(1),
            up=torch.arange(largest, device=device),
            cos=cos,
            sin=sin,
            logits=torch.empty(0, 0, device=device),
            banned=torch.empty(0, dtype=torch.bool),
            banned_ids=ids(0),
            pool=pool,
        )

    def forbid(self, banned: Tensor, banned_ids: Tensor) -> None:
        """Take over which ids may not be produced: graphs recorded for others are dropped."""
        if banned is not self.banned:
            self.graphs.clear()
            self.banned, self.banned_ids = banned, banned_ids

    @property
    def count(self) -> Tensor:
        """[1] int64, the draft's length."""
        return self.facts[3:4]

    @property
    def key(self) -> Tensor:
        """[2] int64, the key of the draft's noise."""
        return self.facts[4:]

    def load(
        self,
        tokens: Tensor,
        start: int,
        first: int,
        draft: Tensor | None = None,
        noise: KeyedNoise | None = None,
    ) -> None:
        """Fill the buffers for a forward: two copies, one more with a draft, one with noise.

        Nothing waits.

        Args:
            tokens: [n] int64, of which those from `start` on are run.
            start: positions [0, start) are cached.
            first: the first position whose output is wanted.
            draft: [m] int64.
            noise: that of the draft.
        """
        length = len(tokens)
        count = 0 if draft is None else len(draft)
        # From ordinary memory: the driver has taken its own copy when the call returns.
        facts = torch.tensor((start, first - start, length, count))
        self.facts[:4].copy_(facts, non_blocking=True)
        self.tokens[: length - start].copy_(tokens[start:])
        if draft is not None:
            self.draft[:count].copy_(draft)
        if noise is not None:
            self.key.copy_(noise.key)

    def keys(self, length: int) -> int:
        """How many keys a graph for a text of `length` positions attends to."""
        keys = KEYS
        while keys < length:
            keys *= 2
        return min(keys, self.cache.capacity)

    def rows(self, rows: int, columns: int) -> Tensor:
        """The first `rows` rows of `logits`, made larger where needed."""
        old = self.logits
        if old.shape[0] < rows or old.shape[1] != columns:
            self.graphs.clear()  # they write to the old one
            more = 2 * old.shape[0] if old.shape[0] else 0  # a lookahead that grows, grows again
            self.logits = old.new_empty(0, 0)
            del old  # before its successor is there
            rows_now = max(rows, min(more, BUCKETS[-1]))
            self.logits = torch.zeros(rows_now, columns, device=self.tokens.device)
        return self.logits[:rows]


def needed_for(capacity: int) -> int:
    """Positions that texts of `capacity` take with the padding of a window behind them."""
    return capacity + SPARE


def room_for(capacity: int) -> int:
    """Positions to allocate for texts of `capacity`.

    In steps that are small beside it, so that texts of about one length share buffers.
    """
    step = max(KEYS, (1 << capacity.bit_length() - 1) // 16)
    return needed_for(math.ceil(capacity / step) * step)


def answer(
    packed: Packed,
    b: Buffers,
    head: Tensor,
    padded: int,
    rows: int,
    keys: int,
    into: Tensor | None = None,
    layer: Layer | None = None,
) -> Tensor:
    """Raw logits [rows, columns] of what the buffers hold: the part that is recorded.

    Args:
        packed: the network.
        b: its buffers, filled.
        head: [hidden, columns].
        padded, rows, keys: how many positions are run, outputs wanted, keys attended to.
        into: [rows, columns], to write them to; by default a new array in the weights' dtype.
        layer: in place of :func:`run_layer`.
    """
    start, first, end = b.facts[:3].unbind()
    positions = torch.minimum(b.up[:padded] + start, end)
    mask = _mask(packed, positions, end, keys)
    window = Window(positions, b.cos[positions], b.sin[positions], mask)
    x = F.embedding(b.tokens[:padded], packed.embedding)
    run = layer or functools.partial(run_layer, packed)
    for weights, k, v in zip(packed.layers, b.cache.keys, b.cache.values, strict=True):
        x = run(weights, x, window, k[0], v[0])
    wanted = (b.up[:rows] + first).clamp_max_(padded - 1)
    hidden = layers.norm(packed, x[wanted], packed.norm)
    if into is None:
        return torch.mm(hidden, head)
    if isinstance(head, Tensor) and head.dtype == into.dtype:
        return torch.mm(hidden, head, out=into)
    return into.copy_(torch.mm(hidden, head))


def run_layer(
    packed: Packed, weights: PackedLayer, x: Tensor, window: Window, k: Tensor, v: Tensor
) -> Tensor:
    """One layer: x [T, hidden] is written over; k and v [kv_heads, capacity, head_dim] filled."""
    keys = window.mask.shape[1]
    q = layers.queries(packed, weights, x, window, k, v)
    attended = _attend(packed, q, k[:, :keys], v[:, :keys], window.mask)
    return layers.mlp(packed, weights, x.addmm_(attended, weights.out))


def _mask(packed: Packed, positions: Tensor, end: Tensor, keys: int) -> Tensor:
    """[groups * positions, keys]: 0 where a query may look, -inf where it may not.

    In the weights' dtype, once for all layers: given as booleans, every layer would turn it so.
    """
    seen = torch.arange(keys, device=positions.device)
    allowed = (seen < end).expand(len(positions), keys)
    if packed.net.config.causal:
        allowed = allowed & (seen <= positions[:, None])
    mask = torch.zeros(allowed.shape, dtype=packed.embedding.dtype, device=positions.device)
    return mask.masked_fill_(~allowed, NEVER).repeat(packed.heads // packed.kv_heads, 1)


def _attend(packed: Packed, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """q [heads, T, head_dim], k and v [kv_heads, keys, head_dim] -> [T, heads * head_dim].

    Heads that share keys stand behind each other as more queries of one head: keys are not
    repeated, and the kernels that take a mask, which know nothing of groups, run.
    """
    length = q.shape[1]
    grouped = q.reshape(packed.kv_heads, -1, packed.head_dim)
    out = F.scaled_dot_product_attention(grouped[None], k[None], v[None], attn_mask=mask)
    by_head = out.view(packed.kv_heads, -1, length, packed.head_dim)
    return by_head.permute(2, 0, 1, 3).reshape(length, -1)
