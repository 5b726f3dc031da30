"""From runs to a result: plain numbers for JSON, and its tables. Loads no torch.

A repeat's figure is taken over all its prompts (all tokens over all seconds); medians and spreads
are over repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from apdcli.bench.floor import DTYPE_BYTES, Part, Rates, floor_s, forward_parts, mixture_work
from apdcli.bench.stats import Interval, Spread
from apdcli.bench.units import counted, markdown, ms, scaled, three
from apdcli.models.config import ModelConfig
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.bench.runs import Run, Turn
    from apdcli.bench.timing import Split

PARTS = ("denoiser", "verifier", "sampling", "rest")


@dataclass(frozen=True)
class Shape:
    """A model as its floor sees it."""

    config: ModelConfig
    dtype: str
    quantize: str = "none"


@dataclass(frozen=True)
class Measured:
    """What the floor of a setting is made of.

    Attributes:
        denoiser: the denoiser.
        verifier: what verifies, or decodes alone; None without one.
        rates: what the machine can do.
    """

    denoiser: Shape
    verifier: Shape | None
    rates: Rates


def summarize(
    name: str, repeats: Sequence[Sequence[Turn]], first: str, measured: Measured
) -> dict[str, Any]:
    """The figures of one setting, against the setting called `first`."""
    per_repeat = [_repeat([turn.runs[name] for turn in turns]) for turns in repeats]
    reference = [_repeat([turn.runs[first] for turn in turns]) for turns in repeats]
    runs = [turn.runs[name] for turns in repeats for turn in turns]
    ratios = [
        mine["tokens_per_second"] / other["tokens_per_second"]
        for mine, other in zip(per_repeat, reference, strict=True)
        if other["tokens_per_second"] > 0
    ]
    made: dict[str, Any] = {
        key: asdict(Spread.of([repeat[key] for repeat in per_repeat]))
        for key in ("tokens_per_second", "tokens_per_step", "step_s")
    }
    firsts = [r["first_s"] for r in per_repeat if r["first_s"] is not None]
    made["first_text_s"] = asdict(Spread.of(firsts)) if firsts else None
    made["ratio"] = asdict(Interval.of(ratios)) if ratios else None
    made["tokens"] = sum(run.tokens for run in runs)
    made["steps"] = sum(run.steps for run in runs)
    made["denoiser_forwards"] = sum(run.denoiser_forwards for run in runs)
    made["verifier_forwards"] = sum(run.verifier_forwards for run in runs)
    splits = [run.split for run in runs if run.split is not None]
    made["split"] = _split(splits) if splits else None
    made["floor"] = _floor(splits, measured, made["step_s"]["median"]) if splits else None
    return made


def _repeat(runs: Sequence[Run]) -> dict[str, Any]:
    """One repeat over its prompts."""
    tokens, steps = sum(r.tokens for r in runs), sum(r.steps for r in runs)
    seconds = sum(r.seconds for r in runs)
    firsts = [r.first_s for r in runs if r.first_s is not None]
    return {
        "tokens_per_second": tokens / seconds,
        "tokens_per_step": tokens / steps if steps else 0.0,
        "step_s": seconds / steps if steps else 0.0,
        "first_s": median(firsts) if firsts else None,
    }


def _split(splits: Sequence[Split]) -> dict[str, Any]:
    """Seconds a step in each part, over all timed runs."""
    steps = sum(split.steps for split in splits)
    made = {f"{part}_s": sum(getattr(s, part) for s in splits) / steps for part in PARTS}
    made["step_s"] = sum(made.values())
    return made


def step_parts(split: Split, measured: Measured) -> list[Part]:
    """Every part of a generation's steps, from the forwards that were really made."""
    parts: list[Part] = []
    sides = (
        ("denoiser", measured.denoiser, split.denoiser_forwards),
        ("verifier", measured.verifier, split.verifier_forwards),
    )
    for name, shape, forwards in sides:
        if shape is not None:
            size = DTYPE_BYTES[shape.dtype]
            for forward in forwards:
                parts += forward_parts(name, shape.config, forward, size, shape.quantize)
    if split.verifier_forwards:  # a draft waits for its judge
        size = DTYPE_BYTES[measured.denoiser.dtype]
        config = measured.denoiser.config
        rows = sum(forward.rows for forward in split.denoiser_forwards)
        parts.append(Part("mixture", mixture_work(config, rows, size)))
    return parts


def _floor(splits: Sequence[Split], measured: Measured, step_s: float) -> dict[str, Any]:
    """Bytes, operations and least seconds a step, and how many times longer a step takes."""
    steps = sum(split.steps for split in splits)
    parts = [part for split in splits for part in step_parts(split, measured)]
    least = floor_s(parts, measured.rates) / steps
    return {
        "bytes": sum(part.work.bytes for part in parts) / steps,
        "operations": sum(part.work.operations for part in parts) / steps,
        "step_s": least,
        "ratio": step_s / least if least else None,
    }


