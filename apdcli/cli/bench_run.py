"""What `apd bench` does once its options are read: resolve, load, measure, print.

Torch is imported only once everything that can be wrong without it has been found right.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apdcli.cli.bench import HINT, TASK, Job
from apdcli.cli.context import Context
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.outputs import check_apart, check_writable
from apdcli.cli.progress import Progress
from apdcli.cli.prompt import STDIN, read_text
from apdcli.cli.variables import note_unknown
from apdcli.errors import UsageError
from apdcli.render.output_file import OutputFile
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from apdcli.bench.benchmark import Order
    from apdcli.bench.floor import Rates
    from apdcli.bench.runs import Case
    from apdcli.bench.settings import Contender
    from apdcli.bench.sizes import Shapes
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings

_MOST_ROWS = 256


def run(job: Job, context: Context) -> int:
    """Do the job; returns the exit status."""
    note_unknown(context, quiet=job.quiet)
    profile, shapes, contenders = _resolve(job, context)
    rates = _rates(job)
    check_apart({"-o/--output": job.output, "--plot": job.plot})
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(OutputFile(job.output)) if job.output else None
        if job.plot is not None:
            check_writable(job.plot)
        _ = context.out  # closed: say so before the work
        if job.floor_only:
            result, text = _floor(profile, shapes, contenders, job, rates)
        else:
            measured = _measure(profile, shapes, contenders, job, context, rates)
            if measured is None:
                context.say("apd: interrupted before every setting had answered once")
                return INTERRUPTED
            result, text = measured, _tables(measured)
        written = json.dumps(result)
        _show(written if job.json else text.rstrip("\n"), job, context)
        if target is not None:
            target.write(written + "\n")
    if job.plot is not None:
        _draw(result, job.plot)
    return 0 if result["complete"] else INTERRUPTED


def _show(text: str, job: Job, context: Context) -> None:
    """Print what was found: on a terminal its tables are laid out."""
    if job.json or job.markdown or not is_terminal(context.stdout):
        context.print(text)
        return
    from apdcli.cli.tables import show_markdown

    show_markdown(text, context)


def _resolve(job: Job, context: Context) -> tuple[Profile, Shapes | None, tuple[Contender, ...]]:
    """The profile, or the shapes that stand for one, and every setting of every contender."""
    from apdcli.bench.settings import (
        Contender,
        check_common,
        default_specs,
        parse_specs,
        resolve_spec,
    )
    from apdcli.load.settings import chosen_profile

    shapes = None
    specs = parse_specs(job.strategies, job.setting)
    if job.shapes is not None:
        from apdcli.bench.sizes import default_shape_specs, find_shapes, shapes_profile

        shapes = find_shapes(job.shapes)
        profile = shapes_profile(shapes)
        specs = specs or default_shape_specs(shapes)
    else:
        profile = chosen_profile(job.flags.get("profile"), context.environ)
        specs = specs or default_specs(verifier=profile.verifier is not None)
    check_common(job.common, specs)
    made = tuple(
        Contender(spec, resolve_spec(spec, profile, job.common, context.environ)) for spec in specs
    )
    if shapes is not None:
        from apdcli.bench.sizes import check_shapes

        check_shapes(shapes, made, accept=job.accept, prompt_tokens=job.prompt_tokens)
    return profile, shapes, made


def _rates(job: Job) -> Rates | None:
    if job.rates is None:
        return None
    from apdcli.bench.floor_table import read_rates

    try:
        return read_rates(job.rates)
    except ValueError as error:
        raise UsageError(f"--rates {error}; {HINT}") from error


def _measure(
    profile: Profile,
    shapes: Shapes | None,
    contenders: Sequence[Contender],
    job: Job,
    context: Context,
    rates: Rates | None,
) -> dict[str, Any] | None:
    """Load, run in turns, and describe; None when interrupted too early."""
    prompts = [] if shapes else _prompts(job, context)
    from apdcli.bench.benchmark import (
        cases_of,
        cases_of_shapes,
        load_shapes,
        measure,
    )
    from apdcli.cli.models import load_models

    settings = contenders[0].settings
    sizes = _batch_sizes(job)
    if shapes:
        pair = load_shapes(shapes, contenders, prompt_tokens=job.prompt_tokens)
        given = {"accept": job.accept, "prompt_tokens": job.prompt_tokens}
        seed = settings["seed"].value
        count = 1 if job.batch_sizes is None else 2 * max(sizes or (_MOST_ROWS,))
        cases = cases_of_shapes(shapes, pair, contenders, **given, seed=seed, prompts=count)
    else:
        pair = load_models(profile, settings)
        cases = cases_of(pair, contenders, prompts, raw=job.raw)
    head = _head(profile, shapes, settings, job)
    if job.batch_sizes is not None:
        found = _measure_batches(cases, contenders, sizes, job, context)
        return None if found is None else {**head, **found}
    signals = context.signals
    total = len(cases) * ((job.warmup + job.repeats) * len(cases[0].requests) + 1)
    with signals.patient(), _progress(context, job, total) as tick:
        order = _order(job, rates, lambda: signals.interrupted, tick)
        found = measure(pair, cases, contenders, order)
    return None if found is None else {**head, **found}


def _head(profile: Profile, shapes: Shapes | None, settings: Settings, job: Job) -> dict[str, Any]:
    """What stands in every result: which command, of what, with which versions."""
    from apdcli.bench.benchmark import FORMAT
    from apdcli.cli.report import versions

    return {
        "format": FORMAT,
        "command": job.command,
        "profile": profile.name,
        "shapes": job.shapes,
        "accept": job.accept if shapes else None,
        "versions": versions(settings),
    }


def _batch_sizes(job: Job) -> tuple[int, ...] | None:
    if job.batch_sizes is None:
        return None
    from apdcli.bench.batches import parse_sizes

    return parse_sizes(job.batch_sizes)


def _measure_batches(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    sizes: tuple[int, ...] | None,
    job: Job,
    context: Context,
) -> dict[str, Any] | None:
    """Tokens a second against rows at once; None when interrupted too early."""
    from apdcli.bench.batches import Order as BatchOrder
    from apdcli.bench.batches import measure_batches

    signals = context.signals
    # Sizes may end where memory or arithmetic binds: how many runs there will be is not known.
    total = None if sizes is None else job.repeats * len(cases) * (len(sizes) + 1)
    with signals.patient(), _progress(context, job, total) as tick:
        order = BatchOrder(
            sizes=sizes,
            repeats=job.repeats,
            alike=job.shapes is not None,
            interrupted=lambda: signals.interrupted,
            progress=tick,
        )
        return measure_batches(cases, contenders, order)


def _tables(result: Mapping[str, Any]) -> str:
    if "runs" in result:
        from apdcli.bench.report import tables

        return tables(result)
    from apdcli.bench import batches_report

    return batches_report.tables(result) + f"Again: {result['command']}"


def _order(
    job: Job,
    rates: Rates | None,
    interrupted: Callable[[], bool],
    progress: Callable[[int, int, str], None],
) -> Order:
    from apdcli.bench.benchmark import Order

    return Order(
        repeats=job.repeats,
        warmup=job.warmup,
        split=not job.no_split,
        rates=rates,
        interrupted=interrupted,
        progress=progress,
    )


@contextlib.contextmanager
def _progress(
    context: Context, job: Job, total: int | None
) -> Iterator[Callable[[int, int, str], None]]:
    with Progress(context, total, quiet=job.quiet) as bar:
        seen = 0

        def tick(done: int, _total: int, _name: str) -> None:
            nonlocal seen
            if done == seen == 0:
                bar.start()
            while seen < done:
                seen += 1
                bar.step()

        yield tick


def _prompts(job: Job, context: Context) -> list[Any]:
    """The prompts of the command line, or those of a task: messages each."""
    if job.prompts:
        example = 'apd bench "Write a haiku about the sea"'
        texts = (
            read_text(STDIN, context, example=example).rstrip("\r\n") if p == STDIN else p
            for p in job.prompts
        )
        return list(texts)
    from apdcli.tasks.load import load_task

    task = load_task(job.task or TASK, split="test", limit=job.limit, allow_code=True)
    return [list(item.messages) for item in task.items]


def _floor(
    profile: Profile,
    shapes: Shapes | None,
    contenders: Sequence[Contender],
    job: Job,
    rates: Rates | None,
) -> tuple[dict[str, Any], str]:
    """The floor of a step of each apd setting, as numbers and as text."""
    from apdcli.bench.floor_table import apd_steps, floor_text, floors, measured_rates
    from apdcli.bench.sizes import profile_shapes
    from apdcli.cli.report import versions

    shapes = shapes or profile_shapes(profile)
    settings = contenders[0].settings
    places = (settings["denoiser_device"].value, settings["denoiser_dtype"].value)
    here, dtype = measured_rates(shapes, *places, given=rates)
    steps = apd_steps([c.settings for c in contenders], job.accept, job.prompt_tokens)
    kept = [
        settings[n].value if n in settings else "none"
        for n in ("denoiser_quantize", "verifier_quantize")
    ]
    nets = (shapes.denoiser, shapes.verifier)
    made = floors(*nets, dtype, steps, here, (kept[0], kept[1]), job.prompt_tokens)
    head = {"command": job.command, "profile": profile.name, "versions": versions(settings)}
    return {**head, "complete": True, "floor": made}, floor_text(profile.name, made)


def _draw(result: Mapping[str, Any], path: str) -> None:
    if "runs" in result:
        from apdcli.bench.plot import draw
    else:
        from apdcli.bench.batches_report import draw

    draw(result, Path(path))
