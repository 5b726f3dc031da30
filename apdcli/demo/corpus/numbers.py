"""Numbers: sums, word problems with worked steps, comparisons, sequences, counting."""

from __future__ import annotations

import re
from random import Random

from apdcli.demo.corpus.base import Example, Family, final_number, same_text, say
from apdcli.demo.corpus.words import COUNTABLES, NAMES, NUMBER_WORDS, pick

_SIGNS = {"plus": "+", "minus": "-", "times": "x"}


def _spoken(rng: Random, number: int, words: bool) -> str:
    return NUMBER_WORDS[number] if words and number <= 20 else str(number)


def _steps(op: str, a: int, b: int, total: int) -> str:
    """Two-digit sums go tens first, then ones; everything else is one line."""
    if op == "plus" and a >= 10 and b >= 10:
        tens, ones = a // 10 * 10 + b // 10 * 10, a % 10 + b % 10
        return f"{a // 10 * 10} + {b // 10 * 10} = {tens}, {a % 10} + {b % 10} = {ones}, " + (
            f"{tens} + {ones} = {total}"
        )
    return f"{a} {_SIGNS[op]} {b} = {total}"


def _operands(rng: Random) -> tuple[str, int, int, int]:
    op = rng.choices(("plus", "minus", "times"), (5, 2, 2))[0]
    if op == "plus":
        big = rng.random() < 0.4
        a, b = (
            (rng.randint(10, 49), rng.randint(10, 49))
            if big
            else (
                rng.randint(0, 20),
                rng.randint(0, 20 if rng.random() < 0.3 else 9),
            )
        )
        return op, a, b, a + b
    if op == "minus":
        a = rng.randint(1, 20)
        b = rng.randint(0, min(a, 10))
        return op, a, b, a - b
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    return op, a, b, a * b


def sums(rng: Random) -> Example:
    """Plus, minus and times, asked in words or in digits."""
    op, a, b, total = _operands(rng)
    words = rng.random() < 0.5
    x, y = _spoken(rng, a, words), _spoken(rng, b, words)
    sign = rng.choice((_SIGNS[op], "*")) if op == "times" else _SIGNS[op]
    said = op if words or rng.random() < 0.4 else sign
    forms = [
        "What is {x} {said} {y}?",
        "What is {x} {said} {y}?",
        "{x} {said} {y}",
        "How much is {x} {said} {y}?",
    ]
    if op == "plus":
        forms.append("Add {x} and {y}.")
    prompt = rng.choice(forms).format(x=x, said=said, y=y)
    prompt = prompt[0].upper() + prompt[1:] if rng.random() < 0.7 else prompt
    answer = f"{_steps(op, a, b, total)}. The answer is {total}."
    return Example("sums", say(prompt), answer, {"answer": total})


def signs(rng: Random) -> Example:
    """A sum in signs alone, as one types it into a calculator."""
    op, a, b, total = _operands(rng)
    sign = rng.choice(("x", "*")) if op == "times" else _SIGNS[op]
    forms = ("{a}{s}{b}", "{a}{s}{b}", "{a} {s} {b}", "{a}{s}{b}=", "{a} {s} {b} =", "{a}{s}{b}?",
             "{a} {s} {b} = ?", "What is {a}{s}{b}?", "what is {a}{s}{b}", "Calculate {a} {s} {b}",
             "calculate {a}{s}{b}", "What's {a} {s} {b}?", "what's {a}{s}{b}")  # fmt: skip
    prompt = rng.choice(forms).format(a=a, s=sign, b=b)
    answer = f"{_steps(op, a, b, total)}. The answer is {total}."
    return Example("signs", say(prompt), answer, {"answer": total})


def counting(rng: Random) -> Example:
    """Whole numbers in their order, up to twelve of them."""
    first = 1 if rng.random() < 0.3 else rng.randint(1, 20)
    last = first + rng.randint(2, 11)
    count = rng.choice(("Count", "count", "Please count", "Can you count"))
    start = "" if first == 1 and rng.random() < 0.5 else f" from {first}"
    prompt = f"{count}{start} to {last}" + rng.choice(("", ".", ""))
    answer = ", ".join(str(n) for n in range(first, last + 1)) + "."
    return Example("counting", say(prompt), answer, {"answer": answer})


