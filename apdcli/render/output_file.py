"""A file that is written whole or not at all, and found unwritable before the work.

Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from apdcli.errors import OutputError, reason


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
            raise cannot_write(self.path, error) from error

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

    def write(self, content: str | bytes) -> None:
        """Write the content, a text in UTF-8, and put it in its place.

        Raises:
            OutputError: the disk is full, or the like; what was there before is still there.
        """
        data = content
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
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
            raise cannot_write(self.path, error) from error

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


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for a file that could not be written."""
    return OutputError(f"cannot write {path}: {reason(error)}")


def _write_all(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
