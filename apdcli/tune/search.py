"""The search: ask for a setting, measure it, stop early where it cannot win, until time is up.

Knows neither models nor terminals: it is given a bench that measures and a study that remembers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna

from apdcli.errors import OutputError
from apdcli.tune.front import Candidate, Chosen, Goal, choose, front, out_of_reach
from apdcli.tune.measure import ONE_A_STEP, Bench, Measured, StoppedError
from apdcli.tune.sampler import TowardsGoal
from apdcli.tune.study import Study, TakenError
from apdcli.tune.target import Target

Ended = Literal["trials", "timeout", "interrupted", "exhausted", "failed"]
_FIRST_LOOK = 24  # answers before a setting may be given up
_WAIT_S = 0.5


@dataclass(frozen=True)
class Progress:
    """Where the search is.

    Attributes:
        tried: settings finished or pruned, by all processes.
        of: how many there are to be at most.
        doing: "one token a step", or "setting".
        answered, items: of the setting that is being measured.
        best: what would be chosen now.
    """

    tried: int
    of: int
    doing: str
    answered: int
    items: int
    best: Candidate | None


@dataclass(frozen=True)
class Found:
    """What a search knows at its end.

    Attributes:
        baseline: one token a step; None where the time was too short for it.
        finished: settings measured on all items.
        pruned: settings given up early.
        target, goal: what was asked for, and what it means in units of measurement.
        reference: values of the setting that all were timed against.
        ended: why the search ended.
        new: settings that this process tried.
        seconds: wall time of this process' search.
        failure: what went wrong with the storage, if that is why it ended.
    """

    baseline: Measured | None
    finished: tuple[Candidate, ...]
    pruned: tuple[Candidate, ...]
    target: Target | None
    reference: Mapping[str, Any]
    ended: Ended
    new: int
    seconds: float
    failure: OutputError | None = None

    @property
    def goal(self) -> Goal:
        """The target in units of measurement."""
        if self.baseline is None:
            return Goal()
        return Goal.of(self.target, self.baseline, self.steps_per_second)

    @property
    def front(self) -> list[Candidate]:
        """The Pareto front, slowest first."""
        return front(self.finished)

    @property
    def chosen(self) -> Chosen | None:
        """What the target asks for; None without a target."""
        return None if self.target is None else choose(self.finished, self.target, self.goal)

    @property
    def steps_per_second(self) -> float:
        """Of the reference, pooled over everything that was measured."""
        return pooled_speed([c.measured for c in (*self.finished, *self.pruned)], self.baseline)

    @property
    def answers(self) -> int:
        """Answers given to find this, those of the reference not counted."""
        own = sum(len(c.measured.scores) for c in (*self.finished, *self.pruned))
        return own + (len(self.baseline.scores) if self.baseline else 0)

    @property
    def reference_answers(self) -> int:
        """Answers that the reference gave beside them."""
        own = sum(c.measured.reference_answers for c in (*self.finished, *self.pruned))
        return own + (self.baseline.reference_answers if self.baseline else 0)


def pooled_speed(measured: Sequence[Measured], baseline: Measured | None) -> float:
    """Steps a second of the reference over all that was measured beside it."""
    every = [*measured, *([baseline] if baseline else [])]
    seconds = sum(m.reference_seconds for m in every)
    return sum(m.reference_steps for m in every) / seconds if seconds > 0 else 0.0


@dataclass
class Search:
    """One process' part in a study.

    Attributes:
        trials: settings that the study is to have tried, by whatever process.
        timeout: seconds for this process.
        interrupted: Ctrl-C was pressed.
        report: is told where the search is.
        clock: seconds, monotonic; `timeout` is of these.
    """

    study: Study
    bench: Bench
    target: Target | None
    trials: int
    timeout: float
    seed: int
    interrupted: Callable[[], bool] = lambda: False
    report: Callable[[Progress], None] = lambda progress: None
    prune: bool = True
    clock: Callable[[], float] = time.monotonic

    _began: float = field(default=0.0, init=False)
    _new: int = field(default=0, init=False)
    _baseline: Measured | None = field(default=None, init=False)
    _finished: list[Candidate] = field(default_factory=list, init=False)
    _pruned: list[Candidate] = field(default_factory=list, init=False)

    def run(self) -> Found:
        """Search until the study has its trials, the time is up or Ctrl-C; never loses a result."""
        self._began = self.clock()
        self.bench.stopped = self._over
        self.study.use(TowardsGoal(self.study.space, self._goal, self.seed))
        failure: OutputError | None = None
        try:
            self._look()
            ended = self._search()
        except OutputError as error:
            failure, ended = error, "failed"
        except KeyboardInterrupt:  # the second Ctrl-C, in the middle of an answer
            ended = "interrupted"
        with contextlib.suppress(OutputError):
            self._look()
        return Found(
            baseline=self._baseline,
            finished=tuple(self._finished),
            pruned=tuple(self._pruned),
            target=self.target,
            reference=self.study.reference,
            ended=ended,
            new=self._new,
            seconds=self.clock() - self._began,
            failure=failure,
        )

    def _search(self) -> Ended:
        ended: Ended | None = None
        try:
            self._measure_baseline()
            while ended is None:
                ended = self._one_more()
            while self._baseline is None and not self._over():  # another process is at it
                time.sleep(_WAIT_S)
                self._look()
                self._measure_baseline()
        except StoppedError:
            ended = None
        return ended or ("interrupted" if self.interrupted() else "timeout")

    def _one_more(self) -> Ended | None:
        """Measure one more setting; or why there is none."""
        if self._over():
            raise StoppedError(Measured())
        self.study.free_stale()
        self._look()
        if self.study.count(running=True) >= self.trials:
            if self.study.count() >= self.trials or not self.study.has_unclaimed():
                return "trials"
            time.sleep(_WAIT_S)  # whoever asked for it claims it in a moment, or has died
            return None
        trial = self.study.ask()
        if trial is None:
            return "exhausted"
        try:
            self._measure(trial)
        except OutputError:
            raise
        except TakenError:  # after a long silence of this process: its setting waits again
            return None
        except BaseException:
            with contextlib.suppress(OutputError, TakenError):
                self.study.give_up(trial, again=True)
            raise
        return None

    def _measure(self, trial: optuna.Trial) -> None:
        values, look = trial.params, _FIRST_LOOK
        self._tell("setting", 0)
        for measured in self.bench.measure(values):
            self.study.beat(trial)
            count = len(measured.scores)
            self._tell("setting", count)
            if self.prune and look <= count < len(self.bench.items):
                look = 2 * count
                why = out_of_reach(measured, self._finished, self._goal())
                if why is not None:
                    self.study.prune(trial, measured, why)
                    self._pruned.append(Candidate(trial.number, values, measured))
                    self._new += 1
                    return
        self.study.complete(trial, measured)
        self._finished.append(Candidate(trial.number, values, measured))
        self._new += 1

    def _measure_baseline(self) -> None:
        """One token a step, unless the study has it or another process is measuring it."""
        if self._baseline is not None or not self.study.claim_baseline():
            return
        self._tell("one token a step", 0)
        for measured in self.bench.measure(ONE_A_STEP):
            self._tell("one token a step", len(measured.scores))
        self.study.keep_baseline(measured)
        self._baseline = measured

    def _look(self) -> None:
        """Read what all processes have found so far."""
        self._baseline = self.study.baseline or self._baseline
        self._finished, self._pruned = self.study.finished(), self.study.pruned()

    def _goal(self) -> Goal:
        if self._baseline is None:
            return Goal()
        every = [c.measured for c in (*self._finished, *self._pruned)]
        return Goal.of(self.target, self._baseline, pooled_speed(every, self._baseline))

    def _over(self) -> bool:
        return self.interrupted() or self.clock() - self._began > self.timeout

    def _tell(self, doing: str, answered: int) -> None:
        best: Candidate | None = None
        if self.target is not None and self._baseline is not None:
            best = choose(self._finished, self.target, self._goal()).candidate
        tried = len(self._finished) + len(self._pruned)
        self.report(Progress(tried, self.trials, doing, answered, len(self.bench.items), best))
