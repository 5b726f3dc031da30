"""The same transformer with fewer, larger steps: fused weights and one text at a time.

Computes what `Transformer.hidden` computes for a batch of one. The weights are not copied: packing
joins what is multiplied with the same input (q, k and v; gate and up) and leaves the network's own
parameters as views of the joined matrices. On a CPU matrices are kept as [in, out], in which order
its library multiplies few rows a third faster. Knows nothing of masks, shifts or banned ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apdcli.models.cache import KVCache
from apdcli.models.transformer import Layer, Transformer

# Positions that go through a layer together: more take memory and gain no time.
_CPU_ROWS, _GPU_ROWS = 256, 384
# Queries of a causal network that a CPU asks at a time, each piece for no more keys than it sees.
_CAUSAL_ROWS = 128
# A matrix whose rows lie a multiple of so many bytes apart fills few sets of a CPU's cache: its
# rows get a cache line more, and a product with few positions takes 4 to 12 % less time.
_PAGE, _LINE = 4096, 64
NEVER = float("-inf")


@dataclass(frozen=True)
class PackedLayer:
    """One layer's weights, each [in, out], and its norms' [hidden]."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @cached_property
    def gate(self) -> Tensor:
        """The first half of `gate_up`."""
        return self.gate_up[:, : self.down.shape[0]]

    @cached_property
    def up(self) -> Tensor:
        """The other half."""
        return self.gate_up[:, self.down.shape[0] :]


