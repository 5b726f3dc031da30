"""Parts of the GPU run that look into a step: the fused choice, models and host."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from apdcli.bench.benchmark import cases_of_shapes
from apdcli.bench.floor import DTYPE_BYTES, ApdStep, floor_s
from apdcli.bench.gpu_stage import APD, PROMPT_TOKENS, Stage, best_seconds, settle
from apdcli.bench.shapes import random_prompt
from apdcli.decode.noise import KeyedNoise
from apdcli.decode.sampling import NEVER, drawn, greedy
from apdcli.decode.strategies.apd import mixture, prefix
from apdcli.decode.types import AcceptingVerifier, Pair, StepEvent
from apdcli.engine import fused
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request
from apdcli.engine.static import record
from apdcli.models.config import ModelConfig

WINDOW = 16  # W
MIXTURE = 0.5  # R
ENGINES = ("graphs", "fast", "eager")
LOOKAHEADS = (100, 32)
_CALLS = 10  # that a recording of a short kernel holds, so that not its launch is timed


def fused_kernel(stage: Stage) -> dict[str, Any]:
    """The fused mixture and choice against torch's: same counts, then seconds.

    Returns:
        cases: how many were compared. different: those that are not equal. timings: for each
        number of rows seconds of the kernel, of torch by few rows, of torch with the whole array,
        and what reading both models' logits takes at the measured bandwidth.
    """
    if not fused.usable(stage.device):
        return {"absent": True, "reason": f"Triton runs no kernels on {stage.device}"}
    vocab, columns, sizes = logits_sizes(stage)
    made = torch.Generator(device=stage.device).manual_seed(0)
    different, cases = [], 0
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for rows in sizes[-2:]:
            for ties in (False, True):
                d, a = random_logits(rows, vocab, columns, dtype, made, ties)
                for weight in (0.0, 0.3, MIXTURE, 0.9):
                    # Exact sums, where torch's rounding of them is not promised.
                    weight = MIXTURE if ties else weight
                    for wrong in (1, rows // 2, rows):
                        draft = agreed_draft(d, a, weight)
                        draft[wrong:] += 1
                        count = torch.tensor([rows], device=stage.device)
                        case = (d, a, draft, count, weight)
                        counts = [int(by(*case)) for by in (fused.by_triton, fused.plain)]
                        cases += 1
                        if counts[0] != counts[1] or counts[1] != wrong:
                            what = {"dtype": str(dtype), "rows": rows, "weight": weight}
                            different.append({**what, "counts": counts, "expected": wrong})
    return {
        "cases": cases,
        "different": different,
        "equal": not different,
        "timings": [_choice_times(stage, rows, vocab, columns, made) for rows in sizes],
    }


def random_logits(
    rows: int, vocab: int, columns: int, dtype: torch.dtype, made: torch.Generator, ties: bool,
    spread: float = 4.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """d [rows, vocab] and a [rows - 1, columns]; with `ties` of few values."""
    d = torch.randn(rows, vocab, generator=made, device=made.device).mul_(spread)
    a = torch.randn(rows - 1, columns, generator=made, device=made.device).mul_(spread)
    if ties:
        d, a = d.round(), a.round()
    d[:, torch.randint(0, vocab, (vocab // 20,), generator=made, device=made.device)] = NEVER
    return d, a.to(dtype)


def agreed_draft(d: Tensor, a: Tensor, weight: float, noise: KeyedNoise | None = None) -> Tensor:
    """A draft that the mixture agrees with to its end: [rows] int64."""
    own = a[:, : d.shape[1]].to(torch.float32, copy=True).masked_fill_(d[1:] == NEVER, NEVER)
    mixed = mixture(d[1:], own, weight)
    if noise is None:
        return torch.cat((d[:1].argmax(-1), mixed.argmax(-1)))
    first = drawn(d[:1], noise.params, noise)
    return torch.cat((first, drawn(mixed, noise.params, noise, 1)))


def logits_sizes(stage: Stage) -> tuple[int, int, tuple[int, ...]]:
    """Ids that may be produced, columns that the denoiser has, and drafts' lengths to try."""
    sizes = (3, 9) if stage.small else (8, 32, 100)
    return min(c.vocab_size for c in _configs(stage)), stage.shapes.denoiser.vocab_size, sizes


