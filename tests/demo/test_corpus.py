"""The corpus program: deterministic, split without overlap, and judged exactly."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from apdcli.demo.corpus import (
    FAMILIES,
    Example,
    check,
    conversations,
    generate,
    probes,
    split_of,
)
from apdcli.demo.corpus.base import final_number, prompt_key
from apdcli.demo.corpus.functions import KINDS
from apdcli.demo.corpus.numbers import equations_hold

DRAWS = 60


def draw(name: str, count: int = DRAWS, seed: int = 1) -> list[Example]:
    rng = Random(seed)
    return [FAMILIES[name].make(rng) for _ in range(count)]


def test_there_are_at_least_ten_families_and_the_list_operations_are_rows_of_their_own() -> None:
    assert len(FAMILIES) >= 10
    assert {"copy", "reverse", "sort", "replace", "insert", "remove", "count"} <= set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_reference_answer_is_right(name: str) -> None:
    for example in draw(name, 12 if name == "functions" else DRAWS):
        assert check(example, example.answer), example
        assert example.messages[-1]["role"] == "user"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_corrupted_answer_is_wrong(name: str) -> None:
    for example in draw(name, 6 if name == "functions" else DRAWS):
        text = example.answer
        assert not check(example, ""), example
        assert not check(example, text[:-2]), example
        assert not check(example, text[: len(text) // 2]), example
        assert not check(example, text + " Also x."), example


def test_an_answer_of_another_example_is_wrong() -> None:
    for name in ("copy", "sort", "lookups", "comparisons", "chat"):
        one, *others = draw(name)
        assert all(not check(one, o.answer) for o in others if o.answer != one.answer)


def test_numbers_are_sorted_as_numbers_however_they_are_typed() -> None:
    for example in draw("order"):
        asked = [int(n) for n in re.findall(r"\d+", example.messages[0]["content"])]
        said = [int(n) for n in re.findall(r"\d+", example.answer)]
        assert said == sorted(asked)


def test_counting_ends_where_it_was_asked_to() -> None:
    for example in draw("counting"):
        asked = [int(n) for n in re.findall(r"\d+", example.messages[0]["content"])]
        first, last = ([1, *asked])[-2:]
        assert example.answer == ", ".join(map(str, range(first, last + 1))) + "."


def test_a_family_without_weight_is_never_drawn() -> None:
    some = islice(generate(0, "train"), 3000)
    assert not {"order", "signs", "counting"} & {example.family for example in some}
    more = islice(generate(0, "train", {"order": 2.0, "signs": 2.0}), 200)
    assert {"order", "signs"} <= {example.family for example in more}


def test_a_right_number_after_a_wrong_equation_is_wrong() -> None:
    example = draw("problems", 1)[0]
    total = example.facts["answer"]
    assert check(example, f"1 + 1 = 2. The answer is {total}.")
    assert not check(example, f"1 + 1 = 3. The answer is {total}.")


def test_a_story_that_changes_a_fact_is_wrong() -> None:
    for example in draw("stories", 20):
        words = example.answer.split()
        found = words.index("found")
        assert not check(example, example.answer.replace(f" a {words[found + 2]} ", " a grey ", 1))
        name = words[6].rstrip(".")
        assert not check(example, example.answer.replace(f"{name} gave", "Zoe gave"))


def test_a_story_may_choose_what_was_not_asked() -> None:
    example = next(e for e in draw("stories", 200) if not e.facts["wanted"])
    others = draw("stories", 30, seed=2)
    assert all(check(example, other.answer) for other in others)


def test_every_function_of_the_world_is_right_in_the_sandbox_and_a_changed_one_wrong() -> None:
    seen: set[int] = set()
    for example in draw("functions", 400):
        kind = example.facts["kind"]
        if kind in seen:
            continue
        seen.add(kind)
        assert check(example, example.answer), example
        broken = example.answer.rsplit("\n", 1)[0] + "\n    return None"
        assert not check(example, broken)
    assert seen == set(range(len(KINDS)))


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another() -> None:
    def first(seed: int) -> list[str]:
        return [repr(e) for e in islice(generate(seed, "train"), 300)]

    assert first(3) == first(3)
    assert first(3) != first(4)


def test_no_test_prompt_is_ever_seen_in_training() -> None:
    keys = {
        split: {prompt_key(e.messages) for e in islice(generate(0, split), count)}
        for split, count in (("train", 8000), ("tune", 400), ("test", 400))
    }
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["tune"]
    assert not keys["tune"] & keys["test"]


def test_dress_does_not_move_a_prompt_to_another_split() -> None:
    plain = ({"role": "user", "content": "Sort this list: pear, apple, dog."},)
    dressed = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "please sort this list: pear, apple, dog"},
    )
    assert prompt_key(plain) == prompt_key(dressed)
    assert split_of(plain) == split_of(dressed)


def test_a_sign_and_a_word_are_different_prompts() -> None:
    def ask(text: str) -> tuple[dict[str, str], ...]:
        return ({"role": "user", "content": text},)

    assert prompt_key(ask("7 + 5")) != prompt_key(ask("7 - 5"))


def test_probes_are_different_prompts_of_the_split_in_every_family() -> None:
    chosen = probes(0, "test", 5)
    assert {e.family for e in chosen} == set(FAMILIES)
    assert all(split_of(e.messages) == "test" for e in chosen)
    assert len({repr(e.messages) for e in chosen}) == len(chosen)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1 + 1 = 2. The answer is 2.", 2),
        ("The answer is 24 hours.", 24),
        ("The answer is 24 hours", None),
        ("The answer is 2. Or 3.", None),
    ],
)
def test_final_number(text: str, number: int | None) -> None:
    assert final_number(text) == number


def test_equations() -> None:
    assert equations_hold("2 x 3 = 6, 6 - 1 = 5")
    assert not equations_hold("2 x 3 = 6, 6 - 1 = 4")


def questions(example: Example) -> list[str]:
    return [m["content"] for m in example.messages if m["role"] == "user"]


@pytest.mark.parametrize("earlier", [0, 1, 5])
def test_a_conversation_keeps_its_last_question_and_alternates(earlier: int) -> None:
    names = ["sums", "sort", "chat", "help"]
    for example in conversations(3, "test", 24, earlier, names):
        assert check(example, example.answer)
        roles = [m["role"] for m in example.messages]
        assert roles == [("user", "assistant")[at % 2] for at in range(len(roles))]
        own = 1 + (example.family == "chat") * 2
        assert earlier < len(questions(example)) <= 3 * earlier + own
    assert conversations(3, "test", 24, 5, names) == conversations(3, "test", 24, 5, names)


def test_all_questions_of_a_conversation_are_of_its_split() -> None:
    alone = {e.messages[0]["content"] for e in islice(generate(0, "train", {"sums": 1}), 3000)}
    for example in conversations(0, "test", 20, 3, ["sums"]):
        assert not alone & set(questions(example))


def test_nothing_told_before_changes_what_a_question_about_the_talk_refers_to() -> None:
    for example in conversations(0, "train", 60, 6, ["chat", "sums"]):
        told = [q for q in questions(example) if q.startswith("My favourite colour is")]
        if example.answer.startswith("Your favourite colour is"):
            assert len(told) <= 1
            assert any(example.answer.split()[-1] in q for q in questions(example))


def test_a_stream_with_history_holds_the_same_families_in_longer_talks() -> None:
    plain = list(islice(generate(4, "train", {"sums": 1.0}), 200))
    longer = list(islice(generate(4, "train", {"sums": 1.0}, history=0.5), 200))
    assert sum(len(questions(e)) > 3 for e in plain) == 0
    assert 20 < sum(len(questions(e)) > 3 for e in longer) < 100
    assert all(check(e, e.answer) for e in longer if e.family != "functions")
