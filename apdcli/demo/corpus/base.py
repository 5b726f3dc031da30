"""What a corpus example is, and which split its prompt belongs to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

Message = dict[str, str]


@dataclass(frozen=True)
class Example:
    """One conversation with its reference answer.

    `messages` end with the user's turn; `answer` is the assistant's text, without an end token;
    `facts` is what the family's checker needs and nothing that the model sees.
    """

    family: str
    messages: tuple[Message, ...]
    answer: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A kind of prompt: how one is written, and how an answer is judged.

    `weight` is the relative number of training examples, `check` is exact: it never guesses.
    """

    name: str
    weight: float
    make: Callable[[Random], Example]
    check: Callable[[Example, str], bool]


def say(user: str) -> tuple[Message, ...]:
    """A conversation of one user turn."""
    return ({"role": "user", "content": user},)


def prompt_key(messages: tuple[Message, ...]) -> str:
    """The prompt with case, punctuation, spacing, courtesy and the system turn taken away.

    Prompts that differ only in these share a key, so they never stand on both sides of a split.
    """
    turns = [f"{m['role']}:{m['content']}" for m in messages if m["role"] != "system"]
    words = re.findall(r"[a-z0-9]+|[+*:|=-]", "|".join(turns).lower().replace("please", ""))
    return " ".join(words)


def split_of(messages: tuple[Message, ...]) -> str:
    """ "train" (90 %), "tune" (5 %) or "test" (5 %), by the hash of the prompt alone."""
    digest = hashlib.sha256(prompt_key(messages).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    return "train" if bucket < 90 else "tune" if bucket < 95 else "test"


def final_number(text: str) -> int | None:
    """N of a closing "The answer is N." (a unit may follow the number), else None."""
    found = re.search(r"The answer is (-?\d+)(?: [a-z]+)?\.$", text.strip())
    return int(found.group(1)) if found else None


def same_text(answer: str, reference: str) -> bool:
    """Equality up to surrounding space."""
    return answer.strip() == reference.strip()
