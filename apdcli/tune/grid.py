"""A search against an exhaustive grid: `python -m apdcli.tune.grid --help`.

Every (R, W, M) of the grid answers the same prompts as the search's settings, measured by the same
code beside the same reference, and is kept in the same storage: killed, it goes on. What counts is
the share of the grid's best quality at a speed that the search's choice reaches, and the share of
the grid's answers that it took to find it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from apdcli.engine.device import flush_subnormals
from apdcli.engine.pair import load_models
from apdcli.errors import ApdError, UsageError
from apdcli.load.profile import find_profile
from apdcli.load.settings import resolve_settings
from apdcli.tasks.load import load_task
from apdcli.tasks.metrics import paired_difference
from apdcli.tasks.run import answer
from apdcli.tune.front import Candidate, choose
from apdcli.tune.search import Found, Progress, Search
from apdcli.tune.setup import Ground
from apdcli.tune.space import Ladder
from apdcli.tune.storage import default_storage
from apdcli.tune.study import Study, open_study
from apdcli.tune.target import parse_seconds, parse_speed

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
WINDOWS: tuple[int | str, ...] = (4, 16, "all")
LOOKAHEADS: tuple[int | str, ...] = (8, 32, 100)
_R, _W, _M = "mixture_weight", "recompute_window", "max_lookahead"


def grid(
    weights: Sequence[float] = WEIGHTS,
    windows: Sequence[int | str] = WINDOWS,
    lookaheads: Sequence[int | str] = LOOKAHEADS,
) -> list[dict[str, Any]]:
    """Every setting of the grid."""
    return [{_R: r, _W: w, _M: m} for r, w, m in product(weights, windows, lookaheads)]


@dataclass(frozen=True)
class Comparison:
    """A search and a grid on the same prompts.

    Attributes:
        search, every: what each has found; `every` is the grid's.
        tuned, best: the search's choice and the grid's best at the target speed.
    """

    search: Found
    every: Found
    tuned: Candidate
    best: Candidate

    @property
    def share_of_quality(self) -> float:
        """Of the grid's best quality at the speed."""
        return self.tuned.quality / self.best.quality if self.best.quality else 1.0

    @property
    def share_of_answers(self) -> float:
        """Of the grid's answers, one token a step counted for both."""
        return self.search.answers / self.every.answers

    def as_json(self) -> dict[str, Any]:
        """Everything that was measured."""
        scores = (self.tuned.measured.scores, self.best.measured.scores)
        return {
            "settings_tried": len(self.search.finished) + len(self.search.pruned),
            "grid_settings": len(self.every.finished),
            "answers": self.search.answers,
            "grid_answers": self.every.answers,
            "share_of_answers": self.share_of_answers,
            "share_of_quality": self.share_of_quality,
            "difference": asdict(paired_difference(*scores)),
            "target": str(self.search.target),
            "rows": [
                self.row("one token a step", None),
                self.row("apd tune", self.tuned),
                self.row("grid's best", self.best),
            ],
        }

    def row(self, name: str, candidate: Candidate | None) -> dict[str, Any]:
        """One setting's numbers; None is one token a step."""
        one = self.search.baseline
        assert one is not None
        measured = one if candidate is None else candidate.measured
        return {
            "name": name,
            "values": {} if candidate is None else dict(candidate.values),
            "quality": asdict(measured.quality),
            "tokens_per_step": measured.tokens_per_step,
            "tokens_per_second": measured.speed.times(self.search.steps_per_second).median,
            "times_one_a_step": measured.speed.median / one.speed.median,
        }

    def markdown(self) -> str:
        """The table, and the two shares below it."""
        lines = [
            "| | R | W | M | accuracy, % (95 %) | tokens a step | tokens/s | x one a step |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        made = self.as_json()
        for row in made["rows"]:
            knobs = [str(row["values"].get(name, "-")) for name in (_R, _W, _M)]
            q = row["quality"]
            lines.append(
                f"| {row['name']} | {' | '.join(knobs)} | {100 * q['mean']:.1f} "
                f"({100 * q['low']:.1f} to {100 * q['high']:.1f}) | {row['tokens_per_step']:.2f} | "
                f"{row['tokens_per_second']:.0f} | {row['times_one_a_step']:.2f} |"
            )
        d = made["difference"]
        lines += [
            "",
            f"At {self.search.target} the tuned setting reaches "
            f"{100 * self.share_of_quality:.1f} % of the grid's best quality (difference "
            f"{100 * d['mean']:+.1f} points, 95 % interval {100 * d['low']:+.1f} to "
            f"{100 * d['high']:+.1f}) with {100 * self.share_of_answers:.1f} % of its answers: "
            f"{made['settings_tried']} settings and {made['answers']:,} answers against "
            f"{made['grid_settings']} and {made['grid_answers']:,}.",
        ]
        return "\n".join(lines) + "\n"


def compare(search: Found, every: Found) -> Comparison:
    """Put the two side by side at the search's target.

    Raises:
        ApdError: one of them has nothing at that speed.
    """
    assert search.target is not None
    goal = search.goal
    tuned = choose(search.finished, search.target, goal).candidate
    best = choose(every.finished, search.target, goal).candidate
    for name, found in (("search", tuned), ("grid", best)):
        if found is None:
            raise ApdError(f"the {name} has no setting at {search.target}: give it more trials")
    assert tuned is not None
    assert best is not None
    return Comparison(search, every, tuned, best)


def run_grid(
    ground: Ground, tuned: Study, settings: Sequence[dict[str, Any]], storage: str, timeout: float
) -> Found:
    """Measure every setting of the grid that has not been measured, beside the same reference.

    Raises:
        ApdError: the time was too short; what was measured is kept.
    """
    setup = ground.study_setup()
    ladders = tuple(
        Ladder(name, tuple(dict.fromkeys(s[name] for s in settings))) for name in settings[0]
    )
    setup = replace(setup, space=ladders, reference=tuned.reference, first=settings)
    study = open_study(storage, f"{tuned.name}-grid", setup)
    if study.baseline is None and tuned.baseline is not None:
        study.keep_baseline(tuned.baseline)

    def report(progress: Progress) -> None:
        if sys.stderr.isatty():
            done = f"{progress.tried}/{progress.of} settings, {progress.answered}/{progress.items}"
            sys.stderr.write(f"\r\x1b[K{done}")

    search = Search(
        study, ground.bench(study.reference), None, len(settings), timeout, 0, prune=False
    )
    search.report = report
    found = search.run()
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    if found.failure is not None:
        raise found.failure
    if len(found.finished) < len(settings):
        raise ApdError(
            f"{len(found.finished)} of {len(settings)} settings are measured and kept; "
            "the same command goes on"
        )
    return found


def held_out(ground: Ground, made: Comparison, name: str, limit: int) -> dict[str, Any]:
    """Both settings on prompts of the test split, which neither was chosen on."""
    task = load_task(name, split="test", limit=limit)
    scores: list[list[float]] = [[], []]
    for item in task.items:
        for kept, candidate in zip(scores, (made.tuned, made.best), strict=True):
            settings = ground.settings_of(candidate.values)
            kept.append(answer(ground.pair, task, item, settings).score)
    tuned, best = (sum(kept) / len(kept) for kept in scores)
    difference = asdict(paired_difference(*scores))
    return {"prompts": len(task.items), "tuned": tuned, "grid": best, "difference": difference}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m apdcli.tune.grid", description=__doc__)
    made.add_argument("--profile", default="demo", help="as for the search")
    made.add_argument("--task", default="all", help="as for the search")
    made.add_argument("--limit", type=int, default=200, help="as for the search")
    made.add_argument("--seed", type=int, default=0, help="as for the search")
    made.add_argument("--target-speed", default="3x", help="at which the two are compared")
    made.add_argument("--storage", help="where the search is kept [the data folder]")
    made.add_argument("--study", help="the search's name there [made as apd tune makes it]")
    made.add_argument("--trials", type=int, default=20, help="if the search is still to be made")
    made.add_argument("--timeout", default="2h", help="of the grid, and 10m of the search at most")
    made.add_argument("--test", type=int, default=0, help="then both on so many test prompts")
    made.add_argument("--json", action="store_true", help="as JSON")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure what is not measured yet and print the table on stdout."""
    options = parser().parse_args(argv)
    try:
        text = _run(options)
    except ApdError as error:
        sys.stderr.write(f"apdcli.tune.grid: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(text)
    return 0


def _run(options: argparse.Namespace) -> str:
    target = parse_speed(options.target_speed)
    timeout = parse_seconds(options.timeout)
    flags = {"strategy": "apd", "seed": options.seed, "profile": options.profile}
    profile = replace(find_profile(options.profile), tuned={})
    if profile.verifier is None:
        raise UsageError(f"profile {profile.name!r} has no verifier, and the grid is of apd")
    settings = resolve_settings(profile, flags, os.environ)
    task = load_task(options.task, split="tune", limit=options.limit, seed=options.seed)
    pair = load_models(profile, settings)
    flush_subnormals(pair.device)
    ground = Ground.of(pair, task, settings, flags, os.environ)
    storage = options.storage or default_storage(os.environ)
    study = open_study(storage, options.study or ground.study_name(), ground.study_setup())
    bench = ground.bench(study.reference)
    short = min(timeout, 600.0)
    search = Search(study, bench, target, options.trials, short, options.seed).run()
    if search.failure is not None:
        raise search.failure
    every = run_grid(ground, study, grid(), storage, timeout)
    made = compare(search, every)
    table = made.as_json()
    if options.test:
        table["held_out"] = held_out(ground, made, options.task, options.test)
    machine = f"{ground.device}, {platform.system()}"
    if options.json:
        return json.dumps({**table, "machine": machine, "prompts": len(task.items)}) + "\n"
    text = f"{len(task.items)} prompts of {task.name}, {machine}\n\n{made.markdown()}"
    if options.test:
        h = table["held_out"]
        d = h["difference"]
        text += (
            f"\nOn {h['prompts']} prompts of the test split: {100 * h['tuned']:.1f} % against "
            f"{100 * h['grid']:.1f} % (difference {100 * d['mean']:+.1f}, "
            f"{100 * d['low']:+.1f} to {100 * d['high']:+.1f}).\n"
        )
    return text


if __name__ == "__main__":
    sys.exit(main())
