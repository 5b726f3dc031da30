"""Random weights: their sizes, how much is accepted, and what cannot be timed with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from apdcli.bench import shapes as module
from apdcli.bench.benchmark import cases_of_shapes, load_shapes
from apdcli.bench.runs import timed
from apdcli.bench.shapes import (
    WrappedPair,
    accepting,
    causal_view,
    check_memory,
    needed_bytes,
    random_pair,
    random_transformer,
)
from apdcli.bench.sizes import SHAPES, check_shapes, default_shape_specs, find_shapes
from apdcli.decode.types import Pair, StepEvent, Verifier
from apdcli.engine.choice import make_models
from apdcli.engine.eager import EagerVerifier, banned_ids
from apdcli.engine.graphs import GraphVerifier
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request
from apdcli.errors import DeviceError, PromptError, UsageError
from tests.bench.conftest import on_tiny

CPU = torch.device("cpu")
TINY = SHAPES["tiny"]


def request(pair: LoadedPair, text: str, accept: int, tokens: int = 40) -> Request:
    (case,) = cases_of_shapes(
        TINY, pair, [on_tiny(text, max_tokens=tokens)], accept=accept, prompt_tokens=9
    )
    return case.requests[0]


def accepted(made: Request) -> list[int]:
    return [event.accepted for event in made.events() if isinstance(event, StepEvent)]


@pytest.mark.parametrize("accept", [1, 2, 5, 8])
@pytest.mark.parametrize("weight", [0.0, 0.5, 0.9])
def test_apd_accepts_what_it_is_told_to(tiny: LoadedPair, accept: int, weight: float) -> None:
    made = accepted(request(tiny, f"apd:R={weight},W=4,M=8", accept))
    assert sum(made) == 40
    assert made[:-1] == [accept] * (len(made) - 1)


@pytest.mark.parametrize("accept", [1, 3, 8])
def test_an_engine_that_verifies_in_parts_accepts_as_many(accept: int) -> None:
    fast = random_pair(TINY, CPU, torch.float32, "fast")
    made = accepted(request(fast, "apd:R=0.5,W=4,M=8", accept))
    assert made[:-1] == [accept] * (len(made) - 1)
    assert sum(made) == 40
    assert accepted(request(fast, "causal_denoiser", 5)) == [1] * 40
    assert fast.denoiser.packed.net is fast.denoiser  # a causal view leaves it as it was


@dataclass
class Judge:
    """A verifier that accepts drafts by itself, as the one of the CUDA graphs does."""

    inner: Any
    verify_less: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def accept(
        self, tokens: Tensor, draft: Tensor, d: Tensor, weight: float, noise: None = None
    ) -> Tensor:
        a = self.inner.logits(tokens, len(tokens) - len(draft) + 2)
        agree = draft[1:] == (weight * d[1:] + (1 - weight) * a).argmax(dim=-1)
        count = 1 + agree.long().cumprod(dim=0).sum(dim=0, keepdim=True)
        return torch.cat((draft, count))


def test_a_verifier_that_accepts_by_itself_is_steered_and_timed(tiny: LoadedPair) -> None:
    def judged(pair: Pair) -> Pair:
        return Pair(pair.denoiser, cast("Verifier", Judge(pair.verifier)))

    plain = request(tiny, "apd:R=0.5,W=4,M=8", 5)
    honest = replace(plain, pair=tiny)
    alone = replace(plain, pair=WrappedPair.of(tiny, judged))
    assert accepted(alone) == accepted(honest)
    steered = WrappedPair.of(tiny, lambda pair: accepting(3)(judged(pair)))
    assert accepted(replace(plain, pair=steered))[:-1] == [3] * 13
    split = timed(alone)
    assert split is not None
    assert split.verifier > 0
    usual = timed(honest)
    assert usual is not None
    assert split.verifier_forwards == usual.verifier_forwards


def test_the_models_run_as_they_would(tiny: LoadedPair) -> None:
    split = timed(request(tiny, "apd:R=0.5,W=4,M=8", 5))
    assert split is not None
    # In the middle: 5 + 4 - 1 recomputed and 8 masks; the draft but for its last.
    assert split.denoiser_forwards[2].positions == 16
    assert split.verifier_forwards[2].positions == 7
    assert split.verifier_forwards[2].rows == 7


def test_without_a_nudge_the_verifier_says_what_it_says(tiny: LoadedPair) -> None:
    wrapped = WrappedPair.of(tiny, accepting(3))
    tokens = torch.arange(4, 20)
    plain, nudged = (pair.models(32).verifier for pair in (tiny, wrapped))
    assert plain is not None
    assert nudged is not None
    with torch.inference_mode():  # no draft was made: nothing to agree with
        assert torch.equal(plain.logits(tokens, 10), nudged.logits(tokens, 10))


def test_strategies_that_need_no_nudge(tiny: LoadedPair) -> None:
    assert accepted(request(tiny, "left_to_right:K=3", 5))[:-1] == [3] * 13
    assert accepted(request(tiny, "autoregressive", 5)) == [1] * 40


def test_a_causal_view_is_a_causal_model_with_the_same_weights(tiny: LoadedPair) -> None:
    view = causal_view(tiny.denoiser)
    own = random_transformer(view.config, CPU, torch.float32, 0)
    own.load_state_dict(tiny.denoiser.state_dict())
    tokens = torch.arange(4, 30)
    banned = banned_ids(tiny.allowed_ids, view.config.vocab_size, "cpu")
    with torch.inference_mode():
        one, other = (EagerVerifier(net, banned, 64).logits(tokens, 5) for net in (view, own))
        later = EagerVerifier(view, banned, 64).logits(tokens[:20], 5)
    assert torch.equal(one, other)
    torch.testing.assert_close(later, one[:16])  # what comes later changes nothing
    assert tiny.denoiser.config.causal is False
    made = request(tiny, "causal_denoiser", 5)
    assert accepted(made) == [1] * 40
    split = timed(made)
    assert split is not None
    assert split.denoiser_forwards == ()
    assert {forward.positions for forward in split.verifier_forwards[1:]} == {1}


def test_a_causal_view_takes_no_graphs_of_the_denoiser() -> None:
    """Windows of the same sizes, recorded over the same weights, with another mask."""
    pair = random_pair(TINY, CPU, torch.float32, "fast")
    view = causal_view(pair.denoiser)
    width = view.config.vocab_size
    banned = banned_ids(pair.allowed_ids, width, "cpu")
    tokens = torch.arange(4, 30)
    with torch.inference_mode():
        both = make_models("graphs", pair.denoiser, None, banned, 64).denoiser
        both.logits(tokens, 0, 1)
        del both  # its buffers, and their graphs, lie ready for the next
        alone, eager = GraphVerifier(view, banned, 64), EagerVerifier(view, banned, 64)
        torch.testing.assert_close(alone.logits(tokens, 1), eager.logits(tokens, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_weights(dtype: torch.dtype) -> None:
    net = random_transformer(TINY.denoiser, CPU, dtype, seed=1)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert not any(p.requires_grad for p in net.parameters())
    assert net.cos.dtype == torch.float32
    embedding = net.model.embed_tokens.weight.float()
    assert 0.015 < float(embedding.std()) < 0.025
    assert len(embedding.unique(dim=0)) == len(embedding)  # no two rows are the same
    again = random_transformer(TINY.denoiser, CPU, dtype, seed=1)
    assert torch.equal(net.model.norm.weight, again.model.norm.weight)
    assert torch.equal(embedding, again.model.embed_tokens.weight.float())


def test_a_matrix_larger_than_the_block_it_is_filled_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 1009)
    net = random_transformer(TINY.denoiser, CPU, torch.float32, seed=1)
    flat = net.model.embed_tokens.weight.view(-1)
    assert torch.equal(flat[:1009], flat[1009:2018])
    assert torch.equal(flat[-(len(flat) % 1009) :], flat[: len(flat) % 1009])


def test_too_little_memory_is_said_before_anything_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dream = SHAPES["dream-7b"]
    needed = needed_bytes(dream, torch.bfloat16, 384, 100)
    assert 16.2e9 < needed < 17e9  # 15.2 + 1.0 GB of weights, the rest is caches and logits
    monkeypatch.setattr(module, "free_bytes", lambda device: needed)
    check_memory(dream, CPU, torch.bfloat16, 384, 100)
    monkeypatch.setattr(module, "free_bytes", lambda device: needed - 1)
    with pytest.raises(DeviceError, match=r"dream-7b in bfloat16 needs 16\.\d GB on cpu and 16\."):
        check_memory(dream, CPU, torch.bfloat16, 384, 100)
    with pytest.raises(DeviceError, match="try --quantize int8, --dtype bfloat16, "):
        load_shapes(dream, [on_tiny("apd", dtype="float32")], prompt_tokens=9)


def test_what_random_weights_cannot_time() -> None:
    def check(text: str, accept: int = 2, prompt: int = 9, **common: object) -> None:
        check_shapes(TINY, [on_tiny(text, **common)], accept=accept, prompt_tokens=prompt)

    check("apd")
    with pytest.raises(UsageError, match="threshold cannot be timed with random weights"):
        check("threshold")
    with pytest.raises(UsageError, match="R = 1 whole drafts are accepted"):
        check("apd:R=1")
    with pytest.raises(UsageError, match="--accept 9 is more than M = 8"):
        check("apd:M=8", accept=9)
    with pytest.raises(UsageError, match="greedy decoding only"):
        check("apd", temperature=0.5)
    with pytest.raises(PromptError, match="take 1265 positions and tiny has 1024"):
        check("apd", prompt=1009)
    with pytest.raises(UsageError, match="needs a verifier and llada-8b has none"):
        check_shapes(SHAPES["llada-8b"], [on_tiny("apd")], accept=2, prompt_tokens=9)
    with pytest.raises(UsageError, match="unknown shapes 'big'; there are: dream-7b, llada-8b"):
        find_shapes("big")
    names = [spec.name for spec in default_shape_specs(SHAPES["llada-8b"])]
    assert names == ["left_to_right", "causal_denoiser"]


def test_a_pair_keeps_its_kind_when_it_is_wrapped(tiny: LoadedPair) -> None:
    wrapped = WrappedPair.of(tiny, lambda models: models)
    assert wrapped.denoiser is tiny.denoiser
    assert replace(wrapped, verifier=None).models(8).verifier is None
