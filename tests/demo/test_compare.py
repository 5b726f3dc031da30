"""The comparison of strategies: its rows, and that every strategy of its tables runs."""

from __future__ import annotations

import pytest

from apdcli.decode.params import make_params
from apdcli.demo.compare import ABLATION, HEAD, REFERENCE, STRATEGIES, markdown, row
from apdcli.demo.evaluate import Answer, Table, chosen_settings


def answer(family: str, right: bool, denoiser: int, verifier: int = 0) -> Answer:
    return Answer(family, right, "", 12, denoiser, 0.5, denoiser, verifier)


def test_a_row_counts_forwards_a_prompt_and_lists_apart() -> None:
    reference = [answer("copy", True, 4), answer("sums", False, 8)]
    better = [answer("copy", True, 2, 1), answer("sums", True, 4, 2)]
    cells = row("other", better, reference)
    assert len(cells) == len(HEAD)
    assert cells[1].startswith("100.0 (")
    assert cells[2].startswith("+50.0 (")
    assert cells[3:] == ["100.0", "3.00", "1.50", "4.00", "24"]
    assert row(REFERENCE, reference, reference)[1:4:2] == [
        row("x", reference, reference)[1],
        "100.0",
    ]
    text = markdown({REFERENCE: reference, "other": better})
    assert text.count("\n") == 4


@pytest.mark.parametrize("table", [STRATEGIES, ABLATION])
def test_every_setting_of_the_tables_is_in_range(table: Table) -> None:
    for _, settings in table:
        values = {**settings, "max_tokens": 64}
        make_params(values.pop("strategy"), **values)


def test_lookahead_goes_where_there_is_one() -> None:
    table = dict(chosen_settings(["one token a step", "verifier alone"], 16))
    assert table["one token a step"]["max_lookahead"] == 16
    assert "max_lookahead" not in table["verifier alone"]
