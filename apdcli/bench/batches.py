"""Tokens a second against batch size: `python -m apdcli.bench.batches --help`.

The same prompts are answered in batches of every size, all in turns, so that the machine's noise
falls on all alike; 1 is no batch but one request after the other. Where sizes are not named they
double until memory or arithmetic binds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from apdcli.bench.batches_report import draw, tables
from apdcli.bench.benchmark import cases_of, cases_of_shapes
from apdcli.bench.machine import PeakMemory, describe, versions
from apdcli.bench.runs import Case
from apdcli.bench.settings import Contender, check_common, parse_spec, resolve_spec, written
from apdcli.bench.shapes import random_prompt
from apdcli.bench.sizes import Shapes
from apdcli.bench.stats import Spread
from apdcli.engine.batch import run_batch
from apdcli.engine.device import flush_subnormals
from apdcli.engine.pair import load_models
from apdcli.engine.session import Generation, Request
from apdcli.errors import ApdError, DeviceError, ParameterError, UsageError, reason
from apdcli.load.profile import Profile, find_profile

FORMAT = 1  # of the JSON object
MOST = 256  # rows that sizes double up to
GAIN = 1.05  # a doubling that gains less shows that arithmetic binds
PROMPTS = 32
SPECS = ("apd", "autoregressive")
INTERRUPTED = 130


@dataclass(frozen=True)
class Order:
    """How to measure.

    Attributes:
        sizes: rows at once, ascending and from 1 on, which the others are compared with; None
            doubles until memory or arithmetic binds.
        repeats: times each size is run, after a round that does not count.
        alike: the requests are all alike, so small sizes need not run all of them.
        interrupted: asked between steps; repeats that are complete by then are kept.
        progress: told before each run: (done, of how many, what).
    """

    sizes: tuple[int, ...] | None = None
    repeats: int = 5
    alike: bool = False
    interrupted: Callable[[], bool] = lambda: False
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, what: None)


class _Interrupted(Exception):
    """A run was cut short and does not count."""


@dataclass(frozen=True)
class _Run:
    tokens: int
    seconds: float
    row_tokens_per_second: float  # of the row in the middle
    generations: list[Generation]


def measure_batches(
    cases: Sequence[Case], contenders: Sequence[Contender], order: Order
) -> dict[str, Any] | None:
    """Run every case at every size, in turns; None if not one repeat is complete.

    Returns:
        Plain numbers: complete, machine, repeats, settings; each setting has its name, values,
        sizes (see `_figures`) and `stopped`, why there is no larger one.

    Raises:
        DeviceError: the device has no room for a single row.
    """
    ladders = [_Ladder(case, order) for case in cases]
    repeats = 0
    try:
        for ladder in ladders:
            ladder.climb()
        plan = [(ladder, size) for ladder in ladders for size in ladder.sizes]
        for repeat in range(order.repeats):
            # Another one begins each time, so that none always follows the same neighbour.
            shift = repeat % len(plan)
            turn = []
            for done, (ladder, size) in enumerate((*plan[shift:], *plan[:shift])):
                total = order.repeats * len(plan)
                order.progress(repeat * len(plan) + done, total, f"{ladder.case.name}, {size}")
                turn.append((ladder, size, ladder.run(size)))
            for ladder, size, run in turn:
                ladder.runs[size].append(run)
            repeats += 1
    except _Interrupted:
        pass
    if repeats == 0:
        return None
    settings = [
        {
            "name": ladder.case.name,
            "setting": written(contender.spec),
            "strategy": contender.spec.strategy,
            "values": contender.settings.as_json(),
            "sizes": [ladder.figures(size) for size in ladder.sizes],
            "stopped": ladder.stopped,
        }
        for ladder, contender in zip(ladders, contenders, strict=True)
    ]
    return {
        "complete": repeats == order.repeats,
        "machine": describe(cases[0].requests[0].pair.device),
        "repeats": repeats,
        "settings": settings,
    }


class _Ladder:
    """One setting at growing sizes.

    Attributes:
        sizes: that ran, 1 first.
        runs: of each size, one a repeat.
        stopped: why no larger size ran; "" where it was not wanted.
    """

    def __init__(self, case: Case, order: Order) -> None:
        self.case = case
        self.order = order
        self.sizes: list[int] = []
        self.runs: dict[int, list[_Run]] = {}
        self.stopped = ""
        self._memory: dict[int, int] = {}
        self._unlike: dict[int, int] = {}
        self._ids: list[list[int]] = []

    def climb(self) -> None:
        """Run each size once, uncounted: memory, tokens, and how far up it makes sense to go."""
        speed = 0.0
        for size in self.order.sizes or _doubling(len(self.case.requests)):
            self.order.progress(0, 0, f"{self.case.name}, warming up {size}")
            memory = PeakMemory(self.case.requests[0].pair.device)
            memory.start()
            try:
                run = self.run(size)
            except DeviceError as error:
                if size == 1:
                    raise
                self.stopped = f"memory: {error}"
                return
            _, self._memory[size] = memory.read()
            self._compare(size, run)
            self.sizes.append(size)
            self.runs[size] = []
            before, speed = speed, run.tokens / run.seconds
            if self.order.sizes is None and size > 1 and speed < GAIN * before:
                self.stopped = f"arithmetic: {size} rows gained less than 5 % on {size // 2}"
                return
        if self.order.sizes is None:
            self.stopped = "no more prompts: half of them fill the batch"

    def _compare(self, size: int, run: _Run) -> None:
        ids = [generation.token_ids for generation in run.generations]
        if size == 1:
            self._ids = ids
        pairs = zip(self._ids, ids, strict=False)
        self._unlike[size] = sum(mine != other for mine, other in pairs)

    def run(self, size: int) -> _Run:
        """Answer the requests once, `size` rows at a time."""
        requests: Sequence[Request] = self.case.requests
        if self.order.alike:
            requests = requests[: max(2, 2 * size)]
        interrupted = self.order.interrupted
        began = time.perf_counter()
        made = list(_answers(requests, size, interrupted))
        seconds = time.perf_counter() - began
        if len(made) < len(requests) or any(g.finish_reason == "interrupted" for g in made):
            raise _Interrupted
        tokens = sum(len(generation.token_ids) for generation in made)
        return _Run(tokens, seconds, median(g.usage.tokens_per_second for g in made), made)

    def figures(self, size: int) -> dict[str, Any]:
        """What the repeats of one size come to.

        Keys: rows, tokens_per_second, row_tokens_per_second (of the row in the middle, from its
        first step to its last), ratio (to 1 row, of the same repeat), extra_bytes (memory that was
        not there before the run), unlike (rows whose tokens are not those alone), prompts.
        """
        runs, alone = self.runs[size], self.runs[1]
        speeds = [run.tokens / run.seconds for run in runs]
        ratios = [s / (a.tokens / a.seconds) for s, a in zip(speeds, alone, strict=True)]
        return {
            "rows": size,
            "tokens_per_second": asdict(Spread.of(speeds)),
            "row_tokens_per_second": asdict(Spread.of([r.row_tokens_per_second for r in runs])),
            "ratio": asdict(Spread.of(ratios)),
            "extra_bytes": self._memory[size],
            "unlike": self._unlike[size],
            "prompts": len(runs[0].generations),
        }


def _doubling(prompts: int) -> Iterator[int]:
    """1, 2, 4, ... while every slot is given twice."""
    size = 1
    while size <= MOST and 2 * size <= max(2, prompts):
        yield size
        size *= 2


def _answers(
    requests: Sequence[Request], size: int, interrupted: Callable[[], bool]
) -> Iterator[Generation]:
    for result in run_batch(requests, size, interrupted):
        if result.error is not None:
            raise result.error
        assert result.generation is not None
        yield result.generation


def parse_sizes(text: str) -> tuple[int, ...] | None:
    """Sizes from "2,4,8", ascending, 1 among them; None from "auto".

    Raises:
        UsageError: anything else.
    """
    if text.strip() == "auto":
        return None
    try:
        sizes = sorted({int(part) for part in text.split(",")} | {1})
    except ValueError:
        sizes = [0]
    if not 1 <= sizes[0] <= sizes[-1] <= MOST:
        raise UsageError(
            f"batch sizes {text!r}: write whole numbers from 1 to {MOST} with commas between, "
            "as in 1,2,4,8, or auto"
        )
    return tuple(sizes)


def many_prompts(
    cases: Sequence[Case], shapes: Shapes, length: int, sizes: Sequence[int] | None
) -> list[Case]:
    """Cases of random weights with a prompt of random ids for every slot, twice."""
    seeds = range(2 * max(sizes or (PROMPTS,)))
    prompts = [random_prompt(shapes, length, seed) for seed in seeds]
    return [
        Case(case.name, tuple(replace(case.requests[0], prompt_ids=ids) for ids in prompts))
        for case in cases
    ]


def gpu_part(stage: Any) -> dict[str, Any]:
    """The batches of `python -m apdcli.bench.gpu`: random weights, every row of another prompt.

    Args:
        stage: a :class:`apdcli.bench.gpu_stage.Stage`.

    Returns:
        The result of :func:`measure_batches`, and for each setting the ratio of 32 rows to one.
    """
    from apdcli.bench.gpu_stage import PROMPT_TOKENS

    sizes = (1, 3) if stage.small else (1, 8, 32, 64)
    specs = ["one a step=left_to_right:M=32"]
    if stage.shapes.verifier is not None:
        specs = [f"apd M{m}=apd:R=0.5,W=16,M={m}" for m in (8, 32, 100)] + ["autoregressive"]
    contenders = stage.contenders(specs, max_tokens=8 if stage.small else 64)
    given = {"accept": stage.accept, "prompt_tokens": PROMPT_TOKENS}
    one_row = cases_of_shapes(stage.shapes, stage.models(), contenders, **given)
    cases = many_prompts(one_row, stage.shapes, PROMPT_TOKENS, sizes)
    order = Order(sizes, repeats=stage.repeats, alike=True, interrupted=stage.out_of_time)
    found = measure_batches(cases, contenders, order)
    if found is None:
        return {"skipped": True, "reason": "the time was up"}
    del found["machine"]  # stands in the report already
    ratios = {}
    for setting in found["settings"]:
        speeds = {s["rows"]: s["tokens_per_second"]["median"] for s in setting["sizes"]}
        if 32 in speeds:
            ratios[setting["name"]] = speeds[32] / speeds[1]
    return {**found, "ratio_of_32_rows_to_1": ratios}


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m apdcli.bench.batches", description=__doc__)
    made.add_argument("--profile", default="demo", help="a profile's name, or a path to a .toml")
    made.add_argument(
        "-S", "--setting", action="append", metavar="SPEC", default=[],
        help=f"as in apd:R=0.5,W=16,M=32; repeatable [{', '.join(SPECS)}]",
    )  # fmt: skip
    made.add_argument("--sizes", default="auto", help="as in 1,2,4,8,16 [auto]")
    made.add_argument("--prompts", type=int, default=PROMPTS, help="how many [%(default)s]")
    made.add_argument("--task", default="demo", help="a task whose prompts to answer [%(default)s]")
    made.add_argument("--repeats", type=int, default=5, help="of every size [%(default)s]")
    made.add_argument("--max-tokens", type=int, help="of each answer [the profile's]")
    made.add_argument("--device", help="of both models")
    made.add_argument("--dtype", help="of both models")
    made.add_argument("--threads", type=int, help="that torch may use [its own choice]")
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the result there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="also draw it, .svg or .png")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print the table on stdout; status 0, or 130 where Ctrl-C cut it short."""
    options = _parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _main(options, shlex.join(["python", "-m", "apdcli.bench.batches", *words]))
    except ApdError as error:
        sys.stderr.write(f"apdcli.bench.batches: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"apdcli.bench.batches: {error.filename}: {reason(error)}\n")
        return 1


def _main(options: argparse.Namespace, command: str) -> int:
    sizes = parse_sizes(options.sizes)
    for name in ("prompts", "repeats", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} {value}: it must be an integer >= 1")
    if options.plot is not None and options.plot.suffix.lower() not in (".svg", ".png"):
        raise UsageError(f"--plot {options.plot}: it must end in .svg or .png")
    for path in (options.json, options.plot):
        if path is not None:  # found unwritable before the work
            path.open("a", encoding="utf-8").close()
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    profile = find_profile(options.profile)
    contenders = _contenders(options, profile)
    cases = _cases(options, profile, contenders)
    stopped = False

    def progress(done: int, total: int, what: str) -> None:
        if sys.stderr.isatty():
            share = f"{done}/{total} " if total else ""
            sys.stderr.write(f"\r\x1b[2K{share}{what}")

    try:
        found = measure_batches(cases, contenders, Order(sizes, options.repeats, progress=progress))
    except KeyboardInterrupt:
        found, stopped = None, True
    progress(0, 0, "")
    if found is None:
        return INTERRUPTED if stopped else 1
    head = {"format": FORMAT, "command": command, "profile": profile.name, "versions": versions()}
    result = {**head, **found}
    sys.stdout.write(tables(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.plot is not None:
        draw(result, options.plot)
    return 0


def _contenders(options: argparse.Namespace, profile: Profile) -> list[Contender]:
    names = options.setting or (SPECS if profile.verifier is not None else ("left_to_right",))
    specs = [parse_spec(text) for text in names]
    given = {name: getattr(options, name) for name in ("max_tokens", "device", "dtype")}
    common = {name: value for name, value in given.items() if value is not None}
    check_common(common, specs)
    try:
        return [Contender(spec, resolve_spec(spec, profile, common, {})) for spec in specs]
    except ParameterError as error:
        raise UsageError(str(error)) from error


def _cases(
    options: argparse.Namespace, profile: Profile, contenders: Sequence[Contender]
) -> list[Case]:
    from apdcli.tasks.load import load_task

    task = load_task(options.task, split="test", limit=options.prompts, allow_code=True)
    pair = load_models(profile, contenders[0].settings)
    flush_subnormals(pair.device)
    prompts: list[list[Mapping[str, str]]] = [list(item.messages) for item in task.items]
    return cases_of(pair, contenders, prompts, raw=False)


if __name__ == "__main__":
    sys.exit(main())
