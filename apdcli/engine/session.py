"""Prompt in, events out: the calls that users of the Python API and the commands share.

Knows nothing of terminals; whoever prints consumes the events.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from apdcli.decode.loop import decode
from apdcli.decode.params import (
    DecodeParams,
    StrategyParams,
    make_params,
)
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, FinishReason, StepEvent
from apdcli.engine.device import is_full, no_room
from apdcli.engine.pair import LoadedPair
from apdcli.engine.sampling import make_sampler
from apdcli.errors import ParameterError, PromptError, UnknownParameterError, UsageError
from apdcli.load.chat_template import Message, as_messages
from apdcli.load.profile import check_strategy
from apdcli.load.settings import Settings, check_together, resolve_settings

Prompt = str | Sequence[Message]
_OF_LOADING = ("profile", "device", "dtype", "quantize", "engine")


@dataclass(frozen=True)
class Usage:
    """What a generation cost. Tokens are generated ones up to the end token, never the prompt."""

    steps: int
    denoiser_forwards: int
    verifier_forwards: int
    tokens_forwarded: int
    seconds: float
    tokens_per_second: float
    tokens_per_step: float

    @classmethod
    def of(cls, last: Finished, tokens: int) -> Usage:
        """What so many generated tokens cost."""
        return cls(
            steps=last.steps,
            denoiser_forwards=last.denoiser_forwards,
            verifier_forwards=last.verifier_forwards,
            tokens_forwarded=last.tokens_forwarded,
            seconds=last.elapsed_s,
            tokens_per_second=tokens / last.elapsed_s if last.elapsed_s > 0 else 0.0,
            tokens_per_step=tokens / last.steps if last.steps else 0.0,
        )


@dataclass(frozen=True)
class Generation:
    """A finished generation.

    Attributes:
        text: the answer, without special tokens and without the stop string that ended it.
        finish_reason: "stop", "length" or "interrupted".
        prompt_tokens: length of the prompt after the chat template.
        token_ids: what was generated, up to and including the end token.
        accepted: how many of `token_ids` each step committed; sums to their number.
        usage: forwards, seconds and speeds.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    token_ids: list[int]
    accepted: list[int]
    usage: Usage


