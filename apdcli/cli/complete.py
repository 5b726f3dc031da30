"""What the Tab key offers: commands, options, profiles, sessions, strategies and their parameters.

The shell scripts of `shells` run `apd` with _APD_COMPLETE=complete_SHELL, the words up to the
cursor in COMP_WORDS and the place of the last of them in COMP_CWORD. The answer is a line for each
candidate; status 1 says that there is nothing, not even a file's name. Loads no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

VARIABLE = "_APD_COMPLETE"
NOTHING = 1
_BREAKS = ("=", ":")  # where bash cuts a word in two
_FILES = ("FILE", "PATH", "FOLDER", "DIR", "TRACE")


@dataclass(frozen=True)
class Candidate:
    """What a word may become, and what that is."""

    value: str
    help: str = ""


@dataclass
class _Typed:
    """The command line up to the word at the cursor.

    Attributes:
        command: the innermost command that was named.
        given: values of the options, by name; "" for a switch.
        waiting: the option whose value comes next.
        arguments: how many there are.
    """

    command: Any
    given: dict[str, list[str]]
    waiting: Any = None
    arguments: int = 0
    options_over: bool = False


def answer(environ: Mapping[str, str]) -> tuple[str, int]:
    """What to print for a shell that asks, and the exit status."""
    instruction, _, shell = environ[VARIABLE].partition("_")
    if instruction == "source":
        from apdcli.cli.shells import script

        return script(shell), 0
    words, current, cut = _words(environ, as_typed=shell != "powershell")
    found, files = candidates(words, current, environ)
    lines = [_FORMATS.get(shell, _tabbed)(c.value[cut:], c.help) for c in found]
    return "\n".join(dict.fromkeys(lines)), 0 if found or files else NOTHING


def candidates(
    words: Sequence[str], current: str, environ: Mapping[str, str]
) -> tuple[list[Candidate], bool]:
    """What the word at the cursor may become, and whether a file's name would do as well.

    Args:
        words: the whole words before it, without `apd` itself.
        current: what of it is there already.
    """
    from typer.main import get_command

    from apdcli.cli.app import build

    typed = _read(get_command(build()), words)
    if typed.command is None:
        return [], False
    before, param = "", typed.waiting
    if param is not None and _may_stand_alone(param) and current.startswith("-"):
        param = None
    if param is None and not typed.options_over and current.startswith("-"):
        name, equals, _ = current.partition("=")
        param = _option(typed.command, name) if equals else None
        before = name + equals
        if param is None:
            return _matching(_options(typed), current), False
    elif param is None:
        commands = getattr(typed.command, "commands", None)
        if commands:
            return _matching(_commands(commands), current), False
        param = _argument(typed)
    if param is None:
        return [], False
    offered = _values(param, typed, current[len(before) :], environ)
    offered = [Candidate(before + value.value, value.help) for value in offered]
    takes_files = any(word in str(param.metavar or "").upper() for word in _FILES)
    return _matching(offered, current), takes_files or param.name == "profile"


def _words(environ: Mapping[str, str], as_typed: bool) -> tuple[list[str], str, int]:
    """The words before the cursor, the one at it, and how much of that bash holds to be another.

    Args:
        as_typed: they have their quotes still, and bash may have cut them.
    """
    text = environ.get("COMP_WORDS", "")
    if not as_typed:
        _, *rest = text.split("\n")
        return rest[:-1], rest[-1] if rest else "", 0
    words = [_unquoted(word) for word in text.split("\n")] if "\n" in text else _split(text)
    try:
        place = int(environ.get("COMP_CWORD", ""))
    except ValueError:
        place = len(words) - (1 if words and not text.endswith(" ") else 0)
    words = [*words[: place + 1], *[""] * (place + 1 - len(words))]
    joined: list[str] = []
    for index, word in enumerate(words):
        glued = index > 1 and (word in _BREAKS or words[index - 1] in _BREAKS)
        if glued:
            joined[-1] += word
        else:
            joined.append(word)
    current = joined[-1] if joined else ""
    broken = len(words) > 1 and current != words[-1]
    cut = 1 + max(map(current.rfind, _BREAKS)) if broken else 0
    return joined[1:-1], current, cut


def _split(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # a quote that is open still
        words.append(lexer.token)
    return words


def _unquoted(word: str) -> str:
    return " ".join(_split(word)) if word else ""


def _read(root: Any, words: Sequence[str]) -> _Typed:
    typed = _Typed(root, {})
    for word in words:
        if typed.waiting is not None and _may_stand_alone(typed.waiting) and word.startswith("-"):
            typed.given.setdefault(typed.waiting.name, []).append("")
            typed.waiting = None
        if typed.waiting is not None:
            typed.given.setdefault(typed.waiting.name, []).append(word)
            typed.waiting = None
        elif word == "--" and not typed.options_over:
            typed.options_over = True
        elif word.startswith("-") and len(word) > 1 and not typed.options_over:
            _read_option(typed, word)
        elif commands := getattr(typed.command, "commands", None):
            typed.command = commands.get(word)
            typed.given = {}
            if typed.command is None:
                break
        else:
            typed.arguments += 1
    return typed


def _read_option(typed: _Typed, word: str) -> None:
    name, equals, value = word.partition("=")
    param = _option(typed.command, name)
    if param is None and not word.startswith("--"):  # -R0.5
        param, equals, value = _option(typed.command, word[:2]), "=", word[2:]
    if param is None:
        return
    if param.is_flag or equals:
        typed.given.setdefault(param.name, []).append(value)
    else:
        typed.waiting = param


def _may_stand_alone(param: Any) -> bool:
    """Whether the option's value may be left out: [NAME]."""
    return str(param.metavar or "").startswith("[")


