"""One transformer for every family: RMSNorm, RoPE, grouped-query attention, SwiGLU.

Which way attention looks, biases and tying are configuration. The core knows nothing of prompts,
masks, shifts or vocabularies: it maps token ids to hidden states, and hidden states to raw outputs.
Parameter names are those of the Qwen2 and Dream hub folders; other layouts map onto them in
`models.names`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig


class RMSNorm(nn.Module):
    """Scale to unit root mean square, in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


def rope_table(
    config: ModelConfig,
    positions: int,
    device: torch.device | str = "cpu",
    inverse_dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [positions, head_dim] float32 (arXiv 2104.09864).

    `inverse_dtype` rounds the inverse frequencies; see `load.weights` for the one case that does.
    """
    half = torch.arange(0, config.head_dim, 2, dtype=torch.int64, device=device).float()
    inverse = (1.0 / (config.rope_theta ** (half / config.head_dim))).to(inverse_dtype).float()
    angles = torch.outer(torch.arange(positions, device=device).float(), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [batch, heads, T, head_dim] by cos and sin [T, head_dim], half against half."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and an optional KV cache."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_heads // config.num_kv_heads
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv, bias=config.qkv_bias)
        self.o_proj = nn.Linear(q, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        mask: Tensor | None,
        is_causal: bool,
        cache: KVCache | None,
        layer: int,
        start: int,
    ) -> Tensor:
        """x [B, T, hidden] -> [B, T, hidden]; mask broadcasts to [B, heads, T, keys], or None."""
        batch, length, _ = x.shape
        q, k, v = (
            projection(x).view(batch, length, -1, self.head_dim).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.write(layer, start, k, v)
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=is_causal, enable_gqa=self.groups > 1
        )
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added back."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class _Body(nn.Module):
    """Named `model` in the hub's layout: embedding, layers, last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """Token ids to hidden states to raw outputs.

    A tied head has no parameter of its own: `state_dict()` then lacks `lm_head.weight`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.packed: Any = None  # the fused form, once `models.packed` has made it
        self.refresh_rope("cpu")

    def refresh_rope(
        self, device: torch.device | str, inverse_dtype: torch.dtype = torch.float32
    ) -> None:
        """(Re)compute the RoPE tables on `device`, in float32 whatever the weights are."""
        self._inverse_dtype = inverse_dtype
        self._grow_rope(min(self.config.max_positions, 1024), device)

    def _grow_rope(self, positions: int, device: torch.device | str) -> None:
        # A context of 131,072 positions would take 134 MB of tables that few prompts ever read.
        with torch.inference_mode(False):
            cos, sin = rope_table(self.config, positions, device, self._inverse_dtype)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def _rope(self, start: int, end: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [start, end), each [end - start, head_dim]."""
        if end > self.config.max_positions:
            raise ValueError(f"position {end - 1}: the context is {self.config.max_positions}")
        if end > len(self.cos):  # an eighth more, so that a text that grows makes few tables
            self._grow_rope(min(self.config.max_positions, end + end // 8), self.cos.device)
        return self.cos[start:end].to(dtype), self.sin[start:end].to(dtype)

    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> None:
        """Normal(0, std) matrices, residual ones over sqrt(2 layers), zero biases."""
        residual = std / (2 * self.config.num_layers) ** 0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
                elif "norm" in name:
                    parameter.fill_(1.0)
                else:
                    ends = ("o_proj.weight", "down_proj.weight")
                    scale = residual if name.endswith(ends) else std
                    parameter.normal_(0.0, scale, generator=generator)

    def hidden(
        self,
        tokens: Tensor,
        start: int = 0,
        cache: KVCache | None = None,
        *,
        mask: Tensor | None = None,
        causal: bool | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            tokens: [B, T] int64, standing at positions start .. start + T - 1.
            start: first position; without a cache only 0 makes sense.
            cache: its positions [0, start) are attended to, and [start, start + T) are written;
                what is valid after them is attended to as well, so crop what should not be.
            mask: [B, T] bool, False for padding that nobody may attend to (without cache only).
            causal: override the configuration's direction (training).

        Returns:
            [B, T, hidden].
        """
        causal = self.config.causal if causal is None else causal
        length = tokens.shape[1]
        attend, is_causal = self._attention_mask(length, start, causal, mask, tokens.device)
        x = self.model.embed_tokens(tokens)
        rope = self._rope(start, start + length, x.dtype)
        for index, layer in enumerate(self.model.layers):
            normed = layer.input_layernorm(x)  # type: ignore[operator]
            x = x + layer.self_attn(normed, rope, attend, is_causal, cache, index, start)  # type: ignore[operator]
            x = x + layer.mlp(layer.post_attention_layernorm(x))  # type: ignore[operator]
        if cache is not None:
            cache.length = max(cache.length, start + length)
        return self.model.norm(x)  # type: ignore[no-any-return]

    @staticmethod
    def _attention_mask(
        length: int, start: int, causal: bool, padding: Tensor | None, device: torch.device
    ) -> tuple[Tensor | None, bool]:
        """(mask for SDPA or None, is_causal). No mask is built where SDPA needs none."""
        if padding is None and (not causal or length == 1):
            return None, False
        if padding is None and start == 0:
            return None, True
        if not causal:
            assert padding is not None
            return padding[:, None, None, :], False
        rows = torch.arange(start, start + length, device=device)[:, None]
        attend = torch.arange(start + length, device=device)[None, :] <= rows
        if padding is not None:
            return attend[None, None] & padding[:, None, None, :], False
        return attend, False

    def head(self, hidden: Tensor) -> Tensor:
        """Raw outputs [..., vocab_size] of hidden states [..., hidden]."""
        if self.config.tied:
            return F.linear(hidden, self.model.embed_tokens.weight)
        return self.lm_head(hidden)  # type: ignore[no-any-return]
