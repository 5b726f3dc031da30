"""The settings of filling gaps: those of decoding, with a strategy that can. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apdcli.decode.checks import plain_number
from apdcli.decode.gaps import FILLING, GAP, MARKER, check_gap
from apdcli.decode.params import STRATEGIES
from apdcli.errors import UsageError
from apdcli.load.profile import Profile
from apdcli.load.settings import (
    Origin,
    Setting,
    Settings,
    check_together,
    environment_variable,
    resolve_settings,
)

_DEFAULT = "dico" if "dico" in FILLING else "confidence"
_MEANINGLESS = {  # a gap has its length, nothing ends it early, and the text has no roles
    "max_tokens": "gap says how many tokens each gap takes",
    "stop": "a gap is filled to its end",
    "system": "the text is completed as it stands",
}


def fill_settings(
    profile: Profile, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> Settings:
    """As `resolve_settings`, with marker and gap, and with a strategy that can fill gaps.

    The profile's strategy is taken where it can, else the default; one that was asked for by flag
    or environment and cannot is refused.

    Raises:
        UsageError: a strategy that cannot fill gaps, a setting that means nothing here.
        UnknownParameterError, ParameterError, ProfileError: as `resolve_settings`.
    """
    given = {name: plain_number(value) for name, value in flags.items() if value is not None}
    own = {
        name: Setting(given.pop(name), "flag") if name in given else Setting(default, "default")
        for name, default in (("marker", MARKER), ("gap", GAP))
    }
    check_gap(own["marker"].value, own["gap"].value)
    for name, why in _MEANINGLESS.items():
        if name in given:
            raise UsageError(f"filling gaps takes no {name}: {why}")
    strategy = _strategy(profile, given, environ)
    resolved = resolve_settings(profile, {**given, "strategy": strategy.value}, environ)
    check_together(resolved)
    table = {n: setting for n, setting in resolved.items() if n not in _MEANINGLESS}
    return Settings({**table, "strategy": strategy, **own})


def _strategy(profile: Profile, given: Mapping[str, Any], environ: Mapping[str, str]) -> Setting:
    asked: tuple[tuple[Origin, Any], ...] = (
        ("flag", given.get("strategy")),
        ("environment", environ.get(environment_variable("strategy"))),
    )
    for origin, name in asked:
        if name and name in STRATEGIES and name not in FILLING:
            raise UsageError(
                f"strategy {name} ({origin}) writes from left to right and cannot fill gaps; "
                f"those that can: {', '.join(FILLING)}"
            )
        if name:
            return Setting(name, origin)
    if (own := profile.decode.get("strategy")) in FILLING:
        return Setting(own, "profile")
    return Setting(_DEFAULT, "default")
