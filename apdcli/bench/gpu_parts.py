"""The parts of the GPU run: each takes the stage they share and returns what it found."""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from apdcli.bench.benchmark import Order, cases_of_shapes, measure
from apdcli.bench.correctness import check_correctness
from apdcli.bench.floor import DTYPE_BYTES, Rates
from apdcli.bench.floor_table import weights_read
from apdcli.bench.rates import measure_rates
from apdcli.bench.saving import save_transformer
from apdcli.bench.settings import Contender, parse_spec, resolve_spec
from apdcli.bench.shapes import check_memory, random_pair
from apdcli.bench.sizes import Shapes, check_shapes, find_shapes, shapes_profile
from apdcli.engine.choice import resolve_engine
from apdcli.engine.device import free_bytes, resolve_device
from apdcli.engine.pair import LoadedPair
from apdcli.errors import UsageError
from apdcli.load.weights import load_transformer, resolve_dtype

PROMPT_TOKENS = 128
_APD = "apd:R=0.5,W=16"


@dataclass
class Stage:
    """What the parts share.

    Attributes:
        device, dtype, shapes: what is timed and where.
        accept: tokens that apd is made to accept a step.
        repeats: of every timing.
        deadline: on `time.monotonic`'s clock; nothing is begun after it.
        scratch: where a model may be saved; None takes a temporary folder.
        pair: the random models, once they are made.
        rates: what the device can do, once that is measured.
    """

    device: torch.device
    dtype: torch.dtype
    shapes: Shapes
    accept: int
    repeats: int
    deadline: float
    scratch: Path | None = None
    pair: LoadedPair | None = None
    rates: Rates | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Stage:
        """The stage that the command line asks for.

        Raises:
            UsageError: a number out of range, shapes that are not known.
            DeviceError: no such device.
        """
        for name in ("accept", "repeats", "minutes"):
            value = getattr(options, name)
            if not value > 0:
                raise UsageError(f"--{name} {value}: it must be above 0")
        device = resolve_device(options.device)
        return cls(
            device=device,
            dtype=resolve_dtype(options.dtype, device),
            shapes=find_shapes(options.shapes),
            accept=options.accept,
            repeats=options.repeats,
            deadline=time.monotonic() + 60 * options.minutes,
            scratch=options.scratch,
        )

    @property
    def small(self) -> bool:
        """Whether this only tries the script."""
        return self.shapes.name == "tiny"

    @property
    def context(self) -> int:
        """Positions that prompt and answer may take together."""
        nets = (self.shapes.denoiser, self.shapes.verifier)
        return min(config.max_positions for config in nets if config is not None)

    def out_of_time(self) -> bool:
        """Whether nothing more should be begun."""
        return time.monotonic() > self.deadline

    def models(self) -> LoadedPair:
        """The pair of random weights, made when first asked for.

        Raises:
            DeviceError: too little memory.
        """
        if self.pair is None:
            check_memory(self.shapes, self.device, self.dtype, positions=4096, rows=100)
            self.pair = random_pair(self.shapes, self.device, self.dtype)
        return self.pair

    def measured_rates(self) -> Rates:
        """The device's rates, measured when first asked for."""
        if self.rates is None:
            name = str(self.dtype).removeprefix("torch.")
            weights = weights_read(self.shapes.denoiser, self.shapes.verifier, name)
            small = {"matrix": 256, "seconds": 0.05} if self.small else {}
            self.rates = measure_rates(self.device, self.dtype, weights=weights, **small)  # type: ignore[arg-type]
        return self.rates

    def contenders(self, specs: Sequence[str], max_tokens: int) -> list[Contender]:
        """Settings on the shapes, as the command would resolve them."""
        profile = shapes_profile(self.shapes)
        made = []
        for text in specs:
            spec = parse_spec(text)
            common = {"max_tokens": max_tokens}
            made.append(Contender(spec, resolve_spec(spec, profile, common, {})))
        return made

    def run(
        self, specs: Sequence[str], max_tokens: int, prompt_tokens: int, *, split: bool
    ) -> dict[str, Any]:
        """Time settings in turns on the random models."""
        contenders = self.contenders(specs, max_tokens)
        check_shapes(self.shapes, contenders, accept=self.accept, prompt_tokens=prompt_tokens)
        pair = self.models()
        cases = cases_of_shapes(
            self.shapes, pair, contenders, accept=self.accept, prompt_tokens=prompt_tokens
        )
        order = Order(
            repeats=self.repeats,
            split=split,
            rates=self.measured_rates(),
            interrupted=self.out_of_time,
        )
        found = measure(pair, cases, contenders, order)
        if found is None:
            return {"skipped": True, "reason": "the time was up"}
        for known in ("machine", "rates"):  # stand in the report already
            del found[known]
        return {**found, "prompt_tokens": prompt_tokens, "max_tokens": max_tokens}


def correctness(stage: Stage) -> dict[str, Any]:
    """See `bench.correctness`."""
    return check_correctness(stage.device, stage.out_of_time)


def rates(stage: Stage) -> dict[str, Any]:
    """Memory bandwidth and matrix products."""
    found: dict[str, Any] = vars(stage.measured_rates())
    return dict(found)


