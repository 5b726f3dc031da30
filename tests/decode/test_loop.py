"""The loop with a scripted strategy: stopping, counting, mutation."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

import pytest
import torch

from apdcli.decode.loop import decode
from apdcli.decode.params import STRATEGIES, make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Commit, Finished, Pair, StepEvent
from apdcli.engine.choice import make_models
from apdcli.engine.eager import banned_ids
from tests.conftest import MASK, VOCAB, Nets

STOP = 9


class Scripted:
    """Commits what it was told to, (position, id) pairs a step."""

    def __init__(self, steps: Iterable[list[tuple[int, int]]], early_stop: bool = True) -> None:
        self.steps = iter(steps)
        self.early_stop = early_stop

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        pairs = next(self.steps)
        return Commit(tuple(p for p, _ in pairs), tuple(t for _, t in pairs), proposed=8)


def play(
    nets: Nets,
    steps: list[list[tuple[int, int]]],
    length: int = 5,
    *,
    early_stop: bool = True,
    interrupt_after: int = 99,
) -> tuple[Canvas, list[StepEvent], Finished]:
    canvas = Canvas.blank([1, 2], length, MASK)
    ticks: Iterator[int] = iter(range(1000))
    asked: Iterator[int] = iter(range(1000))
    *events, last = decode(
        canvas,
        Scripted(steps, early_stop),
        nets.pair(),
        stop_ids=frozenset({STOP}),
        interrupted=lambda: next(asked) >= interrupt_after,
        clock=lambda: float(next(ticks)),
    )
    assert isinstance(last, Finished)
    return canvas, [e for e in events if isinstance(e, StepEvent)], last


def test_fills_the_canvas_and_counts(nets: Nets) -> None:
    canvas, events, last = play(nets, [[(2, 5), (3, 6)], [(4, 7)], [(5, 8), (6, 8)]])
    assert canvas.tokens.tolist() == [1, 2, 5, 6, 7, 8, 8]
    assert [e.accepted for e in events] == [2, 1, 2]
    assert [e.masked_left for e in events] == [3, 2, 0]
    assert [e.step for e in events] == [1, 2, 3]
    assert (last.reason, last.steps) == ("length", 3)
    assert events[-1].elapsed_s < last.elapsed_s


def test_what_follows_an_end_token_in_the_same_step_is_dropped(nets: Nets) -> None:
    canvas, events, last = play(nets, [[(2, 5)], [(3, 6), (4, STOP), (5, 7), (6, 7)]])
    assert events[-1].committed == ((3, 6), (4, STOP))
    assert events[-1].accepted == 2
    assert events[-1].masked_left == 2
    assert canvas.tokens.tolist() == [1, 2, 5, 6, STOP, MASK, MASK]
    assert last.reason == "stop"


def test_an_end_token_behind_a_gap_waits_for_the_gap(nets: Nets) -> None:
    _, events, last = play(nets, [[(4, STOP), (6, 7)], [(3, 6)], [(2, 5)]])
    assert [e.accepted for e in events] == [2, 1, 1]
    assert last.reason == "stop"
    assert events[-1].masked_left == 1  # position 5 need not be decoded


def test_without_early_stop_everything_is_decoded(nets: Nets) -> None:
    steps = [[(2, STOP)], [(3, 6), (4, STOP)], [(5, 7), (6, 7)]]
    canvas, events, last = play(nets, steps, early_stop=False)
    assert canvas.tokens.tolist() == [1, 2, STOP, 6, STOP, 7, 7]
    assert [e.accepted for e in events] == [1, 2, 2]
    assert last.reason == "stop"


def test_a_step_may_commit_nothing(nets: Nets) -> None:
    _, events, last = play(nets, [[], [(2, 5)]], length=1)
    assert [e.accepted for e in events] == [0, 1]
    assert last.steps == 2


def test_an_end_token_in_the_prompt_does_not_end_anything(nets: Nets) -> None:
    canvas = Canvas.blank([STOP, 2], 1, MASK)
    *_, last = decode(canvas, Scripted([[(2, 5)]]), nets.pair(), stop_ids=frozenset({STOP}))
    assert isinstance(last, Finished)
    assert last.reason == "length"


def test_interruption_is_seen_between_steps(nets: Nets) -> None:
    canvas, events, last = play(nets, [[(2, 5)], [(3, 6)], [(4, 7)]], interrupt_after=2)
    assert len(events) == 2
    assert last.reason == "interrupted"
    assert canvas.tokens.tolist()[2:] == [5, 6, MASK, MASK, MASK]


def test_committing_a_position_twice_is_a_bug_and_says_so(nets: Nets) -> None:
    with pytest.raises(AssertionError, match="position 2"):
        play(nets, [[(2, 5)], [(2, 6)]])


def test_counts_what_strategies_ask_of_the_models(nets: Nets) -> None:
    class Asks:
        early_stop = True

        def step(self, canvas: Canvas, pair: Pair) -> Commit:
            assert pair.verifier is not None
            pair.denoiser.logits(canvas.tokens[:4], 0, 2)
            pair.verifier.logits(canvas.tokens[:3], 2)
            pair.verifier.logits(torch.cat((canvas.tokens[:3], canvas.tokens[:1])), 4)
            pair.verifier.crop(0)
            return Commit((canvas.cursor,), (5,), proposed=2)

    events = list(decode(Canvas.blank([1, 2], 2, MASK), Asks(), nets.pair()))
    last = events[-1]
    assert isinstance(last, Finished)
    assert (last.denoiser_forwards, last.verifier_forwards) == (2, 4)
    assert last.tokens_forwarded == 2 * (4 + 3 + 1)


@pytest.mark.parametrize(
    ("strategy", "engine"),
    [("apd", "fast"), ("apd", "graphs"), *((strategy, "eager") for strategy in STRATEGIES)],
)
@pytest.mark.parametrize("steps", [1, None])
def test_models_go_with_the_last_reference_to_them(
    nets: Nets, strategy: str, engine: str, steps: int | None
) -> None:
    """Not when the garbage collector comes by: their caches may fill a device."""
    values = {"block_length": "all"} if strategy == "dico" else {}
    shared, own = make_params(strategy, max_tokens=8, **values)
    banned = banned_ids([5, 6, 7], VOCAB, "cpu")
    gc.collect()
    gc.disable()
    try:
        pair = make_models(engine, nets.denoiser, nets.verifier, banned, 16)
        assert hasattr(pair.verifier, "accept") == (engine == "graphs")
        events = decode(Canvas.blank([5, 6], 8, MASK), make_strategy(strategy, shared, own), pair)
        for _ in zip(events, range(steps or 99), strict=False):
            pass
        models = [weakref.ref(model) for model in (pair.denoiser, pair.verifier)]
        del pair, events
        assert [model() for model in models] == [None, None]
    finally:
        gc.enable()
