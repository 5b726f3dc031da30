"""What the public Python API says to wrong values, and which values of other libraries it takes."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import apdcli
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.conversation import Conversation
from tests.conftest import DATA

DENOISER = DATA / "apd" / "denoiser"
CALLS: tuple[Callable[..., Any], ...] = (apdcli.generate, apdcli.stream, apdcli.stream_text)


class Named(os.PathLike[str]):
    """A path of somebody's own class."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "reference.toml"
    models = {role: (DATA / "apd" / role).as_posix() for role in ("denoiser", "verifier")}
    path.write_text("".join(f'[{role}]\nmodel = "{model}"\n' for role, model in models.items()))
    return path


@pytest.fixture(scope="module")
def pair(file: Path) -> apdcli.LoadedPair:
    torch.set_num_threads(1)
    return apdcli.load_pair(file)


@pytest.fixture(scope="module")
def denoiser() -> apdcli.LoadedDenoiser:
    return apdcli.load_denoiser(DENOISER, device="cpu", dtype="float32")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["device", "dtype", "quantize", "profile", "engine"])
def test_what_belongs_to_loading_is_refused(
    pair: apdcli.LoadedPair, call: Callable[..., Any], name: str
) -> None:
    given = {"device": "cuda", "engine": "fast"}.get(name, "auto")
    with pytest.raises(apdcli.UnknownParameterError, match="load_pair") as caught:
        call(pair, "x", strategy="left_to_right", **{name: given})
    assert caught.value.field == name
    assert {"k", "max_tokens", "seed", "stop", "system"} <= set(caught.value.known)
    assert not {"mixture_weight", "device", "profile"} & set(caught.value.known)
    call(pair, "x", max_tokens=2, **{name: None})  # not given


def test_filling_refuses_them_too(pair: apdcli.LoadedPair) -> None:
    with pytest.raises(apdcli.UnknownParameterError, match="load_pair"):
        apdcli.fill(pair, "a [...] b", device="cpu")
    with pytest.raises(apdcli.ParameterError, match="load_pair"):
        apdcli.fill("demo", "a [...] b")  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [b"a ___ b", 3, None, ["a ___ b"], Path("a ___ b")])
def test_only_a_text_is_filled(pair: apdcli.LoadedPair, text: Any) -> None:
    with pytest.raises(apdcli.PromptError, match=r"^text = .*: it must be a str$"):
        apdcli.fill(pair, text)


def asked(pair: apdcli.LoadedPair, **settings: Any) -> list[str]:
    """What each call of the API says with some settings."""
    settings = {"max_tokens": 16, "strategy": "left_to_right", **settings}
    talk = Conversation(pair).ask("Who are you?", **settings).text
    once = apdcli.generate(pair, "Who are you?", **settings).text
    pieces = "".join(apdcli.stream_text(pair, "Who are you?", **settings))
    steps = (e for e in apdcli.stream(pair, "Who are you?", **settings))
    events = [step.committed for step in steps if isinstance(step, StepEvent)]
    settings = {**settings, "strategy": "confidence", "gap": 12}
    del settings["max_tokens"]
    return [talk, once, pieces, str(events), apdcli.fill(pair, "a ___ b", **settings).text]


