"""The closed vocabulary of the demo world."""

from __future__ import annotations

from random import Random


def phrases(text: str, separator: str | None = None) -> list[str]:
    """The parts of `text` between separators (any space by default)."""
    return text.split(separator)


NAMES = phrases(
    "Anna Ben Carla Dan Emma Finn Grace Hugo Ida Jack Kate Leo Mia Nora Oscar Paul Rosa Sam Tom "
    "Vera"
)

LIST_WORDS = phrases(
    "apple banana cherry lemon pear plum grape dog cat cow pig fox bird fish ball kite drum lamp "
    "book chair table door key shoe hat coat ring coin boat train bus car tree leaf rose sun moon "
    "star cloud rain"
)

ANIMALS = phrases("fox cat dog bear rabbit mouse horse frog duck wolf lion goat")
PLACES = phrases("forest garden city village castle desert valley barn park jungle cave field")
THINGS = phrases("ball key ring coin lamp book kite drum hat map bell shell")
COLOURS = phrases("red blue green yellow black white pink brown")
CITIES = phrases("Paris Rome Berlin Madrid London Oslo Vienna Lisbon")
COUNTABLES = phrases("apples pears coins books cards shells stones stamps")
FOODS = phrases("soup rice bread cake pasta salad cheese pizza")
DAYS = phrases("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = phrases(
    "January February March April May June July August September October November December"
)
NUMBER_WORDS = phrases(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)


def pick(rng: Random, items: list[str], count: int) -> list[str]:
    """`count` different items in random order."""
    return rng.sample(items, count)
