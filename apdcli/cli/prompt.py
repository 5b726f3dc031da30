"""The prompt: the PROMPT argument and standard input, as llm and ollama join them.

Standard input that is not a terminal is read to its end, whatever it is: a script that keeps it
open without writing should give `< /dev/null`. Knows no tokenizer and no template.
"""

from __future__ import annotations

from typing import Any

from apdcli.cli.context import Context
from apdcli.errors import InputError, PromptError, UsageError, reason
from apdcli.render.terminal import is_terminal

STDIN = "-"
_MOST_BYTES = 64 * 2**20
_NO_PROMPT = (
    'no prompt: give one, as in: apd generate "Write a haiku about the sea", '
    "or pipe a text to standard input"
)


def read_prompt(argument: str | None, context: Context, *, raw: bool) -> str:
    """Standard input and the argument, in this order, with a blank line between them.

    Args:
        argument: PROMPT; "-" or None stand for standard input alone.
        context: whose standard input is read, unless it is a terminal and "-" was not given.
        raw: the text is continued as it is: the final newline of standard input is kept.

    Raises:
        UsageError: there is no argument and nothing is piped.
        InputError: not UTF-8, unreadable, or longer than any context.
        PromptError: nothing but white space.
    """
    listens = context.stdin is not None and not is_terminal(context.stdin)
    if argument is None and not listens:
        raise UsageError(_NO_PROMPT)
    piped = _read(context.stdin).removeprefix("\ufeff") if listens or argument == STDIN else ""
    if argument is None or argument == STDIN:
        prompt = piped if raw else piped.rstrip("\r\n")
    else:
        _check_utf8(argument, "PROMPT")
        before = piped.rstrip("\r\n")
        prompt = f"{before}\n\n{argument}" if before.strip() else argument
    if not (prompt if raw else prompt.strip()):
        raise PromptError("the prompt is empty; give some text as PROMPT or on standard input")
    return prompt


def read_text(argument: str | None, context: Context, *, example: str) -> str:
    """The argument, or with "-" or without one standard input: as it is, to the last byte.

    Raises:
        UsageError: there is no argument and nothing is piped. InputError: as `read_prompt`.
    """
    if argument is not None and argument != STDIN:
        _check_utf8(argument, "TEXT")
        return argument
    if argument is None and (context.stdin is None or is_terminal(context.stdin)):
        raise UsageError(f"no text: give one, as in: {example}, or pipe it to standard input")
    return _read(context.stdin)


def _read(stdin: Any) -> str:
    if stdin is None:
        return ""
    try:
        data = getattr(stdin, "buffer", stdin).read(_MOST_BYTES + 1) or b""
    except OSError as error:
        raise InputError(f"standard input cannot be read: {reason(error)}") from error
    except ValueError:  # closed
        return ""
    if isinstance(data, str):
        return data
    if len(data) > _MOST_BYTES:
        raise InputError(f"standard input is longer than {_MOST_BYTES >> 20} MiB: no prompt")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 text: byte {error.start} is 0x{data[error.start]:02x}; "
            "convert it, for example with: iconv -f latin1 -t utf-8"
        ) from error


def _check_utf8(argument: str, name: str) -> None:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} is not UTF-8 text (character {error.start}); "
            "pipe it as UTF-8, or take such a locale: LC_ALL=C.UTF-8"
        ) from error