def recorded_seconds(stage: Stage, work: Callable[[], Tensor], calls: int = _CALLS) -> float:
    """Seconds that a short kernel takes in a graph of so many of its calls."""
    many = record(lambda: [work() for _ in range(calls)][-1], stage.device, None)
    return best_seconds(many, stage.device, calls) / calls


def bytes_read(d: Tensor, a: Tensor) -> int:
    """Of both models' logits, columns that nobody may look at left out."""
    return d.nbytes + a[:, : d.shape[1]].numel() * a.element_size()


def _choice_times(
    stage: Stage, rows: int, vocab: int, columns: int, made: torch.Generator
) -> dict[str, Any]:
    dtype = stage.dtype
    d, a = random_logits(rows, vocab, columns, dtype, made, False)
    draft = agreed_draft(d, a, MIXTURE)
    count = torch.tensor([rows], device=stage.device)

    def whole() -> Tensor:
        target = greedy(mixture(d[1:], a[:, :vocab].to(torch.float32, copy=True), MIXTURE))
        return 1 + prefix(draft[1:] == target)

    given = (d, a, draft, count, MIXTURE)
    return {
        "rows": rows,
        "vocab": vocab,
        "kernel_s": recorded_seconds(stage, lambda: fused.by_triton(*given)),
        "torch_s": recorded_seconds(stage, lambda: fused.plain(*given)),
        "torch_whole_s": recorded_seconds(stage, whole),
        "floor_s": bytes_read(d, a) / stage.measured_rates().bandwidth,
    }


@dataclass
class Scene:
    """The models in the middle of an answer: one step's two forwards can be repeated at will.

    Attributes:
        models: with caches that hold the text before the cursor.
        tokens: [right] int64, masks from the cursor on.
        cursor, left: the first position not decoded, the first that is run again.
        draft: [m] int64.
        d: [m, vocab], the draft's marginals.
    """

    models: Pair
    tokens: Tensor
    cursor: int
    left: int
    draft: Tensor
    d: Tensor

    @classmethod
    def of(cls, stage: Stage, pair: LoadedPair, m: int) -> Scene:
        """The scene with `m` masks before it."""
        cursor = PROMPT_TOKENS + (8 if stage.small else 64)
        ids = random_prompt(stage.shapes, cursor, 0)
        models = pair.models(cursor + m)
        masks = [models.denoiser.mask_id] * m
        tokens = torch.tensor([*ids, *masks], device=pair.device)
        d = models.denoiser.logits(tokens, 0, cursor)
        scene = cls(models, tokens, cursor, cursor, d.argmax(-1), d)
        if models.verifier is not None:
            models.verifier.crop(0)
            models.verifier.logits(tokens[:cursor], cursor)
        scene.left = cursor - (stage.accept + WINDOW - 1)
        scene.d = scene.denoise()
        scene.draft = scene.d.argmax(-1)
        return scene

    def denoise(self) -> Tensor:
        """The denoiser's forward: [m, vocab]."""
        return self.models.denoiser.logits(self.tokens, self.left, self.cursor)

    def verify(self) -> Tensor:
        """The verifier's forward, mixture and choice: [1 or more], the accepted count last."""
        verifier = self.models.verifier
        assert verifier is not None
        verifier.crop(self.cursor)
        text = torch.cat((self.tokens[: self.cursor], self.draft[:-1]))
        if hasattr(verifier, "accept"):
            judge = cast(AcceptingVerifier, verifier)
            return judge.accept(text, self.draft, self.d, MIXTURE)
        a = verifier.logits(text, self.cursor + 1)
        return 1 + prefix(self.draft[1:] == greedy(mixture(self.d[1:], a, MIXTURE)))


def steps(stage: Stage) -> dict[str, Any]:
    """Where a step goes, for each engine: the denoiser, verifier with choice, and the host.

    The models' seconds are a device's, of forwards repeated one after another; the host's are what
    a whole step takes beyond these: launches, the copy to the host, the loop, its events.
    """
    rows = []
    for m in LOOKAHEADS:
        for engine in ENGINES:
            if stage.out_of_time():
                break
            rows.append(_step(stage, replace(stage.models(), engine=engine), m))
    return {"window": WINDOW, "accepted": stage.accept, "steps": rows}


