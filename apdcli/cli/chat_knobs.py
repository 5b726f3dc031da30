"""The settings of a conversation, which may change between turns: /set, under the flags' names.

Loads no torch. Knows no terminal.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from apdcli.cli import options
from apdcli.cli.report import SYMBOLS
from apdcli.decode.params import STRATEGIES, make_params
from apdcli.errors import ParameterError, UsageError
from apdcli.load.profile import (
    check_strategy,
    check_value,
    find_profile,
    known_decode_keys,
    nearest,
)
from apdcli.load.settings import (
    Origin,
    Setting,
    Settings,
    check_together,
    given_over,
    resolve_settings,
)

if TYPE_CHECKING:
    from apdcli.chat.sessions import Session
    from apdcli.load.profile import Profile

UNSET = ("default", "off", "none")  # /set NAME off: as if it had never been set
_FIXED = ("device", "dtype", "quantize", "engine")  # for the run
_NOT_SET = ("profile", "system", "option", *_FIXED)  # the first two have commands


def _spellings() -> dict[str, str]:
    """Every name that /set takes, as the setting's: R, mixture-weight and mixture_weight."""
    names: dict[str, str] = {}
    for flag in options.FLAGS:
        if flag.name in options.SETTINGS and flag.name not in _NOT_SET:
            names |= {written.lstrip("-"): flag.name for written in flag.flags}
    names |= {name.replace("_", "-"): name for name in options.OWN_FIELDS}
    return names | {name: name for name in names.values()}


class Knobs:
    """What the user chose, over what environment and profile say.

    Attributes:
        profile: whose values are under it.
        flags: set by flag, /set or the session, by parameter name; those of other strategies
            wait.
        origins: which of these are not by flag.
    """

    def __init__(
        self,
        profile: Profile,
        flags: Mapping[str, Any],
        environ: Mapping[str, str],
        *,
        kept: Iterable[str] = (),
    ) -> None:
        """Args: `kept` names the flags that come from the session."""
        self.profile = profile
        self.flags = dict(flags)
        self.origins: dict[str, Origin] = dict.fromkeys(kept, "session")
        self._environ = environ
        self._spellings = _spellings()

    def settings(self, **own: Any) -> Settings:
        """Every setting of the next answer; `own` are set for it alone.

        Raises:
            UsageError: values that do not go together, or a strategy without its verifier.
        """
        settings = self._settled(self.profile, given_over(self.flags, own))
        for name in own:
            _check_known(name, settings)
        return settings

    def get(self, name: str) -> Setting:
        """What one setting is.

        Raises:
            UsageError: unknown name, or a parameter of another strategy.
        """
        field, settings = self.field(name), self.settings()
        _check_known(field, settings)
        return settings[field]

    def set(self, name: str, text: str) -> Setting:
        """Change one setting; what it is now.

        Raises:
            UsageError: unknown name, value out of range; nothing is changed then.
        """
        field = self.field(name)
        changed = dict(self.flags)
        if text.lower() in UNSET:
            changed.pop(field, None)
        else:
            changed[field] = self._value(field, text)
        _check_known(field, self._settled(self.profile, changed))
        self.flags = changed
        self.origins[field] = "set"
        return self.get(name)

    def take_over(self, settings: Mapping[str, Any], stay: Iterable[str]) -> None:
        """Put another session's settings in place of all that were set but those that `stay`.

        Raises:
            UsageError: they do not go together, or not with the profile; nothing is changed then.
        """
        kept = {name: self.flags[name] for name in stay if name in self.flags}
        flags = {**kept, **settings}
        self._settled(self.profile, flags)
        self.flags = flags
        self.origins = {n: o for n, o in self.origins.items() if n in kept}
        self.origins.update(dict.fromkeys(settings, "session"))

    def change_profile(self, name: str) -> Settings:
        """Put another profile under what was set; nothing is changed if it does not fit.

        Raises:
            ProfileError: unknown or damaged. UsageError: it cannot do what was set.
        """
        profile = find_profile(name)
        flags = {**self.flags, "profile": name}
        settings = self._settled(profile, flags)
        self.profile, self.flags = profile, flags
        self.origins["profile"] = "set"
        return settings

    def names(self) -> list[str]:
        """What /set offers: the short names, then the long ones, of the strategy in use."""
        strategy = self.settings().strategy
        own = STRATEGIES[strategy].own_fields
        short = [symbol for field, symbol in SYMBOLS.items() if field in own]
        long = [name.replace("_", "-") for name in own if name not in SYMBOLS]
        return [*short, "temperature", "max-tokens", "seed", "strategy", *long, *_OTHERS]

    def values(self) -> Mapping[str, Callable[[], Iterable[str]]]:
        """The words that settings can be, where they are few."""
        windows = {name: lambda: ["all"] for name in ("W", "block-length")}
        words: dict[str, Callable[[], Iterable[str]]] = {**windows, "strategy": self._strategies}
        return {**words, "M": lambda: ["all", "auto"], "markdown": lambda: ["on", "off"]}

    def _strategies(self) -> list[str]:
        alone = self.profile.verifier is None
        return [n for n, info in STRATEGIES.items() if not (alone and info.needs_verifier)]

    def field(self, name: str) -> str:
        """The setting that a name means; raises UsageError with the nearest ones."""
        written = name.lstrip("-")
        by_case = {spelling.lower(): field for spelling, field in self._spellings.items()}
        field = self._spellings.get(written) or by_case.get(written.lower())
        if field is not None:
            return field
        if written.lower().replace("_", "-").split("-")[-1] in _FIXED:  # denoiser-dtype, too
            raise UsageError(f"{name} cannot change while the models are loaded; start apd anew")
        offered = [*self.names(), "system", "profile"]
        hint = nearest(written, {*offered, *self._spellings})
        raise UsageError(f"nothing is called {name}; {hint or 'there are: ' + ', '.join(offered)}")

    def _value(self, field: str, text: str) -> Any:
        known = field in options.SETTINGS
        given = {field: [text] if field == "stop" else text} if known else {}
        given |= {} if known else {"option": [f"{field}={text}"]}
        try:
            return options.read_values(given, "chat")[field]
        except UsageError as error:
            hint = f"; {options.help_hint('chat')}"
            cause = error.__cause__
            if isinstance(cause, ParameterError):
                raise UsageError(f"{shown(field)} {text}: it must be {cause.allowed}") from cause
            raise UsageError(str(error).removesuffix(hint)) from error

    def _settled(self, profile: Profile, flags: Mapping[str, Any]) -> Settings:
        shared = {n: v for n, v in flags.items() if n not in options.OWN_FIELDS}
        strategy = resolve_settings(profile, shared, self._environ).strategy
        own = {n: flags[n] for n in STRATEGIES[strategy].own_fields if n in flags}
        settings = resolve_settings(profile, {**shared, **own}, self._environ)
        check_strategy(profile, strategy)
        try:
            check_together(settings)
            make_params(strategy, **settings.decode_values())
        except ParameterError as error:
            raise UsageError(
                f"{shown(error.field)} {error.value}: it must be {error.allowed}"
            ) from error
        if settings["seed"].origin == "default" and settings.draws:
            settings = with_seed(settings, fresh_seed(), "default")
        return Settings({name: self._told(name, setting) for name, setting in settings.items()})

    def _told(self, name: str, setting: Setting) -> Setting:
        """A setting that counts as given by flag, with who gave it."""
        by = self.origins.get(name)
        return Setting(setting.value, by) if by and setting.origin == "flag" else setting


