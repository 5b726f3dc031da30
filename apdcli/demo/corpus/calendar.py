"""Dates and units."""

from __future__ import annotations

import re
from random import Random

from apdcli.demo.corpus.base import Example, Family, final_number, say
from apdcli.demo.corpus.numbers import equations_hold
from apdcli.demo.corpus.words import DAYS, MONTHS, NAMES, NUMBER_WORDS, phrases

_EVENTS = phrases("party trip test game visit concert")

# (big, bigs, small, how many small ones in one big one)
UNITS = (
    ("week", "weeks", "days", 7),
    ("year", "years", "months", 12),
    ("hour", "hours", "minutes", 60),
    ("minute", "minutes", "seconds", 60),
    ("day", "days", "hours", 24),
    ("metre", "metres", "centimetres", 100),
    ("foot", "feet", "inches", 12),
    ("kilogram", "kilograms", "grams", 1000),
    ("dozen", "dozens", "eggs", 12),
    ("euro", "euros", "cents", 100),
)


def _walk(cycle: list[str], start: int, steps: int) -> list[str]:
    way = 1 if steps > 0 else -1
    return [cycle[(start + way * k) % len(cycle)] for k in range(1, abs(steps) + 1)]


def dates(rng: Random) -> Example:
    """A weekday or a month some steps after or before another, counted out loud."""
    days = rng.random() < 0.7
    cycle, what, unit = (DAYS, "day", "day") if days else (MONTHS, "month", "month")
    start, n = rng.randrange(len(cycle)), rng.randint(1, 6 if days else 5)
    back = rng.random() < 0.3
    units = unit if n == 1 else unit + "s"
    number = NUMBER_WORDS[n] if rng.random() < 0.2 else str(n)
    word = "before" if back else "after"
    if days and rng.random() < 0.5:
        name, event = rng.choice(NAMES), rng.choice(_EVENTS)
        when = f"was {number} {units} ago" if back else f"is in {number} {units}"
        ask = f"What day {'was' if back else 'is'} the {event}?"
        prompt = f"Today is {cycle[start]}. The {event} of {name} {when}. {ask}"
    else:
        form = rng.choice(("What {w} is {n} {u} {o} {s}?", "Which {w} comes {n} {u} {o} {s}?"))
        prompt = form.format(w=what, n=number, u=units, o=word, s=cycle[start])
    walked = _walk(cycle, start, -n if back else n)
    counted = ", ".join(f"{k} {name}" for k, name in enumerate(walked, 1))
    answer = f"Count {n} {units} {word} {cycle[start]}: {counted}. The answer is {walked[-1]}."
    return Example("dates", say(prompt), answer, {"answer": walked[-1]})


def check_dates(example: Example, answer: str) -> bool:
    """The closing name is the right one."""
    found = re.search(r"The answer is ([A-Z][a-z]+)\.$", answer.strip())
    return found is not None and found.group(1) == example.facts["answer"]


def units(rng: Random) -> Example:
    """How many small units are in N big ones."""
    big, bigs, small, size = rng.choice(UNITS)
    n = rng.randint(1, 10)
    said = big if n == 1 else bigs
    number = NUMBER_WORDS[n] if rng.random() < 0.3 else str(n)
    verb = "is" if n == 1 else "are"
    forms = (
        f"How many {small} {verb} in {number} {said}?",
        f"Convert {number} {said} to {small}.",
        f"How many {small} do {number} {said} have?",
        f"{rng.choice(NAMES)} counts {number} {said}. How many {small} is that?",
    )
    article = "an" if big == "hour" else "a"
    total = n * size
    answer = (
        f"There are {size} {small} in {article} {big}. "
        f"{n} x {size} = {total}. The answer is {total} {small}."
    )
    return Example("units", say(rng.choice(forms)), answer, {"answer": total, "unit": small})


def check_units(example: Example, answer: str) -> bool:
    """Right number, right unit, and the equation holds."""
    right_unit = answer.strip().endswith(f" {example.facts['unit']}.")
    return right_unit and final_number(answer) == example.facts["answer"] and equations_hold(answer)


FAMILIES = (Family("dates", 1.5, dates, check_dates), Family("units", 1.2, units, check_units))
