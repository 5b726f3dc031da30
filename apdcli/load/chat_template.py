"""Chat messages to text by a hub folder's Jinja template, in a sandbox. Loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from apdcli.errors import ModelError, PromptError
from apdcli.load.files import one_line

if TYPE_CHECKING:
    from jinja2 import Environment

Message = Mapping[str, str]
ROLES = ("system", "user", "assistant", "tool")


class ChatTemplate:
    """A template compiled on first use, with the helpers that published templates expect."""

    def __init__(self, source: str, where: str, special_tokens: Mapping[str, str]) -> None:
        """Args:
        source: the template's text.
        where: the file it is stored in, for error messages.
        special_tokens: names the template may use, such as `bos_token`.
        """
        self.source = source
        self.where = where
        self._special_tokens = dict(special_tokens)
        self._compiled: Any = None

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of a conversation.

        Raises:
            ModelError: the template itself is not valid Jinja, or is empty.
            PromptError: the template refuses these messages, or they are not messages.
        """
        import jinja2

        for message in messages:
            check_message(message)
        if self._compiled is None:
            try:
                self._compiled = _environment().from_string(self.source)
            except jinja2.TemplateSyntaxError as error:
                raise ModelError(
                    f"{self.where}: the chat template is not valid, line {error.lineno}: "
                    f"{one_line(error.message)}; --raw does without it"
                ) from error
        try:
            text = self._compiled.render(
                messages=[dict(m) for m in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **self._special_tokens,
            )
        except Exception as error:  # a template is foreign code: it may fail in any way
            raise PromptError(
                f"{self.where}: the chat template refuses these messages ({one_line(error)}); "
                "--raw does without it"
            ) from error
        if not text:
            raise ModelError(
                f"{self.where}: the chat template writes nothing for these messages; "
                "--raw does without it"
            )
        return str(text)


def check_message(message: object) -> None:
    """Raise PromptError unless `message` is a mapping with the strings `role` and `content`."""
    if not isinstance(message, Mapping):
        raise PromptError(f"a chat message must be a mapping, not {type(message).__name__}")
    for key in ("role", "content"):
        if not isinstance(message.get(key), str):
            raise PromptError(f"a chat message needs {key!r}, a string; got {message.get(key)!r}")


def as_messages(prompt: object) -> Sequence[Message]:
    """A prompt as a conversation: one user message, or the messages that it is.

    Raises:
        PromptError: neither a text nor messages, no text to answer, or a message without a role
            or a text, or with a role that there is not; named by its place.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise PromptError("the prompt is empty")
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray):
        raise PromptError(
            'a prompt is a text or a list of {"role": ..., "content": ...}, '
            f"not {type(prompt).__name__}"
        )
    for place, message in enumerate(prompt):
        try:
            check_message(message)
        except PromptError as error:
            raise PromptError(f"messages[{place}]: {error}") from None
        if message["role"] not in ROLES:
            raise PromptError(
                f"messages[{place}]: no role is {message['role']!r}; there is {', '.join(ROLES)}"
            )
    if not any(m["role"] == "user" and m["content"].strip() for m in prompt):
        raise PromptError("no message is the user's and has a text: there is nothing to answer")
    return prompt


def _environment() -> Environment:
    """Jinja as transformers sets it up: sandboxed, with the same whitespace rules and helpers."""
    import jinja2
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    def refuse(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    class PublicNamespace(Namespace):
        # Names with an underscore are the usual way out of a sandbox.
        def __init__(*args: Any, **attributes: Any) -> None:
            for name in dict(*args[1:], **attributes):
                PublicNamespace.check(name)
            Namespace.__init__(*args, **attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            PublicNamespace.check(name)
            Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name: object) -> None:
            if str(name).startswith("_"):
                raise jinja2.TemplateError(f"namespace attribute {name!r} is not allowed")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    environment.globals["namespace"] = PublicNamespace
    return environment
