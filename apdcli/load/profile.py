"""Profiles: TOML files that name a pair and how to decode with it. Loads no torch."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import platformdirs
import tomli
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apdcli.decode.params import SHARED_FIELDS, STRATEGIES, DecodeParams, strategy_info
from apdcli.errors import ParameterError, ProfileError, UsageError, reason
from apdcli.load.home import home_path, is_file, is_folder
from apdcli.load.hub import is_hub_id

DEFAULT_PROFILE = "demo"
Source = Literal["shipped", "user", "file"]
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantize = Literal["none", "int8", "int4"]
Engine = Literal["auto", "eager", "fast", "graphs"]
# Settings that are one of a few texts: (pattern, the same in words).
_CHOICES = {
    "strategy": ("|".join(STRATEGIES), f"one of {', '.join(STRATEGIES)}"),
    "device": (r"auto|cpu|cuda(:\d+)?|mps", "auto, cpu, cuda, cuda:N or mps"),
    "dtype": ("|".join(get_args(Dtype)), f"one of {', '.join(get_args(Dtype))}"),
    "quantize": ("|".join(get_args(Quantize)), f"one of {', '.join(get_args(Quantize))}"),
    "engine": ("|".join(get_args(Engine)), f"one of {', '.join(get_args(Engine))}"),
}

# Likeness: from where on a name is near, how much less the second may have, that of a beginning.
_NEAR, _AS_NEAR, _BEGUN = 0.6, 0.1, 0.75
_PUT_IT = "write a profile ('apd profiles new NAME') and name the model in it"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(_Table):
    """[denoiser] or [verifier]: which model, in what format, where."""

    model: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    dtype: Dtype = "auto"
    quantize: Quantize = "none"
    device: Annotated[str, Field(pattern=f"^({_CHOICES['device'][0]})$")] = "auto"


class ChatSection(_Table):
    """[chat]: what goes before the user's message."""

    system: str | None = None


class _File(_Table):
    description: str = ""
    denoiser: ModelSection
    verifier: ModelSection | None = None
    decode: dict[str, Any] = {}
    tuned: dict[str, dict[str, Any]] = {}
    chat: ChatSection = ChatSection()
    engine: Engine | None = None


@dataclass(frozen=True)
class Profile:
    """One profile, checked.

    Attributes:
        name: the file's name without .toml.
        path: the file; relative model folders are relative to its folder.
        source: "shipped", "user" (in the platform's config folder) or "file" (named by path).
        verifier: None where the profile has none; strategies that need one refuse.
        decode: the [decode] table as written, every value in range.
        chat: the [chat] table.
        tuned: by a device's name what `apd tune --write` found there: "strategy" and parameters of
            that strategy, every value in range.
        engine: which engine runs the pair; None leaves it to the flag or the default.
    """

    name: str
    path: Path
    source: Source
    description: str
    denoiser: ModelSection
    verifier: ModelSection | None
    decode: Mapping[str, Any]
    chat: ChatSection
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    engine: Engine | None = None

    @property
    def base(self) -> Path:
        """The folder that relative model paths are relative to."""
        return self.path.parent


@dataclass(frozen=True)
class ProfileEntry:
    """A line of `apd profiles list`.

    Attributes:
        problem: what makes the file unusable, or None.
        hides: the shipped profile of the same name that it stands before, or None.
    """

    name: str
    path: Path
    source: Source
    description: str
    problem: str | None = None
    hides: Path | None = None


def check_strategy(profile: Profile, strategy: str) -> None:
    """Refuse a strategy that asks a verifier which the profile does not have.

    Raises:
        UsageError: naming the strategies that work.
    """
    if profile.verifier is None and strategy_info(strategy).needs_verifier:
        others = [name for name, info in STRATEGIES.items() if not info.needs_verifier]
        raise UsageError(
            f"strategy {strategy!r} needs a verifier and profile {profile.name!r} has none; "
            f"strategies that work without: {', '.join(others)}"
        )


@functools.cache
def known_decode_keys() -> tuple[str, ...]:
    """Every key [decode] may have: the shared parameters and those of all strategies."""
    own = (name for info in STRATEGIES.values() for name in info.own_fields)
    return tuple(dict.fromkeys(("strategy", *own, *SHARED_FIELDS, "stop")))


