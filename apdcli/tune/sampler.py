"""Which setting to try next: Optuna's multi-objective TPE, and steps between good settings.

The study keeps qualities and speeds as measured, whatever the target, and without one the sampler
looks for the whole front. Towards a target it sees one value instead: of settings that reach the
target what is to be the best there, of the others how far they are from it. So the search spends
its time where the answer lies.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from apdcli.tune.front import Goal
from apdcli.tune.measure import Measured
from apdcli.tune.space import Choice, Knob, Ladder, Real, together

MEASURED = "measured"  # the trials' attribute that holds what was measured
_STARTUP, _ATTEMPTS = 8, 16
_TURNS = 3  # of so many suggestions one is TPE's, the others lie between good settings
_REAL_STEP, _LADDER_STEP, _STRAY = 0.06, 1.0, 0.15
DIRECTIONS = (
    StudyDirection.MAXIMIZE,
    StudyDirection.MAXIMIZE,
)  # quality, speed


def stored_distributions(space: Sequence[Knob]) -> dict[str, BaseDistribution]:
    """As the study keeps the parameters: by their own values, readable in any dashboard."""
    return {
        k.name: FloatDistribution(k.low, k.high, log=k.log)
        if isinstance(k, Real)
        else CategoricalDistribution(k.values)
        for k in space
    }


def _viewed_distribution(knob: Knob) -> BaseDistribution:
    """As the sampler sees a knob: a ladder is a whole number, so that neighbours are alike."""
    if isinstance(knob, Real):
        return FloatDistribution(knob.low, knob.high, log=knob.log)
    if isinstance(knob, Ladder):
        return IntDistribution(0, len(knob.values) - 1)
    return CategoricalDistribution(knob.values)


def key_of(space: Sequence[Knob], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells settings apart."""
    return tuple(str(k.tidy(values[k.name])) for k in space)


@dataclass(frozen=True)
class _Known:
    """A setting that was tried.

    Attributes:
        values: quality and speed, of a setting that was given up as far as they were seen; () of
            one that is being measured.
    """

    params: Mapping[str, Any]
    values: tuple[float, ...]

    @classmethod
    def of(cls, trial: FrozenTrial) -> _Known:
        """What the study knows of a trial."""
        if trial.state == TrialState.COMPLETE:
            return cls(trial.params, tuple(trial.values))
        if MEASURED not in trial.user_attrs:
            return cls(trial.params, ())
        partial = Measured.from_json(trial.user_attrs[MEASURED])
        return cls(trial.params, (partial.quality.mean, partial.speed.median))


