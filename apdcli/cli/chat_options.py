"""The options of `apd chat`: those of generate, less what is about one answer, and its own.

Loads no torch and no prompt_toolkit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import typer

from apdcli.cli.options import FLAGS, OUTPUT, PROMPT, Flag, GroupedCommand, with_flags

_EPILOG = """\
In a pipe each line is a message and each answer follows at once, without any decoration. With
--json a line that begins with { is an object, {"prompt": "...", "temperature": 0.7, "id": 1},
and each answer is an object on one line. A line that is wrong gets {"error": ...} in its place
and the status at the end is 1. Nothing in a line is a command.

\b
Examples:
  apd chat
  apd chat -p dream -s "Answer in one sentence." --markdown
  apd chat --resume
  printf '%s\\n' "My name is Mia." "What is my name?" | apd chat
  echo "Where were we?" | apd chat --session work
"""

LATEST = "\0"  # --resume without a name; no command line can hold it
_NOT_OF_CHAT = ("raw", "input", "jsonl", "batch_size", "output")
_OTHER_WORDS = {
    "json": "In a pipe: an object a line in (or plain text), one a line out.",
    "trace": "Record every step: FILE, then FILE-2, FILE-3 ... an answer each.",
    "export": "At the end, save the conversation as a picture, .svg or .html.",
    "quiet": "The answers only: no live view, no numbers, no hints.",
}
_OWN = (
    Flag(
        "resume",
        ("--resume",),
        PROMPT,
        "Go on with a saved conversation: NAME, or the last one.",
        "[NAME]",
    ),
    Flag(
        "session",
        ("--session",),
        PROMPT,
        "Keep the conversation as NAME, in a pipe too: go on with it, or begin it.",
        "NAME",
    ),
    Flag("no_save", ("--no-save",), PROMPT, "Keep nothing on disk: no session, no history."),
)
_MARKDOWN = Flag("markdown", ("--markdown",), OUTPUT, "On a terminal: set answers as Markdown.")


def _flags() -> tuple[Flag, ...]:
    kept = []
    for flag in FLAGS:
        if flag.name in _NOT_OF_CHAT:
            continue
        words = _OTHER_WORDS.get(flag.name)
        kept.append(flag if words is None else replace(flag, help=words))
        if flag.name == "system":
            kept += _OWN
    place = next(i for i, flag in enumerate(kept) if flag.group == OUTPUT)
    return (*kept[:place], _MARKDOWN, *kept[place:])


CHAT_FLAGS = _flags()


class ChatCommand(GroupedCommand):
    """A command of which --resume may stand alone."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a lone --resume its value; the command has no arguments that could be meant."""
        given = []
        for place, arg in enumerate(args):
            alone = place + 1 == len(args) or args[place + 1].startswith("-")
            given.append("--resume=" + LATEST if arg == "--resume" and alone else arg)
        parsed: list[str] = super().parse_args(ctx, given)
        return parsed


def add_to(app: typer.Typer) -> None:
    """Give the application its `chat` command."""
    command = app.command("chat", cls=ChatCommand, epilog=_EPILOG, options_metavar="[OPTIONS]")
    command(with_flags(_chat, CHAT_FLAGS))


def _chat(**values: Any) -> Any:
    """A conversation: on a terminal with editing and history, in a pipe line by line.

    /help in it lists its commands. On a terminal every answer is saved, in a pipe only with
    --session NAME or --resume; --resume goes on.
    """
    from apdcli.cli import chat

    job = chat.Job.of(None, values)
    return lambda context: chat.run(job, context)
