"""Batches: every row as it is alone, slots refilled at once, errors and Ctrl-C contained.

Matrix products of another height round otherwise, so a row's logits in a batch differ from those
alone in the last digits, and a choice between two that are equal but for these may fall the other
way. Events are compared exactly; where they part, the logits up to there must agree to TIE.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import apdcli
from apdcli.decode.params import STRATEGIES, make_params
from apdcli.decode.types import Finished, Pair, StepEvent
from apdcli.engine import batch, batch_models, eager, fused
from apdcli.engine.batch import RowResult, run_batch
from apdcli.engine.batch_models import BatchModel
from apdcli.engine.batch_turns import Turns
from apdcli.engine.fill import prepare_fill
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request
from apdcli.errors import DeviceError, PromptError
from apdcli.load.fill_settings import fill_settings
from tests.conftest import DATA

TIE = 1e-4
Events = Sequence[StepEvent | Finished]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    file = tmp_path_factory.mktemp("profile") / "reference.toml"
    file.write_text(
        "\n".join(
            f'[{role}]\nmodel = "{(DATA / "apd" / role).as_posix()}"\ndtype = "float32"'
            for role in ("denoiser", "verifier")
        )
    )
    torch.set_num_threads(1)
    return apdcli.load_pair(str(file), device="cpu")


@pytest.fixture(scope="module")
def demo() -> LoadedPair:
    torch.set_num_threads(1)
    return apdcli.load_pair("demo", device="cpu", dtype="float32")


def asked(pair: LoadedPair, prompt: str, strategy: str = "apd", **values: Any) -> Request:
    """A request as `prepare` makes it, every value given."""
    shared, own = make_params(
        strategy, **{"max_tokens": 24, "stop_ids": pair.stop_ids, "seed": 1, **values}
    )
    return Request(pair, pair.prompt_ids(prompt), strategy, shared, own)


def endless(pair: LoadedPair, prompt: str, strategy: str = "apd", **values: Any) -> Request:
    """As `asked`, but nothing ends it before `max_tokens`."""
    return asked(pair, prompt, strategy, stop_ids=frozenset(), **values)


def timeless(events: Events) -> list[StepEvent | Finished]:
    return [replace(event, elapsed_s=0.0) for event in events]


@dataclass(frozen=True)
class Listened(LoadedPair):
    """A pair whose models write down every answer they give."""

    answers: list[Tensor]

    def models(self, capacity: int) -> Pair:
        made = super().models(capacity)
        for model in (made.denoiser, made.verifier):
            self._listen(model)
        return made

    def _listen(self, model: Any) -> None:
        if model is not None:
            inner = model.logits

            def logits(*args: Any, **kwargs: Any) -> Tensor:
                made: Tensor = inner(*args, **kwargs)
                self.answers.append(made.clone())  # the caller may write over its own
                return made

            model.logits = logits


def answers_alone(request: Request) -> list[Tensor]:
    own = {name: getattr(request.pair, name) for name in LoadedPair.__dataclass_fields__}
    answers: list[Tensor] = []
    list(replace(request, pair=Listened(**own, answers=answers)).events())
    return answers


def answers_in_batch(requests: Sequence[Request], size: int) -> dict[int, list[Tensor]]:
    answers: dict[int, list[Tensor]] = defaultdict(list)
    inner = batch._Row.go_on

    def go_on(row: Any, answer: Tensor | None = None) -> None:
        if answer is not None:
            answers[row.index].append(answer.clone())
        inner(row, answer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch._Row, "go_on", go_on)
        list(run_batch(requests, size))
    return answers


def assert_as_alone(requests: Sequence[Request], size: int) -> int:
    """Every row's events are those of the row alone, or part at a tie; returns how many part."""
    results = list(run_batch(requests, size))
    assert [result.index for result in results] == list(range(len(requests)))
    parted = 0
    for request, result in zip(requests, results, strict=True):
        alone = list(request.events())
        if timeless(result.events) == timeless(alone):
            want = request.result(alone)
            assert result.generation is not None
            assert (result.generation.text, result.generation.token_ids) == (
                want.text,
                want.token_ids,
            )
            continue
        parted += 1
        pairs = enumerate(zip(timeless(alone), timeless(result.events), strict=False))
        step = next((alone[k] for k, (one, other) in pairs if one != other), alone[-1])
        forwards = step.denoiser_forwards + step.verifier_forwards
        theirs = answers_in_batch(requests, size)[result.index]
        for a, b in zip(answers_alone(request)[:forwards], theirs[:forwards], strict=True):
            torch.testing.assert_close(a, b, atol=TIE, rtol=0)
    return parted


