"""Every setting that the space holds is one that the decoder takes."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from typing import Any

import pytest

from apdcli.decode.params import STRATEGIES, make_params, strategy_info
from apdcli.errors import UsageError
from apdcli.tune.space import (
    TUNABLE,
    Knob,
    Ladder,
    Real,
    knobs,
    known_good,
    possible,
    space_as_json,
    space_from_json,
    together,
)


def defaults(strategy: str) -> dict[str, Any]:
    return {f.name: f.default for f in fields(strategy_info(strategy).params)}


def drawn(knob: Knob, rng: random.Random) -> Any:
    if isinstance(knob, Real):
        return knob.tidy(rng.uniform(knob.low, knob.high))
    return rng.choice(knob.values)


@pytest.mark.parametrize("max_tokens", [1, 48, 96, 256])
@pytest.mark.parametrize("strategy", TUNABLE)
def test_the_decoder_takes_every_setting(strategy: str, max_tokens: int) -> None:
    space = knobs(strategy, max_tokens, {})
    assert {k.name for k in space} <= set(strategy_info(strategy).own_fields)
    rng = random.Random(0)
    for _ in range(50):
        values = {knob.name: drawn(knob, rng) for knob in space}
        make_params(strategy, max_tokens=max_tokens, **values)
    for values in known_good(strategy, space, defaults(strategy)):
        make_params(strategy, max_tokens=max_tokens, **values)


def test_only_what_has_knobs_is_tuned() -> None:
    assert set(STRATEGIES) - set(TUNABLE) == {"autoregressive"}
    with pytest.raises(UsageError, match=r"autoregressive has nothing to tune; .* apd, left_to"):
        knobs("autoregressive", 256, {})


def test_the_search_begins_with_the_profiles_own_and_the_papers() -> None:
    own = {"mixture_weight": 0.37, "recompute_window": 20, "max_lookahead": 30}
    space = knobs("apd", 256, own)
    first = known_good("apd", space, own)
    assert first[0] == own
    fast, careful = (
        {"mixture_weight": r, "recompute_window": w, "max_lookahead": m}
        for r, w, m in ((0.7, 16, 100), (0.6, 32, 200))
    )
    assert fast in first
    assert careful in first
    assert len({json.dumps(values) for values in first}) == len(first)


def test_no_setting_takes_more_tokens_than_it_drafts() -> None:
    own = {"k": 12, "recompute_window": 16, "max_lookahead": 3}
    space = knobs("left_to_right", 256, own)
    for setting in known_good("left_to_right", space, own):
        assert possible(setting), setting
    assert together(space, own) == {**own, "max_lookahead": 12}
    assert together(space, {**own, "k": 3}) == {**own, "k": 3}
    short = knobs("left_to_right", 10, own)
    assert together(short, {**own, "k": 16})["max_lookahead"] == "all"


def test_ladders_have_no_rung_that_means_nothing() -> None:
    ahead = next(k for k in knobs("apd", 64, {}) if k.name == "max_lookahead")
    assert isinstance(ahead, Ladder)
    assert ahead.values[-1] == "all"
    assert max(v for v in ahead.values if v != "all") < 64
    assert ahead.tidy(100) == "all", "longer than the answer"
    assert ahead.tidy(41) == 48
    assert ahead.tidy("all") == "all"
    assert ahead.tidy(8) == 8


def test_a_block_that_holds_the_whole_answer_is_one_block() -> None:
    own = defaults("dico")
    (first, *_) = known_good("dico", knobs("dico", 32, own), own)
    assert own["block_length"] == 128
    assert first["block_length"] == "all"
    assert {n: v for n, v in first.items() if n != "block_length"} == {
        n: own[n] for n in first if n != "block_length"
    }


def test_the_space_survives_its_storage() -> None:
    for strategy in TUNABLE:
        space = knobs(strategy, 128, {})
        assert space_from_json(json.loads(json.dumps(space_as_json(space)))) == space
