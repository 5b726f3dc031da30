"""Reads one message at a time from a terminal: editing, history, several lines, completion.

prompt_toolkit is imported when a reader is made. A terminal without cursor movement gets plain
lines. Knows no models and no commands' meaning.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from apdcli.chat.files import begun_path
from apdcli.chat.screen import PROMPT

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import Output

    from apdcli.chat.completion import Sources

CONTINUED = "... "
QUOTES = '"""'
_PLACEHOLDER = "a message, or /help"
_MENU_ROWS = 6


class Reader(Protocol):
    """Where messages come from.

    Attributes:
        hears_interrupt: Ctrl-C reaches it as a key, not as a signal.
    """

    hears_interrupt: bool

    def read(self, default: str = "") -> str:
        """One message, `default` being there to edit.

        Raises:
            KeyboardInterrupt: Ctrl-C on an empty line; on another one the line is dropped and "".
            EOFError: Ctrl-D, or the terminal is gone.
        """
        ...

    def interrupt(self) -> None:
        """Do what Ctrl-C as a key does; safe in a signal's handler, and when nothing is read."""
        ...


def is_open(text: str) -> bool:
    '''Whether a text began with """ and has not ended with it yet.'''
    text = text.strip()
    closed = len(text) >= 2 * len(QUOTES) and text.endswith(QUOTES)
    return text.startswith(QUOTES) and not closed


def unquoted(text: str) -> str:
    '''The text between """ and """, or the text as it is.'''
    stripped = text.strip()
    if stripped.startswith(QUOTES) and not is_open(text):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\r\n")
    return text


class PlainReader:
    """Reads lines as the terminal itself edits them."""

    hears_interrupt = False

    def __init__(self, stdin: TextIO, stdout: TextIO) -> None:
        self._in, self._out = stdin, stdout

    def read(self, default: str = "") -> str:
        """See the protocol; `default` cannot be edited here and is left out."""
        text = self._line(PROMPT)
        while is_open(text):
            text += "\n" + self._line(CONTINUED)
        return unquoted(text).rstrip()

    def interrupt(self) -> None:
        """Nothing: here the signal itself does it."""

    def _line(self, prompt: str) -> str:
        self._out.write(prompt)
        self._out.flush()
        try:
            line = self._in.readline()
        except KeyboardInterrupt:  # the terminal has drawn ^C
            self._out.write("\n")
            self._out.flush()
            raise
        if not line:
            with contextlib.suppress(OSError):  # the terminal may be gone
                self._out.write("\n")
                self._out.flush()
            raise EOFError
        return line.rstrip("\r\n")


