"""An example in the middle of a conversation: other questions and their answers came before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from random import Random

from apdcli.demo.corpus.base import Example, Message

# How many other examples came before: mostly few, sometimes most of the context.
_EARLIER = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
_OFTEN = (22, 18, 14, 11, 9, 8, 7, 5, 4, 2)


def exchanges(example: Example) -> tuple[Message, ...]:
    """The example's turns, closed by its reference answer."""
    return (*example.messages, {"role": "assistant", "content": example.answer})


def continue_conversation(
    rng: Random, example: Example, draw: Callable[[], Example], earlier: int | None = None
) -> Example:
    """The example with others before it; before and between its own turns if it has several.

    The last question, its answer and its checker stay what they were.

    Args:
        rng: where the others go, and how many they are unless `earlier` says.
        example: what is asked in the end.
        draw: gives another example, which contradicts nothing that this one's answer hangs on.
        earlier: how many others.
    """
    if earlier is None:
        earlier = rng.choices(_EARLIER, _OFTEN)[0]
    own = list(example.messages)
    places = [at for at, message in enumerate(own) if message["role"] == "user"]
    before: dict[int, list[Message]] = {at: [] for at in places}
    for _ in range(earlier):
        before[rng.choice(places)] += exchanges(draw())
    messages: list[Message] = []
    for at, message in enumerate(own):
        messages += [*before.get(at, ()), message]
    return replace(example, messages=tuple(messages))
