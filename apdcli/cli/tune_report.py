"""How the result of `apd tune` looks: a table and a plot on a terminal, plain text, or JSON.

Knows no model. Names come from files and are never markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from apdcli.cli.context import Context
from apdcli.cli.report import SYMBOLS, placed, versions
from apdcli.cli.tables import Page, Sheet, aligned
from apdcli.render.palette import depth_of
from apdcli.render.plots import Kind, Picture, Point, terminal_plot
from apdcli.render.terminal import is_terminal, stream_size
from apdcli.tasks.types import AGREEMENT, Task
from apdcli.tune.front import Candidate, difference
from apdcli.tune.measure import Measured
from apdcli.tune.search import Found
from apdcli.tune.space import Knob
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.tune.setup import Ground
    from apdcli.tune.study import Study

_FEW = 4  # knobs up to which all are shown; else those that are not as in the profile
_PLOT_ROWS = 18
_NARROW = {3: 120, 4: 86, 6: 72}  # columns of a table that narrower terminals do without
_HEADS = (
    *("", "settings", "quality, % (95 %)", "against one a step", "tokens/step"),
    *("tokens/s (95 %)", "x one a step"),
)


def settings_text(values: Mapping[str, Any], usual: Mapping[str, Any] | None = None) -> str:
    """R=0.5 W=16 M=32; of many knobs those that are not as usual."""
    shown = dict(values)
    if len(shown) > _FEW and usual is not None:
        shown = {n: v for n, v in shown.items() if v != usual.get(n)}
    words = [f"{SYMBOLS.get(n, n)}={_written(v)}" for n, v in shown.items()]
    return " ".join(words) or "as in the profile"


@dataclass(frozen=True)
class Result:
    """What was found, with what it was found on; both one token a step and a setting are there."""

    found: Found
    task: Task
    device: str
    space: Sequence[Knob]

    @property
    def measure(self) -> str:
        """What the quality is: accuracy, or agreement with careful decoding."""
        return "agreement" if self.task.scorer == AGREEMENT else "accuracy"

    @property
    def baseline(self) -> Measured:
        """One token a step."""
        assert self.found.baseline is not None
        return self.found.baseline

    @property
    def chosen(self) -> Candidate | None:
        """What the target asks for, if anything reaches it."""
        return None if self.found.chosen is None else self.found.chosen.candidate

    def chosen_values(self) -> dict[str, Any]:
        """The chosen setting's values of the strategy's parameters."""
        assert self.chosen is not None
        return dict(self.chosen.values)

    def text_of(self, candidate: Candidate) -> str:
        """The setting in a few words."""
        return settings_text(candidate.values, self.found.reference)

    def tokens_per_second(self, measured: Measured) -> tuple[float, float, float]:
        """Median and interval."""
        span = measured.speed.times(self.found.steps_per_second)
        return span.median, span.low, span.high

    def times_one(self, measured: Measured) -> float:
        """Speed as a multiple of one token a step's."""
        one = self.baseline.speed.median
        return measured.speed.median / one if one > 0 else 0.0

    def note(self) -> str:
        """One line on the chosen setting, for the profile."""
        assert self.chosen is not None
        measured = self.chosen.measured
        return (
            f"apd tune for {self.found.target} on {self.task.name} ({len(self.task.items)} "
            f"prompts): {self.measure} {measured.quality} %, "
            f"{self.tokens_per_second(measured)[0]:.0f} tokens/s"
        )

    def out_of_reach(self) -> str:
        """One line: nothing reaches the target, and what comes nearest."""
        chosen = self.found.chosen
        assert chosen is not None
        assert chosen.nearest is not None
        speed, low, high = self.tokens_per_second(chosen.nearest.measured)
        tried = len(self.found.finished) + len(self.found.pruned)
        none = f"none of the {tried} settings tried reaches"
        none = "the only setting tried does not reach" if tried == 1 else none
        return (
            f"{none} {self._target()}; the nearest is "
            f"{self.text_of(chosen.nearest)}: {speed:.0f} tokens/s ({low:.0f} to {high:.0f}), "
            f"{self.measure} {chosen.nearest.measured.quality} %"
        )

    def lines(self) -> list[str]:
        """What is to be said below the table: the choice, how sure it is, and what it cost."""
        found = self.found
        lines = []
        if found.chosen is not None and self.chosen is not None:
            lines.append(f"chosen for {self._target()}: {self.text_of(self.chosen)}")
            lines.append(self._sure())
            if found.chosen.alike:
                lines.append(self._alike())
        elif found.chosen is not None:
            lines.append(f"no setting reaches {self._target()}")
        early = f", {len(found.pruned)} of them given up early" if found.pruned else ""
        tried = len(found.finished) + len(found.pruned)
        lines.append(
            f"{plural(tried, 'setting')} tried{early}: {found.answers:,} answers and "
            f"{found.reference_answers:,} of the reference"
        )
        return lines

    def picture(self) -> Picture:
        """Quality against speed."""
        found, front = self.found, self.found.front
        points = [self._point(self.baseline, "baseline")]
        for candidate in found.finished:
            kind: Kind = "other"
            if candidate is self.chosen:
                kind = "chosen"
            elif candidate in front:
                kind = "front"
            label = "" if kind == "other" else self.text_of(candidate)
            points.append(self._point(candidate.measured, kind, label))
        goal = found.goal
        return Picture(
            points,
            title=f"{self.task.name}, {len(self.task.items)} prompts, on {self.device}",
            measure=self.measure,
            target_speed=goal.speed * found.steps_per_second if goal.speed > 0 else None,
            target_quality=100 * goal.quality if goal.quality > 0 else None,
        )

    def rows(self) -> list[tuple[str, ...]]:
        """One token a step, then the front from slow to fast."""
        rows = [self._row("", "one token a step", self.baseline)]
        for candidate in self.found.front:
            mark = ">" if candidate is self.chosen else ""
            rows.append(self._row(mark, self.text_of(candidate), candidate.measured))
        return rows

    def _row(self, mark: str, text: str, measured: Measured) -> tuple[str, ...]:
        speed, low, high = self.tokens_per_second(measured)
        against = "-"
        if measured is not self.baseline:
            change = difference(measured, self.baseline)
            unsure = " ~" if change.low <= 0 <= change.high else ""
            against = (
                f"{100 * change.mean:+.1f} ({100 * change.low:+.1f} to {100 * change.high:+.1f})"
                f"{unsure}"
            )
        return (
            mark,
            text,
            str(measured.quality),
            against,
            f"{measured.tokens_per_step:.2f}",
            f"{speed:.0f} ({low:.0f} to {high:.0f})",
            f"{self.times_one(measured):.2f}",
        )

    def _point(self, measured: Measured, kind: Kind, label: str = "") -> Point:
        quality = measured.quality
        return Point(
            self.tokens_per_second(measured)[0],
            100 * quality.mean,
            100 * quality.low,
            100 * quality.high,
            kind,
            label,
        )

    def _target(self) -> str:
        """The target as it was given, and what that is here."""
        target, goal = self.found.target, self.found.goal
        assert target is not None
        if target.kind == "speed":
            here = f"{goal.speed * self.found.steps_per_second:.0f} tokens/s"
            return f"{target.text} ({here})" if target.relative else here
        here = f"{self.measure} {100 * goal.quality:.1f} %"
        return f"{target.text} ({here})" if target.relative else here

    def _sure(self) -> str:
        assert self.found.chosen is not None
        assert self.found.target is not None
        if self.found.chosen.sure:
            return "its whole interval reaches the target"
        what = "speed" if self.found.target.kind == "speed" else self.measure
        return f"its {what} reaches the target on average, not with its whole interval"

    def _alike(self) -> str:
        """What cannot be told apart is not called worse."""
        assert self.found.chosen is not None
        others = self.found.chosen.alike
        fastest = max(others, key=lambda c: c.speed)
        text = (
            f"{plural(len(others), 'other setting')} that reach{'' if len(others) > 1 else 'es'} "
            f"it cannot be told apart from it in {self.measure}"
        )
        speed = self.tokens_per_second(fastest.measured)[0]
        if self.chosen is None or speed <= self.tokens_per_second(self.chosen.measured)[0]:
            return text
        return f"{text}; the fastest: {self.text_of(fastest)}, {speed:.0f} tokens/s"