class PromptReader:
    """Reads with prompt_toolkit."""

    hears_interrupt = True

    def __init__(
        self,
        stdin: TextIO,
        stdout: TextIO,
        environ: Mapping[str, str],
        *,
        history: Path | None,
        sources: Sources,
    ) -> None:
        """Args:
        stdin, stdout: the terminal.
        history: the file of earlier messages; None, or one that cannot be written: only this run's.
        sources: what Tab offers.
        """
        from prompt_toolkit import PromptSession
        from prompt_toolkit.filters import Condition
        from prompt_toolkit.formatted_text import FormattedText
        from prompt_toolkit.input import create_input
        from prompt_toolkit.output import ColorDepth
        from prompt_toolkit.styles import Style

        from apdcli.chat.completion import ChatCompleter
        from apdcli.chat.shown import ControlsShown

        self._session: PromptSession[str] = PromptSession(
            FormattedText([("class:prompt", PROMPT)]),
            multiline=True,
            prompt_continuation=CONTINUED,
            placeholder=self._placeholder,
            history=_history(history),
            completer=ChatCompleter(sources),
            input_processors=[ControlsShown()],
            complete_while_typing=Condition(self._completes),
            reserve_space_for_menu=_MENU_ROWS,
            key_bindings=_keys(),
            enable_suspend=True,
            enable_open_in_editor=True,
            tempfile_suffix=".md",
            color_depth=ColorDepth.DEPTH_1_BIT if environ.get("NO_COLOR") else None,
            style=Style.from_dict({"prompt": "bold", "placeholder": "fg:ansibrightblack"}),
            input=create_input(stdin),
            output=_output(stdout, environ),
        )

    def read(self, default: str = "") -> str:
        """See the protocol."""
        try:
            # Ctrl-C is a key here. Its own handler of the signal, when that comes just as the
            # prompt goes away, stops the terminal with a traceback until Enter is pressed.
            text = self._session.prompt(default=default, handle_sigint=False)
            return unquoted(text).rstrip()
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""
            raise

    def interrupt(self) -> None:
        """See the protocol: a `kill -INT` from elsewhere is the key."""
        loop = self._session.app.loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed just now
                loop.call_soon_threadsafe(self._abort)

    def _abort(self) -> None:
        app = self._session.app
        if app.is_running and not (app.is_done or app._running_in_terminal):  # an editor
            app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    def _placeholder(self) -> FormattedText:
        """A hint on the empty line, which does not stay when the line is left."""
        from prompt_toolkit.formatted_text import FormattedText

        app = self._session.app
        gone = app.is_done or app.layout.is_searching  # a match that was found stands there
        return FormattedText([] if gone else [("class:placeholder", _PLACEHOLDER)])

    def _completes(self) -> bool:
        """Whether a menu comes up while typing: only for what is a command or a file."""
        text = self._session.default_buffer.document.text_before_cursor
        return (text.startswith("/") and "\n" not in text) or begun_path(text) is not None


def _keys() -> KeyBindings:
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
    from prompt_toolkit.key_binding import KeyBindings

    keys, writing = KeyBindings(), has_focus(DEFAULT_BUFFER)  # not searching

    @keys.add("enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion:
            buffer.complete_state = None  # the choice is taken; another Enter sends it
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("tab", filter=writing)
    def _(event: KeyPressEvent) -> None:
        _complete(event.current_buffer)

    @keys.add("escape", "enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _complete(buffer: Buffer) -> None:
    """As a shell does: what all candidates have in common is inserted, then they are gone through.

    A single one is taken, and the next Tab asks what may follow it.
    """
    from prompt_toolkit.completion import CompleteEvent, get_common_complete_suffix

    menu, document = buffer.complete_state, buffer.document
    if menu is not None and menu.current_completion is not None:
        buffer.complete_next()
        return
    # asked anew: after quick typing the menu is not there yet, or is for fewer letters
    asked = CompleteEvent(completion_requested=True)
    found = list(buffer.completer.get_completions(document, asked))
    if len(found) == 1:
        buffer.apply_completion(found[0])
    elif common := get_common_complete_suffix(document, found):
        buffer.insert_text(common)
    elif menu is not None:
        buffer.complete_next()
    else:
        buffer.start_completion()


def _output(stdout: TextIO, environ: Mapping[str, str]) -> Output:
    from prompt_toolkit.output import create_output

    if os.name == "nt":
        return create_output(stdout)
    from prompt_toolkit.output.vt100 import Vt100_Output

    output = Vt100_Output.from_pty(stdout, term=environ.get("TERM"))
    # Its question for the cursor's position gets in the way of what is typed ahead, and terminals
    # that do not answer would be complained of.
    output.enable_cpr = False
    return output


def _history(path: Path | None) -> History:
    """The file's history, readable by the user alone; in memory where there can be no file."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))
    except OSError:
        return InMemoryHistory()

    class Quiet(FileHistory):
        def store_string(self, string: str) -> None:
            safe = string.encode("utf-8", "replace").decode()
            with contextlib.suppress(OSError):  # a full disk is no reason to end a conversation
                super().store_string(safe)

        def append_string(self, string: str) -> None:
            if not self._same_as_last(string):
                super().append_string(string)

        def _same_as_last(self, string: str) -> bool:
            last: list[Any] = self.get_strings()[-1:]
            return last == [string]

    return Quiet(str(path))
