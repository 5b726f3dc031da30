"""Consumers of events: the live view, the plain writer, the trace, the summary, the picture.

They never change decoding: the same events come with them and without them. Nothing here imports
torch, a model or a tokenizer. What a command does with them::

    state = ViewState(
        tokenizer.token_bytes, len(prompt_ids), stop_ids=stop_ids, skip=special_ids, stop=stop,
        settings=Settings("apd", (("R", "0.7"), ("W", "16"), ("M", "100"))),
    )
    with contextlib.ExitStack() as stack:
        trace = stack.enter_context(TraceWriter(path, ...)) if path else None
        view = stack.enter_context(open_view(state, live=not no_live, quiet=quiet))
        for event in request.events():
            if trace: trace(event)
            view(event)               # BrokenPipeError is yours: end quietly
    if verbose and isinstance(view, PlainWriter):
        print(summary_line(state), file=sys.stderr)   # the live view has printed its own
    if trace and trace.failure: raise trace.failure   # an OutputError, after the answer

`state.text` is the answer as it was printed; `render.picture.export_picture(path, state, title)`
saves what the view shows as .svg or .html. Open the trace before the pair is loaded if it should
fail early; enter the view after, so that it does not hide what loading prints.
"""

from __future__ import annotations

from apdcli.render.jsonl import TraceWriter
from apdcli.render.live import LiveView
from apdcli.render.open import open_view
from apdcli.render.plain import PlainWriter
from apdcli.render.state import Cell, Settings, ViewState
from apdcli.render.summary import sparkline, summary_line
from apdcli.render.text import visible

__all__ = [
    "Cell",
    "LiveView",
    "PlainWriter",
    "Settings",
    "TraceWriter",
    "ViewState",
    "open_view",
    "sparkline",
    "summary_line",
    "visible",
]
