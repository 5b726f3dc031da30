"""A file that is written whole or not at all, and found unwritable before the work.

Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from apdcli.errors import OutputError, reason

_DESCRIPTORS = re.compile(r"/dev/fd|/proc/\d+(/task/\d+)?/fd")  # folders of open files
_MOST_LINKS = 40


class OutputFile:
    """A file that gets its content at the end, whole or not at all; a context manager.

    Opening tries everything that may fail early: the content goes to a new file beside the target,
    which takes its place when it is complete. Devices, pipes and files in a folder that takes no
    new ones are written in place. What is open already (/dev/stdout, /dev/fd/3, the /dev/fd/63 of
    a shell's `>(command)`) is written where it stands, whatever it is.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises:
        OutputError: nothing can be written there.
        """
        self.path = Path(path)
        self._target = Path(os.path.realpath(self.path))  # a link stays a link
        self._temporary: Path | None = None
        self._given: int | None = None
        try:
            self._given = given_descriptor(self.path)
            if self._given is None:
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
        if self._given is not None:
            os.close(self._given)
            self._given = None

    def write(self, content: str | bytes) -> None:
        """Write the content, a text in UTF-8, and put it in its place.

        Raises:
            OutputError: the disk is full, or the like; what was there before is still there.
        """
        data = content
        if isinstance(data, str):
            data = data.encode("utf-8", "surrogateescape")
        try:
            if self._given is not None:
                write_all(self._given, data)
                return
            if self._temporary is None:
                with self._target.open("wb", buffering=0) as file:
                    write_all(file.fileno(), data)
                return
            with self._temporary.open("wb", buffering=0) as file:
                write_all(file.fileno(), data)
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


def given_descriptor(path: str | Path) -> int | None:
    """A descriptor to write to where the path names an open file; None where it names another.

    It shares the place and the way (appending or not) in which the open file is written: opened
    anew by that path, a file would be written from its beginning. Whoever asks closes it.

    Raises:
        OSError: nobody gave that file to this process, or it is open for reading only.
    """
    own = _open_file(os.fspath(path))
    if own is None:
        return None
    number, process = own
    if process != os.getpid():
        return os.open(path, os.O_WRONLY | os.O_APPEND)
    # What Python opens for itself is not inheritable; what a shell gave is.
    if number > 2 and not os.get_inheritable(number):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    copy = os.dup(number)
    import fcntl  # where there are such paths, there is this

    if fcntl.fcntl(copy, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        os.close(copy)
        raise OSError(errno.EBADF, "it is open for reading only")
    return copy


def _open_file(path: str) -> tuple[int, int] | None:
    """The number and the process of an open file that the path leads to, by links or itself."""
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)  # of no folder: of the current one
        if _DESCRIPTORS.fullmatch(folder) and name.isdecimal():
            process = folder.split("/")[2]
            return int(name), int(process) if process.isdecimal() else os.getpid()
        path = os.path.join(folder, name)  # noqa: PTH118
        if not os.path.islink(path):  # noqa: PTH114
            return None
        path = os.path.join(folder, os.readlink(path))  # noqa: PTH115, PTH118
    return None


def write_all(descriptor: int, data: bytes) -> None:
    """Write the bytes to an open file, however many it takes at once; raises OSError."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _usual_mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
