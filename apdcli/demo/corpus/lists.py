"""List operations, each its own family: copy, reverse, sort, replace, insert, remove, count.

`order` sorts as well: numbers only, as they are typed in a hurry.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from apdcli.demo.corpus.base import Example, Family, same_text, say
from apdcli.demo.corpus.words import LIST_WORDS, pick


def _items(rng: Random, low: int = 3, high: int = 6) -> list[str]:
    return pick(rng, LIST_WORDS, rng.randint(low, high))


def _example(name: str, prompt: str, answer: str) -> Example:
    return Example(name, say(prompt), answer, {"answer": answer})


def _join(items: list[str]) -> str:
    return ", ".join(items)


def copy(rng: Random) -> Example:
    """Say the list again."""
    items = _join(_items(rng))
    lead = rng.choice(("Copy this list", "Repeat this list", "Copy the list"))
    return _example("copy", f"{lead}: {items}.", f"The list is {items}.")


def reverse(rng: Random) -> Example:
    """Say the list backwards."""
    items = _items(rng)
    lead = rng.choice(("Reverse this list", "Reverse the list", "Say this list backwards"))
    answer = f"The reversed list is {_join(items[::-1])}."
    return _example("reverse", f"{lead}: {_join(items)}.", answer)


def sort(rng: Random) -> Example:
    """Words by the alphabet, or numbers of at most 30, smallest first."""
    if rng.random() < 0.6:
        items = _items(rng, 3, 5)
        lead = rng.choice(("Sort this list", "Sort these words", "Sort", "Sort the list"))
        if rng.random() < 0.3:
            lead = rng.choice(("Sort this list by the alphabet", "Sort these words alphabetically"))
        ordered = sorted(items)
    else:
        numbers = rng.sample(range(1, 31), rng.randint(3, 5))
        items, ordered = [str(n) for n in numbers], [str(n) for n in sorted(numbers)]
        lead = rng.choice(("Sort this list", "Sort these numbers", "Sort", "Sort the list"))
    if lead in ("Sort", "Sort the list") and rng.random() < 0.5:
        prompt = f"{lead} {_join(items)}."
    else:
        prompt = f"{lead}: {_join(items)}."
    return _example("sort", prompt, f"The sorted list is {_join(ordered)}.")


def order(rng: Random) -> Example:
    """Numbers, mostly of one digit, in the words and marks of somebody in a hurry."""
    top = rng.choice((9, 9, 9, 12, 20, 30))
    numbers = rng.sample(range(1, top + 1), rng.randint(3, 6))
    lead = rng.choice(
        ("Sort the list", "Sort this list", "Sort", "Sort the numbers", "Sort these numbers")
    )
    end = rng.choice((".", ""))
    if rng.random() < 0.15:
        lead = rng.choice(("Please ", "please ", "Can you ", "can you ")) + lead.lower()
        end = end.replace(".", "?") if lead[0] in "Cc" else end
    colon = ":" if rng.random() < 0.4 else ""
    between = rng.choices((", ", " ", ","), (8, 1, 1))[0]
    prompt = f"{lead}{colon} {between.join(map(str, numbers))}{end}"
    answer = f"The sorted list is {_join([str(n) for n in sorted(numbers)])}."
    return _example("order", prompt, answer)


def replace(rng: Random) -> Example:
    """Put a new word where an old one stood."""
    items = _items(rng)
    new = rng.choice([w for w in LIST_WORDS if w not in items])
    at = rng.randrange(len(items))
    changed = [*items[:at], new, *items[at + 1 :]]
    prompt = f"Replace {items[at]} with {new} in this list: {_join(items)}."
    return _example("replace", prompt, f"The new list is {_join(changed)}.")


def insert(rng: Random) -> Example:
    """Put a new word after a given one."""
    items = _items(rng, 3, 5)
    new = rng.choice([w for w in LIST_WORDS if w not in items])
    at = rng.randrange(len(items))
    changed = [*items[: at + 1], new, *items[at + 1 :]]
    lead = rng.choice(("Insert", "Add"))
    prompt = f"{lead} {new} after {items[at]} in this list: {_join(items)}."
    return _example("insert", prompt, f"The new list is {_join(changed)}.")


def remove(rng: Random) -> Example:
    """Take one word out."""
    items = _items(rng)
    at = rng.randrange(len(items))
    lead = rng.choice(("Remove", "Delete"))
    prompt = f"{lead} {items[at]} from this list: {_join(items)}."
    return _example("remove", prompt, f"The new list is {_join(items[:at] + items[at + 1 :])}.")


def count(rng: Random) -> Example:
    """Number the items, then say how many they are."""
    items = _items(rng)
    lead = rng.choice(("Count the items in this list", "How many items are in this list"))
    counted = _join([f"{n} {item}" for n, item in enumerate(items, 1)])
    answer = f"{counted}. The list has {len(items)} items."
    return _example("count", f"{lead}: {_join(items)}.", answer)


def check(example: Example, answer: str) -> bool:
    """The whole sentence must be right: every item, in its place."""
    return same_text(answer, example.facts["answer"])


def _family(name: str, weight: float, make: Callable[[Random], Example]) -> Family:
    return Family(name, weight, make, check)


FAMILIES = (
    _family("copy", 1.0, copy),
    _family("reverse", 1.2, reverse),
    _family("sort", 2.5, sort),
    _family("order", 0.0, order),  # with a weight of its own in the stages that have it
    _family("replace", 1.0, replace),
    _family("insert", 1.0, insert),
    _family("remove", 1.0, remove),
    _family("count", 0.8, count),
)
