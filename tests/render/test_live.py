"""The live view on a terminal emulator: on the screen is what printing lines of words gives."""

from __future__ import annotations

import io
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apdcli.render import LiveView, visible
from apdcli.render.live import REDRAW_S
from apdcli.render.terminal import Terminal
from tests.render.fakes import (
    COLOUR,
    NO_COLOUR,
    Clock,
    FakeTerminal,
    Vocabulary,
    any_order_events,
    apd_events,
    finished,
    show,
    split,
    step,
    typed,
    worded,
)

ENGLISH = (
    "Adaptive parallel decoding asks a small verifier how many of the drafted tokens to keep. "
    "When the text is easy it keeps many.\n\n```python\ndef area(r):\n    return 3 * r ** 2\n```\n"
)
WIDE = "日本語のテキストを並列に書く。한국어도 씁니다 😀🚀 ok e\u0301o\u0308 naïve\n終わり"
SIZES = [(20, 6), (20, 24), (80, 24), (300, 50), (80, 3), (80, 2), (80, 1), (7, 5)]


def words_of(text: str, seed: int = 1) -> Vocabulary:
    return Vocabulary(split(text.encode(), seed))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("events", [apd_events, any_order_events])
@pytest.mark.parametrize("text", [ENGLISH, WIDE, ENGLISH * 3], ids=["english", "wide", "long"])
def test_what_remains_is_the_text_each_line_once(size, events, text) -> None:
    terminal = FakeTerminal(*size)
    words = words_of(text)
    show(words.state(), events(words), terminal)
    assert terminal.rows() == typed(worded(unicodedata.normalize("NFC", text), size[0]), *size)


