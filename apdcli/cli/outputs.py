"""Names of files that a command is asked to write, found wrong before the work and not after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from apdcli.errors import UsageError
from apdcli.render.output_file import cannot_write

_PICTURES = (".svg", ".html")


def check_picture_name(path: str, help_hint: str, asked_by: str = "--export") -> None:
    """Raise UsageError unless `--export path` names a picture of a known format."""
    if Path(path).suffix.lower() not in _PICTURES:
        raise UsageError(f"{asked_by} {path}: it must end in {' or '.join(_PICTURES)}; {help_hint}")


def check_apart(named: Mapping[str, str | None]) -> None:
    """Raise UsageError where two options name one file: what is written first would be lost.

    Args:
        named: paths by the option that names them; None where it was not given.
    """
    seen: dict[str, str] = {}
    for option, path in named.items():
        if path is None or (os.path.exists(path) and not os.path.isfile(path)):  # noqa: PTH110, PTH113
            continue  # nothing is lost in /dev/null
        other = seen.setdefault(os.path.realpath(path), option)
        if other != option:
            raise UsageError(f"{other} and {option} are one file, {path}: name two")


def check_writable(path: str | Path) -> None:
    """Find out early whether a file can be written, leaving what is there as it is.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            if not os.access(path, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return  # who reads a pipe would see it end
        if path.exists():
            path.open("ab").close()
        else:
            path.open("xb").close()
            path.unlink()
    except OSError as error:
        raise cannot_write(path, error) from error