PROMPTS = [
    f"{name} has {9 * n + 16} coins. {name} gives {2 * n + 1} coins to Jon. How many are left?"
    for n, name in enumerate(["Ada", "Ben", "Gia", "Ivo", "Mia", "Tom", "Zoe"])
]
WORDS = [
    "Gia has 25 coins.",
    "Gia gives 5 coins to Jon.",
    "How many",
    "7 + 8 =",
    "\n",
    "a b c",
    "?",
]
SMALL: dict[str, dict[str, Any]] = {
    "confidence": {"k": 3},
    "random": {"steps": 9},
    "margin": {"steps": 9},
    "entropy": {"steps": 9},
}


def any_values(draw: Callable[[st.SearchStrategy[Any]], Any], strategy: str) -> dict[str, Any]:
    """Settings of the kinds that shape a row's windows, drawn anew for every row."""
    values: dict[str, Any] = {"max_tokens": draw(st.sampled_from([1, 2, 8, 24]))}
    values["temperature"] = draw(st.sampled_from([0.0, 0.0, 0.7]))
    values["seed"] = draw(st.integers(0, 9))
    own = STRATEGIES[strategy].own_fields
    window = st.sampled_from([1, 3, 16, "all"])
    for name in ("recompute_window", "max_lookahead"):
        if name in own:
            values[name] = draw(window)
    if "mixture_weight" in own:
        values["mixture_weight"] = draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    if "cache" in own:
        values["cache"] = draw(st.sampled_from(["none", "prefix", "dual"]))
        values["block_length"] = draw(st.sampled_from([values["max_tokens"], "all"]))
    return values


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_of_any_settings_are_as_alone(pair: LoadedPair, data: st.DataObject) -> None:
    """Prompts, lengths, settings, seeds and strategies may all differ within one batch."""
    requests = []
    for _ in range(data.draw(st.integers(1, 6), label="rows")):
        strategy = data.draw(st.sampled_from(sorted(STRATEGIES)), label="strategy")
        words = data.draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12), label="prompt")
        values = {**SMALL.get(strategy, {}), **any_values(data.draw, strategy)}
        requests.append(asked(pair, " ".join(["So:", *words]), strategy, **values))
    assert_as_alone(requests, data.draw(st.integers(1, 7), label="batch size"))


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("size", [2, 5])
def test_no_row_parts_on_the_embedded_pair(demo: LoadedPair, strategy: str, size: int) -> None:
    prompts = [*PROMPTS[:3], "Sort these numbers: 9 4 7 1 3", "Tell me a short story.", "Hello!"]
    values = {"max_tokens": 16, **SMALL.get(strategy, {})}
    assert assert_as_alone([asked(demo, p, strategy, **values) for p in prompts], size) == 0


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As with a GPU's kernels: no draft by parts, rows of the verifier judge them.

    Returns:
        The length of every draft judged so.
    """
    seen: list[int] = []
    inner = batch_models.Draft.judged

    def judged(draft: batch_models.Draft, raw: Tensor, check: bool) -> Tensor:
        made = inner(draft, raw, check)
        assert (len(raw), len(made)) == (len(draft.ids) - 1, len(draft.ids) + 1)
        seen.append(len(draft.ids))
        return made

    monkeypatch.setattr(batch_models.Draft, "judged", judged)
    monkeypatch.setattr(batch_models, "judges", lambda net: True)
    for module in (batch_models, eager):
        monkeypatch.setattr(module, "verifies_less", lambda net: False)
    return seen


def test_rows_that_judge_drafts_accept_what_they_accept_alone(
    demo: LoadedPair, judged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, copy = [], Tensor.cpu

    def to_host(tensor: Tensor) -> Tensor:
        copies.append(len(tensor))
        return copy(tensor)

    monkeypatch.setattr(Tensor, "cpu", to_host)
    weights = (0.0, 0.5, 0.9, 1.0)
    greedy = [
        asked(demo, PROMPTS[n], mixture_weight=weight, max_lookahead=5 + 3 * n)
        for n, weight in enumerate(weights)
    ]
    assert assert_as_alone(greedy, 4) == 0
    # The first drafts; with R = 1 nobody is asked.
    assert {5, 8, 11} <= set(judged)
    # One copy to the host for all rows of a forward: each draft and its count.
    assert sum(copies) == sum(judged) + len(judged)
    assert max(copies) > max(judged) + 1


def test_some_rows_judge_drafts_where_others_want_logits(
    demo: LoadedPair, judged: list[int]
) -> None:
    others = [("apd", 0.8), ("autoregressive", 0.0), ("dico", 0.0), ("apd", 0.0)]
    mixed = [
        asked(demo, text, name, temperature=temperature)
        for text, (name, temperature) in zip(PROMPTS, others, strict=False)
    ]
    assert assert_as_alone(mixed, 4) == 0
    assert judged


@pytest.mark.parametrize("shaping", [{}, {"top_k": 20, "top_p": 0.9}])
def test_rows_that_sample_judge_drafts_too(
    demo: LoadedPair, judged: list[int], shaping: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their noise is a function of their own seeds and steps: no row's draws move another's."""
    monkeypatch.setattr(fused, "has_kernels", lambda device: True)
    sampled = [
        asked(demo, text, temperature=0.3 * n, seed=n, max_lookahead=6 + 3 * n, **shaping)
        for n, text in enumerate(PROMPTS[:3])
    ]
    assert assert_as_alone(sampled, 3) == 0
    assert {6, 9, 12} <= set(judged)


