"""What Ctrl-C, Ctrl-\\ and kill do: the first Ctrl-C asks a generation to stop, the rest unwinds.

Unwinding means an exception, so that every `finally` on the way restores the terminal and removes
temporary files. Knows no command.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from apdcli.cli.quitting import Quitting

_T = TypeVar("_T")
_HANGS_S = 3.0  # so long after the last Ctrl-C another one is meant, whatever is being put in order
_AGAIN_S = 0.01  # so long after an exception was raised where nothing can catch it, it is again


class Terminated(SystemExit):
    """A signal that ends the process; no Exception, so nothing on the way swallows it.

    Of what is none, asyncio, which the chat's prompt runs in, lets only SystemExit and
    KeyboardInterrupt through.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number


class Signals:
    """Handlers for SIGINT, SIGTERM, SIGHUP and SIGQUIT, in place while it is entered.

    Attributes:
        interrupted: Ctrl-C was pressed.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.interrupted = False
        self._clock = clock
        self._heard_at = 0.0
        self._patient = False
        self._held = False
        self._unwinding = False
        self._tell: Callable[[], None] = lambda: None
        self._before: dict[int, Any] = {}
        self._quitting: Quitting | None = None
        self._hook = sys.unraisablehook
        self._lost: BaseException | None = None

    def __enter__(self) -> Signals:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may set handlers
        self._set(signal.SIGINT, self._on_interrupt, signal.default_int_handler)
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            if hasattr(signal, name):
                self._set(getattr(signal, name), _terminate, signal.SIG_DFL)
        if hasattr(signal, "SIGQUIT") and self._set(signal.SIGQUIT, _quit, signal.SIG_DFL):
            self._quitting = Quitting()
            self._quitting.watch()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._on_unraisable
        return self

    def __exit__(self, *_: object) -> None:
        if self._quitting is not None:
            self._quitting.close()
            self._quitting = None
        if sys.unraisablehook == self._on_unraisable:
            sys.unraisablehook = self._hook
        if getattr(signal, "SIGALRM", None) in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """While this lasts, the first Ctrl-C only sets `interrupted`; a second one unwinds."""
        self._check()
        self._patient = True
        try:
            yield
        finally:
            self._patient = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While this lasts, Ctrl-C only sets `interrupted`, but see `each`; may be nested."""
        before = self._held
        self.hold()
        try:
            yield
        finally:
            self._held = before

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Within `held`: while this lasts, Ctrl-C unwinds."""
        before, self._held = self._held, False
        try:
            yield
        finally:
            self._held = before

    @contextlib.contextmanager
    def telling(self, listener: Callable[[], None]) -> Iterator[None]:
        """While this lasts, a Ctrl-C that is only noted is told, within the signal's handler."""
        self._tell = listener
        try:
            yield
        finally:
            self._tell = lambda: None

    def hold(self) -> None:
        """Be as in `held` from here on, until `release`."""
        self._check()
        self._held = True

    def release(self) -> None:
        """Let Ctrl-C unwind again."""
        self._held = False

    def each(self, items: Iterator[_T]) -> Iterator[_T]:
        """The items; while one of them is waited for, the second Ctrl-C unwinds, `held` or not."""
        end = object()
        while True:
            self._patient = True
            try:
                item = next(items, end)
            finally:
                self._patient = False
            if item is end:
                return
            yield item  # type: ignore[misc]

    def rearm(self) -> None:
        """Forget a Ctrl-C that was dealt with: a conversation goes on after it."""
        self.interrupted = self._unwinding = self._patient = False
        self._lost = None

    def _check(self) -> None:
        if self._unwinding:  # an import that Ctrl-C fell into may swallow its exception
            self._lost = None
            raise KeyboardInterrupt
        if self._quitting is not None:
            self._quitting.watch()  # whoever reads keys may have taken the signals' pipe

    def _set(self, number: int, handler: Any, default: Any) -> bool:
        before = signal.getsignal(number)
        # Whoever started us may have it ignored (nohup, a background job): leave that alone.
        if before == default:
            self._before[number] = signal.signal(number, handler)
        return number in self._before

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        first, self.interrupted = not self.interrupted, True
        now = self._clock()
        quick, noted = now - self._heard_at < _HANGS_S, first and (self._patient or self._held)
        waiting = self._patient and not self._unwinding
        if noted:
            self._heard_at = now
            self._tell()
        elif not (self._held and quick and not waiting):
            self._heard_at = now
            self._unwinding = True
            raise KeyboardInterrupt

    def _on_unraisable(self, args: sys.UnraisableHookArgs) -> None:
        """A callback of the garbage collector (each import runs one) cannot raise: later then."""
        lost = args.exc_value
        if isinstance(lost, Terminated) or (
            isinstance(lost, KeyboardInterrupt) and self._unwinding
        ):
            self._lost = lost
            if hasattr(signal, "setitimer"):  # not on Windows: there `_check` has to do
                self._before.setdefault(signal.SIGALRM, signal.signal(signal.SIGALRM, self._again))
                signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            self._hook(args)

    def _again(self, number: int, frame: FrameType | None) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated(number)


def _quit(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it wherever it is
    raise Terminated(number)
