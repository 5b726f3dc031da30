"""A device's engines against the readable one: greedy events in float32, logits in every format.

The reference of events is the engine "eager" on the CPU whatever the device would use, so that on a
CPU, too, this compares two things. In formats of 16 bits two engines need not choose alike where
logits are nearly equal; there the logits themselves are held to a tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from apdcli.bench.shapes import random_pair, random_transformer
from apdcli.bench.sizes import SHAPES, find_shapes
from apdcli.decode.types import Finished, Pair, StepEvent
from apdcli.engine.batch import run_batch
from apdcli.engine.graphs import TOLERANCE as OF_SPREAD
from apdcli.engine.pair import LoadedPair, load_pair
from apdcli.engine.session import Request, prepare
from apdcli.load.files import one_line
from apdcli.load.settings import resolve_settings
from apdcli.models.transformer import Transformer

PROMPTS = (
    "What is 17 plus 25?",
    "Reverse the list: apple, pear, plum.",
    "What day is three days after Monday?",
    "Tell me a short story about a dog and a ball.",
)
SETTINGS: tuple[dict[str, Any], ...] = (
    {"strategy": "apd", "mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": 32},
    {"strategy": "apd", "mixture_weight": 0.9, "recompute_window": 4, "max_lookahead": 100},
    {"strategy": "left_to_right", "k": 2},
    {"strategy": "autoregressive"},
    {"strategy": "threshold", "block_length": 32},
)
MAX_TOKENS = 64
TOLERANCE = 2e-3  # of a logit, in float32: sums are taken in another order
ENGINES = ("graphs", "fast")
BATCH, ROWS = "batch", 3  # fewer rows than prompts: one begins where another has ended
RANDOM = ("tiny", "embedded")  # shapes of random weights


def check_correctness(
    device: torch.device, out_of_time: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """Decode on `device` and on the CPU; what differs, by then if the time is up before the end.

    Returns:
        generations: how many were compared. different: those whose events differ, each with the
        engine, the setting, the prompt and the first step that does. engines: those that were
        tried; on a CPU the functions that graphs record are called; "batch" is the device's own
        with three rows at once, each of which must do what it does alone, and an `error` in
        `different` is what one raised. fell_back: models of whom a graph failed, so that the eager
        engine answered. logits: the largest differences between the device's own engine and the
        CPU, in float32, of the embedded pair and of random tiny
        models. tolerance: what they may be. equal: no event differs, no logit by more than the
        tolerance, no graph failed.
    """
    here = load_pair("demo", device=str(device), dtype="float32")
    reference = load_pair("demo", device="cpu", dtype="float32", engine="eager")
    different: list[dict[str, Any]] = []
    for values in SETTINGS:
        alone: list[list[StepEvent]] = []
        for prompt in PROMPTS:
            if out_of_time():
                cut = {"different": different, "reason": "the time was up"}
                return {**cut, "equal": False} if different else {**cut, "skipped": True}
            expected = _events(reference, prompt, values)
            alone.append(expected)
            for engine in ENGINES:
                step = _first_difference(
                    _events(replace(here, engine=engine), prompt, values), expected
                )
                if step is not None:
                    where = {"engine": engine, "setting": values, "prompt": prompt}
                    different.append({**where, "step": step})
        different += _batch_differs(here, values, alone)
    fell_back = _fell_back(here)
    logits = {"embedded": _logits_differ(here, reference), "tiny": _tiny_differ(device)}
    equal = not different and not fell_back and max(logits.values()) <= TOLERANCE
    return {
        "generations": len(SETTINGS) * len(PROMPTS) * (len(ENGINES) + 1),
        "engine": here.engine,
        "engines": [*ENGINES, BATCH],
        "different": different,
        "fell_back": fell_back,
        # JSON knows no infinity: None where one may be produced and the other not.
        "logits": {name: x if math.isfinite(x) else None for name, x in logits.items()},
        "tolerance": TOLERANCE,
        "equal": equal,
    }


def check_engines(device: torch.device) -> dict[str, Any]:
    """Logits of the engines against the eager one's on the same device, with random weights.

    Windows of several sizes, after crops, each twice: the second time a graph is replayed.

    Returns:
        differences: for each format, shapes and engine the largest root mean square of the
        differences over the spread of the logits. tolerance: of each format. fell_back, equal: as
        of `check_correctness`.
    """
    found: list[dict[str, Any]] = []
    fell_back: list[str] = []
    for dtype, tolerance in OF_SPREAD.items():
        for name in RANDOM:
            # Graphs take matrices as they are packed; the eager engine sees views of these.
            pair = random_pair(find_shapes(name), device, dtype, "eager")
            expected = _scenes(replace(pair, engine="eager"))
            for engine in ENGINES:
                seen = _scenes(replace(pair, engine=engine))
                worst = max(map(_relative, seen, expected))
                found.append(
                    {
                        "dtype": str(dtype).removeprefix("torch."),
                        "shapes": name,
                        "engine": engine,
                        "difference": worst if math.isfinite(worst) else None,
                        "tolerance": tolerance,
                        "within": worst <= tolerance,
                    }
                )
            fell_back += _fell_back(pair)
    equal = not fell_back and all(row["within"] for row in found)
    return {"differences": found, "fell_back": fell_back, "equal": equal}


def _scenes(pair: LoadedPair) -> list[Tensor]:
    """Logits of windows as adaptive parallel decoding asks for them; ids are the same each time."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 200, (160,), generator=generator).to(pair.device)
    models = pair.models(len(ids))
    made = []
    with torch.inference_mode():
        for first, end in ((40, 72), (46, 78), (60, 160), (61, 160), (61, 62)):
            start = 0 if first == 40 else first - 12
            made.append(models.denoiser.logits(ids[:end], start, first).clone())
            assert models.verifier is not None
            models.verifier.crop(first - 1)
            made.append(models.verifier.logits(ids[: end - 1], first).clone())
    return made


