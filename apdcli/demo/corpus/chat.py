"""Short conversations in which the last question refers to an earlier turn."""

from __future__ import annotations

from random import Random

from apdcli.demo.corpus.base import Example, Family, Message, same_text
from apdcli.demo.corpus.words import ANIMALS, CITIES, COLOURS, FOODS, NAMES, pick


def _facts(rng: Random) -> list[tuple[str, str, str, str]]:
    """For each kind of fact: what the user says, the reply, the later question, its answer."""
    name, pet_name = pick(rng, NAMES, 2)
    colour, city, food = rng.choice(COLOURS), rng.choice(CITIES), rng.choice(FOODS)
    animal = rng.choice(ANIMALS)
    hello = rng.choice(("My name is", "Hi, my name is", "Hello, my name is", "I am"))
    return [
        (f"{hello} {name}.", f"Hello {name}! Nice to meet you.",
         rng.choice(("What is my name?", "Do you know my name?")), f"Your name is {name}."),
        (f"My favourite colour is {colour}.", f"Good to know that you like {colour}.",
         "What is my favourite colour?", f"Your favourite colour is {colour}."),
        (f"I live in {city}.", f"Good to know that you live in {city}.",
         "Where do I live?", f"You live in {city}."),
        (f"My favourite food is {food}.", f"Good to know that you like {food}.",
         "What is my favourite food?", f"Your favourite food is {food}."),
        (f"I have a {animal} named {pet_name}.", f"{pet_name} is a good name for a {animal}.",
         rng.choice(("What is the name of my pet?", f"What is the name of my {animal}?")),
         f"Your {animal} is named {pet_name}."),
    ]  # fmt: skip


def chat(rng: Random) -> Example:
    """One or two facts told, then a question about one of them; sometimes only the first reply."""
    facts = rng.sample(_facts(rng), 2 if rng.random() < 0.6 else 1)
    asked = rng.choice(facts)
    messages: list[Message] = []
    if rng.random() < 0.15:
        told, reply, _, _ = facts[-1]
        for before, answer, _, _ in facts[:-1]:
            messages += [_user(before), _assistant(answer)]
        messages.append(_user(told))
        return Example("chat", tuple(messages), reply, {"answer": reply})
    if len(facts) == 2 and rng.random() < 0.3:
        messages = [_user(f"{facts[0][0]} {facts[1][0]}"), _assistant(facts[1][1])]
    else:
        for told, reply, _, _ in facts:
            messages += [_user(told), _assistant(reply)]
    messages.append(_user(asked[2]))
    return Example("chat", tuple(messages), asked[3], {"answer": asked[3]})


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def check(example: Example, answer: str) -> bool:
    """The fact must be the one that the user told."""
    return same_text(answer, example.facts["answer"])


FAMILIES = (Family("chat", 1.2, chat, check),)