def _option(command: Any, name: str) -> Any:
    return next((param for param in _params(command, "option") if name in param.opts), None)


def _argument(typed: _Typed) -> Any:
    arguments = list(_params(typed.command, "argument"))
    if not arguments:
        return None
    last = arguments[-1]
    if typed.arguments < len(arguments):
        return arguments[typed.arguments]
    return last if last.nargs == -1 else None


def _params(command: Any, kind: str) -> Iterator[Any]:
    return (param for param in command.params if param.param_type_name == kind)


def _options(typed: _Typed) -> list[Candidate]:
    """Every option that may still be given, in its longest spelling and its short one."""
    found = [
        Candidate(spelling, param.help or "")
        for param in _params(typed.command, "option")
        if not param.hidden and (param.multiple or param.name not in typed.given)
        for spelling in param.opts
    ]
    return [*found, Candidate("--help", "Show the help.")]


def _commands(commands: Mapping[str, Any]) -> list[Candidate]:
    return [
        Candidate(name, command.get_short_help_str(80))
        for name, command in commands.items()
        if not command.hidden
    ]


def _matching(found: Sequence[Candidate], current: str) -> list[Candidate]:
    return [candidate for candidate in found if candidate.value.startswith(current)]


def _values(param: Any, typed: _Typed, current: str, environ: Mapping[str, str]) -> list[Candidate]:
    """Values of an option or argument."""
    name = param.name
    named = name == "name" and typed.command.name in ("show", "path", "edit", "check")
    if name == "profile" or named:
        return _profiles()
    if name == "strategy":
        return _strategies(_grouped(typed).strategies)
    if name in ("resume", "session"):
        return _sessions(environ)
    if name == "option":
        return _parameters(typed, current, environ)
    if name == "device":
        return [Candidate(device) for device in ("auto", "cpu", "cuda", "mps")]
    if name == "dtype":
        return [Candidate(dtype) for dtype in ("auto", "float32", "float16", "bfloat16")]
    if name == "quantize":
        return [Candidate(word) for word in ("none", "int8", "int4")]
    if name == "engine":
        return [Candidate(engine) for engine in ("auto", "eager", "fast", "graphs")]
    if name == "speed":
        return [Candidate("max", "no waiting")]
    if name in ("install_completion", "show_completion"):
        from apdcli.cli.shells import SHELLS

        return [Candidate(shell) for shell in SHELLS]
    # N|all: a number, or this word
    words = str(param.metavar or "").split("|")
    return [Candidate(word) for word in words if word.islower()]


