"""The options of `apd tune`: what is asked, what is searched, what comes of it. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import typer

from apdcli.cli import generate, options
from apdcli.cli.context import Context
from apdcli.cli.options import OUTPUT, Flag
from apdcli.errors import UsageError
from apdcli.tune.space import TUNABLE
from apdcli.tune.target import Target, parse_quality, parse_seconds, parse_speed

TARGET, TASK, SEARCH = "Target (neither: the whole trade-off)", "Kind of text", "Search"
TRIALS, TIMEOUT_S, LIMIT = 64, 600.0, 200
_KEPT = (
    *("profile", "system", "max_tokens", "temperature", "top_p", "top_k", "stop"),
    *("strategy", "mixture_weight", "recompute_window", "max_lookahead", "k", "option"),
    *("quiet", "verbose", "device", "dtype", "quantize", "engine"),
)
_OTHERWISE = {
    "strategy": "Whose knobs are tuned; listed below [default: the profile's].",
    "quiet": "The result only: no progress bar.",
    "verbose": "Models, the study and why the search ended, on stderr.",
}
_OWN: tuple[Flag, ...] = (
    Flag(
        "target_speed",
        ("--target-speed",),
        TARGET,
        "The best quality at this speed or more: tokens a second, or 3x one token a step.",
        "S|Nx",
    ),
    Flag(
        "target_quality",
        ("--target-quality",),
        TARGET,
        "The fastest at this quality or more: 0 to 1, points, or 98% of one token a step.",
        "Q|P%",
    ),
    Flag(
        "task",
        ("--task",),
        TASK,
        "What quality is measured on: a task file as for 'apd eval', a family of the embedded "
        "pair's world, or all of them [default all].",
        "TASK",
    ),
    Flag(
        "prompts",
        ("--prompts",),
        TASK,
        "Instead: prompts without answers, one a line or JSON Lines. Quality is then likeness to "
        "the pair's own careful decoding.",
        "FILE",
    ),
    Flag("scorer", ("--scorer",), TASK, "How answers are judged [default: the file says].", "NAME"),
    Flag(
        "limit",
        ("--limit",),
        TASK,
        f"At most N prompts in all, spread evenly over the families [default {LIMIT}].",
        "N",
    ),
    Flag("allow_code", ("--allow-code",), TASK, "Run the code that the model writes (python)."),
    Flag(
        "trials",
        ("--trials",),
        SEARCH,
        f"Settings to try, those of earlier runs and of other processes included "
        f"[default {TRIALS}].",
        "N",
    ),
    Flag("timeout", ("--timeout",), SEARCH, "Stop after this long [default 10m].", "SECONDS|5m"),
    Flag("seed", ("--seed",), SEARCH, "Which prompts are drawn and tried first [default 0].", "N"),
    Flag(
        "storage",
        ("--storage",),
        SEARCH,
        "Where the search is kept: an Optuna storage URL, or a file ending in .db or .log. "
        "Processes given the same one share the search [default: your data folder].",
        "URL|FILE",
    ),
    Flag(
        "study",
        ("--study",),
        SEARCH,
        "The search's name there [default: made of profile, strategy and task].",
        "NAME",
    ),
    Flag("plot", ("--plot",), OUTPUT, "Save the picture, .png, .svg or .html.", "FILE"),
    Flag("json", ("--json",), OUTPUT, "One JSON object: every setting tried, and the chosen one."),
    Flag(
        "write",
        ("--write",),
        OUTPUT,
        "Store the chosen setting in the profile; it is used on this device from then on.",
    ),
)
_SEARCHED = ("mixture_weight", "recompute_window", "max_lookahead", "k", "option")


def _kept() -> list[Flag]:
    """The options of `apd generate` that matter here, said for a search."""
    kept = []
    for flag in options.FLAGS:
        if flag.name not in _KEPT:
            continue
        if flag.name in _OTHERWISE:
            flag = replace(flag, help=_OTHERWISE[flag.name])
        elif flag.name in _SEARCHED:
            flag = replace(flag, group="Where the search begins")
        kept.append(flag)
    return sorted(kept, key=lambda flag: flag.group == OUTPUT)


FLAGS: tuple[Flag, ...] = (
    *(flag for flag in _OWN if flag.group != OUTPUT),
    *_kept(),
    *(flag for flag in _OWN if flag.group == OUTPUT),
)
EPILOG = """The search is kept and goes on where it stopped: after Ctrl-C, a kill, or with
more --trials. Status 1 means that no setting reaches the target; the nearest
one is shown.

