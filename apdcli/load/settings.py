"""Every setting of a run with where it came from: flag, environment, tuning, profile or default.

Loads no torch. Names, ranges and defaults are those of `decode.params`; a new strategy's fields
appear here by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from apdcli.decode.checks import plain_number
from apdcli.decode.params import (
    SHARED_FIELDS,
    STRATEGIES,
    DecodeParams,
    StrategyInfo,
    strategy_info,
)
from apdcli.errors import ParameterError, ProfileError, UnknownParameterError, UsageError
from apdcli.load.device_name import device_name
from apdcli.load.profile import (
    DEFAULT_PROFILE,
    ModelSection,
    Profile,
    check_value,
    find_profile,
    known_decode_keys,
    nearest,
)

# The chat's own beside them: by /set, or by the session that goes on.
Origin = Literal["flag", "set", "session", "environment", "tuned", "profile", "default"]
Layer = tuple[Origin, Mapping[str, Any]]

_MODELS, _PLACES = ("denoiser", "verifier"), ("device", "dtype", "quantize")
_TEXTS = (
    "strategy",
    "system",
    "profile",
    "engine",
    *_PLACES,
)  # read from the environment as they stand
_ENVIRONMENT_PREFIX = "APD_"
_LETTERS = {"mixture_weight": "R", "recompute_window": "W", "max_lookahead": "M"}  # as in APD_R
_SHORT = {
    "K": "k",
    "temp": "temperature",
    "n": "max_tokens",
    **{short: name for name, short in _LETTERS.items()},
}
_OTHER_WAY = {"k": "steps", "steps": "k"}  # two ways to say how many tokens a step takes
_FOLDERS = ("CONFIG_DIR", "DATA_DIR", "CACHE_DIR")
_WORDS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


@dataclass(frozen=True)
class Setting:
    """A value and where it came from."""

    value: Any
    origin: Origin


@dataclass(frozen=True)
class Settings(Mapping[str, Setting]):
    """The settings of one run by name, in the order in which they are shown.

    Names: profile, strategy, the strategy's own parameters, the shared parameters, stop, system,
    denoiser_device, denoiser_dtype, denoiser_quantize, the same of the verifier, and engine.
    """

    table: Mapping[str, Setting]

    def __getitem__(self, name: str) -> Setting:
        return self.table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return str(self["strategy"].value)

    @property
    def system(self) -> str | None:
        """The system message, if any."""
        value: str | None = self["system"].value
        return value

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        return tuple(self["stop"].value)

    @property
    def draws(self) -> bool:
        """Whether the text depends on the seed: tokens or the order of positions are drawn."""
        return draws({name: setting.value for name, setting in self.items()})

    def decode_values(self) -> dict[str, Any]:
        """The keywords for `decode.params.make_params(settings.strategy, **...)`."""
        names = (*SHARED_FIELDS, *strategy_info(self.strategy).own_fields)
        return {name: self[name].value for name in names}

    def as_json(self) -> dict[str, dict[str, Any]]:
        """{name: {"value": ..., "from": ...}}."""
        return {name: {"value": s.value, "from": s.origin} for name, s in self.items()}


def draws(values: Mapping[str, Any]) -> bool:
    """Whether a run with these values, by name, depends on its seed."""
    warm = any((values.get(name) or 0) > 0 for name in ("temperature", "alg_temp"))
    return warm or values.get("strategy") == "random"


def environment_variable(name: str) -> str:
    """The variable that sets `name`: APD_MIXTURE_WEIGHT for mixture_weight."""
    return _ENVIRONMENT_PREFIX + name.upper()


def known_variables() -> tuple[str, ...]:
    """Every APD_* variable that some command reads."""
    names = (n.upper() for n in (*known_decode_keys(), *_TEXTS))
    known = dict.fromkeys((*names, *_LETTERS.values(), *_FOLDERS))
    return tuple(_ENVIRONMENT_PREFIX + name for name in known)


def choose_profile(flag: str | None, environ: Mapping[str, str]) -> Setting:
    """Which profile to load: the flag, APD_PROFILE, or the default."""
    if flag is not None:
        return Setting(flag, "flag")
    variable = environ.get(environment_variable("profile"))
    return Setting(variable, "environment") if variable else Setting(DEFAULT_PROFILE, "default")


def chosen_profile(flag: str | None, environ: Mapping[str, str]) -> Profile:
    """The profile that `choose_profile` names, read and checked.

    Raises:
        ProfileError: as `find_profile`. UsageError: the same where the environment named it.
    """
    chosen = choose_profile(flag, environ)
    try:
        return find_profile(chosen.value)
    except ProfileError as error:
        if chosen.origin != "environment":
            raise
        variable = environment_variable("profile")
        raise UsageError(f"environment variable {variable}: {error}") from error


def resolve_settings(
    profile: Profile, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Settings:
    """Settle every setting: flag, then environment, then tuned, then profile, then default.

    What `apd tune --write` stored in the profile for this machine's device holds as a whole for
    the strategy that it was found for: it names the strategy unless a flag or the environment
    names another one, with which nothing of it is used.

    Args:
        profile: as `find_profile` gave it.
        flags: what the command line or the caller gave, by parameter name (and strategy, stop,
            a text or a list of them, system, device, dtype, quantize, engine, profile); None
            means not given.
        environ: the process's environment; its empty variables count as not set.

    Raises:
        UnknownParameterError: a flag that the chosen strategy does not have.
        ParameterError: a flag's value out of range.
        UsageError: an unknown strategy by flag; an environment variable's value out of range.
    """
    given = {name: plain_number(value) for name, value in flags.items() if value is not None}
    if isinstance(given.get("stop"), str):  # one text, as other tools take it
        given["stop"] = [given["stop"]]
    layers: list[Layer] = [
        ("flag", _both_models(given)),
        ("environment", _both_models(_from_environment(environ))),
        ("profile", _from_profile(profile)),
    ]
    tuned = tuned_values(profile, layers)
    layers.insert(2, ("tuned", tuned))
    strategy = _pick("strategy", [*layers, ("default", {"strategy": next(iter(STRATEGIES))})])
    if tuned and tuned["strategy"] != strategy.value:
        layers.remove(("tuned", tuned))
    info = strategy_info(strategy.value)
    _check_flags(given, info)
    layers.append(("default", _defaults(info, profile)))
    table = {"profile": _profile_setting(profile, given, environ), "strategy": strategy}
    for name in layers[-1][1]:
        table[name] = _pick(name, layers)
    k, steps = table.get("k"), table.get("steps")
    if k and steps and steps.value is not None and _nearer(k, steps, layers):
        table["steps"] = Setting(None, k.origin)  # K is asked for: no schedule
    return Settings(table)


def _nearer(one: Setting, other: Setting, layers: Sequence[Layer]) -> bool:
    """Whether one setting stands over the other: a flag over what the profile says."""
    order = [origin for origin, _ in layers]
    return order.index(one.origin) < order.index(other.origin)


def check_together(settings: Settings) -> None:
    """Refuse two values of which only one could hold, such as K > M, wherever they come from.

    K stands over a smaller M that was given further from the user: a flag over the profile's.

    Raises:
        ParameterError: naming the one that is too much.
    """
    k, steps, most = (settings.get(name) for name in ("k", "steps", "max_lookahead"))
    if k is None or k.origin == "default":
        return
    if steps is not None and steps.value is not None and _distance(steps) == _distance(k):
        allowed = f"left out where k is given ({k.value}): both say how many tokens a step takes"
        raise ParameterError("steps", steps.value, allowed)
    if most is None or not isinstance(most.value, int) or k.value <= most.value:
        return
    if _distance(most) == _distance(k):
        allowed = f"at most max_lookahead ({most.value}), the positions drafted"
        raise ParameterError("k", k.value, allowed)
    if _distance(most) < _distance(k):
        allowed = f"at least k ({k.value} by the {k.origin}), the tokens taken at a step"
        raise ParameterError("max_lookahead", most.value, allowed)


def _distance(setting: Setting) -> int:
    """How far from the user a setting was given: 0 by a flag, in a chat, for this run."""
    further: tuple[Origin, ...] = ("environment", "tuned", "profile", "default")
    return 1 + further.index(setting.origin) if setting.origin in further else 0


def given_over(common: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What is given for all under what is given for one alone, which says K or steps its way."""
    return {n: v for n, v in common.items() if _OTHER_WAY.get(n) not in own} | dict(own)