_OTHERS = ("top-p", "top-k", "stop", "markdown")


def _check_known(name: str, settings: Settings) -> None:
    """Refuse a parameter of another strategy than the one in use."""
    if name not in settings:
        own = STRATEGIES[settings.strategy].own_fields
        takes = f"which takes {', '.join(map(shown, own))}" if own else "which has none"
        raise UsageError(f"{shown(name)} does not go with {settings.strategy}, {takes}")


def settings_in(session: Session, but: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The settings that a session was held with; what no longer is one is left out.

    Args:
        but: what was given by flag, in place of what the session has.

    Raises:
        UsageError: a value out of its range, as only another hand can have written it.
    """
    kept = {n: v for n, v in session.settings.items() if n in known_decode_keys()}
    kept = given_over(kept, but or {})
    kept = {n: v for n, v in kept.items() if n not in (but or {})}
    for name, value in kept.items():
        try:
            check_value(name, value)
        except ParameterError as error:
            flag = options.flag_of(name)
            raise UsageError(
                f"session {session.name}: {error}; {flag} on the command line stands over it"
            ) from error
    return kept


def fresh_seed() -> int:
    """A seed nobody chose."""
    return secrets.randbelow(2**32)


def with_seed(settings: Settings, seed: int, origin: Any = "flag") -> Settings:
    """The same settings with another seed."""
    return Settings({**settings.table, "seed": Setting(seed, origin)})


def shown(field: str) -> str:
    """How a setting is called in the chat: R, or max-tokens."""
    return SYMBOLS.get(field) or field.replace("_", "-")
