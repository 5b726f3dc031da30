"""Text to token ids and back, for byte-level BPE tokenizers. Loads no torch, no transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from apdcli.errors import ApdError, ModelError, PromptError
from apdcli.load import tokenizer_files as files
from apdcli.load.chat_template import ChatTemplate, Message, check_message
from apdcli.load.files import require_folder
from apdcli.load.textstream import TextStream

__all__ = ["TextStream", "Tokenizer", "load_tokenizer"]

_PROBE = "apdprobe"  # stands for a text when the template is asked what it makes of one
_PRIVATE = range(0xF0000, 0xFFFFE)  # characters that no text means anything by


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder.

    Raises:
        ModelError: no such folder, or tokenizer files that are missing, damaged or not byte-level.
    """
    return Tokenizer(Path(folder))


class Tokenizer:
    """A hub folder's tokenizer and chat template.

    Attributes:
        folder: where it was read from.
        special_ids: ids that write no text (markers of turns, ends, masks).
        mask_id: id of the mask token, or None.
    """

    def __init__(self, folder: Path) -> None:
        require_folder(folder)
        self.folder = folder
        self._core = files.build(folder)
        self._text = {index: text for text, index in self._core.get_vocab(True).items()}
        added = self._core.get_added_tokens_decoder()
        self._added = frozenset(added)
        roles = {
            role: text
            for role, text in files.role_tokens(folder).items()
            if self._core.token_to_id(text) is not None
        }
        self._role_ids = {role: self._core.token_to_id(text) for role, text in roles.items()}
        self.special_ids = frozenset(
            {index for index, token in added.items() if token.special}
            | {index for index in self._role_ids.values() if index in self._added}
        )
        self.mask_id: int | None = self._role_ids.get("mask_token")
        self._special_texts = tuple(self._text[index] for index in sorted(self.special_ids))
        source = files.template_source(folder)
        self._template = ChatTemplate(source[0], str(source[1]), roles) if source else None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Path]]:
        """Pickled and copied by its folder, and read from there again."""
        return Tokenizer, (self.folder,)

    def __repr__(self) -> str:
        return f"Tokenizer({str(self.folder)!r}: {len(self._text):,} tokens)"

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids of a text; none is added to it.

        Texts of special tokens that are written in it ("<|im_end|>") become those tokens unless
        `special` is False. A prompt given to `generate` is data: there they are ordinary text, but
        for `raw`.

        Args:
            text: any text.
            special: texts of special tokens in it become those tokens; False: they are ordinary
                text, as in anything that comes from outside.

        Raises:
            PromptError: it is no text, or it holds a lone surrogate, which UTF-8 cannot write.
        """
        if not isinstance(text, str):
            raise PromptError(f"text = {text!r}: it must be a str")
        ids: list[int] = self._encoding(text, special).ids
        return ids

    def _encoding(self, text: str, special: bool = True) -> tokenizers.Encoding:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(
                f"the text is not valid Unicode: character {error.start} is a lone surrogate"
            ) from error
        core = self._core if special else self._literal
        return core.encode(text, add_special_tokens=False)

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """The same tokenizer, to which a special token's text is text like any other."""
        core = files.build(self.folder)
        # known already, so nothing is added: one that only its role makes special counts as such
        core.add_special_tokens(list(self._special_texts))
        core.encode_special_tokens = True
        return core

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are no character become U+FFFD.

        Raises:
            ModelError: an id that the tokenizer does not define.
        """
        stream = self.stream(skip_special)
        return stream.push(ids) + stream.flush()

    def stream(self, skip_special: bool = True) -> TextStream:
        """A decoder for ids that arrive bit by bit."""
        return TextStream(self.token_bytes, self.special_ids if skip_special else frozenset())

    @property
    def has_chat_template(self) -> bool:
        """Whether `chat` can be used."""
        return self._template is not None

    def chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> list[int]:
        """Ids of a conversation, ready to be answered.

        Only the template writes special tokens. In a message their texts are ordinary text: what
        somebody's file says can neither end a turn nor plant a mask.

        Args:
            messages: {"role": ..., "content": ...}, both strings.
            add_generation_prompt: end with the opening of the assistant's turn.

        Raises:
            PromptError: no template, or one that refuses these messages.
            ModelError: the template is not valid.
        """
        veiled, meaning = self._veil(messages)
        text = self.chat_text(veiled, add_generation_prompt)
        return self._encode_veiled(text, meaning) if meaning else self.encode(text)

    def _veil(self, messages: Sequence[Message]) -> tuple[Sequence[Message], dict[str, str]]:
        """The messages with one unused character for each special token's text, and the texts.

        A template that trims, splits or tests a message finds all else as it was.
        """
        for message in messages:
            check_message(message)
        said = "".join(_strings(list(messages)))
        found = sorted((t for t in self._special_texts if t in said), key=len, reverse=True)
        if not found:
            return messages, {}
        unused = (chr(code) for code in _PRIVATE if chr(code) not in said)
        veil = dict(zip(found, unused, strict=False))
        pattern = re.compile("|".join(map(re.escape, found)))
        veiled = _mapped(list(messages), lambda text: pattern.sub(lambda m: veil[m[0]], text))
        return veiled, {char: text for text, char in veil.items()}

    def _encode_veiled(self, text: str, meaning: dict[str, str]) -> list[int]:
        """Ids of a rendered conversation, the veil lifted where it is no longer taken for tokens.

        The text is cut at the template's special tokens alone, where every tokenizer cuts.
        """
        whole, lift = self._encoding(text), str.maketrans(meaning)
        ids, begin = list[int](), 0
        for index, (start, end) in zip(whole.ids, whole.offsets, strict=True):
            if index in self.special_ids:
                ids += [*self.encode(text[begin:start].translate(lift), special=False), index]
                begin = end
        return ids + self.encode(text[begin:].translate(lift), special=False)

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The text that `chat` encodes; raises what `chat` does."""
        if self._template is None:
            raise PromptError(f"{self.folder} has no chat template; use --raw (raw=True)")
        return self._template.render(messages, add_generation_prompt)

    def check_chat(self, system: str | None = None) -> None:
        """Render one message with the chat template, if there is one.

        Args:
            system: a system message that is to stand before it.

        Raises:
            ModelError: the template is not valid, or the message is not in what it writes.
            PromptError: it refuses the messages.
        """
        if self._template is None:
            return
        messages = [{"role": "system", "content": system}] if system else []
        text = self.chat_text([*messages, {"role": "user", "content": _PROBE}])
        if _PROBE not in text:
            raise ModelError(
                f"{self._template.where}: the chat template leaves out what the user says; "
                "--raw does without it"
            )

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest id that is defined."""
        return max(self._text) + 1

    @cached_property
    def defined_ids(self) -> tuple[int, ...]:
        """Every id that stands for a token, ascending; there may be holes."""
        return tuple(sorted(self._text))

    def token_text(self, index: int) -> str:
        """The token as its vocabulary writes it (byte-level alphabet).

        Raises:
            ModelError: the id is not defined.
        """
        if index not in self._text:
            raise ModelError(f"id {index} is not a token of {self.folder}")
        return self._text[index]

    def token_bytes(self, index: int) -> bytes:
        """The exact bytes a token writes; of special and added tokens, those of their text.

        Raises:
            ModelError: the id is not defined.
        """
        text = self.token_text(index)
        if index not in self._added:
            try:
                return bytes(_BYTE_OF[char] for char in text)
            except KeyError:
                pass  # outside the byte-level alphabet: plain text, as the tokenizers library does
        return text.encode("utf-8")

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: end of text, and the token that ends a turn in the template."""
        ids = {self._role_ids["eos_token"]} if "eos_token" in self._role_ids else set()
        ids |= files.eos_ids(self.folder).keys()
        turn_end = self._turn_end()
        ids |= set() if turn_end is None else {turn_end}
        return frozenset(i for i in ids if i in self._text)

    def end_notes(self, ends: Collection[int]) -> list[str]:
        """What to know of ids that are said to end an answer and cannot, a line each.

        Args:
            ends: those that do, of tokenizer and model.
        """
        lost = {i: file for i, file in files.eos_ids(self.folder).items() if i not in self._text}
        notes = [
            f"{file}: eos_token_id {i} is no token of this tokenizer and ends nothing"
            for i, file in sorted(lost.items())
        ]
        if not any(i in self._text for i in ends):
            notes.append(
                f"{self.folder} names no token that ends an answer: only --max-tokens and --stop do"
            )
        return notes

    def _turn_end(self) -> int | None:
        """The special token that the template writes right after an answer, if it writes one."""
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        try:
            after = self.chat_text(messages, add_generation_prompt=False).rpartition(_PROBE)[2]
        except ApdError:
            return None  # no template, or one that fails: `chat` says so
        ids = self.encode(after)
        return ids[0] if ids and ids[0] in self.special_ids else None

    def first_difference(self, other: Tokenizer) -> str | None:
        """Where two ordinary vocabularies part, in words; None when one can verify the other.

        Added tokens (markers, tools, masks) may differ: their ids are then not shared. Dream has
        <|beginoftext|> and <|mask|> at 151665 and 151666, where Qwen2.5 ends at 151664.
        """
        for index in sorted(self._text.keys() | other._text.keys()):
            mine, theirs = self._text.get(index), other._text.get(index)
            if mine == theirs:
                continue
            if self._is_ordinary(index) or other._is_ordinary(index):
                return (
                    f"token {index} is {_shown(mine)} in {self.folder} "
                    f"and {_shown(theirs)} in {other.folder}"
                )
        return None

    def shared_ids(self, other: Tokenizer) -> tuple[int, ...]:
        """Ids that mean the same token in both, ascending: the ones a pair may write."""
        return tuple(i for i in self.defined_ids if other._text.get(i) == self._text[i])

    def _is_ordinary(self, index: int) -> bool:
        return index in self._text and index not in self._added


def _strings(value: Any) -> Iterator[str]:
    """Every string in lists and mappings of them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(item)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """The same lists and mappings with every string changed; what is neither stays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    return [_mapped(item, change) for item in value] if isinstance(value, list) else value


def _shown(text: str | None) -> str:
    return "not defined" if text is None else repr(text)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that byte-level BPE writes for each byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _byte_alphabet()
