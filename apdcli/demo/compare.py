"""Decoding strategies side by side on the demo corpus: `python -m apdcli.demo.compare --help`.

Every strategy answers the same prompts with the same denoiser, greedily; what counts is accuracy
against forward passes of the denoiser.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from apdcli.demo.corpus import probes
from apdcli.demo.evaluate import Answer, Table, chosen_families, evaluate
from apdcli.demo.metrics import paired_difference, wilson

REFERENCE = "threshold 0.9"
LISTS = ("copy", "reverse", "sort", "remove", "count")
STRATEGIES: Table = (
    (REFERENCE, {"strategy": "threshold"}),
    ("one token a step", {"strategy": "left_to_right", "k": 1}),
    ("factor", {"strategy": "factor"}),
    ("entropy_bound", {"strategy": "entropy_bound"}),
    ("dico", {"strategy": "dico"}),
    *((f"apd R = {r}", {"strategy": "apd", "mixture_weight": r}) for r in (0.3, 0.5, 0.9)),
)
# The ablations of the DiCo paper: guidance off, margin off, more or fewer seeds.
ABLATION: Table = (
    (REFERENCE, {"strategy": "threshold"}),
    ("dico", {"strategy": "dico"}),
    ("dico, no guidance", {"strategy": "dico", "guidance": False}),
    # No logit margin is ever above this one.
    ("dico, no margin", {"strategy": "dico", "margin": 1e9}),
    *((f"dico, {n} seeds", {"strategy": "dico", "seeds": n}) for n in (2, 6, 8, 10)),
)


def row(name: str, answers: Sequence[Answer], reference: Sequence[Answer]) -> list[str]:
    """One strategy's cells: accuracy, paired difference, forwards a prompt, speed."""
    count, right = len(answers), sum(a.right for a in answers)
    low, high = wilson(right, count)
    difference = "-"
    if name != REFERENCE:
        pairs = [a.right for a in reference], [a.right for a in answers]
        change, least, most = (100 * x for x in paired_difference(*pairs))
        difference = f"{change:+.1f} ({least:+.1f} to {most:+.1f})"
    forwards = sum(a.denoiser_forwards for a in answers)
    tokens = sum(a.tokens for a in answers)
    lists = [a.right for a in answers if a.family in LISTS]
    return [
        name,
        f"{100 * right / count:.1f} ({100 * low:.1f} to {100 * high:.1f})",
        difference,
        f"{100 * sum(lists) / len(lists):.1f}" if lists else "-",
        f"{forwards / count:.2f}",
        f"{sum(a.verifier_forwards for a in answers) / count:.2f}",
        f"{tokens / forwards:.2f}" if forwards else "-",
        f"{tokens / sum(a.seconds for a in answers):.0f}",
    ]


HEAD = (
    "strategy", "accuracy, % (95 %)", "against threshold 0.9, points (95 %)", "on lists, %",
    "denoiser forwards a prompt", "verifier forwards a prompt", "tokens a denoiser forward",
    "tokens/s",
)  # fmt: skip


def markdown(results: Mapping[str, Sequence[Answer]]) -> str:
    """The table, one row a strategy."""
    rows = [row(name, answers, results[REFERENCE]) for name, answers in results.items()]
    lines = [HEAD, ["---"] * len(HEAD), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m apdcli.demo.compare", description=__doc__)
    made.add_argument("--profile", default="demo", help="a profile's name, or a path to a .toml")
    made.add_argument("--ablation", action="store_true", help="DiCo's parts instead")
    made.add_argument("--per-family", type=int, default=40, help="different prompts of each family")
    made.add_argument("--max-tokens", type=int, default=64, help="length of the response")
    made.add_argument("--seed", type=int, default=0, help="which prompts are drawn")
    made.add_argument("--jobs", type=int, default=2, help="processes, of one thread each")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure and print the table on stdout, status 0."""
    options = parser().parse_args(argv)
    families = chosen_families(None)
    examples = [e for e in probes(options.seed, "test", options.per_family) if e.family in families]
    chosen = ABLATION if options.ablation else STRATEGIES
    limit: dict[str, Any] = {"max_tokens": options.max_tokens}
    table = [(name, {**settings, **limit}) for name, settings in chosen]
    results = evaluate(options.profile, examples, table, options.jobs, threads=1)
    sys.stdout.write(
        f"{len(examples)} prompts of the test split, greedy, {options.max_tokens} tokens at most, "
        f"{platform.machine()}, {options.jobs} processes\n\n{markdown(results)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
