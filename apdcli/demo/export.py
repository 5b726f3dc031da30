"""Writes a trained network as an ordinary hub folder of its family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from apdcli.demo import tokenizer as tokens
from apdcli.models.config import ModelConfig
from apdcli.models.transformer import Transformer


def hub_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """config.json as the family's own code reads it."""
    made: dict[str, Any] = {
        "architectures": ["DreamModel" if config.family == "Dream" else "Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": tokens.END_ID,
        "eos_token_id": tokens.END_ID,
        "pad_token_id": tokens.END_ID,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "max_window_layers": config.num_layers,
        "model_type": config.family,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": config.tied,
        "torch_dtype": dtype,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": config.vocab_size,
    }
    if config.mask_id is not None:
        made["mask_token_id"] = config.mask_id
    return made


def save_hub_folder(net: Transformer, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in float16, configuration, generation configuration and tokenizer files."""
    tokens.save(tokenizer, folder)
    tokens.write_json(folder / "config.json", hub_config(net.config, "float16"))
    generation = {
        "_from_model_config": True,
        "bos_token_id": tokens.END_ID,
        "eos_token_id": tokens.END_ID,
        "pad_token_id": tokens.END_ID,
        "use_cache": True,
    }
    tokens.write_json(folder / "generation_config.json", generation)
    weights = {
        name: tensor.detach().to("cpu", torch.float16).contiguous()
        for name, tensor in net.state_dict().items()
    }
    path = folder / "model.safetensors"
    save_file(weights, path, metadata={"format": "pt"})
    path.chmod(0o644)  # safetensors writes files that only their owner may read
