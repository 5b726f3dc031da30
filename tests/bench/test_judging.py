"""A verifier that is told whether drafts are verified whole or by parts, and counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from apdcli.bench.judging import JudgingVerifier, judging
from apdcli.bench.shapes import WrappedPair, accepting, random_pair
from apdcli.bench.sizes import SHAPES
from apdcli.decode.types import Pair, StepEvent
from apdcli.engine.pair import LoadedPair
from tests.bench.test_shapes import request


def judged(pair: LoadedPair, by_parts: bool) -> JudgingVerifier:
    verifier = judging(by_parts)(pair.models(32)).verifier
    assert isinstance(verifier, JudgingVerifier)
    return verifier


@torch.inference_mode()
def test_it_says_what_the_verifier_says_and_counts(tiny: LoadedPair) -> None:
    tokens = torch.arange(4, 20)
    plain, verifier = tiny.models(32).verifier, judged(tiny, True)
    assert plain is not None
    assert torch.equal(plain.logits(tokens, 10), verifier.logits(tokens, 10))
    assert (verifier.length, verifier.positions) == (16, 16)
    verifier.crop(11)
    verifier.logits(tokens, 12)
    assert (verifier.length, verifier.positions) == (16, 21)


def test_a_judge_of_whole_drafts_is_hidden() -> None:
    pair = random_pair(SHAPES["tiny"], torch.device("cpu"), torch.float32, "fast")
    graphs = replace(pair, engine="graphs")
    assert hasattr(graphs.models(32).verifier, "accept")
    assert not hasattr(judged(graphs, True), "accept")


@pytest.mark.parametrize(("by_parts", "first_part"), [(False, 31), (True, 6)])
def test_drafts_are_shown_as_told(tiny: LoadedPair, by_parts: bool, first_part: int) -> None:
    """One token of 32 is accepted a step: a first part of that and 6 more is enough."""
    asked = request(tiny, "apd:R=0.5,W=4,M=32", 1)
    steered = replace(
        asked, pair=WrappedPair.of(tiny, lambda pair: accepting(1)(judging(by_parts)(pair)))
    )
    steps = [event for event in steered.events() if isinstance(event, StepEvent)]
    assert [step.accepted for step in steps] == [1] * 40
    # The fourth step: W = 4 tokens again and 32 masks, then what it shows of the draft.
    more = steps[3].tokens_forwarded - steps[2].tokens_forwarded
    assert more - (4 + 32) == first_part


def test_without_a_verifier_there_is_nothing_to_tell(tiny: LoadedPair) -> None:
    alone = Pair(tiny.models(8).denoiser)
    assert judging(True)(alone) is alone
