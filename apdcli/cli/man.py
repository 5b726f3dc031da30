"""The manual page, apd.1, made from the help of every command.

`apd man` prints it, and the wheel carries what `apd man > apdcli/cli/apd.1` wrote; a test compares
the two. Nothing of this machine is in it: no date, no width, no path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from apdcli import __version__

_DESCRIPTION = """\
Diffusion language models write several tokens at a time. B(apd) decides at every step how many of
the proposed tokens to take, by adaptive parallel decoding or another strategy. It brings a small
pair of models of its own, so that the first answer needs no download and no GPU.
P
Standard output gets the answer, or JSON, and nothing else. Everything else goes to standard error,
and nothing of it where standard error is no terminal, but for the one line of a failure.
"""
_STATUSES = (
    ("0", "Done."),
    ("1", "Failed: a file, a model, or a line of --input. One line on standard error says why."),
    ("2", "Wrong usage: an unknown option, or a value out of its range."),
    ("130", "Interrupted by Ctrl-C; what was generated until then was printed."),
    ("141", "Whoever read standard output left early, as head does."),
    ("128 + N", "Ended by signal N: 143 after SIGTERM, 129 after SIGHUP."),
)
_VARIABLES = (
    ("APD_PROFILE, APD_STRATEGY, APD_TEMPERATURE, ...", "A setting that no option gives."),
    (
        "APD_R, APD_W, APD_M",
        "In short: APD_MIXTURE_WEIGHT, APD_RECOMPUTE_WINDOW, APD_MAX_LOOKAHEAD.",
    ),
    ("APD_CONFIG_DIR", "Where the folder of your own profiles lies."),
    ("APD_DATA_DIR", "In place of ~/.local/share/apd, for sessions, history and searches."),
    ("APD_CACHE_DIR", "In place of ~/.cache/apd."),
    ("NO_COLOR", "Not empty: no colours; steps are told apart by underlining."),
    ("FORCE_COLOR", "On a terminal: 0 none, 1 the 16 of every terminal, 2 256, 3 all colours."),
    ("TERM", "dumb: plain text, no live view."),
    ("COLUMNS", "How wide help and lists are; the live view asks the terminal itself."),
    ("VISUAL, EDITOR", "The editor of apd profiles edit, and of /edit in a chat."),
    ("HF_HOME, HF_TOKEN, HF_HUB_OFFLINE", "The hub's cache, its key, and no network."),
)
_FILES = (
    ("~/.config/apd/profiles/*.toml", "Your own profiles; they win over shipped ones."),
    ("~/.local/share/apd/sessions/*.json", "The conversations of apd chat, a file each."),
    ("~/.local/share/apd/history", "What was typed in them, for Up and Ctrl-R."),
    ("~/.local/share/apd/tune.db", "The searches of apd tune; the same command goes on with one."),
    ("~/.local/share/apd/completion.bash, completion.zsh", "What --install-completion writes."),
    ("~/.config/fish/completions/apd.fish", "The same for fish."),
    ("~/.cache/apd", "The models' careful answers, which apd tune and apd eval compare with."),
    ("~/.cache/huggingface/hub", "Models that were fetched."),
)
_CHAT = """\
On a terminal, a line that begins with a slash is a command to B(apd chat); anything else is a
message. In a pipe every line is a message.
"""
_KEYS = "The keys of the line that is typed, which can be edited and recalled as in a shell:"


def manual() -> str:
    """The page as roff, for man(1)."""
    from typer.main import get_command

    from apdcli.cli.app import build

    root = get_command(build())
    lines = [
        f'.TH APD 1 "" "apd {__version__}" "User Commands"',
        ".nh",
        ".SH NAME",
        "apd \\- the command line for diffusion language models",
        ".SH SYNOPSIS",
        *_synopsis(root),
        ".SH DESCRIPTION",
        *_marked(_DESCRIPTION),
        ".SH OPTIONS",
        *_options(root),
        ".SH COMMANDS",
    ]
    for path, command in _commands(root, "apd"):
        lines += _command(path, command)
    lines += _chat()
    for title, rows in (
        ("EXIT STATUS", _STATUSES),
        ("ENVIRONMENT", _VARIABLES),
        ("FILES", _FILES),
    ):
        lines += [f".SH {title}", *_rows(rows)]
    return "\n".join(lines) + "\n"


def _chat() -> list[str]:
    """What /help says inside a chat."""
    from apdcli.chat.commands import COMMANDS, KEYS

    commands = [
        (", ".join((command.shown, *(f"/{name}" for name in command.aliases))), command.does)
        for command in COMMANDS
    ]
    lines = [".SH CHAT", *_marked(_CHAT), *_rows(commands)]
    return [*lines, ".PP", _roff(_KEYS), *_rows(KEYS)]


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    lines: list[str] = []
    for name, text in rows:
        lines += [".TP", f"\\fB{_roff(name)}\\fR", _roff(text)]
    return lines


def _synopsis(root: Any) -> list[str]:
    lines = []
    for path, command in _commands(root, "apd"):
        if getattr(command, "commands", None):
            continue
        words = " ".join([*(["[OPTIONS]"] if _has_options(command) else []), *_arguments(command)])
        lines += [f"\\fB{_roff(path)}\\fR {_roff(words)}".rstrip(), ".br"]
    return lines[:-1]


def _command(path: str, command: Any) -> list[str]:
    lines = [f".SS {_quoted(' '.join([path, *_arguments(command)]))}"]
    for paragraph in (command.help or "").split("\n\n"):
        lines += [".PP", _roff(" ".join(paragraph.split()))]
    lines += _options(command)
    strategies = getattr(command, "strategy_rows", None)
    if strategies is not None:
        lines += [".PP", "Strategies, and what they take by \\fB\\-O\\fR:"]
        for name, text in strategies():
            lines += [".TP", f"\\fB{_roff(name)}\\fR", _roff(text)]
    if command.epilog:
        lines += _epilog(command.epilog)
    return lines


def _epilog(text: str) -> list[str]:
    """Paragraphs; those that \\b begins are printed as they are written."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines += [".PP", ".nf", *map(_roff, paragraph[2:].split("\n")), ".fi"]
        else:
            lines += [".PP", _roff(" ".join(paragraph.split()))]
    return lines


