"""`apd chat` on a terminal: read a message or a command, answer, save, and again.

A failure costs one line and never the conversation. Knows no flags; commands are `chat_do`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from apdcli.chat.commands import is_command, parse_command
from apdcli.chat.files import TextFile, files_in, joined, no_files_in, with_files
from apdcli.chat.screen import PROMPT, answer_line
from apdcli.cli.chat_answer import Answered, Answering, Tracing
from apdcli.cli.generate import View
from apdcli.cli.main import outcome
from apdcli.errors import ApdError
from apdcli.render.terminal import Terminal, can_draw, no_echo
from apdcli.render.text import width

if TYPE_CHECKING:
    from apdcli.chat.reader import Reader
    from apdcli.chat.screen import Screen
    from apdcli.chat.talk import Talk
    from apdcli.cli.chat_knobs import Knobs
    from apdcli.cli.context import Context
    from apdcli.engine.conversation import TurnRequest
    from apdcli.load.settings import Settings
    from apdcli.render import ViewState

_HINT = "Ctrl-D or /bye leaves; Ctrl-C stops an answer"
_LEFT_OUT = (
    "the context is full: the models no longer see the first {} (the oldest go until half of the "
    "context is free; the session keeps everything)"
)


class Loop(Answering):
    """The conversation as a person sees it.

    Attributes:
        pending: files that go with the next message.
        draft: a message to edit at the next prompt.
    """

    def __init__(
        self,
        talk: Talk,
        knobs: Knobs,
        context: Context,
        *,
        screen: Screen,
        reader: Reader,
        live: bool = True,
        quiet: bool = False,
    ) -> None:
        super().__init__(talk, knobs, context, Tracing())
        self.screen = screen
        self.reader = reader
        self.pending: list[TextFile] = []
        self.draft = ""
        self._live = live
        self.quiet = quiet
        self._hush = contextlib.ExitStack()
        self._hush_again: Callable[[], None] = lambda: None

    def run(self) -> int:
        """Until the user leaves; 0."""
        with self._hush:
            if self.reader.hears_interrupt:  # it reads keys, whatever the terminal does with them
                self._hush_again = self._hush.enter_context(no_echo(self.context.stdin, keys=True))
            with self.context.signals.held():  # however often it is pressed, the next prompt comes
                return self._run()

    def _run(self) -> int:
        from apdcli.cli import chat_do

        while True:
            self._hush_again()
            try:
                text = self._read()
                if is_command(text):
                    command, argument = parse_command(text)
                    if command.name == "bye":
                        return 0
                    with self.context.signals.released():
                        chat_do.DO[command.name](self, argument)
                elif text.strip() or self.pending:
                    self.say(text)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                self.screen.note(_HINT)
            except OSError:  # the terminal itself
                raise
            except Exception as error:
                self._failed(error)

    def say(self, text: str) -> None:
        """One message with its files, and the answer.

        Raises:
            InputError: a file cannot be added; the message comes back at the prompt.
            PromptError: too long; so does it.
        """
        with self._turn():
            self._say(text)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """No key is drawn and no Ctrl-C is lost until the next message is read."""
        if not self.reader.hears_interrupt:
            self._hush.enter_context(no_echo(self.context.stdin))
        with self.context.signals.held():
            yield

    def _say(self, text: str) -> None:
        try:
            named = files_in(text)
            files = joined([*self.pending, *named])
            settings = self.settings()
            request = self.talk.prepare(with_files(text, files), settings)
        except ApdError:
            self.draft = text
            if self.pending:
                names = ", ".join(file.name for file in self.pending)
                self.screen.note(f"no longer with the next message: {names}")
                self.pending = []
            raise
        self.pending = []
        if not self.quiet:
            self._note_files(text, named)
        typed = " ".join([text, *(f"[{file.name}]" for file in files)]) if files else None
        done = self._answer(request, settings, typed)
        if not done.kept:
            self.draft = text

    def _note_files(self, text: str, named: list[TextFile]) -> None:
        if named:
            self.screen.note("with " + ", ".join(file.described for file in named))
        for word in no_files_in(text):
            self.screen.note(f"@{word} is no file here: sent as it stands")

    def say_again(self, message: str, typed: str | None, settings: Settings) -> None:
        """Another message, or the same, in place of the last one.

        Raises:
            PromptError: too long; the last one stays.
        """
        with self._turn(), self.talk.replacing():
            self._answer(self.talk.prepare(message, settings), settings, typed)

    def _read(self) -> str:
        """What is typed next; a reader of lines has the keys' echo back for it."""
        draft, self.draft = self.draft, ""
        if not self._fits(draft):  # what was said about it would be gone at once
            self.screen.note("the message is too long to stand here; Up brings it back")
            draft = ""
        signals, hears = self.context.signals, self.reader.hears_interrupt
        if not hears:
            self._hush.close()
        signals.rearm()
        try:
            with signals.telling(self.reader.interrupt) if hears else signals.released():
                return self.reader.read(draft)
        finally:
            signals.rearm()

    def _fits(self, draft: str) -> bool:
        """Whether a text leaves half of the screen to what stands above it."""
        columns, height = self.screen.size()
        rows = sum(1 + (width(line) + len(PROMPT)) // max(2, columns) for line in draft.split("\n"))
        return rows <= height // 2

    def note_left_out(self, count: int) -> None:
        """Once for each time that some are."""
        if not self.quiet:
            what = "message and its answer" if count == 1 else f"{count} messages with answers"
            self.screen.note(_LEFT_OUT.format(what))

    def _answer(self, request: TurnRequest, settings: Settings, typed: str | None) -> Answered:
        done, failures = self.reply(request, settings, typed)
        screen = self.screen
        if not done.kept:
            screen.note("stopped before the first token; nothing was added")
        elif not self.quiet:
            screen.note(answer_line(self.talk.turns[-1]) + "\n")
        if done.elsewhere is not None:
            screen.error(done.elsewhere)
        for error in failures:
            screen.error(str(error))
        return done

    @contextlib.contextmanager
    def view(self, state: ViewState) -> Iterator[View]:
        """The live view, or with Markdown one that goes away and leaves the answer set in it."""
        context, out = self.context, self.context.out
        if not self._sets_markdown:
            from apdcli.render import open_view

            with open_view(
                state,
                live=self._live,
                quiet=True,
                out=out,
                err=context.stderr,
                keyboard=context.stdin,
                environ=context.environ,
            ) as view:
                yield view
            return
        from apdcli.chat.draft_view import DraftView

        terminal = Terminal(out, self.screen.size, context.environ)
        try:
            with DraftView(state, terminal) as draft:
                yield draft
        finally:
            self._set_in_markdown(state.text)

    @property
    def _sets_markdown(self) -> bool:
        drawn = self._live and can_draw(self.context.out, self.context.environ)
        return self.talk.session.markdown and drawn

    def _set_in_markdown(self, text: str) -> None:
        from apdcli.chat.markdown import markdown_text

        text = markdown_text(text, self.screen.columns, self.context.environ)
        self.screen.raw(text.replace("\n", "\r\n"))

    def show_answer(self, text: str) -> None:
        """An earlier answer, as it was shown when it came."""
        if self._sets_markdown:
            self._set_in_markdown(text)
        else:
            self.screen.say(text)

    def _failed(self, error: Exception) -> None:
        if self.context.debug:
            import traceback

            self.context.tell("".join(traceback.format_exception(error)), foreign=True)
        _, line = outcome(error)
        self.screen.error(line)
