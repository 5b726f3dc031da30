"""A part of the GPU run: the next step's forward launched before a step is shown, or after it."""

from __future__ import annotations

from dataclasses import asdict, replace
from statistics import median
from typing import Any

import torch

from apdcli.bench.gpu_kernels import apd_request, middle_step, timed_steps
from apdcli.bench.gpu_stage import Stage
from apdcli.bench.shapes import WrappedPair, accepting
from apdcli.bench.stats import Interval
from apdcli.decode.types import Denoiser, Pair

LOOKAHEAD = 32
# For how long the host is busy with each step: nothing, as in a benchmark, and about what a
# terminal takes.
SHOWN_S = (0.0, 1e-3)


def ahead(stage: Stage) -> dict[str, Any]:
    """Steps of a generation whose reader is busy between them, with and without looking ahead.

    Returns:
        steps: for each time that the host is busy, the seconds of a step each way (that time
            included) and their ratio: after over ahead. asynchronous: whether the denoiser is; if
            not, both ways are one. equal: the same tokens at the same steps, in float32.
    """
    if stage.shapes.verifier is None:
        return {"absent": True, "reason": f"{stage.shapes.name} has no verifier"}
    pair = replace(stage.models(), engine="graphs")

    def after(models: Pair) -> Pair:
        models = accepting(stage.accept)(models)
        return Pair(_Waited(models.denoiser), models.verifier)

    request = apd_request(stage, pair, LOOKAHEAD)
    requests = {"ahead": request, "after": replace(request, pair=WrappedPair.of(pair, after))}
    rows, unlike = [], 0
    with torch.inference_mode():
        for shown_s in SHOWN_S:
            seconds: dict[str, list[float]] = {way: [] for way in requests}
            for repeat in range(stage.repeats + 1):
                made = {way: timed_steps(asked, shown_s) for way, asked in requests.items()}
                committed = [[e.committed for _, e in steps] for steps in made.values()]
                unlike += committed[0] != committed[1]
                if repeat:  # the first records graphs
                    for way, steps in made.items():
                        seconds[way].append(middle_step(steps, LOOKAHEAD))
            ratios = [a / b for a, b in zip(seconds["after"], seconds["ahead"], strict=True)]
            rows.append(
                {
                    "shown_s": shown_s,
                    **{f"{way}_s": median(taken) for way, taken in seconds.items()},
                    "ratio": asdict(Interval.of(ratios)),
                }
            )
    asynchronous = bool(getattr(pair.models(8).denoiser, "asynchronous", False))
    same = stage.dtype != torch.float32 or unlike == 0
    return {"steps": rows, "asynchronous": asynchronous, "unlike": unlike, "equal": same}


class _Waited:
    """A denoiser for whose answer the loop waits before it goes on."""

    asynchronous = False

    def __init__(self, inner: Denoiser) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