class TowardsGoal(optuna.samplers.BaseSampler):
    """Suggests settings that the study has not tried.

    Every suggestion is drawn with a seed of its own, made of the search's seed and the trial's
    number: the search can be repeated, and processes that share a study do not walk in step.
    """

    def __init__(self, space: Sequence[Knob], goal: Callable[[], Goal], seed: int) -> None:
        """Args:
        goal: asked at each suggestion, as a relative target is known only once one token a step
            has been measured.
        """
        self._space = tuple(space)
        self._goal = goal
        self._seed = seed

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All knobs at once."""
        return stored_distributions(self._space)

    def sample_relative(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        """One setting, new if a few attempts find a new one."""
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        others = study.get_trials(deepcopy=False, states=states)
        known = [
            _Known.of(t)
            for t in others
            if t.number != trial.number and set(t.params) == set(search_space)
        ]
        tried = {key_of(self._space, t.params) for t in known}
        values: dict[str, Any] = {}
        for attempt in range(_ATTEMPTS):
            seed = _mixed(self._seed, trial.number, attempt)
            if attempt > _ATTEMPTS // 2 or len(known) < _STARTUP:
                values = self._suggest(optuna.samplers.RandomSampler(seed=seed), known)
            elif trial.number % _TURNS and any(t.values for t in known):
                values = self._between(known, random.Random(seed))
            else:
                tpe = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=1)
                values = self._suggest(tpe, known)
            values = together(self._space, values)
            if key_of(self._space, values) not in tried:
                break
        return values

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """For an enqueued setting that names only some of the knobs."""
        seed = _mixed(self._seed, trial.number, param_name)
        sampler = optuna.samplers.RandomSampler(seed=seed)
        return sampler.sample_independent(study, trial, param_name, param_distribution)

    def _between(self, known: Sequence[_Known], rng: random.Random) -> dict[str, Any]:
        """A setting between two good ones, a little beside the line.

        Towards a target the best lies where it is just reached: between the best setting that
        reaches it and one that is better in the other measure and does not. Without a target the
        front is filled: between two neighbours on it.
        """
        done = [t for t in known if t.values]
        best = _pareto(done)
        goal = self._goal()
        if goal == Goal():
            place = rng.randrange(max(1, len(best) - 1))
            one, other = best[place], best[min(place + 1, len(best) - 1)]
        else:
            one = max(done, key=lambda t: self._worth(*t.values)[0])
            other = rng.choice(_next_to(best, one))
        share = rng.uniform(0.1, 0.9) if goal == Goal() else rng.uniform(0.0, 0.7)
        return {
            k.name: _stepped(k, one.params[k.name], other.params[k.name], share, rng)
            for k in self._space
        }

    def _suggest(
        self, sampler: optuna.samplers.BaseSampler, known: Sequence[_Known]
    ) -> dict[str, Any]:
        """Ask a sampler on a copy of the study that lives in memory and has values for the goal."""
        directions = DIRECTIONS if self._goal() == Goal() else DIRECTIONS[:1]
        view = optuna.create_study(directions=directions, sampler=sampler)
        distributions = {k.name: _viewed_distribution(k) for k in self._space}
        view.add_trials([self._viewed(trial, distributions) for trial in known])
        asked = view.ask(distributions).params
        return {k.name: _value(k, asked[k.name]) for k in self._space}

    def _viewed(self, trial: _Known, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
        params = {k.name: _seen(k, trial.params[k.name]) for k in self._space}
        given: dict[str, Any] = {"params": params, "distributions": dict(distributions)}
        if not trial.values:  # being measured elsewhere: no place to go, too
            return optuna.trial.create_trial(state=TrialState.PRUNED, **given)
        return optuna.trial.create_trial(values=self._worth(*trial.values), **given)

    def _worth(self, quality: float, speed: float) -> list[float]:
        goal = self._goal()
        if goal.speed > 0:
            return [quality if speed >= goal.speed else speed / goal.speed - 1]
        if goal.quality > 0:
            # speeds are above 0, so whatever reaches the quality is worth more than what does not
            return [speed if quality >= goal.quality else quality / goal.quality - 1]
        return [quality, speed]


def _pareto(trials: Sequence[_Known]) -> list[_Known]:
    """The trials that none dominates, slowest first."""
    kept: list[_Known] = []
    for trial in sorted(trials, key=lambda t: (-t.values[1], -t.values[0])):
        if not kept or trial.values[0] > kept[-1].values[0]:
            kept.append(trial)
    return kept[::-1]


def _next_to(front: Sequence[_Known], one: _Known) -> list[_Known]:
    """The trials of the front nearest to one of them in speed, on both sides; itself if alone."""
    slower = [t for t in front if t.values[1] < one.values[1]][-2:]
    faster = [t for t in front if t.values[1] > one.values[1]][:1]
    return [*slower, *faster] or [one]


def _stepped(knob: Knob, one: Any, other: Any, share: float, rng: random.Random) -> Any:
    """A value so far on the way from one to the other, and a little beside it."""
    if isinstance(knob, Choice):
        stray = rng.random() < _STRAY
        return rng.choice(knob.values) if stray else other if rng.random() < share else one
    a, b = float(_seen(knob, one)), float(_seen(knob, other))
    if isinstance(knob, Ladder):
        place = a + share * (b - a) + rng.gauss(0, _LADDER_STEP)
        return knob.values[min(len(knob.values) - 1, max(0, round(place)))]
    if knob.log:
        wide = math.log(knob.high / knob.low)
        way = math.log(a) + share * math.log(b / a)
        return knob.tidy(math.exp(way + rng.gauss(0, _REAL_STEP * wide)))
    wide = knob.high - knob.low
    return knob.tidy(a + share * (b - a) + rng.gauss(0, _REAL_STEP * wide))


def _seen(knob: Knob, value: Any) -> Any:
    if isinstance(knob, Ladder):
        return knob.values.index(knob.tidy(value))
    return knob.tidy(value) if isinstance(knob, Choice) else min(knob.high, max(knob.low, value))


def _value(knob: Knob, seen: Any) -> Any:
    return knob.values[seen] if isinstance(knob, Ladder) else knob.tidy(seen)


def _mixed(*parts: object) -> int:
    """A seed of 32 bits that is the same in every process."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")
