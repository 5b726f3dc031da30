"""Every failure a user can meet, and the exit status it ends the process with.

This module knows nothing of terminals: `cli` turns these exceptions into one line on stderr.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class ApdError(Exception):
    """Base of all errors that are reported to the user in one line (exit status 1).

    The message names what is wrong, where, and how to mend it.
    """

    exit_status: ClassVar[int] = 1


class UsageError(ApdError):
    """The command line or the call itself is wrong: unknown flag, value out of range."""

    exit_status: ClassVar[int] = 2


class ParameterError(UsageError, ValueError):
    """A decoding parameter has a value outside its range.

    Attributes:
        field: the parameter's name in the Python API, for example ``recompute_window``.
        value: what was given.
        allowed: the allowed range in words.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(f"{field} = {value!r}: it must be {allowed}")


class UnknownParameterError(UsageError, TypeError):
    """A parameter that the chosen strategy does not have.

    Attributes:
        field: the unknown name.
        strategy: the one that was chosen.
        known: the names that would have been understood.
    """

    def __init__(self, field: str, strategy: str, known: Sequence[str], hint: str = "") -> None:
        """`hint` is what to do about it, where that is known."""
        self.field = field
        self.strategy = strategy
        self.known = tuple(known)
        super().__init__(
            f"strategy {strategy!r} has no parameter {field!r}{f' ({hint})' if hint else ''}; "
            f"it knows: {', '.join(known)}"
        )


class PromptError(ApdError):
    """The prompt cannot be decoded: empty, or too long for the context."""


class ProfileError(ApdError):
    """A profile is missing, is not TOML, or holds a wrong key or value."""


class ModelError(ApdError):
    """A model folder is missing, incomplete, damaged or of an unknown family."""


class DeviceError(ApdError):
    """The device or the dtype asked for is not available on this machine."""


class OutputError(ApdError):
    """A file that was asked for cannot be written."""


class InputError(ApdError):
    """Standard input or an input file cannot be read as text."""


def reason(error: Exception) -> str:
    """Why a file could not be used, in a few words: the system's, with "folder" for directory."""
    text = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return (text[:1].lower() + text[1:]).replace("directory", "folder")
