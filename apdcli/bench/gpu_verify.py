"""A part of the GPU run: steps whose drafts are verified by parts beside steps that do it whole."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch

from apdcli.bench.gpu_kernels import LOOKAHEADS, apd_request, middle_step, timed_steps
from apdcli.bench.gpu_stage import Stage
from apdcli.bench.judging import judging
from apdcli.bench.shapes import WrappedPair, accepting
from apdcli.bench.stats import Interval
from apdcli.decode.types import Pair, StepEvent
from apdcli.engine.pair import LoadedPair

Steps = list[tuple[float, StepEvent]]


def verify_less(stage: Stage) -> dict[str, Any]:
    """A greedy step by the graph that judges the whole draft against one by growing parts.

    The graph brings its result to the host once a step. By parts the draft goes there first, and
    then what each part should have been. As every step accepts as many tokens as the others, the
    first part is always enough: this is verifying by parts at its best.

    Returns:
        steps: for each lookahead the seconds of a step each way, their ratio (whole over parts,
        the median of the repeats and an interval around it), and the verifier's forwards a step
        and positions a step that parts leave out. unlike: tokens that differ; with formats of 16
        bits that is no fault. equal: as many were accepted at every step, and in float32 the same.
    """
    if stage.shapes.verifier is None:
        return {"absent": True, "reason": f"{stage.shapes.name} has no verifier"}
    pair = replace(stage.models(), engine="graphs")
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for m in LOOKAHEADS:
            if stage.out_of_time():
                break
            rows.append(_compared(stage, pair, m))
    if not rows:
        return {"skipped": True, "reason": "the time was up"}
    alike = all(row.pop("alike") for row in rows)
    same = stage.dtype != torch.float32 or all(row["unlike"] == 0 for row in rows)
    return {"engine": "graphs", "accepted": stage.accept, "steps": rows, "equal": alike and same}


def _compared(stage: Stage, pair: LoadedPair, m: int) -> dict[str, Any]:
    """One lookahead: generations both ways in turn."""

    def by_parts(models: Pair) -> Pair:
        return accepting(stage.accept)(judging(True)(models))

    whole = apd_request(stage, pair, m)
    requests = {"whole": whole, "parts": replace(whole, pair=WrappedPair.of(whole.pair, by_parts))}
    seconds: dict[str, list[float]] = {way: [] for way in requests}
    last: dict[str, Steps] = {}
    for repeat in range(stage.repeats + 1):
        last = {way: timed_steps(request) for way, request in requests.items()}
        if repeat:  # the first records graphs
            for way, steps in last.items():
                seconds[way].append(middle_step(steps, m))
    ratios = [a / b for a, b in zip(seconds["whole"], seconds["parts"], strict=True)]
    ids = {way: _ids(steps) for way, steps in last.items()}
    forwarded = {way: steps[-1][1].tokens_forwarded for way, steps in last.items()}
    number = len(last["whole"])
    return {
        "lookahead": m,
        **{f"{way}_s": median(taken) for way, taken in seconds.items()},
        "ratio": asdict(Interval.of(ratios)),
        "parts_forwards": last["parts"][-1][1].verifier_forwards / number,
        "positions_left_out": (forwarded["whole"] - forwarded["parts"]) / number,
        "unlike": sum(a != b for a, b in zip(ids["whole"], ids["parts"], strict=True)),
        "alike": _accepted(last["whole"]) == _accepted(last["parts"]),
    }


def _accepted(steps: Steps) -> list[int]:
    return [event.accepted for _, event in steps]


def _ids(steps: Steps) -> list[int]:
    return [id_ for _, event in steps for _, id_ in event.committed]
