"""The packed forward against the plain one: long texts in pieces, what is cached, what is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apdcli.bench.memory import LiveBytes
from apdcli.models import packed as module
from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig
from apdcli.models.packed import packed
from apdcli.models.transformer import Transformer

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "Dream",
        "vocab_size": 40,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "max_position_embeddings": 2048,
        "mask_token_id": 3,
        "eos_token_id": 0,
    }
)
# start, positions run, the outputs wanted; a start before what is cached crops first.
FORWARDS = (
    (0, 1, (0, 1)),
    (1, 30, (3, 20)),
    (20, 400, (100, 399)),
    (420, 5, (0, 5)),
    (425, 600, (1, 500)),
    (0, 700, (699, 700)),
    (690, 40, (10, 40)),
)


def network(causal: bool) -> Transformer:
    net = Transformer(replace(CONFIG, causal=causal, tied=causal, qkv_bias=not causal))
    net.init_weights(torch.Generator().manual_seed(0), std=0.2)
    return net.eval()


def same_forwards(plain: Transformer, fused: module.Packed) -> None:
    """Outputs, keys and values agree over `FORWARDS`."""
    caches = KVCache(plain.config, 1100), KVCache(plain.config, 1100)
    ids = torch.randint(0, 40, (1100,), generator=torch.Generator().manual_seed(1))
    for start, length, (first, last) in FORWARDS:
        for cache in caches:
            cache.crop(start)
        tokens = ids[start : start + length]
        whole = plain.hidden(tokens[None], start, caches[0])[0]
        some = fused.hidden(tokens, start, caches[1], first, last)
        torch.testing.assert_close(some, whole[first:last], atol=1e-4, rtol=1e-4)
        valid = slice(0, start + length)
        assert caches[0].length == caches[1].length == start + length
        for name in ("keys", "values"):
            mine, other = (getattr(cache, name)[..., valid, :] for cache in caches)
            torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [module._CAUSAL_ROWS, 7])
@torch.inference_mode()
def test_any_forward_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, causal: bool, rows: int
) -> None:
    monkeypatch.setattr(module, "_CAUSAL_ROWS", rows)
    plain, fused = network(causal), packed(network(causal))
    same_forwards(plain, fused)


@pytest.mark.parametrize("causal", [True, False])
@torch.inference_mode()
def test_any_forward_is_the_plain_one_by_fused_kernels(causal: bool) -> None:
    """As on a GPU: attention, norms and MLPs by the functions that have kernels there."""
    plain, fused = network(causal), packed(network(causal))
    fused.plain = fused._transposed = False
    fused._rows = 96
    same_forwards(plain, fused)


@torch.inference_mode()
def test_a_network_may_come_to_look_back_only() -> None:
    both_ways, back = network(False), network(False)
    fused = packed(both_ways)
    ids = torch.arange(20)
    fused.hidden(ids, 0, KVCache(both_ways.config, 30))
    both_ways.config = back.config = replace(back.config, causal=True)
    mine = fused.hidden(ids, 0, KVCache(both_ways.config, 30))
    torch.testing.assert_close(mine, back.hidden(ids[None])[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_mask_of_causal_queries_is_gone_with_its_layer() -> None:
    """What stays is as small after a long text as after a short one."""
    fused = packed(network(True))
    cache = KVCache(fused.net.config, 1100)
    fused.hidden(torch.arange(10), 0, cache)
    with LiveBytes() as live:
        for start in range(10, 1000, 10):
            hidden = fused.hidden(torch.arange(10), start, cache)
            assert hidden.shape[0] == 10
        del hidden
    assert live.peak > 10 * 1000 * 4
    assert live.now == 0


@pytest.mark.parametrize(("inner", "apart"), [(512, 1040), (520, 1040), (1024, 2064)])
@torch.inference_mode()
def test_rows_whole_pages_apart_get_a_cache_line_more(inner: int, apart: int) -> None:
    """They would fall on the same few sets of a cache; and nothing is multiplied but weights."""
    nets = [Transformer(replace(CONFIG, intermediate_size=inner)).eval() for _ in range(2)]
    for net in nets:
        net.init_weights(torch.Generator().manual_seed(0), std=0.2)
    fused = packed(nets[0])
    assert fused.layers[0].gate_up.shape == (CONFIG.hidden_size, 2 * inner)
    assert fused.layers[0].gate_up.stride() == (apart, 1)
    mine = fused.hidden(torch.arange(20), 0, KVCache(CONFIG, 20))
    for net in nets:
        torch.testing.assert_close(mine, net.hidden(torch.arange(20)[None])[0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_tables_grow_with_the_network_and_end_with_its_context() -> None:
    net = network(False)
    fused = packed(net)
    cos, sin = fused.rope(1500, 1510)
    expected = net._rope(1500, 1510, torch.float32)
    torch.testing.assert_close(cos, expected[0], rtol=0, atol=0)
    half = CONFIG.head_dim // 2
    torch.testing.assert_close(sin[:, half:], expected[1][:, half:], rtol=0, atol=0)
    torch.testing.assert_close(sin[:, :half], -expected[1][:, :half], rtol=0, atol=0)
    with pytest.raises(ValueError, match="the context is 2048"):
        fused.rope(2040, 2049)


def test_a_cache_on_a_cpu_takes_nothing_before_its_first_use() -> None:
    cache = KVCache(CONFIG, 64)
    assert "both" not in vars(cache)
    assert cache.capacity == 64
    with torch.inference_mode():
        cache.keys.fill_(1)
    cache.values.fill_(2)  # outside of that mode, too
    assert cache.both[0, 0, 0, 0, 0] == 1
    assert "both" in vars(KVCache(CONFIG, 64, device="meta"))
