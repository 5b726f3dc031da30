"""What the view must know of the terminal, injected so that tests can be any terminal.

Knows nothing of events or text.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

Size = Callable[[], tuple[int, int]]


class Output(Protocol):
    """What is needed of a text stream."""

    def write(self, text: str, /) -> Any: ...

    def flush(self) -> Any: ...


@dataclass(frozen=True)
class Terminal:
    """A terminal to draw on.

    Attributes:
        out: where the text goes.
        size: (columns, rows), asked at each redraw, so a resize needs no signal.
        environ: decides about colours.
        clock: seconds, monotonic.
        sleep: waits so many of them.
        foreground: whether the terminal is ours; in the background it belongs to the shell.
    """

    out: Output
    size: Size
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    foreground: Callable[[], bool] = lambda: True

    @property
    def resizes_late(self) -> bool:
        """Whether a multiplexer may reflow its lines before it tells of the new size."""
        return bool(self.environ.get("TMUX")) or self.environ.get("TERM", "").startswith(
            ("tmux", "screen")
        )


def stream_size(stream: TextIO) -> Size:
    """Asks the stream's own terminal; COLUMNS is not trusted, as it goes stale on a resize."""

    return lambda: _known_size(stream) or (80, 24)


def known_columns(stream: TextIO) -> int | None:
    """How wide the stream's terminal says it is, 2 or more; None where it does not say."""
    size = _known_size(stream)
    return None if size is None else max(2, size[0])


def _known_size(stream: TextIO) -> tuple[int, int] | None:
    with contextlib.suppress(OSError, ValueError):
        columns, lines = os.get_terminal_size(stream.fileno())
        if columns > 0 and lines > 0:
            return columns, lines
    return None


def stream_foreground(stream: TextIO) -> Callable[[], bool]:
    """Asks the stream's own terminal whether this process is in its foreground."""

    def foreground() -> bool:
        try:
            return os.tcgetpgrp(stream.fileno()) == os.getpgrp()
        except (AttributeError, OSError, ValueError):  # Windows, or not the controlling terminal
            return True

    return foreground


class Suspension:
    """Ctrl-Z, noted and then obeyed when the caller is ready; a context manager.

    It may be entered once more within itself; what was there before comes back all the same.

    Attributes:
        asked: it was pressed.
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> Suspension:
        main = threading.current_thread() is threading.main_thread()
        # Whoever started us may have it ignored: leave that alone. Windows has no SIGTSTP.
        if main and hasattr(signal, "SIGTSTP") and not self._installed:
            self._installed = signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
        if self._installed:
            signal.signal(signal.SIGTSTP, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._installed = False

    def stop(self) -> None:
        """Stop the process as Ctrl-Z does; returns when it goes on."""
        self.asked = False
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._note)

    def _note(self, *_: object) -> None:
        self.asked = True


def can_draw(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether the live view can work there: a terminal that moves its cursor and speaks UTF-8."""
    term = environ.get("TERM", "xterm" if os.name == "nt" else "dumb")
    if not is_terminal(stream) or term in ("", "dumb", "unknown"):
        return False
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def is_terminal(stream: Any) -> bool:
    """Whether the stream, None or a text stream, is open on a terminal."""
    try:
        return stream is not None and bool(stream.isatty())
    except (AttributeError, ValueError):  # something to write to, no more; closed
        return False


@contextlib.contextmanager
def no_echo(*streams: Any, keys: bool = False) -> Iterator[Callable[[], None]]:
    """Keep typed keys, and the ^C of Ctrl-C, from being drawn into the view, and the view whole.

    The first of the streams that is a terminal names it: keys are drawn also where something else
    is piped in. With `keys` what is typed ahead waits as single keys, not as lines: a Ctrl-D would
    be lost to who reads keys next.

    Yields:
        A function that does it again, after another program has had the terminal.
    """
    try:
        import termios
    except ImportError:  # Windows does not echo while nothing reads
        yield lambda: None
        return
    try:
        fd = next((s.fileno() for s in streams if is_terminal(s)), -1)
        before = termios.tcgetattr(fd) if _in_foreground(fd) else None
    except (AttributeError, OSError, ValueError, termios.error):  # no stream of the system's
        before = None
    if before is None:
        yield lambda: None
        return
    quiet = [*before[:6], list(before[6])]
    quiet[3] &= ~termios.ECHO
    quiet[3] |= termios.NOFLSH  # else Ctrl-C throws away what the terminal has yet to show
    if keys:
        quiet[3] &= ~termios.ICANON
        quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0

    def hush() -> None:
        with contextlib.suppress(OSError, termios.error):
            if _in_foreground(fd):
                termios.tcsetattr(fd, termios.TCSADRAIN, quiet)

    try:
        hush()
        yield hush
    finally:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _in_foreground(fd: int) -> bool:
    """Whether we have the terminal: from the background, changing it would stop the process."""
    return fd >= 0 and os.tcgetpgrp(fd) == os.getpgrp()
