"""Bytes of live tensors: what is counted, when it is forgotten, and what the engines stay under."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from apdcli import load_pair
from apdcli.bench import memory
from apdcli.bench.memory import LiveBytes, Peak, generated, kv_bytes, main, on_meta
from apdcli.bench.shapes import random_pair
from apdcli.bench.sizes import DREAM_7B, SHAPES

TINY = SHAPES["tiny"]


def test_a_storage_counts_once_and_until_its_last_view_is_gone() -> None:
    outside = torch.ones(1000)
    with torch.inference_mode(), LiveBytes() as live:
        seen = outside[3:].add_(1)
        assert live.now == 0
        made = torch.zeros(100)
        view = made[50:].view(5, 10)
        assert live.now == 400
        del made
        assert live.now == 400
        del view, seen
        assert live.now == 0
        assert live.peak == 400


def test_what_an_operation_makes_on_its_way_is_seen() -> None:
    q, k = torch.ones(1, 4, 8, 16), torch.ones(1, 2, 32, 16)
    with torch.inference_mode(), LiveBytes() as live:
        out = F.rms_norm(q, (16,))
        size = out.untyped_storage().nbytes()
        assert live.now == size
        assert live.peak > size
        live.peak = live.now
        F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
        assert live.peak >= 2 * size


def test_kv_bytes_are_those_of_a_cache() -> None:
    assert kv_bytes(DREAM_7B, 4096, torch.bfloat16) == 2 * 28 * 4 * 128 * 4096 * 2


@pytest.mark.parametrize("engine", ["fast", "eager"])
def test_a_run_holds_its_caches_and_lets_everything_go(engine: str) -> None:
    pair = random_pair(TINY, torch.device("cpu"), torch.float32, engine)
    peak = generated(pair, 128, 40, 8)
    assert peak.context == 128
    assert peak.steps > peak.kv + peak.logits // 2
    with LiveBytes() as live:
        models = pair.models(128)
        with torch.inference_mode():
            models.denoiser.logits(torch.zeros(20, dtype=torch.int64), 0, 4)
        assert live.now >= kv_bytes(TINY.denoiser, 128, torch.float32)
        del models
    assert live.now < 4096  # tables of a few ids stay


def test_long_prompts_make_no_array_of_positions_squared() -> None:
    sizes = []
    for context in (256, 1024):
        pair = random_pair(TINY, torch.device("cpu"), torch.float32, "fast")
        sizes.append(generated(pair, context, 16, 8))
    short, long = sizes
    assert long.prompt - short.prompt < 8 * (long.kv - short.kv)


@pytest.mark.parametrize("engine", ["fast", "graphs"])
def test_meta_counts_caches_and_logits(engine: str) -> None:
    peak = on_meta(TINY, engine, 512, 64, 16, torch.bfloat16)
    assert peak.how == "meta"
    assert peak.prompt > peak.kv
    assert peak.steps > peak.kv + peak.logits // 2
    longer = on_meta(TINY, engine, 1024, 64, 16, torch.bfloat16)
    assert longer.kv == 2 * peak.kv
    assert longer.steps > peak.steps


@pytest.mark.parametrize(("answer", "m"), [(64, 32), (64, 100), (400, 32)])
def test_the_embedded_pair_stays_under_the_bound(answer: int, m: int) -> None:
    peak = generated(load_pair("demo", device="cpu", dtype="float32"), 1024, answer, m)
    assert peak.share <= 1


@pytest.mark.parametrize(("engine", "m"), [("fast", 100), ("graphs", 32)])
def test_dream_7b_stays_under_the_bound(engine: str, m: int) -> None:
    peak = on_meta(SHAPES["dream-7b"], engine, 4096, 256, m, torch.bfloat16)
    assert peak.share <= 1


def test_bound_and_table() -> None:
    peak = Peak("a | b", "run", "fast", "float32", 64, 8, 1000, 200, 1500, 900)
    assert peak.bound == 1380
    assert peak.share == pytest.approx(1500 / 1380)
    assert "1.09" in memory.table([peak])
    assert replace(peak, prompt=0).share == pytest.approx(900 / 1380)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", "--device", "cpu", "--context", "160", "--shapes", "tiny"]
    assert main([*arguments, "--shapes-context", "512"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["counts"]) == {"bound", "prompt, steps", "meta"}
    peaks = found["peaks"]
    assert {(p["how"], p["max_lookahead"]) for p in peaks} == {
        (how, m) for how in ("run", "meta") for m in (32, 100)
    }
    assert all(p["bound"] > p["kv"] for p in peaks)
