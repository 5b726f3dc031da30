"""The growth command measures: figures in order, the same weights for the causal run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apdcli.bench.growth import around, main
from apdcli.decode.types import StepEvent


def step(number: int, accepted: int, elapsed_s: float) -> StepEvent:
    return StepEvent(number, (), accepted, accepted, 0, 0, 0, 0, elapsed_s)


def test_a_stretch_around_a_token() -> None:
    steps = [step(n, 5, 0.01 * n) for n in range(1, 21)]
    assert around(steps, 50, 20) == pytest.approx((0.04, 20, 4))
    with pytest.raises(ValueError, match="200 tokens"):
        around(steps, 200, 20)


@pytest.mark.parametrize("what", ["growth", "lookahead", "causal"])
def test_each_measure(capsys: pytest.CaptureFixture[str], what: str) -> None:
    sizes = ["--near", "40", "--far", "80", "--tokens", "12", "--repeats", "1"]
    assert main([what, "--device", "cpu", *sizes]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == what
    assert found["engine"] == "fast"
    figures = found.get("tokens_a_second") or found["ms_a_step"]
    assert all(value > 0 for value in figures.values())
