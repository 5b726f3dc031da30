"""The quality table of a pair on the demo corpus: `python -m apdcli.demo.evaluate --help`.

Every setting answers the same prompts of one split, greedily; the corpus' exact checkers judge.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

import apdcli
from apdcli.demo import quantization
from apdcli.demo.calibration import calibrate
from apdcli.demo.corpus import FAMILIES, Example, check, probes
from apdcli.demo.tables import markdown, save_card
from apdcli.engine.device import flush_subnormals
from apdcli.errors import UsageError

PAIR = Path(__file__).parent / "pair"
MAX_TOKENS = 96  # no reference answer of the corpus is longer than 70
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one token a step", {"strategy": "left_to_right", "k": 1}),
    *(
        (f"APD R = {r}", {"strategy": "apd", "mixture_weight": r})
        for r in (0.1, 0.3, 0.5, 0.7, 0.9)
    ),
    *((f"left to right K = {k}", {"strategy": "left_to_right", "k": k}) for k in (2, 4, 8)),
    ("verifier alone", {"strategy": "autoregressive"}),
)
MEASURED = """\
Made by `python -m apdcli.demo.evaluate`. No prompt of the test split was seen in training: the
splits are made by a hash of the prompt. Intervals are 95 % (Wilson; paired for differences).

"""
# What the pair was not trained to the end on is measured too, shortly.
QUANTIZED_SETTINGS = ("one token a step", "APD R = 0.5")
OUTSIDE_SETTINGS, OUTSIDE_PER_FAMILY = ("one token a step", "verifier alone"), 25


@dataclass(frozen=True)
class Answer:
    """One prompt under one setting."""

    family: str
    right: bool
    text: str
    tokens: int
    steps: int
    seconds: float
    denoiser_forwards: int
    verifier_forwards: int


Table = Sequence[tuple[str, dict[str, Any]]]


def answer_all(
    profile: str, settings: dict[str, Any], examples: Sequence[Example], threads: int
) -> list[Answer]:
    """Answer the examples in order with one freshly loaded pair.

    Args:
        settings: of `apdcli.generate`; "quantize" among them is of `apdcli.load_pair`.
    """
    torch.set_num_threads(threads)
    settings = dict(settings)
    pair = apdcli.load_pair(profile, quantize=settings.pop("quantize", None))
    flush_subnormals(pair.device)
    made = []
    for example in examples:
        given = {"max_tokens": MAX_TOKENS, "temperature": 0.0, **settings}
        done = apdcli.generate(pair, list(example.messages), **given)
        usage = done.usage
        made.append(
            Answer(
                family=example.family,
                right=check(example, done.text),
                text=done.text,
                tokens=len(done.token_ids),
                steps=usage.steps,
                seconds=usage.seconds,
                denoiser_forwards=usage.denoiser_forwards,
                verifier_forwards=usage.verifier_forwards,
            )
        )
    return made


def evaluate(
    profile: str,
    examples: Sequence[Example],
    table: Table,
    jobs: int,
    threads: int,
) -> dict[str, list[Answer]]:
    """The answers of each setting of the table by its name, in the examples' order."""
    results: dict[str, list[Answer]] = {}
    # Stripes, so that every process gets its share of each family.
    stripes = [list(examples[i::jobs]) for i in range(jobs)]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for name, settings in table:
            began = time.monotonic()
            parts = list(
                pool.map(answer_all, [profile] * jobs, [settings] * jobs, stripes, [threads] * jobs)
            )
            answers = [parts[i % jobs][i // jobs] for i in range(len(examples))]
            results[name] = answers
            right = sum(a.right for a in answers)
            steps = sum(a.steps for a in answers)
            sys.stderr.write(
                f"{name}: {right}/{len(answers)} right, "
                f"{sum(a.tokens for a in answers) / steps:.2f} tokens a step, "
                f"{time.monotonic() - began:.0f} s\n"
            )
    return results


def chosen_settings(names: Sequence[str], lookahead: int | None) -> Table:
    """The named rows of SETTINGS, with M = lookahead where the strategy has one."""
    return [
        (
            name,
            settings
            if lookahead is None or settings["strategy"] == "autoregressive"
            else {**settings, "max_lookahead": lookahead},
        )
        for name, settings in SETTINGS
        if name in names
    ]


def chosen_families(text: str | None) -> list[str]:
    """The families to ask about; UsageError names the known ones."""
    if text is None:
        world = json.loads((PAIR / "world.json").read_text(encoding="utf-8"))
        return [str(name) for name in world["families"]]
    names = list(FAMILIES) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise UsageError(f"unknown family {unknown[0]!r}; known: {', '.join(FAMILIES)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m apdcli.demo.evaluate", description=__doc__)
    made.add_argument("--profile", default="demo", help="a profile's name, or a path to a .toml")
    made.add_argument("--split", choices=("train", "tune", "test"), default="test")
    made.add_argument("--per-family", type=int, default=50, help="different prompts of each family")
    made.add_argument("--seed", type=int, default=0, help="which prompts are drawn")
    made.add_argument("--jobs", type=int, default=2, help="processes")
    made.add_argument("--threads", type=int, default=1, help="threads of each process")
    made.add_argument(
        "--families", help="comma-separated, or 'all'; by default those of the shipped pair's world"
    )
    made.add_argument("--lookahead", type=int, help="M of all settings but the verifier alone")
    made.add_argument("--settings", help="only these, comma-separated, by the table's names")
    made.add_argument("--wrong", type=int, default=0, help="show up to N wrong answers of each")
    made.add_argument(
        "--quantization",
        action="store_true",
        help="instead: what int8 and int4 weights cost, by one token a step and by APD",
    )
    made.add_argument("--no-calibration", action="store_true")
    made.add_argument("--json", type=Path, help="write everything measured to this file")
    made.add_argument("--card", type=Path, help="write a model card into this folder's README.md")
    return made


def main(argv: list[str] | None = None) -> int:
    """Measure, print the markdown tables on stdout, status 0."""
    options = parser().parse_args(argv)
    families = chosen_families(options.families)
    examples = [
        e for e in probes(options.seed, options.split, options.per_family) if e.family in families
    ]
    names = options.settings.split(",") if options.settings else [name for name, _ in SETTINGS]
    if options.quantization:
        return _quantization(options, examples)
    table = chosen_settings(names, options.lookahead)
    results = evaluate(options.profile, examples, table, options.jobs, options.threads)
    for name, answers in results.items():
        wrong = [pair for pair in zip(examples, answers, strict=True) if not pair[1].right]
        for example, answer in wrong[: options.wrong]:
            prompt = " / ".join(m["content"] for m in example.messages)
            sys.stderr.write(f"[{name}] {example.family}: {prompt!r} -> {answer.text!r}\n")
    measured: dict[str, Any] = {
        "split": options.split,
        "seed": options.seed,
        "per_family": options.per_family,
        "prompts": len(examples),
        "families": families,
        "lookahead": options.lookahead or "as in the profile",
        "machine": f"{platform.machine()}, {options.jobs} processes x {options.threads} threads",
        "versions": {"apdcli": apdcli.__version__, "torch": torch.__version__},
        "answers": {name: [asdict(a) for a in answers] for name, answers in results.items()},
    }
    outside = [name for name in FAMILIES if name not in families]
    if options.families is None and options.settings is None and outside:
        asked = [
            e
            for e in probes(options.seed, options.split, OUTSIDE_PER_FAMILY)
            if e.family in outside
        ]
        table = chosen_settings(OUTSIDE_SETTINGS, options.lookahead)
        given = evaluate(options.profile, asked, table, options.jobs, options.threads)
        measured["outside"] = {
            name: [asdict(a) for a in answers] for name, answers in given.items()
        }
    if not options.no_calibration:
        pair = apdcli.load_pair(options.profile)
        measured["calibration"] = calibrate(pair, examples)
    text = markdown(measured)
    sys.stdout.write(text)
    if options.json:
        options.json.write_text(json.dumps(measured) + "\n", encoding="utf-8")
    if options.card:
        save_card(options.card, "What was measured", MEASURED + text)
    return 0


def _quantization(options: argparse.Namespace, examples: Sequence[Example]) -> int:
    """The table of formats of weights instead."""
    table = quantization.quantized_rows(chosen_settings(QUANTIZED_SETTINGS, options.lookahead))
    results = evaluate(options.profile, examples, table, options.jobs, options.threads)
    sizes = quantization.held(options.profile)
    sys.stdout.write(
        f"{len(examples)} prompts of the {options.split} split, greedy, drawn with seed "
        f"{options.seed}; {platform.machine()}, torch {torch.__version__}, torchao "
        f"{metadata.version('torchao')}.\n\n"
        + quantization.markdown(QUANTIZED_SETTINGS, results, sizes)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
