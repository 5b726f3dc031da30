"""A dim line on standard error while torch and the models load, so that nobody thinks it hangs.

Only on a terminal that can take it away again; everywhere else it writes nothing at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from apdcli.cli.context import Context
from apdcli.render.remark import remark
from apdcli.render.terminal import can_draw

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
