"""The GPU run's parts at T > 0, tried on the CPU: what they compare, time, and find."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from apdcli.bench import gpu, gpu_draws, gpu_kernels
from apdcli.bench.gpu_stage import Stage
from apdcli.bench.rates import MeasuredRates
from apdcli.decode.noise import KeyedNoise
from apdcli.decode.sampling import drawn, filtered
from apdcli.engine import fused

CASES = 4 * 2 * 4 * 5  # kinds, rows, shapings; a draw, a part of it, three places of a wrong draft


@pytest.fixture
def stage() -> Stage:
    torch.set_num_threads(1)
    args = ["--device", "cpu", "--shapes", "tiny", "--repeats", "1"]
    made = Stage.of(gpu._parser().parse_args(args))
    made.rates = MeasuredRates(1e9, 1e9, 1, "sum", 1, "cpu", "float32")
    return made


def honest(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return drawn(logits, noise.params, noise, first)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch in the kernels' place."""
    monkeypatch.setattr(fused, "usable", lambda device: True)
    monkeypatch.setattr(fused, "by_triton", fused.plain)
    monkeypatch.setattr(fused, "draw_by_triton", honest)


def reshaped(noise: KeyedNoise, vocab: int, **shaping: Any) -> KeyedNoise:
    """The same noise for draws that are shaped otherwise."""
    return KeyedNoise(replace(noise.params, **shaping), noise.key, vocab, noise.rows)


@pytest.mark.usefixtures("kernels")
def test_draws_and_counts_are_compared_and_timed(stage: Stage) -> None:
    found = gpu_draws.draws(stage)
    assert (found["cases"], found["near"], found["different"]) == (CASES, 0, [])
    assert found["equal"] is True
    timed = [(row["rows"], row["shaping"]) for row in found["timings"]]
    assert timed == [(rows, name) for rows in (3, 9) for name in gpu_draws.SHAPINGS]
    for row in found["timings"]:
        assert all(row[name] > 0 for name in row if name.endswith("_s"))
        assert len([name for name in row if name.endswith("_s")]) == 6


def rounded(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    """Divided in another way: other roundings, and no other choices."""
    noised = filtered(logits * (1 + 2**-22), noise.params)
    return (noised + noise.piece(first, first + len(logits))).argmax(-1)


@pytest.mark.usefixtures("kernels")
def test_what_is_as_good_is_no_fault(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "draw_by_triton", rounded)
    assert gpu_draws.draws(stage)["equal"] is True
    d = torch.zeros(2, 600)
    ((_, noise),) = list(gpu_draws._noises(stage, d, 0))[:1]
    first, second = (noise.piece(0, 1)).topk(2).indices[0].tolist()
    d[0, second] = 0.8 * float(noise.piece(0, 1)[0, first] - noise.piece(0, 1)[0, second])
    assert gpu_draws._as_good(d, noise, 0, first)
    assert gpu_draws._as_good(d, noise, 0, second)
    d[0, second] -= 1e-3
    assert not gpu_draws._as_good(d, noise, 0, second)
    assert not gpu_draws._as_good(d, noise, 0, 600)


def of_other_rows(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return honest(logits, noise, 0)


def without_top_k(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return honest(logits, reshaped(noise, logits.shape[1], top_k=None), first)


def without_top_p(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return honest(logits, reshaped(noise, logits.shape[1], top_p=None), first)


def of_another_seed(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return honest(logits, noise.at(noise.key + 1), first)


def out_of_bounds(logits: Tensor, noise: KeyedNoise, first: int) -> Tensor:
    return honest(logits, noise, first) + (2**31 - 1)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(
    ("lie", "shapings"),
    [
        (of_other_rows, set(gpu_draws.SHAPINGS)),
        (without_top_k, {"top_k", "top_k and top_p"}),
        (without_top_p, {"top_p", "top_k and top_p"}),
        (of_another_seed, set(gpu_draws.SHAPINGS)),
        (out_of_bounds, set(gpu_draws.SHAPINGS)),
    ],
)
def test_a_kernel_that_draws_wrongly_is_found(
    lie: Callable[..., Tensor], shapings: set[str], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "draw_by_triton", lie)
    stage.deadline = 0.0  # nothing is timed
    found = gpu_draws.draws(stage)
    assert found["equal"] is False
    assert found["timings"] == []
    assert {one["shaping"] for one in found["different"]} == shapings
    assert all("draws" in one for one in found["different"])


def one_too_many(*case: Any) -> Tensor:
    return (fused.plain(*case) + 1).clamp_max(case[3])


def greedily(*case: Any) -> Tensor:
    return fused.plain(*case[:-1])


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("lie", [one_too_many, greedily])
def test_a_kernel_that_counts_wrongly_is_found(
    lie: Callable[..., Tensor], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "by_triton", lie)
    stage.deadline = 0.0
    found = gpu_draws.draws(stage)
    assert found["equal"] is False
    assert {one["shaping"] for one in found["different"]} == set(gpu_draws.SHAPINGS)
    assert all("counts" in one for one in found["different"])


def test_where_triton_is_not_there_the_reason_is_given(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "usable", lambda device: False)
    found = gpu_draws.draws(stage)
    assert found == {"absent": True, "reason": "Triton runs no kernels on cpu"}


def test_sampled_steps_are_timed_with_noise_that_kernels_make(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapings = set()
    plain = fused.plain

    def watched(*case: Any) -> Tensor:
        noise = case[-1]
        shapings.add(None if noise is None else noise.shaping)
        return plain(*case)

    monkeypatch.setattr(fused, "has_kernels", lambda device: True)
    monkeypatch.setattr(fused, "plain", watched)
    for module in (gpu_draws, gpu_kernels):
        monkeypatch.setattr(module, "LOOKAHEADS", (16, 8))
    found = gpu_draws.sampled(stage)
    assert shapings == {None, (0.8, None, None), (0.8, None, 0.9)}
    assert found["kernels"] is False  # here torch stands in
    assert [step["name"] for step in found["steps"]] == ["greedy", "temperature", "top_p"]
    assert found["steps"][0]["over_greedy_s"] == 0
    assert all(step["step_s"] > 0 for step in found["steps"])


def test_a_sum_that_is_rounded_otherwise_is_no_fault(stage: Stage) -> None:
    """Nine equal ids have a mass of 0.9 and a little: whether the tenth is kept is rounding."""
    d = torch.full((1, 600), float("-inf"))
    noise = dict(gpu_draws._noises(stage, d, 0))["top_p"]
    tenth, *nine = noise.piece(0, 1)[0].topk(10).indices.tolist()
    d[0, nine] = 0.0
    for below, as_good in ((1e-5, True), (1e-2, False)):
        d[0, tenth] = -below
        assert drawn(d, noise.params, noise).tolist() == nine[:1]
        assert gpu_draws._as_good(d, noise, 0, nine[0])
        assert gpu_draws._as_good(d, noise, 0, tenth) is as_good
