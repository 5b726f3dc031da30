"""`apd bench`: its options, and the job that they describe. Loads no torch; runs nothing."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from apdcli.cli import options
from apdcli.cli.context import Context
from apdcli.cli.options import DECODING, MACHINE, OUTPUT, PROMPT, SAMPLING, Flag
from apdcli.cli.prompt import STDIN
from apdcli.cli.raw import RAW_IS_ALL
from apdcli.errors import UsageError

Todo = Callable[[Context], int]
HINT = options.help_hint("bench")
_PICTURES = (".svg", ".png")
_SIDE, _MEASURE = "What is compared", "Measuring"
_ACCEPT, _PROMPT_TOKENS, _REPEATS, _WARMUP, _LIMIT, _BATCH_LIMIT = 5, 128, 5, 1, 6, 32
_FLOOR_TOKENS = 256
TASK = "demo"

_SHARED = (
    *("profile", "system", "raw", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop"),
    *("mixture_weight", "recompute_window", "max_lookahead", "k", "option"),
    *("device", "dtype", "quantize", "engine", "quiet"),
)
_OWN = (
    Flag(
        "strategies",
        ("--strategies",),
        _SIDE,
        "Strategies with commas between; ratios are to the first. causal_denoiser is the denoiser "
        "run causally, one token a forward [default left_to_right, apd, autoregressive, threshold, "
        "as far as the profile has them].",
        "NAME,...",
    ),
    Flag(
        "setting",
        ("-S", "--setting"),
        _SIDE,
        "One more: apd:R=0.5,W=16,M=32, or with a name of its own: slow=apd:R=0,engine=eager; "
        "repeatable.",
        "SPEC",
        repeat=True,
    ),
    Flag(
        "shapes",
        ("--shapes",),
        _SIDE,
        "No model but random weights of these sizes: dream-7b, llada-8b, tiny, or embedded (those "
        "of the pair inside). Times steps, not quality.",
        "NAME",
    ),
    Flag(
        "accept",
        ("--accept",),
        _SIDE,
        "With --shapes or --floor-only: tokens that apd is made to accept a step [default "
        f"{_ACCEPT}].",
        "N",
    ),
    Flag(
        "prompt_tokens",
        ("--prompt-tokens",),
        _SIDE,
        f"With --shapes: length of the prompt [default {_PROMPT_TOKENS}]; with --floor-only: of "
        f"all that stands before the step [default {_FLOOR_TOKENS}].",
        "N",
    ),
    Flag(
        "task",
        ("--task",),
        PROMPT,
        f"Prompts of a task: a family, demo, or a task file [default {TASK}, without PROMPT].",
        "NAME",
    ),
    Flag(
        "limit",
        ("--limit",),
        PROMPT,
        f"Prompts of the task, at most [default {_LIMIT}; of batches {_BATCH_LIMIT}].",
        "N",
    ),
    Flag("repeats", ("--repeats",), _MEASURE, f"Times each is run [default {_REPEATS}].", "N"),
    Flag("warmup", ("--warmup",), _MEASURE, f"Rounds that do not count [default {_WARMUP}].", "N"),
    Flag(
        "no_split",
        ("--no-split",),
        _MEASURE,
        "Leave out the second, timed run that tells the models' time from the rest.",
    ),
    Flag(
        "batch_sizes",
        ("--batch-sizes",),
        _MEASURE,
        "Batches instead of settings against each other: tokens a second of each setting with so "
        "many prompts at once, as in 1,2,4,8; auto doubles until it no longer pays.",
        "N,...|auto",
    ),
    Flag("floor_only", ("--floor-only",), _MEASURE, "The floor of a step alone; runs no model."),
    Flag(
        "rates",
        ("--rates",),
        _MEASURE,
        "In place of measuring the machine: bytes and operations a second, as in 4.3e12,790e12.",
        "BYTES,FLOP",
    ),
    Flag("json", ("--json",), OUTPUT, "One JSON object on stdout, not tables."),
    Flag(
        "markdown",
        ("--markdown",),
        OUTPUT,
        "Tables as Markdown on a terminal, too; a pipe or a file always gets them so.",
    ),
    Flag("output", ("-o", "--output"), OUTPUT, "Also write the JSON object there.", "FILE.json"),
    Flag("plot", ("--plot",), OUTPUT, "Also draw it, as .svg or .png.", "FILE"),
)
_HELP = {  # where the words of `apd generate` would mislead
    "seed": "Same seed, same texts [default 0].",
    "quiet": "No progress bar.",
}
_GROUPS = (_SIDE, PROMPT, _MEASURE, SAMPLING, DECODING, OUTPUT, MACHINE)
FLAGS: tuple[Flag, ...] = tuple(
    replace(flag, help=_HELP.get(flag.name, flag.help))
    for flag in sorted(
        (*(flag for flag in options.FLAGS if flag.name in _SHARED), *_OWN),
        key=lambda flag: _GROUPS.index(flag.group),
    )
)
_EPILOG = """Settings take turns on every prompt, so that the machine's noise falls on all alike.

\b
Examples:
  apd bench
  apd bench --strategies apd,left_to_right "Count from 1 to 20"
  apd bench -S apd:R=0.5,M=32 -S apd:R=0.9,M=32 --task sums --json
  apd bench --shapes dream-7b --accept 5 -o dream.json
  apd bench --batch-sizes 1,2,4,8
  apd bench --floor-only