def tuned_values(profile: Profile, layers: Sequence[Layer] = ()) -> Mapping[str, Any]:
    """What the profile has been tuned to on the denoiser's device here; empty where it was not."""
    if not profile.tuned:  # most profiles: nobody need ask for the device's name
        return {}
    name = "denoiser_device"
    own: list[Layer] = [*layers, ("default", {name: profile.denoiser.device})]
    return profile.tuned.get(device_name(_pick(name, own).value), {})


def _profile_setting(
    profile: Profile, given: Mapping[str, Any], environ: Mapping[str, str]
) -> Setting:
    chosen = choose_profile(given.get("profile"), environ)
    name = str(profile.path) if profile.source == "file" else profile.name
    # A profile that neither the flag nor the environment named was named by the caller.
    same = str(chosen.value) in (profile.name, str(profile.path)) or chosen.origin == "flag"
    return Setting(name, chosen.origin if same else "flag")


def _pick(name: str, layers: Sequence[Layer]) -> Setting:
    origin, values = next(layer for layer in layers if name in layer[1])
    return Setting(values[name], origin)


def _defaults(info: StrategyInfo, profile: Profile) -> dict[str, Any]:
    """Every setting of this run but the profile and the strategy, in the order shown."""
    values = {f.name: f.default for f in fields(info.params)}
    values |= {f.name: f.default for f in fields(DecodeParams) if f.name in SHARED_FIELDS}
    values |= {"stop": [], "system": None}
    for model in _MODELS:
        if getattr(profile, model) is not None:
            for place in _PLACES:
                values[f"{model}_{place}"] = ModelSection.model_fields[place].default
    values["engine"] = "auto"
    return values


