"""`apd eval`: a task answered and judged, with intervals; one setting, or a sweep of a knob.

Everything that can be wrong without the models is found before they are loaded. Knows nothing of
how answers are judged (`tasks`) and of how results look (`eval_report`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apdcli.cli import generate, options
from apdcli.cli.context import Context
from apdcli.cli.eval_options import Job, job_with, swept_values
from apdcli.cli.loading import tell_loaded
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.progress import Progress
from apdcli.cli.variables import note_unknown
from apdcli.errors import UsageError
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings
    from apdcli.tasks.results import Header, Results
    from apdcli.tasks.types import Outcome, Task


@dataclass(frozen=True)
class Settled:
    """Every setting of the run.

    Attributes:
        settings: by swept value; one entry under None without a sweep.
        knob: what is swept, or None.
    """

    profile: Profile
    settings: Mapping[Any, Settings]
    knob: str | None

    @property
    def first(self) -> Settings:
        """Of the first value: all but the knob is the same for all."""
        return next(iter(self.settings.values()))

    def shared(self) -> dict[str, Any]:
        """The settings that results depend on, without the swept one."""
        return {
            name: setting.value
            for name, setting in self.first.items()
            if name not in ("profile", self.knob)
        }


def run(job: Job, context: Context) -> int:
    """Do the job; returns the exit status."""
    note_unknown(context, quiet=job.quiet, verbose=job.verbose)
    settled = settle(job, context)
    _ = context.out  # closed: say so before the work
    with contextlib.ExitStack() as stack:
        task = None if job.task is None else _task(job, settled)
        if task is not None and job.output is not None:
            from apdcli.tasks.results import read_results

            read_results(job.output, _header(job, task, settled, pair=""))
        pair = _load(job, settled, context)
        if task is None:
            task = _prompts(job, pair, settled, context)
        results = _open(stack, job, task, pair, settled)
        outcomes = _evaluate(job, context, (task, pair, settled), results)
        if not outcomes:  # Ctrl-C before the first answer
            return INTERRUPTED
        _report(job, context, (task, pair, settled), outcomes)
    complete = len(outcomes) == len(task.items) * len(settled.settings)
    if complete:
        return 0
    if not job.quiet and is_terminal(context.stderr):
        goes_on = "; the same command goes on there" if job.output else ""
        total = len(task.items) * len(settled.settings)
        context.say(f"stopped after {len(outcomes)} of {total} answers{goes_on}")
    return INTERRUPTED


def settle(job: Job, context: Context) -> Settled:
    """Every setting, of each value of a sweep; raises UsageError for what does not go together."""
    # without a seed it is 0, so that a run can be repeated
    profile, settings = generate.resolve(job, context, seed=0)
    if job.sweep is None:
        return Settled(profile, {None: settings}, None)
    from apdcli.tasks.sweep import default_values, knob_of

    own = knob_of(settings.strategy) if "=" not in job.sweep else ""
    knob, values = swept_values(job.sweep, own)
    if knob in job.flags:
        raise UsageError(f"{options.flag_of(knob)} and a --sweep of it exclude each other")
    if not values:
        block = settings["block_length"].value if "block_length" in settings else "all"
        most = job.flags.get("max_lookahead")
        values = [
            value
            for value in default_values(settings.strategy, settings["max_tokens"].value, block)
            if knob != "k" or not isinstance(most, int) or value <= most
        ]
    each = {
        value: _for_speed(generate.resolve(job_with(job, knob, value), context, seed=0)[1])
        for value in values
    }
    return Settled(profile, each, knob)


def _for_speed(settings: Settings) -> Settings:
    """Klass as published for speed, unless somebody chose: else it takes one token a forward."""
    from apdcli.load.settings import Setting, Settings

    if settings.strategy != "klass" or settings["parallel"].origin != "default":
        return settings
    return Settings({**settings.table, "parallel": Setting(True, "default")})


def _task(job: Job, settled: Settled) -> Task:
    from apdcli.tasks.load import is_file, load_task

    assert job.task is not None
    if job.split is not None and is_file(job.task):
        raise UsageError(f"--split {job.split}: a file has no splits; only families have")
    return load_task(
        job.task,
        split=job.split or "test",
        scorer=job.scorer,
        allow_code=job.allow_code,
        limit=job.limit,
        seed=settled.first["seed"].value,
    )


def _prompts(job: Job, pair: LoadedPair, settled: Settled, context: Context) -> Task:
    """The prompts with the pair's careful answers, which may have to be made first."""
    from apdcli.tasks.agreement import load_prompts

    assert job.prompts is not None
    with contextlib.ExitStack() as stack:
        bars: list[_Noted] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bar = _Noted(context, total, quiet=job.quiet)
                bar.note = "careful answers"
                stack.enter_context(bar)
                bars.append(bar)
            elif done:
                bars[0].step()

        return load_prompts(
            job.prompts,
            pair,
            settled.first,
            limit=job.limit,
            seed=settled.first["seed"].value,
            progress=progress,
        )


