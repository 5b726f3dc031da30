"""Lines of whole words: the same however the text comes in; nothing is added but line breaks."""

from __future__ import annotations

import itertools
import os
import re
import select
import struct
from collections.abc import Iterator, Sequence
from typing import TextIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apdcli.render import PlainWriter
from apdcli.render.layout import glyphs
from apdcli.render.state import Cell
from apdcli.render.text import width
from apdcli.render.words import Prose, wrapped_text
from tests.render.fakes import Vocabulary, apd_events, split, step, worded

PROSE = "the quick brown fox jumps over the lazy dog"


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        (PROSE, 21, ["the quick brown fox", "jumps over the lazy", "dog"]),
        (PROSE, 20, ["the quick brown fox", "jumps over the lazy", "dog"]),  # 19 and the last free
        (PROSE, 19, ["the quick brown", "fox jumps over the", "lazy dog"]),
        ("a  b   c", 6, ["a  b", "c"]),
        ("a\tb", 12, ["a\tb"]),
        ("a\tb", 9, ["a", "b"]),
        ("end   \n\nnext", 5, ["end ", "", "next"]),  # of the blanks those that fit
        ("see https://example.org/a/b now", 12, ["see", "https://example.org/a/b", "now"]),
        ("well-known", 8, ["well-known"]),
        ("no\u00a0break here", 12, ["no\u00a0break", "here"]),
        ("cafe\u0301 creme\u0301 ole\u0301", 12, ["cafe\u0301 creme\u0301", "ole\u0301"]),
        ("日本語のテキスト", 7, ["日本語のテキスト"]),
        ("abc 日本語", 7, ["abc 日本語"]),
        ("abcde 日本語", 7, ["abcde", "日本語"]),
        ("日本abc", 7, ["日本", "abc"]),
        ("    return one or the other", 12, ["    return one or the other"]),
        ("\treturn one or the other", 12, ["\treturn one or the other"]),
        (" one or the other", 12, [" one or the other"]),
        ("- one or the other", 12, ["- one or", "the other"]),
    ],
)
def test_where_lines_break(text: str, columns: int, lines: list[str]) -> None:
    assert wrapped_text(text, columns) == "\n".join(lines)


def test_code_between_fences_stays_whole() -> None:
    code = "if one_thing: return the_other_thing"
    assert wrapped_text(f"```py\n{code}\n```\n{PROSE}", 12).startswith(
        f"```py\n{code}\n```\nthe quick\n"
    )
    assert wrapped_text(f"~~~\n{code}\n~~~\n{PROSE}", 12).startswith(
        f"~~~\n{code}\n~~~\nthe quick\n"
    )
    assert wrapped_text(f"```\n{code}\n```py {code}\n", 12) == f"```\n{code}\n```py {code}\n"
    assert wrapped_text(f"```ab``` {code}", 12).startswith("```ab``` if\n")  # is no fence


TEXTS = st.lists(
    st.sampled_from(
        ["a", "bc", "word", " ", "  ", "\t", "\n", "```", "日", "é", "e\u0301", "\U0001f600"]
    ),
    max_size=40,
).map("".join)


@given(TEXTS, st.integers(2, 14), st.lists(st.integers(1, 5), max_size=30))
@settings(max_examples=300, deadline=None)
def test_in_pieces_it_is_the_same_and_only_blanks_give_way(
    text: str, columns: int, cuts: list[int]
) -> None:
    whole = wrapped_text(text, columns)
    line, out, kept, at = Prose(columns), "", "", 0
    for size in [*cuts, len(text)]:
        final = at + size >= len(text)
        ready, waiting = line.broken(glyphs([Cell(kept + text[at : at + size])]), final=final)
        if ready and not (final or waiting):
            waiting = [ready.pop()]
        for glyph in ready:
            for piece in line.expand(glyph):
                line.write(piece)
        out += "".join(glyph.text for glyph in ready)
        kept = "".join(glyph.text for glyph in waiting)
        at += size
        if final:
            break
    assert out == whole
    assert "".join(whole.split()) == "".join(text.split())
    assert len(whole.split("\n")) >= len(text.split("\n"))


