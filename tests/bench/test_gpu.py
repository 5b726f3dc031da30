"""The GPU run tried on the CPU at tiny sizes: its parts, its file, and how it fails."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from apdcli.bench import (
    correctness,
    gpu,
    gpu_attention,
    gpu_compiled,
    gpu_draws,
    gpu_kernels,
    gpu_parts,
    gpu_quantized,
    gpu_verify,
)
from apdcli.bench.correctness import check_correctness, check_engines
from apdcli.bench.gpu_stage import Stage
from apdcli.bench.rates import MeasuredRates
from apdcli.bench.saving import hub_config, save_transformer
from apdcli.bench.shapes import random_transformer
from apdcli.bench.sizes import SHAPES, find_shapes
from apdcli.engine import fused, graphs
from apdcli.engine.pair import LoadedPair
from apdcli.load.layout import check_layout
from apdcli.load.weights import load_transformer
from apdcli.models.config import ModelConfig

ARGS = ("--device", "cpu", "--shapes", "tiny", "--repeats", "1")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One prompt and two settings: the test is of the script."""
    torch.set_num_threads(1)
    monkeypatch.setattr(correctness, "PROMPTS", correctness.PROMPTS[:1])
    monkeypatch.setattr(correctness, "SETTINGS", correctness.SETTINGS[::2])
    monkeypatch.setattr(correctness, "MAX_TOKENS", 16)
    monkeypatch.setattr(correctness, "RANDOM", ("tiny",))
    for module in (gpu_attention, gpu_compiled, gpu_draws, gpu_kernels, gpu_quantized, gpu_verify):
        monkeypatch.setattr(module, "LOOKAHEADS", (32, 8))
    monkeypatch.setattr(gpu_draws, "KINDS", gpu_draws.KINDS[:1])
    monkeypatch.setenv("APD_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(gpu, "OPTIONAL", {"absent": "apdcli.bench.no_such_module"})


@pytest.mark.usefixtures("small")
def test_every_part_runs_and_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    assert gpu.main([*ARGS, "--scratch", str(tmp_path), "-o", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    report = json.loads(path.read_text())
    assert report["complete"] is True
    parts = {part["name"]: part for part in report["parts"]}
    statuses = {name: part["status"] for name, part in parts.items()}
    usable = fused.usable(torch.device("cpu"))
    # What comes from elsewhere stands before the last two; torch.compile is the last.
    names = [name for name, _ in gpu_parts.PARTS]
    names[-2:-2] = ["absent"]
    assert statuses == {
        **dict.fromkeys(names, "ran"),
        "absent": "absent",
        **dict.fromkeys(("fused", "draws"), "ran" if usable else "absent"),
    }
    assert list(parts) == names
    assert "no apdcli.bench.no_such_module" in parts["absent"]["reason"]
    assert parts["correctness"]["equal"] is True
    assert parts["correctness"]["generations"] == 3 * 3
    assert parts["correctness"]["fell_back"] == parts["engines"]["fell_back"] == []
    assert {(d["dtype"], d["engine"]) for d in parts["engines"]["differences"]} == {
        (dtype, engine)
        for dtype in ("float32", "float16", "bfloat16")
        for engine in ("graphs", "fast")
    }
    names = [setting["name"] for setting in parts["speed"]["settings"]]
    assert names == ["apd M100", "apd M32", "one a step", "causal", "verifier alone"]
    apd = parts["speed"]["settings"][0]["summary"]
    assert apd["tokens_per_step"]["median"] == pytest.approx(32 / 7)  # 5 a step, 2 at the end
    assert apd["floor"]["ratio"] > 0
    assert parts["loading"]["bytes"] == 4 * SHAPES["tiny"].parameters
    assert parts["memory"]["kv_bytes"] == 2 * 256 * 4 * (2 * 2 * 16 + 1 * 1 * 16)
    assert parts["memory"]["arrays_bytes"] == 2 * 100 * 512 * 4
    split = parts["steps"]["steps"]
    assert [(s["engine"], s["lookahead"]) for s in split] == [
        (engine, m) for m in (32, 8) for engine in ("graphs", "fast", "eager")
    ]
    for s in split:
        parts_of = s["denoise_s"], s["verify_and_accept_s"], s["host_s"]
        assert sum(parts_of) == pytest.approx(s["step_s"])
        assert s["floor_denoise_s"] > s["floor_verify_and_accept_s"] > 0
    assert [s["name"] for s in parts["sampled"]["steps"]] == list(gpu_draws.GENERATIONS)
    assert all(s["step_s"] > 0 for s in parts["sampled"]["steps"])
    assert [s["lookahead"] for s in parts["verify_less"]["steps"]] == [32, 8]
    (at,) = parts["attention"]["attention"]
    assert set(at["kernels"]) == {name.lower() for name in gpu_attention.KERNELS}
    assert set(at["kernels"]["math"]) == {"masked_s", "new_length_s", "new_keys_s", "again_s"}
    assert at["kernels"]["cudnn_attention"]["cannot"]  # on a CPU
    assert parts["rows"]["settings"] == [
        {"name": name, "whole": 4, "unlike": 0} for name in ("apd", "autoregressive")
    ]
    for name in gpu_quantized.FORMATS:
        quantized = parts["quantized"][name]
        assert quantized["bytes"] < parts["loading"]["bytes"] / 2
        assert [s["name"] for s in quantized["settings"]] == ["M32", "M8"]
    assert [row["rows"] for row in parts["quantized"]["products"]] == [8, 64]
    (mode,) = parts["compiled"]["modes"]
    assert [start["first_s"] > 0 for start in mode["starts"]] == [True, True]
    assert [r["lookahead"] for r in mode["replays"]] == [32, 8]
    assert parts["compiled"]["within"] is True
    assert parts["profile"]["longest"][0]["seconds_a_step"] > 0
    assert len(report["goals"]) == 5
    assert all(goal["met"] == (goal["value"] <= goal["at_most"]) for goal in report["goals"])
    assert [p.name for p in tmp_path.iterdir()] == ["gpu.json"]  # nothing is left behind
    assert [line.split()[:2] for line in printed.err.splitlines()] == [
        [name, status] for name, status in statuses.items()
    ]


@pytest.mark.usefixtures("small")
def test_a_part_that_fails_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(stage: gpu_parts.Stage) -> dict[str, Any]:
        raise RuntimeError("CUDA error:\n  misaligned address")

    def wrong(stage: gpu_parts.Stage) -> dict[str, Any]:
        for _ in range(2):
            warnings.warn("a graph\nfailed", RuntimeWarning, stacklevel=1)
        return {"equal": False, "different": [1]}

    def late(stage: gpu_parts.Stage) -> dict[str, Any]:
        stage.deadline = time.monotonic() - 1
        return {}

    parts = (("a", broken), ("b", wrong), ("c", gpu_parts.rates), ("d", late), ("e", broken))
    monkeypatch.setattr(gpu, "OPTIONAL", {})
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    path = tmp_path / "gpu.json"
    assert gpu.main([*ARGS, "-o", str(path)]) == 1
    found = {part["name"]: part for part in json.loads(path.read_text())["parts"]}
    assert [found[name]["status"] for name in "abcde"] == [
        "failed", "wrong", "ran", "ran", "skipped",
    ]  # fmt: skip
    assert found["a"]["reason"] == "RuntimeError: CUDA error: misaligned address"
    assert found["a"]["at"][-1].endswith("_tried")
    assert found["b"]["warnings"] == ["a graph failed"]
    assert found["c"]["bandwidth"] > 0


@pytest.mark.usefixtures("small")
def test_ctrl_c_keeps_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(stage: gpu_parts.Stage) -> dict[str, Any]:
        raise KeyboardInterrupt

    parts = (("a", gpu_parts.rates), ("b", interrupted), ("c", interrupted))
    monkeypatch.setattr(gpu, "OPTIONAL", {})
    monkeypatch.setattr(gpu_parts, "PARTS", parts)
    path = tmp_path / "gpu.json"
    assert gpu.main([*ARGS, "-o", str(path)]) == 130
    report = json.loads(path.read_text())
    assert [part["status"] for part in report["parts"]] == ["ran", "interrupted"]
    assert report["complete"] is False


@pytest.mark.parametrize(
    ("args", "said", "status"),
    [
        (["--device", "cuda:99"], "device 'cuda:99' is not available", 1),
        (["--device", "cpu", "--shapes", "big"], "unknown shapes 'big'", 2),
        (["--device", "cpu", "--dtype", "int3"], "unknown dtype 'int3'", 1),
        ([*ARGS, "--accept", "0"], "--accept 0: it must be above 0", 2),
        ([*ARGS, "-o", "/no/such/folder/x.json"], "/no/such/folder/x.json: no such file", 1),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], said: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(args) == status
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("small")
def test_the_first_part_keeps_to_its_time() -> None:
    asked = iter([False, True])
    found = check_correctness(torch.device("cpu"), lambda: next(asked))
    assert found == {"different": [], "reason": "the time was up", "skipped": True}


@pytest.mark.usefixtures("small")
def test_a_wrong_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert check_correctness(cpu)["equal"] is True
    honest = LoadedPair.models

    def off_by_a_little(pair: LoadedPair, capacity: int) -> Any:
        models = honest(pair, capacity)
        if pair.engine == "eager":  # the reference
            return models
        inner = models.denoiser.logits
        monkeypatch.setattr(
            models.denoiser, "logits", lambda *a, **k: inner(*a, **k).roll(1, dims=-1)
        )
        return models

    monkeypatch.setattr(LoadedPair, "models", off_by_a_little)
    found = check_correctness(cpu)
    assert found["equal"] is False
    assert found["different"]
    assert found["logits"]["embedded"] is None or (found["logits"]["embedded"] > found["tolerance"])
    assert found["logits"]["tiny"] == 0


@pytest.mark.usefixtures("small")
def test_a_batch_that_is_wrong_or_fails_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correctness, "PROMPTS", ("One.", "Two and two.", "Three", "Four"))
    honest = correctness.run_batch

    def of_its_neighbour(requests: Sequence[Any], rows: int) -> Any:
        assert rows < len(requests)
        return honest([*requests[1:], requests[0]], rows)

    cpu = torch.device("cpu")
    monkeypatch.setattr(correctness, "run_batch", of_its_neighbour)
    found = check_correctness(cpu)
    assert {one["engine"] for one in found["different"]} == {"batch"}
    assert found["equal"] is False

    def broken(requests: Sequence[Any], rows: int) -> Any:
        raise RuntimeError("Cannot view a tensor\nwith shape [3, 4]")

    monkeypatch.setattr(correctness, "run_batch", broken)
    found = check_correctness(cpu)
    assert found["different"][0]["error"] == "RuntimeError: Cannot view a tensor with shape [3, 4]"
    assert len(found["different"]) == len(correctness.SETTINGS)


def test_the_goal_for_batches_is_of_apd() -> None:
    ratios = {"apd M8": 6.0, "apd M32": 4.0, "autoregressive": 20.0, "one a step": 9.0}
    part = {"name": "batches", "status": "ran", "ratio_of_32_rows_to_1": ratios}
    (goal,) = gpu.goals([part])
    assert (goal["value"], goal["met"]) == (1 / 6.0, False)
    only = {**part, "ratio_of_32_rows_to_1": {"autoregressive": 20.0}}
    assert gpu.goals([only]) == []


def test_without_torchao_integers_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise gpu_quantized.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(gpu_quantized.metadata, "version", missing)
    monkeypatch.setattr(gpu_quantized, "LOOKAHEADS", (8,))
    stage = tiny_stage()
    stage.saved = Path("/no/such/folder")  # it is not read
    stage.rates = MeasuredRates(1e9, 1e9, 1, "sum", 1, "cpu", "float32")
    found = gpu_quantized.quantized(stage)
    assert found["weights"] == "random"
    for name in gpu_quantized.FORMATS:
        assert "load_s" not in found[name]
        assert [s["name"] for s in found[name]["settings"]] == ["M8"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_timed_by_every_way(dtype: str) -> None:
    stage = Stage.of(gpu._parser().parse_args([*ARGS, "--dtype", dtype]))
    for row in gpu_quantized.products(stage):
        assert all(row[way]["seconds"] > 0 for way in ("floats", *gpu_quantized.FORMATS))
        # torch has one such kernel for CPUs; where it runs it agrees.
        assert "cannot" in row["torch_int8"] or row["torch_int8"]["difference"] < 1e-3
        assert row["torch_int4"]["cannot"]


SLOW = """
import subprocess, sys, time
print('{"first_s": 1.0}', flush=True)
own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(own.pid))
print('{"cut": ', end="", flush=True)
time.sleep(600)
"""


def test_a_compiler_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    began = time.monotonic()
    found, why = gpu_compiled._bounded([sys.executable, "-c", SLOW, str(pid)], {}, 3)
    assert time.monotonic() - began < 30
    assert (found, why) == ([{"first_s": 1.0}], "the time was up")
    # What it had started ends as well.
    stat = Path(f"/proc/{pid.read_text()}/stat")
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() - began < 30
        time.sleep(0.05)


def test_a_compiler_that_dies_says_why() -> None:
    script = "import os, sys; print(os.environ['X']); sys.exit('no room\\n at all')"
    found, why = gpu_compiled._bounded([sys.executable, "-c", script], {"X": "{}"}, 60)
    assert (found, why) == ([{}], "status 1: no room at all")


@pytest.mark.usefixtures("small")
def test_an_engine_whose_graphs_fail_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers rightly, by the eager engine: that is no pass."""

    def refused(*args: object) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "record", refused)
    with pytest.warns(RuntimeWarning, match="CUDA graphs do not work here"):
        found = check_engines(torch.device("cpu"))
    assert found["fell_back"] == ["denoiser", "verifier"] * 3
    assert all(row["within"] for row in found["differences"])
    assert found["equal"] is False


def test_a_fused_kernel_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = tiny_stage()
    stage.rates = MeasuredRates(1e9, 1e9, 1, "sum", 1, "cpu", "float32")
    monkeypatch.setattr(fused, "usable", lambda device: True)
    monkeypatch.setattr(fused, "by_triton", fused.plain)
    found = gpu_kernels.fused_kernel(stage)
    assert found["equal"] is True
    assert found["cases"] == 3 * 2 * 2 * 4 * 3
    assert [row["rows"] for row in found["timings"]] == [3, 9]
    assert all(row["kernel_s"] > 0 and row["floor_s"] > 0 for row in found["timings"])

    def last_of_equals(d: Tensor, a: Tensor, *rest: Any) -> Tensor:
        draft, count, weight = rest
        width = d.shape[1]
        return fused.plain(d.flip(1), a[:, :width].flip(1), width - 1 - draft, count, weight)

    monkeypatch.setattr(fused, "by_triton", last_of_equals)
    found = gpu_kernels.fused_kernel(stage)
    assert found["equal"] is False
    assert all(case["weight"] == 0.5 for case in found["different"])


def tiny_stage() -> Stage:
    return Stage.of(gpu._parser().parse_args(ARGS))


@pytest.mark.parametrize("name", ["tiny", "dream-7b", "llada-8b", "embedded"])
def test_a_config_comes_back_as_it_went(name: str) -> None:
    shapes = find_shapes(name)
    for config in (shapes.denoiser, shapes.verifier):
        if config is not None:
            assert ModelConfig.from_hf(hub_config(config)) == config


@pytest.mark.parametrize("role", ["denoiser", "verifier"])
def test_a_saved_network_comes_back_as_it_went(role: str, tmp_path: Path) -> None:
    config = getattr(SHAPES["tiny"], role)
    net = random_transformer(config, torch.device("cpu"), torch.bfloat16, seed=3)
    size = save_transformer(net, tmp_path, shard_bytes=40_000)
    layout = check_layout(tmp_path)
    assert size == layout.num_bytes == 2 * config.num_parameters
    assert len(layout.files) > 1
    again = load_transformer(tmp_path, device="cpu", dtype="bfloat16")
    for (name, one), (_, other) in zip(
        net.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_agrees_with_the_cpu() -> None:
    assert check_correctness(torch.device("cuda"))["equal"] is True
