"""Writes a new profile for the user to edit. Loads no torch."""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import fields
from pathlib import Path

from apdcli.decode.params import SHARED_FIELDS, STRATEGIES, DecodeParams
from apdcli.errors import OutputError, UsageError, reason
from apdcli.load.profile import profile_path, shipped_path, user_profiles_dir

_HEAD = """\
description = "my own profile"

# model: a hub id (org/name), a folder (relative to this file), or the embedded pair.
[denoiser]
model = "embedded:denoiser"
# revision = "main"          # branch, tag or commit of a hub id
# dtype = "auto"             # auto, float32, float16, bfloat16
# device = "auto"            # auto, cpu, cuda, cuda:N, mps
# quantize = "none"          # none, int8, int4 (the extra: pip install 'apdcli[quantize]')

# Strategies that verify need this table; the others do without.
[verifier]
model = "embedded:verifier"

[decode]
"""
_TAIL = """
[chat]
# system = "You are a helpful assistant."
"""
_COMMENTS = {
    "mixture_weight": "R, 0 to 1: higher trusts the denoiser more, faster and less exact",
    "recompute_window": 'W, tokens behind the cursor recomputed each step, or "all"',
    "max_lookahead": 'M, positions drafted each step, or "all"',
    "k": "tokens a step",
    "temperature": "0 is greedy",
    "stop": "texts that end the answer",
    "seed": "same seed, same text; without it new each run",
}
# What to show for a setting whose default is "none": None cannot be written in TOML.
_EXAMPLES = {"top_k": 50, "top_p": 0.95, "steps": 64, "seed": 0}


def template() -> str:
    """A commented profile: the default strategy's values, and those of the others to uncomment."""
    default, *others = STRATEGIES.values()
    names = ", ".join(STRATEGIES)
    lines = [f'strategy = "{default.name}"', f"# strategies: {names}"]
    lines += [_line(f.name, f.default) for f in fields(default.params)]
    shared = [f for f in fields(DecodeParams) if f.name in SHARED_FIELDS]
    # A seed that nobody chose is a new one each run: written down it would be the same for ever.
    lines += [_line(f.name, None if f.name == "seed" else f.default) for f in shared]
    lines.append(_line("stop", None))
    shown = set(default.own_fields)
    for info in others:
        own = [f for f in fields(info.params) if f.name not in shown]
        shown |= set(info.own_fields)
        if own:
            lines.append(f"\n# {info.name}: {info.summary}")
            lines += ["# " + _line(f.name, f.default).removeprefix("# ") for f in own]
    return _HEAD + "\n".join(lines) + "\n" + _TAIL


def _line(name: str, value: object) -> str:
    """`name = value  # comment`; commented out where the default cannot be written."""
    text = _toml(_EXAMPLES.get(name, ["\n\n"]) if value is None else value)
    line = f"{'# ' if value is None else ''}{name} = {text}"
    return f"{line:<28} # {_COMMENTS[name]}" if name in _COMMENTS else line


def _toml(value: object) -> str:
    return json.dumps(value)  # numbers, strings, lists and booleans are written as in JSON


def new_profile(name: str) -> Path:
    """Write a commented profile into the user's folder, whole or not at all.

    Raises:
        UsageError: a name that cannot be a file's name. OutputError: it is there already, or
            cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise UsageError(
            f"{name!r} cannot name a profile: use letters, digits, '.', '_' and '-' only"
        )
    return _write_new(name, template().encode())


def editable_profile(name_or_path: str) -> tuple[Path, bool]:
    """The user's own file of a profile, and whether it was made now: a copy of the shipped one.

    Raises:
        ProfileError: there is no such profile. OutputError: the copy cannot be written.
    """
    path = profile_path(name_or_path)
    if path != shipped_path(name_or_path):
        return path, False
    return _write_new(path.stem, path.read_bytes()), True


def _write_new(name: str, data: bytes) -> Path:
    folder = user_profiles_dir()
    path = folder / f"{name}.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o644)
            _publish(Path(temporary), path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputError(
            f"{path} is there already: choose another name, or 'apd profiles edit {name}'"
        ) from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({reason(error)})") from error
    return path


def _publish(temporary: Path, path: Path) -> None:
    """Give the finished file its name; raises FileExistsError rather than replace another."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        temporary.replace(path)
