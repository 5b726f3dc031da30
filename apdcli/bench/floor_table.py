"""Floors as tables: `python -m apdcli.bench.floor`, and the same for a pair of the user's."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from apdcli.bench.floor import (
    DTYPE_BYTES,
    ApdStep,
    Part,
    Rates,
    Work,
    causal_parts,
    floor_s,
)
from apdcli.bench.units import counted, markdown, ms, scaled, three
from apdcli.load.settings import Settings
from apdcli.models.config import ModelConfig
from apdcli.models.formats import planned_bytes

if TYPE_CHECKING:
    from apdcli.bench.sizes import Shapes

# What one H200 was measured to do: bytes a second from its memory, bf16 operations a second.
H200 = Rates(4.3e12, 790e12)
ACCEPTED = 5.2  # tokens a step, the order of what the paper's fast settings reach
CURSOR = 256  # positions before the step, prompt and answer so far


def parts_table(parts: Sequence[Part], rates: Rates) -> str:
    """One row a part, the sum last."""
    rows = [
        [
            part.name,
            scaled(part.work.bytes, "B"),
            scaled(part.work.operations, "FLOP"),
            ms(part.memory_s(rates)),
            ms(part.arithmetic_s(rates)),
            ms(part.floor_s(rates)),
        ]
        for part in parts
    ]
    total = [
        "step",
        scaled(sum(p.work.bytes for p in parts), "B"),
        scaled(sum(p.work.operations for p in parts), "FLOP"),
        ms(sum(p.memory_s(rates) for p in parts)),
        ms(sum(p.arithmetic_s(rates) for p in parts)),
        ms(floor_s(parts, rates)),
    ]
    head = ("part", "moved", "arithmetic", "memory, ms", "arithmetic, ms", "floor, ms")
    return markdown(head, [*rows, total])


def floors(
    denoiser: ModelConfig,
    verifier: ModelConfig | None,
    dtype: str,
    steps: Sequence[ApdStep],
    rates: Rates,
    quantize: tuple[str, str] = ("none", "none"),
    cursor: int = CURSOR,
) -> dict[str, Any]:
    """The floors of some steps and of one causal token, as plain numbers for JSON.

    Args:
        cursor: positions before the causal token.
        quantize: what the denoiser's and the verifier's weights are kept in.
    """
    size = DTYPE_BYTES[dtype]
    made: list[dict[str, Any]] = []
    for step in steps:
        parts = step.parts(denoiser, verifier, size, quantize)
        seconds = floor_s(parts, rates)
        made.append(
            {
                **asdict(step),
                "denoiser_positions": step.denoiser.positions,
                "verifier_positions": 0 if verifier is None else step.verifier.positions,
                "parts": [{"name": p.name, **asdict(p.work)} for p in parts],
                "floor_s": seconds,
                "tokens_per_second": step.accepted / seconds,
            }
        )
    causal = floor_s(causal_parts(denoiser, cursor, size, quantize[0]), rates)
    held = [
        0 if config is None else planned_bytes(config, kept, size)
        for config, kept in zip((denoiser, verifier), quantize, strict=True)
    ]
    return {
        "dtype": dtype,
        "quantize": list(quantize),
        "denoiser_parameters": denoiser.num_parameters,
        "denoiser_bytes": held[0],
        "verifier_parameters": 0 if verifier is None else verifier.num_parameters,
        "verifier_bytes": held[1],
        "rates": asdict(rates),
        "steps": made,
        "causal": {"floor_s": causal, "tokens_per_second": 1 / causal},
    }


def floor_text(title: str, made: Mapping[str, Any]) -> str:
    """What :func:`floors` found, as Markdown."""
    rates = Rates(made["rates"]["bandwidth"], made["rates"]["operations"])
    held = " and ".join(
        f"{name} {counted(made[f'{name}_parameters'])} parameters"
        f"{'' if kept == 'none' else f' in {kept}'} ({scaled(made[f'{name}_bytes'], 'B')})"
        for name, kept in zip(("denoiser", "verifier"), made["quantize"], strict=True)
        if made[f"{name}_parameters"]
    )
    text = (
        f"{title}: {held}, {made['dtype']}, at {scaled(rates.bandwidth, 'B/s')} and "
        f"{scaled(rates.operations, 'FLOP/s')}{_how(made['rates'])}\n"
    )
    for step in made["steps"]:
        parts = [Part(p["name"], Work(p["bytes"], p["operations"])) for p in step["parts"]]
        text += (
            f"\nW = {step['recompute_window']}, M = {step['max_lookahead']}, cursor at "
            f"{step['cursor']}, {step['accepted']:g} tokens accepted a step: "
            f"{step['denoiser_positions']:g} positions of the denoiser, "
            f"{step['verifier_positions']:g} of the verifier\n\n"
            f"{parts_table(parts, rates)}\n"
            f"At most {_rate(step['tokens_per_second'])} tokens a second.\n"
        )
    causal = made["causal"]
    return text + (
        f"\nAn autoregressive model of the denoiser's size, one token a forward: "
        f"{ms(causal['floor_s'])} ms at least, {_rate(causal['tokens_per_second'])} tokens a "
        "second at most.\n"
    )


def _rate(value: float) -> str:
    """Three significant digits, more before the decimal point; of the slowest machine, too."""
    return three(value) if value >= 1 else f"{value:.3g}"


def _how(rates: Mapping[str, Any]) -> str:
    if "bandwidth_by" not in rates:
        return ""
    return (
        f" (measured: {rates['bandwidth_by']} over {scaled(rates['bandwidth_bytes'], 'B')}, "
        f"a product of {rates['matrix']} x {rates['matrix']} matrices in {rates['dtype']})"
    )


def weights_read(denoiser: ModelConfig, verifier: ModelConfig | None, dtype: str) -> int:
    """Bytes of weights that one step reads: what memory bandwidth is measured on."""
    nets = [config for config in (denoiser, verifier) if config is not None]
    embeddings = sum(0 if c.tied else c.vocab_size * c.hidden_size for c in nets)
    return (sum(c.num_parameters for c in nets) - embeddings) * DTYPE_BYTES[dtype]


def apd_steps(
    contenders: Sequence[Settings], accepted: float, cursor: int = CURSOR
) -> list[ApdStep]:
    """A step with so many positions before it for each W and M of these settings, each once.

    Settings without a lookahead of their own have no such step; "all" counts the tokens at most,
    "auto" what it settles at with that many tokens accepted a step.
    """
    made: list[ApdStep] = []
    for settings in contenders:
        if "max_lookahead" in settings:
            m = settings["max_lookahead"].value
            if m == "auto":
                m = _settled(accepted)
            m = m if isinstance(m, int) else settings["max_tokens"].value
            window = settings["recompute_window"].value
            made.append(ApdStep(cursor, window, m, min(accepted, m)))
    return list(dict.fromkeys(made))


def _settled(accepted: float) -> int:
    """M of "auto" where every step accepts as many."""
    from apdcli.decode.strategies.window import AUTO_FACTOR, AUTO_LEAST, AUTO_MOST

    return int(min(max(math.ceil(AUTO_FACTOR * accepted), AUTO_LEAST), AUTO_MOST))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the floors of the embedded pair on this machine and of Dream-7B on an H200."""
    parser = argparse.ArgumentParser(
        prog="python -m apdcli.bench.floor",
        description="Bytes, operations and the least time of one step, as Markdown. "
        "'apd bench --floor-only' does it for any profile on this machine.",
    )
    parser.add_argument(
        "--accepted", type=float, default=ACCEPTED, metavar="N", help="tokens a step [%(default)s]"
    )
    parser.add_argument(
        "--cpu-rates",
        metavar="BYTES,OPERATIONS",
        help="a second, in place of measuring this machine, as in 30e9,120e9",
    )
    options = parser.parse_args(argv)
    try:
        given = read_rates(options.cpu_rates) if options.cpu_rates else None
    except ValueError as error:
        parser.error(str(error))
    from apdcli.bench.sizes import EMBEDDED, SHAPES, find_shapes

    dream = SHAPES["dream-7b"]
    embedded = find_shapes(EMBEDDED)
    here, _ = measured_rates(embedded, "cpu", "float32", given=given)
    steps = [ApdStep(CURSOR, 16, m, options.accepted) for m in (100, 32)]
    own = floors(embedded.denoiser, embedded.verifier, "float32", steps, here)
    published = floors(dream.denoiser, dream.verifier, "bfloat16", steps, H200)
    texts = (
        floor_text("The embedded pair", own),
        floor_text("Dream-7B with Qwen2.5-0.5B", published),
    )
    sys.stdout.write("\n\n".join(texts))
    return 0