def show(result: Result, context: Context) -> None:
    """Print the result: a table and a plot on a terminal, aligned text elsewhere."""
    heading = (
        f"{result.task.name}: {len(result.task.items)} prompts, scored by {result.task.scorer}, "
        f"on {result.device}"
    )
    foot = result.lines()
    wide = not is_terminal(context.stdout) or stream_size(context.out)()[0] >= _NARROW[3]
    if wide and any("~" in row[3] for row in result.rows()):
        foot.append("~: the interval includes 0, so neither is better")
    if is_terminal(context.stdout):
        _draw(result, heading, foot, context)
        return
    heads, rows = list(_HEADS), [list(row) for row in result.rows()]
    if not any(row[0] for row in rows):
        heads, rows = heads[1:], [row[1:] for row in rows]
    context.print("\n".join([heading, aligned(Sheet(tuple(heads), rows)), *foot]))


def _draw(result: Result, heading: str, foot: Sequence[str], context: Context) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    page, out = Page(context), context.out
    columns, rows = stream_size(out)()
    page.text(heading, style="bold")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    places = [n for n in range(len(_HEADS)) if columns >= _NARROW.get(n, 0)]
    for place in places:
        first = place < 2
        justify: Literal["left", "right"] = "left" if first else "right"
        table.add_column(Text(_HEADS[place]), justify=justify, no_wrap=not first)
    for row in result.rows():
        cells = (Text(page.safe(row[place])) for place in places)
        table.add_row(*cells, style="bold" if row[0] else "")
    page.console.print(table)
    encoding = (getattr(out, "encoding", None) or "utf-8").lower().replace("-", "")
    plot = terminal_plot(
        result.picture(),
        min(columns, 100),
        min(_PLOT_ROWS, rows - 4),
        depth_of(context.environ),
        ascii_only=encoding != "utf8",
    )
    if plot:
        out.write(plot + "\n\n")
    for text in foot:
        page.text(text)


