"""Parts of the GPU run at T > 0: draws by kernels against torch's, and a sampled step's seconds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apdcli.bench.gpu_kernels import (
    LOOKAHEADS,
    MIXTURE,
    agreed_draft,
    bytes_read,
    logits_sizes,
    random_logits,
    recorded_seconds,
    whole_step,
)
from apdcli.bench.gpu_stage import Stage, best_seconds
from apdcli.decode.noise import KeyedNoise
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import drawn, filtered
from apdcli.engine import fused
from apdcli.engine.sampling import KernelSampler

TEMPERATURE = 0.8
SHAPINGS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top_k": {"top_k": 50},
    "top_p": {"top_p": 0.9},
    "top_k and top_p": {"top_k": 50, "top_p": 0.9},
}
# The verifier's dtype, and whether logits are of few values, so that many are equal.
KINDS = (
    (torch.bfloat16, False),
    (torch.float16, False),
    (torch.float32, False),
    (torch.float32, True),
)
# Generations whose steps are timed: what each is given beside R, W and M.
GENERATIONS = {
    "greedy": "",
    "temperature": f",temperature={TEMPERATURE}",
    "top_p": f",temperature={TEMPERATURE},top_p=0.9",
}
# Ids whose noised logits are nearer to the best, relative to it or to 1, may be drawn in its place.
_NEAR = 1e-5
# How far the mass that top-p asks for may seem to be off, which is a sum of very many.
_MASS = 1e-5
# Of the logits: not so wide that what a filter drops would never be drawn.
_SPREAD = 2.0
# Of the kernels in a recording: a search takes long enough to be seen.
_CALLS = 4


def draws(stage: Stage) -> dict[str, Any]:
    """Draws and accepted counts at T > 0 by the kernels against torch's, then seconds.

    Returns:
        cases: how many were compared. near: those that are not equal but as good, within rounding.
        different: the others. timings: for each number of rows and shaping the seconds of a draw
        and of an acceptance, by the kernels, by torch's pieces, launched one by one, and what
        reading the logits once takes at the measured bandwidth.
    """
    if not fused.usable(stage.device):
        return {"absent": True, "reason": f"Triton runs no kernels on {stage.device}"}
    vocab, columns, sizes = logits_sizes(stage)
    made = torch.Generator(device=stage.device).manual_seed(1)
    near, cases = 0, 0
    different: list[dict[str, Any]] = []
    for dtype, ties in KINDS:
        for rows in sizes[-2:]:
            d, a = random_logits(rows, vocab, columns, dtype, made, ties, _SPREAD)
            for name, noise in _noises(stage, d, cases):
                what = {"dtype": str(dtype), "ties": ties, "rows": rows, "shaping": name}
                for found in (*_draws_alike(d, noise), *_counts_alike(d, a, noise)):
                    cases += 1
                    near += found.pop("near", False)
                    if found:
                        different.append({**what, **found})
    timings = []
    for rows in sizes:
        if stage.out_of_time():
            break
        d, a = random_logits(rows, vocab, columns, stage.dtype, made, False, _SPREAD)
        timings += [{"rows": rows, **_times(stage, d, a, *one)} for one in _noises(stage, d, rows)]
    return {
        "cases": cases,
        "near": near,
        "different": different,
        "equal": not different,
        "timings": timings,
    }


def _noises(stage: Stage, d: Tensor, seed: int) -> Iterator[tuple[str, KeyedNoise]]:
    """A draw's noise for each shaping, as generations have it."""
    for name, shaping in SHAPINGS.items():
        params = DecodeParams(temperature=TEMPERATURE, seed=2**40 + seed, **shaping)
        noise = KernelSampler(params, stage.device).noise(d)
        assert isinstance(noise, KeyedNoise)
        yield name, noise


def _draws_alike(d: Tensor, noise: KeyedNoise) -> Iterator[dict[str, Any]]:
    """Empty where a draw is torch's; and where one of its later rows is the whole's."""
    expected = drawn(d, noise.params, noise)
    ids = fused.draw_by_triton(d, noise, 0)
    off = (ids != expected).nonzero().flatten().tolist()
    wrong = [row for row in off if not _as_good(d, noise, row, int(ids[row]))]
    if wrong:
        pairs = [[int(ids[row]), int(expected[row])] for row in wrong[:4]]
        yield {"draws": wrong, "made_and_expected": pairs}
    else:
        yield {"near": True} if off else {}
    later = len(d) // 2
    again = fused.draw_by_triton(d[later:], noise, later)
    yield {} if torch.equal(again, ids[later:]) else {"draws": f"not the same from row {later} on"}


