"""How results of `apd eval` look: a table on a terminal, plain text in a pipe, or JSON.

Knows no model: outcomes in, text out. Names come from files and are never markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from apdcli.cli import options
from apdcli.cli.context import Context
from apdcli.cli.eval_options import Job
from apdcli.cli.report import placed, versions
from apdcli.cli.tables import Page, Sheet, aligned
from apdcli.render.terminal import is_terminal
from apdcli.tasks.aup import Point, accuracy_under_parallelism, counted
from apdcli.tasks.load import is_file
from apdcli.tasks.metrics import Interval, paired_difference
from apdcli.tasks.summary import Quality, Summary, summarize
from apdcli.tasks.types import AGREEMENT, Outcome, Task
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.settings import Settings


@dataclass(frozen=True)
class Found:
    """The outcomes of a run, by swept value (None without a sweep); none of them empty."""

    task: Task
    outcomes: Mapping[Any, Sequence[Outcome]]
    knob: str | None

    @property
    def measure(self) -> str:
        """What the quality is: accuracy, or agreement with careful decoding."""
        return "agreement" if self.task.scorer == AGREEMENT else "accuracy"

    @property
    def summaries(self) -> dict[Any, Summary]:
        """By swept value."""
        return {value: summarize(self.task, given) for value, given in self.outcomes.items()}

    def against_first(self, value: Any) -> Interval:
        """What a value gains over the first one, on the prompts that both have answered."""
        first = {o.item: o.score for o in next(iter(self.outcomes.values()))}
        pairs = [(o.score, first[o.item]) for o in self.outcomes[value] if o.item in first]
        return paired_difference([a for a, _ in pairs], [b for _, b in pairs])

    @property
    def points(self) -> dict[Any, Point]:
        """Of a sweep, in the units of AUP."""
        return {
            value: Point(s.tokens_per_forward, 100 * s.quality.interval.mean)
            for value, s in self.summaries.items()
        }


def task_facts(job: Job, task: Task) -> dict[str, Any]:
    """What the task is, for JSON and results files."""
    split = None if job.task is None or is_file(job.task) else job.split or "test"
    return {
        "name": task.name,
        "split": split,
        "scorer": task.scorer,
        "prompts": len(task.items),
        "digest": task.digest,
    }


def title(job: Job, task: Task) -> str:
    """The task in a few words."""
    facts = task_facts(job, task)
    split = f", {facts['split']} split" if facts["split"] else ""
    return f"{task.name}{split}: {plural(len(task.items), 'prompt')}, scored by {task.scorer}"


def envelope(
    found: Found, facts: Mapping[str, Any], settings: Mapping[Any, Settings], pair: LoadedPair
) -> str:
    """The JSON object, on one line."""
    summaries = found.summaries
    total = len(found.task.items) * len(settings)
    made: dict[str, Any] = {
        "task": dict(facts),
        "complete": sum(s.quality.prompts for s in summaries.values()) == total,
    }
    if found.knob is None:
        made |= _numbers(summaries[None], found.measure)
    else:
        points = found.points
        kept = counted(list(points.values()))
        made["sweep"] = {
            "knob": found.knob,
            "points": [
                {
                    "value": value,
                    **_numbers(summary, found.measure),
                    "against_first": asdict(found.against_first(value)),
                    "counted": points[value] in kept,
                }
                for value, summary in summaries.items()
            ],
            "aup": accuracy_under_parallelism(list(points.values())),
        }
    shown = next(iter(settings.values()))
    table = {name: entry for name, entry in shown.as_json().items() if name != found.knob}
    for name, value in placed(pair).items():
        table[name] = {"value": value, "from": shown[f"denoiser_{name}"].origin}
    return json.dumps({**made, "settings": table, "versions": versions(shown)})


def _numbers(summary: Summary, measure: str) -> dict[str, Any]:
    """One setting's numbers, under the names that `apd generate --json` has for them."""
    return {
        "prompts": summary.quality.prompts,
        measure: asdict(summary.quality.interval),
        "families": {
            name: {"prompts": q.prompts, measure: asdict(q.interval)}
            for name, q in summary.families.items()
        },
        "tokens": summary.tokens,
        "steps": summary.steps,
        "denoiser_forwards": summary.denoiser_forwards,
        "verifier_forwards": summary.verifier_forwards,
        "tokens_per_step": summary.tokens_per_step,
        "tokens_per_forward": summary.tokens_per_forward,
        "tokens_per_second": summary.tokens_per_second,
        "seconds": summary.seconds,
        "seconds_per_prompt": {"median": summary.seconds_median, "p90": summary.seconds_p90},
        "cut": summary.cut,
    }


