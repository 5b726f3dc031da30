"""The GPU run's comparison of looking ahead, tried on the CPU."""

from __future__ import annotations

import pytest
import torch

from apdcli.bench import gpu, gpu_ahead
from apdcli.bench.gpu_stage import Stage
from apdcli.decode.strategies.apd import Apd
from apdcli.engine.graphs import GraphDenoiser


@pytest.mark.parametrize("asynchronous", [True, False])
def test_both_ways_are_timed(monkeypatch: pytest.MonkeyPatch, asynchronous: bool) -> None:
    torch.set_num_threads(1)
    foreseen = []
    ahead = Apd.ahead

    def counted(*args: object) -> None:
        foreseen.append(1)
        ahead(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Apd, "ahead", counted)
    monkeypatch.setattr(GraphDenoiser, "asynchronous", asynchronous)
    monkeypatch.setattr(gpu_ahead, "SHOWN_S", (0.0, 0.02))
    args = ["--device", "cpu", "--shapes", "tiny", "--repeats", "1", "--accept", "3"]
    found = gpu_ahead.ahead(Stage.of(gpu._parser().parse_args(args)))
    assert (found["equal"], found["unlike"]) == (True, 0)
    assert found["asynchronous"] is asynchronous
    quick, busy = found["steps"]
    assert [quick["shown_s"], busy["shown_s"]] == [0.0, 0.02]
    assert min(quick["ahead_s"], quick["after_s"]) > 0
    assert min(busy["ahead_s"], busy["after_s"]) > 0.02  # the time that the reader takes counts
    assert bool(foreseen) is asynchronous  # of two ways, one looks ahead