def loading(stage: Stage) -> dict[str, Any]:
    """Save the random pair, read it back as a checkpoint, and make one first token.

    The files were just written, so they are read from the page cache where it holds them. Without
    room on the disk the part is skipped and the random pair stays.
    """
    pair = stage.models()
    size = stage.shapes.parameters * DTYPE_BYTES[str(stage.dtype).removeprefix("torch.")]
    with tempfile.TemporaryDirectory(dir=stage.scratch, prefix="apd-bench-") as name:
        folder = Path(name)
        free = shutil.disk_usage(folder).free
        if free < 1.05 * size:
            reason = f"{size / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free in {folder.parent}"
            return {"skipped": True, "reason": reason}
        nets = {"denoiser": pair.denoiser, "verifier": pair.verifier}
        saved = {
            role: save_transformer(net, folder / role)
            for role, net in nets.items()
            if net is not None
        }
        allowed = pair.allowed_ids
        stage.pair = None
        del pair, nets
        gc.collect()
        seconds, loaded = {}, {}
        for role in saved:
            began = time.perf_counter()
            loaded[role] = load_transformer(folder / role, device=stage.device, dtype=stage.dtype)
            _settle(stage.device)
            seconds[role] = time.perf_counter() - began
        began = time.perf_counter()
        engine = resolve_engine("auto", loaded.values())
        _settle(stage.device)
        seconds["engine"] = time.perf_counter() - began
        stage.pair = replace(
            _empty(stage.shapes, stage.device),
            denoiser=loaded["denoiser"],
            verifier=loaded.get("verifier"),
            allowed_ids=allowed,
            engine=engine,
        )
        # Read once more while the files are there: on a CPU the weights stay mapped to them.
        first = _first_token(stage)
        if stage.device.type == "cpu":
            stage.pair = None
    total = sum(seconds.values())
    return {
        "bytes": sum(saved.values()),
        "seconds_by_part": seconds,
        "load_s": total,
        "bytes_per_second": sum(saved.values()) / total,
        "first_token_s": first,
        "load_and_first_token_s": total + first,
    }


def _empty(shapes: Shapes, device: torch.device) -> LoadedPair:
    """What stands around the models of random weights."""
    tiny = find_shapes("tiny")
    made = random_pair(tiny, device, torch.float32)
    return replace(made, profile=shapes_profile(shapes))


def _first_token(stage: Stage) -> float:
    """Seconds from the first request after loading to its first token: nothing is warm yet."""
    contenders = stage.contenders([_APD], max_tokens=32)
    pair = stage.models()
    (case,) = cases_of_shapes(
        stage.shapes, pair, contenders, accept=stage.accept, prompt_tokens=PROMPT_TOKENS
    )
    began = time.perf_counter()
    next(iter(case.requests[0].events()))
    return time.perf_counter() - began


def speed(stage: Stage) -> dict[str, Any]:
    """Steps side by side at W = 16: M = 100 and 32, one token a step, and causal models."""
    specs = ["one a step=left_to_right:M=32", "causal=causal_denoiser"]
    if stage.shapes.verifier is not None:
        specs = [
            f"apd M100={_APD},M=100",
            f"apd M32={_APD},M=32",
            *specs,
            "verifier alone=autoregressive",
        ]
    return stage.run(specs, 32 if stage.small else 256, PROMPT_TOKENS, split=True)


def length(stage: Stage) -> dict[str, Any]:
    """Milliseconds a token of a text of 1,000 tokens against one of 100, W = 16, M = 32."""
    short, long = (20, 60) if stage.small else (100, 1000)
    spec = f"{_APD},M=32" if stage.shapes.verifier is not None else "left_to_right:M=32"
    found = stage.run(
        [f"short={spec},max_tokens={short}", f"long={spec},max_tokens={long}"],
        long,
        min(PROMPT_TOKENS, stage.context - long),
        split=False,
    )
    if "settings" not in found:
        return found
    speeds = [s["summary"]["tokens_per_second"]["median"] for s in found["settings"]]
    return {**found, "ratio": speeds[0] / speeds[1]}


def memory(stage: Stage) -> dict[str, Any]:
    """Memory above the weights at a context of 4,096 against KV and two [M, vocab] arrays.

    A pair that holds less is filled to its end.
    """
    context = 256 if stage.small else min(4096, stage.context)
    m = answer = 100
    spec = f"{_APD},M={m}" if stage.shapes.verifier is not None else f"left_to_right:M={m}"
    found = stage.run([f"memory={spec}"], answer, context - answer, split=False)
    if "settings" not in found:
        return found
    nets = [c for c in (stage.shapes.denoiser, stage.shapes.verifier) if c is not None]
    size = DTYPE_BYTES[str(stage.dtype).removeprefix("torch.")]
    kv = sum(2 * c.num_layers * c.num_kv_heads * c.head_dim * context * size for c in nets)
    arrays = 2 * m * stage.shapes.denoiser.vocab_size * 4
    taken = found["settings"][0]["memory"]
    weights = stage.shapes.parameters * size
    # A GPU's allocator knows exactly; an engine may keep its buffers between two runs there.
    above = taken["extra_bytes"]
    if stage.device.type == "cuda":
        above = taken["peak_bytes"] - weights
    return {
        "context": context,
        **taken,
        "kv_bytes": kv,
        "arrays_bytes": arrays,
        "above_weights_bytes": above,
        "ratio": above / (kv + arrays),
        "free_bytes": free_bytes(stage.device),
    }


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


PARTS: tuple[tuple[str, Callable[[Stage], dict[str, Any]]], ...] = (
    ("correctness", correctness),
    ("rates", rates),
    ("loading", loading),
    ("memory", memory),  # before others have left their buffers
    ("speed", speed),
    ("length", length),
)
