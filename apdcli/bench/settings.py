"""What is to be compared: "apd", "left_to_right:K=2", "fast=apd:R=0.9,W=8". Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from apdcli.decode.params import SHARED_FIELDS, STRATEGIES, make_params, strategy_info, value_of
from apdcli.errors import ParameterError, UsageError
from apdcli.load.profile import Profile, check_strategy, check_value, nearest
from apdcli.load.settings import Settings, check_together, given_over, resolve_settings

CAUSAL = "causal_denoiser"
CAUSAL_SUMMARY = "the denoiser run causally, one token a forward: an autoregressive model its size"
SYMBOLS = {"R": "mixture_weight", "W": "recompute_window", "M": "max_lookahead", "K": "k"}
_SPEC = re.compile(r"(?:(?P<label>[^=:,]+)=)?(?P<strategy>[^=:,]+)(?::(?P<values>.*))?")


@dataclass(frozen=True)
class Spec:
    """One setting to be measured.

    Attributes:
        name: what it is called in every table; as it was written unless it was given a name.
        strategy: the strategy's name.
        values: parameters of the strategy, by their full names.
        causal: the verifier is the denoiser itself, looking back only.
    """

    name: str
    strategy: str
    values: Mapping[str, Any]
    causal: bool = False


@dataclass(frozen=True)
class Contender:
    """One setting, resolved."""

    spec: Spec
    settings: Settings


def default_specs(*, verifier: bool) -> tuple[Spec, ...]:
    """What is compared when nothing is named: one token a step first, so that ratios are to it."""
    names = ("left_to_right", "apd", "autoregressive") if verifier else ("left_to_right",)
    return tuple(map(parse_spec, (*names, "threshold")))


def parse_specs(strategies: str | None, settings: Iterable[str]) -> tuple[Spec, ...]:
    """What --strategies (names with commas between) and --setting (one each) name, in order.

    Raises:
        UsageError: an unknown strategy or parameter, a value out of range, a name given twice.
    """
    names = [] if strategies is None else [n.strip() for n in strategies.split(",")]
    specs = [parse_spec(text) for text in (*names, *settings)]
    for index, spec in enumerate(specs):
        if any(spec.name == other.name for other in specs[:index]):
            raise UsageError(
                f"two settings are called {spec.name!r}; name one, as in: fast={spec.name}"
            )
    return tuple(specs)


def parse_spec(text: str) -> Spec:
    """One setting: [NAME=]STRATEGY[:PARAMETER=VALUE,...].

    Raises:
        UsageError: as :func:`parse_specs`.
    """
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"setting {text!r}: write it as STRATEGY or STRATEGY:PARAMETER=VALUE,..., "
            "as in apd:R=0.5,W=16,M=32"
        )
    strategy = match["strategy"].strip()
    known = (*STRATEGIES, CAUSAL)
    if strategy not in known:
        close = nearest(strategy, known) or f"there are: {', '.join(known)}"
        raise UsageError(f"setting {text!r}: unknown strategy {strategy!r}; {close}")
    causal = strategy == CAUSAL
    strategy = "autoregressive" if causal else strategy
    pieces = [p for p in (match["values"] or "").split(",") if p.strip()]
    values = dict(_parameter(piece, strategy, text) for piece in pieces)
    name = (match["label"] or text).strip()
    return Spec(name, strategy, values, causal)


def resolve_spec(
    spec: Spec,
    profile: Profile,
    common: Mapping[str, Any],
    environ: Mapping[str, str],
) -> Settings:
    """Every setting of one spec: its own values, then those given for all, then the profile's.

    Args:
        common: settings given for all; parameters that this strategy lacks are left out.

    Raises:
        UsageError: values that do not go together, or a verifier that the profile lacks.
    """
    own = strategy_info(spec.strategy).own_fields
    foreign = {name for info in STRATEGIES.values() for name in info.own_fields} - set(own)
    given = {name: value for name, value in common.items() if name not in foreign}
    flags = {**given_over(given, spec.values), "strategy": spec.strategy}
    settings = resolve_settings(profile, flags, environ)
    try:
        check_together(settings)
        make_params(spec.strategy, **settings.decode_values())
    except ParameterError as error:
        raise UsageError(f"setting {spec.name!r}: {error}") from error
    if not spec.causal:
        check_strategy(profile, spec.strategy)
    return settings


def check_common(common: Mapping[str, Any], specs: Sequence[Spec]) -> None:
    """Refuse a parameter given for all that none of the settings has.

    Raises:
        UsageError: naming the settings.
    """
    taken = {name for spec in specs for name in strategy_info(spec.strategy).own_fields}
    own = {name for info in STRATEGIES.values() for name in info.own_fields}
    for name in common:
        if name in own and name not in taken:
            shown = ", ".join(spec.name for spec in specs)
            raise UsageError(f"{name} was given, but none of the settings has it: {shown}")


def written(spec: Spec) -> str:
    """The setting as :func:`parse_spec` reads it."""
    strategy = CAUSAL if spec.causal else spec.strategy
    values = ",".join(f"{name}={_text(value)}" for name, value in spec.values.items())
    text = f"{strategy}:{values}" if values else strategy
    named = re.fullmatch(r"[^=:,]+", spec.name)  # else it is called as it was written
    return text if text == spec.name else f"{spec.name}={text}" if named else spec.name


def _parameter(piece: str, strategy: str, text: str) -> tuple[str, Any]:
    name, equals, value = (part.strip() for part in piece.partition("="))
    full = SYMBOLS.get(name, name.replace("-", "_"))
    own = strategy_info(strategy).own_fields
    shared = tuple(n for n in SHARED_FIELDS if n != "seed")
    if not equals:
        raise UsageError(f"setting {text!r}: write {piece.strip()!r} as PARAMETER=VALUE")
    known = (*own, *shared, "engine", "quantize")
    if full not in known:
        close = nearest(full, known) or f"it has: {', '.join(known)}"
        raise UsageError(f"setting {text!r}: {strategy} has no parameter {name!r}; {close}")
    read = value_of(value)
    try:
        check_value(full, read)
    except ParameterError as error:
        raise UsageError(f"setting {text!r}: {name} = {value} must be {error.allowed}") from error
    return full, read


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
