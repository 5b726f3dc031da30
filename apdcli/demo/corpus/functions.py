"""Small Python functions from a docstring.  The checker runs them in the sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from apdcli.demo.corpus import sandbox
from apdcli.demo.corpus.base import Example, Family, say
from apdcli.demo.corpus.words import phrases

NAMES = phrases(
    "work solve compute run make find change apply step build task check next value helper"
)


@dataclass(frozen=True)
class _Kind:
    """One docstring with its arguments, its body, a plain request and its default name.

    `{n}` is a number of 2 to 9 and `{w}` is the function's name.
    """

    doc: str
    args: str
    body: str
    plain: str
    name: str
    cases: tuple[tuple[Any, ...], ...]


_INT = ((0,), (3,), (7,), (12,))
_TWO = ((2, 5), (9, 4), (3, 3))
_LIST = (([3, 1, 2],), ([5, 5, 1, 8],), ([4, 2, 6],))

KINDS = (
    _Kind("Return x plus {n}.", "x", "return x + {n}", "adds {n} to a number", "add", _INT),
    _Kind("Return x minus {n}.", "x", "return x - {n}",
          "takes {n} from a number", "subtract", _INT),
    _Kind("Return x times {n}.", "x", "return x * {n}",
          "multiplies a number by {n}", "multiply", _INT),
    _Kind("Return True if x is greater than {n}.", "x", "return x > {n}",
          "checks if a number is greater than {n}", "check", _INT),
    _Kind("Return True if x is less than {n}.", "x", "return x < {n}",
          "checks if a number is less than {n}", "check", _INT),
    _Kind("Return the sum of a and b.", "a, b", "return a + b", "adds two numbers", "add", _TWO),
    _Kind("Return the difference of a and b.", "a, b", "return a - b",
          "subtracts two numbers", "subtract", _TWO),
    _Kind("Return the product of a and b.", "a, b", "return a * b",
          "multiplies two numbers", "multiply", _TWO),
    _Kind("Return the larger of a and b.", "a, b", "if a > b:\n        return a\n    return b",
          "returns the larger of two numbers", "larger", _TWO),
    _Kind("Return the smaller of a and b.", "a, b", "if a < b:\n        return a\n    return b",
          "returns the smaller of two numbers", "smaller", _TWO),
    _Kind("Return True if x is even.", "x", "return x % 2 == 0",
          "checks if a number is even", "even", _INT),
    _Kind("Return True if x is odd.", "x", "return x % 2 == 1",
          "checks if a number is odd", "odd", _INT),
    _Kind("Return the sum of the items.", "items",
          "total = 0\n    for item in items:\n        total += item\n    return total",
          "sums a list", "total", _LIST),
    _Kind("Return the number of items.", "items", "return len(items)",
          "counts the items of a list", "count", _LIST),
    _Kind("Return the first item.", "items", "return items[0]",
          "returns the first item of a list", "first", _LIST),
    _Kind("Return the last item.", "items", "return items[-1]",
          "returns the last item of a list", "last", _LIST),
    _Kind("Return the items in reverse.", "items", "return items[::-1]",
          "reverses a list", "reverse", _LIST),
    _Kind("Return the items sorted.", "items", "return sorted(items)",
          "sorts a list", "sort", _LIST),
    _Kind("Return the largest item.", "items", "return max(items)",
          "returns the largest item of a list", "largest", _LIST),
    _Kind("Return the smallest item.", "items", "return min(items)",
          "returns the smallest item of a list", "smallest", _LIST),
)  # fmt: skip


def _code(kind: _Kind, name: str, number: int) -> str:
    doc, body = kind.doc.format(n=number), kind.body.format(n=number)
    return f'def {name}({kind.args}):\n    """{doc}"""\n    {body}'


def functions(rng: Random) -> Example:
    """Most prompts give a name and the docstring; some say plainly what the function does."""
    numbered = [k for k in KINDS if "{n}" in k.doc]
    kind = rng.choice(numbered) if rng.random() < 0.35 else rng.choice(KINDS)
    number = rng.randint(2, 9)
    if rng.random() < 0.7:
        name = rng.choice(NAMES)
        ask = rng.choice(("Write a Python function", "Write a function"))
        link = rng.choice(("named", "called"))
        prompt = f"{ask} {link} {name}({kind.args}): {kind.doc.format(n=number)}"
    else:
        name = kind.name
        ask = rng.choice((
            "Write a Python function that", "Write a function that", "Write a small function that",
            "Write a short Python function that", "Give me a function that",
            "I need a Python function that", "Show me a Python function that",
            "Can you write a function that", "Please write a Python function that",
        ))  # fmt: skip
        prompt = f"{ask} {kind.plain.format(n=number)}{rng.choice(('.', '.', ''))}"
    facts = {"kind": KINDS.index(kind), "number": number, "name": name}
    return Example("functions", say(prompt), _code(kind, name, number), facts)


def check(example: Example, answer: str) -> bool:
    """The function has the asked name and, run in the sandbox, gives the right results."""
    facts = example.facts
    kind, name = KINDS[facts["kind"]], facts["name"]
    cases = [list(case) for case in kind.cases]
    if "{n}" in kind.doc:
        cases += [[facts["number"]], [facts["number"] + 1]]
    try:
        got = sandbox.run(answer.strip(), name, cases)
    except sandbox.Refused:
        return False
    return got is not None and got == expected(facts["kind"], facts["number"], name)


_EXPECTED: dict[tuple[int, int], Any] = {}


def expected(kind: int, number: int, name: str) -> Any:
    """What the reference returns for the same cases (run once, in the same sandbox)."""
    if (kind, number) not in _EXPECTED:
        cases = [list(case) for case in KINDS[kind].cases]
        if "{n}" in KINDS[kind].doc:
            cases += [[number], [number + 1]]
        _EXPECTED[kind, number] = sandbox.run(_code(KINDS[kind], name, number), name, cases)
    return _EXPECTED[kind, number]


FAMILIES = (Family("functions", 1.5, functions, check),)
