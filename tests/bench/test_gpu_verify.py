"""The GPU run's comparison of drafts verified whole and by parts, tried on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from apdcli.bench import gpu, gpu_verify
from apdcli.bench.gpu_stage import Stage
from apdcli.decode.strategies.apd import Apd
from apdcli.engine.graphs import GraphVerifier


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_verify, "LOOKAHEADS", (32, 8))
    args = ["--device", "cpu", "--shapes", "tiny", "--repeats", "2", "--accept", "3"]
    return Stage.of(gpu._parser().parse_args(args))


def watched(method: Callable[..., Any], seen: list[int]) -> Callable[..., Any]:
    def call(self: Any, tokens: Any, *rest: Any, **more: Any) -> Any:
        seen.append(len(tokens) - self.length)
        return method(self, tokens, *rest, **more)

    return call


def test_both_ways_are_timed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    accepts: list[int] = []
    logits: list[int] = []
    monkeypatch.setattr(GraphVerifier, "accept", watched(GraphVerifier.accept, accepts))
    monkeypatch.setattr(GraphVerifier, "logits", watched(GraphVerifier.logits, logits))
    found = gpu_verify.verify_less(stage)
    assert (found["engine"], found["accepted"], found["equal"]) == ("graphs", 3, True)
    assert [row["lookahead"] for row in found["steps"]] == [32, 8]
    for row in found["steps"]:
        assert row["whole_s"] > 0
        assert row["parts_s"] > 0
        assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
        assert row["unlike"] == 0
    long, short = found["steps"]
    assert long["parts_forwards"] == 1
    # Of 31 positions a first part of 3 + 6 tokens leaves out 23; the last drafts are shorter.
    assert 8 < long["positions_left_out"] < 23
    assert short["positions_left_out"] == 0  # a draft of 8 is too short to be cut
    # The graph judges whole drafts only, logits are asked for by parts only.
    assert len(accepts) == len(logits)
    assert sum(accepts) > sum(logits)


def test_a_way_that_accepts_otherwise_is_found(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Apd, "_by_parts", lambda *given: 2)
    assert gpu_verify.verify_less(stage)["equal"] is False


@pytest.mark.parametrize(("dtype", "equal"), [("float32", False), ("bfloat16", True)])
def test_other_tokens_are_a_fault_in_float32(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, dtype: str, equal: bool
) -> None:
    honest = gpu_verify._ids
    ways = iter(range(100))
    monkeypatch.setattr(gpu_verify, "_ids", lambda s: [next(ways) % 2, *honest(s)[1:]])
    stage.dtype = getattr(torch, dtype)
    found = gpu_verify.verify_less(stage)
    assert [row["unlike"] for row in found["steps"]] == [1, 1]
    assert found["equal"] is equal


def test_what_it_cannot_run_it_says(stage: Stage) -> None:
    stage.deadline = 0.0
    assert gpu_verify.verify_less(stage) == {"skipped": True, "reason": "the time was up"}
    stage.shapes = replace(stage.shapes, verifier=None)
    assert gpu_verify.verify_less(stage) == {"absent": True, "reason": "tiny has no verifier"}