def _load(job: Job, settled: Settled, context: Context) -> LoadedPair:
    began = time.perf_counter()
    from apdcli.cli.models import load_models

    pair = load_models(settled.profile, settled.first)
    tell_loaded(context, pair, settled.first, began, quiet=job.quiet, verbose=job.verbose)
    return pair


def _header(job: Job, task: Task, settled: Settled, *, pair: str) -> Header:
    from apdcli.cli.eval_report import task_facts
    from apdcli.cli.report import versions
    from apdcli.tasks.results import Header

    return Header(
        task=task_facts(job, task),
        profile=settled.profile.name,
        pair=pair,
        settings=settled.shared(),
        knob=settled.knob,
        versions=versions(settled.first),
    )


def _open(
    stack: contextlib.ExitStack, job: Job, task: Task, pair: LoadedPair, settled: Settled
) -> Results | None:
    if job.output is None:
        return None
    from apdcli.tasks.identity import pair_digest
    from apdcli.tasks.results import Results

    header = _header(job, task, settled, pair=pair_digest(pair))
    return stack.enter_context(Results(job.output, header))


class _Noted(Progress):
    """A progress line that ends with the quality so far."""

    note = ""

    def line(self, columns: int) -> str:
        """The usual line, with the note where there is room for it."""
        note = f"  {self.note}" if self.note and columns > 60 else ""
        return super().line(columns - len(note)) + note


def _evaluate(
    job: Job,
    context: Context,
    what: tuple[Task, LoadedPair, Settled],
    results: Results | None,
) -> dict[tuple[Any, str], Outcome]:
    """Every outcome there is at the end, or at the first Ctrl-C, by swept value and item."""
    from apdcli.tasks.evaluate import Plan, evaluate

    task, pair, settled = what
    signals = context.signals
    plan = Plan(pair, task, settled.settings)
    ids = {item.id for item in task.items}
    kept = {} if results is None else results.outcomes
    known = {k: o for k, o in kept.items() if k[0] in settled.settings and k[1] in ids}
    scores = [o.score for o in known.values()]

    def keep(value: Any, outcome: Outcome) -> None:
        if results is not None:
            results.add(value, outcome)
        known[value, outcome.item] = outcome

    total = len(task.items) * len(settled.settings)
    bar = _Noted(context, total, quiet=job.quiet)
    with signals.patient(), bar:
        bar.skip(len(known))
        for outcome in evaluate(plan, known, keep, interrupted=lambda: signals.interrupted):
            scores.append(outcome.score)
            bar.note = f"{100 * sum(scores) / len(scores):.1f} %"
            bar.step(outcome.tokens)
    return known


def _report(
    job: Job,
    context: Context,
    what: tuple[Task, LoadedPair, Settled],
    outcomes: Mapping[tuple[Any, str], Outcome],
) -> None:
    from apdcli.cli import eval_report

    task, pair, settled = what
    by_value = {
        value: [o for (v, _), o in outcomes.items() if v == value] for value in settled.settings
    }
    found = eval_report.Found(task, {v: o for v, o in by_value.items() if o}, settled.knob)
    if job.json:
        facts = eval_report.task_facts(job, task)
        context.print(eval_report.envelope(found, facts, settled.settings, pair))
    else:
        eval_report.show(found, eval_report.title(job, task), context)