def _as_good(d: Tensor, noise: KeyedNoise, row: int, id_: int) -> bool:
    """Whether an id is the best of a row, but for rounding."""
    if not 0 <= id_ < d.shape[1]:
        return False
    for other in _nearly(noise, d.shape[1]):
        noised = filtered(d[row : row + 1], other.params) + other.piece(row, row + 1)
        best = float(noised.max())
        if best - float(noised[0, id_]) <= _NEAR * max(1.0, abs(best)):
            return True
    return False


def _nearly(noise: KeyedNoise, vocab: int) -> Iterator[KeyedNoise]:
    """The noise, and for draws whose top-p is a rounding smaller or larger."""
    yield noise
    if noise.params.top_p is not None:
        for top_p in (noise.params.top_p - _MASS, noise.params.top_p + _MASS):
            yield KeyedNoise(replace(noise.params, top_p=top_p), noise.key, vocab, noise.rows)


def _counts_alike(d: Tensor, a: Tensor, noise: KeyedNoise) -> Iterator[dict[str, Any]]:
    """Empty where both ways accept a draft up to where it was made wrong."""
    rows = len(d)
    draft = agreed_draft(d, a, MIXTURE, noise)
    count = torch.tensor([rows], device=d.device)
    for wrong in (1, rows // 2, rows):
        judged = draft.clone()
        judged[wrong:] += 1
        expected = torch.tensor([wrong], device=d.device)
        case = (d, a, judged, count, MIXTURE, noise)
        counts = [by(*case) for by in (fused.by_triton, fused.plain)]
        if all(_agree(one, expected, d, a, noise) for one in counts):
            yield {"near": True} if any(int(one) != wrong for one in counts) else {}
        else:
            yield {"counts": [int(one) for one in counts], "expected": wrong}


def _agree(made: Tensor, expected: Tensor, d: Tensor, a: Tensor, noise: KeyedNoise) -> bool:
    """Whether two counts are equal, or were it but for rounding."""
    others = _nearly(noise, d.shape[1])
    return any(fused.agree(made, expected, d, a, MIXTURE, other) for other in others)


def _times(stage: Stage, d: Tensor, a: Tensor, name: str, noise: KeyedNoise) -> dict[str, Any]:
    """Seconds of a draw from d, and of accepting a draft of it to its end."""
    draft = agreed_draft(d, a, MIXTURE, noise)
    count = torch.tensor([len(d)], device=stage.device)
    case = (d, a, draft, count, MIXTURE, noise)
    calls = 1 if stage.small else _CALLS
    bandwidth = stage.measured_rates().bandwidth

    def torch_s(work: Any) -> float:
        return best_seconds(work, stage.device, 1)

    return {
        "vocab": d.shape[1],
        "shaping": name,
        "draw_s": recorded_seconds(stage, lambda: fused.draw_by_triton(d, noise, 0), calls),
        "draw_torch_s": torch_s(lambda: drawn(d, noise.params, noise)),
        "draw_floor_s": d.nbytes / bandwidth,
        "accept_s": recorded_seconds(stage, lambda: fused.by_triton(*case), calls),
        "accept_torch_s": torch_s(lambda: fused.plain(*case)),
        "accept_floor_s": bytes_read(d, a) / bandwidth,
    }


def sampled(stage: Stage) -> dict[str, Any]:
    """Steps of generations that sample beside a greedy one's, at the largest lookahead.

    Returns:
        kernels: whether draws were the kernels' to the end. steps: by generation `step_s`, and
        `over_greedy_s`, what it takes more than the greedy step.
    """
    pair, m = replace(stage.models(), engine="graphs"), LOOKAHEADS[0]
    if pair.verifier is None:
        return {"absent": True, "reason": f"{stage.shapes.name} has no verifier"}
    with torch.inference_mode():
        found: dict[str, float | None] = {}
        for name, settings in GENERATIONS.items():
            if not stage.out_of_time():
                found[name] = whole_step(stage, pair, m, settings)
    greedy = found.get("greedy")
    return {
        "lookahead": m,
        "kernels": fused.usable(stage.device),
        "steps": [
            {"name": name, "step_s": step_s, "over_greedy_s": step_s - greedy}
            for name, step_s in found.items()
            if step_s is not None and greedy is not None
        ],
    }