def _from_profile(profile: Profile) -> dict[str, Any]:
    values = dict(profile.decode)
    if profile.chat.system is not None:
        values["system"] = profile.chat.system
    if profile.engine is not None:
        values["engine"] = profile.engine
    for model in _MODELS:
        spec = getattr(profile, model)
        for place in _PLACES:
            if spec is not None and place in spec.model_fields_set:
                values[f"{model}_{place}"] = getattr(spec, place)
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """The APD_* variables that are settings, read and checked, whether or not they are used."""
    values: dict[str, Any] = {}
    for name in dict.fromkeys((*known_decode_keys(), *_TEXTS)):
        variable, text = _variable(name, environ)
        if not text:
            continue
        if name == "stop":
            values[name] = [text]  # as it stands; a variable holds one
        else:
            values[name] = text if name in _TEXTS else _read(name, text)
        try:
            _check(name, values[name])
        except UsageError as error:
            raise UsageError(f"environment variable {variable}: {error}") from error
    return values


def _variable(name: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The variable that is set for a setting, and its text; "" where there is none.

    Raises:
        UsageError: both its names are set, and say different things.
    """
    long = environment_variable(name)
    short = environment_variable(_LETTERS.get(name, name))
    texts = environ.get(long, ""), environ.get(short, "")
    if all(texts) and texts[0] != texts[1]:
        raise UsageError(
            f"environment variables {short}={texts[1]} and {long}={texts[0]} are one setting: "
            "unset one"
        )
    return (long, texts[0]) if texts[0] else (short, texts[1])


def _read(name: str, text: str) -> bool | int | float | str:
    """What a variable's text means; texts that mean nothing ("much") stay for the check."""
    word = text.strip().lower()
    if name in _switches() and word in _WORDS:
        return _WORDS[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return text.strip()


def _switches() -> set[str]:
    """Names of the parameters that are true or false."""
    every = (f for info in STRATEGIES.values() for f in fields(info.params))
    return {f.name for f in every if isinstance(f.default, bool)}


def _both_models(values: Mapping[str, Any]) -> dict[str, Any]:
    """A device, dtype or quantize that is not of one model is of both."""
    spread = {
        f"{model}_{place}": values[place]
        for model in _MODELS
        for place in _PLACES
        if place in values
    }
    return {**spread, **values}


def _check_flags(given: Mapping[str, Any], info: StrategyInfo) -> None:
    known = (*info.own_fields, *SHARED_FIELDS, "stop")
    for name, value in given.items():
        if name not in known and name not in _TEXTS:
            raise UnknownParameterError(name, info.name, known, meant(name, known))
        _check(name, value)


def meant(name: str, known: Iterable[str]) -> str:
    """ "did you mean mixture_weight?" for R, or for a slip of the pen; empty for anything else."""
    known = tuple(known)
    long = _SHORT.get(name)
    return f"did you mean {long}?" if long in known else nearest(name, known)


def _check(name: str, value: Any) -> None:
    """Check anything but free text (system, profile)."""
    if name in known_decode_keys() or name in ("engine", *_PLACES):
        check_value(name, value)
