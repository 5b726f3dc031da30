"""`apd replay`: a trace played again, at its own speed or another; no model and no torch.

Knows nothing of how a trace is written down, nor of what a view looks like.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from apdcli.cli.context import Context
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.outputs import check_picture_name, check_writable
from apdcli.cli.prompt import STDIN
from apdcli.errors import InputError, UsageError, reason
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from apdcli.render import ViewState
    from apdcli.render.state import Event
    from apdcli.render.trace_reader import Trace

HELP_HINT = "see 'apd replay --help'"
_NAP = 0.05  # how long Ctrl-C may wait


@dataclass(frozen=True)
class Job:
    """What the command line asked for.

    Attributes:
        trace: a file; "-" or None: standard input.
        speed: how many times faster than it was; 0: as fast as possible; None: not given.
    """

    trace: str | None
    speed: float | None
    export: str | None
    no_live: bool

    @classmethod
    def of(cls, trace: str | None, speed: str | None, export: str | None, no_live: bool) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a speed or a picture's name that means nothing.
        """
        if export is not None:
            check_picture_name(export, HELP_HINT)
        return cls(trace, _speed(speed), export, no_live)


def _speed(text: str | None) -> float | None:
    """What --speed says."""
    if text is None:
        return None
    word = text.strip().lower()
    try:
        speed = 0.0 if word == "max" else float(word)
    except ValueError:
        speed = -1.0
    if not 0 <= speed < 1e9:  # NaN is not, either
        raise UsageError(
            f"--speed {text}: it must be a number, 2 for twice as fast, or max; {HELP_HINT}"
        )
    return speed


def run(job: Job, context: Context, *, sleep: Callable[[float], None] = time.sleep) -> int:
    """Play it; returns the exit status."""
    trace = _trace(job, context)
    if job.export is not None:
        check_writable(job.export)
    state = _state(trace)
    finished = _play(trace, state, job, context, sleep)
    if job.export is not None:
        from apdcli.render.picture import export_picture

        export_picture(job.export, state)
    if not finished:
        return INTERRUPTED
    if not trace.complete:
        raise InputError(
            f"{_name(job)} breaks off after step {trace.steps}: its writer was killed "
            "or the disk was full; this is all there is"
        )
    return 0


def _trace(job: Job, context: Context) -> Trace:
    """The trace that is named, or the one that is piped.

    Raises:
        UsageError: nothing is named and nothing is piped. InputError: it is no trace.
    """
    from apdcli.render.trace_reader import read_trace, trace_of

    if job.trace is not None and job.trace != STDIN:
        return read_trace(job.trace)
    stdin: Any = context.stdin
    if job.trace is None and (stdin is None or is_terminal(stdin)):
        raise UsageError("no trace: name one, as in: apd replay trace.jsonl, or pipe one")
    try:
        data = b"" if stdin is None else getattr(stdin, "buffer", stdin).read()
    except OSError as error:
        raise InputError(f"{_name(job)} cannot be read: {reason(error)}") from error
    return trace_of(data, _name(job))


def _name(job: Job) -> str:
    """The trace's, for messages."""
    return "standard input" if job.trace in (None, STDIN) else str(job.trace)


def _state(trace: Trace) -> ViewState:
    from apdcli.cli.report import SYMBOLS
    from apdcli.render import Settings, ViewState
    from apdcli.render.given import with_given

    def setting(name: str) -> str:
        value = trace.settings.get(name, "")
        return str(value.get("value", "") if isinstance(value, dict) else value)

    shown = tuple((s, setting(n)) for n, s in SYMBOLS.items() if n in trace.settings)
    token_bytes, given = with_given(trace.token_bytes, trace.given)
    return ViewState(
        token_bytes,
        trace.prompt_len,
        settings=Settings(setting("strategy"), shown),
        stop_ids=trace.stop_ids,
        skip=trace.skip_ids,
        stop=trace.stop,
        given=given,
        length=trace.length,
    )


def _play(
    trace: Trace, state: ViewState, job: Job, context: Context, sleep: Callable[[float], None]
) -> bool:
    """Show every event at its time; False if Ctrl-C came before the last."""
    from apdcli.render import open_view, summary_line
    from apdcli.render.terminal import can_draw
    from apdcli.render.trace_reader import End

    speed = job.speed
    if speed is None:  # nobody watches a pipe
        speed = 1.0 if is_terminal(context.out) else 0.0
    view = open_view(
        state,
        live=not job.no_live,
        out=context.out,
        err=context.stderr,
        keyboard=context.stdin,
        environ=context.environ,
    )
    signals, began, at = context.signals, time.monotonic(), 0.0
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals.patient())
        stack.enter_context(view)
        for event in trace.events:
            at = max(at, event.elapsed_s)
            while (
                speed > 0
                and not signals.interrupted
                and (left := began + at / speed - time.monotonic()) > 0
            ):
                sleep(min(left, _NAP))
                before = time.monotonic()
                view.obey()
                began += time.monotonic() - before  # nobody watched while it was stopped
            if signals.interrupted:
                view(cast("Event", End("interrupted", state.step, state.elapsed_s)))
                break
            view(event)
    drawn = not job.no_live and can_draw(context.out, context.environ)
    if not drawn and is_terminal(context.stdout) and is_terminal(context.stderr):
        context.remark(summary_line(state))
    return not signals.interrupted
