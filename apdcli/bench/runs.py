"""Generations of several settings, one after another in turns, so that noise falls on all alike.

Knows nothing of tables: what was measured comes back as numbers, one record a generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from apdcli.bench.machine import PeakMemory
from apdcli.bench.timing import Probe, Split
from apdcli.decode.loop import decode
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, StepEvent
from apdcli.engine.sampling import make_sampler
from apdcli.engine.session import Request

Interrupted = Callable[[], bool]


@dataclass(frozen=True)
class Case:
    """One setting with its requests, one a prompt, in the same order for all settings."""

    name: str
    requests: tuple[Request, ...]


@dataclass(frozen=True)
class Run:
    """One generation.

    Attributes:
        tokens: generated tokens up to and including the end token, never the prompt.
        steps: strategy steps.
        seconds: wall time from the request to the last event, allocation of caches included.
        first_s: seconds until the answer's first token stood; None if there is none.
        denoiser_forwards, verifier_forwards: forward passes.
        finish_reason: "stop" or "length".
        split: where the time of a second, timed run of the same request went.
    """

    tokens: int
    steps: int
    seconds: float
    first_s: float | None
    denoiser_forwards: int
    verifier_forwards: int
    finish_reason: str
    split: Split | None


@dataclass(frozen=True)
class Memory:
    """What one generation on the longest prompt took.

    Attributes:
        peak_bytes: at most, everything counted.
        extra_bytes: how much of it was not there when the generation began.
        kind: of what: see `machine.PeakMemory`.
    """

    peak_bytes: int
    extra_bytes: int
    kind: str


@dataclass(frozen=True)
class Turn:
    """Every setting once on one prompt.

    Attributes:
        repeat, prompt: which, from 0.
        runs: by setting.
    """

    repeat: int
    prompt: int
    runs: dict[str, Run]


@dataclass
class Plan:
    """What is to be run.

    Attributes:
        cases: the settings; the first is what others are compared with.
        repeats: times each prompt is answered by each setting.
        warmup: rounds over all prompts that are not counted.
        split: also run each request with timers around the models.
        interrupted: asked between steps; what is complete by then is kept.
        progress: told before each generation: (done, of how many, the setting's name).
    """

    cases: Sequence[Case]
    repeats: int
    warmup: int = 1
    split: bool = True
    interrupted: Interrupted = lambda: False
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, name: None)
    _done: int = 0

    @property
    def prompts(self) -> int:
        """How many prompts every setting answers."""
        return len(self.cases[0].requests)

    @property
    def total(self) -> int:
        """Generations in all, those that do not count included; a timed second run is none."""
        return len(self.cases) * ((self.warmup + self.repeats) * self.prompts + 1)

    def warm_up(self) -> bool:
        """Run what does not count; False when interrupted."""
        for _ in range(self.warmup):
            for prompt in range(self.prompts):
                for case in self.cases:
                    self.progress(self._done, self.total, f"{case.name}, warming up")
                    if _generate(case.requests[prompt], self.interrupted) is None:
                        return False
                    self._done += 1
        return True

    def memory(self) -> dict[str, Memory] | None:
        """What each setting takes on the longest prompt; None when interrupted.

        A run of its own: counting memory exactly would slow down a run that is timed.
        """
        lengths = [len(request.prompt_ids) for request in self.cases[0].requests]
        longest = lengths.index(max(lengths))
        found: dict[str, Memory] = {}
        for case in self.cases:
            self.progress(self._done, self.total, f"{case.name}, memory")
            request = case.requests[longest]
            meter = PeakMemory(request.pair.device)
            meter.start()
            if _generate(request, self.interrupted) is None:
                return None
            found[case.name] = Memory(*meter.read(), meter.kind)
            self._done += 1
        return found

    def turns(self) -> Iterator[Turn]:
        """Measure, one turn after another. When interrupted, the turn under way is dropped."""
        for repeat in range(self.repeats):
            for prompt in range(self.prompts):
                runs: dict[str, Run] = {}
                # Another one begins each time, so that none always follows the same neighbour.
                shift = (repeat + prompt) % len(self.cases)
                for case in (*self.cases[shift:], *self.cases[:shift]):
                    self.progress(self._done, self.total, case.name)
                    run = self._run(case.requests[prompt])
                    if run is None:
                        return
                    runs[case.name] = run
                    self._done += 1
                yield Turn(repeat, prompt, {case.name: runs[case.name] for case in self.cases})

    def _run(self, request: Request) -> Run | None:
        answer = _generate(request, self.interrupted)
        if answer is None:
            return None
        split = None
        if self.split:
            split = timed(request, self.interrupted)
            if split is None:
                return None
        tokens = answer_length(answer.steps, len(request.prompt_ids), request.shared.stop_ids)
        return Run(
            tokens=tokens,
            steps=answer.last.steps,
            seconds=answer.seconds,
            first_s=answer.first_s,
            denoiser_forwards=answer.last.denoiser_forwards,
            verifier_forwards=answer.last.verifier_forwards,
            finish_reason=answer.last.reason,
            split=split,
        )


def complete(turns: Sequence[Turn], prompts: int) -> list[list[Turn]]:
    """The turns by repeat, without a last repeat that was cut short; unless it is the only one."""
    repeats: dict[int, list[Turn]] = {}
    for turn in turns:
        repeats.setdefault(turn.repeat, []).append(turn)
    grouped = list(repeats.values())
    if len(grouped) > 1 and len(grouped[-1]) < prompts:
        grouped.pop()
    return grouped


def timed(request: Request, interrupted: Interrupted = lambda: False) -> Split | None:
    """Run a request with timers around its models and its strategy; None when interrupted."""
    probe = Probe(request.pair.device)
    began = time.perf_counter()
    events = _probed(request, probe, interrupted)
    last = None
    for event in events:
        last = event
    seconds = time.perf_counter() - began
    if not isinstance(last, Finished) or last.reason == "interrupted":
        return None
    return probe.split(seconds, last.steps)


def answer_length(steps: Sequence[StepEvent], start: int, stop_ids: frozenset[int]) -> int:
    """Tokens from `start` up to the first gap, or up to and including the first end token."""
    placed = {position: id_ for step in steps for position, id_ in step.committed}
    count = 0
    while start + count in placed:
        count += 1
        if placed[start + count - 1] in stop_ids:
            break
    return count


@dataclass(frozen=True)
class _Answer:
    steps: list[StepEvent]
    last: Finished
    seconds: float
    first_s: float | None


def _generate(request: Request, interrupted: Interrupted) -> _Answer | None:
    """Run a request exactly as users do; None when interrupted."""
    start = len(request.prompt_ids)
    steps: list[StepEvent] = []
    first: float | None = None
    began = time.perf_counter()
    for event in request.events(interrupted):
        if isinstance(event, Finished):
            if event.reason == "interrupted":
                return None
            return _Answer(steps, event, time.perf_counter() - began, first)
        if first is None and any(position == start for position, _ in event.committed):
            first = time.perf_counter() - began
        steps.append(event)
    return None


def _probed(
    request: Request, probe: Probe, interrupted: Interrupted
) -> Iterator[StepEvent | Finished]:
    """What `Request.events` does, with the probe's timers in between; stop strings are ignored."""
    pair, shared = request.pair, request.shared
    models = pair.models(len(request.prompt_ids) + shared.max_tokens)
    return decode(
        Canvas.blank(request.prompt_ids, shared.max_tokens, models.denoiser.mask_id, pair.device),
        probe.strategy(
            make_strategy(request.strategy, shared, request.own, make_sampler(shared, pair.device))
        ),
        probe.pair(models),
        stop_ids=shared.stop_ids,
        interrupted=interrupted,
    )