def _options(command: Any) -> list[str]:
    lines = []
    for param in command.params:
        if getattr(param, "hidden", False) or not (help_ := getattr(param, "help", None)):
            continue
        if param.param_type_name == "argument":
            lines += [".TP", f"\\fI{_roff(_name(param))}\\fR", _roff(" ".join(help_.split()))]
            continue
        spelled = ", ".join(f"\\fB{_roff(o)}\\fR" for o in sorted(param.opts, key=len))
        value = "" if param.is_flag else f" \\fI{_roff(_name(param))}\\fR"
        lines += [".TP", spelled + value, _roff(" ".join(help_.split()))]
    return lines


def _has_options(command: Any) -> bool:
    return any(p.param_type_name == "option" and not p.hidden for p in command.params)


def _arguments(command: Any) -> list[str]:
    if getattr(command, "commands", None):
        return ["COMMAND"]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    return [_name(p) if p.required else f"[{_name(p).strip('[]')}]" for p in arguments]


def _name(param: Any) -> str:
    return str(param.metavar or param.name.upper())


def _commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, with its whole name."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        yield f"{path} {name}", command
        if getattr(command, "commands", None):
            yield from _commands(command, f"{path} {name}")


def _marked(text: str) -> list[str]:
    """B(...) is bold, P alone on a line a new paragraph."""
    lines = [".PP" if line == "P" else _roff(line) for line in text.splitlines()]
    return [re.sub(r"B\((.*?)\)", r"\\fB\1\\fR", line) for line in lines]


def _quoted(text: str) -> str:
    return '"' + _roff(text).replace('"', "\\(dq") + '"'


def _roff(text: str) -> str:
    """Text that roff prints as it is, wherever it stands."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha")
    text = text.replace("`", "\\(ga").replace("'", "\\(aq").replace("~", "\\(ti")
    return f"\\&{text}" if text.startswith((".", "\\(aq")) else text
