"""LLaDA: its numbers, its names, its configuration, and decoding without a verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import apdcli
from apdcli.engine.eager import EagerDenoiser, banned_ids
from apdcli.errors import ModelError, UsageError
from apdcli.load.weights import load_transformer
from apdcli.models.config import ModelConfig
from apdcli.models.names import file_name, weight_shapes
from tests.conftest import DATA

LLADA = DATA / "hub_llada"
CONFIG: dict[str, Any] = json.loads((LLADA / "config.json").read_text())
GOLDEN: dict[str, Any] = json.loads((LLADA / "llada_golden.json").read_text())


def test_logits_equal_the_published_codes() -> None:
    golden = load_file(LLADA / "llada_golden.safetensors")
    logits = apdcli.load_denoiser(LLADA, device="cpu", dtype="float32").logits(
        golden["input_ids"].tolist()
    )
    defined = logits.isfinite()
    assert defined.sum() > 16 * 300
    assert (logits - golden["logits"])[defined].abs().max() <= 1e-4


def test_token_ids_equal_the_published_tokenizers() -> None:
    tokenizer = apdcli.load_tokenizer(LLADA)
    assert [tokenizer.encode(text) for text in GOLDEN["texts"]] == GOLDEN["token_ids"]


def test_the_name_table_covers_the_published_names() -> None:
    config = ModelConfig.from_hf(CONFIG)
    names = [file_name("llada", core) for core in weight_shapes(config)]
    index = json.loads((LLADA / "model.safetensors.index.json").read_text())
    assert sorted(names) == sorted(index["weight_map"])
    assert set(GOLDEN["weight_names"]) <= set(names)


def test_outputs_predict_their_own_position() -> None:
    net = load_transformer(LLADA, dtype="float32")
    assert not net.config.shift
    tokens = torch.tensor([7, 8, 5, 9])
    with torch.inference_mode():
        raw = net.head(net.hidden(tokens[None]))[0]
        rows = EagerDenoiser(net, banned_ids(range(384), 384, "cpu"), 8).logits(tokens, 0, 1)
    # The head over three rows and over four: some processors round these apart.
    torch.testing.assert_close(rows, raw[1:], atol=1e-6, rtol=1e-5)


def test_the_configuration_of_the_8b_model() -> None:
    # What GSAI-ML/LLaDA-8B-Instruct's config.json says, in its keys.
    sizes = {
        "d_model": 4096,
        "n_heads": 32,
        "n_kv_heads": 32,
        "n_layers": 32,
        "mlp_hidden_size": 12288,
        "vocab_size": 126464,
        "embedding_size": 126464,
        "max_sequence_length": 4096,
        "mask_token_id": 126336,
        "eos_token_id": 126081,
        "rope_theta": 500000.0,
    }
    config = ModelConfig.from_hf({**CONFIG, **sizes})
    assert config.num_parameters == pytest.approx(8.02e9, rel=0.01)
    assert (config.mask_id, config.stop_ids, config.head_dim) == (126336, (126081,), 128)
    assert {config.causal, config.shift, config.qkv_bias, config.tied} == {False}


def test_sizes_that_config_json_leaves_out() -> None:
    left_out = {"mlp_hidden_size": None, "n_kv_heads": None, "embedding_size": None}
    config = ModelConfig.from_hf({**CONFIG, **left_out})
    assert (config.intermediate_size, config.num_kv_heads) == (4 * 64, 4)
    assert config.vocab_size == CONFIG["vocab_size"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_type", "sequential"),
        ("activation_type", "gelu"),
        ("layer_norm_type", "default"),
        ("rope", False),
        ("alibi", True),
        ("include_bias", True),
        ("include_qkv_bias", True),
        ("multi_query_attention", True),
        ("attention_layer_norm", True),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("block_group_size", 2),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("mask_token_id", None),
        ("mask_token_id", 400),
        ("d_model", "wide"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key.removesuffix("_scaling")) as caught:
        ModelConfig.from_hf({**CONFIG, key: value}, "here/config.json")
    assert "here/config.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> apdcli.LoadedPair:
    folder: Path = tmp_path_factory.mktemp("profile")
    profile = folder / "small-llada.toml"
    profile.write_text(f'[denoiser]\nmodel = "{LLADA}"\ndevice = "cpu"\n')
    return apdcli.load_pair(profile)


@pytest.mark.parametrize("strategy", ["dico", "threshold", "confidence", "left_to_right"])
def test_decoding_needs_no_verifier(pair: apdcli.LoadedPair, strategy: str) -> None:
    done = apdcli.generate(pair, "Ada has 12 apples.", strategy=strategy, max_tokens=16)
    assert sum(done.accepted) == len(done.token_ids) <= 16
    assert CONFIG["mask_token_id"] not in done.token_ids
    assert done.usage.verifier_forwards == 0


def test_apd_is_refused_and_names_what_works(pair: apdcli.LoadedPair) -> None:
    with pytest.raises(UsageError, match=r"verifier.*dico") as caught:
        apdcli.generate(pair, "Ada has 12 apples.", strategy="apd")
    assert "\n" not in str(caught.value)
