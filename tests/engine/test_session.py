"""The public Python API over the reference pair: prompts, stopping, results, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import apdcli
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.pair import LoadedPair
from apdcli.errors import ParameterError, PromptError, UnknownParameterError, UsageError
from tests.conftest import DATA, EOS

QUESTION = "Gia has 25 coins. Gia gives 5 coins to Jon. How many coins are left?"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """The reference pair through a profile file, with a system-less chat template."""
    folder = tmp_path_factory.mktemp("profile")
    file = folder / "reference.toml"
    file.write_text(
        "\n".join(
            f'[{role}]\nmodel = "{(DATA / "apd" / role).as_posix()}"'
            for role in ("denoiser", "verifier")
        )
        + "\n[decode]\nmax_tokens = 40\n"
    )
    torch.set_num_threads(1)
    return apdcli.load_pair(str(file))


def test_golden_cases_through_the_public_api(
    pair: LoadedPair, golden: list[dict[str, Any]]
) -> None:
    for case in golden[::16]:
        names = ("mixture_weight", "recompute_window", "max_lookahead", "max_tokens")
        done = apdcli.generate(pair, case["prompt"], **{k: case[k] for k in names})
        assert done.prompt_tokens == len(case["prompt_ids"])
        assert (done.token_ids, done.accepted) == (case["token_ids"], case["accepted"])
        assert done.text == pair.tokenizer.decode(case["token_ids"])
        assert done.finish_reason == ("stop" if done.token_ids[-1] == EOS else "length")


def test_usage_counts_generated_tokens_only(pair: LoadedPair) -> None:
    done = apdcli.generate(pair, QUESTION, mixture_weight=0.5)
    events = list(apdcli.stream(pair, QUESTION, mixture_weight=0.5))
    steps = [e for e in events if isinstance(e, StepEvent)]
    assert isinstance(events[-1], Finished)
    assert sum(done.accepted) == len(done.token_ids)
    assert done.usage.steps == len(done.accepted) == len(steps)
    assert done.usage.tokens_per_step == len(done.token_ids) / len(steps)
    assert done.usage.denoiser_forwards == len(steps)
    assert done.usage.tokens_per_second == pytest.approx(len(done.token_ids) / done.usage.seconds)
    # The first step runs the whole prompt, later ones only their window.
    forwarded = [e.tokens_forwarded for e in steps]
    assert forwarded == sorted(forwarded)
    assert forwarded[0] >= done.prompt_tokens


def test_messages_are_the_prompt_written_out(pair: LoadedPair) -> None:
    plain = apdcli.generate(pair, QUESTION)
    messages = apdcli.generate(pair, [{"role": "user", "content": QUESTION}])
    text = pair.tokenizer.chat_text([{"role": "user", "content": QUESTION}])
    raw = apdcli.generate(pair, text, raw=True)
    assert plain.token_ids == messages.token_ids == raw.token_ids
    system = apdcli.generate(pair, QUESTION, system="Be brief.")
    spelled = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    assert system.prompt_tokens == apdcli.generate(pair, spelled).prompt_tokens
    assert system.prompt_tokens > plain.prompt_tokens


@pytest.mark.parametrize("strategy", ["apd", "left_to_right", "autoregressive"])
def test_a_stop_string_ends_the_answer_before_it(pair: LoadedPair, strategy: str) -> None:
    whole = apdcli.generate(pair, QUESTION, strategy=strategy)
    stop = whole.text[9:13]
    done = apdcli.generate(pair, QUESTION, strategy=strategy, stop=["@@never@@", stop])
    assert done.finish_reason == "stop"
    assert done.text == whole.text[: whole.text.index(stop)]
    assert sum(done.accepted) == len(done.token_ids)
    assert whole.token_ids[: len(done.token_ids)] == done.token_ids
    assert stop in pair.tokenizer.decode(done.token_ids)
    assert stop not in pair.tokenizer.decode(done.token_ids[:-1])
    *steps, last = apdcli.stream(pair, QUESTION, strategy=strategy, stop=[stop])
    assert isinstance(last, Finished)
    assert last.steps == len(steps)
    assert sum(e.accepted for e in steps) == len(done.token_ids)


@pytest.mark.parametrize("strategy", ["entropy", "random"])
def test_what_stood_behind_a_stop_string_is_no_part_of_the_answer(
    pair: LoadedPair, strategy: str
) -> None:
    """In any order it may have been written first."""
    options: dict[str, Any] = {"strategy": strategy, "max_tokens": 12, "seed": 1}
    whole = apdcli.generate(pair, QUESTION, **options)
    stop = whole.text[:1]
    done = apdcli.generate(pair, QUESTION, stop=[stop], **options)
    assert (done.text, done.finish_reason) == ("", "stop")
    assert len(whole.token_ids) > 1
    assert done.token_ids == whole.token_ids[:1]
    assert sum(done.accepted) == 1


def test_a_stop_string_that_never_comes_changes_nothing(pair: LoadedPair) -> None:
    assert (
        apdcli.generate(pair, QUESTION, stop=["@@never@@"]).token_ids
        == apdcli.generate(pair, QUESTION).token_ids
    )


def test_values_come_from_call_then_profile_then_default(pair: LoadedPair) -> None:
    assert len(apdcli.generate(pair, "hi", raw=True).token_ids) <= 40  # the profile's
    assert len(apdcli.generate(pair, "hi", raw=True, max_tokens=3).token_ids) <= 3


def test_a_reader_that_stops_early_leaves_a_clean_pair(pair: LoadedPair) -> None:
    before = apdcli.generate(pair, QUESTION)
    events = apdcli.stream(pair, QUESTION)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert apdcli.generate(pair, QUESTION).token_ids == before.token_ids


def test_the_answer_never_leaves_the_context(pair: LoadedPair) -> None:
    prompt = "a" * 1000
    tokens = len(pair.prompt_ids(prompt, raw=True))
    done = apdcli.generate(pair, prompt, raw=True, max_tokens=10_000, max_lookahead="all")
    assert tokens + len(done.token_ids) <= pair.context


def test_a_prompt_without_room_names_both_numbers(pair: LoadedPair) -> None:
    prompt = "coins " * 3000
    tokens = len(pair.prompt_ids(prompt))
    with pytest.raises(PromptError) as caught:
        apdcli.generate(pair, prompt)
    assert str(tokens) in str(caught.value)
    assert str(pair.context) in str(caught.value)


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        ("", "^the prompt is empty$"),
        ("  \n", "^the prompt is empty$"),
        ([], "nothing to answer"),
        (3, "not int"),
        (None, "not NoneType"),
        (b"hi", "not bytes"),
        (["x"], r"^messages\[0\]: .*mapping, not str"),
        ([{"role": "user"}], r"^messages\[0\]: .*'content'"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], r"^messages\[1\]: .*'role'"),
        ([{"role": "user", "content": 3}], r"^messages\[0\]: .*'content'"),
        ([{"role": "assistant", "content": "a"}], "nothing to answer"),
        ([{"role": "foo", "content": "a"}], r"^messages\[0\]: no role is 'foo'; there is system, "),
        ([{"role": "user", "content": " "}], "nothing to answer"),
    ],
)
def test_what_is_no_prompt_is_refused(pair: LoadedPair, prompt: Any, why: str) -> None:
    with pytest.raises(PromptError, match=why):
        apdcli.generate(pair, prompt)


def test_unknown_and_misplaced_parameters_list_the_known_ones(pair: LoadedPair) -> None:
    with pytest.raises(UnknownParameterError, match="mixture_weight"):
        apdcli.generate(pair, QUESTION, mixing=0.5)
    with pytest.raises(UnknownParameterError, match=r"left_to_right.*knows: k"):
        apdcli.generate(pair, QUESTION, strategy="left_to_right", mixture_weight=0.5)
    with pytest.raises(UsageError, match=r"there are: apd"):
        apdcli.generate(pair, QUESTION, strategy="beam")
    with pytest.raises(ParameterError, match="W >= 1"):
        apdcli.generate(pair, QUESTION, recompute_window=0)
    with pytest.raises(TypeError):
        apdcli.generate(pair, QUESTION, mixing=0.5)  # a caller may expect Python's own class


def test_a_strategy_without_its_verifier_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "alone.toml"
    file.write_text(f'[denoiser]\nmodel = "{(DATA / "apd" / "denoiser").as_posix()}"\n')
    alone = apdcli.load_pair(str(file))
    with pytest.raises(UsageError, match=r"needs a verifier.*left_to_right"):
        apdcli.generate(alone, QUESTION, strategy="apd")
    done = apdcli.generate(alone, QUESTION, strategy="left_to_right", max_tokens=8)
    assert len(done.accepted) == len(done.token_ids)


def test_tokenizers_that_differ_are_refused_with_the_first_difference(tmp_path: Path) -> None:
    other = tmp_path / "verifier"
    other.mkdir()
    for file in (DATA / "apd" / "verifier").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = (token for token, index in vocab.items() if index in (300, 301))
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    file = tmp_path / "mixed.toml"
    file.write_text(
        f'[denoiser]\nmodel = "{(DATA / "apd" / "denoiser").as_posix()}"\n'
        f'[verifier]\nmodel = "{other.as_posix()}"\n'
    )
    with pytest.raises(apdcli.ApdError, match="token 300 is") as caught:
        apdcli.load_pair(str(file))
    assert "\n" not in str(caught.value)
