"""The fold of events into cells, without any terminal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apdcli.render import ViewState
from tests.render.fakes import (
    PROMPT_LEN,
    Vocabulary,
    any_order_events,
    apd_events,
    finished,
    split,
    step,
)


def shown(state: ViewState) -> list[tuple[str, str, int]]:
    return [(c.kind, c.text, c.step) for c in (*state.settled, *state.tail())]


def test_each_token_keeps_the_step_that_committed_it() -> None:
    words = Vocabulary([b"one", b" two", b" three"])
    state = words.state()
    state.apply(step(1, [(0, 0)]))
    state.apply(step(2, [(1, 1), (2, 2)]))
    assert shown(state) == [("text", "one", 1), ("text", " two", 2), ("text", " three", 2)]
    assert [c.run for c in state.settled] == [1, 2, 2]


def test_a_split_character_waits_and_belongs_to_the_step_that_completes_it() -> None:
    words = Vocabulary([b"a\xf0\x9f", b"\x98", b"\x80b"])
    state = words.state()
    state.apply(step(1, [(0, 0)]))
    assert shown(state) == [("text", "a", 1)]
    state.apply(step(2, [(1, 1)]))
    assert shown(state) == [("text", "a", 1)]
    state.apply(step(3, [(2, 2)]))
    assert shown(state) == [("text", "a", 1), ("text", "\U0001f600b", 3)]


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    state = Vocabulary([b"a\xf0\x9f"]).state()
    state.apply(step(1, [(0, 0)]))
    state.apply(finished(1, "length"))
    assert state.text == "a\ufffd"


def test_rejected_drafts_lie_behind_and_go_with_the_next_step() -> None:
    words = Vocabulary([b"a", b"b", b"c"])
    state = words.state()
    state.apply(step(1, [(0, 0)], rejected=[(1, 2), (2, 1)]))
    assert shown(state) == [("text", "a", 1), ("draft", "c", 0), ("draft", "b", 0)]
    state.apply(step(2, [(1, 1)]))
    assert shown(state) == [("text", "a", 1), ("text", "b", 2)]


def test_a_draft_may_show_the_rest_of_a_waiting_character() -> None:
    words = Vocabulary([b"\xc3", b"\xa9"])
    state = words.state()
    state.apply(step(1, [(0, 0)], rejected=[(1, 1)]))
    assert shown(state) == [("draft", "é", 0)]


def test_the_end_token_and_what_follows_it_are_not_text() -> None:
    words = Vocabulary([b"a", b"b"])
    state = words.state()
    state.apply(step(1, [(0, 0), (1, words.end), (2, 1)], rejected=[(3, 1)]))
    state.apply(finished(1))
    assert (state.text, shown(state)) == ("a", [("text", "a", 1)])
    assert state.tokens == 2


def test_special_tokens_write_nothing() -> None:
    state = Vocabulary([b"a", b"<|x|>", b"b"]).state(skip=frozenset([1]))
    state.apply(step(1, [(0, 0), (1, 1), (2, 2)]))
    assert state.text == "ab"
    assert state.tokens == 3


def test_masks_fill_in_place_and_only_the_contiguous_part_settles() -> None:
    words = Vocabulary([b"a", b"b", b"c", b"d"])
    state = words.state()
    state.apply(step(1, [(2, 2)], phase="divide", clusters=((1, 4),)))
    assert [c.kind for c in state.tail()] == ["mask", "mask", "text", "mask"]
    assert [c.clustered for c in state.tail()] == [False, True, True, True]
    assert state.text == ""
    state.apply(step(2, [(0, 0)]))
    assert state.text == "a"
    state.apply(step(3, [(1, 1)]))
    assert [(c.text, c.step) for c in state.settled] == [("a", 2), ("b", 3), ("c", 1)]


def test_half_characters_beside_a_mask_are_not_shown() -> None:
    words = Vocabulary([b"\xc3", b"\xa9x\xc3", b"\xa9"])
    state = words.state()
    state.apply(step(1, [(1, 1)]))
    assert [c.text for c in state.tail()] == ["\u2591", "x"]
    state.apply(step(2, [(0, 0), (2, 2)]))
    assert state.text == "éxé"


def test_given_text_is_there_from_the_start_and_does_not_count() -> None:
    words = Vocabulary([b"def ", b"f", b"():"])
    state = words.state(given=[(PROMPT_LEN, 0), (PROMPT_LEN + 2, 2)])
    assert [c.text for c in state.tail()] == ["def ", "\u2591", "():"]
    state.apply(step(1, [(1, 1)]))
    assert (state.text, state.tokens) == ("def f():", 1)


def test_a_gap_at_the_end_is_seen_from_the_start() -> None:
    words = Vocabulary([b"def ", b"f"])
    state = words.state(given=[(PROMPT_LEN, 0)], length=PROMPT_LEN + 4)
    assert [c.text for c in state.tail()] == ["def ", *"\u2591" * 3]
    state.apply(step(1, [(2, 1)]))
    assert [c.text for c in state.tail()] == ["\u2591", "f", "\u2591"]
    assert state.text == "def "
    gap = words.state(length=PROMPT_LEN + 2)
    assert [c.kind for c in gap.tail()] == ["mask"] * 2


@pytest.mark.parametrize(
    ("pieces", "stop", "text"),
    [
        ([b"one\n", b"\ntwo"], ["\n\n"], "one"),
        ([b"a EN", b"D b"], ["END"], "a "),
        ([b"a EN", b"X b"], ["END"], "a ENX b"),
        ([b"a EN"], ["END"], "a EN"),
        ([b"abc"], ["c", "b"], "a"),
        ([b"aab", b"aac"], ["aac", "zz"], "aab"),
    ],
)
def test_stop_strings_are_left_out(pieces: list[bytes], stop: list[str], text: str) -> None:
    state = Vocabulary(pieces).state(stop=stop)
    for position in range(len(pieces)):
        state.apply(step(position + 1, [(position, position)]))
        assert text.startswith(state.text)
    state.apply(finished(len(pieces)))
    assert state.text == text


@given(st.text(), st.integers(0, 2**32), st.integers(1, 6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_split_of_any_text_gives_that_text(text: str, seed: int, most: int, any_: bool) -> None:
    words = Vocabulary(split(text.encode(), seed, most))
    state = words.state()
    before = ""
    for event in (any_order_events if any_ else apd_events)(words, seed):
        state.apply(event)
        assert state.text.startswith(before)
        state.tail()
        before = state.text
    assert state.text == text


@given(st.binary(max_size=40), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_any_bytes_read_as_their_decoding_at_once(data: bytes, seed: int) -> None:
    words = Vocabulary(split(data, seed))
    state = words.state()
    for event in any_order_events(words, seed):
        state.apply(event)
    assert state.text == data.decode("utf-8", "replace")