def _profiles() -> list[Candidate]:
    from apdcli.load.profile import list_profiles

    return [Candidate(entry.name, entry.description) for entry in list_profiles()]


def _sessions(environ: Mapping[str, str]) -> list[Candidate]:
    """Saved conversations, the last one first; none of them is read."""
    from datetime import datetime

    from apdcli.chat.sessions import user_store

    def when(name: str) -> str:
        try:
            changed = store.path(name).stat().st_mtime
        except OSError:  # gone in the meantime
            return ""
        return f"last used {datetime.fromtimestamp(changed):%Y-%m-%d %H:%M}"

    store = user_store(environ)
    return [Candidate(name, when(name)) for name in store.names()]


def _strategies(names: Sequence[str]) -> list[Candidate]:
    from apdcli.decode.params import STRATEGIES

    return [Candidate(name, STRATEGIES[name].summary) for name in names]


def _parameters(typed: _Typed, current: str, environ: Mapping[str, str]) -> list[Candidate]:
    """NAME= of the strategy's parameters, or after it what the value may be."""
    from apdcli.decode.params import STRATEGIES

    info = STRATEGIES.get(_strategy(typed, environ))
    if info is None:
        return []
    name, equals, _ = current.partition("=")
    if equals:
        own = name.replace("-", "_")
        kinds = get_type_hints(info.params)
        return [Candidate(f"{name}={value}") for value in _words_of(kinds.get(own))]
    given = {text.partition("=")[0].replace("-", "_") for text in typed.given.get("option", ())}
    return [
        Candidate(f"{f.name}=", "" if f.default is None else f"default {f.default}")
        for f in fields(info.params)
        if f.name not in given
    ]


def _strategy(typed: _Typed, environ: Mapping[str, str]) -> str:
    from apdcli.errors import ApdError
    from apdcli.load.settings import chosen_profile

    if chosen := typed.given.get("strategy") or environ.get("APD_STRATEGY"):
        return chosen if isinstance(chosen, str) else chosen[-1]
    try:
        named = typed.given.get("profile")
        profile = chosen_profile(named[-1] if named else None, environ)
        own = str(profile.decode.get("strategy", ""))
    except ApdError:
        own = ""
    command = _grouped(typed)
    return own if own in command.strategies else command.default_strategy


def _grouped(typed: _Typed) -> Any:
    """The command, or for one that says nothing of strategies, what all have in common."""
    from apdcli.cli.options import GroupedCommand

    return typed.command if isinstance(typed.command, GroupedCommand) else GroupedCommand


def _words_of(kind: Any) -> list[str]:
    """The words that a value of this type may be."""
    if kind is bool:
        return ["true", "false"]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return [word for part in get_args(kind) for word in _words_of(part)]


def _plain(value: str, help_: str) -> str:
    return value


def _tabbed(value: str, help_: str) -> str:
    """value TAB help, for fish and PowerShell."""
    return f"{value}\t{_one_line(help_)}" if help_ else value


def _colon(value: str, help_: str) -> str:
    """value:help, for zsh."""
    value = value.replace("\\", "\\\\").replace(":", "\\:")
    return f"{value}:{_one_line(help_)}" if help_ else value


def _one_line(text: str) -> str:
    from apdcli.render.safe import visible

    return " ".join(visible(text).split())


_FORMATS: dict[str, Callable[[str, str], str]] = {"bash": _plain, "zsh": _colon}
