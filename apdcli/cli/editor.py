"""Opens the user's editor on a file and waits. Knows no command."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from apdcli.cli.context import Context
from apdcli.errors import UsageError

_EDITOR = "notepad" if os.name == "nt" else "vi"


def chosen_editor(environ: Mapping[str, str]) -> str | None:
    """The command of $VISUAL, or of $EDITOR; None where neither is set."""
    return environ.get("VISUAL") or environ.get("EDITOR") or None


def run_editor(path: Path, context: Context) -> None:
    """Let the user change a file.

    Raises:
        UsageError: the editor cannot be started, or says that it failed.
    """
    command = chosen_editor(context.environ) or _EDITOR
    try:
        process = subprocess.Popen([*shlex.split(command), str(path)])
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot start the editor {command!r}: set $EDITOR") from error
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:  # that key was the editor's
            continue
    context.signals.rearm()
    if status != 0:
        raise UsageError(f"the editor {command!r} ended with status {status}")