@dataclass(frozen=True)
class Request:
    """One checked generation, ready to run; see :func:`prepare`."""

    pair: LoadedPair
    prompt_ids: tuple[int, ...]
    strategy: str
    shared: DecodeParams
    own: StrategyParams
    stop: tuple[str, ...] = ()

    def events(
        self, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[StepEvent | Finished]:
        """Decode: one event a step, then Finished. Every call starts afresh."""
        models = self.pair.models(len(self.prompt_ids) + self.shared.max_tokens)
        device = self.pair.device
        canvas = Canvas.blank(
            self.prompt_ids, self.shared.max_tokens, models.denoiser.mask_id, device
        )
        events = decode(
            canvas,
            make_strategy(self.strategy, self.shared, self.own, make_sampler(self.shared, device)),
            models,
            stop_ids=self.shared.stop_ids,
            interrupted=interrupted,
        )
        events = with_room(events, device, f"{canvas.end} positions", self.pair.dtype)
        return self._until_stop_string(events) if self.stop else events

    def result(self, events: Sequence[StepEvent | Finished]) -> Generation:
        """Fold the events of this request into its result."""
        *steps, last = events
        if not isinstance(last, Finished):
            raise ValueError("the events do not end with Finished")
        return self.summarize([e for e in steps if isinstance(e, StepEvent)], last)

    def summarize(self, steps: Sequence[StepEvent], last: Finished) -> Generation:
        """The result of the steps taken so far."""
        ids, accepted = self._contiguous(steps)
        return Generation(
            text=self._text(ids),
            finish_reason=last.reason,
            prompt_tokens=len(self.prompt_ids),
            token_ids=ids,
            accepted=accepted,
            usage=Usage.of(last, len(ids)),
        )

    def _contiguous(self, steps: Sequence[StepEvent]) -> tuple[list[int], list[int]]:
        """Ids up to the first gap, end token or stop string; how many each step committed."""
        n = len(self.prompt_ids)
        placed = {position: id_ for step in steps for position, id_ in step.committed}
        ids: list[int] = []
        self._extend(ids, placed)
        # In any order, what follows a stop string may have been there before it.
        ids = ids[: self._completes_stop(ids) if self.stop else None]
        end = n + len(ids)
        return ids, [sum(p < end for p, _ in step.committed) for step in steps]

    def _extend(self, ids: list[int], placed: Mapping[int, int]) -> None:
        """Lengthen `ids` up to the first gap or end token."""
        n = len(self.prompt_ids)
        while n + len(ids) in placed and not (ids and ids[-1] in self.shared.stop_ids):
            ids.append(placed[n + len(ids)])

    def _text(self, ids: Sequence[int]) -> str:
        text = self.pair.tokenizer.decode(ids)
        cuts = [text.find(s) for s in self.stop if s in text]
        return text[: min(cuts)] if cuts else text

    def _until_stop_string(
        self, events: Iterator[StepEvent | Finished]
    ) -> Iterator[StepEvent | Finished]:
        """Pass events on; end at the token that completes a stop string, dropping what follows."""
        n = len(self.prompt_ids)
        placed: dict[int, int] = {}
        ids: list[int] = []
        for event in events:
            if isinstance(event, StepEvent):
                placed.update(event.committed)
                self._extend(ids, placed)
                keep = self._completes_stop(ids)
                if keep is not None:
                    kept = tuple((p, t) for p, t in event.committed if p < n + keep)
                    dropped = len(event.committed) - len(kept)
                    yield replace(
                        event,
                        committed=kept,
                        accepted=len(kept),
                        masked_left=event.masked_left + dropped,
                        rejected=(),
                    )
                    yield Finished(
                        "stop",
                        event.step,
                        event.denoiser_forwards,
                        event.verifier_forwards,
                        event.tokens_forwarded,
                        event.elapsed_s,
                    )
                    return
            yield event

    def _completes_stop(self, ids: Sequence[int]) -> int | None:
        """How many of `ids` are needed until their text holds a stop string; None if none does."""

        def holds(count: int) -> bool:
            text = self.pair.tokenizer.decode(ids[:count])
            return any(s in text for s in self.stop)

        if not holds(len(ids)):
            return None
        low, high = 0, len(ids)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high


def with_room(
    events: Iterator[StepEvent | Finished],
    device: torch.device,
    what: str,
    dtype: torch.dtype | None = None,
) -> Iterator[StepEvent | Finished]:
    """The events; a device that runs out of memory ends them with a DeviceError."""
    try:
        yield from events
    except RuntimeError as error:
        if not is_full(error):
            raise
        raise no_room(error, device, what, dtype) from error


def prepare(
    pair: LoadedPair,
    prompt: Prompt,
    settings: Settings,
    *,
    raw: bool = False,
) -> Request:
    """Check everything that can be checked before decoding.

    Args:
        pair: the models.
        prompt: a user message, a list of messages, or raw text.
        settings: resolved decoding settings, stop strings and system message.
        raw: no chat template.

    Raises:
        PromptError: empty, or no room left in the context.
        UsageError: the strategy needs a verifier that the profile lacks, a value out of range, two
            of which only one could hold.
    """
    check_together(settings)
    strategy = settings.strategy
    shared, own = make_params(strategy, stop_ids=pair.stop_ids, **settings.decode_values())
    check_strategy(pair.profile, strategy)
    ids = pair.prompt_ids(prompt, system=settings["system"].value, raw=raw)
    room = pair.context - len(ids)
    if room < 1:
        raise PromptError(
            f"the prompt takes {len(ids)} tokens and the context holds {pair.context}: "
            "no room for an answer; shorten the prompt"
        )
    if shared.max_tokens > room:
        shared = replace(shared, max_tokens=room)
    return Request(pair, ids, strategy, shared, own, tuple(settings["stop"].value))


def stream(
    pair: LoadedPair, prompt: Prompt, *, raw: bool = False, **settings: Any
) -> Iterator[StepEvent | Finished]:
    """Decode a prompt, yielding a StepEvent for each step and then Finished.

    Takes what :func:`generate` takes; everything is checked before the first step. The seed is 0
    unless given, so that the same call gives the same events; None: a new one each call. The text
    alone, as it settles: :func:`apdcli.stream_text`.
    """
    return request_of(pair, prompt, raw, settings).events()


def generate(pair: LoadedPair, prompt: Prompt, *, raw: bool = False, **settings: Any) -> Generation:
    """Decode a prompt.

    Args:
        pair: from :func:`apdcli.load_pair`.
        prompt: a user message that goes through the chat template, a list of
            {"role", "content"} messages, or with `raw` a text to continue.
        raw: no chat template, no system message.
        settings: strategy ("apd" unless the profile says otherwise), the strategy's own
            parameters (mixture_weight, recompute_window, max_lookahead, ...), max_tokens,
            temperature, top_k, top_p, seed, stop (a text or a list of them), system. What is not
            given comes from the profile, else from the defaults in `apdcli.decode.params`.
            seed is 0 unless given, so that the same call gives the same text; None: a new one
            each call.

    Raises:
        ParameterError, UnknownParameterError: naming the field, and the range or the known names.
        PromptError: the prompt is empty or leaves no room in the context.
        UsageError: an unknown strategy, or one that needs a verifier which the profile lacks; a
            system message that would not be used.
    """
    request = request_of(pair, prompt, raw, settings)
    return request.result(list(request.events()))


def request_of(pair: LoadedPair, prompt: Prompt, raw: bool, settings: Mapping[str, Any]) -> Request:
    """What :func:`generate` was asked for, checked."""
    check_pair(pair)
    if not isinstance(raw, bool):
        raise ParameterError("raw", raw, "True or False")
    settings = with_seed(settings)
    # What was tuned for a device holds where the pair really is, whatever its profile asks for.
    flags = {**settings, **dict.fromkeys(_OF_LOADING), "device": str(pair.device)}
    _refuse_system(settings.get("system"), prompt, raw)
    resolved = resolve_settings(pair.profile, flags, {})
    refuse_loading(settings, resolved)
    return prepare(pair, prompt, resolved, raw=raw)


def _refuse_system(system: object, prompt: Prompt, raw: bool) -> None:
    """Refuse a system message that would not be used."""
    if not system:
        return
    if raw:
        raise UsageError("system does not go with raw=True: a raw text stands as it is")
    if not isinstance(prompt, str) and any(m["role"] == "system" for m in as_messages(prompt)):
        raise UsageError("the messages hold a system message, and system gives another: give one")


def with_seed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a call, with a new seed where it asks for one by `seed=None`."""
    if "seed" in settings and settings["seed"] is None:
        return {**settings, "seed": secrets.randbelow(2**32)}
    return settings


def check_pair(pair: object) -> None:
    """Raise ParameterError unless it is a loaded pair."""
    if not isinstance(pair, LoadedPair):
        raise ParameterError("pair", pair, "what apdcli.load_pair(...) returned")


def refuse_loading(given: Mapping[str, Any], settings: Settings) -> None:
    """Raise UnknownParameterError for what was settled when the pair was loaded."""
    for name in _OF_LOADING:
        if given.get(name) is not None:
            known = [n for n in settings if not n.endswith(_OF_LOADING)]
            raise UnknownParameterError(name, settings.strategy, known, "it belongs to load_pair")
