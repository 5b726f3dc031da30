"""`apd tune`: settings found for this machine, this pair and this kind of text.

Everything that can be wrong without the models is found before they are loaded. Knows nothing of
how the search goes (`tune.search`) and of how its result looks (`tune_report`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING

from apdcli.cli import generate, options
from apdcli.cli.context import Context
from apdcli.cli.loading import loading, tell_loaded
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.outputs import check_writable
from apdcli.cli.progress import Progress
from apdcli.cli.tune_options import Job
from apdcli.cli.variables import note_unknown
from apdcli.errors import ApdError, UsageError
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from apdcli.cli.tune_report import Result
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings
    from apdcli.tasks.types import Task
    from apdcli.tune.search import Found
    from apdcli.tune.search import Progress as Where
    from apdcli.tune.setup import Ground
    from apdcli.tune.study import Study

_MACHINE = ("dtype", "quantize", "engine")
_STOPPED = "stopped before a first result; the same command goes on"


def run(job: Job, context: Context) -> int:
    """Do the job; returns the exit status."""
    note_unknown(context, quiet=job.quiet, verbose=job.verbose)
    from apdcli.decode.params import strategy_info
    from apdcli.load.tuned import check_tunable
    from apdcli.tune.space import knobs

    profile, settings = generate.resolve(job, context, seed=0)
    own = {n: settings[n].value for n in strategy_info(settings.strategy).own_fields}
    searched = knobs(settings.strategy, settings["max_tokens"].value, own)
    _check_free(settings, {knob.name for knob in searched})
    _ = context.out  # closed: say so before the work
    if job.write:
        check_tunable(profile)
    if job.plot is not None:
        check_writable(job.plot)
    task = None if job.prompts is not None else _task(job, settings)
    ground = _ground(job, context, profile, settings, task)
    study = _study(job, context, ground)
    found = _search(job, context, ground, study)
    return _deliver(job, context, ground, study, found)


def _check_free(settings: Settings, searched: Set[str]) -> None:
    """Refuse a schedule of steps where K is searched, which would say nothing beside it."""
    steps = settings.get("steps")
    if "k" in searched and steps is not None and steps.value is not None:
        raise UsageError(
            f"{options.flag_of('steps')} {steps.value} ({steps.origin}) says how many tokens a "
            f"step takes, and the search is for K: leave it out, or begin with "
            f"{options.flag_of('k')} N"
        )


def _task(job: Job, settings: Settings) -> Task:
    from apdcli.tasks.load import load_task

    return load_task(
        job.task or "all",
        split="tune",
        scorer=job.scorer,
        allow_code=job.allow_code,
        limit=job.limit,
        seed=settings["seed"].value,
    )


def _ground(
    job: Job, context: Context, profile: Profile, settings: Settings, task: Task | None
) -> Ground:
    """The models and the task, which without labels needs the models' own careful answers."""
    began = time.perf_counter()
    with loading(context, quiet=job.quiet, stopped=_STOPPED):
        from apdcli.cli.models import load_models
        from apdcli.tune.setup import Ground

        pair = load_models(profile, settings)
    tell_loaded(context, pair, settings, began, quiet=job.quiet, verbose=job.verbose)
    if task is None:
        task = _prompts(job, context, pair, settings)
    return Ground.of(pair, task, settings, job.flags, context.environ)


def _prompts(job: Job, context: Context, pair: LoadedPair, settings: Settings) -> Task:
    from apdcli.tasks.agreement import load_prompts

    assert job.prompts is not None
    with contextlib.ExitStack() as stack:
        bars: list[Progress] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(context, total, quiet=job.quiet)))
            elif done:
                bars[0].step()

        return load_prompts(
            job.prompts,
            pair,
            settings,
            limit=job.limit,
            seed=settings["seed"].value,
            progress=progress,
        )


def _study(job: Job, context: Context, ground: Ground) -> Study:
    with loading(context, quiet=job.quiet, stopped=_STOPPED):
        from apdcli.tune.storage import default_storage
        from apdcli.tune.study import open_study

        storage = job.storage or default_storage(context.environ)
        study = open_study(storage, job.study or ground.study_name(), ground.study_setup())
    if job.verbose:
        context.say(f"study     {study.name} in {study.where}, {study.count()} settings so far")
        context.say(f"device    {ground.device}")
    return study


