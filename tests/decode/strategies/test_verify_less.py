"""Drafts verified by parts: the same tokens at the same steps, from fewer positions.

The models are toys whose logits are a function of the text alone, bit for bit, however a forward
is cut: what differs between the two ways could only come from the strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.strategies.apd import PART_MARGIN, PART_SAVES, part_ends
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent

VOCAB, MASK, END = 12, 11, 10
PROMPT = [1, 2, 3]


def row(*key: int) -> Tensor:
    """[VOCAB] logits that only the key decides; the mask is never produced."""
    made = torch.randn(VOCAB, generator=torch.Generator().manual_seed(hash(key) % 2**63))
    made[MASK] = float("-inf")
    return made


@dataclass(frozen=True)
class World:
    """What a pair of toys thinks: at `agreement` of 10 positions they are of one mind.

    How sure they are of it, beside logits of spread 1, is `boost`.
    """

    seed: int
    agreement: int
    boost: float = 30.0

    def denoised(self, position: int, seen: Sequence[int]) -> Tensor:
        made = row(self.seed, 0, position, len(seen))
        made[self._plain(position)] += 0.3 * self.boost
        return made

    def verified(self, position: int, before: Sequence[int]) -> Tensor:
        made = row(self.seed, 1, position, *before)
        agrees = hash((self.seed, 2, *before)) % 10 < self.agreement
        made[(self._plain(position) + (not agrees)) % MASK] += self.boost
        return made

    def _plain(self, position: int) -> int:
        return hash((self.seed, 3, position)) % MASK


class ToyDenoiser:
    mask_id, lookback = MASK, 0

    def __init__(self, world: World) -> None:
        self.world = world
        self.length = 0

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        seen = tokens.tolist()
        self.length = len(seen)
        return torch.stack([self.world.denoised(p, seen) for p in range(first, len(seen))])

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


class ToyVerifier:
    """Remembers which tokens it has cached, and insists on being shown these again."""

    def __init__(self, world: World, verify_less: bool) -> None:
        self.world = world
        self.verify_less = verify_less
        self.cached: list[int] = []
        self.asked: list[tuple[int, int]] = []  # first and last position judged

    @property
    def length(self) -> int:
        return len(self.cached)

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        text = tokens.tolist()
        assert text[: self.length] == self.cached
        assert self.length < first <= len(text)
        self.cached = text
        self.asked.append((first, len(text)))
        return torch.stack([self.world.verified(p, text[:p]) for p in range(first, len(text) + 1)])

    def crop(self, length: int) -> None:
        del self.cached[length:]


@dataclass(frozen=True)
class Run:
    """The events, what the verifier held after each, and what it was asked."""

    steps: list[StepEvent]
    last: Finished
    held: list[list[int]]
    asked: list[tuple[int, int]]


def run(world: World, verify_less: bool, stop: int = MASK, **values: Any) -> Run:
    shared, own = make_params("apd", stop_ids=frozenset({stop}), **values)
    verifier = ToyVerifier(world, verify_less)
    canvas = Canvas.blank(PROMPT, shared.max_tokens, MASK)
    strategy = make_strategy("apd", shared, own)
    models = Pair(ToyDenoiser(world), verifier)
    steps, held = [], []
    for event in decode(canvas, strategy, models, stop_ids=frozenset({stop})):
        held.append(list(verifier.cached))
        if isinstance(event, Finished):
            return Run(steps, event, held, verifier.asked)
        steps.append(event)
    raise AssertionError("the events do not end")


def choices(steps: list[StepEvent]) -> list[StepEvent]:
    """The events without what it cost to come by them."""
    costs = {"denoiser_forwards": 0, "verifier_forwards": 0, "tokens_forwarded": 0}
    return [replace(step, elapsed_s=0.0, **costs) for step in steps]  # type: ignore[arg-type]


@settings(max_examples=120, deadline=None)
@given(
    world=st.builds(
        World, st.integers(0, 2**40), st.integers(0, 10), st.sampled_from([3.0, 8.0, 30.0])
    ),
    mixture_weight=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    recompute_window=st.sampled_from([1, 5, "all"]),
    max_lookahead=st.sampled_from([1, 2, 9, 16, 40, 100, "all", "auto"]),
    max_tokens=st.sampled_from([1, 2, 12, 40, 90]),
    temperature=st.sampled_from([0.0, 0.0, 0.4, 1.2]),
    top_k=st.sampled_from([None, 3]),
    top_p=st.sampled_from([None, 0.8]),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_same_choices_and_the_same_cache(world: World, **values: Any) -> None:
    whole, less = (run(world, verify_less, END, **values) for verify_less in (False, True))
    assert choices(less.steps) == choices(whole.steps)
    assert less.last.reason == whole.last.reason
    # Behind the token that ends the text nothing was verified.
    alike = len(whole.steps) - (whole.last.reason == "stop")
    assert less.held[:alike] == whole.held[:alike]
    assert whole.held[-1][: len(less.held[-1])] == less.held[-1]
    assert less.last.denoiser_forwards == whole.last.denoiser_forwards
    assert less.last.tokens_forwarded <= whole.last.tokens_forwarded
    if values["mixture_weight"] == 1.0:
        assert less.asked == []


def both(world: World, **values: Any) -> tuple[Run, Run]:
    settings = {"max_tokens": 200, "max_lookahead": 64, "mixture_weight": 0.5, **values}
    stop = settings.pop("stop", MASK)
    return run(world, False, stop, **settings), run(world, True, stop, **settings)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_hard_text_costs_a_part_of_the_draft(temperature: float) -> None:
    whole, less = both(World(5, 2), temperature=temperature)
    assert choices(less.steps) == choices(whole.steps)
    assert len(whole.steps) > 20

    def judged(run: Run) -> int:
        return sum(last + 1 - first for first, last in run.asked)

    assert judged(less) < judged(whole) / 3
    assert less.last.verifier_forwards < 1.2 * whole.last.verifier_forwards


def test_easy_text_is_verified_in_one_go() -> None:
    whole, less = both(World(5, 10))
    assert less.asked == whole.asked
    assert less.last.verifier_forwards == less.last.steps


@pytest.mark.parametrize(
    ("world", "values"),
    [
        (World(5, 7), {}),
        # Nothing but the shared noise makes these two agree.
        (World(5, 7, boost=1.0), {"mixture_weight": 0.95, "temperature": 3.0}),
    ],
)
def test_parts_follow_each_other_and_stop_at_the_first_disagreement(
    world: World, values: dict[str, Any]
) -> None:
    whole, less = both(world, **values)
    assert choices(less.steps) == choices(whole.steps)
    by_step: list[list[tuple[int, int]]] = [[] for _ in less.steps]
    begins = [step.committed[0][0] for step in less.steps]
    for first, last in less.asked:
        step = max(k for k, begin in enumerate(begins) if begin < first)
        by_step[step].append((first, last))
    assert {len(parts) for parts in by_step} >= {1, 2}
    for begin, step, parts in zip(begins, less.steps, by_step, strict=True):
        assert parts[0][0] == begin + 1
        assert all(b[0] == a[1] + 1 for a, b in pairwise(parts))
        agreed = [last < begin + step.accepted for _, last in parts]
        assert all(agreed[:-1]), "went on after a disagreement"
        if not agreed[-1]:  # then there is a disagreement, and it is in the last part
            assert parts[-1][0] <= begin + step.accepted <= parts[-1][1]


def test_nothing_is_judged_behind_a_token_that_would_end_the_text() -> None:
    ended = unjudged = 0
    for seed in range(40):
        whole, less = both(World(seed, 9), stop=END, max_lookahead=24)
        assert choices(less.steps) == choices(whole.steps)
        ends = [p for step in less.steps for p, id_ in step.committed if id_ == END]
        if not ends:
            continue
        ended += 1
        assert all(last <= ends[0] for _, last in less.asked)
        if less.steps[-1].committed[0][0] == ends[0]:  # a draft's first token needs no judge
            before = less.steps[-2].verifier_forwards if len(less.steps) > 1 else 0
            assert less.last.verifier_forwards == before
            unjudged += 1
    assert ended > 20
    assert unjudged > 2


def test_where_parts_end() -> None:
    assert list(part_ends(32, None)) == [32]
    assert list(part_ends(32, 1.65)) == [8, 32]
    assert list(part_ends(100, 2.0)) == [8, 32, 100]
    assert list(part_ends(100, 16.5)) == [23, 92, 100]
    assert list(part_ends(100, 87.0)) == [100]
    assert list(part_ends(1 + PART_MARGIN + PART_SAVES, 1.0)) == [1 + PART_MARGIN, 15]
    assert list(part_ends(PART_MARGIN + PART_SAVES, 1.0)) == [14]
    assert list(part_ends(2, 1.0)) == [2]
    assert list(part_ends(1, 1.0)) == list(part_ends(1, None)) == []