"""


def add_to(app: typer.Typer) -> None:
    """Give the application the command."""
    command = app.command(
        "bench", cls=options.GroupedCommand, epilog=_EPILOG, options_metavar="[OPTIONS]"
    )
    command(options.with_flags(_bench, FLAGS))


def _bench(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="Messages, each one prompt; '-' is standard input.",
        ),
    ] = None,
    **values: Any,
) -> Todo:
    """Measure strategies side by side: speeds, where a step's time goes, and its floor.

    Standard output gets the tables (or JSON) and nothing else.
    """
    job = Job.of(prompts or [], values)

    def todo(context: Context) -> int:
        from apdcli.cli.bench_run import run

        return run(job, context)

    return todo


@dataclass(frozen=True)
class Job:
    """What the command line asked for, checked as far as it can be without reading any file."""

    prompts: tuple[str, ...]
    flags: Mapping[str, Any]  # settings given by flag, by name
    strategies: str | None
    setting: tuple[str, ...]
    shapes: str | None
    accept: int
    prompt_tokens: int
    task: str | None
    limit: int
    repeats: int
    warmup: int
    rates: str | None
    batch_sizes: str | None
    raw: bool
    no_split: bool
    floor_only: bool
    json: bool
    markdown: bool
    output: str | None
    plot: str | None
    quiet: bool
    command: str

    @classmethod
    def of(cls, prompts: Sequence[str], values: Mapping[str, Any]) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that exclude each other.
        """
        _check_together(prompts, values)
        batches = values["batch_sizes"] is not None
        before = _FLOOR_TOKENS if values["floor_only"] else _PROMPT_TOKENS
        numbers = {
            "accept": _whole(values, "accept", _ACCEPT, 1),
            "prompt_tokens": _whole(values, "prompt_tokens", before, 1),
            "limit": _whole(values, "limit", _LIMIT if not batches else _BATCH_LIMIT, 1),
            "repeats": _whole(values, "repeats", _REPEATS, 1),
            "warmup": _whole(values, "warmup", _WARMUP, 0),
        }
        own = {n: v for n, v in values.items() if n in cls.__dataclass_fields__} | numbers
        own["setting"] = tuple(own["setting"])
        return cls(
            prompts=tuple(prompts),
            flags=options.read_values(values, "bench"),
            command=_command_line(prompts, values),
            **own,
        )

    @property
    def common(self) -> dict[str, Any]:
        """Settings given for all that are compared."""
        return {name: value for name, value in self.flags.items() if name != "strategy"}


def _check_together(prompts: Sequence[str], values: Mapping[str, Any]) -> None:
    if prompts and values["task"] is not None:
        raise UsageError(f"prompts and --task exclude each other; {HINT}")
    if values["json"] and values["markdown"]:
        raise UsageError(f"--json and --markdown exclude each other; {HINT}")
    if values["raw"] and values["system"]:
        raise UsageError(f"--raw and -s/--system exclude each other: {RAW_IS_ALL}; {HINT}")
    if values["limit"] is not None and prompts:
        raise UsageError(f"--limit goes with a task, not with prompts; {HINT}")
    if values["shapes"] is not None:
        for name in ("profile", "task", "limit", "system", "raw"):
            if values[name]:
                raise UsageError(f"--shapes takes no {options.long_flag(name)}; {HINT}")
        if prompts or values["stop"]:
            what = "prompts" if prompts else "--stop"
            raise UsageError(f"--shapes takes no {what}: its models are random; {HINT}")
    for name in ("prompt_tokens", "accept"):
        if values[name] is not None and values["shapes"] is None and not values["floor_only"]:
            raise UsageError(
                f"{options.long_flag(name)} goes with --shapes or --floor-only; {HINT}"
            )
    if values["floor_only"] and (prompts or values["task"] or values["plot"]):
        raise UsageError(f"--floor-only runs nothing: no prompts, no task, no plot; {HINT}")
    if values["batch_sizes"] is not None:
        _check_batches(values)
    plot = values["plot"]
    if plot is not None and Path(plot).suffix.lower() not in _PICTURES:
        raise UsageError(f"--plot {plot}: it must end in {' or '.join(_PICTURES)}; {HINT}")


def _check_batches(values: Mapping[str, Any]) -> None:
    sizes = values["batch_sizes"]
    if not re.fullmatch(r"auto|\d+(,\d+)*", sizes.strip()):
        raise UsageError(
            f"--batch-sizes {sizes}: it must be numbers with commas between, or auto; {HINT}"
        )
    for name in ("floor_only", "rates", "no_split", "warmup"):
        if values[name]:
            raise UsageError(f"--batch-sizes does not go with {options.long_flag(name)}; {HINT}")


def _whole(values: Mapping[str, Any], name: str, default: int, least: int) -> int:
    text = values[name]
    flag = options.long_flag(name)
    return default if text is None else options.whole_number(text, flag, HINT, least)


def _command_line(prompts: Sequence[str], values: Mapping[str, Any]) -> str:
    """The command that measures the same again, outputs left out."""
    words = ["apd", "bench"]
    for flag in FLAGS:
        value = values.get(flag.name)
        if flag.group == OUTPUT or value in (None, False, [], ()):
            continue
        for one in value if flag.repeat else [value]:
            words += [flag.flags[-1]] if one is True else [flag.flags[-1], str(one)]
    ends = ["--"] if any(p.startswith("-") and p != STDIN for p in prompts) else []
    return shlex.join([*words, *ends, *prompts])
