"""Writes a new profile for the user to edit. Loads no torch."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from apdcli.errors import OutputError, UsageError
from apdcli.load.profile import user_profiles_dir

TEMPLATE = """\
description = "my own profile"

# model: a hub id (org/name), a folder (relative to this file), or the embedded pair.
[denoiser]
model = "embedded:denoiser"
# revision = "main"      # branch, tag or commit of a hub id
# dtype = "auto"         # auto, float32, float16, bfloat16
# device = "auto"        # auto, cpu, cuda, cuda:N, mps

# Without a verifier only strategy = "left_to_right" can run.
[verifier]
model = "embedded:verifier"

[decode]
strategy = "apd"         # apd, left_to_right, autoregressive
mixture_weight = 0.7     # R, 0 to 1: higher trusts the denoiser more, faster and less exact
recompute_window = 16    # W, tokens behind the cursor recomputed each step, or "all"
max_lookahead = 100      # M, positions drafted each step, or "all"
max_tokens = 256
temperature = 0.0        # 0 is greedy
# top_k = 50
# top_p = 0.95
# seed = 0
# stop = ["\\n\\n"]        # texts that end the answer
# k = 1                  # tokens a step, for left_to_right

[chat]
# system = "You are a helpful assistant."
"""


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
    folder = user_profiles_dir()
    path = folder / f"{name}.toml"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(TEMPLATE)
            Path(temporary).chmod(0o644)
            _publish(Path(temporary), path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except FileExistsError as error:
        raise OutputError(f"{path} is there already: edit it, or choose another name") from error
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
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
