"""The outer shell of `apd`: runs the program and holds the one map from failures to statuses.

Almost nothing is imported before `main` runs, so that Ctrl-C in the first moment is caught, too.
Knows no command: `app` parses, a command's own module works.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from apdcli.cli.context import Context

FAILED, INTERRUPTED, CLOSED_PIPE = 1, 130, 141
_SIGNALLED = 128
_QUIT = _SIGNALLED + 3  # SIGQUIT
_BUG = "this should not happen; run with apd --debug for the traceback"


def main(args: Sequence[str] | None = None, context: Context | None = None) -> int:
    """Run `apd` and return its exit status; never raises, and prints at most one line of error.

    Args:
        args: without the program's name; None takes the process's.
        context: streams and environment; None takes the process's.
    """
    try:
        from apdcli.cli.context import Context

        context = context or Context.of_process()
        with context.signals:
            try:
                status = _program(sys.argv[1:] if args is None else list(args), context)
            except BaseException as error:
                status = _report(error, context)
        if not context.silence() and status == 0:
            status = FAILED
    except KeyboardInterrupt:  # before there was a context, or after the work
        status = INTERRUPTED
    return status


def run() -> NoReturn:
    """The process `apd`: what the command of that name calls."""
    status = main()
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is over: nothing is left to be stopped
    if status == _QUIT:  # whoever started us sees the signal, as with any program
        from apdcli.cli.quitting import quit_now

        quit_now()
    if "torch" in sys.modules:
        # Taking torch's thousand modules apart takes a third of a second, for nothing: what has
        # asked to be called at the end is called, and the streams were flushed by main.
        import atexit
        import os

        atexit._run_exitfuncs()
        os._exit(status)
    sys.exit(status)


def _program(args: list[str], context: Context) -> int:
    """Parse, then run what was asked for. No error handling: `main` has it all."""
    if "_APD_COMPLETE" in context.environ:
        from apdcli.cli.complete import answer

        text, status = answer(context.environ)
        if text:
            context.print(text)
        return status
    from apdcli.cli.app import parse

    job = parse(args, context)
    if isinstance(job, int):  # the help, which the parser prints, or does not without a word
        _ = context.out
        status = job
    else:
        status = job(context)
    if context.stdout is not None:
        context.stdout.flush()
    return status


def _report(error: BaseException, context: Context) -> int:
    """Tell the user of a failure in one line, or with its traceback under --debug."""
    status, line = outcome(error, interrupted=context.signals.interrupted)
    if context.debug and status != CLOSED_PIPE:
        import traceback

        context.tell("".join(traceback.format_exception(error)), foreign=True)
    if line:
        context.say(f"apd: {line}")
    return status


def outcome(error: BaseException, *, interrupted: bool = False) -> tuple[int, str]:
    """The exit status and the line for the user (may be empty) of whatever ended the program.

    Args:
        error: what was raised.
        interrupted: Ctrl-C was pressed; an import that it cut short fails with other errors.
    """
    from apdcli.cli.signals import Terminated
    from apdcli.errors import ApdError, reason

    if isinstance(error, ApdError):
        return error.exit_status, str(error)
    if isinstance(error, Terminated):
        return _SIGNALLED + error.number, ""
    if isinstance(error, BrokenPipeError):
        return CLOSED_PIPE, ""  # what the shell reports of cat in: cat FILE | head -1
    if isinstance(error, KeyboardInterrupt) or interrupted:
        return INTERRUPTED, ""
    if isinstance(error, SystemExit):
        return (error.code, "") if isinstance(error.code, int) else (FAILED, str(error.code or ""))
    if isinstance(error, OSError):
        where = error.filename or "standard output"
        return FAILED, f"{where}: {reason(error)}"
    if _is_full(error):
        lower = "a smaller model, -n or -M, --quantize int8, --dtype bfloat16 or --device cpu"
        return FAILED, f"out of memory; try {lower}"
    text = " ".join(str(error).split())[:200]
    return FAILED, f"{type(error).__name__}: {text} ({_BUG})"


def _is_full(error: BaseException) -> bool:
    """Whether memory was full where no better line could be made of it."""
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from apdcli.load.room import is_full

        return is_full(error)
    return isinstance(error, MemoryError)


if __name__ == "__main__":
    run()
