"""Bytes, operations and floors, against numbers computed by hand and against torch's own count."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apdcli.bench.floor import (
    ApdStep,
    Forward,
    Part,
    Rates,
    Work,
    causal_parts,
    floor_s,
    forward_parts,
    head_work,
    layers_work,
    mixture_work,
)
from apdcli.bench.floor_table import H200, floor_text, floors, main, read_rates, weights_read
from apdcli.bench.shapes import random_transformer
from apdcli.bench.sizes import DREAM_7B, LLADA_8B, QWEN_05B, SHAPES
from apdcli.models.config import ModelConfig

SMALL = ModelConfig(
    family="Dream", vocab_size=10, hidden_size=4, intermediate_size=8, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=2, rope_theta=1e4, rms_norm_eps=1e-6, max_positions=64, causal=False,
    shift=True, tied=False, qkv_bias=True, mask_id=3,
)  # fmt: skip


def test_published_sizes() -> None:
    # Dream-7B, one layer: 3584 x (3584 + 2 x 512) + 3584 x 3584 + 3 x 3584 x 18944 weights,
    # 4608 biases, 7168 of norms; 28 of them, two 152064 x 3584 matrices, one norm.
    assert DREAM_7B.num_parameters == 28 * 233_057_792 + 2 * 544_997_376 + 3584 == 7_615_616_512
    assert 2 * DREAM_7B.num_parameters == 15_231_233_024  # 15.2 GB in bfloat16
    assert QWEN_05B.num_parameters == 24 * 14_912_384 + 136_134_656 + 896 == 494_032_768
    assert LLADA_8B.num_parameters == 8_015_581_184  # as its checkpoint's index states: 16 GB


def test_a_small_layer_by_hand() -> None:
    # q, k, v: 4 x (4 + 2 + 2), o: 4 x 4, mlp: 3 x 4 x 8: 144 weights; 8 biases, 12 of norms.
    # 3 embedding rows of 4 and keys and values of 2 channels at 5 positions.
    forward = Forward(positions=3, keys=5, rows=2)
    assert layers_work(SMALL, forward, 4) == Work(4 * (164 + 12 + 20), 2 * 144 * 3 + 4 * 4 * 15)
    assert head_work(SMALL, 2, 4) == Work(4 * 40, 2 * 40 * 2)
    assert head_work(SMALL, 0, 4) == Work()
    assert mixture_work(SMALL, 2, 4) == Work(2 * 2 * 10 * 4)


def test_a_causal_model_looks_at_no_later_position() -> None:
    forward = Forward(positions=3, keys=5, rows=1)
    both, back = (layers_work(replace(SMALL, causal=c), forward, 2) for c in (False, True))
    assert both.bytes == back.bytes
    # 3, 4 and 5 keys, not 5 each; 4 query channels, 4 operations a channel and pair.
    assert both.operations - back.operations == 4 * 4 * (15 - 12)


@pytest.mark.parametrize("name", ["denoiser", "verifier"])
def test_the_matrix_products_are_those_that_torch_counts(name: str) -> None:
    config = getattr(SHAPES["tiny"], name)
    net = random_transformer(config, torch.device("cpu"), torch.float32, 0)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        net.head(net.hidden(torch.arange(4, 24)[None])[:, :7])
    by_kind = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in by_kind.items() if str(op) in ("aten.mm", "aten.addmm"))
    forward = Forward(positions=20, keys=20, rows=7)
    attention = layers_work(config, forward, 4).operations
    attention -= layers_work(replace(config, num_layers=0), forward, 4).operations
    pairs = 20 * 20 if not config.causal else 20 * 21 / 2
    channels = config.num_heads * config.head_dim * config.num_layers
    layers = layers_work(config, forward, 4).operations - 4 * channels * pairs
    assert products == layers + head_work(config, 7, 4).operations
    assert attention > 0


@pytest.mark.parametrize("name", ["denoiser", "verifier"])
def test_the_weights_read_are_the_parameters_but_an_untied_embedding(name: str) -> None:
    config = getattr(SHAPES["tiny"], name)
    net = random_transformer(config, torch.device("cpu"), torch.float32, 0)
    held = sum(p.numel() for p in net.parameters())
    assert held == config.num_parameters
    embedding = 0 if config.tied else config.vocab_size * config.hidden_size
    assert weights_read(config, None, "bfloat16") == 2 * (held - embedding)
    moved = sum(p.work.bytes for p in forward_parts("m", config, Forward(0, 0, 1), 2))
    assert moved == 2 * (held - embedding)


def test_the_window_of_a_step() -> None:
    step = ApdStep(cursor=256, recompute_window=16, max_lookahead=100, accepted=1)
    assert step.denoiser == Forward(positions=116, keys=356, rows=100)
    assert step.verifier == Forward(positions=99, keys=355, rows=99)
    # What was accepted last is computed again, and near the start there is no more to recompute.
    assert replace(step, accepted=5.2).denoiser.positions == pytest.approx(120.2)
    assert replace(step, cursor=3).denoiser.positions == 103
    assert replace(step, recompute_window="all").denoiser.positions == 356


def test_dream_7b_on_an_h200() -> None:
    step = ApdStep(cursor=256, recompute_window=16, max_lookahead=100, accepted=5.2)
    parts = {part.name: part for part in step.parts(DREAM_7B, QWEN_05B, 2)}
    assert list(parts) == [
        "denoiser layers", "denoiser head", "verifier layers", "verifier head", "mixture",
    ]  # fmt: skip
    # 6,525,621,760 parameters of the layers and the last norm in two bytes, 120.2 rows of the
    # embedding, 28 layers' keys and values of 512 channels at 356 positions; over 4.3 TB/s.
    moved = 2 * (6_525_621_760 + 120.2 * 3584 + 2 * 28 * 512 * 356)
    assert parts["denoiser layers"].work.bytes == pytest.approx(moved)
    assert parts["denoiser layers"].memory_s(H200) == pytest.approx(3.0403e-3, rel=1e-3)
    # 28 x 233,046,016 weights twice a position, and 4 x 28 x 3584 a pair of query and key.
    operations = 2 * 28 * 233_046_016 * 120.2 + 4 * 28 * 3584 * 120.2 * 356
    assert parts["denoiser layers"].work.operations == pytest.approx(operations)
    assert parts["denoiser layers"].arithmetic_s(H200) == pytest.approx(2.007e-3, rel=1e-3)
    assert parts["denoiser head"].floor_s(H200) == pytest.approx(0.2535e-3, rel=1e-3)
    # The denoiser's weights are read in 3.3 ms, the verifier's 988 MB in 0.23 ms.
    least = floor_s(list(parts.values()), H200)
    assert least == pytest.approx(3.54e-3, rel=5e-3)
    assert 1200 < step.accepted / least < 1500
    causal = floor_s(causal_parts(DREAM_7B, 256, 2), H200)
    assert 1 / causal == pytest.approx(304, rel=5e-3)


def test_a_part_takes_the_longer_of_memory_and_arithmetic() -> None:
    rates = Rates(bandwidth=10.0, operations=100.0)
    reading, computing = Part("a", Work(20, 100)), Part("b", Work(10, 300))
    assert reading.floor_s(rates) == 2.0
    assert computing.floor_s(rates) == 3.0
    assert floor_s([reading, computing], rates) == 5.0  # not max(3, 4): b waits for a


def test_without_a_verifier_or_a_draft_nothing_is_verified() -> None:
    step = ApdStep(cursor=8, recompute_window=4, max_lookahead=8, accepted=2)
    assert [p.name for p in step.parts(SMALL, None, 2)] == ["denoiser layers", "denoiser head"]
    one = replace(step, max_lookahead=1).parts(SMALL, QWEN_05B, 2)
    assert [p.name for p in one] == ["denoiser layers", "denoiser head"]


def test_the_text_shows_what_was_counted() -> None:
    steps = [ApdStep(256, 16, 100, 5.2)]
    text = floor_text("Dream", floors(DREAM_7B, QWEN_05B, "bfloat16", steps, H200))
    assert "denoiser 7.62 B parameters (15.2 GB)" in text
    assert "verifier 494 M parameters (988 MB)" in text
    assert "120.2 positions of the denoiser, 99 of the verifier" in text
    widths = {len(line) for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1


def test_a_slow_machine_has_a_speed_too() -> None:
    for slow in (10, 1e3, 1e5):
        rates = Rates(H200.bandwidth / slow, H200.operations / slow)
        made = floors(DREAM_7B, None, "bfloat16", [ApdStep(256, 16, 100, 5.2)], rates)
        text = floor_text("x", made).replace(",", "")
        for rate, found in zip(
            (made["steps"][0]["tokens_per_second"], made["causal"]["tokens_per_second"]),
            re.findall(r"(\S+) tokens a second", text),
            strict=True,
        ):
            assert float(found) == pytest.approx(rate, rel=5e-3)


def test_the_tables_of_both_pairs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cpu-rates", "30e9,120e9"]) == 0
    out = capsys.readouterr().out
    assert out.count("\n| step ") == 4
    assert "The embedded pair" in out
    assert "30.0 GB/s and 120 GFLOP/s" in out
    assert "4.30 TB/s and 790 TFLOP/s" in out


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "-1,2", "1,0", "inf,1", "nan,1"])
def test_rates_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="as in 30e9,120e9"):
        read_rates(text)
    if text:
        with pytest.raises(SystemExit):
            main(["--cpu-rates", text])
