"""Tables as wide as the terminal: nothing is cut, and nothing is lost at any width."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apdcli.bench.units import markdown
from apdcli.cli.context import Context
from apdcli.cli.tables import Page, Sheet, _broken, _pieces, column_widths, show_markdown
from apdcli.render.text import width
from tests.cli.conftest import Stream

HEADS = ("setting", "tokens/s", "x the first", "peak")
ROWS = [
    ["apd:R=0.5,M=32", "1,234 (1,200–1,300)", "2.50 (2.00–3.00)", "300 MB"],
    ["left_to_right", "100 (99–101)", "1.00", "1.20 GB"],
]


def shown(sheet: Sheet | str, columns: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a terminal of that width gets, without colours."""
    monkeypatch.setattr("apdcli.cli.tables.stream_size", lambda _: lambda: (columns, 24))
    out = Stream(terminal=True)
    context = Context(None, out, None, {"TERM": "xterm-256color"})
    if isinstance(sheet, str):
        show_markdown(sheet, context)
    else:
        Page(context).sheet(sheet)
    return re.sub(r"\x1b\[\d*m", "", out.bytes().decode()).splitlines()


def test_where_there_is_room_it_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.rstrip() for line in shown(Sheet(HEADS, ROWS), 80, monkeypatch)]
    assert lines[0].split() == ["setting", "tokens/s", "x", "the", "first", "peak"]
    assert set(lines[1]) == {"─"}
    assert lines[2] == "apd:R=0.5,M=32  1,234 (1,200–1,300)  2.50 (2.00–3.00)   300 MB"
    assert lines[3] == "left_to_right          100 (99–101)              1.00  1.20 GB"


def test_where_there_is_less_it_is_turned_then_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.rstrip() for line in shown(Sheet(HEADS, ROWS), 50, monkeypatch)]
    assert lines[0] == "setting           apd:R=0.5,M=32  left_to_right"
    assert lines[2] == "tokens/s     1,234 (1,200–1,300)   100 (99–101)"
    lines = [line.rstrip() for line in shown(Sheet(HEADS, ROWS), 42, monkeypatch)]
    assert lines[0] == "setting      apd:R=0.5,M=32  left_to_right"
    assert lines[2] == "tokens/s              1,234   100 (99–101)"
    assert lines[3] == "              (1,200–1,300)"


def test_where_there_is_none_each_row_is_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line.rstrip() for line in shown(Sheet(HEADS, ROWS), 34, monkeypatch)]
    assert lines[:5] == [
        "setting: apd:R=0.5,M=32",
        "  tokens/s     1,234 (1,200–1,300)",
        "  x the first  2.50 (2.00–3.00)",
        "  peak         300 MB",
        "",
    ]
    assert shown(Sheet((), [("accuracy", "1 % to 2 %")]), 9, monkeypatch)[0] == "accuracy:"


@pytest.mark.parametrize("columns", [20, 34, 42, 50, 64, 80, 200])
def test_nothing_is_lost_and_nothing_is_too_wide(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(Sheet(HEADS, ROWS), columns, monkeypatch)
    assert max(map(width, lines)) <= columns
    letters = "".join("".join(line.split()) for line in lines)
    for cell in (*HEADS, *ROWS[0], *ROWS[1]):
        for piece in _pieces(cell):
            assert piece.strip() in letters


def test_texts_stay_around_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    again = f"Again: apd bench --strategies {','.join(['apd'] * 30)}"
    text = f"a head of [bold]five[/bold] words\n\n{markdown(HEADS, ROWS)}\nfoot\n{again}\n"
    lines = [line.rstrip() for line in shown(text, 80, monkeypatch)]
    assert lines[:2] == ["a head of [bold]five[/bold] words", ""]
    assert lines[2].startswith("setting ")
    assert lines[-3:] == ["", "foot", again]
    assert shown("a head of five words", 12, monkeypatch) == ["a head of ", "five words"]


def test_a_cell_with_a_bar_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    text = markdown(("setting", "n"), [["a|b", "1"], ["a || b", "\x1b]0;x\x07"]])
    assert shown(text, 80, monkeypatch)[2].split() == ["a|b", "1"]
    assert "\x1b]" not in "".join(shown(text, 80, monkeypatch))
    odd = markdown(("setting", "n"), [["a | b", "1"]])  # one cell more than there are heads
    assert shown(odd, 80, monkeypatch) == odd.splitlines()


TEXTS = st.text(st.sampled_from("ab1,.= 漢"), max_size=12)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=4), st.integers(1, 60))
def test_widths_cut_nothing(rows: list[tuple[str, str, str]], room: int) -> None:
    sheet = Sheet(("one", "two", "three"), rows)
    widths = column_widths(sheet, room)
    if widths is None:
        return
    assert sum(widths) + 4 <= room
    for row in sheet.lines:
        for cell, size in zip(row, widths, strict=True):
            broken = _broken(cell, size).split("\n")
            assert max(map(width, broken)) <= size or not cell.strip()
            assert "".join("".join(broken).split()) == "".join(cell.split())
