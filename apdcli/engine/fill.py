"""Text with gaps in, the gaps' text out: `fill`, and the request that the command runs.

Knows nothing of terminals. The text outside the gaps is never decoded from tokens: it goes back as
it came.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, cast

from apdcli.decode.gaps import GAP, MARKER, split_gaps
from apdcli.decode.loop import decode
from apdcli.decode.params import SHARED_FIELDS, make_params, strategy_info
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, StepEvent
from apdcli.engine.pair import LoadedPair
from apdcli.engine.sampling import make_sampler
from apdcli.engine.session import (
    Generation,
    Request,
    Usage,
    check_pair,
    refuse_loading,
    with_room,
    with_seed,
)
from apdcli.errors import PromptError
from apdcli.load.fill_settings import fill_settings
from apdcli.load.settings import Settings


@dataclass(frozen=True)
class Filled(Generation):
    """A text whose gaps were filled; of an interrupted run, with what it had written by then.

    Attributes:
        text: the whole text; outside the gaps it is the one given, byte for byte.
        finish_reason: "length" (every gap is full) or "interrupted".
        prompt_tokens: tokens of the text outside the gaps.
        token_ids: what the gaps hold, in the order of the text.
        gaps: the filled pieces.
    """

    gaps: list[str]


@dataclass(frozen=True, kw_only=True)
class FillRequest(Request):
    """One checked text with gaps, ready to run; see :func:`prepare_fill`.

    Attributes:
        pieces: the text before, between and after the gaps.
        ids: the tokens of the pieces; None for each mask of a gap.
        starts: the first position of each gap.
        gap: masks in each gap.
    """

    pieces: tuple[str, ...]
    ids: tuple[int | None, ...]
    starts: tuple[int, ...]
    gap: int

    @property
    def given(self) -> tuple[tuple[int, str], ...]:
        """(position, text) outside the gaps: a piece stands whole at its first position."""
        begins = (0, *(start + self.gap for start in self.starts))
        text = dict(zip(begins, self.pieces, strict=True))
        return tuple((p, text.get(p, "")) for p, id_ in enumerate(self.ids) if id_ is not None)

    def events(
        self, interrupted: Callable[[], bool] = lambda: False
    ) -> Iterator[StepEvent | Finished]:
        """Decode: one event a step, then Finished. Every call starts afresh."""
        pair = self.pair
        unwanted = pair.stop_ids | pair.tokenizer.special_ids  # nothing ends inside a text
        allowed = tuple(i for i in pair.allowed_ids if i not in unwanted)
        models = replace(pair, allowed_ids=allowed, verifier=None).models(len(self.ids))
        events = decode(
            Canvas.from_gaps(self.ids, models.denoiser.mask_id, pair.device),
            make_strategy(
                self.strategy, self.shared, self.own, make_sampler(self.shared, pair.device)
            ),
            models,
            interrupted=interrupted,
        )
        return with_room(events, pair.device, f"{len(self.ids)} positions", pair.dtype)

    def summarize(self, steps: Sequence[StepEvent], last: Finished) -> Filled:
        """The result of the steps taken so far."""
        placed = dict(pair for step in steps for pair in step.committed)
        gaps = [
            self.pair.tokenizer.decode(placed[p] for p in range(s, s + self.gap) if p in placed)
            for s in self.starts
        ]
        woven = zip_longest(self.pieces, gaps, fillvalue="")
        return Filled(
            text="".join(piece + gap for piece, gap in woven),
            finish_reason=last.reason,
            prompt_tokens=sum(id_ is not None for id_ in self.ids),
            token_ids=[placed[position] for position in sorted(placed)],
            accepted=[step.accepted for step in steps],
            usage=Usage.of(last, len(placed)),
            gaps=gaps,
        )


def prepare_fill(pair: LoadedPair, text: str, settings: Settings) -> FillRequest:
    """Check everything that can be checked before decoding.

    Args:
        pair: the models; the verifier is not asked.
        text: with markers where the gaps are.
        settings: from `fill_settings`.

    Raises:
        PromptError: no text, no gap, or no room in the context.
        ModelError: a token that the denoiser does not know.
    """
    marker, gap = settings["marker"].value, settings["gap"].value
    pieces = split_gaps(text, marker)
    encoded = [pair.tokenizer.encode(piece, special=False) if piece else [] for piece in pieces]
    replace(pair, verifier=None).check_ids(chain.from_iterable(encoded))
    outside, count = sum(map(len, encoded)), len(pieces) - 1
    total = outside + count * gap
    if total > pair.context:
        gaps = f"its gap of {gap}" if count == 1 else f"its {count} gaps of {gap}"
        raise PromptError(
            f"the text takes {outside} tokens, with {gaps} it takes {total}, and the context "
            f"holds {pair.context}; shorten the text or the gaps"
        )
    ids: list[int | None] = list(encoded[0])
    starts = []
    for piece in encoded[1:]:
        starts.append(len(ids))
        ids += [None] * gap + list(piece)
    strategy = settings.strategy
    names = (*SHARED_FIELDS, *strategy_info(strategy).own_fields)
    values = {name: settings[name].value for name in names if name in settings}
    span, block = total - starts[0], settings["block_length"].value
    if block != "all":  # blocks run over the text behind the first gap; the last may be shorter
        span = -(-span // block) * block
    shared, own = make_params(strategy, max_tokens=span, **values)
    return FillRequest(
        pair,
        tuple(encoded[0]),
        strategy,
        shared,
        own,
        pieces=pieces,
        ids=tuple(ids),
        starts=tuple(starts),
        gap=gap,
    )


def fill(
    pair: LoadedPair, text: str, *, marker: str = MARKER, gap: int = GAP, **settings: Any
) -> Filled:
    """Fill the gaps of a text from both sides.

    Args:
        pair: from :func:`apdcli.load_pair`; only its denoiser is asked.
        text: no chat template; the texts of special tokens in it are ordinary text.
        marker: what stands for a gap in `text`.
        gap: tokens that each gap takes.
        settings: strategy (one that decodes in any order; dico unless the profile has such a one),
            the strategy's own parameters, temperature, top_k, top_p, seed (0 unless given, so that
            the same call gives the same text; None: a new one each call).

    Raises:
        UsageError: a strategy that goes from left to right, max_tokens, stop or system.
        ParameterError, UnknownParameterError: naming the field, and the range or the known names.
        PromptError: no text, no gap, or no room in the context.
    """
    check_pair(pair)
    if not isinstance(text, str):
        raise PromptError(f"text = {reprlib.repr(text)}: it must be a str")
    given = with_seed(settings)
    resolved = fill_settings(pair.profile, {**given, "marker": marker, "gap": gap}, {})
    refuse_loading(settings, resolved)
    request = prepare_fill(pair, text, resolved)
    return cast("Filled", request.result(list(request.events())))
