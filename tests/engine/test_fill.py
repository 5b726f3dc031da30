"""Filling gaps through the Python API: what stands outside comes back, what stands inside fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import apdcli
from apdcli.decode.gaps import FILLING
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.fill import FillRequest, prepare_fill
from apdcli.engine.pair import LoadedPair
from apdcli.errors import ParameterError, PromptError, UnknownParameterError, UsageError
from apdcli.load.fill_settings import fill_settings
from tests.conftest import DATA

TEXT = "Gia has 25 coins.\n___\nThe answer is 2___."


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    """The reference denoiser through a profile file whose strategy cannot fill gaps."""
    file = tmp_path_factory.mktemp("profile") / "reference.toml"
    model = (DATA / "apd" / "denoiser").as_posix()
    file.write_text(f'[denoiser]\nmodel = "{model}"\n[decode]\nstrategy = "left_to_right"\n')
    torch.set_num_threads(1)
    return apdcli.load_pair(str(file))


def request_of(pair: LoadedPair, text: str, **flags: Any) -> FillRequest:
    return prepare_fill(pair, text, fill_settings(pair.profile, flags, {}))


@pytest.mark.parametrize("strategy", FILLING)
def test_every_any_order_strategy_fills_and_leaves_the_rest(
    pair: LoadedPair, strategy: str
) -> None:
    done = apdcli.fill(pair, TEXT, gap=5, strategy=strategy)
    before, between, after = TEXT.split("___")
    assert done.text == before + done.gaps[0] + between + done.gaps[1] + after
    assert len(done.gaps) == 2
    assert len(done.token_ids) == sum(done.accepted) == 10
    assert done.gaps[0] == pair.tokenizer.decode(done.token_ids[:5])
    assert done.finish_reason == "length"
    assert not set(done.token_ids) & (pair.stop_ids | pair.tokenizer.special_ids)
    assert done.usage.steps == len(done.accepted)
    assert done.usage.verifier_forwards == 0


def test_what_comes_after_a_gap_is_seen(pair: LoadedPair) -> None:
    fills = {apdcli.fill(pair, f"___{after}", gap=6).gaps[0] for after in ("coins", " 7 + 8", "?")}
    assert len(fills) > 1


def test_an_end_is_never_drafted_inside_a_gap(pair: LoadedPair) -> None:
    # A model that wants nothing but special tokens: the likeliest of the others is taken.
    head = pair.denoiser.lm_head
    before = head.weight.detach().clone()
    wanted = sorted(pair.stop_ids | pair.tokenizer.special_ids)
    try:
        with torch.no_grad():
            head.weight[wanted] *= 100
        done = apdcli.fill(pair, "one, ___, three", gap=8, temperature=1.0)
    finally:
        with torch.no_grad():
            head.weight.copy_(before)
    assert not set(done.token_ids) & set(wanted)
    assert len(done.token_ids) == 8


@pytest.mark.parametrize(
    "text",
    [
        "___",
        "___ at the start",
        "at the end ___",
        "______",
        "\ufeff\r\n tabs\t___\x00\x1b[31m\u202e e\u0301 \U0001f600___\n\n",
        "<|im_end|>___<|endoftext|>",
    ],
)
def test_text_outside_comes_back_byte_for_byte(pair: LoadedPair, text: str) -> None:
    request = request_of(pair, text, gap=3)
    done = apdcli.fill(pair, text, gap=3)
    pieces = text.split("___")
    rest = done.text
    for piece, filled in zip(pieces, [*done.gaps, ""], strict=True):
        assert rest.startswith(piece + filled)
        rest = rest[len(piece + filled) :]
    assert rest == ""
    assert "".join(shown for _, shown in request.given) == "".join(pieces)
    covered = {position for position, _ in request.given}
    masks = {p for start in request.starts for p in range(start, start + 3)}
    assert covered | masks == set(range(len(request.ids)))
    assert not covered & masks


def test_special_tokens_texts_are_text_like_any_other(pair: LoadedPair) -> None:
    texts = [pair.tokenizer.token_text(index) for index in sorted(pair.tokenizer.special_ids)]
    request = request_of(pair, f"{texts}___{texts}")
    assert not pair.tokenizer.special_ids & set(request.ids)
    assert request.ids.count(None) == 16


def test_markers_and_lengths_are_the_callers(pair: LoadedPair) -> None:
    done = apdcli.fill(pair, "___ and <gap>", marker="<gap>", gap=2)
    assert done.text == "___ and " + done.gaps[0]
    assert len(done.token_ids) == 2
    assert len(apdcli.fill(pair, "a ___").token_ids) == 16


def test_same_seed_same_text(pair: LoadedPair) -> None:
    values: dict[str, Any] = {"gap": 6, "temperature": 1.0, "strategy": "random"}
    texts = {apdcli.fill(pair, TEXT, seed=seed, **values).text for seed in (1, 1, 2)}
    assert len(texts) == 2


@pytest.mark.parametrize("block_length", [3, 4, 64, "all"])
def test_blocks_need_not_divide_anything(pair: LoadedPair, block_length: Any) -> None:
    done = apdcli.fill(pair, TEXT, gap=7, strategy="threshold", block_length=block_length)
    assert len(done.token_ids) == 14


def test_the_strategy_is_the_profiles_where_it_can_fill(pair: LoadedPair) -> None:
    def chosen(**decode: Any) -> tuple[Any, str]:
        profile = replace(pair.profile, decode=decode)
        setting = fill_settings(profile, {}, {})["strategy"]
        return setting.value, setting.origin

    assert chosen(strategy="left_to_right") == ("dico", "default")
    assert chosen() == ("dico", "default")
    assert chosen(strategy="factor") == ("factor", "profile")


@pytest.mark.parametrize("strategy", ["apd", "left_to_right", "autoregressive"])
def test_other_strategies_are_refused_with_those_that_can(pair: LoadedPair, strategy: str) -> None:
    for flags, environ, origin in (
        ({"strategy": strategy}, {}, "flag"),
        ({}, {"APD_STRATEGY": strategy}, "environment"),
    ):
        with pytest.raises(UsageError, match=rf"{strategy} \({origin}\).*dico, confidence"):
            fill_settings(pair.profile, flags, environ)


def test_interrupted_it_keeps_what_there_is(pair: LoadedPair) -> None:
    request = request_of(pair, TEXT, gap=5, strategy="confidence")
    seen: list[StepEvent | Finished] = []
    for event in request.events(lambda: len(seen) == 3):
        seen.append(event)
    done = request.result(seen)
    assert done.finish_reason == "interrupted"
    assert len(done.token_ids) == 3
    assert done.text.startswith("Gia has 25 coins.\n")
    assert done.text.endswith(".")


def test_a_gap_that_does_not_fit_names_the_numbers(pair: LoadedPair) -> None:
    tokens = len(pair.tokenizer.encode("one ")) + len(pair.tokenizer.encode(" two"))
    gap = pair.context - tokens + 1
    with pytest.raises(PromptError) as caught:
        apdcli.fill(pair, "one ___ two", gap=gap)
    for number in (tokens, gap, pair.context, pair.context + 1):
        assert str(number) in str(caught.value)
    with pytest.raises(PromptError, match="its 2 gaps"):
        apdcli.fill(pair, TEXT, gap=10**15)
    assert len(request_of(pair, "one ___ two", gap=gap - 1).ids) == pair.context


@pytest.mark.parametrize(
    ("text", "message"), [("", "empty"), ("no gap", "no gap: write ___"), (" \n", "no gap")]
)
def test_a_text_without_a_gap_is_refused(pair: LoadedPair, text: str, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        apdcli.fill(pair, text)


def test_settings_that_mean_nothing_or_are_wrong(pair: LoadedPair) -> None:
    for name, value in (("max_tokens", 5), ("stop", ["a"]), ("system", "Be brief.")):
        with pytest.raises(UsageError, match=f"takes no {name}: "):
            apdcli.fill(pair, TEXT, **{name: value})
    for values in ({"gap": 0}, {"gap": "4"}, {"gap": True}, {"marker": ""}):
        with pytest.raises(ParameterError):
            apdcli.fill(pair, TEXT, **values)  # type: ignore[arg-type]
    with pytest.raises(UnknownParameterError):
        apdcli.fill(pair, TEXT, mixture_weight=0.5)
    with pytest.raises(ParameterError):
        apdcli.fill(pair, TEXT, temperature=-1)


def test_the_pair_is_as_it_was(pair: LoadedPair) -> None:
    before = apdcli.generate(pair, "hi", raw=True, strategy="confidence", max_tokens=8)
    apdcli.fill(pair, TEXT, gap=3)
    after = apdcli.generate(pair, "hi", raw=True, strategy="confidence", max_tokens=8)
    assert before.token_ids == after.token_ids
