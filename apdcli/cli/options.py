"""The options of `apd generate` as a table, and what Typer needs of it. Loads no torch.

A text becomes a value here, checked against the range that `decode.params` states, so that every
wrong value is a usage error that names its flag. Knows nothing of what the values do.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

import typer
from typer.core import TyperCommand

from apdcli.decode.gaps import FILLING, GAP, MARKER
from apdcli.decode.params import SHARED_FIELDS, STRATEGIES, DecodeParams, value_of
from apdcli.errors import ParameterError, UsageError

PROMPT, SAMPLING, DECODING = "Prompt and model", "Length and sampling", "Decoding"
OUTPUT, MACHINE = "Output", "Machine"


@dataclass(frozen=True)
class Flag:
    """One option.

    Attributes:
        name: keyword of the command's function; for a setting, its name in `load.settings`.
        flags: how it is written, short form first.
        metavar: stands for the value in the help; "" for a switch.
        repeat: may be given several times.
    """

    name: str
    flags: tuple[str, ...]
    group: str
    help: str
    metavar: str = ""
    repeat: bool = False

    @property
    def shown(self) -> str:
        """As error messages name it: -R/--mixture-weight."""
        return "/".join(self.flags)

    def parameter(self) -> inspect.Parameter:
        """As Typer wants it. Values stay texts: :func:`read_values` makes them values."""
        kind: Any = bool if not self.metavar else list[str] if self.repeat else str | None
        default = typer.Option(
            False if not self.metavar else [] if self.repeat else None,
            *self.flags,
            help=self.help,
            metavar=self.metavar or None,
            show_default=False,
            rich_help_panel=self.group,
        )
        return inspect.Parameter(self.name, _KEYWORD, default=default, annotation=kind)


_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_OWN_FLAGS = {  # parameters of strategies that have a flag of their own; others go through -O
    "mixture_weight": ("-R", "R", "R of apd, 0 to 1: higher is faster, lower is more exact"),
    "recompute_window": ("-W", "N|all", "W: tokens behind the cursor recomputed each step"),
    "max_lookahead": ("-M", "N|all|auto", "M: positions drafted each step, 1 or more"),
    "k": ("-K", "N", "Tokens a step of left_to_right and confidence, 1 or more"),
}


def long_flag(name: str) -> str:
    """--mixture-weight for mixture_weight."""
    return "--" + name.replace("_", "-")


def _default(name: str) -> str:
    """The default that `decode.params` states, behind what a profile may say, for the help."""
    for kind in (DecodeParams, *(info.params for info in STRATEGIES.values())):
        for field in fields(kind):
            if field.name == name and field.default is not MISSING:
                return "" if field.default is None else f" {or_else(field.default)}"
    return ""


def or_else(default: object) -> str:
    """The default of what a profile may set, for the help."""
    return f"[default: the profile's, else {default}]"


def _own_flags() -> list[Flag]:
    return [
        Flag(name, (short, long_flag(name)), DECODING, f"{text}{_default(name)}.", metavar)
        for name, (short, metavar, text) in _OWN_FLAGS.items()
    ]


def _setting(flags: tuple[str, ...], group: str, text: str, metavar: str, **more: Any) -> Flag:
    """A flag of a parameter that all strategies share, named by its first long form."""
    name = next(flag for flag in flags if flag.startswith("--"))[2:].replace("-", "_")
    return Flag(name, flags, group, f"{text}{_default(name)}.", metavar, **more)


_AUTO = or_else("auto")
FLAGS: tuple[Flag, ...] = (
    Flag(
        "profile",
        ("-p", "--profile"),
        PROMPT,
        "Which pair and settings: a name (see 'apd profiles list') or a .toml file [default demo].",
        "PROFILE",
    ),
    Flag("system", ("-s", "--system"), PROMPT, "System message.", "TEXT"),
    Flag(
        "raw",
        ("--raw",),
        PROMPT,
        "Continue the text as it is: no chat template, and special tokens in it count.",
    ),
    Flag("input", ("--input",), PROMPT, "Answer every line of FILE ('-': stdin); below.", "FILE"),
    Flag("jsonl", ("--jsonl",), PROMPT, "The lines are JSON; so they are in a .jsonl file."),
    Flag("batch_size", ("--batch-size",), PROMPT, "Lines at once [default auto].", "N|auto"),
    _setting(("-n", "--max-tokens"), SAMPLING, "Tokens at most, 1 or more", "N"),
    _setting(
        ("-t", "--temperature", "--temp"), SAMPLING, "0 is greedy, higher is more varied", "T"
    ),
    _setting(("--top-p",), SAMPLING, "Keep the likeliest tokens up to this probability", "P"),
    _setting(("--top-k",), SAMPLING, "Keep the K likeliest tokens", "K"),
    Flag("seed", ("--seed",), SAMPLING, f"Same seed, same text {or_else('new each run')}.", "N"),
    Flag("stop", ("--stop",), SAMPLING, "End before this text; repeatable.", "TEXT", repeat=True),
    Flag(
        "strategy",
        ("-S", "--strategy"),
        DECODING,
        f"How to decode; listed below {or_else(next(iter(STRATEGIES)))}.",
        "NAME",
    ),
    *_own_flags(),
    Flag(
        "option",
        ("-O", "--option"),
        DECODING,
        "Any parameter of the strategy, listed below; repeatable.",
        "NAME=VALUE",
        repeat=True,
    ),
    Flag("output", ("-o", "--output"), OUTPUT, "Write the answer there, not to stdout.", "FILE"),
    Flag("json", ("--json",), OUTPUT, "One JSON object: text, tokens, speeds, settings."),
    Flag("trace", ("--trace",), OUTPUT, "Record every step as JSON Lines.", "FILE"),
    Flag("export", ("--export",), OUTPUT, "Save the view as a picture, .svg or .html.", "FILE"),
    Flag("no_live", ("--no-live",), OUTPUT, "Plain text on a terminal too."),
    Flag("no_stream", ("--no-stream",), OUTPUT, "Print the answer when it is complete."),
    Flag("quiet", ("-q", "--quiet"), OUTPUT, "The answer only: no live view, no summary."),
    Flag("verbose", ("-v", "--verbose"), OUTPUT, "Models, settings and speeds on stderr."),
    Flag("device", ("--device",), MACHINE, f"auto, cpu, cuda, cuda:N or mps {_AUTO}.", "D"),
    Flag(
        "dtype",
        ("--dtype",),
        MACHINE,
        f"auto, float32, float16 or bfloat16 {_AUTO}.",
        "TYPE",
    ),
    Flag(
        "quantize",
        ("--quantize",),
        MACHINE,
        f"Weights of both models in fewer bits: none, int8 or int4 {or_else('none')}.",
        "BITS",
    ),
    Flag("engine", ("--engine",), MACHINE, f"auto, eager, fast or graphs {_AUTO}.", "NAME"),
)
_NOT_OF_FILL = (
    "system",
    "raw",
    "input",
    "jsonl",
    "batch_size",
    "max_tokens",
    "stop",
    *(n for n in _OWN_FLAGS if n != "k"),
)
FILL_FLAGS: tuple[Flag, ...] = (  # of `apd fill`: the same table, gaps in place of a length
    Flag("marker", ("--marker",), PROMPT, f"What marks a gap in TEXT [default {MARKER}].", "TEXT"),
    Flag("gap", ("--gap",), SAMPLING, f"Tokens each gap takes, 1 or more [default {GAP}].", "N"),
    *(
        replace(
            flag, help="How to decode; listed below [default dico, or the profile's if listed]."
        )
        if flag.name == "strategy"
        else flag
        for flag in FLAGS
        if flag.name not in _NOT_OF_FILL
    ),
)
OWN_FIELDS = frozenset(f.name for info in STRATEGIES.values() for f in fields(info.params))
_BY_NAME = {flag.name: flag for flag in (*FILL_FLAGS, *FLAGS)}
SETTINGS = (  # options that `load.settings` resolves; the others are about this run only
    *("profile", "system", "stop", "strategy", "device", "dtype", "quantize", "engine"),
    *SHARED_FIELDS,
    *_OWN_FLAGS,
)
_TEXTS = ("profile", "system", "stop", "strategy", "device", "dtype", "quantize", "engine")


def with_flags(command: Callable[..., Any], flags: Sequence[Flag] = FLAGS) -> Callable[..., Any]:
    """`command(*own parameters, **values)` with the signature that Typer builds options from."""

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        for flag in flags:
            if "FILE" in flag.metavar and values[flag.name] == "":  # -o "$UNSET"
                raise UsageError(f"{flag.shown} is empty: it must name a file")
        return command(**values)

    signature = inspect.signature(command, eval_str=True)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    made = [*own, *(flag.parameter() for flag in flags)]
    wrapped.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in made}
    return wrapped


class GroupedCommand(TyperCommand):
    """A command whose help lists options by group, without Rich."""

    strategies: Sequence[str] = tuple(STRATEGIES)
    default_strategy = next(iter(STRATEGIES))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group, in the order in which the table has them."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                name = "Arguments" if param.param_type_name == "argument" else "Other"
                groups.setdefault(getattr(param, "rich_help_panel", None) or name, []).append(
                    record
                )
        groups["Strategies, and what they take by -O"] = self.strategy_rows()
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)

    def strategy_rows(self) -> list[tuple[str, str]]:
        """Strategies, with what they take by -O and the defaults."""
        rows = []
        for info in map(STRATEGIES.__getitem__, self.strategies):
            own = [f for f in fields(info.params) if f.name not in _OWN_FLAGS]
            shown = [f"{f.name}={'N' if f.default is None else _written(f.default)}" for f in own]
            rows.append((info.name, info.summary + (f" (-O {', '.join(shown)})" if shown else "")))
        return rows


class FillCommand(GroupedCommand):
    """The same with the strategies that can fill gaps."""

    strategies = FILLING
    default_strategy = "dico"


def help_hint(command: str) -> str:
    """Where to look for what a command takes."""
    return f"see 'apd {command} --help'"


def read_values(values: Mapping[str, Any], command: str) -> dict[str, Any]:
    """The settings among the texts that Typer collected, as checked values.

    Raises:
        UsageError: a value out of its range; the message names the flag and the range.
    """
    read: dict[str, Any] = {}
    hint = help_hint(command)
    for text in values.get("option", ()):
        name, value = _read_option(text, hint)
        read[name] = value
    for name in SETTINGS:
        text = values.get(name)
        if text is None or text == []:
            continue
        value = text if name in _TEXTS else value_of(text)
        if name in read and read[name] != value:
            raise UsageError(
                f"{_BY_NAME[name].shown} {text} and -O {name}={read[name]} are one setting: "
                f"give one; {hint}"
            )
        read[name] = value
        _check(name, read[name], _BY_NAME[name].shown, hint)
    return read


def _read_option(text: str, hint: str) -> tuple[str, Any]:
    from apdcli.load.settings import meant

    name, equals, written = text.partition("=")
    name = name.strip().replace("-", "_")
    if not equals:
        raise UsageError(f"-O {text}: write it as NAME=VALUE; {hint}")
    if name not in OWN_FIELDS:
        known = (
            _own_option(name)
            or meant(name, OWN_FIELDS)
            or f"there are: {', '.join(sorted(OWN_FIELDS))}"
        )
        raise UsageError(f"-O {text}: no strategy has a parameter {name!r}; {known}")
    value = value_of(written)
    _check(name, value, f"-O {name}", hint)
    return name, value


def _own_option(name: str) -> str:
    """The option that this is, without -O; "" where it is none."""
    for flag in FLAGS:
        written = (text.lstrip("-").replace("-", "_") for text in flag.flags)
        if flag.group == SAMPLING and name in written:
            return f"it is an option by itself: {flag.shown}"
    return ""


def _check(name: str, value: Any, shown: str, hint: str) -> None:
    # Late: pydantic comes with it, and most command lines need it only once Typer has it, too.
    from apdcli.load.profile import check_value, nearest

    if name in ("profile", "system"):
        return
    try:
        check_value(name, value)
    except ParameterError as error:
        if name == "stop":  # what else can be wrong with a text?
            raise UsageError(f"{shown}: it must not be empty; {hint}") from error
        given = "''" if value == "" else value
        hint = (nearest(value, STRATEGIES) if name == "strategy" else "") or hint
        raise UsageError(f"{shown} {given}: it must be {error.allowed}; {hint}") from error


def whole_number(text: str, flag: str, hint: str, least: int = 1) -> int:
    """What the option says; raises UsageError for anything but an integer >= `least`."""
    if not text.strip().isdecimal() or int(text) < least:
        raise UsageError(f"{flag} {text}: it must be an integer >= {least}; {hint}")
    return int(text)


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def flag_of(name: str) -> str:
    """How a setting is given on the command line, for messages."""
    return _BY_NAME[name].shown if name in _BY_NAME else f"-O {name}"


def flags_of(names: Sequence[str]) -> str:
    """The same of several, in one line."""
    return ", ".join(flag_of(name) for name in names)
