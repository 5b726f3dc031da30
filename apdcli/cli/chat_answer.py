"""One turn: decode it, show it, keep what was said, however it ends.

The same for people and for scripts, who differ in the view. Knows no commands.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apdcli.cli.generate import Layout, View, decoded, open_trace, view_state

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from apdcli.chat.talk import Talk
    from apdcli.cli.chat_knobs import Knobs
    from apdcli.cli.context import Context
    from apdcli.cli.signals import Signals
    from apdcli.engine.conversation import TurnRequest
    from apdcli.engine.session import Generation
    from apdcli.errors import OutputError
    from apdcli.load.settings import Settings
    from apdcli.render import TraceWriter, ViewState

OpenView = Callable[["ViewState"], "AbstractContextManager[View]"]


@dataclass
class Tracing:
    """Where the steps of the answers go: FILE, then FILE with -2, -3, ... before its ending.

    Attributes:
        path: of the first; None records nothing.
        failure: what ended the last trace early, if anything did.
    """

    path: str | None = None
    failure: OutputError | None = None
    _begun: bool = field(default=False, repr=False)

    def turn_on(self, path: str) -> None:
        """Record from the next answer on."""
        self.path, self._begun = path, False

    def turn_off(self) -> None:
        """Record no more."""
        self.path = None

    def next_path(self) -> str | None:
        """The file of the next answer; only the one that was named is ever written over."""
        if self.path is None:
            return None
        first = Path(self.path)
        if not self._begun:
            return str(first)
        number = 2
        while (other := first.with_name(f"{first.stem}-{number}{first.suffix}")).exists():
            number += 1
        return str(other)

    @contextlib.contextmanager
    def opened(
        self, request: TurnRequest, layout: Layout, settings: Settings
    ) -> Iterator[TraceWriter | None]:
        """The trace of one answer; raises OutputError when it cannot be begun."""
        self.failure = None
        path = self.next_path()
        if path is None:
            yield None
            return
        with open_trace(path, request, layout, settings) as trace:
            self._begun = True
            yield trace
        self.failure = trace.failure


@dataclass(frozen=True)
class Answered:
    """What came of a turn.

    Attributes:
        generation: the answer, whole or interrupted.
        state: how it was made.
        renamed: another name that the session got; see `Store.save`.
        unsaved: why the session is not on the disk.
        kept: it is part of the conversation; an answer without a token is not.
    """

    generation: Generation
    state: ViewState
    renamed: str | None = None
    unsaved: OutputError | None = None
    kept: bool = True

    @property
    def elsewhere(self) -> str | None:
        """What to say of the other name, if it got one."""
        if self.renamed is None:
            return None
        return (
            "another apd has changed this session since: this conversation goes on as "
            f"{self.renamed}"
        )


def answer(
    talk: Talk,
    request: TurnRequest,
    settings: Settings,
    *,
    open_view: OpenView,
    signals: Signals,
    tracing: Tracing,
    typed: str | None = None,
) -> Answered:
    """Decode a turn and keep it; the first Ctrl-C ends it after a step, the second at once.

    No Ctrl-C keeps it from being kept.

    Raises:
        OutputError: the trace cannot be begun; nothing was decoded then.
        DeviceError: no memory. OSError: the terminal is gone.
    """
    from apdcli.errors import OutputError

    layout = Layout(len(request.prompt_ids))
    state = view_state(request, layout, settings)
    with signals.held():
        with tracing.opened(request, layout, settings) as trace:
            consumers: list[View] = [] if trace is None else [trace]
            done = decoded(request, consumers, lambda: open_view(state), signals)
        if not done.token_ids:
            return Answered(done, state, kept=False)
        try:
            renamed = talk.keep(request, done, typed=typed, state=state)
        except OutputError as error:
            return Answered(done, state, unsaved=error)
        return Answered(done, state, renamed)


class Answering(ABC):
    """A conversation, its settings and its traces, and how a turn in it is answered.

    Who reads along decides how an answer is shown and whether the rest is told.
    """

    def __init__(self, talk: Talk, knobs: Knobs, context: Context, tracing: Tracing) -> None:
        self.talk = talk
        self.knobs = knobs
        self.context = context
        self.tracing = tracing

    @abstractmethod
    def view(self, state: ViewState) -> AbstractContextManager[View]:
        """What shows an answer on the way."""

    @abstractmethod
    def note_left_out(self, count: int) -> None:
        """The context is full: from now on the models no longer see the first `count` messages."""

    def settings(self, **own: Any) -> Settings:
        """Every setting of the next answer, with the session's system message under its `own`."""
        system = self.talk.session.system
        kept = {} if system is None else {"system": system}
        return self.knobs.settings(**{**kept, **own})

    def reply(
        self, request: TurnRequest, settings: Settings, typed: str | None = None
    ) -> tuple[Answered, list[OutputError]]:
        """A turn as by :func:`answer`, and what could not be written of it.

        A trace that could not be written to its end is the last one.
        """
        if request.left_out > self.talk.conversation.left_out:
            self.note_left_out(request.left_out)
        done = answer(
            self.talk,
            request,
            settings,
            open_view=self.view,
            signals=self.context.signals,
            tracing=self.tracing,
            typed=typed,
        )
        if self.tracing.failure is not None:
            self.tracing.turn_off()
        return done, [e for e in (done.unsaved, self.tracing.failure) if e is not None]
