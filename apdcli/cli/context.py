"""The process as commands see it: streams, environment, signals; injected, so tests can be any.

Knows no command and no error.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TextIO

from apdcli.cli.signals import Signals
from apdcli.errors import OutputError
from apdcli.render.terminal import is_terminal


@dataclass
class Context:
    """Standard streams (None where the process was started with one closed) and environment.

    Attributes:
        debug: show tracebacks; set by `apd --debug`.
    """

    stdin: TextIO | None
    stdout: TextIO | None
    stderr: TextIO | None
    environ: Mapping[str, str]
    signals: Signals = field(default_factory=Signals)
    debug: bool = False

    @classmethod
    def of_process(cls) -> Context:
        """The process's own."""
        return cls(sys.stdin, sys.stdout, sys.stderr, os.environ)

    @property
    def out(self) -> TextIO:
        """Standard output.

        Raises:
            OutputError: it is closed.
        """
        if self.stdout is None:
            raise OutputError(
                "standard output is closed; -o FILE, where a command has it, writes to a file"
            )
        return self.stdout

    def print(self, text: str) -> None:
        """Write a line to standard output: exact bytes, or what a terminal can show."""
        out = self.out
        if is_terminal(out):
            encoding = out.encoding or "utf-8"
            out.write(_safe(text).encode(encoding, "replace").decode(encoding) + "\n")
        elif (raw := getattr(out, "buffer", None)) is not None:
            out.flush()
            raw.write((text + "\n").encode("utf-8", "surrogateescape"))
        else:
            out.write(text + "\n")
        out.flush()

    def say(self, text: str) -> None:
        """Write one line to standard error; a standard error that is gone is no reason to fail."""
        self.tell(" ".join(text.splitlines()) + "\n", foreign=True)

    def remark(self, text: str) -> None:
        """Write one line to standard error, dim where it is a terminal."""
        from apdcli.render.remark import remark  # late: most command lines have nothing to remark

        line = _safe(" ".join(text.splitlines()))
        self.tell(remark(line, self.stderr, self.environ) + "\n")

    def tell(self, text: str, *, foreign: bool = False) -> None:
        """Write to standard error: as it is, or made safe where it may hold foreign text."""
        if self.stderr is None:
            return
        text = _safe(text) if foreign else text
        with contextlib.suppress(OSError, ValueError):
            encoding = getattr(self.stderr, "encoding", None) or "utf-8"
            self.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self.stderr.flush()

    def silence(self) -> bool:
        """Let nothing more be written where nobody reads: the interpreter flushes once more.

        Returns whether everything written so far has arrived.
        """
        arrived = True
        for stream in (self.stdout, self.stderr):
            if stream is None:
                continue
            try:
                stream.flush()
            except (OSError, ValueError):
                arrived = False
                with contextlib.suppress(OSError, ValueError):
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, stream.fileno())
                    os.close(nowhere)
        return arrived


def _safe(text: str) -> str:
    """Text that cannot drive a terminal: a file's name or its content is not to be trusted."""
    if text.replace("\n", "").isprintable():
        return text
    from apdcli.render.safe import visible  # late: most command lines print nothing foreign

    return visible(text)
