"""Text files in a message: read whole, checked, and put behind what was typed. Knows no terminal.

`@notes.txt` at the start of a word adds that file; `@"my notes.txt"` one with spaces in its name.
`\\@notes.txt` is the word @notes.txt.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from apdcli.errors import InputError, reason
from apdcli.load.home import home_path

MOST_BYTES = 256 * 2**10
_AT = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|(\S+))')
_BEGUN = re.compile(r'(?<!\S)@("[^"\n]*|[^\s"]\S*|)$')  # the same, as far as it is typed
_ESCAPED = re.compile(r"(?<!\S)\\@")
_TRAILING = ".,;:!?)]}'"  # punctuation of the sentence, unless a file is really called so


@dataclass(frozen=True)
class TextFile:
    """A file that was read.

    Attributes:
        name: as it was written in the message.
        text: its content.
    """

    name: str
    text: str

    @property
    def described(self) -> str:
        """Its name and size: notes.txt (74 bytes)."""
        return f"{self.name} ({len(self.text.encode('utf-8', 'replace')):,} bytes)"


def read_text_file(name: str) -> TextFile:
    """Read a file that goes into a message.

    Args:
        name: its path; ~ is the home folder.

    Raises:
        InputError: not there, not a regular file, over 256 KiB, or not text (UTF-8, no NUL).
    """
    path = home_path(name)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "not a regular file"
            raise InputError(f"{name} is {kind}; only text files can be added")
        if found.st_size > MOST_BYTES:
            raise InputError(
                f"{name} has {found.st_size:,} bytes; at most {MOST_BYTES:,} "
                f"({MOST_BYTES >> 10} KiB) can be added"
            )
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {name}: {reason(error)}") from error
    except ValueError as error:  # a NUL in the name
        raise InputError(f"cannot read {name!r}: not a file's name") from error
    if len(data) > MOST_BYTES:
        raise InputError(f"{name} has more than {MOST_BYTES:,} bytes, the most that can be added")
    if b"\0" in data:
        raise InputError(f"{name} is not text: byte {data.index(0)} is NUL")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}"
        ) from error
    if not text.strip():
        raise InputError(f"{name} is empty")
    return TextFile(name, text.replace("\r\n", "\n"))


def files_in(text: str) -> list[TextFile]:
    """The files that a message names by @path, each once.

    A word like @mia or @pytest.fixture that is no file stays a word.

    Raises:
        InputError: a file that is there, or a name in quotes, cannot be read.
    """
    found: dict[str, TextFile] = {}
    for match in _AT.finditer(text):
        quoted, word = match.groups()
        name = quoted or _file_name(word)
        if name is not None and name not in found:
            try:
                found[name] = read_text_file(name)
            except InputError as error:
                raise InputError(f"{error}; \\{match[0]} sends just the word") from error
    return list(found.values())


def begun_path(text: str) -> str | None:
    """The path at the end of a text that an @ begins, its open quote with it; None without one."""
    found = _BEGUN.search(text)
    return None if found is None else found[1]


def joined(files: Iterable[TextFile]) -> list[TextFile]:
    """The files, each once: one that was read again stands for what was read before."""
    return list({home_path(file.name).absolute(): file for file in files}.values())


def no_files_in(text: str) -> list[str]:
    """The words after an @ that are no files, each once: they stay words."""
    words = [word for _, word in _AT.findall(text) if word and _file_name(word) is None]
    return list(dict.fromkeys(word.rstrip(_TRAILING) for word in words))


def with_files(text: str, files: list[TextFile]) -> str:
    """The message that the model gets: what was typed, then each file under its name."""
    text = _ESCAPED.sub("@", text)
    return "\n\n".join([text, *(f"{file.name}:\n{file.text.rstrip()}" for file in files)]).strip()


def _file_name(word: str) -> str | None:
    """The path in a word after @, or None for a word that only begins with @."""
    bare = word.rstrip(_TRAILING)
    return next((name for name in (word, bare) if name and _exists(name)), None)


def _exists(name: str) -> bool:
    try:
        home_path(name).stat()
    except PermissionError:  # perhaps: reading it tells
        return True
    except (OSError, ValueError):  # too long, a NUL
        return False
    return True