def read_rates(text: str) -> Rates:
    """BYTES,OPERATIONS a second.

    Raises:
        ValueError: not two positive numbers.
    """
    try:
        bandwidth, operations = map(float, text.split(","))
    except ValueError:
        bandwidth = operations = 0.0
    if not (0 < bandwidth < float("inf") and 0 < operations < float("inf")):
        raise ValueError(
            f"{text!r}: write bytes and operations a second with a comma between, as in 30e9,120e9"
        )
    return Rates(bandwidth, operations)


def measured_rates(
    shapes: Shapes, device: str, dtype: str, *, given: Rates | None
) -> tuple[Rates, str]:
    """What a device can do, measured unless it is given, and the dtype that "auto" is there.

    Raises:
        DeviceError: no such device.
    """
    if given is not None and dtype != "auto":
        return given, dtype
    from apdcli.engine.device import resolve_device
    from apdcli.load.dtype import resolve_dtype

    there = resolve_device(device)
    wanted = resolve_dtype(dtype, there, shapes.stored)
    name = str(wanted).removeprefix("torch.")
    if given is not None:
        return given, name
    from apdcli.bench.rates import measure_rates

    weights = weights_read(shapes.denoiser, shapes.verifier, name)
    return measure_rates(there, wanted, weights=weights), name
