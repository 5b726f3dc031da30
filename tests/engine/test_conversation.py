"""Turns that keep the caches: what they cost, and that they say what a fresh run says."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

import apdcli
from apdcli.decode.types import Finished, Pair, StepEvent
from apdcli.engine import conversation
from apdcli.engine.conversation import Caches, Conversation, Exchange
from apdcli.engine.fast import FastDenoiser
from apdcli.engine.pair import LoadedPair
from apdcli.errors import DeviceError, ParameterError, PromptError
from apdcli.load.settings import resolve_settings
from tests.conftest import DATA

TALK = (
    "My name is Mia.",
    "I have 25 coins.",
    "I give 5 coins to Jon. How many coins are left?",
    "What is my name?",
)
W, M = 4, 16


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """The reference pair, which never changes, through a profile."""
    torch.set_num_threads(1)
    file = tmp_path_factory.mktemp("profile") / "reference.toml"
    file.write_text(
        "".join(
            f'[{role}]\nmodel = "{(DATA / "apd" / role).as_posix()}"\n'
            for role in ("denoiser", "verifier")
        )
        + "[decode]\nmax_tokens = 24\nmixture_weight = 0.5\n"
    )
    return apdcli.load_pair(str(file), device="cpu", dtype="float32")


def messages_of(exchanges: list[Exchange], last: str) -> list[dict[str, str]]:
    roles = itertools.cycle(("user", "assistant"))
    texts = [text for e in exchanges for text in (e.message, e.answer)]
    return [{"role": next(roles), "content": text} for text in (*texts, last)]


def turn(talk: Conversation, message: str, **values: Any) -> tuple[list[StepEvent], Finished, int]:
    """One turn's steps, its end, and the length of its prompt."""
    request = talk.prepare(message, resolve_settings(talk.pair.profile, values, {}))
    *steps, last = request.events()
    assert isinstance(last, Finished)
    talk.add(request, request.summarize([s for s in steps if isinstance(s, StepEvent)], last).text)
    return [s for s in steps if isinstance(s, StepEvent)], last, len(request.prompt_ids)


EXACT = [
    {"recompute_window": "all"},
    {"recompute_window": 10_000},
    {"recompute_window": "all", "mixture_weight": 0.0},
    {"recompute_window": "all", "mixture_weight": 1.0},
    {"recompute_window": "all", "max_lookahead": 5},
    {"recompute_window": "all", "max_lookahead": "all", "mixture_weight": 0.2},
    {"recompute_window": "all", "max_lookahead": "auto"},
    {"recompute_window": "all", "stop": ["is", "a "]},
    {"strategy": "left_to_right", "k": 3, "recompute_window": "all"},
    {"strategy": "autoregressive"},
    {"strategy": "dico"},
    {"strategy": "threshold", "block_length": 8, "cache": "dual"},
]


@pytest.mark.parametrize("values", EXACT, ids=str)
def test_greedy_answers_are_those_of_a_fresh_run(pair: LoadedPair, values: dict[str, Any]) -> None:
    talk = Conversation(pair)
    for message in TALK:
        fresh = apdcli.generate(pair, messages_of(talk.exchanges, message), **values)
        done = talk.ask(message, **values)
        assert (done.token_ids, done.accepted) == (fresh.token_ids, fresh.accepted)
        assert (done.text, done.finish_reason) == (fresh.text, fresh.finish_reason)


def test_the_shipped_pair_says_the_same_too() -> None:
    torch.set_num_threads(1)
    shipped = apdcli.load_pair("demo", device="cpu", dtype="float32")
    talk = Conversation(shipped)
    for message in TALK:
        other = messages_of(talk.exchanges, message)
        fresh = apdcli.generate(shipped, other, recompute_window="all")
        assert talk.ask(message, recompute_window="all").token_ids == fresh.token_ids


@pytest.mark.parametrize("strategy", ["apd", "left_to_right"])
def test_a_turn_costs_its_own_tokens_and_not_the_history(pair: LoadedPair, strategy: str) -> None:
    talk = Conversation(pair)
    firsts, totals, before = [], [], 0
    for _ in range(24):
        steps, last, prompt = turn(
            talk, TALK[0], strategy=strategy, recompute_window=W, max_lookahead=M, max_tokens=16
        )
        new = prompt - before  # the last answer, the template's words and the message
        models = 2 if strategy == "apd" else 1
        assert steps[0].tokens_forwarded <= models * (new + M) + W
        firsts.append(steps[0].tokens_forwarded)
        totals.append(last.tokens_forwarded)
        before = prompt
    assert before > 4 * max(firsts[1:]), "the history never grew long enough to tell"
    # same message, answers of at most 16 tokens: no turn may cost more for coming later
    worst = models * (new + M) + W + 16 * models * (M + W + 16)
    assert max(totals) <= worst
    assert max(firsts[6:]) <= max(firsts[1:6]) + models * 16