@torch.inference_mode()
def _step(stage: Stage, pair: LoadedPair, m: int) -> dict[str, Any]:
    scene = Scene.of(stage, pair, m)
    calls = 2 if stage.small else 10
    denoise = best_seconds(scene.denoise, stage.device, calls)
    verify = None
    if scene.models.verifier is not None:
        verify = best_seconds(scene.verify, stage.device, calls)
    del scene
    whole = whole_step(stage, pair, m)
    step = ApdStep(PROMPT_TOKENS + 64, WINDOW, m, stage.accept)
    size = DTYPE_BYTES[stage.dtype_name]
    parts = step.parts(stage.shapes.denoiser, stage.shapes.verifier, size)
    rates = stage.measured_rates()
    floors = [
        floor_s([p for p in parts if p.name.startswith("denoiser") == own], rates)
        for own in (True, False)
    ]
    return {
        "engine": pair.engine,
        "lookahead": m,
        "denoise_s": denoise,
        "verify_and_accept_s": verify,
        "step_s": whole,
        "host_s": None if whole is None else whole - denoise - (verify or 0.0),
        "floor_denoise_s": floors[0],
        "floor_verify_and_accept_s": floors[1],
        "ratio": None if whole is None else whole / sum(floors),
    }


def whole_step(stage: Stage, pair: LoadedPair, m: int, settings: str = "") -> float | None:
    """Seconds of a step of a generation, the middle one of those that draft `m` tokens.

    Args:
        settings: of the decoder beside R, W and M: ",name=value" each.
    """
    if pair.verifier is None:
        return None
    request = apd_request(stage, pair, m, settings)
    timed_steps(request)  # records graphs
    return middle_step(timed_steps(request), m)


def apd_request(stage: Stage, pair: LoadedPair, m: int, settings: str = "") -> Request:
    """A generation of some steps that draft `m` tokens. Args: see `whole_step`."""
    wanted = 6 if stage.small else 40
    contenders = stage.contenders([f"{APD},M={m}{settings}"], max_tokens=m + wanted * stage.accept)
    (case,) = cases_of_shapes(
        stage.shapes, pair, contenders, accept=stage.accept, prompt_tokens=PROMPT_TOKENS
    )
    return replace(case.requests[0], pair=replace(case.requests[0].pair, engine=pair.engine))


def timed_steps(request: Request, shown_s: float = 0.0) -> list[tuple[float, StepEvent]]:
    """Every step of a generation, and the seconds from the one before it.

    Args:
        request: the generation.
        shown_s: seconds for which the host is busy with each event before it asks for the next.
    """
    made = []
    before = time.perf_counter()
    for event in request.events():
        now = time.perf_counter()
        if isinstance(event, StepEvent):
            made.append((now - before, event))
        before = now
        while shown_s and time.perf_counter() - now < shown_s:
            pass
    return made


def middle_step(steps: Sequence[tuple[float, StepEvent]], m: int) -> float:
    """Seconds of the middle one of those that draft `m` tokens, the first two left out."""
    return median([seconds for seconds, event in steps if event.proposed == m][2:])


@torch.inference_mode()
def profile(stage: Stage) -> dict[str, Any]:
    """The kernels of a step at the largest lookahead, those that take longest first."""
    from torch.profiler import ProfilerActivity

    cuda = stage.device.type == "cuda"
    pair = stage.models() if cuda else replace(stage.models(), engine="graphs")
    scene = Scene.of(stage, pair, LOOKAHEADS[0])
    repeats = 3
    for _ in range(3):  # record
        scene.denoise()
        if scene.models.verifier is not None:
            scene.verify()
    settle(stage.device)
    activity = ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as seen:
        for _ in range(repeats):
            scene.denoise()
            if scene.models.verifier is not None:
                scene.verify()
        settle(stage.device)
    clock = "self_device_time_total" if cuda else "self_cpu_time_total"
    kernels = sorted(seen.key_averages(), key=lambda k: -getattr(k, clock))
    return {
        "lookahead": LOOKAHEADS[0],
        "kernels_a_step": sum(k.count for k in kernels) / repeats,
        "seconds_a_step": sum(getattr(k, clock) for k in kernels) / repeats / 1e6,
        "longest": [
            {
                "name": k.key[:120],
                "a_step": k.count / repeats,
                "seconds_a_step": getattr(k, clock) / repeats / 1e6,
            }
            for k in kernels[:25]
        ],
    }


def _configs(stage: Stage) -> list[ModelConfig]:
    nets = (stage.shapes.denoiser, stage.shapes.verifier)
    return [config for config in nets if config is not None]
