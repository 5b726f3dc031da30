"""The answer's text as it settles: the engine's events through the fold that the commands print.

On top of the package, beside `__init__`: it knows both the engine and the view's state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Prompt, Request, request_of
from apdcli.render.state import ViewState


def stream_text(
    pair: LoadedPair, prompt: Prompt, *, raw: bool = False, **settings: Any
) -> Iterator[str]:
    """Decode a prompt, yielding the answer's text piece by piece as it settles.

        pair = apdcli.load_pair("demo")
        for piece in apdcli.stream_text(pair, "Hello!"):
            print(piece, end="", flush=True)

    Whole characters only, from left to right, and never what may yet become a stop string: the
    pieces joined are the `text` of :func:`apdcli.generate`. A step that settles nothing yields
    nothing. Closing it early leaves the pair ready for the next prompt.

    Takes what :func:`apdcli.generate` takes, and raises the same, before the first step. The seed
    is 0 unless given, so that the same call gives the same text; None: a new one each call.
    """
    return _pieces(request_of(pair, prompt, raw, settings))


def _pieces(request: Request) -> Iterator[str]:
    tokenizer = request.pair.tokenizer
    state = ViewState(
        tokenizer.token_bytes,
        len(request.prompt_ids),
        stop_ids=request.shared.stop_ids,
        skip=tokenizer.special_ids,
        stop=request.stop,
    )
    shown = 0
    events = request.events()
    with contextlib.closing(events):  # type: ignore[type-var]  # a generator
        for event in events:
            state.apply(event)
            piece = "".join(cell.text for cell in state.settled[shown:])
            shown = len(state.settled)
            if piece:
                yield piece
