"""`apd chat` in a pipe: a message a line in, an answer out, so that a script can converse.

Nothing in a line is a command or names a file: what a script passes on is not to be trusted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from apdcli.cli.chat_answer import Answered, Answering, Tracing
from apdcli.cli.generate import View
from apdcli.cli.lines import Asked, Line, id_of, lines_of, read_line
from apdcli.cli.main import FAILED, INTERRUPTED, outcome
from apdcli.errors import InputError
from apdcli.render.terminal import is_terminal
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.chat.talk import Talk
    from apdcli.cli.chat_knobs import Knobs
    from apdcli.cli.context import Context
    from apdcli.errors import OutputError
    from apdcli.load.settings import Settings
    from apdcli.render import ViewState


class Lines(Answering):
    """The conversation as a script sees it."""

    def __init__(
        self,
        talk: Talk,
        knobs: Knobs,
        context: Context,
        *,
        as_json: bool,
        streams: bool,
        verbose: bool,
        tracing: Tracing,
    ) -> None:
        super().__init__(talk, knobs, context, tracing)
        self._json = as_json
        self._streams = streams
        self._verbose = verbose

    def run(self) -> int:
        """Until the input ends: 0, or 1 when a line could not be answered, or 130."""
        status, signals = 0, self.context.signals
        if is_terminal(self.context.stdin) and is_terminal(self.context.stderr):
            self.context.say("one message a line; Ctrl-D ends")
        for line in _lines(self.context, blanks=self._json):
            try:
                failures = self._answer(line, self._asked(line))
            except (OSError, KeyboardInterrupt):  # nobody reads any more; Ctrl-C
                raise
            except Exception as error:
                if signals.interrupted or self.context.debug:
                    raise
                status = FAILED
                self._complain(line, outcome(error)[1])
                continue
            for failure in failures:  # the line has its answer: nothing more goes to stdout
                status = FAILED
                self._say(line, str(failure))
            if signals.interrupted:  # also after the last step, when no answer is cut short
                return INTERRUPTED
        return status

    def _asked(self, line: Line) -> Asked:
        if not line.data.strip():
            raise InputError("the line is blank")
        asked = read_line(line, self._is_object(line), messages=False)
        if asked.raw is not None:
            raise InputError("raw does not go with a chat")
        return asked

    def _is_object(self, line: Line) -> bool:
        return self._json and line.data.lstrip().startswith(b"{")

    def note_left_out(self, count: int) -> None:
        """Where it was asked for."""
        if self._verbose:
            self.context.say(f"the context is full: the first {plural(count, 'message')} left out")

    def _answer(self, line: Line, asked: Asked) -> list[OutputError]:
        """Answer a line; what could not be written beside the answer."""
        settings = self.settings(**asked.settings)
        assert isinstance(asked.prompt, str)
        request = self.talk.prepare(asked.prompt, settings)
        done, failures = self.reply(request, settings)
        self._deliver(line, asked, settings, done, request.left_out)
        if done.elsewhere is not None:
            self.context.say(f"apd: {done.elsewhere}")
        return failures

    @contextlib.contextmanager
    def view(self, state: ViewState) -> Iterator[View]:
        """The text as it is settled, or nothing until it is whole."""
        if not self._streams:
            yield state.apply
            return
        from apdcli.render import PlainWriter

        with PlainWriter(state, self.context.out) as writer:
            yield writer

    def _deliver(
        self, line: Line, asked: Asked, settings: Settings, done: Answered, left_out: int
    ) -> None:
        if self._json:
            from apdcli.cli.report import envelope

            whole = envelope(done.generation, settings, self.talk.pair, asked.settings)
            self._print({**self._head(line), **whole, "left_out": left_out})
        elif not self._streams:
            self.context.print(done.generation.text.removesuffix("\n"))
        if self._verbose:
            from apdcli.render import summary_line

            self.context.remark(summary_line(done.state))

    def _complain(self, line: Line, why: str) -> None:
        if self._json:  # in the answer's place, so that whoever waits for a line gets one
            self._print({**self._head(line), "error": why})
        self._say(line, why)

    def _head(self, line: Line) -> dict[str, Any]:
        """Which line is answered, and its own id."""
        return {"line": line.number, **id_of(line, self._is_object(line))}

    def _say(self, line: Line, why: str) -> None:
        self.context.say(f"apd: line {line.number}: {why}")

    def _print(self, record: dict[str, Any]) -> None:
        self.context.print(json.dumps(record))


def _lines(context: Context, *, blanks: bool) -> Iterator[Line]:
    """Standard input's; blank ones, too, where whoever sends one waits for an answer."""
    if context.stdin is None:
        raise InputError("standard input is closed: there is nobody to talk to")
    stdin: Any = getattr(context.stdin, "buffer", context.stdin)
    return lines_of(stdin, "standard input", blanks=blanks)
