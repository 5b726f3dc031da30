"""The growth command measures: figures in order, the same weights for the causal run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apdcli.bench.growth import arithmetic, around, main, until
from apdcli.decode.types import StepEvent
from apdcli.engine.pair import load_pair


def step(number: int, accepted: int, elapsed_s: float) -> StepEvent:
    return StepEvent(number, (), accepted, accepted, 0, 0, 0, 0, elapsed_s)


def test_a_stretch_around_a_token() -> None:
    steps = [step(n, 5, 0.01 * n) for n in range(1, 21)]
    assert around(steps, 50, 20) == pytest.approx((0.04, 20, 4))
    assert until(steps, 48) == pytest.approx((0.1, 50))
    with pytest.raises(ValueError, match="200 tokens"):
        around(steps, 200, 20)
    with pytest.raises(ValueError, match="200 tokens"):
        until(steps, 200)


def test_arithmetic_counts_what_a_longer_text_adds() -> None:
    """Only attention grows: 4 operations a channel and (query, key) pair."""
    pair = load_pair("demo", device="cpu")
    assert pair.verifier is not None
    positions = 2 + 16 - 1 + 32
    pairs = {pair.denoiser.config: positions * 900, pair.verifier.config: 31 * 900}
    more = sum(4 * c.num_layers * c.num_heads * c.head_dim * n for c, n in pairs.items())
    assert arithmetic(pair, 1000, 2) - arithmetic(pair, 100, 2) == pytest.approx(more)


@pytest.mark.parametrize("what", ["growth", "lookahead", "causal"])
def test_each_measure(capsys: pytest.CaptureFixture[str], what: str) -> None:
    sizes = ["--near", "80", "--far", "160", "--tokens", "12", "--repeats", "1"]
    assert main([what, "--device", "cpu", *sizes]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == what
    assert found["engine"] == "fast"
    figures = found.get("tokens_a_second") or found["ms_a_step"]
    assert all(value > 0 for value in figures.values())


def test_growth_with_so_many_tokens_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--near", "40", "--far", "80", "--repeats", "1", "--accept", "3"]
    assert main(["growth", "--device", "cpu", *sizes]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["accept"] == 3
    # the last step of a stretch may find less room
    assert found["tokens_a_step"] == pytest.approx({"40": 3, "80": 3}, abs=0.2)
