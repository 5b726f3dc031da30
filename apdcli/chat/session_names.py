"""What a conversation may be called on disk. Knows no folder."""

from __future__ import annotations

import re

from apdcli.errors import UsageError

LONGEST = 100
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # on Windows
_AUTOMATIC = re.compile(r"\d{4}-\d\d-\d\d-\d{6}(-\d+)?")  # as fresh_name makes them


def check_name(name: str) -> str:
    """The name, if it can be a file's on every platform and nowhere but in the folder.

    Raises:
        UsageError: it cannot.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot be a session's name: use up to {LONGEST} ASCII letters, digits, "
            "- _ and ., a letter or digit first, no . last, and no device's name such as con"
        )
    return name


def is_automatic(name: str) -> bool:
    """Whether a session has its name from the time, and not from the user."""
    return bool(_AUTOMATIC.fullmatch(name))


def is_name(name: str) -> bool:
    """Whether a text can be a session's name."""
    return bool(_NAME.fullmatch(name)) and not name.endswith(".") and not _RESERVED.fullmatch(name)
