"""Turns, what they count, and that measuring changes nothing that is generated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from apdcli.bench.benchmark import Order, cases_of, measure
from apdcli.bench.floor import Forward, Rates
from apdcli.bench.machine import PeakMemory, describe, device_name, versions
from apdcli.bench.report import Measured, Shape, step_parts
from apdcli.bench.runs import Case, Plan, Turn, answer_length, complete, timed
from apdcli.bench.timing import Split, Stopwatch
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.device import free_bytes
from apdcli.engine.pair import LoadedPair
from tests.bench.conftest import contender

PROMPTS = ["the cat", "a dog and a cat sat"]
TEXTS = ("apd:R=0.5,W=4,M=8", "left_to_right:K=2", "autoregressive", "threshold")


@pytest.fixture(scope="module")
def cases(reference: LoadedPair) -> list[Case]:
    chosen = [contender(reference, text) for text in TEXTS]
    return cases_of(reference, chosen, PROMPTS, raw=True)


def event(step: int, *committed: tuple[int, int]) -> StepEvent:
    return StepEvent(step, committed, len(committed), len(committed), 0, 0, 0, 0, 0.0)


def test_everyone_takes_a_turn_on_everything(cases: list[Case]) -> None:
    told: list[tuple[int, int, str]] = []
    plan = Plan(cases, repeats=2, warmup=1, split=False, progress=lambda *seen: told.append(seen))
    assert plan.warm_up()
    assert plan.memory() is not None
    turns = list(plan.turns())
    assert [(t.repeat, t.prompt) for t in turns] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all(list(turn.runs) == [case.name for case in cases] for turn in turns)
    assert [done for done, _, _ in told] == list(range(plan.total))
    assert plan.total == 4 * (3 * 2 + 1)
    # None always follows the same neighbour: another one begins each time.
    begun = [name for _, _, name in told[-16::4]]
    assert len(set(begun)) == 3


def test_a_run_is_the_generation_that_users_get(cases: list[Case]) -> None:
    (turn, *_) = Plan(cases, repeats=1, warmup=0).turns()
    for case in cases:
        request, run = case.requests[0], turn.runs[case.name]
        done = request.result(list(request.events()))
        assert run.tokens == len(done.token_ids)
        assert run.steps == done.usage.steps
        assert run.denoiser_forwards == done.usage.denoiser_forwards
        assert run.verifier_forwards == done.usage.verifier_forwards
        assert run.finish_reason == done.finish_reason
        assert run.first_s is not None
        assert 0 < run.first_s <= run.seconds


def test_a_split_adds_up_and_knows_every_forward(cases: list[Case]) -> None:
    for case in cases:
        request = case.requests[0]
        *_, last = request.events()
        assert isinstance(last, Finished)
        split = timed(request)
        assert split is not None
        assert split.steps == last.steps
        assert len(split.denoiser_forwards) == last.denoiser_forwards
        assert len(split.verifier_forwards) == last.verifier_forwards
        every = (*split.denoiser_forwards, *split.verifier_forwards)
        assert sum(forward.positions for forward in every) == last.tokens_forwarded
        assert (split.denoiser > 0) == (last.denoiser_forwards > 0)
        assert (split.verifier > 0) == (last.verifier_forwards > 0)
        assert min(split.sampling, split.rest) >= 0


def test_the_forwards_of_the_first_step_of_apd(reference: LoadedPair) -> None:
    chosen = [contender(reference, "apd:R=0.5,W=4,M=8")]
    (case,) = cases_of(reference, chosen, ["Tell a story"], raw=True)
    (request,) = case.requests
    n = len(request.prompt_ids)
    split = timed(request)
    assert split is not None
    # The first step runs the prompt through both models.
    assert split.denoiser_forwards[0] == Forward(n + 8, n + 8, 8)
    assert split.verifier_forwards[0] == Forward(n + 7, n + 7, 7)


def test_the_floor_counts_the_forwards_that_were_made(reference: LoadedPair) -> None:
    config = reference.denoiser.config
    measured = Measured(Shape(config, "float32"), None, Rates(1.0, 1.0))
    split = Split(1.0, 0.0, 0.0, 0.0, 1, (Forward(5, 9, 2), Forward(5, 9, 2)), ())
    assert [part.name for part in step_parts(split, measured)] == [
        "denoiser layers", "denoiser head", "denoiser layers", "denoiser head",
    ]  # fmt: skip
    judged = replace(split, verifier_forwards=(Forward(3, 9, 3),))
    both = replace(measured, verifier=Shape(config, "bfloat16"))
    parts = {part.name: part for part in step_parts(judged, both)}
    assert parts["mixture"].work.bytes == 2 * 4 * config.vocab_size * 4
    assert parts["verifier head"].work.bytes == config.vocab_size * config.hidden_size * 2


def test_only_what_the_user_gets_is_counted() -> None:
    stop = frozenset({0})
    assert answer_length([event(1, (5, 7), (6, 8))], 5, stop) == 2
    assert answer_length([event(1, (5, 7), (6, 0), (7, 9))], 5, stop) == 2  # the end token counts
    assert answer_length([event(1, (5, 7), (7, 9))], 5, stop) == 1  # a gap
    assert answer_length([event(1, (6, 7))], 5, stop) == 0
    assert answer_length([], 5, stop) == 0


@pytest.mark.parametrize("after", [0, 1, 9, 30])
def test_an_interruption_keeps_what_is_complete(cases: list[Case], after: int) -> None:
    asked = 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    turns = list(Plan(cases, 2, warmup=0, split=True, interrupted=interrupted).turns())
    assert len(turns) < 4
    assert all(len(turn.runs) == len(cases) for turn in turns)


def test_a_repeat_that_was_cut_short_does_not_count_beside_whole_ones() -> None:
    def turns(*at: tuple[int, int]) -> Sequence[Turn]:
        return [Turn(repeat, prompt, {}) for repeat, prompt in at]

    assert [len(r) for r in complete(turns((0, 0), (0, 1), (1, 0)), 2)] == [2]
    assert [len(r) for r in complete(turns((0, 0), (0, 1), (1, 0), (1, 1)), 2)] == [2, 2]
    assert [len(r) for r in complete(turns((0, 0)), 2)] == [1]
    assert complete([], 2) == []


def test_a_result_says_everything(reference: LoadedPair, cases: list[Case]) -> None:
    chosen = [contender(reference, text) for text in TEXTS]
    found = measure(reference, cases, chosen, Order(2, 1, rates=Rates(1e9, 1e9)))
    assert found is not None
    assert found["complete"] is True
    assert found["repeats"] == 2
    assert [p["tokens"] for p in found["prompts"]] == [len(r.prompt_ids) for r in cases[0].requests]
    assert found["models"]["denoiser"]["dtype"] == "float32"
    first, *others = found["settings"]
    assert first["summary"]["ratio"] == {"median": 1, "low": 1, "high": 1, "confidence": 0.5}
    for setting in (first, *others):
        runs = [turn["runs"][setting["name"]] for turn in found["runs"]]
        of = setting["summary"]
        assert of["tokens"] == sum(run["tokens"] for run in runs)
        assert of["tokens_per_step"]["median"] == pytest.approx(of["tokens"] / of["steps"])
        assert of["floor"]["ratio"] == pytest.approx(of["step_s"]["median"] / of["floor"]["step_s"])
        assert setting["memory"]["peak_bytes"] > 0


def test_engines_side_by_side(reference: LoadedPair) -> None:
    chosen = [contender(reference, f"{e}=apd:M=8,engine={e}") for e in ("eager", "fast")]
    cases = cases_of(reference, chosen, PROMPTS, raw=True)
    assert [case.requests[0].pair.engine for case in cases] == ["eager", "fast"]
    found = measure(reference, cases, chosen, Order(1, 0, rates=Rates(1e9, 1e9)))
    assert found is not None
    one, other = found["settings"]
    assert (one["engine"], other["engine"]) == ("eager", "fast")
    for key in ("tokens", "steps", "denoiser_forwards"):
        assert one["summary"][key] == other["summary"][key]


def test_a_result_that_was_cut_short_before_anything(
    reference: LoadedPair, cases: list[Case]
) -> None:
    chosen = [contender(reference, text) for text in TEXTS]
    order = Order(rates=Rates(1.0, 1.0), interrupted=lambda: True)
    assert measure(reference, cases, chosen, order) is None


def test_memory_between_two_moments() -> None:
    cpu = torch.device("cpu")
    meter = PeakMemory(cpu)
    meter.start()
    block = torch.ones(32 * 2**20 // 4)
    del block
    peak, extra = meter.read()
    assert peak > 32 * 2**20
    if meter.kind == "rss":
        assert 30 * 2**20 < extra < 200 * 2**20
        meter.start()
        assert meter.read()[1] < 16 * 2**20  # the earlier run's peak is forgotten


def test_the_machine_in_words() -> None:
    cpu = torch.device("cpu")
    found = describe(cpu)
    assert found["device"] == device_name(cpu) != ""
    assert found["threads"] == torch.get_num_threads()
    assert found["cores"] >= 1
    assert versions()["torch"] == torch.__version__
    free = free_bytes(cpu)
    assert free is None or free > 2**20


def test_a_stopwatch_adds_up() -> None:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(3):
        with watch.span("a"):
            torch.ones(10).sum()
    assert watch.seconds("a") > 0
    assert watch.seconds("b") == 0
