"""Many requests at once, by continuous batching: a row that finishes makes room for the next.

Every row runs the decoding loop and the strategy that it would run alone; only its models are
shared. Where a row asks for logits it waits, and one forward answers all rows that ask the same
model, each at its own place in its own text. So rows may differ in prompt, settings and seed, even
in strategy, and each gives the tokens that it gives alone: the numbers differ only as far as a
matrix product of another height rounds otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from apdcli.decode.precision import own_precision
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.batch_models import Answers, Ask, BatchPair, RowPair
from apdcli.engine.batch_size import BatchSize, capacity_of, choose_size, out_of_memory
from apdcli.engine.batch_turns import Turns
from apdcli.engine.device import is_full
from apdcli.engine.session import Generation, Request
from apdcli.errors import ApdError


@dataclass(frozen=True)
class RowResult:
    """What became of one request.

    Attributes:
        index: its place among the requests.
        generation: the result; None where `error` says why there is none. Its seconds run from
            the row's first step to its last, the work done for other rows meanwhile included.
        events: the row's steps and Finished, as `Request.events` yields them.
        error: what went wrong with this row alone.
    """

    index: int
    generation: Generation | None = None
    events: tuple[StepEvent | Finished, ...] = ()
    error: ApdError | None = None


def run_batch(
    requests: Sequence[Request | ApdError],
    batch_size: BatchSize = "auto",
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[RowResult]:
    """Decode all requests, `batch_size` of them at a time, and yield the results in their order.

    One row at a time is what `Request.events` does, by the same engine. Rows of a batch may be of
    different strategies; rows that ask only the verifier then go first.

    Once `interrupted` says so, no other row begins and the rows under way end as "interrupted"
    with what they have, but for those that stand before a row that has finished: they go on to
    their end, so that who writes results in order loses none. An "interrupted" result is followed
    by such ones only. A reader that stops early leaves nothing running.

    Args:
        requests: of one loaded pair. An error in place of a request (its prompt was too long,
            say) comes back as that row's result and stops nobody.
        batch_size: rows at once, or "auto": see :func:`apdcli.engine.batch_size.choose_size`.
        interrupted: asked before each step of each row.

    Raises:
        ParameterError: a batch size below 1.
        DeviceError: the device has no room for that many rows.
    """
    runnable = [request for request in requests if isinstance(request, Request)]
    rows = choose_size(runnable, batch_size)
    if rows == 1:
        yield from _one_by_one(requests, interrupted)
        return
    done: dict[int, RowResult] = {}
    following = 0
    for result in _Batch(requests, runnable, rows, interrupted).results():
        done[result.index] = result
        while following in done:
            yield done.pop(following)
            following += 1


def _one_by_one(
    requests: Sequence[Request | ApdError], interrupted: Callable[[], bool]
) -> Iterator[RowResult]:
    """Without a batch."""
    for index, request in enumerate(requests):
        if isinstance(request, ApdError):
            yield RowResult(index, error=request)
            continue
        if interrupted():
            return
        events: list[StepEvent | Finished] = []
        try:
            events.extend(request.events(interrupted))
        except ApdError as error:
            yield RowResult(index, events=tuple(events), error=error)
        else:
            yield RowResult(index, request.result(events), tuple(events))


class _Batch:
    """Rows under way, and those that wait for their slots."""

    def __init__(
        self,
        requests: Sequence[Request | ApdError],
        runnable: Sequence[Request],
        rows: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self.waiting = deque(enumerate(requests))
        self.interrupted = interrupted
        self.under_way: list[_Row] = []
        self.free = list(range(rows))
        self.latest = -1  # the last of the requests that has finished
        self.models = BatchPair(runnable[0].pair, rows, max(map(capacity_of, runnable)))

    def results(self) -> Iterator[RowResult]:
        """Every result as it comes."""
        try:
            while self.waiting or self.under_way:
                yield from self._begin()
                self._forward()
                yield from self._finish()
        finally:
            for row in self.under_way:
                row.turns.close()

    def _begin(self) -> Iterator[RowResult]:
        """Give the free slots to those who wait."""
        if self.interrupted():
            self.waiting.clear()
        while self.waiting and self.free:
            index, request = self.waiting.popleft()
            if isinstance(request, ApdError):
                yield RowResult(index, error=request)
                continue
            slot = min(self.free)  # a padded forward runs all slots up to the last one in use
            self.free.remove(slot)
            row = _Row(index, request, self.models, slot, partial(self._interrupted, index))
            self.under_way.append(row)
            row.go_on()

    def _interrupted(self, index: int) -> bool:
        """Whether a row is to end where it is."""
        return index > self.latest and self.interrupted()

    def _forward(self) -> None:
        """Answer all rows that ask one of the models."""
        asking = [(row, row.wish) for row in self.under_way if row.wish is not None]
        if not asking:
            return
        # The verifier first, while anyone asks it: the denoiser, which costs more, then serves
        # every row at once.
        verifier = self.models.verifier
        model = next((w.model for _, w in asking if w.model is verifier), self.models.denoiser)
        chosen = [(row, wish) for row, wish in asking if wish.model is model]
        try:
            with torch.inference_mode(), own_precision():
                answers = model.forward([wish for _, wish in chosen])
        except RuntimeError as error:
            if not is_full(error):
                raise
            raise out_of_memory(error, len(chosen), model.net) from error
        for (row, _), answer in zip(chosen, answers, strict=True):
            row.go_on(answer)

    def _finish(self) -> Iterator[RowResult]:
        """Free the slots of rows that are over."""
        for row in [row for row in self.under_way if row.wish is None]:
            self.under_way.remove(row)
            self.free.append(row.slot)
            result = row.result()
            if result.generation and result.generation.finish_reason != "interrupted":
                self.latest = max(self.latest, row.index)
            yield result


class _Row:
    """One request under way in a slot.

    Attributes:
        wish: what the row waits for; None before it begins and once it is over.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        models: BatchPair,
        slot: int,
        interrupted: Callable[[], bool],
    ) -> None:
        self.index = index
        self.request = request
        self.models = models
        self.slot = slot
        self.interrupted = interrupted
        self.events: list[StepEvent | Finished] = []
        self.error: ApdError | None = None
        self.turns: Turns[Ask, Tensor] = Turns(self._decode)
        self.wish: Ask | None = None

    def go_on(self, answer: Tensor | None = None) -> None:
        """Run to the next wish or to the end."""
        try:
            self.wish = self.turns.resume(answer)
        except ApdError as error:
            self.error, self.wish = error, None

    def _decode(self, ask: Answers) -> None:
        """The row alone, but for its models."""
        pair = RowPair.of(self.request.pair, self.models, self.slot, ask)
        for event in replace(self.request, pair=pair).events(self.interrupted):
            self.events.append(event)

    def result(self) -> RowResult:
        """What became of it."""
        events = tuple(self.events)
        if self.error is not None:
            return RowResult(self.index, events=events, error=self.error)
        return RowResult(self.index, self.request.result(events), events)