def check_value(name: str, value: Any) -> None:
    """Check one value of [decode], or of a model or engine setting, against its stated range.

    Raises:
        ParameterError: out of range, or no such strategy.
    """
    if name in _CHOICES:
        if not isinstance(value, str) or not re.fullmatch(_CHOICES[name][0], value):
            raise ParameterError(name, value, _CHOICES[name][1])
    elif name == "stop":
        if not isinstance(value, (list, tuple)) or not all(isinstance(s, str) and s for s in value):
            raise ParameterError(name, value, "a list of strings that are not empty")
    elif name in SHARED_FIELDS:
        DecodeParams(**{name: value})
    else:
        for info in STRATEGIES.values():
            if name in info.own_fields:
                info.params(**{name: value})


def find_profile(name_or_path: str | Path) -> Profile:
    """Find a profile by name, or by path (a Path, or with a slash or .toml); read and check it.

    Raises:
        ProfileError: unknown (the nearest names are listed), not TOML (line and column), or with
            an unknown key, a wrong type or a value out of range (file and key path).
    """
    path, source = _locate(name_or_path)
    return _parse(path, source)


def profile_path(name_or_path: str | Path) -> Path:
    """The file of a profile, unread; raises ProfileError when there is none."""
    return _locate(name_or_path)[0]


def list_profiles() -> list[ProfileEntry]:
    """The profiles that names reach, by name: the user's win over shipped ones."""
    found: dict[str, ProfileEntry] = {}
    for name, (path, source) in sorted(_named().items()):
        description, problem = "", None
        try:
            description = _parse(path, source).description
        except ProfileError as error:
            problem = str(error)
        hides = shipped_path(name) if source == "user" else None
        found[name] = ProfileEntry(name, path, source, description, problem, hides)
    return list(found.values())


def user_profiles_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where the user's profiles live; APD_CONFIG_DIR replaces the platform's config folder."""
    own = (os.environ if environ is None else environ).get("APD_CONFIG_DIR")
    config = home_path(own) if own else platformdirs.user_config_path("apd", False)
    return config / "profiles"


def shipped_profiles_dir() -> Path:
    """Where the package's own profiles live: in the wheel, or beside the package in a clone."""
    package = Path(__file__).resolve().parents[1]
    carried = package / "profiles"
    return carried if carried.is_dir() else package.parent / "profiles"


def shipped_path(name: str) -> Path | None:
    """The file of the shipped profile of that name, if there is one."""
    path = shipped_profiles_dir() / f"{name}.toml"
    return path if is_file(path) else None


def _named() -> dict[str, tuple[Path, Source]]:
    folders: tuple[tuple[Path, Source], ...] = (
        (shipped_profiles_dir(), "shipped"),
        (user_profiles_dir(), "user"),
    )
    return {
        path.stem: (path, source)
        for folder, source in folders
        if is_folder(folder)
        for path in sorted(folder.glob("*.toml"))
    }


def _locate(name_or_path: str | Path) -> tuple[Path, Source]:
    name = str(name_or_path)
    if isinstance(name_or_path, Path) or name.endswith(".toml") or "/" in name or os.sep in name:
        path = home_path(name)
        if not is_file(path):
            raise ProfileError(_not_a_profile(name, path))
        return path, "file"
    named = _named()
    if name in named:
        return named[name]
    if is_folder(Path(name)):
        raise ProfileError(_not_a_profile(name, Path(name)))
    hint = nearest(name, named) or "there are: " + ", ".join(sorted(named))
    raise ProfileError(
        f"no profile is called {name!r}; {hint} (your own live in {user_profiles_dir()})"
    )


