"""The loop: ask the strategy for a commit, apply it, stop or go on.

Owns the canvas, the counting and the stopping; knows nothing of how tokens are chosen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise
from apdcli.decode.precision import own_precision
from apdcli.decode.types import (
    AcceptingVerifier,
    Canvas,
    Commit,
    Denoiser,
    Finished,
    FinishReason,
    Pair,
    StepEvent,
    Strategy,
    Verifier,
)
from apdcli.errors import ModelError


class Counts:
    """Forward passes and positions run through the models since the generation began."""

    def __init__(self) -> None:
        self.denoiser_forwards = 0
        self.verifier_forwards = 0
        self.tokens_forwarded = 0


class _CountedDenoiser:
    def __init__(self, inner: Denoiser, counts: Counts) -> None:
        self.inner = inner
        self.counts = counts
        self.mask_id = inner.mask_id
        self.lookback = inner.lookback
        self.crop = inner.crop
        self.asynchronous: bool = getattr(inner, "asynchronous", False)

    @property
    def length(self) -> int:
        return self.inner.length

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        self.counts.denoiser_forwards += 1
        self.counts.tokens_forwarded += tokens.shape[0] - start
        logits = self.inner.logits(tokens, start, first, keep_after=keep_after)
        if self.counts.denoiser_forwards == 1:
            _check_numbers(logits, "denoiser")
        return logits


class _CountedVerifier:
    def __init__(self, inner: Verifier, counts: Counts) -> None:
        self.inner = inner
        self.counts = counts
        self.crop = inner.crop
        self.verify_less: bool = getattr(inner, "verify_less", False)

    @property
    def length(self) -> int:
        return self.inner.length

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        self._count(tokens)
        logits = self.inner.logits(tokens, first)
        if self.counts.verifier_forwards == 1:
            _check_numbers(logits, "verifier")
        return logits

    def _count(self, tokens: Tensor) -> None:
        self.counts.verifier_forwards += 1
        self.counts.tokens_forwarded += tokens.shape[0] - self.inner.length


class _CountedAcceptingVerifier(_CountedVerifier):
    inner: AcceptingVerifier

    def accept(
        self,
        tokens: Tensor,
        draft: Tensor,
        d: Tensor,
        weight: float,
        noise: KeyedNoise | None = None,
    ) -> Tensor:
        self._count(tokens)
        return self.inner.accept(tokens, draft, d, weight, noise)


def _check_numbers(logits: Tensor, role: str) -> None:
    """Raise ModelError where the first row of a model's first logits [n, vocab] is no numbers.

    One weight that is NaN makes all of them NaN: its texts would be nothing or anything.
    """
    if not math.isfinite(logits[0].amax().item()):
        raise ModelError(
            f"the {role}'s logits are not numbers: its weights are damaged (download them again), "
            "or its dtype cannot hold what it computes (float32 can)"
        )


def _counted(verifier: Verifier, counts: Counts) -> Verifier:
    """A strategy asks a verifier by name whether it accepts: so does what counts for it."""
    kind = _CountedAcceptingVerifier if hasattr(verifier, "accept") else _CountedVerifier
    return kind(verifier, counts)


def decode(
    canvas: Canvas,
    strategy: Strategy,
    pair: Pair,
    *,
    stop_ids: frozenset[int] = frozenset(),
    interrupted: Callable[[], bool] = lambda: False,
    ahead: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[StepEvent | Finished]:
    """Fill the canvas, yielding one event a step and then Finished.

    Stops when a stop id is committed with nothing masked before it (what the same step placed
    after it is dropped; a strategy with early_stop off goes on to the end), when the canvas is
    full, or when `interrupted` says so between two steps.

    Where the denoiser is asynchronous, the next step's forward is asked for before a step's event
    is given away: the device works while the host shows it. Not after the first step, whose text
    is not to wait for anything, and not where the strategy cannot know.

    Args:
        canvas: mutated in place.
        strategy: a fresh one, see :func:`apdcli.decode.strategies.make_strategy`.
        pair: the models, their caches valid for a prefix of the canvas.
        stop_ids: token ids that end the text.
        interrupted: asked before each step.
        ahead: False where a reader that leaves must find the caches as the last event left them.
        clock: seconds, monotonic.
    """
    began = clock()
    counts = Counts()
    denoiser = _CountedDenoiser(pair.denoiser, counts)
    counted = Pair(
        denoiser=denoiser,
        verifier=None if pair.verifier is None else _counted(pair.verifier, counts),
    )
    foresees = ahead and denoiser.asynchronous
    foresight = getattr(strategy, "ahead", None) if foresees else None
    stops: set[int] = set()
    inference = torch.inference_mode()
    steps = 0
    reason: FinishReason | None = None
    while reason is None:
        if interrupted():
            reason = "interrupted"
            break
        with inference, own_precision():
            commit = strategy.step(canvas, counted)
            if not stop_ids.isdisjoint(commit.ids):
                placed = zip(commit.positions, commit.ids, strict=True)
                stops.update(p for p, t in placed if t in stop_ids)
            commit, stopped = _apply(canvas, commit, stops if strategy.early_stop else set())
        steps += 1
        if stopped:
            reason = "stop"
        elif canvas.cursor == canvas.end:
            reason = "stop" if stops else "length"
        event = _event(commit, canvas, counts, steps, clock() - began)
        failure = None
        if foresight is not None and reason is None and steps > 1:
            failure = _failure(foresight, canvas, counted)
        yield event
        if failure is not None:  # a full device, say: the tokens that there are came first
            raise failure
    yield Finished(
        reason=reason,
        steps=steps,
        denoiser_forwards=counts.denoiser_forwards,
        verifier_forwards=counts.verifier_forwards,
        tokens_forwarded=counts.tokens_forwarded,
        elapsed_s=clock() - began,
    )


def _failure(
    foresight: Callable[[Canvas, Pair], None], canvas: Canvas, pair: Pair
) -> RuntimeError | None:
    """Look ahead; what went wrong in it."""
    try:
        with torch.inference_mode(), own_precision():
            foresight(canvas, pair)
    except RuntimeError as error:
        return error
    return None


def _event(
    commit: Commit, canvas: Canvas, counts: Counts, step: int, elapsed_s: float
) -> StepEvent:
    return StepEvent(
        step=step,
        committed=tuple(zip(commit.positions, commit.ids, strict=True)),
        proposed=commit.proposed,
        accepted=len(commit.positions),
        masked_left=canvas.masked_left,
        denoiser_forwards=counts.denoiser_forwards,
        verifier_forwards=counts.verifier_forwards,
        tokens_forwarded=counts.tokens_forwarded,
        elapsed_s=elapsed_s,
        rejected=commit.rejected,
        phase=commit.phase,
        clusters=commit.clusters,
    )


def _apply(canvas: Canvas, commit: Commit, stops: set[int]) -> tuple[Commit, bool]:
    """Write the commit; returns what was written of it, and whether a stop ends the text.

    A stop at position p ends the text once nothing before p is masked; what this commit holds
    after p is then dropped and stays masked.
    """
    for position in commit.positions:
        if not canvas.masked[position]:
            raise AssertionError(f"position {position} was committed twice")
        canvas.masked[position] = False
    _advance(canvas)
    stop_at = min(stops, default=canvas.end)
    stopped = stop_at < canvas.cursor
    if stopped:
        kept = [k for k, position in enumerate(commit.positions) if position <= stop_at]
        for position in commit.positions:
            canvas.masked[position] = position > stop_at
        canvas.cursor = stop_at + 1
        commit = replace(
            commit,
            positions=tuple(commit.positions[k] for k in kept),
            ids=tuple(commit.ids[k] for k in kept),
            rejected=(),
        )
    _write(canvas.tokens, commit)
    return commit, stopped


def _write(tokens: Tensor, commit: Commit) -> None:
    """Put the commit's ids in their places."""
    if not commit.positions:
        return
    first, last = commit.positions[0], commit.positions[-1]
    in_a_row = commit.positions == tuple(range(first, last + 1))
    if in_a_row and tokens.device.type == "cpu":
        tokens.numpy()[first : last + 1] = commit.ids  # a quarter of what a tensor of them takes
        return
    ids = torch.tensor(commit.ids, dtype=torch.int64).to(tokens.device, non_blocking=True)
    if in_a_row:
        tokens[first : last + 1] = ids  # far cheaper than scattering them
    else:
        tokens[torch.tensor(commit.positions, device=tokens.device)] = ids


def _advance(canvas: Canvas) -> None:
    """Move the cursor to the first masked position."""
    while canvas.cursor < canvas.end and not canvas.masked[canvas.cursor]:
        canvas.cursor += 1
