"""A conversation whose key-value caches live on between turns, so that a turn costs what is new.

Between two turns the longest common prefix of the tokens that a cache holds and of the new
prompt's tokens decides what is kept, whatever was changed: a message edited, an answer undone,
another system message. What that means for the answer:

- The verifier looks back only, so its kept keys and values are those that a fresh run computes.
- The denoiser looks both ways: a kept position has seen what stood to its right when it was
  computed, not what was said since. This is APD's own approximation (spec/apd.md, step 1) carried
  over the turn: W = "all", or W no smaller than the text, recomputes everything and is exact.

Strategies that decode in any order recompute their prompt in every turn, as they do alone. Knows
nothing of terminals and files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from apdcli.decode.loop import decode
from apdcli.decode.strategies import make_strategy
from apdcli.decode.strategies.window import SlidingWindow
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.engine.pair import LoadedPair
from apdcli.engine.sampling import make_sampler
from apdcli.engine.session import Generation, Request, prepare, with_room, with_seed
from apdcli.errors import PromptError
from apdcli.load.settings import Settings, resolve_settings

_FIRST_ROOM = 4096  # positions; a context of 131,072 would take gigabytes that few chats need
_ANSWER_SHARE = 4  # an answer may count on max_tokens, or on 1 / 4 of the context if that is less
_KEPT_SHARE = 2  # once it is full, the oldest exchanges go until 1 / 2 of the context is in use


@dataclass(frozen=True)
class Exchange:
    """One message and its answer."""

    message: str
    answer: str


class Caches:
    """Both models' caches from turn to turn, and which tokens they hold."""

    def __init__(self, pair: LoadedPair) -> None:
        self._pair = pair
        self._capacity = 0
        self._models: Pair | None = None
        self._denoised: list[int] = []  # token ids behind the denoiser's keys and values
        self._verified: list[int] = []

    def open(self, ids: Sequence[int], length: int) -> tuple[Pair, int]:
        """The models, with what they hold of a prompt, and how many of its tokens are new.

        Args:
            ids: the prompt.
            length: positions that prompt and answer may take.

        Raises:
            DeviceError: no memory for larger caches.
        """
        if self._models is None or length > self._capacity:
            # growing starts anew: with doubling that is one forward of the text in its lifetime
            grown = 0 if self._models is None else 2 * self._capacity
            self._models, self._denoised, self._verified = None, [], []  # before their successors
            room = min(max(_FIRST_ROOM, grown, length), self._pair.context)
            self._models, self._capacity = self._pair.models(room), room
        models = self._models
        # the last position's output predicts the first token of the answer, so it always runs
        kept = min(_common(self._denoised, ids), len(ids) - 1)
        models.denoiser.crop(kept)
        self._denoised = list(ids[:kept])
        if models.verifier is not None:
            seen = min(_common(self._verified, ids), len(ids) - 1)
            models.verifier.crop(seen)
            self._verified = list(ids[:seen])
        return models, len(ids) - kept

    def settle(self, canvas: Canvas, denoised: int) -> None:
        """Remember what the caches hold after a turn, however it ended.

        Args:
            canvas: as the last finished step left it.
            denoised: positions that no step since saw as masks.
        """
        assert self._models is not None
        denoiser, verifier = self._models.denoiser, self._models.verifier
        ids = canvas.tokens[: canvas.cursor].tolist()
        denoiser.crop(min(denoised, denoiser.length))
        self._denoised = ids[: denoiser.length]
        if verifier is not None:
            verifier.crop(min(canvas.cursor, verifier.length))
            self._verified = ids[: verifier.length]


