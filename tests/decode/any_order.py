"""What the any-order tests share: the golden cases in our names, and a denoiser with a script.

Run as a program it decodes the golden cases of the strategies named and prints those that differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.load.weights import load_transformer
from tests.conftest import DATA, EOS, MASK, Decoded, Nets

GOLDEN = DATA / "apd" / "golden_any_order.json"
_DICO = {
    "exploration_N": "seeds",
    "max_exploration_steps": "divide_steps",
    "exploration_threshold": "seed_threshold",
    "tolerance_M": "tolerance",
    "TG_alpha": "guidance_alpha",
    "TG_beta": "guidance_beta",
    "acceleration_factor": "factor",
    "acceleration_low_threshold": "low_threshold",
    "R_gate": "gate",
    "mopup_margin_threshold": "margin",
}
_KLASS = ("confidence_threshold", "kl_threshold", "kl_history_length")


def golden_cases() -> list[dict[str, Any]]:
    """What the DiCo authors' code does on the reference denoiser."""
    return json.loads(GOLDEN.read_text())["cases"]


def ours(case: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The strategy and the parameters of a golden case, by our names."""
    given, name = case["parameters"], case["strategy"]
    own: dict[str, Any] = {
        "dico": lambda: {
            **{_DICO[k]: v for k, v in given.items() if k in _DICO},
            "guidance": given["positional_weights_type"] == "ratio",
        },
        "topk": lambda: {"k": given["k"]},
        "threshold": lambda: {"confidence_threshold": given["confidence_threshold"]},
        "factor": lambda: {"factor": given["factor"]},
        "entropy_bound": lambda: {"gamma": given["entropy_bound_gamma"]},
        "klass": lambda: {k: given[k] for k in _KLASS},
    }[name]()
    shared = {
        "max_tokens": case["gen_length"],
        "block_length": case["block_length"],
        "early_stop": False,
    }
    return "confidence" if name == "topk" else name, {**shared, **own}


def decode_all(canvas: Canvas, pair: Pair, strategy: str, **values: Any) -> Decoded:
    """Fill the canvas; `ids` are those of the whole response, masks where it ended early."""
    values = {"max_tokens": canvas.end - canvas.prompt_len, **values}
    shared, own = make_params(strategy, **values)
    stops = values.get("stop_ids", frozenset({EOS}))
    *steps, last = decode(canvas, make_strategy(strategy, shared, own), pair, stop_ids=stops)
    assert isinstance(last, Finished)
    events = [e for e in steps if isinstance(e, StepEvent)]
    ids = canvas.tokens[canvas.prompt_len :].tolist()
    return Decoded(ids, [e.accepted for e in events], events, last)


def phases(done: Decoded) -> list[list[Any]]:
    """[[phase, forwards], ...]: runs of equal phases."""
    return [[name, len(list(run))] for name, run in groupby(e.phase for e in done.events)]


def differences(case: dict[str, Any], nets: Nets) -> list[str]:
    """In what our decoding differs from a golden case: of ids, forwards, steps, phases."""
    n = len(case["prompt_ids"])
    canvas = Canvas.blank(case["prompt_ids"], case["gen_length"], MASK)
    name, values = ours(case)
    done = decode_all(canvas, nets.pair(canvas.end), name, **values)
    steps = [[[p - n, t] for p, t in sorted(e.committed)] for e in done.events if e.committed]
    found = {
        "ids": done.ids == case["token_ids"],
        "forwards": done.finished.denoiser_forwards == len(done.events) == case["forwards"],
        "steps": steps == [step for step in case["steps"] if step],
    }
    if name == "dico":
        runs = [[phase.lower(), forwards] for phase, forwards in case["phases"] if forwards]
        merged = [[p, sum(f for _, f in run)] for p, run in groupby(runs, key=lambda r: r[0])]
        found["phases"] = phases(done) == merged
    return [what for what, equal in found.items() if not equal]


class Scripted:
    """A denoiser whose confidences a test writes: token j % 3 at position j, never the mask.

    Args:
        script: (forward, position) -> confidence in (1/11, 1], the rest shared by ten tokens.
    """

    mask_id, length, vocab, lookback = 11, 0, 12, 0

    def __init__(self, script: Callable[[int, int], float]) -> None:
        self.script = script
        self.forwards = 0

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        positions = range(first, len(tokens))
        c = torch.tensor([self.script(self.forwards, j) for j in positions])[:, None]
        probabilities = ((1 - c) / 10).repeat(1, self.vocab)
        probabilities[:, self.mask_id] = 0
        probabilities.scatter_(1, torch.arange(first, len(tokens))[:, None] % 3, c)
        self.forwards += 1
        return probabilities.log()

    def crop(self, length: int) -> None:
        pass


def scripted(
    script: Callable[[int, int], float], strategy: str, length: int, prompt: int = 3, **values: Any
) -> Decoded:
    """Decode `length` positions after a prompt with a scripted denoiser; no stop ids."""
    canvas = Canvas.blank([0] * prompt, length, Scripted.mask_id)
    values = {"stop_ids": frozenset(), **values}
    done = decode_all(canvas, Pair(Scripted(script)), strategy, **values)
    assert done.ids == [j % 3 for j in range(prompt, prompt + length)]
    positions = [p for e in done.events for p, _ in e.committed]
    assert sorted(positions) == list(range(prompt, prompt + length)), "not each exactly once"
    return done


if __name__ == "__main__":
    torch.set_num_threads(1)
    reference = Nets(*(load_transformer(DATA / "apd" / name) for name in ("denoiser", "verifier")))
    wrong = {
        index: differences(case, reference)
        for index, case in enumerate(golden_cases())
        if case["strategy"] in sys.argv[1:]
    }
    print(json.dumps({index: what for index, what in wrong.items() if what}))