def show(found: Found, heading: str, context: Context) -> None:
    """Print the result: drawn on a terminal, aligned text elsewhere."""
    sheets, last = _sheets(found)
    if is_terminal(context.stdout):
        page = Page(context)
        page.text(heading, style="bold")
        for sheet in sheets:
            page.text("")
            page.sheet(sheet)
        if last:
            page.text(f"\n{last}")
        return
    context.print("\n\n".join([heading, *map(aligned, sheets), *([last] if last else [])]))


def _sheets(found: Found) -> tuple[list[Sheet], str]:
    """The tables of a run, and a closing line."""
    if found.knob is None:
        summary = found.summaries[None]
        sheets = [Sheet((), _one(found, summary))]
        if summary.families:
            heads = ("family", "prompts", f"{found.measure}, %", "95 %")
            sheets.append(Sheet(heads, [_family(n, q) for n, q in summary.families.items()]))
        return sheets, ""
    return [_sweep(found)], _aup_line(found)


def _one(found: Found, summary: Summary) -> list[tuple[str, str]]:
    forwards = [f"{summary.denoiser_forwards:,} denoiser"]
    if summary.verifier_forwards:
        forwards.append(f"{summary.verifier_forwards:,} verifier")
    quality, total = summary.quality, len(found.task.items)
    rows = [
        (f"{found.measure}, %", str(quality.interval)),
        ("tokens a step", f"{summary.tokens_per_step:.2f}"),
        ("forwards", ", ".join(forwards)),
        ("tokens a forward", f"{summary.tokens_per_forward:.2f}"),
        ("tokens a second", f"{summary.tokens_per_second:.1f}"),
        ("seconds a prompt", f"{_s(summary.seconds_median)} median, {_s(summary.seconds_p90)} p90"),
    ]
    if quality.prompts < total:
        rows.insert(0, ("answered", f"{quality.prompts} of {total} prompts"))
    if summary.cut:
        rows.append(("cut at the length limit", f"{summary.cut} of {quality.prompts} answers"))
    return rows


def _family(name: str, quality: Quality) -> tuple[str, ...]:
    found = quality.interval
    between = f"{100 * found.low:.0f} to {100 * found.high:.0f}"
    return name or "(none)", str(quality.prompts), f"{100 * found.mean:.1f}", between


def _sweep(found: Found) -> Sheet:
    """A row a value; a difference that may be chance is marked as such."""
    assert found.knob is not None
    heads = (
        *(options.flag_of(found.knob).split("/")[0], f"{found.measure}, % (95 %)"),
        *("against first, points", "tokens a forward", "tokens a second", "seconds a prompt"),
        "in AUP",
    )
    kept = counted(list(found.points.values()))
    rows = []
    for place, (value, s) in enumerate(found.summaries.items()):
        change = found.against_first(value)
        unsure = " ~" if change.low <= 0 <= change.high else ""
        difference = (
            f"{100 * change.mean:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
        )
        rows.append(
            (
                str(value),
                str(s.quality.interval),
                "-" if place == 0 else difference + unsure,
                f"{s.tokens_per_forward:.2f}",
                f"{s.tokens_per_second:.1f}",
                _s(s.seconds_median),
                "yes" if found.points[value] in kept else "no",
            )
        )
    return Sheet(heads, rows)


def _aup_line(found: Found) -> str:
    area = accuracy_under_parallelism(list(found.points.values()))
    prompts = {s.quality.prompts for s in found.summaries.values()}
    partly = max(prompts) < len(found.task.items)
    so_far = f" of the {max(prompts)} prompts so far" if partly else ""
    return f"AUP {area:.1f}{so_far} (~: the interval includes 0, so neither is better)"


def _s(seconds: float) -> str:
    return f"{seconds:.3f}" if seconds < 1 else f"{seconds:.2f}"