def test_without_the_caches_it_would_grow(pair: LoadedPair) -> None:
    talk = Conversation(pair)
    costs = [turn(talk, TALK[0], recompute_window="all")[0][0].tokens_forwarded for _ in range(12)]
    assert costs[-1] > 3 * costs[0]


def test_two_values_of_which_one_could_hold_are_refused(pair: LoadedPair) -> None:
    talk = Conversation(pair)
    with pytest.raises(ParameterError, match="max_lookahead"):
        talk.ask(TALK[0], strategy="left_to_right", k=4, max_lookahead=2)
    assert talk.exchanges == []


def test_whatever_is_changed_the_next_answer_is_right(pair: LoadedPair) -> None:
    """Undo, edits, another system message, other strategies between: exact with W = all."""
    talk = Conversation(pair)
    talk.ask(TALK[0], recompute_window=W)
    talk.ask(TALK[1], strategy="dico")
    talk.ask(TALK[2], strategy="autoregressive")
    talk.undo()
    talk.ask(TALK[2], recompute_window=W, stop=["e"])
    talk.exchanges[0] = Exchange("My name is Ben.", "Hello Ben!")
    talk.ask(TALK[3], mixture_weight=1.0, system="Be brief.")
    talk.undo()
    exact = {"recompute_window": "all", "system": "You are a helpful assistant."}
    fresh = apdcli.generate(pair, messages_of(talk.exchanges, TALK[3]), **exact)
    assert talk.ask(TALK[3], **exact).token_ids == fresh.token_ids


def test_the_verifier_alone_is_exact_after_any_turn(pair: LoadedPair) -> None:
    talk = Conversation(pair)
    for values in ({"recompute_window": 1}, {"max_lookahead": 3}, {"strategy": "entropy"}):
        talk.ask(TALK[0], **values)
    fresh = apdcli.generate(pair, messages_of(talk.exchanges, TALK[1]), strategy="autoregressive")
    assert talk.ask(TALK[1], strategy="autoregressive").token_ids == fresh.token_ids


@pytest.mark.parametrize("leave_after", [1, 2])
def test_a_turn_left_in_the_middle_leaves_clean_caches(pair: LoadedPair, leave_after: int) -> None:
    talk = Conversation(pair)
    talk.ask(TALK[0], recompute_window=W)
    settings = resolve_settings(pair.profile, {"max_lookahead": 2}, {})
    events = talk.prepare(TALK[1], settings).events()
    for _ in range(leave_after):
        next(events)
    events.close()  # type: ignore[attr-defined]
    exact = {"recompute_window": "all"}
    fresh = apdcli.generate(pair, messages_of(talk.exchanges, TALK[2]), **exact)
    assert talk.ask(TALK[2], **exact).token_ids == fresh.token_ids