def _not_a_profile(name: str, path: Path) -> str:
    """Why nothing can be read there, with what to do about it where a model was meant."""
    if is_folder(path):
        return f"{path} is a folder, not a profile; {_PUT_IT}"
    if not is_hub_id(name):
        return f"profile file {path} not found"
    for known, (file, source) in sorted(_named().items()):
        with contextlib.suppress(ProfileError):
            if _parse(file, source).denoiser.model == name:
                return (
                    f"{name} is a model, not a profile; the profile {known!r} runs it: -p {known}"
                )
    return f"profile file {path} not found; if that is a model of the hub, {_PUT_IT}"


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean a?" for the name most like `name`; empty when none is.

    A second one is named only if it is about as near. Dashes before a name and capitals do not
    count: all options begin alike.
    """
    found = sorted((-_likeness(name, other), other) for other in known)[:2]
    least = max(_NEAR, -found[0][0] - _AS_NEAR) if found else _NEAR
    close = [other for likeness, other in found if -likeness >= least]
    return f"did you mean {' or '.join(close)}?" if close else ""


def _likeness(name: str, other: str) -> float:
    """0 to 1; a beginning of a name is like it, however short it is."""
    name, other = (text.lstrip("-").casefold() for text in (name, other))
    ratio = difflib.SequenceMatcher(None, other, name).ratio()
    return max(ratio, _BEGUN) if len(name) > 1 and other.startswith(name) else ratio


def _parse(path: Path, source: Source) -> Profile:
    table = _read_toml(path)
    try:
        data = _File.model_validate(table)
    except ValidationError as error:
        raise ProfileError(f"{path}: {_explain(error)}") from error
    for name, value in data.decode.items():
        _check_decode(path, name, value)
    for device, values in data.tuned.items():
        _check_tuned(path, device, values)
    return Profile(
        name=path.stem,
        path=path,
        source=source,
        description=data.description,
        denoiser=data.denoiser,
        verifier=data.verifier,
        decode=data.decode,
        chat=data.chat,
        tuned=data.tuned,
        engine=data.engine,
    )


def _check_decode(path: Path, name: str, value: object) -> None:
    _check_key(path, "decode", name, value, known_decode_keys())


def _check_tuned(path: Path, device: str, values: Mapping[str, Any]) -> None:
    """Check a table of tuned settings: a strategy, and parameters of that one alone."""
    table = f'tuned."{device}"'
    if "strategy" not in values:
        raise ProfileError(f"{path}: the key {table}.strategy is missing")
    _check_key(path, table, "strategy", values["strategy"], ("strategy",))
    known = ("strategy", *strategy_info(values["strategy"]).own_fields)
    for name, value in values.items():
        _check_key(path, table, name, value, known)


def _check_key(path: Path, table: str, name: str, value: object, known: Sequence[str]) -> None:
    if name not in known:
        raise ProfileError(f"{path}: {_unknown_key(f'{table}.{name}', name, known)}")
    try:
        check_value(name, value)
    except ParameterError as error:
        raise ProfileError(f"{path}: {table}.{error}") from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read ({reason(error)})") from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: not UTF-8 text (byte {error.start})") from error
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        message = str(error)
        at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
        lines = text.split("\n")
        line, column = (at.group(1), at.group(2)) if at else (None, None)
        raise ProfileError(
            f"{path}, line {line or len(lines)}, column {column or len(lines[-1]) + 1}: "
            f"not valid TOML: {message[: at.start()] if at else message}"
        ) from error


def _explain(error: ValidationError) -> str:
    """The first thing wrong, as `key.path = value ...`."""
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    key = ".".join(loc)
    if first["type"] == "extra_forbidden":
        sections: list[tuple[str, type[_Table]]] = [
            ("denoiser", ModelSection),
            ("verifier", ModelSection),
            ("chat", ChatSection),
        ]
        table = dict(sections).get(loc[0], _File) if len(loc) > 1 else _File
        return _unknown_key(key, loc[-1], tuple(table.model_fields))
    if first["type"] == "missing":
        what = f"the table [{key}]" if len(loc) == 1 else f"the key {key}"
        return f"{what} is missing"
    wanted = first["msg"].removeprefix("Input should be ").replace("a valid ", "a ")
    if "dictionary" in wanted:
        wanted = f"a table, [{key}]"
    elif loc[-1] in _CHOICES:
        wanted = _CHOICES[loc[-1]][1]
    return f"{key} = {first['input']!r} is wrong: it must be {wanted}"


def _unknown_key(path: str, name: str, known: Sequence[str]) -> str:
    return f"unknown key {path}; {nearest(name, known) or 'known are: ' + ', '.join(known)}"