class Packed:
    """A Transformer's forward over fused weights; made by :func:`packed`.

    Attributes:
        net: the network whose weights these are.
        head: [hidden, vocab].
        plain: whether plain products and sums beat torch's fused functions, as on a CPU in float32.
    """

    def __init__(self, net: Transformer) -> None:
        config = net.config
        weight = net.model.embed_tokens.weight
        self._on_cpu = weight.device.type == "cpu"
        self.net = net
        self.plain = self._transposed = self._on_cpu and weight.dtype == torch.float32
        self.layers = [self._pack(layer) for layer in net.model.layers]  # type: ignore[arg-type]
        # A tied head stays as the embedding needs it.
        self.head = weight.t() if config.tied else self.joined(net.lm_head)
        self.norm = net.model.norm.weight
        self.embedding = weight
        self.spare_buffers: list[Any] = []  # of `engine.graphs`, between two generations
        self.graphs_failed = False
        self.rows_failed = False  # of `engine.batch_forward`, as what follows
        self.rows_checked: set[int] = set()
        self.eps = config.rms_norm_eps
        self._share = 1 / config.hidden_size
        self._eps = torch.tensor(self.eps, device=weight.device)  # for one fused call, see `rms`
        self._rows = _CPU_ROWS if self._on_cpu else _GPU_ROWS
        self._later: Tensor | None = None
        self.heads, self.kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.head_dim
        self._turns(net.cos, net.sin)

    def _pack(self, layer: Layer) -> PackedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        projections = [attention.q_proj, attention.k_proj, attention.v_proj]
        bias = None
        if attention.q_proj.bias is not None:
            bias = torch.cat([linear.bias for linear in projections])
        return PackedLayer(
            attention_norm=layer.input_layernorm.weight,
            qkv=self.joined(*projections),
            qkv_bias=bias,
            out=self.joined(attention.o_proj),
            mlp_norm=layer.post_attention_layernorm.weight,
            gate_up=self.joined(mlp.gate_proj, mlp.up_proj),
            down=self.joined(mlp.down_proj),
        )

    def joined(self, *linears: nn.Linear) -> Tensor:
        """[in, sum of outs] of all weights; each linear's own becomes a view of it."""
        widths = [linear.out_features for linear in linears]
        if len(linears) == 1 and not self._transposed:
            return linears[0].weight.t()
        weights = [linear.weight for linear in linears]
        if self._transposed:
            joined = _spread(weights[0], linears[0].in_features, sum(widths))
            torch.cat([weight.t() for weight in weights], dim=1, out=joined)
        else:
            joined = torch.cat(weights).t()
        end = 0
        for linear, width in zip(linears, widths, strict=True):
            begin, end = end, end + width
            linear.weight = nn.Parameter(joined[:, begin:end].t(), requires_grad=False)
        return joined

    def hidden(
        self,
        tokens: Tensor,
        start: int,
        cache: KVCache,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
        """Hidden states after the last norm of some of the positions run.

        Args:
            tokens: [T] int64, standing at positions start .. start + T - 1.
            start: first position; the cache holds those before it.
            cache: as in `Transformer.hidden`.
            first, last: outputs wanted, [first, last) of the T. The last layer runs no others
                through attention and MLP; their keys and values are written all the same.

        Returns:
            [last - first, hidden].
        """
        length = len(tokens)
        end = start + length
        valid = max(end, cache.length)
        cos, sin = self.rope(start, end)
        both = cache.both[:, 0]
        seen = both[:, :, :valid]
        layers = zip(
            self.layers,
            both[:, :, start:end].unbind(0),
            seen[:, : self.kv_heads].unbind(0),
            seen[:, self.kv_heads :].unbind(0),
            strict=True,
        )
        x = F.embedding(tokens, self.embedding)
        wanted = slice(first, length if last is None else last)
        for layer, new, k, v in layers:
            asking = wanted if layer is self.layers[-1] else slice(0, length)
            if length > self._rows:
                x = self._long_layer(layer, x, (cos, sin), new, (k, v), start, asking)
                continue
            by_head = self._by_head(layer, x, cos, sin)
            new.copy_(by_head[self.heads :])
            q = by_head[: self.heads]
            if asking != slice(0, length):
                x, q = x[asking], q[:, asking]
            x.addmm_(self.attend(q, k, v, start + asking.start), layer.out)
            del by_head, q  # the MLP needs the room
            x = self.mlp(layer, x)
        cache.length = valid
        return self.rms(x, self.norm)

    def _long_layer(
        self,
        layer: PackedLayer,
        x: Tensor,
        turns: tuple[Tensor, Tensor],
        new: Tensor,
        seen: tuple[Tensor, Tensor],
        start: int,
        asking: slice,
    ) -> Tensor:
        """A layer over many positions, some at a time: what they need is several times x.

        First everyone's keys and values, then the outputs of those `asking`, written over x. A
        GPU's flash kernel takes causal queries as a whole, or else with a mask: so these are made
        with their keys, and wait.

        Returns:
            x [asking, hidden].
        """
        cos, sin = turns
        queries = self.heads * self.head_dim
        whole = self.net.config.causal and not self.plain
        early = (None, None) if whole else (slice(queries, None), self.kv_heads)
        q = x.new_empty(self.heads if whole else 0, len(x), self.head_dim)
        for begin in range(0, len(x), self._rows):
            rows = slice(begin, begin + self._rows)
            by_head = self._by_head(layer, x[rows], cos[rows], sin[rows], *early)
            new[:, rows] = by_head[-2 * self.kv_heads :]
            q[:, rows] = by_head[: len(q)]
            del by_head
        x, cos, sin, q = x[asking], cos[asking], sin[asking], q[:, asking]
        if whole:
            x.addmm_(self.attend(q, *seen, start + asking.start), layer.out)
            del q
            return self.mlp(layer, x)
        for begin in range(0, len(x), self._rows):
            rows = slice(begin, begin + self._rows)
            part = x[rows]
            q = self._by_head(layer, part, cos[rows], sin[rows], slice(0, queries), self.heads)
            part.addmm_(self.attend(q, *seen, start + asking.start + begin), layer.out)
            del q
            self.mlp(layer, part)
        return x

    def rope(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines [end - start, head_dim] as `project` needs them."""
        net = self.net
        if net.cos is not self._cosines or end > len(self._cos):
            net._rope(0, end, self.embedding.dtype)  # the network's own table grows
            self._turns(net.cos, net.sin)
        return self._cos[start:end], self._sin[start:end]

    def _turns(self, cos: Tensor, sin: Tensor) -> None:
        """Keep the network's tables [positions, head_dim] as `project` needs them."""
        dtype = self.embedding.dtype
        with torch.inference_mode(False), torch.no_grad():
            self._cosines, self._cos = cos, cos.to(dtype)
            self._sin = sin.to(dtype, copy=True)
            self._sin[:, : self.head_dim // 2].neg_()

    def project(
        self, layer: PackedLayer, x: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [T, hidden] -> rotated q [heads, T, head_dim] and k, v [kv_heads, T, head_dim].

        `sin` [T, head_dim] is negative in its first half.
        """
        by_head = self._by_head(layer, x, cos, sin)
        q, k, v = torch.split(by_head, [self.heads, self.kv_heads, self.kv_heads])
        return q, k, v

    def _by_head(
        self,
        layer: PackedLayer,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        columns: slice | None = None,
        turning: int | None = None,
    ) -> Tensor:
        """`project` in one array: the heads of q, then k, then v, each [T, head_dim].

        Args:
            columns: of `layer.qkv` that are wanted, if not all.
            turning: how many of these heads are rotated, from the first.
        """
        normed = self.rms(x, layer.attention_norm)
        weight, bias = layer.qkv, layer.qkv_bias
        if columns is not None:
            weight, bias = weight[:, columns], None if bias is None else bias[columns]
        joined = torch.mm(normed, weight) if bias is None else torch.addmm(bias, normed, weight)
        by_head = joined.view(x.shape[0], -1, self.head_dim).transpose(0, 1).contiguous()
        turned = by_head[: turning or self.heads + self.kv_heads]
        other = turned.roll(self.head_dim // 2, -1)
        turned.mul_(cos).addcmul_(other, sin)
        return by_head

    def mlp(self, layer: PackedLayer, x: Tensor) -> Tensor:
        """x [T, hidden] with the MLP's output added, in place."""
        for rows in (x,) if x.shape[0] <= self._rows else torch.split(x, self._rows):
            normed = self.rms(rows, layer.mlp_norm)
            if self.plain:  # two products cost no more, and leave their results in one piece
                gate, up = torch.mm(normed, layer.gate), torch.mm(normed, layer.up)
            else:
                gate, up = torch.mm(normed, layer.gate_up).chunk(2, -1)
            rows.addmm_(F.silu(gate, inplace=True).mul_(up), layer.down)
        return x

    def rms(self, x: Tensor, weight: Tensor) -> Tensor:
        """`transformer.RMSNorm` of x [T, hidden]."""
        if not self.plain:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        norm = torch.linalg.vector_norm(x, 2, -1, True)
        scale = torch.addcmul(self._eps, norm, norm, value=self._share).rsqrt_()
        return torch.mul(x, scale).mul_(weight)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, at: int) -> Tensor:
        """Attention by what is fastest on the device.

        Args:
            q: [heads, T, head_dim], of positions at .. at + T - 1.
            k, v: [kv_heads, keys, head_dim], of positions 0 .. keys - 1. Causal queries see those
                up to their own, others all.

        Returns:
            [T, heads * head_dim].
        """
        length = q.shape[1]
        causal = self.net.config.causal
        if causal and k.shape[1] > at + length:
            k, v = k[:, : at + length], v[:, : at + length]
        causal = causal and length > 1
        if causal and self._on_cpu:
            if length <= _CAUSAL_ROWS:
                return self.flash(q, k, v, self._up_to_own(at, length))
            parts = enumerate(torch.split(q, _CAUSAL_ROWS, 1))
            return torch.cat([self.attend(q, k, v, at + n * _CAUSAL_ROWS) for n, q in parts])
        if not causal or at == 0:
            return self.flash(q, k, v, None, causal)
        allowed = torch.ones(length, k.shape[1], dtype=torch.bool, device=q.device).tril_(at)
        return self.flash(q, k, v, allowed)

    def _up_to_own(self, at: int, length: int) -> Tensor:
        """[length, at + length]: 0 where a query from position `at` on may look, else -inf.

        Made anew for each layer: kept, it would be there beside a step's logits.
        """
        if self._later is None:
            later = self.embedding.new_full((_CAUSAL_ROWS, _CAUSAL_ROWS), NEVER)
            self._later = later.triu_(1)
        mask = self.embedding.new_zeros(length, at + length)
        mask[:, at:] = self._later[:length, :length]
        return mask

    def flash(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, is_causal: bool = False
    ) -> Tensor:
        """Attention by torch's fused kernels.

        `allowed` [T, keys] is bool, or what is added to the scores, or None for all keys.
        q [heads, T, head_dim], k and v [kv_heads, keys, head_dim] -> [T, heads * head_dim].
        """
        length = q.shape[1]
        if not is_causal:
            # Heads that share keys, as more queries of one head: torch 2.8 has no fast kernel on
            # a CPU that knows of groups, and CUDA none that takes a mask and knows of them.
            q = q.reshape(self.kv_heads, -1, self.head_dim)
            if allowed is not None and len(q) < self.heads:
                allowed = allowed.repeat(self.heads // self.kv_heads, 1)
        out = F.scaled_dot_product_attention(
            q[None],
            k[None],
            v[None],
            attn_mask=allowed,
            is_causal=is_causal,
            enable_gqa=len(q) != len(k),
        )
        by_head = out.view(len(q), -1, length, self.head_dim)
        return by_head.permute(2, 0, 1, 3).reshape(length, -1)


def _spread(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty [rows, columns] whose rows do not fall on the same sets of a cache."""
    size = like.element_size()
    more = _LINE // size if columns * size % _PAGE == 0 else 0
    return like.new_empty(rows, columns + more)[:, :columns]


def packed(net: Transformer) -> Packed:
    """The packed form of a loaded network; made once, kept with the network.

    From then on the network's parameters are views of the joined matrices: it computes as before,
    and must not be moved or cast.
    """
    if net.packed is None:
        with torch.inference_mode(False), torch.no_grad():
            net.packed = Packed(net)
    made: Packed = net.packed
    return made
