"""What `evaluate` measured, as markdown: the tables of the README and of the model card."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apdcli.demo.metrics import paired_difference, wilson

ONE_A_STEP = "one token a step"


def percent(right: int, total: int) -> str:
    """A share in %, with its 95 % interval."""
    low, high = wilson(right, total)
    return f"{100 * right / total:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def overall(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row for each setting: accuracy, difference to one token a step, tokens a step, length."""
    base = [a["right"] for a in answers.get(ONE_A_STEP, ())]
    rows = []
    for name, given in answers.items():
        tokens, steps = sum(a["tokens"] for a in given), sum(a["steps"] for a in given)
        right = [a["right"] for a in given]
        difference = "-"
        if base and name != ONE_A_STEP:
            change, low, high = (100 * x for x in paired_difference(base, right))
            difference = f"{change:+.1f} ({low:+.1f} to {high:+.1f})"
        rows.append(
            [
                name, percent(sum(right), len(right)), difference, f"{tokens / steps:.2f}",
                f"{tokens / len(given):.1f}", f"{tokens / sum(a['seconds'] for a in given):.0f}",
            ]
        )  # fmt: skip
    head = (
        "setting", "accuracy, % (95 %)", "against one a step, points (95 %)", "tokens a step",
        "mean answer, tokens", "tokens/s",
    )  # fmt: skip
    return table(head, rows)


def by_family(answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row for each family, one column for each setting; intervals for one token a step."""
    families: list[str] = []
    for given in answers.values():
        families += [f for f in dict.fromkeys(a["family"] for a in given) if f not in families]
    rows = []
    for family in families:
        cells = [family]
        for name, given in answers.items():
            right = [a["right"] for a in given if a["family"] == family]
            share = f"{100 * sum(right) / len(right):.0f}"
            if name == ONE_A_STEP:
                low, high = wilson(sum(right), len(right))
                cells += [str(len(right)), f"{share} ({100 * low:.0f} to {100 * high:.0f})"]
            else:
                cells.append(share)
        rows.append(cells)
    heads = ["family"]
    for name in answers:
        heads += ["prompts", name] if name == ONE_A_STEP else [name]
    return table(heads, rows)


def calibration(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Expected calibration error, then the reliability curves bin by bin."""
    names = {
        "denoiser_next": "denoiser, next position",
        "denoiser_lookahead": "denoiser, 16 positions ahead",
        "verifier_next": "verifier, next position",
    }
    rows = [
        [title, f"{m['positions']:,}", f"{100 * m['accuracy']:.1f}", f"{100 * m['ece']:.1f}"]
        for key, title in names.items()
        if (m := measured.get(key))
    ]
    text = table(("model", "positions", "accuracy, %", "calibration error, points"), rows) + "\n"
    curve_rows = []
    for key, title in names.items():
        for b in measured.get(key, {}).get("curve", ()):
            curve_rows.append(
                [
                    title, f"{b['low']:.1f} to {b['high']:.1f}", f"{b['count']:,}",
                    f"{100 * b['confidence']:.1f}", f"{100 * b['accuracy']:.1f}",
                ]
            )  # fmt: skip
    head = ("model", "confidence", "positions", "mean confidence, %", "accuracy, %")
    return text + table(head, curve_rows)


def markdown(measured: Mapping[str, Any]) -> str:
    """The whole report."""
    answers = measured["answers"]
    text = (
        f"{measured['prompts']} prompts of the {measured['split']} split, up to "
        f"{measured['per_family']} of each family, greedy, drawn with seed {measured['seed']}; "
        f"M {measured['lookahead']}; "
        f"{measured['machine']}, torch {measured['versions']['torch']}.\n\n"
    )
    text += overall(answers) + "\nPer family, accuracy in %:\n\n" + by_family(answers)
    if "outside" in measured:
        text += "\nFamilies of the corpus that this pair was not trained to the end on:\n\n"
        text += by_family(measured["outside"])
    if "calibration" in measured:
        text += "\nCalibration:\n\n" + calibration(measured["calibration"])
    return text


def save_card(folder: Path, heading: str, text: str) -> None:
    """Put `text` under `## heading` in the folder's model card; other sections stay as they are.

    A folder without a card gets one that says what such a pair is and how it is made.
    """
    path = folder / "README.md"
    card = path.read_text(encoding="utf-8") if path.exists() else CARD
    section = f"## {heading}\n{text.rstrip()}\n"
    parts = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    places = [at for at, part in enumerate(parts) if part.startswith(f"## {heading}\n")]
    if places:
        last = places[0] == len(parts) - 1
        parts[places[0]] = section if last else section + "\n"
    else:
        parts += ["\n" + section]
    path.write_text("".join(parts), encoding="utf-8")


CARD = """# The embedded pair

Two very small models trained by this project on text that this project's own program writes:
`denoiser` (Dream layout: bidirectional, masked, outputs shifted by one) and `verifier` (Qwen2
layout, causal), with one byte-level BPE tokenizer. They exist so that `apd` can be tried, tested
and measured without a download. Licence: Apache-2.0, as the rest of the project.

## What it can do
Small sums in words or in signs, word problems with worked steps, sequences; copy, reverse, sort,
remove and count in lists of three to six items out of 40 words (sort: or numbers up to 30, as they
are typed in a hurry); weekdays and months a few steps away; units; small Python functions from a
docstring; small stories whose facts stay consistent; short chat that refers to an earlier turn.
`world.json` names these families. The corpus has five more (replace and insert in lists, look-ups
of who has what, comparisons of numbers, counting up to a number) which this pair was not trained to
the end on, because two CPU cores did not get them right in the time there was.
To anything else it answers that it does not know, in one fixed sentence. It knows nothing of the
real world and is of no use outside this small one.

## How it was made
`python -m apdcli.demo.train` (preset `cpu`, seed 0) writes the corpus, trains the tokenizer and
both models and saves these folders. The denoiser is pre-trained causally and then adapted to
masks, alone and in conversations. The numbers of the recipe are in `apdcli/demo/recipe.py`; the
mixture of families was chosen by earlier runs and the tuning split (never by the test split).
`--preset gpu` trains a pair five times larger on all families; it has not been run.
"""
