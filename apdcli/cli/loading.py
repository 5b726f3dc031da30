"""A dim line on standard error while torch and the models load, and what to know of them then.

The line is only on a terminal that can take it away again; so nobody thinks that it hangs.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from apdcli.cli.context import Context
from apdcli.render.remark import remark
from apdcli.render.terminal import can_draw, is_terminal

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.settings import Settings

_TEXT = "loading the models …"
STOPPED = "stopped before the models were loaded"


@contextlib.contextmanager
def loading(context: Context, *, quiet: bool, stopped: str = STOPPED) -> Iterator[None]:
    """While this lasts the line is there; after it, whatever happened, it is not.

    Args:
        context: whose standard error is drawn on.
        quiet: draw nothing.
        stopped: what Ctrl-C is answered with.
    """
    err = context.stderr
    if quiet or err is None or not can_draw(err, context.environ):
        yield
        return
    try:
        context.tell(remark(_TEXT, err, context.environ) + "\r")
        yield
    except BaseException as error:
        context.tell("\r\x1b[K")
        if isinstance(error, KeyboardInterrupt) or context.signals.interrupted:
            context.remark(stopped)  # an import that it cut short fails with other errors
        raise
    context.tell("\r\x1b[K")


def tell_loaded(
    context: Context,
    pair: LoadedPair,
    settings: Settings,
    began: float,
    *,
    quiet: bool,
    verbose: bool,
) -> None:
    """What was loaded, where `verbose` asks for it; and to people, too, what may surprise.

    Args:
        began: when loading did, by `time.perf_counter`.
    """
    if verbose:
        from apdcli.cli.report import loaded_lines

        for line in loaded_lines(pair, settings, time.perf_counter() - began):
            context.say(line)
    if verbose or (is_terminal(context.stderr) and not quiet):
        for note in pair.tokenizer.end_notes(pair.stop_ids):
            context.remark(note)
