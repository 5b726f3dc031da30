"""Files that a command was asked to write, found unwritable before the work and not after it.

Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from apdcli.errors import OutputError, UsageError, reason

_PICTURES = (".svg", ".html")


class OutputFile:
    """A file that gets its content at the end, whole or not at all; a context manager.

    Opening tries everything that may fail early: the content goes to a new file beside the target,
    which takes its place when it is complete. Devices, pipes and files in a folder that takes no
    new ones are written in place.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises:
        OutputError: nothing can be written there.
        """
        self.path = Path(path)
        self._target = Path(os.path.realpath(self.path))  # a link stays a link
        self._temporary: Path | None = None
        try:
            self._prepare()
        except OSError as error:
            raise _failed(self.path, error) from error

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Write the content and put it in its place.

        Raises:
            OutputError: the disk is full, or the like; what was there before is still there.
        """
        data = text.encode("utf-8", "surrogateescape")
        try:
            if self._temporary is None:
                with self._target.open("wb", buffering=0) as file:
                    _write_all(file.fileno(), data)
                return
            with self._temporary.open("wb", buffering=0) as file:
                _write_all(file.fileno(), data)
            self._temporary.replace(self._target)
            self._temporary = None
        except OSError as error:
            raise _failed(self.path, error) from error

    def _prepare(self) -> None:
        exists = self._target.exists()
        if exists and not stat.S_ISREG(self._target.stat().st_mode):
            if self._target.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            if not os.access(self._target, os.W_OK):
                raise PermissionError(13, "permission denied")
            return
        if exists:
            self._target.open("r+b").close()
        try:
            descriptor, name = tempfile.mkstemp(
                dir=self._target.parent, prefix=f".{self._target.name}."
            )
        except OSError:
            if exists:
                return
            raise
        os.close(descriptor)
        self._temporary = Path(name)
        self._temporary.chmod(self._target.stat().st_mode & 0o7777 if exists else _usual_mode())


def check_picture_name(path: str, help_hint: str, asked_by: str = "--export") -> None:
    """Raise UsageError unless `--export path` names a picture of a known format."""
    if not path.lower().endswith(_PICTURES):
        raise UsageError(f"{asked_by} {path}: it must end in {' or '.join(_PICTURES)}; {help_hint}")


def check_writable(path: str | Path) -> None:
    """Find out early whether a file can be written, leaving what is there as it is.

    Raises:
        OutputError: it cannot.
    """
    path = Path(path)
    try:
        if path.exists():
            path.open("ab").close()
        else:
            path.open("xb").close()
            path.unlink()
    except OSError as error:
        raise _failed(path, error) from error


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason(error)}")


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
