"""Tables and pictures of a made-up result, and rates that were really measured."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from apdcli.bench.plot import draw
from apdcli.bench.rates import MOST_BYTES, measure_rates
from apdcli.bench.report import tables


def spread(median: float, low: float, high: float, count: int = 5) -> dict[str, Any]:
    return {"median": median, "low": low, "high": high, "least": low, "most": high, "count": count}


def setting(name: str, speed: float) -> dict[str, Any]:
    return {
        "name": name,
        "engine": "fast",
        "weights_bytes": 30_400_000_000,
        "memory": {"peak_bytes": 3e8, "extra_bytes": 1e6, "kind": "rss"},
        "summary": {
            "tokens_per_second": spread(speed, speed - 1, speed + 1),
            "tokens_per_step": spread(2.0, 2.0, 2.0),
            "step_s": spread(0.004, 0.003, 0.005),
            "first_text_s": spread(0.0061, 0.006, 0.007),
            "ratio": {"median": speed / 100, "low": 1.0, "high": 3.0, "confidence": 0.9375},
            "split": {
                "denoiser_s": 0.002, "verifier_s": 0.001, "sampling_s": 0.0005, "rest_s": 0.0005,
                "step_s": 0.004,
            },
            "floor": {"bytes": 12e6, "operations": 3e8, "step_s": 0.002, "ratio": 2.0},
        },
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    return {
        "profile": "demo",
        "command": "apd bench --repeats 5",
        "complete": True,
        "accept": None,
        "machine": {"device": "A $processor$", "cores": 2, "threads": 2},
        "versions": {"apdcli": "1", "torch": "2"},
        "models": {
            "denoiser": {
                "parameters": 7.6e9, "bytes": 30.4e9, "dtype": "float32", "quantize": "none",
                "device": "cpu",
            }
        },
        "prompts": [{"tokens": 9}, {"tokens": 21}],
        "repeats": 5,
        "rates": {
            "bandwidth": 3e10, "operations": 1.2e11, "bandwidth_bytes": 12_000_000,
            "bandwidth_by": "dot", "matrix": 2048, "dtype": "float32",
        },
        "settings": [setting("one", 100.0), setting("two", 250.0)],
    }  # fmt: skip


def test_the_tables_say_what_was_measured(result: dict[str, Any]) -> None:
    text = tables(result)
    assert "demo: denoiser 7.60 B in float32 on cpu, 30.4 GB\n" in text
    assert "A $processor$, 2 cores, 2 threads, torch " in text
    assert "2 prompts of 9 to 21 tokens, 5 repeats in turns\n" in text
    speeds, steps = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| two")
    )
    assert speeds == [
        "two", "250 (249–251)", "2.50 (1.00–3.00)", "2.00", "4.00", "6.10 ms", "300 MB",
    ]  # fmt: skip
    assert steps == [
        "two", "2.00", "1.00", "0.500", "0.500", "12.0 MB", "300 MFLOP", "2.00", "2.00",
    ]  # fmt: skip
    assert "in brackets a 94 % interval" in text
    assert "30.0 GB/s (dot over 12.0 MB) and 120 GFLOP/s (2048 x 2048 in float32), measured" in text
    assert text.endswith("Again: apd bench --repeats 5")


def test_weights_of_fewer_bits_are_told(result: dict[str, Any]) -> None:
    assert "weights" not in tables(result)
    result["models"]["denoiser"] |= {"quantize": "int8", "bytes": 7.7e9}
    result["settings"][1]["weights_bytes"] = 4_700_000_000
    text = tables(result)
    assert "7.60 B in int8 and float32 on cpu, 7.70 GB\n" in text
    speeds = text.split("\n\n")[1].splitlines()
    last = [line.strip("|").split("|")[-1].strip() for line in speeds]
    assert last[0] == "weights"
    assert last[2:] == ["30.4 GB", "4.70 GB"]


def test_one_repeat_has_no_interval(result: dict[str, Any]) -> None:
    for made in result["settings"]:
        of = made["summary"]
        for name in ("tokens_per_second", "tokens_per_step", "step_s", "first_text_s"):
            of[name] |= {"count": 1, "low": of[name]["median"], "high": of[name]["median"]}
        middle = of["ratio"]["median"]
        of["ratio"] = {"median": middle, "low": middle, "high": middle, "confidence": 0.0}
    text = tables(result)
    assert "0 %" not in text
    assert "in brackets" not in text
    assert "One repeat: no spread and no interval; --repeats 5 gives both.\n" in text


def test_what_is_not_there_is_left_out(result: dict[str, Any]) -> None:
    result["complete"] = False
    result["accept"] = 5
    result["machine"]["threads"] = result["repeats"] = 1
    result["rates"] = {"bandwidth": 3e10, "operations": 1.2e11}
    result["settings"].pop()
    of = result["settings"][0]["summary"]
    of["split"] = of["floor"] = of["first_text_s"] = None
    text = tables(result)
    assert "2 cores, 1 thread, torch " in text
    assert "1 repeat in turns (interrupted)" in text
    assert "apd was made to accept 5 tokens a step" in text
    assert "at 30.0 GB/s and 120 GFLOP/s, given" in text
    assert "sampling" not in text
    assert "interval" not in text


@pytest.mark.parametrize("kind", ["svg", "png"])
def test_the_picture(result: dict[str, Any], kind: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.{kind}" for n in "ab"]
    for path in paths:
        draw(copy.deepcopy(result), path)
    data = paths[0].read_bytes()
    assert data == paths[1].read_bytes()
    if kind == "svg":
        text = data.decode()
        for word in ("one", "two", "denoiser", "sampling", "milliseconds a step", "$processor$"):
            assert word in text
    else:
        assert data.startswith(b"\x89PNG")


def test_a_picture_without_the_second_run(result: dict[str, Any], tmp_path: Path) -> None:
    for of in result["settings"]:
        of["summary"]["split"] = None
    draw(result, tmp_path / "a.svg")
    assert "milliseconds a step" not in (tmp_path / "a.svg").read_text()


def test_rates_of_this_machine() -> None:
    cpu = torch.device("cpu")
    found = measure_rates(cpu, torch.float32, weights=2_000_000, matrix=128, seconds=0.01)
    assert found.bandwidth > 1e6
    assert found.operations > 1e6
    assert found.bandwidth_bytes == 2_000_000
    assert found.bandwidth_by in ("sum", "dot", "copy")
    assert (found.matrix, found.dtype, found.device) == (128, "float32", "cpu")
    small = measure_rates(cpu, torch.float32, weights=1, matrix=8, seconds=0)
    assert small.bandwidth_bytes == 2**20
    assert MOST_BYTES == 2**30