def _search(job: Job, context: Context, ground: Ground, study: Study) -> Found:
    from apdcli.tune.search import Search

    signals = context.signals
    bar = _Bar(context, job)
    with signals.patient(), bar:
        search = Search(
            study=study,
            bench=ground.bench(study.reference, lambda: signals.interrupted),
            target=job.target,
            trials=job.trials,
            timeout=job.timeout,
            seed=ground.settings["seed"].value,
            interrupted=lambda: signals.interrupted,
            report=bar.show,
        )
        return search.run()


def _deliver(job: Job, context: Context, ground: Ground, study: Study, found: Found) -> int:
    """Print the result so far, whatever ended the search; then say what is wrong, if anything."""
    from apdcli.cli import tune_report

    interrupted = found.ended == "interrupted"
    if not found.finished or found.baseline is None:
        if found.failure is not None:
            raise found.failure
        if interrupted:
            _note(job, context, _STOPPED)
            return INTERRUPTED
        what = "one token a step" if found.baseline is None else "a first setting"
        raise ApdError(
            f"{found.seconds:.0f} s were too short to measure {what} on "
            f"{len(ground.task.items)} prompts: give more --timeout or a smaller --limit"
        )
    result = tune_report.Result(found, ground.task, ground.device, study.space)
    written: str | None = None
    chosen = found.chosen
    if job.write and chosen is not None and chosen.candidate is not None and not interrupted:
        written = str(_write(ground, result, _with(job)))
    if job.json:
        context.print(tune_report.envelope(result, study, ground, written))
    else:
        tune_report.show(result, context)
    if job.plot is not None:
        from apdcli.render.plots import save_plot

        save_plot(job.plot, result.picture())
    if job.verbose:
        context.say(f"ended     {found.ended}, {found.new} new settings in {found.seconds:.1f} s")
    if found.ended == "trials" and not found.new:
        _note(job, context, f"all {job.trials} settings were known already; more --trials go on")
    if written is not None and not job.json:
        _note(job, context, f"written to {written}; apd profiles show says what is in effect")
        if measured := _with(job):
            _note(job, context, f"measured with {measured}: give it to apd generate, too")
    if found.failure is not None:
        raise found.failure
    if interrupted:
        not_written = "; nothing was written" if job.write else ""
        _note(job, context, f"stopped{not_written}; the same command goes on")
        return INTERRUPTED
    if chosen is not None and chosen.candidate is None:
        raise ApdError(result.out_of_reach())
    return 0


def _with(job: Job) -> str:
    """The flags that change how fast it is and are not part of what is written."""
    return " ".join(f"--{name} {job.flags[name]}" for name in _MACHINE if name in job.flags)


def _write(ground: Ground, result: Result, measured_with: str) -> Path:
    from apdcli.load.tuned import write_tuned

    values = {"strategy": ground.settings.strategy, **result.chosen_values()}
    note = result.note() + (f", measured with {measured_with}" if measured_with else "")
    return write_tuned(ground.profile, ground.device, values, note=note)


def _note(job: Job, context: Context, text: str) -> None:
    """Tell people; a log of a script stays clean."""
    if not job.quiet and (job.verbose or is_terminal(context.stderr)):
        context.say(text)


class _Bar(Progress):
    """How far the search is, with the best setting so far."""

    def __init__(self, context: Context, job: Job) -> None:
        super().__init__(context, job.trials, quiet=job.quiet)
        self._timeout = job.timeout
        self._where: Where | None = None

    def show(self, where: Where) -> None:
        """Draw the line anew, not too often."""
        self._where = where
        self._done = where.tried - 1
        self.step()

    def line(self, columns: int) -> str:
        """Settings tried, the one being measured, the best so far, the time left."""
        where = self._where
        if where is None:
            return "starting"[:columns]
        left = max(0, round(self._timeout - (self._clock() - self._began)))
        clock = f"at most {left // 60}:{left % 60:02} left"
        now = min(where.tried + 1, where.of)  # the one that is being measured
        setting = f"setting {now}/{where.of}" if where.doing == "setting" else where.doing
        parts = [setting, f"prompt {where.answered}/{where.items}", clock]
        if where.best is not None:
            from apdcli.cli.tune_report import settings_text

            quality = f"{100 * where.best.quality:.1f} %"
            parts.insert(2, f"best {settings_text(where.best.values)} {quality}")
        text = "  ".join(parts)
        if len(text) > columns and len(parts) == 4:
            text = "  ".join([*parts[:2], parts[3]])
        room = min(20, columns - len(text) - 2)
        if room >= 5:
            share = (where.tried + where.answered / max(1, where.items)) / max(1, where.of)
            filled = min(room, int(room * share))
            text = "━" * filled + "╌" * (room - filled) + "  " + text
        return text[:columns]
