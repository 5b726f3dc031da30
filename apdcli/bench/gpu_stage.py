"""What the parts of the GPU run share: device, sizes, random models, rates, time left."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from apdcli.bench.benchmark import Order, cases_of_shapes, measure
from apdcli.bench.floor import Rates
from apdcli.bench.floor_table import weights_read
from apdcli.bench.rates import measure_rates
from apdcli.bench.settings import Contender, parse_spec, resolve_spec
from apdcli.bench.shapes import check_memory, random_pair
from apdcli.bench.sizes import Shapes, check_shapes, find_shapes, shapes_profile
from apdcli.engine.device import resolve_device
from apdcli.engine.pair import LoadedPair
from apdcli.errors import UsageError
from apdcli.load.dtype import resolve_dtype

PROMPT_TOKENS = 128
APD = "apd:R=0.5,W=16"


@dataclass
class Stage:
    """What the parts share.

    Attributes:
        device, dtype, shapes: what is timed and where.
        accept: tokens that apd is made to accept a step.
        repeats: of every timing.
        deadline: on `time.monotonic`'s clock; nothing is begun after it.
        scratch: where a model may be saved; None takes a temporary folder.
        saved: where the random models stand as checkpoints, once they are saved.
        held: what is let go when all parts are over.
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
    saved: Path | None = None
    held: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
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
        return self.seconds_left <= 0

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def dtype_name(self) -> str:
        """As settings name it."""
        return str(self.dtype).removeprefix("torch.")

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
            weights = weights_read(self.shapes.denoiser, self.shapes.verifier, self.dtype_name)
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
        self,
        specs: Sequence[str],
        max_tokens: int,
        prompt_tokens: int,
        *,
        split: bool,
        pair: LoadedPair | None = None,
    ) -> dict[str, Any]:
        """Time settings in turns on the random models, or on `pair`."""
        contenders = self.contenders(specs, max_tokens)
        check_shapes(self.shapes, contenders, accept=self.accept, prompt_tokens=prompt_tokens)
        pair = pair or self.models()
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


def around(stage: Stage) -> LoadedPair:
    """What stands around models of the stage's shapes: put them in place of the tiny ones here."""
    made = random_pair(find_shapes("tiny"), stage.device, torch.float32)
    return replace(made, profile=shapes_profile(stage.shapes))


def settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best_seconds(work: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Seconds a call takes at best: of five rounds of `calls`, one after another, the fastest."""
    work()
    best = float("inf")
    for _ in range(5):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            first.record()
            for _ in range(calls):
                work()
            last.record()
            last.synchronize()
            taken = float(first.elapsed_time(last)) / 1e3
        else:
            began = time.perf_counter()
            for _ in range(calls):
                work()
            taken = time.perf_counter() - began
        best = min(best, taken / calls)
    return best