def problems(rng: Random) -> Example:
    """A person with things: gains and losses, groups, or two people together."""
    name, other = pick(rng, NAMES, 2)
    things = rng.choice(COUNTABLES)
    kind = rng.choice(("change", "change", "groups", "together"))
    if kind == "change":
        a, b = rng.randint(5, 20), rng.randint(2, 9)
        c = rng.randint(1, 9 if a + b > 9 else a + b - 1)
        gain = rng.choice(("buys", "finds", "gets"))
        lose = rng.choice(("gives away", "loses", "sells"))
        told = f"{name} has {a} {things}. {name} {gain} {b} more and {lose} {c}."
        prompt = f"{told} How many {things} does {name} have?"
        total = a + b - c
        answer = f"{name} starts with {a} {things}. {a} + {b} = {a + b}. {a + b} - {c} = {total}."
    elif kind == "groups":
        a, b, c = rng.randint(2, 6), rng.randint(2, 6), rng.randint(1, 9)
        told = f"{name} has {a} boxes with {b} {things} each. {name} finds {c} more."
        prompt = f"{told} How many {things} does {name} have?"
        total = a * b + c
        answer = f"The boxes hold {a} x {b} = {a * b} {things}. {a * b} + {c} = {total}."
    else:
        a, b = rng.randint(3, 20), rng.randint(2, 9)
        told = f"{name} has {a} {things} and {other} has {b} {things}."
        prompt = f"{told} How many {things} do they have together?"
        total = a + b
        answer = f"{name} has {a} and {other} has {b}. {a} + {b} = {total}."
    return Example("problems", say(prompt), f"{answer} The answer is {total}.", {"answer": total})


def check_number(example: Example, answer: str) -> bool:
    """The closing "The answer is N." names the right N, and every equation before it holds."""
    return final_number(answer) == example.facts["answer"] and equations_hold(answer)


def equations_hold(text: str) -> bool:
    """Whether every "a + b = c" (or -, x) that the text writes is true."""
    for a, sign, b, c in re.findall(r"(\d+) ([-+x]) (\d+) = (\d+)", text):
        x, y = int(a), int(b)
        if {"+": x + y, "-": x - y, "x": x * y}[sign] != int(c):
            return False
    return True


def comparisons(rng: Random) -> Example:
    """Which number is bigger or smaller; who is older or younger, taller or shorter."""
    a, b = rng.sample(range(1, 100), 2)
    if rng.random() < 0.5:
        high = rng.random() < 0.5
        word = rng.choice(("bigger", "larger") if high else ("smaller",))
        right, wrong = (max(a, b), min(a, b)) if high else (min(a, b), max(a, b))
        prompt = rng.choice(("Which is {w}, {a} or {b}?", "Which number is {w}: {a} or {b}?"))
        answer = f"{right} is {word} than {wrong}, so the {word} number is {right}."
        return Example(
            "comparisons", say(prompt.format(w=word, a=a, b=b)), answer, {"answer": answer}
        )
    name, other = pick(rng, NAMES, 2)
    if rng.random() < 0.5:
        more, less, fact = "older", "younger", "is {n} years old"
    else:
        more, less, fact = "richer", "poorer", "has {n} coins"
    high = rng.random() < 0.5
    word = more if high else less
    first = (a > b) == high
    who, whom = (name, other) if first else (other, name)
    right, wrong = (a, b) if first else (b, a)
    prompt = f"{name} {fact.format(n=a)}. {other} {fact.format(n=b)}. Who is {word}?"
    sign = "more" if high else "less"
    answer = f"{right} is {sign} than {wrong}, so {who} is {word} than {whom}."
    return Example("comparisons", say(prompt), answer, {"answer": answer})


def sequences(rng: Random) -> Example:
    """The next number of a row that goes up or down by a fixed step."""
    step, length = rng.randint(1, 10 if rng.random() < 0.3 else 5), rng.randint(3, 5)
    if rng.random() < 0.7:
        start = rng.randint(0, 20)
        row = [start + step * k for k in range(length + 1)]
        way, sign = "up", "+"
    else:
        last = rng.randint(0, 10)
        row = [last + step * (length - k) for k in range(length + 1)]
        way, sign = "down", "-"
    shown = ", ".join(str(n) for n in row[:-1])
    form = rng.choice(("What comes next: {s}?", "What number comes next: {s}?", "Continue: {s}"))
    answer = (
        f"The numbers go {way} by {step}. "
        f"{row[-2]} {sign} {step} = {row[-1]}. The answer is {row[-1]}."
    )
    return Example("sequences", say(form.format(s=shown)), answer, {"answer": row[-1]})


def check_text(example: Example, answer: str) -> bool:
    """The sentence is a closed form: both numbers and the verdict must be right."""
    return same_text(answer, example.facts["answer"])


FAMILIES = (
    Family("sums", 2.0, sums, check_number),
    Family("problems", 2.0, problems, check_number),
    Family("comparisons", 1.2, comparisons, check_text),
    Family("sequences", 1.5, sequences, check_number),
    # With a weight of their own in the stages that have them.
    Family("signs", 0.0, signs, check_number),
    Family("counting", 0.0, counting, check_text),
)