def _common(held: Sequence[int], ids: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = enumerate(zip(held, ids, strict=False))  # one of them is longer
    return next((at for at, (a, b) in pairs if a != b), min(len(held), len(ids)))


class _ResumedWindow:
    """A sliding window whose first step begins behind what is cached; then as the one within.

    New tokens are like those accepted last: not computed yet, and W - 1 before them are refreshed.
    """

    def __init__(self, window: SlidingWindow, new: int) -> None:
        self._window = window
        self._new: int | None = new

    def bounds(self, canvas: Canvas) -> tuple[int, int]:
        left, right = self._window.bounds(canvas)
        W = self._window.recompute_window
        if self._new is not None and W != "all":
            left = max(0, canvas.cursor - (self._new + W - 1))
        return left, right

    def advance(self, accepted: int) -> None:
        self._new = None
        self._window.advance(accepted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._window, name)


@dataclass(frozen=True, kw_only=True)
class TurnRequest(Request):
    """One checked turn, ready to run; made by :meth:`Conversation.prepare`.

    Attributes:
        message: what the user says.
        left_out: how many of the oldest exchanges the models do not see.
        caches: the conversation's.
    """

    message: str
    left_out: int
    caches: Caches

    def events(
        self, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[StepEvent | Finished]:
        """Decode from what the caches hold: one event a step, then Finished."""
        n, length = len(self.prompt_ids), len(self.prompt_ids) + self.shared.max_tokens
        device = self.pair.device
        models, new = self.caches.open(self.prompt_ids, length)
        canvas = Canvas.blank(
            self.prompt_ids, self.shared.max_tokens, models.denoiser.mask_id, device
        )
        strategy = make_strategy(
            self.strategy, self.shared, self.own, make_sampler(self.shared, device)
        )
        window = getattr(strategy, "window", None)
        if slides := isinstance(window, SlidingWindow):
            strategy.window = _ResumedWindow(window, new)  # type: ignore[attr-defined]
        events = decode(
            canvas,
            strategy,
            models,
            stop_ids=self.shared.stop_ids,
            interrupted=interrupted,
            ahead=not self.stop,  # the caches are kept as they are when a stop string is met
        )
        events = with_room(events, device, f"{canvas.end} positions", self.pair.dtype)
        began = canvas.cursor  # where the last finished step began: behind it all were masks
        at = began
        try:
            for event in self._until_stop_string(events) if self.stop else events:
                began, at = (at if isinstance(event, StepEvent) else began), canvas.cursor
                yield event
        finally:
            self.caches.settle(canvas, began if slides else n)


class Conversation:
    """Messages and answers with one pair.

    Attributes:
        pair: the models.
        exchanges: everything that was said; change the list as you like.
        left_out: how many of the oldest exchanges no longer fit, so the models do not see them.
    """

    def __init__(
        self, pair: LoadedPair, exchanges: Sequence[Exchange] = (), *, left_out: int = 0
    ) -> None:
        self.pair = pair
        self.exchanges = list(exchanges)
        self.left_out = left_out
        self._caches = Caches(pair)

    def prepare(self, message: str, settings: Settings) -> TurnRequest:
        """Check everything that can be checked before decoding; nothing is changed.

        The context is full when prompt and answer (max_tokens, or a quarter of the context if
        that is less) do not fit. Then the oldest exchanges are left out, never the system
        message, until the prompt takes at most half of the context: so the room made lasts for
        many turns, and so do the caches.

        Raises:
            PromptError: empty, or too long for the context even without any exchange.
            UsageError: the strategy needs a verifier that the profile lacks, a value out of range.
        """
        if not message.strip():
            raise PromptError("the message is empty")
        context, system = self.pair.context, settings.system
        answer = min(settings["max_tokens"].value, context // _ANSWER_SHARE)
        left_out = min(self.left_out, len(self.exchanges))
        length = self._length(left_out, message, system)
        if length + answer > context:
            while length > context // _KEPT_SHARE and left_out < len(self.exchanges):
                left_out += 1
                length = self._length(left_out, message, system)
        if length >= context:
            raise PromptError(
                f"the message takes {length} tokens"
                f"{' with the system message' if system else ''} and the context holds {context}: "
                "no room for an answer; shorten it"
            )
        request = prepare(self.pair, self._messages(left_out, message), settings)
        fields = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
        return TurnRequest(**fields, message=message, left_out=left_out, caches=self._caches)

    def add(self, request: TurnRequest, answer: str) -> None:
        """Keep what was said."""
        self.left_out = request.left_out
        self.exchanges.append(Exchange(request.message, answer))

    def undo(self) -> Exchange:
        """Take the last exchange back; raises IndexError when there is none."""
        last = self.exchanges.pop()
        if self.left_out >= len(self.exchanges):
            self.left_out = 0  # only exchanges that had been left out remain: see what fits now
        return last

    def ask(self, message: str, **settings: Any) -> Generation:
        """Say something and get the answer; takes the settings of :func:`apdcli.generate`.

        Raises:
            ParameterError, UnknownParameterError, UsageError, PromptError: as `generate`.
        """
        flags = {"device": str(self.pair.device), **with_seed(settings)}
        request = self.prepare(message, resolve_settings(self.pair.profile, flags, {}))
        done = request.result(list(request.events()))
        self.add(request, done.text)
        return done

    def _messages(self, left_out: int, message: str) -> list[dict[str, str]]:
        messages = []
        for exchange in self.exchanges[left_out:]:
            messages.append({"role": "user", "content": exchange.message})
            messages.append({"role": "assistant", "content": exchange.answer})
        return [*messages, {"role": "user", "content": message}]

    def _length(self, left_out: int, message: str, system: str | None) -> int:
        return len(self.pair.prompt_ids(self._messages(left_out, message), system=system))
