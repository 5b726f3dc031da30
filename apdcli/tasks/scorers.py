"""The scorers by name: how an answer is judged, and what an item must hold to be judged.

A scorer sees the item and the answer's text, nothing else; each is exact and never guesses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from apdcli.tasks import extract, sandbox
from apdcli.tasks.types import Item, Scorer

Check = Callable[[Item], str | None]


@dataclass(frozen=True)
class ScorerInfo:
    """One scorer.

    Attributes:
        score: the scorer.
        problem: what is wrong with an item that it cannot judge, or None.
        runs_code: whether it runs what the model wrote.
    """

    name: str
    score: Scorer
    problem: Check
    runs_code: bool = False


def references(item: Item) -> Sequence[str]:
    """The answers that count as right: the item's, and the others its file lists."""
    return (item.answer, *item.facts.get("also", ()))


def _exact(item: Item, text: str) -> float:
    return float(text.strip() in [r.strip() for r in references(item)])


def _number(item: Item, text: str) -> float:
    found = extract.number(text)
    return float(found is not None and found in [extract.number(r) for r in references(item)])


def _number_problem(item: Item) -> str | None:
    bad = [r for r in references(item) if extract.number(r) is None]
    return f"the answer {_shown(bad[0])} holds no number" if bad else _no_answer(item)


def _choice(item: Item, text: str) -> float:
    choices = item.facts.get("choices", ())
    return float(extract.letter(text, choices) == right_letter(item))


def right_letter(item: Item) -> str | None:
    """The letter of an item's answer, which may be written as the letter or the choice's text."""
    choices, answer = list(item.facts.get("choices", ())), item.answer.strip()
    if answer in choices:
        return chr(ord("A") + choices.index(answer))
    bare = answer.strip("().: ")
    known = len(choices) or 26
    return bare if len(bare) == 1 and "A" <= bare < chr(ord("A") + known) else None


def _choice_problem(item: Item) -> str | None:
    if right_letter(item) is None:
        return f"the answer {_shown(item.answer)} is not one of the choices (a letter, or its text)"
    return None


def _regex(item: Item, text: str) -> float:
    return float(any(re.search(r, text) for r in references(item)))


def _regex_problem(item: Item) -> str | None:
    for pattern in references(item):
        try:
            re.compile(pattern)
        except re.error as error:
            return f"the answer {_shown(pattern)} is not a regular expression: {error}"
    return _no_answer(item)


def _contains(item: Item, text: str) -> float:
    flat = " ".join(text.split())
    return float(any(" ".join(r.split()) in flat for r in references(item)))


def _formula(item: Item, text: str) -> float:
    found = extract.formula(text)
    return float(any(extract.same_formula(found, r) for r in references(item)))


def _python(item: Item, text: str) -> float:
    return float(sandbox.passes(program(item, text)))


def program(item: Item, text: str) -> str:
    """What is run to judge an answer: what stands before it, the answer's code, the tests."""
    entry, prefix = item.facts.get("entry_point"), item.facts.get("prefix", "")
    code = extract.code(text, entry)
    if prefix and entry and extract.defines(code, entry):
        # The whole function was written again: of the prompt, imports and helpers are still needed.
        prefix = re.split(rf"(?m)^[ \t]*def[ \t]+{re.escape(entry)}\b", prefix)[0]
    return f"{prefix}{code}\n\n{item.facts['tests']}\n"


def _python_problem(item: Item) -> str | None:
    if not str(item.facts.get("tests", "")).strip():
        return 'there are no "tests" (Python text, or a list of assert statements)'
    return None


def _no_answer(item: Item) -> str | None:
    return None if all(r.strip() for r in references(item)) else "the answer is empty"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


SCORERS: dict[str, ScorerInfo] = {
    info.name: info
    for info in (
        ScorerInfo("exact", _exact, _no_answer),  # the whole answer, but for space around it
        ScorerInfo("number", _number, _number_problem),  # the one after "####", else the last
        ScorerInfo("choice", _choice, _choice_problem),  # a letter, or the text of a choice
        ScorerInfo("regex", _regex, _regex_problem),  # the answer is a pattern, found anywhere
        ScorerInfo("contains", _contains, _no_answer),  # the answer stands in the text
        ScorerInfo("math", _formula, _no_answer),  # the formula in \boxed{}, as MATH has it
        ScorerInfo("python", _python, _python_problem, runs_code=True),  # it passes its tests
    )
}
