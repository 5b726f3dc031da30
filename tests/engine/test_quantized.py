"""A quantized pair: every engine and a batch give the eager engine's greedy tokens."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import apdcli
from apdcli.bench.shapes import random_pair
from apdcli.bench.sizes import SHAPES
from apdcli.decode.params import make_params
from apdcli.decode.types import StepEvent
from apdcli.engine import fused
from apdcli.engine.batch import run_batch
from apdcli.engine.choice import resolve_engine
from apdcli.engine.fast import FastDenoiser
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request, prepare
from apdcli.load.settings import resolve_settings
from apdcli.models import quantized
from apdcli.models.quantized import quantization_of
from apdcli.tasks.identity import pair_digest

PROMPTS = ("What is 3 + 4?", "Write the word apple backwards.", "Sort: pear, fig, apple")


@pytest.fixture(scope="module", params=["int8", "int4"])
def pair(request: pytest.FixtureRequest) -> LoadedPair:
    """The embedded pair, by the eager engine."""
    pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")
    torch.set_num_threads(1)
    return apdcli.load_pair("demo", device="cpu", quantize=request.param, engine="eager")


def of(pair: LoadedPair, engine: str) -> LoadedPair:
    nets = [net for net in (pair.denoiser, pair.verifier) if net is not None]
    own = {name: getattr(pair, name) for name in LoadedPair.__dataclass_fields__}
    return LoadedPair(**{**own, "engine": resolve_engine(engine, nets)})


@pytest.mark.parametrize("strategy", ["apd", "left_to_right", "dico", "autoregressive"])
def test_the_fast_engine(pair: LoadedPair, strategy: str) -> None:
    fast = of(pair, "auto")
    assert fast.engine == "fast"
    assert isinstance(fast.models(64).denoiser, FastDenoiser)
    for prompt in PROMPTS:
        given = {"strategy": strategy, "max_tokens": 24, "temperature": 0.0}
        mine, eager = (apdcli.generate(p, prompt, **given) for p in (fast, pair))
        assert mine.token_ids == eager.token_ids
        assert mine.accepted == eager.accepted


def test_the_graphs_engine(pair: LoadedPair) -> None:
    # On a CPU its functions are called, not replayed; a failure would hand over with a warning.
    own = {name: getattr(pair, name) for name in LoadedPair.__dataclass_fields__}
    graphs = LoadedPair(**{**own, "engine": "graphs"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in PROMPTS:
            given = {"max_tokens": 24, "temperature": 0.0}
            mine, eager = (apdcli.generate(p, prompt, **given) for p in (graphs, pair))
            assert mine.token_ids == eager.token_ids


def test_a_batch(pair: LoadedPair) -> None:
    settings = resolve_settings(pair.profile, {"max_tokens": 24}, {})
    requests = [prepare(pair, prompt, settings, raw=False) for prompt in PROMPTS]
    alone, together = (list(run_batch(requests, size)) for size in (1, 3))
    for one, other in zip(alone, together, strict=True):
        assert one.generation is not None
        assert other.generation is not None
        assert one.generation.token_ids == other.generation.token_ids


def test_its_digest_is_its_own(pair: LoadedPair) -> None:
    assert pair_digest(pair) != pair_digest(apdcli.load_pair("demo", device="cpu"))


def test_each_model_has_a_format_of_its_own() -> None:
    pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")
    profile = apdcli.load_pair("demo").profile
    sections = {
        "denoiser": profile.denoiser.model_copy(update={"quantize": "int4"}),
        "verifier": profile.denoiser.model_copy(update={"model": "embedded:verifier"}),
    }
    own = {name: getattr(profile, name) for name in type(profile).__dataclass_fields__}
    for flag, expected in ((None, ("int4", "none")), ("int8", ("int8", "int8"))):
        made = apdcli.load_pair(type(profile)(**{**own, **sections}), quantize=flag)
        assert made.verifier is not None
        assert (quantization_of(made.denoiser), quantization_of(made.verifier)) == expected


def test_a_denoiser_alone() -> None:
    pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")
    exact, made = (
        apdcli.load_denoiser("embedded:denoiser", device="cpu", quantize=name).logits([5, 6, 7])
        for name in ("none", "int8")
    )
    kept = exact.isfinite()
    assert torch.equal(kept, made.isfinite())
    error = (exact - made)[kept].pow(2).mean().sqrt() / exact[kept].std()
    assert 0 < error < 0.05


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1",
)
def test_the_kernels_read_what_a_head_of_its_own_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verifier's head is of integers and goes by blocks: no reason to do without Triton."""
    tiny = SHAPES["tiny"]
    assert tiny.verifier is not None
    verifier = replace(tiny.verifier, tied=False)
    shapes = replace(tiny, verifier=verifier)
    monkeypatch.setattr(quantized, "_CPU_BLOCK", 128 * verifier.hidden_size)
    seen: list[tuple[int, ...]] = []
    kernels = fused.by_triton

    def noted(d: Tensor, a: Tensor, *rest: Any) -> Tensor:
        seen.append(a.stride())
        return kernels(d, a, *rest)

    monkeypatch.setattr(fused, "by_triton", noted)
    pair = random_pair(shapes, torch.device("cpu"), torch.float32, quantize=("none", "int8"))
    assert quantization_of(pair.verifier) == "int8"  # type: ignore[arg-type]
    own = make_params("apd", max_tokens=24, mixture_weight=0.0, max_lookahead=12)
    made = []
    for engine in ("graphs", "eager"):
        request = Request(replace(pair, engine=engine), (5, 6, 7), "apd", *own)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made.append([e for e in request.events() if isinstance(e, StepEvent)])
    assert [e.committed for e in made[0]] == [e.committed for e in made[1]]
    assert seen
    assert all(stride[1] == 1 for stride in seen)
    assert fused.usable(pair.device)
