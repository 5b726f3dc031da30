"""How settings are written, read and refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apdcli.bench.settings import (
    CAUSAL,
    Spec,
    check_common,
    default_specs,
    parse_spec,
    parse_specs,
    resolve_spec,
    written,
)
from apdcli.decode.params import STRATEGIES
from apdcli.engine.pair import LoadedPair
from apdcli.errors import UsageError

OWN = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": "all"}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("apd", Spec("apd", "apd", {})),
        (" threshold ", Spec("threshold", "threshold", {})),
        ("apd:R=0.5,W=16,M=all", Spec("apd:R=0.5,W=16,M=all", "apd", OWN)),
        ("fast=apd:R=0.5, W=16 ,M=all", Spec("fast", "apd", OWN)),
        ("left_to_right:K=2", Spec("left_to_right:K=2", "left_to_right", {"k": 2})),
        ("a=dico:early-stop=false", Spec("a", "dico", {"early_stop": False})),
        ("slow=apd:engine=eager", Spec("slow", "apd", {"engine": "eager"})),
        ("n=apd:max_tokens=9", Spec("n", "apd", {"max_tokens": 9})),
        (CAUSAL, Spec(CAUSAL, "autoregressive", {}, causal=True)),
    ],
)
def test_settings_are_read(text: str, spec: Spec) -> None:
    assert parse_spec(text) == spec
    assert parse_spec(written(parse_spec(text))) == spec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write it as STRATEGY"),
        ("apd:R", "write 'R' as PARAMETER=VALUE"),
        ("adp", "did you mean apd"),
        ("apd:K=2", "apd has no parameter 'K'; it has: mixture_weight"),
        ("apd:mixture_wait=1", "did you mean mixture_weight"),
        ("apd:R=2", "R = 2 must be a number from 0 to 1"),
        ("apd:M=some", "M = some must be M >= 1"),
        ("apd:engine=steam", "engine = steam must be one of auto, eager, fast"),
        ("apd:seed=1", "no parameter 'seed'"),
        ("a=b=apd", "write it as STRATEGY"),
        ("autoregressive:R=1", "autoregressive has no parameter 'R'"),
    ],
)
def test_settings_that_are_none(text: str, said: str) -> None:
    with pytest.raises(UsageError, match="setting ") as caught:
        parse_spec(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except UsageError:
        return
    assert spec.strategy in STRATEGIES


def test_names_are_told_apart() -> None:
    assert [s.name for s in parse_specs("apd, dico", ["apd:R=1"])] == ["apd", "dico", "apd:R=1"]
    with pytest.raises(UsageError, match="two settings are called 'apd'; name one"):
        parse_specs("apd,apd", [])
    with pytest.raises(UsageError, match="two settings are called 'x'"):
        parse_specs(None, ["x=apd", "x=dico"])
    assert parse_specs(None, []) == ()


def test_what_is_compared_by_default() -> None:
    names = [spec.name for spec in default_specs(verifier=True)]
    assert names == ["left_to_right", "apd", "autoregressive", "threshold"]
    assert [s.name for s in default_specs(verifier=False)] == ["left_to_right", "threshold"]


def test_a_setting_wins_over_what_is_given_for_all(reference: LoadedPair) -> None:
    common: dict[str, Any] = {"mixture_weight": 0.9, "max_lookahead": 8, "max_tokens": 5}
    spec = parse_spec("apd:R=0.1")
    settings = resolve_spec(spec, reference.profile, common, {"APD_RECOMPUTE_WINDOW": "3"})
    values = settings.decode_values()
    assert values["mixture_weight"] == 0.1
    assert (values["max_lookahead"], values["recompute_window"]) == (8, 3)
    assert values["max_tokens"] == 5
    # A strategy without the parameter leaves it alone.
    threshold = resolve_spec(parse_spec("threshold"), reference.profile, common, {})
    assert "mixture_weight" not in threshold


def test_what_none_has_is_refused() -> None:
    specs = parse_specs("threshold,dico", [])
    check_common({"max_tokens": 3, "block_length": 1}, specs)
    with pytest.raises(UsageError, match="mixture_weight was given, but none of the settings has"):
        check_common({"mixture_weight": 0.1}, specs)


def test_values_that_do_not_go_together(reference: LoadedPair) -> None:
    spec = parse_spec("d=dico:block_length=7")
    with pytest.raises(UsageError, match="setting 'd': block_length = 7"):
        resolve_spec(spec, reference.profile, {"max_tokens": 24}, {})


@pytest.mark.parametrize(
    ("text", "common", "said"),
    [
        ("left_to_right:K=4,M=2", {}, "k = 4: it must be at most max_lookahead (2)"),
        ("left_to_right:K=4", {"max_lookahead": 2}, "k = 4: it must be at most"),
        ("x=confidence:K=4,steps=2", {}, "steps = 2: it must be left out where k is given"),
    ],
)
def test_values_of_which_one_could_hold(
    reference: LoadedPair, text: str, common: dict[str, Any], said: str
) -> None:
    spec = parse_spec(text)
    with pytest.raises(UsageError) as caught:
        resolve_spec(spec, reference.profile, common, {})
    assert str(caught.value).startswith(f"setting {spec.name!r}: {said}")


def test_a_setting_says_its_own_way_how_many_tokens_a_step_takes(reference: LoadedPair) -> None:
    spec = parse_spec("confidence:steps=2")
    settings = resolve_spec(spec, reference.profile, {"k": 4}, {})
    assert (settings["steps"].value, settings["k"].origin) == (2, "default")


def test_settings_and_floors_load_no_torch() -> None:
    code = (
        "import apdcli.bench.settings, apdcli.bench.sizes, apdcli.bench.floor_table, "
        "apdcli.bench.report, apdcli.bench.plot, apdcli.cli.bench, sys; "
        "print({'torch', 'matplotlib', 'optuna'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