@pytest.mark.parametrize("model", ["denoiser", "verifier"])
def test_a_step_that_fails_leaves_clean_caches(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    """As a second Ctrl-C does it: after a forward has filled a cache with what is not kept."""
    talk = Conversation(pair)
    settings = resolve_settings(pair.profile, {"max_lookahead": 2}, {})
    events = talk.prepare(TALK[0], settings).events()
    next(events)
    failing = getattr(talk._caches._models, model)
    forward = failing.logits

    def fail(*args: Any, **more: Any) -> None:
        forward(*args, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(failing, "logits", fail)
        with pytest.raises(KeyboardInterrupt):
            list(events)
    for values in ({"strategy": "autoregressive"}, {"recompute_window": "all"}):
        fresh = apdcli.generate(pair, messages_of(talk.exchanges, TALK[2]), **values)
        assert talk.ask(TALK[2], **values).token_ids == fresh.token_ids
        talk.undo()


def test_the_same_prompt_again_runs_little(pair: LoadedPair) -> None:
    """A retry forwards the window, not the prompt."""
    talk = Conversation(pair)
    for message in TALK:
        turn(talk, message, recompute_window=W, max_lookahead=M)
    talk.undo()
    steps, _, prompt = turn(talk, TALK[-1], recompute_window=W, max_lookahead=M)
    assert steps[0].tokens_forwarded <= 2 * M + W + 1 < prompt


def test_the_oldest_exchanges_make_room_and_the_system_message_stays(pair: LoadedPair) -> None:
    talk = Conversation(pair)
    message = "I like the colour blue and the number 7. " * 4
    system = "Be brief."
    settings = resolve_settings(pair.profile, {"system": system}, {})
    changes = []
    for _ in range(40):
        request = talk.prepare(message, settings)
        assert len(request.prompt_ids) + 24 <= pair.context
        if request.left_out != talk.left_out:
            changes.append((talk.left_out, request.left_out))
            assert len(request.prompt_ids) <= pair.context // 2
        text = pair.tokenizer.decode(request.prompt_ids, skip_special=False)
        assert system in text
        assert text.count(message) == len(talk.exchanges) - request.left_out + 1
        talk.add(request, "Good to know.")
    assert len(changes) >= 2, "the context never filled"
    assert all(after > before for before, after in changes)
    assert len(changes) < 40 / 3, "room is made for many turns at once"
    assert len(talk.exchanges) == 40


def test_undo_brings_back_what_was_left_out(pair: LoadedPair) -> None:
    talk = Conversation(pair, [Exchange("hi", "hello"), Exchange("a" * 9, "b")], left_out=2)
    assert talk.undo() == Exchange("a" * 9, "b")
    assert talk.left_out == 0
    with pytest.raises(IndexError):
        Conversation(pair).undo()


@pytest.mark.parametrize(("message", "why"), [("", "empty"), (" \n", "empty"), ("w " * 3000, "2")])
def test_a_message_that_cannot_be_answered(pair: LoadedPair, message: str, why: str) -> None:
    talk = Conversation(pair, [Exchange("hi", "hello")])
    with pytest.raises(PromptError, match=why):
        talk.ask(message)
    assert len(talk.exchanges) == 1


def test_caches_grow_with_the_text(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    from apdcli.engine import conversation

    monkeypatch.setattr(conversation, "_FIRST_ROOM", 64)
    talk = Conversation(pair)
    for _ in range(6):
        fresh = apdcli.generate(pair, messages_of(talk.exchanges, TALK[0]), recompute_window="all")
        assert talk.ask(TALK[0], recompute_window="all").token_ids == fresh.token_ids


def test_caches_that_found_no_memory_are_not_asked_for_again(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    before: list[weakref.ref[Any]] = []
    plain = LoadedPair.models

    def models(self: LoadedPair, capacity: int) -> Pair:
        assert all(model() is None for model in before)  # the old ones made room
        asked.append(capacity)
        if capacity > 200:
            raise DeviceError("full")
        made = plain(self, capacity)
        before.append(weakref.ref(made.denoiser))
        return made

    monkeypatch.setattr(LoadedPair, "models", models)
    monkeypatch.setattr(conversation, "_FIRST_ROOM", 64)
    caches, ids = Caches(pair), list(range(5, 15))
    for length in (50, 60, 90):
        caches.open(ids, length)
    assert asked == [64, 128]
    with pytest.raises(DeviceError):
        caches.open(ids, 150)
    _, new = caches.open(ids, 150)
    assert new == len(ids)
    assert asked == [64, 128, 256, 150]


def test_a_turn_that_never_ran_leaves_no_hole(pair: LoadedPair) -> None:
    talk = Conversation(pair)
    turn(talk, TALK[0])
    request = talk.prepare(TALK[1], resolve_settings(pair.profile, {}, {}))
    for ids in ((5, 6, 7), request.prompt_ids):  # the first shares nothing with what was said
        models, new = request.caches.open(ids, 100)
        assert models.denoiser.length == len(ids) - new
        assert models.verifier is not None
        assert models.verifier.length < len(ids)


def test_an_answer_cut_by_a_stop_string_leaves_the_caches_of_its_last_step(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the engine could have run ahead of it or not."""
    values = {"strategy": "left_to_right", "recompute_window": W, "k": 2, "stop": ["e"]}
    said = []
    for asynchronous in (False, True):
        monkeypatch.setattr(FastDenoiser, "asynchronous", asynchronous, raising=False)
        talk = Conversation(pair)
        caches: list[Tensor] = []
        taken = []
        for message in TALK:
            steps, last, _ = turn(talk, message, max_lookahead=6, **values)
            taken.append((len(steps), last.reason))
            models = talk._caches._models
            assert models is not None
            model: Any = models.denoiser
            caches.append(model.cache.both[:, :, :, : model.length].clone())
        said.append(([e.answer for e in talk.exchanges], caches))
    (answers, caches), (others, ahead) = said
    assert any(steps > 2 and reason == "stop" for steps, reason in taken)
    assert answers == others
    assert all(torch.equal(a, b) for a, b in zip(caches, ahead, strict=True))