def test_no_seed_is_seed_0_and_none_is_a_new_one(pair: apdcli.LoadedPair) -> None:
    first = asked(pair, temperature=100.0)
    assert asked(pair, temperature=100.0) == first
    assert asked(pair, temperature=100.0, seed=0) == first
    torch.manual_seed(1)
    state = torch.get_rng_state()
    new = asked(pair, temperature=100.0, seed=None)
    assert all(one != other for one, other in zip(first, new, strict=True))
    again = asked(pair, temperature=100.0, seed=None)
    assert all(one != other for one, other in zip(again, new, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("settings", [{"temperature": 1.5}, {"strategy": "apd"}])
def test_the_callers_autocast_changes_nothing(
    pair: apdcli.LoadedPair, denoiser: apdcli.LoadedDenoiser, settings: dict[str, Any]
) -> None:
    expected, logits = asked(pair, **settings), denoiser.logits([5, 6, 7])
    with torch.autocast("cpu"):
        assert asked(pair, **settings) == expected
        assert torch.equal(denoiser.logits([5, 6, 7]), logits)


def test_autocast_stays_as_the_reader_of_a_stream_has_it(pair: apdcli.LoadedPair) -> None:
    expected = list(apdcli.stream_text(pair, "Who are you?", max_tokens=8))
    pieces = apdcli.stream_text(pair, "Who are you?", max_tokens=8)
    with torch.autocast("cpu"):
        got = []
        for piece in pieces:
            assert torch.is_autocast_enabled("cpu")
            got.append(piece)
    assert got == expected
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("again", [pickle.dumps, copy.copy, copy.deepcopy])
def test_what_is_loaded_is_not_copied(
    pair: apdcli.LoadedPair, denoiser: apdcli.LoadedDenoiser, again: Callable[[Any], Any]
) -> None:
    with pytest.raises(TypeError, match=r"load it in each process with apdcli\.load_pair\("):
        again(pair)
    with pytest.raises(TypeError, match=r"load it in each process with apdcli\.load_denoiser\("):
        again(denoiser)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("given", ["demo", None, 3])
def test_what_is_no_pair(call: Callable[..., Any], given: Any) -> None:
    with pytest.raises(apdcli.ParameterError, match=r"^pair = .*apdcli\.load_pair\(") as caught:
        call(given, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["no", 1, None])
@pytest.mark.parametrize("call", CALLS)
def test_raw_is_true_or_false(
    pair: apdcli.LoadedPair, call: Callable[..., Any], given: Any
) -> None:
    with pytest.raises(apdcli.ParameterError, match=r"^raw = .*True or False"):
        call(pair, "x", raw=given)


@pytest.mark.parametrize("given", [None, b"demo", "", " ", 7])
def test_what_names_nothing_to_load(given: Any) -> None:
    with pytest.raises(apdcli.ParameterError, match=r"^profile = .*name or the path of a \.toml"):
        apdcli.load_pair(given)
    for load in (apdcli.load_denoiser, apdcli.load_tokenizer):
        with pytest.raises(apdcli.ParameterError, match=r"^model = .*folder or an id of the hub"):
            load(given)


def test_any_class_of_path_names_a_file_or_a_folder(file: Path) -> None:
    assert apdcli.load_pair(Named(file)).profile.path == file
    assert apdcli.load_tokenizer(Named(DENOISER)).folder == DENOISER
    assert apdcli.load_denoiser(Named(DENOISER)).tokenizer.folder == DENOISER


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".toml", "~nobody-here/" + "x" * 300])
def test_names_longer_than_any_file_are_errors_of_ours(name: str) -> None:
    with pytest.raises(apdcli.ProfileError):
        apdcli.load_pair(name)
    for load in (apdcli.load_denoiser, apdcli.load_tokenizer):
        with pytest.raises(apdcli.ModelError):
            load(name)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [
        (["a"], r"^tokens\[0\] = 'a'"),
        ("abc", "^tokens = 'abc'"),
        ([1, 1.5], r"^tokens\[1\] = 1\.5"),
        ([True], r"^tokens\[0\] = True"),
        ([None], r"^tokens\[0\] = None"),
        (torch.ones(2, 2, dtype=torch.long), r"^tokens\[0\] = \[1, 1\]"),
        (torch.tensor(3), r"^tokens = "),
        (torch.tensor([0.5]), r"^tokens\[0\] = 0\.5"),
        (np.array([True]), r"^tokens\[0\] = True"),
        (iter([1]), "^tokens = "),
        ({1}, "^tokens = {1}"),
        (None, "^tokens = None"),
        ([], "^0 tokens given"),
        ([10**6], "outside the vocabulary"),
    ],
)
def test_what_is_no_sequence_of_ids(denoiser: apdcli.LoadedDenoiser, tokens: Any, why: str) -> None:
    with pytest.raises(apdcli.PromptError, match=why):
        denoiser.logits(tokens)