def tables(result: Mapping[str, Any]) -> str:
    """The result for people: what was run, speeds, where a step's time goes, the floor."""
    settings = result["settings"]
    text = _heading(result) + "\n" + _speeds(settings) + "\n"
    if any(setting["summary"]["split"] for setting in settings):
        text += _steps(settings) + "\n"
    return text + _footing(result)


def _heading(result: Mapping[str, Any]) -> str:
    machine, models = result["machine"], result["models"]
    shown = ", ".join(
        f"{name} {counted(model['parameters'])} in {_format(model)} on {model['device']}, "
        f"{scaled(model['bytes'], 'B')}"
        for name, model in models.items()
    )
    prompts = len(result["prompts"])
    lines = [
        f"{result['profile']}: {shown}",
        f"{machine['device']}, {plural(machine['cores'], 'core')}, "
        f"{plural(machine['threads'], 'thread')}, "
        f"torch {result['versions']['torch']}, apd {result['versions']['apdcli']}, "
        f"engine {', '.join(dict.fromkeys(s['engine'] for s in result['settings']))}",
        f"{plural(prompts, 'prompt')} of {_range(result['prompts'])} tokens, "
        f"{plural(result['repeats'], 'repeat')} in turns"
        + ("" if result["complete"] else " (interrupted)"),
    ]
    if result.get("accept") is not None:
        lines.append(
            f"Random weights: this times steps, not quality; apd was made to accept "
            f"{result['accept']} tokens a step."
        )
    return "\n".join(lines) + "\n"


def _format(model: Mapping[str, Any]) -> str:
    quantize: str = model["quantize"]
    return model["dtype"] if quantize == "none" else f"{quantize} and {model['dtype']}"


def _range(prompts: Sequence[Mapping[str, Any]]) -> str:
    lengths = [prompt["tokens"] for prompt in prompts]
    least, most = min(lengths), max(lengths)
    return str(least) if least == most else f"{least} to {most}"


def _speeds(settings: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for setting in settings:
        of = setting["summary"]
        first = of["first_text_s"]
        rows.append(
            [
                setting["name"],
                _spread(of["tokens_per_second"]),
                _interval(of["ratio"]),
                three(of["tokens_per_step"]["median"]),
                ms(of["step_s"]["median"]),
                f"{ms(first['median'])} ms" if first else "-",
                scaled(setting["memory"]["peak_bytes"], "B"),
            ]
        )
    head = [
        "setting", "tokens/s", "x the first", "tokens/step", "ms/step", "first text", "peak",
    ]  # fmt: skip
    weights = [setting["weights_bytes"] for setting in settings]
    if len(set(weights)) > 1:
        head.append("weights")
        for row, size in zip(rows, weights, strict=True):
            row.append(scaled(size, "B"))
    return markdown(head, rows)


def _steps(settings: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for setting in settings:
        split, floor = setting["summary"]["split"], setting["summary"]["floor"]
        ratio = floor["ratio"]
        rows.append(
            [
                setting["name"],
                *(ms(split[f"{part}_s"]) for part in PARTS),
                scaled(floor["bytes"], "B"),
                scaled(floor["operations"], "FLOP"),
                ms(floor["step_s"]),
                three(ratio) if ratio else "-",
            ]
        )
    head = ("ms a step", *PARTS, "moved", "arithmetic", "floor", "step/floor")
    return markdown(head, rows)


def _footing(result: Mapping[str, Any]) -> str:
    last = result["settings"][-1]["summary"]
    ratio = last["ratio"]
    if last["tokens_per_second"]["count"] == 1:
        lines = ["One repeat: no spread and no interval; --repeats 5 gives both."]
    else:
        lines = ["Medians over repeats; in brackets the middle half (all, where fewer than 4)."]
        if ratio and len(result["settings"]) > 1:
            sure = f"a {100 * ratio['confidence']:.0f} % interval"
            lines.append(f"Ratios are within a repeat; in brackets {sure}.")
    lines.append(_rates(result["rates"]))
    lines.append(f"Again: {result['command']}")
    return "\n".join(lines)


def _rates(rates: Mapping[str, Any]) -> str:
    bandwidth, operations = scaled(rates["bandwidth"], "B/s"), scaled(rates["operations"], "FLOP/s")
    text = "Floor: what a step moves and computes at"
    if "matrix" not in rates:
        return f"{text} {bandwidth} and {operations}, given."
    n = rates["matrix"]
    return (
        f"{text} {bandwidth} ({rates['bandwidth_by']} over {scaled(rates['bandwidth_bytes'], 'B')})"
        f" and {operations} ({n} x {n} in {rates['dtype']}), measured."
    )


def _spread(spread: Mapping[str, float]) -> str:
    middle, low, high = (three(spread[key]) for key in ("median", "low", "high"))
    return middle if spread["count"] == 1 else f"{middle} ({low}–{high})"


def _interval(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "-"
    middle, low, high = (three(interval[key]) for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low}–{high})"
