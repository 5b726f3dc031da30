"""Settings: flag, environment, profile, default, in that order."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from apdcli.decode.params import STRATEGIES, make_params
from apdcli.errors import ParameterError, ProfileError, UnknownParameterError, UsageError
from apdcli.load.device_name import device_name
from apdcli.load.profile import Profile, find_profile
from apdcli.load.settings import (
    Setting,
    check_together,
    choose_profile,
    chosen_profile,
    environment_variable,
    resolve_settings,
)

PROFILE = (
    '[denoiser]\nmodel="x"\ndevice="cpu"\n[verifier]\nmodel="y"\n'
    '[decode]\nmixture_weight=0.3\nk=4\nmax_tokens=7\nstop=["p"]\n[chat]\nsystem="prof"\n'
)
# setting: another value by flag, as a text in the environment, and what that text means
OTHERS: dict[str, tuple[Any, str, Any]] = {
    "mixture_weight": (0.1, "0.2", 0.2),
    "recompute_window": (3, "all", "all"),
    "max_lookahead": ("all", "5", 5),
    "temperature": (0.5, "1", 1),
    "top_p": (0.5, "0.25", 0.25),
    "top_k": (3, "4", 4),
    "seed": (3, "4", 4),
    "max_tokens": (3, "4", 4),
    "system": ("flag", "env", "env"),
}
IN_PROFILE = {"mixture_weight": 0.3, "max_tokens": 7, "system": "prof"}


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    path = tmp_path / "p.toml"
    path.write_text(PROFILE)
    return find_profile(path)


@pytest.mark.parametrize("name", OTHERS)
def test_precedence(profile: Profile, name: str) -> None:
    flag, text, meant = OTHERS[name]
    environ = {environment_variable(name): text}
    assert environment_variable(name) == f"APD_{name.upper()}"
    assert resolve_settings(profile, {name: flag}, environ)[name] == Setting(flag, "flag")
    resolved = resolve_settings(profile, {name: None}, environ)[name]
    assert resolved == Setting(meant, "environment")
    bare = resolve_settings(profile, {}, {environment_variable(name): ""})[name]
    assert bare.origin == ("profile" if name in IN_PROFILE else "default")
    if name in IN_PROFILE:
        assert bare.value == IN_PROFILE[name]


def test_quantize_of_each_model(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(PROFILE.replace('model="y"', 'model="y"\nquantize="int8"'))
    own = find_profile(path)
    names = ("denoiser_quantize", "verifier_quantize")

    def resolved(flag: str | None, environ: dict[str, str]) -> list[Setting]:
        settings = resolve_settings(own, {"quantize": flag}, environ)
        return [settings[name] for name in names]

    assert resolved(None, {}) == [Setting("none", "default"), Setting("int8", "profile")]
    assert resolved(None, {"APD_QUANTIZE": "int4"}) == [Setting("int4", "environment")] * 2
    assert resolved("none", {"APD_QUANTIZE": "int4"}) == [Setting("none", "flag")] * 2
    with pytest.raises(UsageError, match="APD_QUANTIZE"):
        resolved(None, {"APD_QUANTIZE": "int5"})
    with pytest.raises(UsageError, match="one of none, int8, int4"):
        resolved("int5", {})
    path.write_text(PROFILE.replace('model="y"', 'model="y"\nquantize="q4"'))
    with pytest.raises(ProfileError, match="quantize = 'q4' is wrong: it must be one of"):
        find_profile(path)


def test_strategy_and_its_parameters(profile: Profile) -> None:
    assert resolve_settings(profile, {}, {})["strategy"] == Setting("apd", "default")
    settings = resolve_settings(profile, {}, {"APD_STRATEGY": "left_to_right"})
    assert settings["strategy"] == Setting("left_to_right", "environment")
    assert settings["k"] == Setting(4, "profile")
    assert "mixture_weight" not in settings
    settings = resolve_settings(profile, {"strategy": "apd", "stop": ["f"]}, {"APD_K": "2"})
    assert "k" not in settings
    assert settings.stop == ("f",)
    assert settings.system == "prof"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_variables_of_other_strategies_wait_for_them_without_a_word(strategy: str) -> None:
    """They may be set for every command of a shell; a flag is of this one and is refused."""
    demo, info = find_profile("demo"), STRATEGIES[strategy]
    others = {n for i in STRATEGIES.values() for n in i.own_fields} - {*info.own_fields}
    defaults = {f.name: f.default for i in STRATEGIES.values() for f in fields(i.params)}
    environ = {environment_variable(n): str(defaults[n]) for n in others if defaults[n] is not None}
    assert environ
    environ |= {"APD_K": "2", "APD_MIXTURE_WEIGHT": "0.25", "APD_SEED": "5"}
    settings = resolve_settings(demo, {"strategy": strategy}, environ)
    alone = resolve_settings(demo, {"strategy": strategy}, {"APD_SEED": "5"})
    assert list(settings) == list(alone)
    assert not others & {*settings.as_json()}
    read = {name for name, setting in settings.items() if setting.origin == "environment"}
    assert read == {"seed"} | ({"k", "mixture_weight"} & {*info.own_fields})
    for name in others:
        with pytest.raises(UnknownParameterError):
            resolve_settings(demo, {"strategy": strategy, name: defaults[name] or 1}, {})


@pytest.mark.parametrize(
    ("flags", "environ", "refused"),
    [
        ({"strategy": "left_to_right", "k": 4, "max_lookahead": 2}, {}, "k"),
        ({"strategy": "left_to_right", "k": 4, "max_lookahead": 4}, {}, None),
        ({"strategy": "left_to_right", "k": 4, "max_lookahead": "auto"}, {}, None),
        ({"strategy": "left_to_right", "k": 400}, {}, None),  # nobody asked for another M
        ({"strategy": "left_to_right", "k": 4}, {"APD_M": "2"}, None),  # K is nearer
        ({"strategy": "left_to_right", "max_lookahead": 2}, {}, "max_lookahead"),  # the profile's k
        ({"strategy": "left_to_right"}, {"APD_M": "2"}, "max_lookahead"),
        ({"strategy": "left_to_right"}, {"APD_M": "2", "APD_K": "4"}, "k"),
        ({"strategy": "apd"}, {"APD_M": "2", "APD_K": "4"}, None),
        ({"strategy": "confidence", "k": 4, "steps": 2}, {}, "steps"),
        ({"strategy": "confidence", "steps": 2}, {}, None),  # over the profile's k
    ],
)
def test_two_values_of_which_one_could_hold_are_refused(
    profile: Profile, flags: dict[str, Any], environ: dict[str, str], refused: str | None
) -> None:
    settings = resolve_settings(profile, flags, environ)
    if refused is None:
        check_together(settings)
        return
    with pytest.raises(ParameterError) as caught:
        check_together(settings)
    assert caught.value.field == refused


@pytest.mark.parametrize(
    ("table", "origin"),
    [("[decode]\nstrategy = 'left_to_right'\n", "profile"), ('[tuned."{}"]\n', "tuned")],
)
def test_a_profile_that_contradicts_itself_is_refused(
    tmp_path: Path, table: str, origin: str
) -> None:
    path = tmp_path / "p.toml"
    table = table.format(device_name("cpu")) + "strategy = 'left_to_right'\n" * (origin == "tuned")
    path.write_text(f'[denoiser]\nmodel="x"\ndevice="cpu"\n{table}k = 4\nmax_lookahead = 2\n')
    settings = resolve_settings(find_profile(path), {}, {})
    assert settings["k"] == Setting(4, origin)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"k = 4: .* at most max_lookahead \(2\)"):
        check_together(settings)
    check_together(resolve_settings(find_profile(path), {"k": 3}, {}))  # a flag stands over it


def test_k_that_is_asked_for_stands_over_the_steps_of_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('[denoiser]\nmodel="x"\n[decode]\nstrategy="confidence"\nsteps=8\n')
    profile = find_profile(path)
    assert resolve_settings(profile, {}, {})["steps"] == Setting(8, "profile")
    assert resolve_settings(profile, {"k": 2}, {})["steps"] == Setting(None, "flag")
    assert resolve_settings(profile, {}, {"APD_K": "2"})["steps"] == Setting(None, "environment")
    both = resolve_settings(profile, {"steps": 3}, {"APD_K": "2"})
    assert both["steps"] == Setting(3, "flag")


def test_one_stop_string_is_a_list_of_one(profile: Profile) -> None:
    assert resolve_settings(profile, {"stop": "model"}, {}).stop == ("model",)
    with pytest.raises(ParameterError):
        resolve_settings(profile, {"stop": ""}, {})
    by_variable = resolve_settings(profile, {}, {"APD_STOP": " 7"})["stop"]
    assert by_variable == Setting([" 7"], "environment")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_values_make_parameters(profile: Profile, strategy: str) -> None:
    settings = resolve_settings(profile, {"strategy": strategy}, {})
    shared, own = make_params(settings.strategy, **settings.decode_values())
    assert shared.max_tokens == 7
    assert isinstance(own, STRATEGIES[strategy].params)


def test_device_and_dtype_are_of_both_models(profile: Profile) -> None:
    settings = resolve_settings(profile, {"dtype": "bfloat16"}, {"APD_DEVICE": "cuda:0"})
    assert settings["denoiser_device"] == Setting("cuda:0", "environment")
    assert settings["verifier_dtype"] == Setting("bfloat16", "flag")
    settings = resolve_settings(profile, {}, {})
    assert settings["denoiser_device"] == Setting("cpu", "profile")
    assert settings["verifier_device"] == Setting("auto", "default")


def test_which_profile(profile: Profile) -> None:
    assert choose_profile(None, {}) == Setting("demo", "default")
    assert choose_profile(None, {"APD_PROFILE": "a"}) == Setting("a", "environment")
    assert choose_profile("b", {"APD_PROFILE": "a"}) == Setting("b", "flag")
    demo = find_profile("demo")
    assert resolve_settings(demo, {}, {})["profile"] == Setting("demo", "default")
    assert resolve_settings(demo, {}, {"APD_PROFILE": "demo"})["profile"].origin == "environment"
    assert resolve_settings(demo, {"profile": "demo"}, {})["profile"].origin == "flag"
    named = resolve_settings(profile, {}, {})["profile"]
    assert named == Setting(str(profile.path), "flag")


def test_a_profile_that_the_environment_names_wrongly() -> None:
    assert chosen_profile(None, {"APD_PROFILE": "dream"}).name == "dream"
    with pytest.raises(UsageError, match=r"^environment variable APD_PROFILE: no profile"):
        chosen_profile(None, {"APD_PROFILE": "nope"})
    with pytest.raises(ProfileError, match=r"^no profile is called"):
        chosen_profile("nope", {"APD_PROFILE": "dream"})


def test_json(profile: Profile) -> None:
    table = resolve_settings(profile, {"seed": 3}, {}).as_json()
    assert table["seed"] == {"value": 3, "from": "flag"}
    assert table["stop"] == {"value": ["p"], "from": "profile"}
    assert json.loads(json.dumps(table)) == table


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("APD_K", "0"),
        ("APD_MIXTURE_WEIGHT", "much"),
        ("APD_TEMPERATURE", "nan"),
        ("APD_MAX_TOKENS", "1.5"),
        ("APD_STRATEGY", "apt"),
        ("APD_DEVICE", "gpu"),
        ("APD_DTYPE", "fp8"),
    ],
)
def test_bad_environment(profile: Profile, variable: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"^environment variable {variable}: .*: it must be"):
        resolve_settings(profile, {}, {variable: text})


def test_bad_flags(profile: Profile) -> None:
    with pytest.raises(ParameterError, match="W >= 1") as out_of_range:
        resolve_settings(profile, {"recompute_window": 0}, {})
    assert out_of_range.value.exit_status == 2
    with pytest.raises(UsageError, match="there are: apd"):
        resolve_settings(profile, {"strategy": "apt"}, {})
    with pytest.raises(UnknownParameterError, match="'left_to_right' has no parameter 'mixture"):
        resolve_settings(profile, {"strategy": "left_to_right", "mixture_weight": 0.5}, {})
    with pytest.raises(UnknownParameterError, match="no parameter 'mixture'"):
        resolve_settings(profile, {"mixture": 0.5}, {})
    with pytest.raises(ParameterError, match="device = 'gpu'"):
        resolve_settings(profile, {"device": "gpu"}, {})


def test_switches_in_the_environment(profile: Profile) -> None:
    switches = [
        (info.name, field.name)
        for info in STRATEGIES.values()
        for field in fields(info.params)
        if isinstance(field.default, bool)
    ]
    for strategy, name in switches:
        variable = environment_variable(name)
        for text, meant in (("true", True), ("0", False)):
            settings = resolve_settings(profile, {"strategy": strategy}, {variable: text})
            assert settings[name] == Setting(meant, "environment")
        with pytest.raises(UsageError, match=variable):
            resolve_settings(profile, {"strategy": strategy}, {variable: "maybe"})


HERE = device_name("cpu")
TUNED = (
    f"[tuned.{json.dumps(HERE)}]\n"
    'strategy = "apd"\nmixture_weight = 0.9\nmax_lookahead = 24\n'
    '[tuned."Another Device"]\nstrategy = "apd"\nmixture_weight = 0.8\n'
)


def tuned_profile(tmp_path: Path, tuned: str) -> Profile:
    path = tmp_path / "tuned.toml"
    path.write_text(PROFILE + tuned)
    return find_profile(path)


def test_tuned_stands_between_environment_and_profile(tmp_path: Path) -> None:
    profile = tuned_profile(tmp_path, TUNED)
    settings = resolve_settings(profile, {}, {})
    assert settings["strategy"] == Setting("apd", "tuned")
    assert settings["mixture_weight"] == Setting(0.9, "tuned")
    assert settings["max_lookahead"] == Setting(24, "tuned")
    assert settings["recompute_window"].origin == "default"
    assert settings["max_tokens"].origin == "profile"
    environ = {"APD_MIXTURE_WEIGHT": "0.4"}
    assert resolve_settings(profile, {}, environ)["mixture_weight"].value == 0.4
    by_flag = resolve_settings(profile, {"mixture_weight": 0.1}, environ)
    assert by_flag["mixture_weight"] == Setting(0.1, "flag")
    assert by_flag["max_lookahead"].origin == "tuned"
    assert by_flag.as_json()["max_lookahead"] == {"value": 24, "from": "tuned"}


def test_tuned_is_for_its_strategy_alone(tmp_path: Path) -> None:
    profile = tuned_profile(tmp_path, f'[tuned.{json.dumps(HERE)}]\nstrategy="dico"\nseeds=7\n')
    settings = resolve_settings(profile, {}, {})
    assert settings["strategy"] == Setting("dico", "tuned")
    assert settings["seeds"] == Setting(7, "tuned")
    assert resolve_settings(profile, {"strategy": "dico"}, {})["seeds"].origin == "tuned"
    for given in ({"strategy": "apd"}, {}):
        environ = {} if given else {"APD_STRATEGY": "apd"}
        other = resolve_settings(profile, given, environ)
        assert {s.origin for s in other.values()} <= {"flag", "environment", "profile", "default"}
        assert other["mixture_weight"] == Setting(0.3, "profile")


def test_tuned_is_for_its_device_alone(tmp_path: Path) -> None:
    text = TUNED.replace(json.dumps(HERE), '"A GPU that nobody has"')
    settings = resolve_settings(tuned_profile(tmp_path, text), {}, {})
    assert settings["mixture_weight"] == Setting(0.3, "profile")
    elsewhere = tuned_profile(tmp_path, TUNED)
    settings = resolve_settings(elsewhere, {"device": "mps"}, {})
    assert settings["mixture_weight"] == Setting(0.3, "profile")


def test_a_devices_name_is_one_line_and_loads_no_torch_for_the_cpu() -> None:
    assert HERE == HERE.strip() != ""
    assert HERE.isprintable()
    script = (
        "import sys; from apdcli.load.device_name import device_name\n"
        "print(device_name('cpu')); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{HERE}\n"