def _relative(a: Tensor, b: Tensor) -> float:
    """Root mean square of the difference over the spread; infinite where an id is -inf in one."""
    kept = b.isfinite()
    if not torch.equal(a.isfinite(), kept):
        return float("inf")
    return float((a - b)[kept].double().pow(2).mean().sqrt() / b[kept].double().std())


def _fell_back(pair: LoadedPair) -> list[str]:
    """The models of whom a graph failed."""
    nets = {"denoiser": pair.denoiser, "verifier": pair.verifier}
    packs = {role: net.packed for role, net in nets.items() if net is not None}
    return [role for role, pack in packs.items() if pack is not None and pack.graphs_failed]


def _request(pair: LoadedPair, prompt: str, values: dict[str, Any]) -> Request:
    given = {**values, "max_tokens": MAX_TOKENS, "temperature": 0.0}
    return prepare(pair, prompt, resolve_settings(pair.profile, given, {}))


def _events(pair: LoadedPair, prompt: str, values: dict[str, Any]) -> list[StepEvent]:
    return _steps(_request(pair, prompt, values).events())


def _steps(events: Iterable[StepEvent | Finished]) -> list[StepEvent]:
    return [event for event in events if isinstance(event, StepEvent)]


def _batch_differs(
    pair: LoadedPair, values: dict[str, Any], alone: Sequence[Sequence[StepEvent]]
) -> list[dict[str, Any]]:
    """The rows of a batch that do not do what they do alone, as `check_correctness` lists them."""
    where = {"engine": BATCH, "setting": values}
    requests = [_request(pair, prompt, values) for prompt in PROMPTS]
    found: list[dict[str, Any]] = []
    try:
        for row in run_batch(requests, min(ROWS, len(requests))):
            step = _first_difference(_steps(row.events), alone[row.index])
            if row.error is not None or step is not None:
                found.append({**where, "prompt": PROMPTS[row.index], "step": step})
    except Exception as error:
        # Whatever a kernel raises: what the engines were found to do is not lost to it.
        found.append({**where, "error": f"{type(error).__name__}: {one_line(error)}"})
    return found


def _first_difference(a: Sequence[StepEvent], b: Sequence[StepEvent]) -> int | None:
    """The first step that differs in what it did, from 1; None if none does.

    How much was run for it may differ: an engine may ask less of a model to learn the same.
    """
    for step, (one, other) in enumerate(zip(a, b, strict=False), start=1):
        if _what(one) != _what(other):
            return step
    return None if len(a) == len(b) else 1 + min(len(a), len(b))


def _what(event: StepEvent) -> tuple[object, ...]:
    return event.step, event.committed, event.proposed, event.accepted, event.masked_left


def _logits_differ(here: LoadedPair, reference: LoadedPair) -> float:
    """The largest difference of both models' logits on the prompts, some of it masked."""
    worst = 0.0
    for prompt in PROMPTS:
        ids = [*here.prompt_ids(prompt), *[here.denoiser.config.mask_id or 0] * 16]
        rows = [_rows(pair.models(len(ids)), ids, pair.device) for pair in (here, reference)]
        worst = max(worst, _distance(*rows))
    return worst


def _tiny_differ(device: torch.device) -> float:
    """The same of random models with other shapes, the same numbers on both devices."""
    shapes = SHAPES["tiny"]
    assert shapes.verifier is not None
    worst = 0.0
    for config in (shapes.denoiser, shapes.verifier):
        nets = _twins(random_transformer(config, torch.device("cpu"), torch.float32, 0), device)
        ids = torch.arange(4, 100)[None]
        with torch.inference_mode():
            one, other = (net.head(net.hidden(ids.to(net.cos.device)))[0] for net in nets)
        worst = max(worst, _distance(one, other))
    return worst


def _twins(net: Transformer, device: torch.device) -> tuple[Transformer, Transformer]:
    twin = random_transformer(net.config, device, torch.float32, 0)
    twin.load_state_dict(net.state_dict())
    return twin, net


def _rows(models: Pair, ids: Sequence[int], device: torch.device) -> Tensor:
    """Logits [rows, vocab] of both models, one under the other."""
    tokens = torch.tensor(ids, device=device)
    with torch.inference_mode():
        rows = [models.denoiser.logits(tokens, 0, 0)]
        if models.verifier is not None:
            rows.append(models.verifier.logits(tokens, 1))
        return torch.cat(rows).clone()


def _distance(a: Tensor, b: Tensor) -> float:
    a, b = a.cpu(), b.cpu()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    return float((a - b)[a.isfinite()].abs().max())
