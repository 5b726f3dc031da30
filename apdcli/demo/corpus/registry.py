"""All families by name, and the seeded stream of examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from random import Random

from apdcli.demo.corpus import calendar, chat, functions, help, lists, numbers, stories
from apdcli.demo.corpus.base import Example, Family, split_of
from apdcli.demo.corpus.conversation import continue_conversation
from apdcli.demo.corpus.words import phrases

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (numbers, lists, calendar, functions, stories, chat, help)
    for family in module.FAMILIES
}
SYSTEM_SHARE = 0.06
LOOSE_SHARE = 0.15
# Families whose prompts start with a plain verb or question word, never with a name.
_LOOSE = frozenset(
    phrases("sums sequences copy reverse sort order replace insert remove count units stories")
)
_SYSTEMS = (
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a small helpful model.",
    "Be brief.",
    "Answer the question.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
)


def family(name: str) -> Family:
    """The family of that name; KeyError names the known ones."""
    if name not in FAMILIES:
        raise KeyError(f"unknown family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def check(example: Example, answer: str) -> bool:
    """Whether `answer` is right for `example`, by its family's exact checker."""
    return family(example.family).check(example, answer)


def _with_system(rng: Random, example: Example) -> Example:
    system = {"role": "system", "content": rng.choice(_SYSTEMS)}
    return replace(example, messages=(system, *example.messages))


def _typed_fast(rng: Random, example: Example) -> Example:
    """The same question as people type it: no capital at the start, or no mark at the end."""
    if len(example.messages) != 1 or example.family not in _LOOSE:
        return example
    text = example.messages[0]["content"]
    if rng.random() < 0.6:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.6:
        text = text.rstrip(".?")
    return replace(example, messages=({"role": "user", "content": text},))


def generate(
    seed: int,
    split: str,
    weights: Mapping[str, float] | None = None,
    history: float = 0.0,
) -> Iterator[Example]:
    """An endless stream of examples of one split ("train", "tune", "test"), fixed by the seed.

    `weights` replaces families' own weights by name; training prompts may repeat. `history` is
    the share that stands in a longer conversation, of the same split and weights.
    """
    rng = Random(f"{seed}-{split}")
    shares = {name: (weights or {}).get(name, kind.weight) for name, kind in FAMILIES.items()}

    def draw(without: str = "") -> Example:
        names = [name for name in shares if name != without]
        while True:
            made = FAMILIES[rng.choices(names, [shares[n] for n in names])[0]].make(rng)
            if split_of(made.messages) == split:
                return _typed_fast(rng, made) if rng.random() < LOOSE_SHARE else made

    while True:
        made = draw()
        if history and rng.random() < history:
            made = continue_conversation(rng, made, partial(draw, _contradicting(made)))
        yield _with_system(rng, made) if rng.random() < SYSTEM_SHARE else made


def _contradicting(example: Example) -> str:
    """The family whose examples could change the right answer if they came before this one."""
    return "chat" if example.family == "chat" else ""


def conversations(
    seed: int, split: str, count: int, earlier: int, names: list[str]
) -> list[Example]:
    """`count` examples of the named families in turn, each after `earlier` others of these."""
    rng = Random(f"{seed}-{split}-{earlier}-conversations")

    def draw(pool: list[str]) -> Example:
        while True:
            made = FAMILIES[rng.choice(pool)].make(rng)
            if split_of(made.messages) == split:
                return made

    made = []
    for index in range(count):
        asked = draw([names[index % len(names)]])
        others = [name for name in names if name != _contradicting(asked)]
        made.append(continue_conversation(rng, asked, partial(draw, others), earlier))
    return made


def probes(seed: int, split: str, per_family: int) -> list[Example]:
    """Up to `per_family` different prompts of each family: what a quality table is measured on.

    A family with a small world gives fewer (it stops after 400 draws without a new prompt).
    """
    chosen: list[Example] = []
    for name, kind in FAMILIES.items():
        rng = Random(f"{seed}-{split}-{name}-probe")
        seen: set[str] = set()
        misses = 0
        while len(seen) < per_family and misses < 400:
            made = kind.make(rng)
            text = repr(made.messages)
            if split_of(made.messages) != split or text in seen:
                misses += 1
                continue
            misses = 0
            seen.add(text)
            chosen.append(made)
    return chosen
