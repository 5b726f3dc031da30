"""One forward of the denoiser against its arithmetic at the speed of a large matrix product."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

import torch

from apdcli.bench.floor import Forward, forward_parts
from apdcli.bench.rates import measure_rates, timed_work
from apdcli.bench.stats import Interval
from apdcli.engine.pair import LoadedPair

PRODUCT_S = 0.2  # a repeat's product is the best of so many seconds
CALLS = 10


def forward(pair: LoadedPair, positions: int, repeats: int) -> dict[str, Any]:
    """Seconds of a forward of `positions` without a cache, with the logits of all of them.

    Each repeat measures the product, then the forward (the median of ten), so that both see the
    machine as it is then.

    Returns:
        operations: of the forward, attention included. operations_a_second: of the product. ratio:
        the forward's seconds over the least for its operations, the median over the repeats.
    """
    config, device = pair.denoiser.config, pair.device
    whole = Forward(positions, positions, positions)
    parts = forward_parts("denoiser", config, whole, pair.dtype.itemsize)
    operations = sum(part.work.operations for part in parts)
    weights = int(sum(part.work.bytes for part in parts))
    denoiser = pair.models(positions).denoiser
    tokens = torch.full((positions,), denoiser.mask_id)

    def once() -> float:
        return timed_work(lambda: denoiser.logits(tokens, 0, 0), device)

    took, rates = [], []
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            rate = measure_rates(device, pair.dtype, weights=weights, seconds=PRODUCT_S).operations
            middle = statistics.median([once() for _ in range(CALLS)])
            if repeat:  # the first warms
                rates.append(rate)
                took.append(middle)
    ratios = [seconds * rate / operations for seconds, rate in zip(took, rates, strict=True)]
    return {
        "positions": positions,
        "repeats": repeats,
        "ms": 1e3 * statistics.median(took),
        "operations": operations,
        "operations_a_second": statistics.median(rates),
        "ratio": asdict(Interval.of(ratios)),
        "goal": 1.7,
    }
