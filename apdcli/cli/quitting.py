"""Ctrl-\\ where nothing else helps: the terminal is put in order and the process ends by it.

Usually the handler of `signals` unwinds. But a handler in Python waits until the main thread comes
back from whatever it calls, and that may be a driver that hangs: then a thread does it. Knows
nothing of what is drawn.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import Any, NoReturn

_PATIENCE_S = 1.0
_PLAIN = b"\x1b[0m\x1b[?7h\x1b[?2026l\x1b[?2004l\x1b[?25h\r\n"  # looks, wrapping, pasting, cursor


def quit_now() -> NoReturn:
    """End the process by SIGQUIT, from any thread, as if nobody had caught it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    else:  # where Python refuses to
        import ctypes

        ctypes.CDLL(None).signal(int(signal.SIGQUIT), None)
    os.kill(os.getpid(), signal.SIGQUIT)
    threading.Event().wait()  # the kernel may deliver it to another thread
    raise AssertionError


class Quitting:
    """Waits for a SIGQUIT that the main thread does not obey; does nothing unless told to watch."""

    def __init__(self) -> None:
        self._ends: tuple[int, int] | None = None
        self._closed = threading.Event()
        self._before = -1
        self._found: list[tuple[int, list[Any]]] = []

    def watch(self) -> None:
        """Begin, or begin again: asyncio takes the pipe that signals are told by for itself."""
        if threading.current_thread() is not threading.main_thread() or self._closed.is_set():
            return
        if self._ends is None:
            self._found = _modes()
            self._ends = os.pipe()
            os.set_blocking(self._ends[1], False)
            self._before = signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)
            threading.Thread(target=self._run, args=self._ends[:1], daemon=True).start()
        else:
            signal.set_wakeup_fd(self._ends[1], warn_on_full_buffer=False)

    def close(self) -> None:
        """Let the thread end, and everything be as it was."""
        self._closed.set()
        if self._ends is None:
            return
        with contextlib.suppress(ValueError):  # whoever had it has closed it
            signal.set_wakeup_fd(self._before)
        os.close(self._ends[1])  # which the thread reads as the end
        self._ends = None

    def _run(self, end: int) -> None:
        try:
            while told := os.read(end, 64):
                if signal.SIGQUIT in told and not self._closed.wait(_PATIENCE_S):
                    self._restore()
                    quit_now()
        finally:
            os.close(end)

    def _restore(self) -> None:
        for number, modes in self._found:
            import termios

            with contextlib.suppress(OSError, termios.error):
                termios.tcsetattr(number, termios.TCSANOW, modes)
        if os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown"):
            for number in (1, 2):
                with contextlib.suppress(OSError):
                    if os.isatty(number):
                        os.write(number, _PLAIN)
                        break


def _modes() -> list[tuple[int, list[Any]]]:
    """The terminal's modes, where standard input is one."""
    try:
        import termios

        return [(0, termios.tcgetattr(0))] if os.isatty(0) else []
    except (ImportError, OSError, termios.error):
        return []