\b
Examples:
  apd tune --target-speed 3x
  apd tune -p dream --target-speed 60 --prompts mine.txt --write
  apd tune --target-quality 98% --plot front.svg
"""


class TuneCommand(options.GroupedCommand):
    """The strategies in its help are those with something to tune."""

    strategies = tuple(TUNABLE)


@dataclass(frozen=True)
class Job(generate.Job):
    """What the command line asked for, checked as far as it can be without reading any file."""

    command: ClassVar[str] = "tune"

    target: Target | None = None
    task: str | None = None
    prompts: str | None = None
    scorer: str | None = None
    limit: int = LIMIT
    allow_code: bool = False
    trials: int = TRIALS
    timeout: float = TIMEOUT_S
    storage: str | None = None
    study: str | None = None
    plot: str | None = None
    write: bool = False

    @classmethod
    def of(cls, prompt: str | None, values: Mapping[str, Any]) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that do not go together.
        """
        from apdcli.render.plots import check_plot_name

        hint = options.help_hint(cls.command)
        flags = options.read_values(values, cls.command)
        _check_pairs(values, hint)
        if values["plot"] is not None:
            check_plot_name(values["plot"])
        target: Target | None = None
        if values["target_speed"] is not None:
            target = _with_hint(parse_speed, values["target_speed"], hint)
        elif values["target_quality"] is not None:
            target = _with_hint(parse_quality, values["target_quality"], hint)
        if values["write"] and target is None:
            raise UsageError(f"--write needs a target that chooses a setting; {hint}")
        timeout = values["timeout"]
        names = ("json", "quiet", "verbose", "task", "prompts", "scorer")
        given = {n: values[n] for n in (*names, "allow_code", "storage", "study", "plot", "write")}
        return cls(
            prompt=prompt,
            flags=flags,
            raw=False,
            output=None,
            trace=None,
            export=None,
            no_live=True,
            no_stream=True,
            target=target,
            limit=_count(values, "limit", LIMIT, hint),
            trials=_count(values, "trials", TRIALS, hint),
            timeout=TIMEOUT_S if timeout is None else _with_hint(parse_seconds, timeout, hint),
            **given,
        )


def _check_pairs(values: Mapping[str, Any], hint: str) -> None:
    for one, other in (
        ("target_speed", "target_quality"),
        ("task", "prompts"),
        ("quiet", "verbose"),
    ):
        if values[one] and values[other]:
            shown = [options.long_flag(name) for name in (one, other)]
            raise UsageError(f"{' and '.join(shown)} exclude each other; {hint}")
    if values["prompts"] is not None and values["scorer"] is not None:
        raise UsageError(f"--scorer is for --task, not for --prompts; {hint}")


def _with_hint(read: Callable[[str], Any], text: str, hint: str) -> Any:
    try:
        return read(text)
    except UsageError as error:
        raise UsageError(f"{error}; {hint}") from error


def _count(values: Mapping[str, Any], name: str, default: int, hint: str) -> int:
    text = values[name]
    return default if text is None else options.whole_number(text, f"--{name}", hint)


def _tune(**values: Any) -> Callable[[Context], int]:
    """Find the knobs' settings for this machine, this pair and this kind of text.

    Tries settings, measures quality and speed of each, and shows the best trade-offs. Standard
    output gets the result and nothing else.
    """
    job = Job.of(None, values)

    def run(context: Context) -> int:
        from apdcli.cli import tune

        return tune.run(job, context)

    return run


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    command = app.command("tune", cls=TuneCommand, epilog=EPILOG, options_metavar="[OPTIONS]")
    command(options.with_flags(_tune, FLAGS))
