"""What this machine can do, measured in a few seconds: memory bandwidth and matrix products.

The best of several runs counts, not the middle one: a limit is wanted, and other programs on the
machine only ever lower it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from apdcli.bench.floor import Rates
from apdcli.load.room import room_for

MIB = 2**20
MOST_BYTES = 1024 * MIB
_LEAST_BYTES = MIB


@dataclass(frozen=True)
class MeasuredRates(Rates):
    """Rates with how they were measured.

    Attributes:
        bandwidth_bytes: size of the block that was read over and over: as large as the weights
            that a step reads, so that a model that fits in a cache is held to the cache's speed.
        bandwidth_by: the operation that was fastest: "sum" or "dot" (read), "copy" (and write).
        matrix: n of the n x n x n product.
        device, dtype: where and in what.
    """

    bandwidth_bytes: int
    bandwidth_by: str
    matrix: int
    device: str
    dtype: str


def measure_rates(
    device: torch.device,
    dtype: torch.dtype,
    *,
    weights: int,
    matrix: int | None = None,
    seconds: float = 1.0,
) -> MeasuredRates:
    """Measure for about four times `seconds`.

    Args:
        device: where.
        dtype: of the matrix product.
        weights: bytes of weights that one step reads; at most 1 GiB of it are allocated.
        matrix: n of the product; by default 8192 on a GPU and 2048 on a CPU.
        seconds: for each of: sum, dot, copy, product.

    Raises:
        DeviceError: the device has no room for it.
    """
    size = min(max(weights, _LEAST_BYTES), MOST_BYTES)
    n = matrix or (2048 if device.type == "cpu" else 8192)
    # One after the other: the block, and the product's three matrices, drawn in float32.
    needed = max(size, n * n * max(3 * dtype.itemsize, 2 * dtype.itemsize + 4))
    uses = ["--rates BYTES,OPERATIONS in place of measuring", "another --device"]
    with torch.inference_mode(), room_for(device, "measuring its rates", needed, uses):
        by = {
            name: size / _best(work, device, seconds)
            for name, work in _streams(size, device).items()
        }
        fastest = max(by, key=by.__getitem__)
        operations = 2 * n**3 / _best(_product(n, device, dtype), device, seconds)
    return MeasuredRates(
        bandwidth=by[fastest],
        operations=operations,
        bandwidth_bytes=size,
        bandwidth_by=fastest,
        matrix=n,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


def _streams(size: int, device: torch.device) -> dict[str, Callable[[], object]]:
    """Operations that move `size` bytes and do next to nothing with them."""
    halves = torch.ones(2, size // 8, device=device)
    first, second = halves
    return {
        "sum": halves.sum,
        "dot": lambda: torch.dot(first, second),
        "copy": lambda: first.copy_(second),
    }


def _product(n: int, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest run of `work`, run for about that long and at least four times."""
    runs, best = 0, float("inf")
    began = time.perf_counter()
    while runs < 4 or time.perf_counter() - began < seconds:
        taken = timed_work(work, device)
        runs += 1
        if runs > 1:  # the first pays for whatever is set up once
            best = min(best, taken)
    return best


def timed_work(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes on the device."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        if device.type == "mps":
            torch.mps.synchronize()
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    stream = torch.cuda.current_stream(device)
    first.record(stream)
    work()
    last.record(stream)
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
