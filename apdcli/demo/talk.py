"""How right a pair stays as a conversation grows: `python -m apdcli.demo.talk --help`.

The last question is of the test split and judged by its family's checker; other questions of the
same split, with right answers, come before it.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

import apdcli
from apdcli.demo.corpus import Example, conversations
from apdcli.demo.evaluate import Answer, chosen_families, chosen_settings, evaluate
from apdcli.demo.tables import percent, save_card, table

EARLIER = (0, 1, 2, 4, 8, 12, 16)
INTRODUCTION = """\
Made by `python -m apdcli.demo.talk`: the last question is judged; other questions of the test
split, with right answers, came before it.

"""
SETTINGS = ("one token a step", "APD R = 0.5", "verifier alone")


def markdown(
    lengths: Mapping[int, float], results: Mapping[str, Sequence[Answer]], count: int
) -> str:
    """One row for each number of earlier exchanges, one column for each setting.

    Args:
        lengths: mean tokens of the prompts, by earlier exchanges.
        results: for each setting `count` answers of each of `lengths`, in its order.
        count: prompts of each.
    """
    rows = []
    for at, (earlier, tokens) in enumerate(lengths.items()):
        row = [str(earlier), f"{tokens:.0f}"]
        for answers in results.values():
            own = answers[at * count : (at + 1) * count]
            row.append(percent(sum(answer.right for answer in own), count))
        rows.append(row)
    return table(("questions before", "prompt, tokens", *results), rows)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m apdcli.demo.talk", description=__doc__)
    made.add_argument("--profile", default="demo", help="a profile's name, or a path to a .toml")
    made.add_argument("--split", choices=("train", "tune", "test"), default="test")
    made.add_argument("--prompts", type=int, default=140, help="for each number of questions")
    made.add_argument("--seed", type=int, default=0, help="which prompts are drawn")
    made.add_argument("--earlier", default=",".join(map(str, EARLIER)), help="questions before")
    made.add_argument("--lookahead", type=int, default=32, help="M")
    made.add_argument("--jobs", type=int, default=2, help="processes")
    made.add_argument("--threads", type=int, default=1, help="threads of each process")
    made.add_argument("--card", type=Path, help="put it into the model card of this folder")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print a markdown table on stdout, status 0."""
    options = parser().parse_args(argv)
    families = chosen_families(None)
    pair = apdcli.load_pair(options.profile)
    drawn: dict[int, list[Example]] = {
        earlier: conversations(options.seed, options.split, options.prompts, earlier, families)
        for earlier in map(int, options.earlier.split(","))
    }
    lengths = {
        earlier: statistics.fmean(len(pair.prompt_ids(list(e.messages))) for e in examples)
        for earlier, examples in drawn.items()
    }
    asked = [example for examples in drawn.values() for example in examples]
    settings = chosen_settings(SETTINGS, options.lookahead)
    results = evaluate(options.profile, asked, settings, options.jobs, options.threads)
    text = (
        f"{options.prompts} prompts of the {options.split} split in each row, greedy, drawn with "
        f"seed {options.seed}; accuracy in % (95 %); {platform.machine()}, torch "
        f"{torch.__version__}.\n\n" + markdown(lengths, results, options.prompts)
    )
    sys.stdout.write(text)
    if options.card:
        save_card(options.card, "In a conversation", INTRODUCTION + text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
