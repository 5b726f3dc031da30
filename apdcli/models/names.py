"""What each family's files call the parameters, and the shape each must have. Loads no torch.

The core (`models.transformer`) uses the names of the Qwen2 layout; a family with other names is a
row of replacements here and nothing anywhere else.
"""

from __future__ import annotations

from apdcli.models.config import ModelConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LAYER = "model.layers."

# family -> ((piece of the core's name, piece of the file's name), ...), applied in order.
_RENAMES: dict[str, tuple[tuple[str, str], ...]] = {
    "Dream": (),
    "qwen2": (),
    "llada": (
        ("model.", "model.transformer."),
        (HEAD, "model.transformer.ff_out.weight"),
        ("embed_tokens.", "wte."),
        ("layers.", "blocks."),
        ("self_attn.o_proj.", "attn_out."),
        ("self_attn.", ""),
        ("mlp.gate_proj.", "ff_proj."),
        ("mlp.up_proj.", "up_proj."),
        ("mlp.down_proj.", "ff_out."),
        ("input_layernorm.", "attn_norm."),
        ("post_attention_layernorm.", "ff_norm."),
        ("transformer.norm.", "transformer.ln_f."),
    ),
}


def file_name(family: str, core_name: str) -> str:
    """The name that `family`'s hub folders give to the core's parameter `core_name`."""
    for core_piece, file_piece in _RENAMES[family]:
        core_name = core_name.replace(core_piece, file_piece)
    return core_name


def layer_prefix(family: str) -> str:
    """What stands before a layer's number in the names of `family`'s files."""
    return file_name(family, _LAYER)


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter of the core by name, with its shape; a tied head has none of its own."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        at = f"{_LAYER}{index}."
        for name, rows in (("q_proj", q), ("k_proj", kv), ("v_proj", kv)):
            shapes[f"{at}self_attn.{name}.weight"] = (rows, hidden)
            if config.qkv_bias:
                shapes[f"{at}self_attn.{name}.bias"] = (rows,)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, q)
        shapes[f"{at}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{at}input_layernorm.weight"] = (hidden,)
        shapes[f"{at}post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tied:
        shapes[HEAD] = (config.vocab_size, hidden)
    return shapes