@given(st.lists(st.text("ab", min_size=1, max_size=8), max_size=30), st.integers(9, 30))
@settings(max_examples=100, deadline=None)
def test_words_that_fit_are_never_cut(words: list[str], columns: int) -> None:
    lines = wrapped_text(" ".join(words), columns).split("\n")
    assert [word for line in lines for word in line.split()] == words
    assert all(width(line) < columns for line in lines)
    for line, after in itertools.pairwise(lines):  # and no row is left early
        assert width(line) + 1 + width(after.split()[0]) >= columns


class Pty:
    """A real terminal of some width; `text()` is what it was sent."""

    def __init__(self, columns: int) -> None:
        self.keeper, end = os.openpty()
        self.out: TextIO = os.fdopen(end, "w", encoding="utf-8")
        self.resize(columns)

    def resize(self, columns: int) -> None:
        import fcntl
        import termios

        size = struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
        fcntl.ioctl(self.keeper, termios.TIOCSWINSZ, size)

    def text(self) -> str:
        data = b""
        while select.select([self.keeper], [], [], 0.05)[0]:
            data += os.read(self.keeper, 65536)
        return data.decode().replace("\r\n", "\n")


@pytest.fixture
def pty() -> Iterator[Pty]:
    pytest.importorskip("termios")
    made = Pty(20)
    yield made
    made.out.close()
    os.close(made.keeper)


def plain(pty: Pty, pieces: Sequence[bytes]) -> PlainWriter:
    return PlainWriter(Vocabulary(list(pieces)).state(), pty.out)


@pytest.mark.parametrize("seed", range(4))
def test_plain_text_on_a_terminal_is_in_lines_of_words(pty: Pty, seed: int) -> None:
    text = f"{PROSE}. {PROSE}\n\n    indented {PROSE}\n- 日本語 e\u0301 \x1b[31m"
    words = Vocabulary(split(text.encode(), seed))
    with PlainWriter(words.state(), pty.out) as writer:
        for event in apd_events(words, seed):
            writer(event)
    assert pty.text() == worded(text.replace("\x1b", "␛"), 20) + "\n"


def test_a_word_is_there_when_it_is_whole_or_at_the_end(pty: Pty) -> None:
    with plain(pty, [b"a wo", b"rd", b" an", b"d an", b"other"]) as writer:
        writer(step(1, [(0, 0)]))
        assert pty.text() == "a"
        writer(step(2, [(1, 1)]))
        writer(step(3, [(2, 2)]))
        assert pty.text() == " word"
        writer(step(4, [(3, 3)]))
        assert pty.text() == " and"
    assert pty.text() == " an\n"


def test_ctrl_c_in_a_word_shows_what_there_is_of_it(pty: Pty) -> None:
    def interrupted() -> None:
        with plain(pty, [b"one hal", b"f"]) as writer:
            writer(step(1, [(0, 0)]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert pty.text() == "one hal\n"


def test_a_long_word_goes_on_as_it_comes(pty: Pty) -> None:
    with plain(pty, [b"see ", b"x" * 15, b"x" * 15, b"x "]) as writer:
        writer(step(1, [(0, 0), (1, 1)]))
        assert pty.text() == "see"
        writer(step(2, [(2, 2)]))  # it cannot end in the first row
        assert re.fullmatch("\nx+", pty.text())
        writer(step(3, [(3, 3)]))
    assert re.fullmatch("x+ ?\n", pty.text())


def test_another_width_counts_from_the_next_word_on(pty: Pty) -> None:
    words = (PROSE + " ").encode() * 3
    with plain(pty, [words[:44], words[44:88], words[88:]]) as writer:
        for place, columns in enumerate((20, 40, 12)):
            pty.resize(columns)
            writer(step(place + 1, [(place, place)]))
            lines = pty.text().split("\n")
            assert max(map(len, lines)) in range(columns - 9, columns)


def test_a_terminal_that_does_not_tell_its_width_gets_the_text_as_it_is(pty: Pty) -> None:
    pty.resize(0)
    with plain(pty, [PROSE.encode(), b" x"]) as writer:
        writer(step(1, [(0, 0)]))
        assert pty.text() == PROSE