def test_ids_of_any_library_give_the_same_logits(denoiser: apdcli.LoadedDenoiser) -> None:
    ids = [4, 9, 3]
    expected = denoiser.logits(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        others = (tuple(ids), torch.tensor(ids), np.array(ids), [np.int64(i) for i in ids])
        given: Any
        for given in (*others, list(torch.tensor(ids))):
            assert torch.equal(denoiser.logits(given), expected)


def test_loaded_things_say_what_they_are(
    pair: apdcli.LoadedPair, denoiser: apdcli.LoadedDenoiser
) -> None:
    config = denoiser.net.config
    for part in (repr(str(DENOISER)), config.family, f"{config.num_parameters:,}"):
        assert part in repr(denoiser)
    assert repr(str(DENOISER)) in repr(denoiser.tokenizer)
    assert f"{denoiser.tokenizer.vocab_size:,}" in repr(denoiser)
    for part in ("'reference'", "denoiser", "verifier", config.family, "cpu"):
        assert part in repr(pair)
    assert max(len(repr(thing)) for thing in (pair, denoiser, denoiser.tokenizer)) < 400


@pytest.mark.parametrize("text", [None, 3, b"a", ["a"]])
def test_only_a_text_is_encoded(denoiser: apdcli.LoadedDenoiser, text: Any) -> None:
    with pytest.raises(apdcli.PromptError, match=r"^text = .*it must be a str"):
        denoiser.tokenizer.encode(text)


def test_numbers_of_another_library_are_numbers(pair: apdcli.LoadedPair) -> None:
    plain: dict[str, Any] = {"max_tokens": 9, "seed": 3, "top_k": 5}
    plain |= {"recompute_window": 4, "max_lookahead": 6}
    real: dict[str, Any] = {
        "mixture_weight": 0.5,
        "temperature": 0.75,
        "top_p": 0.875,
    }  # exact in 32 bits
    theirs = {n: np.int64(v) for n, v in plain.items()} | {
        n: np.float32(v) for n, v in real.items()
    }
    expected = apdcli.generate(pair, "hi", **plain, **real)
    assert apdcli.generate(pair, "hi", **theirs).token_ids == expected.token_ids
    few: dict[str, Any] = {"strategy": "left_to_right", "k": np.int64(2), "max_tokens": np.uint8(4)}
    *_, last = apdcli.stream(pair, "hi", **few)
    assert isinstance(last, Finished)
    with pytest.raises(apdcli.ParameterError, match="integer >= 1"):
        apdcli.generate(pair, "hi", max_tokens=np.float32(2.5))
    with pytest.raises(apdcli.ParameterError, match="integer >= 1"):
        apdcli.generate(pair, "hi", max_tokens=True)


def test_settings_hold_pythons_own_numbers(pair: apdcli.LoadedPair) -> None:
    from apdcli.load.settings import resolve_settings

    given = {"mixture_weight": np.float32(0.5), "seed": np.int64(3)}
    settings = resolve_settings(pair.profile, given, {})
    assert (type(settings["mixture_weight"].value), type(settings["seed"].value)) == (float, int)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("R", "mixture_weight"),
        ("W", "recompute_window"),
        ("M", "max_lookahead"),
        ("temp", "temperature"),
        ("max_token", "max_tokens"),
    ],
)
def test_short_names_are_told_the_long_one(pair: apdcli.LoadedPair, short: str, long: str) -> None:
    with pytest.raises(apdcli.UnknownParameterError, match=rf"did you mean {long}\?"):
        apdcli.generate(pair, "x", **cast("dict[str, Any]", {short: 1}))


def test_a_short_name_of_another_strategy_is_told_nothing(pair: apdcli.LoadedPair) -> None:
    with pytest.raises(apdcli.UnknownParameterError, match=r"did you mean k\?"):
        apdcli.generate(pair, "x", strategy="left_to_right", K=1)
    with pytest.raises(apdcli.UnknownParameterError) as caught:
        apdcli.generate(pair, "x", strategy="left_to_right", R=1)
    assert "mean mixture_weight" not in str(caught.value)


def test_a_system_message_that_would_not_be_used_is_refused(pair: apdcli.LoadedPair) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    for call in CALLS:
        with pytest.raises(apdcli.UsageError, match="system does not go with raw=True"):
            call(pair, "hi", raw=True, system="Z")
        with pytest.raises(apdcli.UsageError, match="the messages hold a system message"):
            call(pair, messages, system="Z")
    unused = apdcli.generate(pair, "hi", raw=True, system="", max_tokens=1)
    assert unused.prompt_tokens == apdcli.generate(pair, "hi", raw=True, max_tokens=1).prompt_tokens


def test_two_values_of_which_one_could_hold(pair: apdcli.LoadedPair) -> None:
    both = {"strategy": "confidence", "k": 2, "steps": 4}
    with pytest.raises(apdcli.ParameterError, match="steps = 4: it must be left out"):
        apdcli.generate(pair, "hi", **cast("dict[str, Any]", both))
    with pytest.raises(apdcli.ParameterError, match="steps = 4: it must be left out"):
        apdcli.fill(pair, "a ___", **cast("dict[str, Any]", both))
    with pytest.raises(apdcli.ParameterError, match="k = 4: it must be at most max_lookahead"):
        apdcli.generate(pair, "hi", strategy="left_to_right", k=4, max_lookahead=2)


def test_a_stop_string_need_not_be_a_list(pair: apdcli.LoadedPair) -> None:
    whole = apdcli.generate(pair, "hi", max_tokens=12).text
    stop = whole.strip()[-1]
    ended = apdcli.generate(pair, "hi", max_tokens=12, stop=stop)
    assert ended.text == whole[: whole.index(stop)]
    listed = apdcli.generate(pair, "hi", max_tokens=12, stop=[stop])
    assert ended.token_ids == listed.token_ids
