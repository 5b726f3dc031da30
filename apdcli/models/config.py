"""What a transformer of one of the supported families looks like, read from its config.json.

Knows nothing of files: `load.weights` reads the JSON and passes the dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apdcli.errors import ModelError


@dataclass(frozen=True)
class ModelConfig:
    """Shape and quirks of one model. The families differ in these values and nowhere else.

    Attributes:
        family: "Dream" (bidirectional, Qwen2 layout, shifted outputs), "qwen2" (causal) or
            "llada" (bidirectional, no shift).
        vocab_size: rows of the embedding and the head, padding rows included.
        causal: attention looks back only.
        shift: output j predicts position j + 1 (Dream was adapted from an autoregressive model
            and keeps its shift; arXiv 2508.15487, section 3); False: output j predicts j.
        tied: the head is the embedding matrix.
        qkv_bias: the q, k and v projections have a bias.
        mask_id: id of the mask token; None for autoregressive models.
        stop_ids: ids that end a text.
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int
    causal: bool
    shift: bool
    tied: bool
    qkv_bias: bool
    mask_id: int | None = None
    stop_ids: tuple[int, ...] = ()

    @property
    def layers_key(self) -> str:
        """What the family's config.json calls `num_layers`."""
        return "n_layers" if self.family == "llada" else "num_hidden_layers"

    @property
    def tied_key(self) -> str:
        """What the family's config.json calls `tied`."""
        return "weight_tying" if self.family == "llada" else "tie_word_embeddings"

    @property
    def num_parameters(self) -> int:
        """Trainable numbers in the model; a tied head counts once."""
        h, kv = self.hidden_size, self.num_kv_heads * self.head_dim
        q = self.num_heads * self.head_dim
        attention = h * (q + 2 * kv) + q * h + ((q + 2 * kv) if self.qkv_bias else 0)
        layer = attention + 3 * h * self.intermediate_size + 2 * h
        heads = 1 if self.tied else 2
        return self.num_layers * layer + heads * self.vocab_size * h + h

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """Parse the dictionary of a hub folder's config.json.

        Args:
            config: the parsed JSON.
            where: the file's name for error messages.

        Raises:
            ModelError: unknown family, a missing or impossible value, or a feature that would
                change the numbers and is not supported (RoPE scaling, sliding windows).
        """
        family = config.get("model_type")
        if not isinstance(family, str) or family not in _FAMILIES:
            raise ModelError(
                f"{where}: model_type is {family!r}, which apd does not know; "
                f"known families: {', '.join(sorted(_FAMILIES))}"
            )
        parsed = _FAMILIES[family](_Reader(config, where))
        parsed._check(where)
        return parsed

    def _check(self, where: str) -> None:
        problem = ""
        unwritten = [i for i in self.stop_ids if not 0 <= i < self.vocab_size]
        if self.num_heads % self.num_kv_heads:
            problem = (
                f"num_attention_heads ({self.num_heads}) is not a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        elif self.head_dim % 2:
            problem = f"the head size ({self.head_dim}) is odd, RoPE needs an even one"
        elif self.mask_id is not None and not 0 <= self.mask_id < self.vocab_size:
            problem = f"mask_token_id ({self.mask_id}) is not below vocab_size ({self.vocab_size})"
        elif unwritten:
            problem = f"eos_token_id ({unwritten[0]}) is not below vocab_size ({self.vocab_size})"
        elif self.mask_id in self.stop_ids:
            problem = (
                f"mask_token_id and eos_token_id are both {self.mask_id}: a mask cannot end a text"
            )
        if problem:
            raise ModelError(f"{where}: {problem}")


class _Reader:
    """Typed access to a config dictionary, with errors that name the key and the file."""

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ModelError(f"{self.where}: {key} must be a positive integer, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.config.get(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _is_size(value):
            raise ModelError(f"{self.where}: {key} must be a positive number, not {value!r}")
        return float(value)

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.config.get(key) or {}
        if not isinstance(value, Mapping):
            raise ModelError(f"{self.where}: {key} must be a table, not {value!r}")
        return value

    def token_id(self, key: str) -> int:
        value = self.config.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelError(f"{self.where}: {key} must be a token id, not {value!r}")
        return value

    def stop_ids(self) -> tuple[int, ...]:
        value = self.config.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ModelError(f"{self.where}: eos_token_id must be token ids, not {value!r}")
        return tuple(ids)

    def refuse(self, key: str, reason: str) -> None:
        if self.config.get(key):
            raise ModelError(
                f"{self.where}: {key} = {self.config[key]!r} is not supported ({reason})"
            )


def _is_size(value: float) -> bool:
    """Whether a number is above 0 and a float can hold it; JSON's may be NaN or of 400 digits."""
    try:
        return 0.0 < float(value) < math.inf
    except OverflowError:
        return False


def _rope_theta(reader: _Reader) -> float:
    """RoPE base; transformers 5 writes it inside `rope_parameters`, earlier ones at top level."""
    rope, scaling = reader.table("rope_parameters"), reader.table("rope_scaling")
    for table in (rope, scaling):
        kind = table.get("rope_type", table.get("type", "default"))
        if kind != "default":
            raise ModelError(
                f"{reader.where}: RoPE scaling of type {kind!r} is not supported; "
                "use a checkpoint without rope_scaling"
            )
    if "rope_theta" in rope:
        return _Reader(rope, f"{reader.where}: rope_parameters").number("rope_theta")
    return reader.number("rope_theta", 10000.0)


def _qwen2_layout(reader: _Reader, *, diffusion: bool) -> ModelConfig:
    reader.refuse("use_sliding_window", "every layer attends to the whole context here")
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    activation = reader.config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"{reader.where}: hidden_act {activation!r} is not supported, only 'silu'")
    return ModelConfig(
        family="Dream" if diffusion else "qwen2",
        vocab_size=reader.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=reader.integer("intermediate_size"),
        num_layers=reader.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=reader.integer("num_key_value_heads", heads),
        head_dim=reader.integer("head_dim", max(hidden // heads, 1)),
        rope_theta=_rope_theta(reader),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-6),
        max_positions=reader.integer("max_position_embeddings"),
        causal=not diffusion,
        shift=diffusion,
        tied=bool(reader.config.get("tie_word_embeddings", False)),
        qkv_bias=True,
        mask_id=reader.token_id("mask_token_id") if diffusion else None,
        stop_ids=reader.stop_ids(),
    )


# What LLaDA's config class can switch and its published checkpoints leave at one value.
_LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "layer_norm_with_affine": (True, None),
    "block_group_size": (1, None),
    "alibi": (False, None),
    "multi_query_attention": (False, None),
    "attention_layer_norm": (False, None),
    "input_emb_norm": (False, None),
    "include_bias": (False, None),
    "include_qkv_bias": (False, None),
    "bias_for_layer_norm": (False, None),
    "scale_logits": (False, None),
}


def _llada_layout(reader: _Reader) -> ModelConfig:
    """LLaDA (arXiv 2502.09992): a bidirectional Llama in OLMo's names, without biases or shift."""
    for key, supported in _LLADA_FIXED.items():
        value = reader.config.get(key)
        if value not in supported:
            raise ModelError(
                f"{reader.where}: {key} = {value!r} is not supported, only {supported[0]!r}"
            )
    hidden, heads = reader.integer("d_model"), reader.integer("n_heads")
    return ModelConfig(
        family="llada",
        # The matrices may have more rows than the vocabulary.
        vocab_size=reader.integer("embedding_size", reader.integer("vocab_size")),
        hidden_size=hidden,
        intermediate_size=reader.integer(
            "mlp_hidden_size", reader.integer("mlp_ratio", 4) * hidden
        ),
        num_layers=reader.integer("n_layers"),
        num_heads=heads,
        num_kv_heads=reader.integer("n_kv_heads", heads),
        head_dim=max(hidden // heads, 1),
        rope_theta=_rope_theta(reader),
        rms_norm_eps=reader.number("rms_norm_eps", 1e-5),
        max_positions=reader.integer("max_sequence_length"),
        causal=False,
        shift=False,
        tied=bool(reader.config.get("weight_tying", True)),
        qkv_bias=False,
        mask_id=reader.token_id("mask_token_id"),
        stop_ids=reader.stop_ids(),
    )


_FAMILIES = {
    "Dream": lambda reader: _qwen2_layout(reader, diffusion=True),
    "qwen2": lambda reader: _qwen2_layout(reader, diffusion=False),
    "llada": _llada_layout,
}