def envelope(result: Result, study: Study, ground: Ground, written: str | None) -> str:
    """The JSON object, on one line."""
    found, front = result.found, result.found.front
    chosen = found.chosen
    made: dict[str, Any] = {
        "task": {
            "name": result.task.name,
            "scorer": result.task.scorer,
            "prompts": len(result.task.items),
            "digest": result.task.digest,
        },
        "strategy": ground.settings.strategy,
        "device": result.device,
        "target": None,
        "one_a_step": _numbers(result, result.baseline),
        "front": [_entry(result, c) for c in front],
        "tried": [
            {**_entry(result, c), "front": c in front, "given_up": c in found.pruned}
            for c in (*found.finished, *found.pruned)
        ],
        "answers": found.answers,
        "reference_answers": found.reference_answers,
        "reference": dict(found.reference),
        "ended": found.ended,
        "seconds": round(found.seconds, 3),
        "study": {"name": study.name, "storage": study.where},
        "written": written,
    }
    if chosen is not None and found.target is not None:
        goal = found.goal
        made["target"] = {
            "kind": found.target.kind,
            "text": found.target.text,
            "tokens_per_second": goal.speed * found.steps_per_second or None,
            "quality": goal.quality or None,
            "reached": chosen.candidate is not None,
            "whole_interval": chosen.sure,
        }
        made["chosen"] = None if chosen.candidate is None else _entry(result, chosen.candidate)
        made["nearest"] = None if chosen.nearest is None else _entry(result, chosen.nearest)
        made["alike"] = [_entry(result, c) for c in chosen.alike]
    table = {
        name: entry
        for name, entry in ground.settings.as_json().items()
        if name not in found.reference
    }
    for name, value in placed(ground.pair).items():
        table[name] = {"value": value, "from": ground.settings[f"denoiser_{name}"].origin}
    return json.dumps({**made, "settings": table, "versions": versions(ground.settings)})


def _entry(result: Result, candidate: Candidate) -> dict[str, Any]:
    against = difference(candidate.measured, result.baseline)
    return {
        "trial": candidate.number,
        "values": dict(candidate.values),
        **_numbers(result, candidate.measured),
        "against_one_a_step": asdict(against),
    }


def _numbers(result: Result, measured: Measured) -> dict[str, Any]:
    speed, low, high = result.tokens_per_second(measured)
    return {
        "prompts": len(measured.scores),
        result.measure: asdict(measured.quality),
        "tokens": measured.tokens,
        "steps": measured.steps,
        "denoiser_forwards": measured.denoiser_forwards,
        "verifier_forwards": measured.verifier_forwards,
        "tokens_per_step": measured.tokens_per_step,
        "tokens_per_second": {"median": speed, "low": low, "high": high},
        "times_one_a_step": result.times_one(measured),
    }


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
