"""The core on its own: causality, padding, RoPE tables, cache bookkeeping, counting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apdcli.errors import ModelError
from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig
from apdcli.models.transformer import Transformer, rope_table, rotate

DREAM = {
    "model_type": "Dream",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "mask_token_id": 3,
    "eos_token_id": [0, 2],
    "hidden_act": "silu",
}


def small(**changes: object) -> Transformer:
    config = replace(ModelConfig.from_hf(DREAM), **changes)  # type: ignore[arg-type]
    net = Transformer(config)
    net.init_weights(torch.Generator().manual_seed(0), std=0.2)
    return net.eval()


TOKENS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@torch.inference_mode()
def test_causal_looks_back_only_and_bidirectional_does_not() -> None:
    changed = TOKENS.clone()
    changed[0, 4] = 20
    for causal in (True, False):
        net = small(causal=causal)
        same = torch.isclose(net.hidden(TOKENS), net.hidden(changed)).all(-1)[0, :4]
        assert same.all() == causal


@torch.inference_mode()
@pytest.mark.parametrize("causal", [True, False])
def test_padding_is_never_attended_to(causal: bool) -> None:
    net = small(causal=causal)
    padded = torch.cat((TOKENS, torch.tensor([[11, 12]])), dim=1)
    mask = torch.tensor([[True] * 6 + [False] * 2])
    torch.testing.assert_close(net.hidden(padded, mask=mask)[:, :6], net.hidden(TOKENS))


@torch.inference_mode()
def test_rope_turns_by_position_and_scores_depend_on_distance_only() -> None:
    config = ModelConfig.from_hf(DREAM)
    cos, sin = rope_table(config, 50)
    q, k = torch.randn(2, 1, 1, 1, config.head_dim)

    def score(i: int, j: int) -> float:
        at_i, at_j = rotate(q, cos[i : i + 1], sin[i : i + 1]), rotate(k, cos[j], sin[j])
        return float((at_i * at_j).sum())

    assert score(7, 3) == pytest.approx(score(44, 40), abs=1e-5)
    assert score(7, 3) != pytest.approx(score(7, 5), abs=1e-3)
    torch.testing.assert_close(rotate(q, cos[:1], sin[:1]), q)


@torch.inference_mode()
def test_rope_tables_grow_to_the_context_and_no_further() -> None:
    net = small()
    assert len(net.cos) == 1024
    cache = KVCache(net.config, 4096)
    short = net.hidden(TOKENS)
    net.hidden(TOKENS, 1500, cache)
    assert 1506 <= len(net.cos) <= 4096
    assert not net.cos.is_inference()
    torch.testing.assert_close(net.hidden(TOKENS), short, rtol=0, atol=0)
    with pytest.raises(ValueError, match="context is 4096"):
        net.hidden(TOKENS, 4091, cache)


def test_crop_only_ever_shortens() -> None:
    cache = KVCache(ModelConfig.from_hf(DREAM), 16)
    cache.length = 9
    for length, expected in ((12, 9), (4, 4), (-1, 0)):
        cache.crop(length)
        assert cache.length == expected
    assert cache.capacity == 16


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_and_tied_heads_are_shared(tied: bool) -> None:
    net = small(tied=tied)
    assert net.config.num_parameters == sum(p.numel() for p in net.parameters())
    assert ("lm_head.weight" in net.state_dict()) != tied
    assert net.head(torch.zeros(3, 32)).shape == (3, 40)


def test_config_reads_what_the_families_say() -> None:
    dream = ModelConfig.from_hf(DREAM)
    assert (dream.causal, dream.shift, dream.mask_id, dream.stop_ids) == (False, True, 3, (0, 2))
    assert dream.rope_theta == 10000.0
    newer = {**DREAM, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert ModelConfig.from_hf(newer).rope_theta == 5e5
    qwen = ModelConfig.from_hf({**DREAM, "model_type": "qwen2"})
    assert (qwen.causal, qwen.shift, qwen.mask_id) == (True, False, None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, "'llama'.*known families: .*Dream.*qwen2"),
        ({"hidden_size": 0}, "hidden_size must be a positive integer, not 0"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer"),
        ({"num_key_value_heads": 3}, "not a multiple"),
        ({"mask_token_id": 40}, r"mask_token_id \(40\)"),
        ({"mask_token_id": None}, "mask_token_id must be a token id"),
        ({"rope_scaling": {"type": "yarn"}}, "'yarn'"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rms_norm_eps": -1}, "rms_norm_eps"),
        ({"eos_token_id": ["x"]}, "eos_token_id"),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(
    change: dict[str, object], words: str
) -> None:
    with pytest.raises(ModelError, match=f"^some/config.json: .*{words}"):
        ModelConfig.from_hf({**DREAM, **change}, "some/config.json")