@given(
    st.text(st.sampled_from("ab \n\té日\u0301\x1b\u202e\U0001f600"), max_size=60),
    st.integers(2, 12),
    st.integers(1, 6),
    st.integers(0, 99),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_any_text_at_any_size_is_as_printed(text, columns, lines, seed, any_order) -> None:
    words = words_of(text, seed)
    terminal = FakeTerminal(columns, lines)
    show(words.state(), (any_order_events if any_order else apd_events)(words, seed), terminal)
    safe = visible(text).replace("\t", " ")
    shown = "".join("".join(terminal.rows()).split()).replace("\u25cc", "")
    bare = "".join(safe.split())
    assert unicodedata.normalize("NFD", shown) == unicodedata.normalize("NFD", bare)


def test_the_text_starts_where_the_cursor_is_and_leaves_it_below() -> None:
    terminal = FakeTerminal(40, 10)
    terminal.write("$ apd generate hello\r\n")
    words = words_of("one\ntwo")
    show(words.state(), apd_events(words), terminal)
    assert terminal.rows() == ["$ apd generate hello", "one", "two"]
    assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (3, 0)


@pytest.mark.parametrize("length", range(38, 43))
def test_a_row_that_is_exactly_full_ends_without_an_empty_one(length: int) -> None:
    terminal = FakeTerminal(20, 10)
    words = words_of("x" * length)
    show(words.state(), apd_events(words), terminal)
    assert terminal.screen.cursor.y == -(-length // 20)


def test_mid_way_the_draft_and_the_status_are_below_the_text() -> None:
    terminal = FakeTerminal(80, 24)
    words = Vocabulary([b"Hello", b" world", b" again", b"\n", b"more"])
    state = words.state()
    view = LiveView(state, Terminal(terminal, terminal.size, COLOUR, Clock()))
    with view:
        assert "reading the prompt" in terminal.rows()[-1]
        view(step(1, [(0, 0), (1, 1)], rejected=[(2, 2), (3, 3), (4, 4)]))
        first, blank, status = terminal.rows()
        assert first == "Hello world again↵more"
        assert blank == ""
        for part in ("apd", "step 1", "2.0 tok/step", "20 tok/s", "R 0.7", "W 16", "M 100"):
            assert part in status
        cell = terminal.screen.buffer[0]
        assert cell[0].fg != cell[12].fg
        assert terminal.screen.cursor.hidden
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize("columns", [4, 12, 20, 40, 80, 300])
def test_the_status_fits_its_row_whatever_the_width(columns: int) -> None:
    terminal = FakeTerminal(columns, 24)
    words = words_of("ab" * 20)
    state = words.state()
    with LiveView(state, Terminal(terminal, terminal.size, COLOUR, Clock())) as view:
        for number in range(1, 12):
            view(step(number, [(number, 0)], phase="divide"))
            below = [row for row in terminal.rows() if "tok/step" in row]
            assert len(below) == (columns > 12)
        if columns >= 20:
            assert re.search("[▁▂▃▄▅▆▇█]", below[0])


def test_a_word_that_grows_over_the_edge_moves_whole_and_nothing_else_moves() -> None:
    terminal = FakeTerminal(20, 10)
    words = Vocabulary([b"the quick brown", b" jum", b"per", b"s. 1", b"23 on"])
    with LiveView(words.state(), Terminal(terminal, terminal.size, COLOUR, Clock())) as view:
        view(step(1, [(0, 0), (1, 1)]))
        assert terminal.rows()[0] == "the quick brown jum"
        view(step(2, [], rejected=[(2, 2), (3, 3)]))
        assert terminal.rows()[:2] == ["the quick brown", "jumpers. 1"]
        assert (terminal.screen.cursor.y, terminal.screen.cursor.x) == (0, 15)  # a draft may err
        view(step(3, [(2, 2)], rejected=[(3, 3)]))
        assert terminal.rows()[:2] == ["the quick brown", "jumpers. 1"]
        assert terminal.screen.cursor.y == 1
        view(step(4, [(3, 3), (4, 4)]))
    assert terminal.rows() == ["the quick brown", "jumpers. 123 on"]


@pytest.mark.parametrize("columns", [12, 16, 30])
def test_a_word_that_waits_while_the_terminal_changes_its_width(columns: int) -> None:
    terminal = FakeTerminal(20, 10)
    words = Vocabulary([b"the quick", b" bro", b"wn fox ", b"jumps over the", b" lazy dog"])

    def resize(index: int) -> None:
        if index == 2:
            terminal.resize(columns, 10)

    events = [step(n + 1, [(n, n)]) for n in range(5)]
    show(words.state(), [*events, finished(5)], terminal, each=resize)
    whole = "the quick brown fox jumps over the lazy dog"
    assert " ".join(terminal.rows()) == whole
    assert max(map(len, terminal.rows())) < columns


def test_masks_fill_in_place() -> None:
    terminal = FakeTerminal(80, 24)
    words = Vocabulary([b"aa", b"bb", b"cc"])
    state = words.state()
    with LiveView(state, Terminal(terminal, terminal.size, COLOUR, Clock())) as view:
        view(step(1, [(2, 2)], phase="divide", clusters=((1, 3),)))
        assert terminal.rows()[0] == "░░cc"
        underlined = [terminal.screen.buffer[0][x].underscore for x in range(4)]
        assert underlined == [False, True, True, True]
        assert "apd D" in terminal.rows()[-1]
        view(step(2, [(1, 1)]))
        assert terminal.rows()[0] == "░bbcc"
        view(step(3, [(0, 0)]))
        assert terminal.rows()[0] == "aabbcc"


def test_a_tail_taller_than_the_screen_is_cut_and_says_so() -> None:
    terminal = FakeTerminal(10, 6)
    words = Vocabulary([b"x"] * 200)
    state = words.state()
    with LiveView(state, Terminal(terminal, terminal.size, COLOUR, Clock())) as view:
        view(step(1, [(199, 0)]))
        assert len(terminal.rows()) == 6 or "tok" not in terminal.rows()[-1]
        assert any(row.endswith("…") for row in terminal.rows())
    assert len(terminal.screen.history.top) == 0


def test_redraws_at_most_twenty_times_a_second() -> None:
    terminal = FakeTerminal()
    words = words_of("word " * 200)
    clock = Clock(tick=0.0)

    def advance(index: int) -> None:
        clock.now += 0.001

    events = list(apd_events(words))
    show(words.state(), events, terminal, clock=clock, each=advance)
    redraws = terminal.sent.count("\x1b[?2026h")
    assert redraws <= len(events) * 0.001 / REDRAW_S + 2
    assert terminal.rows() == typed(worded("word " * 200, 80), 80, 24)


def test_every_redraw_is_synchronized() -> None:
    terminal = FakeTerminal()
    words = words_of(ENGLISH)
    show(words.state(), apd_events(words), terminal)
    outside = re.sub(r"\x1b\[\?2026h.*?\x1b\[\?2026l", "", terminal.sent, flags=re.S)
    assert outside == "\x1b[?25l\x1b[?25h"


def test_without_colour_the_steps_alternate_in_underlining() -> None:
    terminal = FakeTerminal()
    words = Vocabulary([b"one", b"two", b"three"])
    events = [step(n + 1, [(n, n)]) for n in range(3)]
    show(words.state(), [*events, finished(3)], terminal, environ=NO_COLOUR)
    row = terminal.screen.buffer[0]
    assert [row[x].underscore for x in range(11)] == [False] * 3 + [True] * 3 + [False] * 5
    assert "38;" not in terminal.sent
    assert not re.search(r"\x1b\[[\d;]*3\d", terminal.sent)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_text_and_the_cursor(error: type[BaseException]) -> None:
    terminal = FakeTerminal()
    words = words_of(ENGLISH, 4)
    state = words.state()

    def interrupt(index: int) -> None:
        if index == 8:
            raise error

    with pytest.raises(error):
        show(state, apd_events(words), terminal, each=interrupt)
    assert terminal.rows() == typed(worded(state.text, 80), 80, 24)
    assert ENGLISH.startswith(state.text)
    assert len(state.text) > 10
    assert not terminal.screen.cursor.hidden


def test_an_interruption_while_it_ends_still_shows_the_cursor(monkeypatch) -> None:
    terminal = FakeTerminal()
    words = words_of("some text")
    state = words.state()

    def close() -> None:
        raise KeyboardInterrupt

    def interrupted() -> None:
        with LiveView(state, Terminal(terminal, terminal.size, COLOUR, Clock())):
            monkeypatch.setattr(state, "close", close)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not terminal.screen.cursor.hidden


def test_a_terminal_that_is_gone_is_not_written_to_again() -> None:
    class Gone(FakeTerminal):
        gone = False

        def write(self, text: str) -> int:
            if self.gone:
                raise OSError(5, "Input/output error")
            return super().write(text)

    terminal = Gone()
    words = words_of("some text")

    def hang_up(index: int) -> None:
        terminal.gone = index >= 1

    with pytest.raises(OSError, match="Input/output"):
        show(words.state(), apd_events(words), terminal, each=hang_up)


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_summary_goes_to_the_other_stream() -> None:
    terminal, err = FakeTerminal(), io.StringIO()
    words = words_of("some text")
    show(words.state(), apd_events(words), terminal, summary_to=err)
    assert re.fullmatch(
        r"\d+ tokens in \d+ steps · [\d.]+ tokens/step · [\d.]+ tokens/s · [\d.]+ s · stop\n",
        err.getvalue(),
    )
    assert "tokens in" not in terminal.sent
    err = Tty()
    show(words.state(), apd_events(words), FakeTerminal(), summary_to=err)
    assert re.fullmatch(r"\x1b\[38;5;244m\d+ tokens in .* · stop\x1b\[0m\n", err.getvalue())


def test_a_terminal_made_wider_or_taller_on_the_way() -> None:
    lines = "".join(f"line {n} of the text\n" for n in range(60))
    terminal = FakeTerminal(30, 8)
    words = words_of(lines)

    def resize(index: int) -> None:
        if index == 10:
            terminal.resize(50, 8)
        if index == 20:
            terminal.resize(100, 20)
        if index == 30:
            terminal.resize(40, 20)

    show(words.state(), apd_events(words), terminal, each=resize)
    rows = [row for row in terminal.rows() if row]
    assert rows == lines.splitlines()


@pytest.mark.parametrize("environ", [{"TMUX": "x"}, {"TERM": "screen-256color"}], ids=str)
def test_where_resizes_are_told_late_nothing_is_drawn_before_they_are_over(environ) -> None:
    words, terminal, clock = words_of(ENGLISH), FakeTerminal(60, 12), Clock(tick=0.0)
    target = Terminal(terminal, terminal.size, COLOUR | environ, clock, lambda s: clock.pass_(s))
    state, events = words.state(), list(apd_events(words))
    with LiveView(state, target) as view:
        for event in events[:4]:
            clock.pass_(0.1)
            view(event)
        terminal.resize(50, 10)
        before = terminal.sent
        for event in events[4:6]:
            clock.pass_(0.1)
            view(event)  # noticed at the first of them
        terminal.resize(40, 10)  # and another
        for event in events[6:9]:
            clock.pass_(0.1)
            view(event)
        assert terminal.sent == before
        clock.pass_(0.15)
        view(events[9])
        assert terminal.sent != before
        terminal.resize(60, 10)  # at the end it is waited for
        before, began = terminal.sent, clock.now
        for event in events[10:]:
            view(event)
        assert terminal.sent == before
    assert 0.3 <= clock.now - began < 0.5
    assert terminal.sent.endswith("\x1b[?25h")
    terminal = FakeTerminal(60, 12)
    show(words.state(), events, terminal, environ=COLOUR | environ)  # without any: as ever
    assert terminal.rows() == typed(worded(ENGLISH, 60), 60, 12)


def test_the_event_stream_is_only_read() -> None:
    words = words_of(ENGLISH)
    events = list(apd_events(words))
    before = repr(events)
    show(words.state(), events, FakeTerminal())
    assert repr(events) == before
