"""The report of the evaluation, from made-up answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from apdcli.demo.calibration import Seen
from apdcli.demo.corpus import FAMILIES
from apdcli.demo.evaluate import SETTINGS, chosen_families, parser
from apdcli.demo.tables import markdown, save_card
from apdcli.errors import UsageError


def made_up() -> dict[str, Any]:
    def given(rights: list[bool], steps: int) -> list[dict[str, Any]]:
        return [
            {"family": f, "right": r, "text": "", "tokens": 20, "steps": steps, "seconds": 0.5}
            for f, r in zip(("copy", "copy", "sort", "sort"), rights, strict=True)
        ]

    return {
        "split": "test", "seed": 0, "per_family": 2, "prompts": 4, "lookahead": 32, "machine": "m",
        "versions": {"torch": "t"},
        "answers": {
            "one token a step": given([True, True, True, False], 20),
            "APD R = 0.5": given([True, False, True, False], 5),
        },
    }  # fmt: skip


def test_report_has_accuracy_difference_and_tokens_a_step() -> None:
    text = markdown(made_up())
    assert "| one token a step | 75.0 (30.1 to 95.4) | - | 1.00 | 20.0 | 40 |" in text
    assert "| APD R = 0.5 | 50.0 (15.0 to 85.0) | -25.0 (-85.0 to +57.9) | 4.00 |" in text
    assert "| copy | 2 | 100 (34 to 100) | 50 |" in text


def test_card_holds_the_report_and_keeps_what_people_wrote(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    save_card(tmp_path, "What was measured", markdown(made_up()))
    card = path.read_text(encoding="utf-8")
    assert card.startswith("# The embedded pair\n")
    assert "| APD R = 0.5 |" in card
    path.write_text(card.replace("## How it was made\n", "## How it was made\nBy hand.\n"))
    save_card(tmp_path, "In a conversation", "first\n")
    save_card(tmp_path, "What was measured", "nothing\n")
    save_card(tmp_path, "In a conversation", "second\n")
    card = path.read_text(encoding="utf-8")
    assert "\nBy hand.\n" in card
    assert card.endswith("\n\n## What was measured\nnothing\n\n## In a conversation\nsecond\n")


def test_every_setting_of_the_promised_table_is_there() -> None:
    names = [name for name, _ in SETTINGS]
    assert names[0] == "one token a step"
    assert [f"APD R = {r}" for r in (0.1, 0.3, 0.5, 0.7, 0.9)] == names[1:6]
    assert [f"left to right K = {k}" for k in (2, 4, 8)] == names[6:9]
    assert names[9:] == ["verifier alone"]
    assert parser().parse_args([]).split == "test"


def test_families_are_chosen_by_name_and_unknown_ones_refused() -> None:
    assert chosen_families("all") == list(FAMILIES)
    assert chosen_families("copy,sort") == ["copy", "sort"]
    assert set(chosen_families(None)) <= set(FAMILIES)
    with pytest.raises(UsageError, match="unknown family 'x'"):
        chosen_families("copy,x")


def test_seen_counts_hits() -> None:
    seen = Seen()
    seen.add(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), [0, 0])
    summary = seen.summary()
    assert summary["positions"] == 2
    assert summary["accuracy"] == 0.5
    assert abs(summary["ece"] - (0.1 + 0.6) / 2) < 1e-6
