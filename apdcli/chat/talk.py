"""A conversation with its session: what was said is on the disk before the next message is read.

Knows no terminal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from apdcli.chat.sessions import Session, Store, Turn
from apdcli.engine.conversation import Conversation, Exchange

if TYPE_CHECKING:
    from apdcli.engine.conversation import TurnRequest
    from apdcli.engine.pair import LoadedPair
    from apdcli.engine.session import Generation
    from apdcli.load.settings import Settings
    from apdcli.render.state import ViewState


class Talk:
    """A session and the models that answer in it.

    Attributes:
        session: what is kept; its turns and the conversation's exchanges are always the same.
        states: how the answers of this run were made, by the turn's index.
    """

    def __init__(self, pair: LoadedPair, session: Session, store: Store | None) -> None:
        """Args:
        pair: the models.
        session: new, or loaded.
        store: where it is saved; None keeps it in memory only.
        """
        self.store = store
        self.states: dict[int, ViewState] = {}
        self._replacing = False
        self.session = session
        self.conversation = _conversation(pair, session)

    @property
    def pair(self) -> LoadedPair:
        """The models that answer."""
        return self.conversation.pair

    @property
    def turns(self) -> list[Turn]:
        """Everything that was said."""
        return self.session.turns

    def change_pair(self, pair: LoadedPair) -> None:
        """Let other models go on with the same conversation."""
        self.session.left_out = 0
        self.session.profile = profile_name(pair)
        self.conversation = _conversation(pair, self.session)

    def change_session(self, session: Session) -> None:
        """Go on with another conversation."""
        self.session, self.states = session, {}
        self.conversation = _conversation(self.pair, session)

    def prepare(self, message: str, settings: Settings) -> TurnRequest:
        """See :meth:`apdcli.engine.conversation.Conversation.prepare`."""
        return self.conversation.prepare(message, settings)

    def keep(
        self,
        request: TurnRequest,
        done: Generation,
        *,
        typed: str | None = None,
        state: ViewState | None = None,
    ) -> str | None:
        """Add what was said and save it; returns what `Store.save` does.

        Raises:
            OutputError: it cannot be saved; the conversation goes on all the same.
        """
        if self._replacing:
            self._replacing = False
            self._forget_last()
        self.conversation.add(request, done.text)
        if state is not None:
            self.states[len(self.turns)] = state
        self.turns.append(
            Turn(
                message=request.message,
                answer=done.text,
                typed=None if typed == request.message else typed,
                reason=done.finish_reason,
                accepted=tuple(done.accepted),
                seconds=round(done.usage.seconds, 6),
                seed=request.shared.seed,
                strategy=request.strategy,
            )
        )
        return self.save()

    @contextlib.contextmanager
    def replacing(self) -> Iterator[None]:
        """While this lasts the last turn is as if never said; unless `keep` is called, it stays."""
        exchanges, left_out = list(self.conversation.exchanges), self.conversation.left_out
        self.conversation.undo()
        self._replacing = True
        try:
            yield
        finally:
            if self._replacing:
                self._replacing = False
                self.conversation.exchanges, self.conversation.left_out = exchanges, left_out

    def undo(self) -> Turn:
        """Take back the last turn, on disk too; raises what `save` does."""
        self.conversation.undo()
        last = self._forget_last()
        self.save()
        return last

    def save(self) -> str | None:
        """Write the session; returns what `Store.save` does."""
        self.session.left_out = self.conversation.left_out
        return self.store.save(self.session) if self.store is not None else None

    def _forget_last(self) -> Turn:
        last = self.turns.pop()
        self.states.pop(len(self.turns), None)
        return last


def _conversation(pair: LoadedPair, session: Session) -> Conversation:
    exchanges = [Exchange(turn.message, turn.answer) for turn in session.turns]
    return Conversation(pair, exchanges, left_out=session.left_out)


def profile_name(pair: LoadedPair) -> str:
    """How a session names the models: a profile's name, or its file."""
    profile = pair.profile
    return str(profile.path) if profile.source == "file" else profile.name
