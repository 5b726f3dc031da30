"""Paths that begin with ~, the home folder."""

from __future__ import annotations

import os
from pathlib import Path


def home_path(path: str | Path) -> Path:
    """The path with ~ written out; as it stands where nobody has such a home, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - that of Path raises RuntimeError
