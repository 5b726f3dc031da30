"""Paths that begin with ~, the home folder, and texts that may be no path at all."""

from __future__ import annotations

import os
from pathlib import Path


def home_path(path: str | Path) -> Path:
    """The path with ~ written out; as it stands where nobody has such a home, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises RuntimeError


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name too long for any is none."""
    return os.path.isfile(path)  # noqa: PTH113 - that of Path raises OSError


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name too long for any is none."""
    return os.path.isdir(path)  # noqa: PTH112 - that of Path raises OSError


def exists(path: Path) -> bool:
    """Whether there is anything; nothing has a name too long for any."""
    return os.path.exists(path)  # noqa: PTH110 - that of Path raises OSError