def test_a_kernel_that_lies_is_replaced_with_one_warning(
    demo: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of = []

    def lying(d: Tensor, a: Tensor, draft: Tensor, count: Tensor, *rest: Any) -> Tensor:
        asked_of.append(count)
        return fused.plain(d, a, draft, count, *rest) - 1

    for name, value in (("_failed", False), ("_installed", lambda: True)):
        monkeypatch.setattr(fused, name, value)
    monkeypatch.setattr(fused, "_interpreted", lambda: True)
    monkeypatch.setattr(fused, "by_triton", lying)
    for module in (batch_models, eager):
        monkeypatch.setattr(module, "verifies_less", lambda net: False)
    requests = [asked(demo, text) for text in PROMPTS[:3]]
    with pytest.warns(RuntimeWarning, match="its first count is not torch's") as told:
        results = list(run_batch(requests, 3))
    assert (len(told), len(asked_of)) == (1, 1)
    for request, result in zip(requests, results, strict=True):
        assert timeless(result.events) == timeless(list(request.events()))


def test_only_kernels_judge(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pair.verifier is not None
    monkeypatch.setattr(fused, "usable", lambda device: True)
    assert not batch_models.judges(pair.verifier)  # on a CPU drafts are verified by parts
    monkeypatch.setattr(batch_models, "verifies_less", lambda net: False)
    assert batch_models.judges(pair.verifier)
    monkeypatch.setattr(fused, "usable", lambda device: False)
    assert not batch_models.judges(pair.verifier)


def test_logits_are_those_of_the_row_alone(pair: LoadedPair) -> None:
    """To far less than TIE; and what assert_as_alone looks at where rows part is all there."""
    names = ["apd", "autoregressive", "dico"]
    requests = [asked(pair, p, name) for p, name in zip(PROMPTS[:3], names, strict=True)]
    for index, in_batch in answers_in_batch(requests, 3).items():
        finished = list(requests[index].events())[-1]
        assert len(in_batch) == finished.denoiser_forwards + finished.verifier_forwards > 0
        for a, b in zip(answers_alone(requests[index]), in_batch, strict=True):
            torch.testing.assert_close(a, b, atol=TIE / 4, rtol=0)


def test_models_without_a_shift_and_without_a_verifier(tmp_path: Any) -> None:
    file = tmp_path / "llada.toml"
    file.write_text(f'[denoiser]\nmodel = "{(DATA / "hub_llada").as_posix()}"\n')
    llada = apdcli.load_pair(file, device="cpu", dtype="float32")
    requests = [
        asked(llada, text, strategy, max_tokens=12)
        for strategy in ("threshold", "left_to_right", "dico")
        for text in ("Ada has 12 apples.", "hi")
    ]
    assert_as_alone(requests, 4)


@pytest.mark.parametrize("first", ["", "Gia "])
def test_texts_with_gaps_are_filled_in_a_batch_too(pair: LoadedPair, first: str) -> None:
    requests = [
        prepare_fill(
            pair,
            f"{first}___{rest}",
            fill_settings(pair.profile, {"gap": gap, "strategy": name}, {}),
        )
        for name in ("dico", "threshold")
        for gap, rest in ((1, ""), (3, " coins, then ___ more"), (6, "?"))
    ]
    assert_as_alone(requests, 4)


def test_stop_strings_end_only_their_row(pair: LoadedPair) -> None:
    whole = [asked(pair, text) for text in PROMPTS[:4]]
    texts = [request.result(list(request.events())).text for request in whole]
    assert all(len(text) > 9 for text in texts)
    requests = [replace(r, stop=(t[5:8],)) for r, t in zip(whole, texts, strict=True)]
    assert_as_alone([*requests, *whole], 3)


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(model, rows) of every forward from here on."""
    seen: list[tuple[str, int]] = []
    inner = BatchModel.forward

    def forward(model: BatchModel, asks: Any) -> list[Tensor]:
        seen.append((model.net.config.family, len(asks)))
        return inner(model, asks)

    monkeypatch.setattr(BatchModel, "forward", forward)
    return seen


def test_a_row_that_ends_makes_room_at_once(
    pair: LoadedPair, forwards: list[tuple[str, int]]
) -> None:
    """One token a step and no early end: how many forwards each row takes is known."""
    lengths = [3, 17, 5, 4, 1, 9]
    requests = [endless(pair, "Hi", "left_to_right", max_tokens=n) for n in lengths]
    results = list(run_batch(requests, 2))
    assert [len(r.generation.token_ids) for r in results if r.generation] == lengths
    # Slots are given in order: 17 in one, 3 + 5 + 4 + 1 + 9 in the other.
    assert [rows for _, rows in forwards] == [2] * 17 + [1] * (sum(lengths) - 2 * 17)


def test_the_denoiser_serves_all_rows_at_once(
    pair: LoadedPair, forwards: list[tuple[str, int]]
) -> None:
    requests = [endless(pair, text, max_lookahead=8) for text in PROMPTS]
    results = list(run_batch(requests, len(requests)))
    steps = [r.generation.usage.denoiser_forwards for r in results if r.generation]
    denoised = [rows for family, rows in forwards if family == "Dream"]
    assert denoised == [sum(n > k for n in steps) for k in range(max(steps))]


@pytest.mark.parametrize("size", [1, 2, 6])
def test_an_error_in_one_row_stops_nobody(pair: LoadedPair, size: int) -> None:
    class Failing(Request):
        def events(
            self, interrupted: Callable[[], bool] = lambda: False
        ) -> Iterator[StepEvent | Finished]:
            for step, event in enumerate(super().events(interrupted)):
                if step == 1:
                    raise PromptError("no more")
                yield event

    good = [asked(pair, text) for text in PROMPTS[:3]]
    bad = Failing(**{name: getattr(good[0], name) for name in Request.__dataclass_fields__})
    too_long = PromptError("too long")
    results = list(run_batch([too_long, good[0], bad, good[1], too_long, good[2]], size))
    assert [r.index for r in results] == list(range(6))
    assert [r.error for r in results if r.index in (0, 4)] == [too_long, too_long]
    assert str(results[2].error) == "no more"
    assert len(results[2].events) == 1
    assert all(results[i].generation is None for i in (0, 2, 4))
    for request, result in zip(good, (results[i] for i in (1, 3, 5)), strict=True):
        assert timeless(result.events) == timeless(list(request.events()))


def test_only_errors_and_nothing_at_all(pair: LoadedPair) -> None:
    assert list(run_batch([])) == []
    errors = [PromptError("a"), PromptError("b")]
    assert [r.error for r in run_batch(errors, 3)] == errors


def threads() -> int:
    return sum(thread.is_alive() for thread in threading.enumerate())


def test_what_is_no_users_error_ends_the_batch_and_its_threads(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def broken(self: BatchModel, asks: Any) -> list[Tensor]:
        calls.append(len(asks))
        raise RuntimeError("a bug")

    before = threads()
    monkeypatch.setattr(BatchModel, "forward", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        list(run_batch([asked(pair, text) for text in PROMPTS], 3))
    assert calls == [3]
    assert threads() == before


def test_a_forward_without_memory_is_one_line(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: BatchModel, asks: Any) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.50 GiB. GPU 0")

    monkeypatch.setattr(BatchModel, "forward", full)
    with pytest.raises(DeviceError) as caught:
        list(run_batch([asked(pair, text) for text in PROMPTS], 2))
    assert str(caught.value) == (
        "cpu has no room for a forward of 2 rows at once (needed 2.50 GiB more); lower "
        "--batch-size, --max-tokens or -M, or shorten the prompts; or use --quantize int8 "
        "or --dtype bfloat16"
    )


def test_ctrl_c_keeps_what_is_finished_and_begins_no_more(
    pair: LoadedPair, forwards: list[tuple[str, int]]
) -> None:
    lengths = [20, 2, 24, 3, 24, 24]
    requests = [endless(pair, "Hi", "left_to_right", max_tokens=n) for n in lengths]
    results = list(run_batch(requests, 3, lambda: len(forwards) >= 6))
    got = [r.generation for r in results]
    assert len(results) == 5  # three slots; two of them were given on
    # The first and the third go on: the fourth, which has finished, stands behind them.
    reasons = [g.finish_reason for g in got if g]
    assert reasons == ["length"] * 4 + ["interrupted"]
    assert [len(g.token_ids) for g in got if g] == [20, 2, 24, 3, 1]
    for request, generation in zip(requests, got, strict=False):
        alone = request.result(list(request.events()))
        assert generation
        assert generation.token_ids == alone.token_ids[: len(generation.token_ids)]


def _after(count: int, questions: Iterator[int]) -> bool:
    return next(questions) >= count


def test_without_a_finished_row_behind_it_every_row_ends_at_once(
    pair: LoadedPair, forwards: list[tuple[str, int]]
) -> None:
    requests = [endless(pair, "Hi", "left_to_right", max_tokens=24) for _ in range(4)]
    for size in (2, 1):
        questions = iter(range(99))
        results = run_batch(requests, size, partial(_after, 12, questions))
        reasons = [r.generation.finish_reason for r in results if r.generation]
        assert reasons == ["interrupted"] * size


def test_interrupted_before_it_began_nothing_is_decoded(
    pair: LoadedPair, forwards: list[tuple[str, int]]
) -> None:
    for size in (1, 2):
        assert list(run_batch([asked(pair, "a b")] * 2, size, lambda: True)) == []
    assert forwards == []


def test_a_reader_that_stops_early_leaves_nothing_running(pair: LoadedPair) -> None:
    before = threads()
    requests = [endless(pair, text, "dico", max_tokens=4 + 9 * n) for n, text in enumerate(PROMPTS)]
    results = run_batch(requests, 3)
    next(results)
    assert threads() > before
    results.close()  # type: ignore[attr-defined]
    assert threads() == before
    assert_as_alone(requests[:2], 2)


def test_the_same_batch_twice_gives_the_same_events(pair: LoadedPair) -> None:
    requests = [
        asked(pair, text, name, temperature=1.0, seed=seed)
        for seed, text in enumerate(PROMPTS[:3])
        for name in ("apd", "klass")
    ]

    def all_events() -> list[Any]:
        return [timeless(result.events) for result in run_batch(requests, 4)]

    assert all_events() == all_events()


def test_the_callers_autocast_changes_nothing(pair: LoadedPair) -> None:
    requests = [asked(pair, text) for text in PROMPTS[:3]]
    expected = [timeless(result.events) for result in run_batch(requests, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = [timeless(result.events) for result in run_batch(requests, 3)]
    assert within == expected


def test_results_are_frozen_and_counted(pair: LoadedPair) -> None:
    result, _ = run_batch([asked(pair, PROMPTS[0], max_tokens=12)] * 2, 2)
    assert isinstance(result, RowResult)
    assert result.generation is not None
    usage = result.generation.usage
    assert sum(result.generation.accepted) == len(result.generation.token_ids)
    assert usage.steps == len(result.events) - 1
    assert usage.seconds > 0


def test_turns_pause_in_the_middle_of_a_call_and_unwind() -> None:
    log: list[object] = []

    def body(ask: Callable[[int], str]) -> None:
        def deep(n: int) -> str:
            return ask(n)

        try:
            log.append([deep(n) for n in range(3)])
        finally:
            log.append("unwound")

    turns: Turns[int, str] = Turns(body)
    assert [turns.resume(answer) for answer in (None, "a", "b", "c")] == [0, 1, 2, None]
    assert log == [["a", "b", "c"], "unwound"]
    turns.close()

    turns = Turns(body)
    turns.resume()
    turns.resume("a")
    turns.close()
    assert log[2:] == ["unwound"]
    Turns(body).close()  # never begun
    assert len(log) == 3


def test_what_a_body_raises_comes_to_the_caller() -> None:
    def body(ask: Callable[[int], str]) -> None:
        ask(1)
        raise KeyError("inside")

    turns: Turns[int, str] = Turns(body)
    assert turns.resume() == 1
    with pytest.raises(KeyError, match="inside"):
        turns.resume("go on")
    turns.close()
