"""What the parser complains of, in one line: what is wrong, what is near it, whose help to read.

Knows no command; the few options that users of other tools type stand here by name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_MODEL = "a profile names the models, -p PROFILE"
_ELSEWHERE = {
    "--model": _MODEL,
    "-m": f"{_MODEL} (and -M is the lookahead)",
    "--prompt": "the prompt stands by itself, in quotes",
}
_OF_COMMANDS = {  # where a habit of one command has another name in the next
    ("apd fill", option): "a gap takes as many tokens as --gap says"
    for option in ("-n", "--max-tokens")
}
_OF_COMMANDS |= {
    (
        "apd chat",
        option,
    ): "--resume goes on with the last conversation, --session NAME with a named one"
    for option in ("-c", "--continue", "--cid", "--conversation")
}
_NO_COMMAND = re.compile(r"""No such command (['"])(?P<name>.*?)\1(?:\.|$)""")
_NO_OPTION = "NoSuchOption"


def complaint(error: Any, command: str) -> str:
    """The line for an error of the parser.

    Args:
        error: of Click, or of Typer, which carries Click inside or takes the installed one: their
            classes have no base in common.
        command: what was called, as far as that is known; the error may know better.
    """
    context = error.ctx
    command = context.command_path if context else command
    message = " ".join(error.format_message().split()).rstrip(".")
    if type(error).__name__ == _NO_OPTION:
        option = error.option_name
        instead = _OF_COMMANDS.get((command, option)) or _ELSEWHERE.get(option)
        if instead:
            return f"no option {option}: {instead}; {_see(command)}"
        return unknown(f"no option {option}", near_option(option, context), command)
    if context and (found := _NO_COMMAND.match(message)):
        from apdcli.load.profile import nearest

        name = found["name"]
        near = nearest(name, context.command.commands)
        return unknown(f"no command {name!r}", near, command)
    if "extra argument" in message and command in ("apd generate", "apd fill"):
        message += f": put the {'text' if command == 'apd fill' else 'prompt'} in quotes"
    return f"{message[:1].lower()}{message[1:]}; {_see(command)}"


def unknown(what: str, near: str, command: str) -> str:
    """What there is not, what may have been meant ("" for nothing), and where to look."""
    see = _see(command)
    return f"{what}; {near} S{see[1:]}" if near else f"{what}; {see}"


def _see(command: str) -> str:
    return f"see '{command} --help'"


def near_option(option: str, context: Any) -> str:
    """ "did you mean -R?" for an option that the command of this context lacks; "" for nothing."""
    if context is None:
        return ""
    from apdcli.load.profile import nearest

    spellings = [
        list(param.opts)
        for param in context.command.get_params(context)
        if param.param_type_name == "option" and not param.hidden
    ]
    long = [o for opts in spellings for o in opts if o.startswith("--")]
    return nearest(option, long) if option.startswith("--") else _near_letter(option, spellings)


def _near_letter(option: str, spellings: Sequence[Sequence[str]]) -> str:
    """The letter in its other size, or the long options that begin with it, if they are few."""
    other = option.swapcase()
    for opts in spellings:
        if other in opts:
            long = [o for o in opts if o.startswith("--")]
            return f"did you mean {other}{f' ({long[0]})' if long else ''}?"
    begun = [o for opts in spellings for o in opts if o.startswith(f"--{option[1:].lower()}")]
    return f"did you mean {' or '.join(begun)}?" if 0 < len(begun) <= 2 else ""
