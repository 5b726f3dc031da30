"""The table of what formats cost, from made-up answers."""

from __future__ import annotations

from dataclasses import dataclass

from apdcli.demo.metrics import paired_difference
from apdcli.demo.quantization import FORMATS, markdown, name_of, quantized_rows


@dataclass(frozen=True)
class Made:
    right: bool
    text: str
    tokens: int = 6
    steps: int = 2


def test_the_rows_are_every_setting_in_every_format() -> None:
    rows = quantized_rows([("a", {"k": 1}), ("b", {})])
    assert [name for name, _ in rows] == [name_of(s, f) for s in "ab" for f in FORMATS]
    assert rows[1] == ("a, int8", {"k": 1, "quantize": "int8"})


def test_the_table() -> None:
    exact = [Made(True, str(i)) for i in range(8)] + [Made(False, "no")] * 2
    eight = [*exact[:7], Made(False, "7?"), *exact[8:]]
    four = [Made(True, "6", tokens=3)] * 10
    results = dict(zip((name_of("s", f) for f in FORMATS), (exact, eight, four), strict=True))
    text = markdown(["s"], results, {"none": 12_000_000, "int8": 4_000_000, "int4": 3_250_000})
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()][2:]
    assert [row[:3] for row in rows] == [
        ["s", "none", "12.00"],
        ["s", "int8", "4.00"],
        ["s", "int4", "3.25"],
    ]
    assert [row[3].split()[0] for row in rows] == ["80.0", "70.0", "100.0"]
    _, low, high = paired_difference([a.right for a in exact], [a.right for a in eight])
    assert [row[4] for row in rows[:2]] == ["-", f"-10.0 ({100 * low:+.1f} to {100 * high:+.1f})"]
    assert rows[2][4].startswith("+20.0 (")
    assert [row[5] for row in rows] == ["-", "90.0", "10.0"]
    assert [row[6] for row in rows] == ["3.00", "3.00", "1.50"]
