"""The stored search: an Optuna study that survives a kill and that several processes may share.

Beside Optuna's trials it keeps what they are about (the identity), the space, the reference and
one token a step. Every failure of the storage becomes one line that says what is kept.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState

from apdcli.errors import UsageError
from apdcli.tune.front import Candidate
from apdcli.tune.measure import Measured
from apdcli.tune.sampler import DIRECTIONS, MEASURED, key_of, stored_distributions
from apdcli.tune.space import Knob, possible, space_as_json, space_from_json
from apdcli.tune.storage import open_storage, patiently, shown

_T = TypeVar("_T")
_SILENT_S, _BEAT_S, _UNCLAIMED_S = 1800, 15, 30
_PATIENCE = 40
_OWNER, _WHY = "owner", "why"

# Optuna reports on stderr by itself; what matters is reported by us.
optuna.logging.disable_default_handler()
optuna.logging.set_verbosity(optuna.logging.CRITICAL)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True)
class Setup:
    """What a new study starts with.

    Attributes:
        identity: what the study is about, by name, as texts; a study is never used for another.
        space: the knobs.
        reference: values of the setting that all others are timed against.
        first: settings to try first.
    """

    identity: Mapping[str, str]
    space: tuple[Knob, ...]
    reference: Mapping[str, Any]
    first: Sequence[Mapping[str, Any]]


class TakenError(Exception):
    """Another process took a trial for dead and has put its setting back."""


class Study:
    """One search, as it is stored; made by :func:`open_study`."""

    def __init__(self, study: optuna.Study, where: str, setup: Setup) -> None:
        self.where = where
        self._study = study
        self._beaten = 0.0
        attributes = self._do(lambda: study.user_attrs)
        if "identity" not in attributes:
            for name, value in (
                ("space", space_as_json(setup.space)),
                ("reference", dict(setup.reference)),
                ("identity", dict(setup.identity)),
            ):
                self._do(functools.partial(study.set_user_attr, name, value))
            attributes = self._do(lambda: study.user_attrs)
        _check_identity(study.study_name, attributes["identity"], setup.identity)
        self.space = space_from_json(attributes["space"])
        self.reference: Mapping[str, Any] = attributes["reference"]
        for values in setup.first:
            self.enqueue({k.name: k.tidy(values[k.name]) for k in self.space})

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study_name

    def use(self, sampler: optuna.samplers.BaseSampler) -> None:
        """Let this sampler suggest the settings."""
        self._study.sampler = sampler

    @property
    def baseline(self) -> Measured | None:
        """One token a step, once a process has measured it."""
        table = self._do(lambda: self._study.user_attrs).get("baseline")
        return None if table is None else Measured.from_json(table)

    def keep_baseline(self, measured: Measured) -> None:
        """Store it for all who share the study."""
        self._do(lambda: self._study.set_user_attr("baseline", measured.as_json()))

    def claim_baseline(self) -> bool:
        """Whether this process is to measure one token a step, as no living one does."""
        me, owner = self._me(), self._do(lambda: self._study.user_attrs).get("baseline_owner")
        if owner is not None and _who(owner) != _who(me) and _alive(owner):
            return False
        self._do(lambda: self._study.set_user_attr("baseline_owner", me))
        return _who(self._do(lambda: self._study.user_attrs)["baseline_owner"]) == _who(me)

    def enqueue(self, values: Mapping[str, Any]) -> None:
        """Have a setting tried next, unless it was measured or waits already."""
        wanted = key_of(self.space, values)
        for trial in self._trials():
            if self._counts(trial) and self._key(self._given(trial)) == wanted:
                return
        self._do(lambda: self._study.enqueue_trial(dict(values)))

    def ask(self) -> optuna.Trial | None:
        """The next setting to measure; None where all that is left to suggest is being measured."""
        for _ in range(8):
            trial = self._do(self._study.ask, stored_distributions(self.space))
            with contextlib.suppress(TakenError):
                self.beat(trial, now=True)
                # an earlier apd may have put in its queue what does not go together
                fresh = possible(trial.params) and not self._is_double(trial)
                self._check_mine(trial)
                if fresh:
                    return trial
                self.give_up(trial)
        return None

    def beat(self, trial: optuna.Trial, *, now: bool = False) -> None:
        """Tell those who share the study that this trial is being worked on."""
        if now or time.monotonic() - self._beaten > _BEAT_S:
            self._own(lambda: trial.set_user_attr(_OWNER, self._me()))
            self._beaten = time.monotonic()

    def complete(self, trial: optuna.Trial, measured: Measured) -> None:
        """Store a setting's qualities and speed."""
        self._check_mine(trial)
        self._own(lambda: trial.set_user_attr(MEASURED, measured.as_json()))
        values = [measured.quality.mean, measured.speed.median]
        self._own(lambda: self._study.tell(trial.number, values))

    def prune(self, trial: optuna.Trial, measured: Measured, why: str) -> None:
        """Store what was seen of a setting that cannot reach the front."""
        self._check_mine(trial)
        self._own(lambda: trial.set_user_attr(MEASURED, measured.as_json()))
        self._own(lambda: trial.set_user_attr(_WHY, why))
        self._own(lambda: self._study.tell(trial.number, state=TrialState.PRUNED))

    def give_up(self, trial: optuna.Trial, *, again: bool = False) -> None:
        """End a trial without a result; with `again` its setting waits to be tried."""
        self._own(lambda: self._study.tell(trial.number, state=TrialState.FAIL))
        if again:
            self.enqueue(trial.params)

    def free_stale(self) -> int:
        """End trials whose process died and put their settings back; returns their number."""
        freed = 0
        for trial in self._trials(TrialState.RUNNING):
            owner = trial.user_attrs.get(_OWNER)
            started = trial.datetime_start
            # between being asked and its first beat a trial has no owner for a moment
            fresh = started is not None and time.time() - started.timestamp() < _UNCLAIMED_S
            if (owner is None and fresh) or (owner is not None and _alive(owner)):
                continue
            with contextlib.suppress(ValueError, RuntimeError):  # another process was faster
                self._do(functools.partial(self._study.tell, trial.number, state=TrialState.FAIL))
                freed += 1
                if given := self._given(trial):
                    self.enqueue(given)
        return freed

    def finished(self) -> list[Candidate]:
        """The settings measured on all items, in the order in which they were tried."""
        return self._candidates(TrialState.COMPLETE)

    def pruned(self) -> list[Candidate]:
        """The settings given up early, with what was seen of them."""
        return self._candidates(TrialState.PRUNED)

    def count(self, *, running: bool = False) -> int:
        """Settings tried: finished or pruned, and with `running` those being measured."""
        states = [TrialState.COMPLETE, TrialState.PRUNED, *[TrialState.RUNNING] * running]
        return len(self._trials(*states))

    def has_unclaimed(self, before: float = math.inf) -> bool:
        """Whether a trial has begun and nobody has said that it is theirs, yet or for ever.

        Args:
            before: only of trials with smaller numbers.
        """
        running = self._trials(TrialState.RUNNING)
        return any(_OWNER not in t.user_attrs for t in running if t.number < before)

    def _candidates(self, state: TrialState) -> list[Candidate]:
        """The settings in this state that were measured; those of K > M hold no longer."""
        seen = (t for t in self._trials(state) if MEASURED in t.user_attrs)
        return [_candidate(t) for t in seen if possible(t.params)]

    def _is_double(self, trial: optuna.Trial) -> bool:
        """Whether the setting was measured, or an earlier trial measures it now."""
        for _ in range(_PATIENCE):  # an earlier one whose setting cannot be seen yet
            if not self.has_unclaimed(before=trial.number):
                break
            time.sleep(0.05)
        return any(
            self._counts(other)
            and self._key(other.params) == self._key(trial.params)
            and (other.state != TrialState.RUNNING or other.number < trial.number)
            for other in self._trials()
            if other.number != trial.number and other.params
        )

    def _check_mine(self, trial: optuna.Trial) -> None:
        """Two processes may take the same waiting trial at once; the last to claim it has it."""
        for running in self._trials(TrialState.RUNNING):
            owner = running.user_attrs.get(_OWNER)
            if running.number == trial.number and owner and _who(owner) != _who(self._me()):
                raise TakenError

    def _counts(self, trial: FrozenTrial) -> bool:
        """Whether a trial stands for its setting: an end without result, or for a target, not."""
        return trial.state != TrialState.FAIL and trial.user_attrs.get(_WHY) != "target"

    def _given(self, trial: FrozenTrial) -> Mapping[str, Any]:
        """Its setting; one that was taken from the queue just now may not have stored it yet."""
        complete = set(trial.params) == {k.name for k in self.space}
        return trial.params if complete else trial.system_attrs.get("fixed_params", {})

    def _key(self, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """What tells settings apart; None of a setting that is not complete."""
        complete = set(values) == {k.name for k in self.space}
        return key_of(self.space, values) if complete else None

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._do(lambda: self._study.get_trials(deepcopy=False, states=states or None))

    def _me(self) -> dict[str, Any]:
        return {"host": socket.gethostname(), "pid": os.getpid(), "seen": time.time()}

    def _own(self, work: Callable[[], object]) -> None:
        """Write to a trial of ours; raises TakenError where it no longer is."""
        try:
            self._do(work)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError) as error:
            raise TakenError from error

    def _do(self, work: Callable[..., _T], *args: Any) -> _T:
        return patiently(lambda: work(*args), self.where)


