"""Looking ahead: the next step's forward is asked for before a step's event is given away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.engine.eager import EagerDenoiser
from tests.conftest import EOS, MASK, Nets

ENDLESS: tuple[str, dict[str, Any]] = ("left_to_right", {"k": 3, "stop_ids": frozenset()})
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("apd", {"mixture_weight": 0.5, "recompute_window": 4, "max_lookahead": 12}),
    ("apd", {"mixture_weight": 0.5, "recompute_window": "all", "max_lookahead": "auto"}),
    ("apd", {"mixture_weight": 0.9, "temperature": 0.9, "top_k": 9, "seed": 3}),
    ("left_to_right", {"k": 3, "recompute_window": 4, "max_lookahead": 8}),
    ("left_to_right", {"k": 5, "max_lookahead": "all"}),
]


class Aside(EagerDenoiser):
    """A denoiser that says of itself that nobody waits for it."""

    asynchronous = True
    asked = 0
    full_at = 99

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        self.asked += 1
        if self.asked >= self.full_at:
            raise RuntimeError("CUDA error: out of memory")
        return super().logits(tokens, start, first, keep_after=keep_after)


def running(
    nets: Nets, prompt: list[int], strategy: str, values: dict[str, Any], **how: Any
) -> tuple[Aside, Iterator[StepEvent | Finished]]:
    shared, own = make_params(
        strategy, **{"max_tokens": 30, "stop_ids": frozenset({EOS}), **values}
    )
    canvas = Canvas.blank(prompt, shared.max_tokens, MASK)
    pair = nets.pair(canvas.end)
    denoiser = pair.denoiser
    assert isinstance(denoiser, EagerDenoiser)
    aside = Aside(nets.denoiser, denoiser.banned, canvas.end)
    models = Pair(aside, pair.verifier)
    made = make_strategy(strategy, shared, own)
    return aside, decode(canvas, made, models, stop_ids=shared.stop_ids, **how)


@pytest.mark.parametrize(("strategy", "values"), SETTINGS)
def test_the_events_are_the_same(
    nets: Nets, prompts: list[list[int]], strategy: str, values: dict[str, Any]
) -> None:
    early = 0
    for prompt in prompts[:4]:
        aside, mine = running(nets, prompt, strategy, values)
        plain, others = running(nets, prompt, strategy, values, ahead=False)
        for step, (one, other) in enumerate(zip(mine, others, strict=True), 1):
            assert replace(one, elapsed_s=0) == replace(other, elapsed_s=0)
            if isinstance(one, StepEvent):
                assert plain.asked == one.denoiser_forwards == step
                early += aside.asked - plain.asked
                assert step > 1 or aside.asked == 1  # the first text waits for nothing
        assert aside.asked == plain.asked  # and nothing was asked for in vain
    assert early > 4


def test_strategies_in_any_order_do_not_foresee(nets: Nets, prompts: list[list[int]]) -> None:
    values = {"block_length": 10}
    aside, events = running(nets, prompts[0], "threshold", values)
    for event in events:
        assert aside.asked == event.denoiser_forwards


def test_what_goes_wrong_ahead_comes_after_the_tokens(nets: Nets, prompts: list[list[int]]) -> None:
    strategy, values = ENDLESS
    _, events = running(nets, prompts[0], strategy, values)
    expected = [replace(event, elapsed_s=0) for event in events][:3]
    aside, events = running(nets, prompts[0], strategy, values)
    aside.full_at = 4
    got: list[StepEvent | Finished] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        got.extend(events)  # those that came before the failure stay
    assert [replace(event, elapsed_s=0) for event in got] == expected


def test_an_interruption_finds_what_was_given_away(nets: Nets, prompts: list[list[int]]) -> None:
    strategy, values = ENDLESS
    seen: list[StepEvent | Finished] = []
    aside, events = running(nets, prompts[0], strategy, values, interrupted=lambda: len(seen) == 3)
    for event in events:
        seen.append(event)
    last = seen[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.steps) == ("interrupted", 3)
    assert last.denoiser_forwards == aside.asked == 4  # one was under way
