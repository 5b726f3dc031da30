"""The options of `apd eval`: those of `apd generate` that decode, and what is asked. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import typer

from apdcli.cli import generate, options
from apdcli.cli.context import Context
from apdcli.cli.options import OUTPUT, SAMPLING, Flag
from apdcli.errors import UsageError

TASK = "Task"
AUTO = "auto"
_NOT_OURS = ("raw", "input", "jsonl", "batch_size", "trace", "export", "no_live", "no_stream")
_OTHERWISE = {  # the same options, said for many prompts
    "seed": Flag(
        "seed", ("--seed",), SAMPLING, "Which prompts are drawn, and of sampling [default 0].", "N"
    ),
    "output": Flag(
        "output",
        ("-o", "--output"),
        OUTPUT,
        "Keep every answer there as JSON Lines; the same command goes on with it.",
        "FILE",
    ),
    "json": Flag("json", ("--json",), OUTPUT, "One JSON object: quality, speeds, settings."),
    "quiet": Flag("quiet", ("-q", "--quiet"), OUTPUT, "The result only: no progress bar."),
}
FLAGS: tuple[Flag, ...] = (
    Flag(
        "task",
        ("--task",),
        TASK,
        "A task file (JSON Lines; GSM8K's, MATH's, HumanEval's as they are), a folder of them, "
        "a family of the embedded pair's world (sums, sort, ...), or all.",
        "TASK",
    ),
    Flag(
        "prompts",
        ("--prompts",),
        TASK,
        "Instead of a task: prompts without answers, one a line or JSON Lines. Quality is then "
        "likeness to the pair's own careful decoding (one token a step, W = all).",
        "FILE",
    ),
    Flag("split", ("--split",), TASK, "Of a family: test, tune or train [default test].", "NAME"),
    Flag(
        "scorer",
        ("--scorer",),
        TASK,
        "exact, number, choice, regex, contains, math or python [default: the file says].",
        "NAME",
    ),
    Flag(
        "limit",
        ("--limit",),
        TASK,
        "At most N prompts in all, spread evenly over the families.",
        "N",
    ),
    Flag("allow_code", ("--allow-code",), TASK, "Run the code that the model writes (python)."),
    Flag(
        "sweep",
        ("--sweep",),
        TASK,
        "Try values of the strategy's speed knob, interleaved: accuracy against tokens a forward, "
        "and AUP. Without values: the strategy's own list.",
        "[[NAME=]V,V,...]",
    ),
    *(_OTHERWISE.get(flag.name, flag) for flag in options.FLAGS if flag.name not in _NOT_OURS),
)
EPILOG = """Without --limit a family gives 50 prompts and a file all it has. A task file has lines
{"prompt": ..., "answer": ...} or {"messages": [...], "answer": ...}; its first line may be
{"scorer": "number"}. "answer" may be a list of which any counts; "choices" and "tests" are
for the scorers choice and python.

\b
Examples:
  apd eval --task sort
  apd eval -p dream --task gsm8k_test.jsonl --limit 200 -o gsm8k.jsonl
  apd eval --task all --sweep 0.1,0.3,0.5,0.7,0.9 --json > sweep.json
"""


class EvalCommand(options.GroupedCommand):
    """`--sweep` takes values or stands alone, which Typer does not offer."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Put the word for "no values" behind a bare --sweep."""
        made: list[str] = []
        for index, arg in enumerate(args):
            made.append(arg)
            if arg == "--sweep" and (index + 1 == len(args) or args[index + 1].startswith("-")):
                made.append(AUTO)
        return super().parse_args(ctx, made)


@dataclass(frozen=True)
class Job(generate.Job):
    """What the command line asked for, checked as far as it can be without reading any file.

    Attributes:
        task, prompts: one of them is given.
        sweep: None without --sweep; "auto" or the text behind it.
    """

    command: ClassVar[str] = "eval"

    task: str | None = None
    prompts: str | None = None
    split: str | None = None
    scorer: str | None = None
    limit: int | None = None
    allow_code: bool = False
    sweep: str | None = None

    @classmethod
    def of(cls, prompt: str | None, values: Mapping[str, Any]) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that do not go together.
        """
        hint = options.help_hint(cls.command)
        flags = options.read_values(values, cls.command)
        if (values["task"] is None) == (values["prompts"] is None):
            problem = "exclude each other" if values["task"] else "one of them is needed"
            raise UsageError(f"--task and --prompts: {problem}; {hint}")
        if values["prompts"] is not None:
            for name in ("scorer", "split"):
                if values[name] is not None:
                    raise UsageError(f"--{name} is for --task, not for --prompts; {hint}")
        if values["quiet"] and values["verbose"]:
            raise UsageError(f"-q and -v exclude each other; {hint}")
        if values["output"] == "-":
            raise UsageError(f"-o/--output keeps results in a file, not on stdout; {hint}")
        limit = values["limit"]
        names = ("json", "output", "quiet", "verbose", "task", "prompts", "split", "scorer")
        given = {name: values[name] for name in (*names, "allow_code", "sweep")}
        return cls(
            prompt=prompt,
            flags=flags,
            raw=False,
            trace=None,
            export=None,
            no_live=True,
            no_stream=True,
            limit=None if limit is None else options.whole_number(limit, "--limit", hint),
            **given,
        )


def swept_values(text: str, knob: str) -> tuple[str, list[Any]]:
    """The knob and the values that --sweep names, each checked; no values where it is bare.

    Args:
        text: "auto", "0.1,0.5" or "max_lookahead=8,16".
        knob: of the strategy.

    Raises:
        UsageError: a value out of range, or a name that no strategy has.
    """
    if text == AUTO:
        return knob, []
    name, equals, listed = text.rpartition("=")
    name = name.strip().replace("-", "_") if equals else knob
    values: list[Any] = []
    for part in listed.split(","):
        try:
            read = options.read_values({"option": [f"{name}={part.strip()}"]}, Job.command)
        except UsageError as error:
            raise UsageError(f"--sweep {text}: {str(error).removeprefix('-O ')}") from error
        values += [value for value in read.values() if value not in values]
    return name, values


def job_with(job: Job, knob: str, value: Any) -> Job:
    """The same with another value of a setting."""
    return replace(job, flags={**job.flags, knob: value})


def _eval(**values: Any) -> Callable[[Context], int]:
    """Answer a task's prompts and say how good and how fast the answers are.

    Quality has a 95 % interval; nothing is called better when the interval of the paired
    difference includes zero. Standard output gets the result and nothing else.
    """
    job = Job.of(None, values)

    def run(context: Context) -> int:
        from apdcli.cli import eval as command

        return command.run(job, context)

    return run


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command = app.command("eval", cls=EvalCommand, epilog=EPILOG, options_metavar="[OPTIONS]")
    command(options.with_flags(_eval, FLAGS))