def open_study(storage: str, name: str, setup: Setup) -> Study:
    """Open or begin a study.

    Args:
        storage: an Optuna storage URL; a path ending in .db is a SQLite file, one ending in .log
            or .journal a journal, which also works in a folder that machines share over a network.

    Raises:
        UsageError: no such kind of storage, or the study is of another pair, task, strategy or
            device. OutputError: the storage cannot be reached or written.
    """
    where = shown(storage)

    def opened() -> optuna.Study:
        return optuna.create_study(
            storage=open_storage(storage),
            study_name=name,
            directions=DIRECTIONS,
            load_if_exists=True,
        )

    study = patiently(opened, where, racing=True)
    if len(study.directions) != len(DIRECTIONS):
        raise UsageError(f"study {name!r} in {where} was not made by apd tune; use another --study")
    return Study(study, where, setup)


def _check_identity(name: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Refuse a study of something else: what it would add up means nothing."""
    for part, value in wanted.items():
        if found.get(part) != value:
            raise UsageError(
                f"study {name!r} is of another {part} ({found.get(part)}, here {value}); "
                "use another --study, or none"
            )


def _candidate(trial: FrozenTrial) -> Candidate:
    return Candidate(trial.number, trial.params, Measured.from_json(trial.user_attrs[MEASURED]))


def _who(owner: Mapping[str, Any]) -> tuple[Any, Any]:
    return owner["host"], owner["pid"]


def _alive(owner: Mapping[str, Any]) -> bool:
    """Whether the process is at work, as far as can be known from here."""
    if time.time() - owner["seen"] > _SILENT_S:
        return False
    if owner["host"] != socket.gethostname() or os.name != "posix":
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
