"""An arm of the GPU run: weights of 8 and 4 bits."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from typing import Any, TypeAlias

import torch
from torch import Tensor

from apdcli.bench.gpu_kernels import LOOKAHEADS, WINDOW
from apdcli.bench.gpu_stage import APD, PROMPT_TOKENS, Stage, around, best_seconds, settle
from apdcli.bench.shapes import random_pair
from apdcli.engine.choice import resolve_engine
from apdcli.engine.device import is_full
from apdcli.engine.pair import LoadedPair
from apdcli.engine.static import bucket, record
from apdcli.load.files import one_line
from apdcli.load.weights import load_transformer
from apdcli.models.formats import GROUP
from apdcli.models.quantized import Int4Linear, Int8Linear, QuantizedLinear, weight_bytes

FORMATS = ("int8", "int4")
Way: TypeAlias = Callable[[], Tensor]


def quantized(stage: Stage) -> dict[str, Any]:
    """Integer weights of both models: memory and speed, and with torchao how long loading takes.

    torchao chooses the integers of a checkpoint. Without it they are random, which a product takes
    as long for: no file is read then, and nothing is said of accuracy.
    """
    found: dict[str, Any] = {"weights": "read" if _reads(stage) else "random"}
    for name in FORMATS:
        if stage.out_of_time():
            return {**found, "skipped": True, "reason": "the time was up"}
        try:
            found[name] = _quantized(stage, name)
        except Exception as error:
            # One format's failure is not the other's: a size does not divide.
            found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        gc.collect()
    if all("failed" in found[name] for name in FORMATS):
        raise RuntimeError(found[FORMATS[0]]["failed"])
    return {**found, "products": products(stage)}


def _reads(stage: Stage) -> bool:
    """Whether the saved checkpoint can be quantized as it is read."""
    if stage.saved is None:
        return False
    try:
        metadata.version("torchao")
    except metadata.PackageNotFoundError:
        return False
    return True


def _quantized(stage: Stage, name: str) -> dict[str, Any]:
    began = time.perf_counter()
    if _reads(stage):
        pair = _read(stage, name)
    else:
        pair = random_pair(stage.shapes, stage.device, stage.dtype, quantize=(name, name))
    settle(stage.device)
    made_s = time.perf_counter() - began
    specs = [f"{APD},M={m}" if pair.verifier else f"left_to_right:M={m}" for m in LOOKAHEADS]
    specs = [f"M{m}={spec}" for m, spec in zip(LOOKAHEADS, specs, strict=True)]
    run = stage.run(specs, 32 if stage.small else 128, PROMPT_TOKENS, split=False, pair=pair)
    nets = {"denoiser": pair.denoiser, "verifier": pair.verifier}
    held = {role: net for role, net in nets.items() if net is not None}
    return {
        **({"load_s": made_s} if _reads(stage) else {}),
        "bytes": sum(map(weight_bytes, held.values())),
        "engine": pair.engine,
        "graphs_failed": [r for r, n in held.items() if n.packed and n.packed.graphs_failed],
        "settings": [{"name": s["name"], "summary": s["summary"]} for s in run.get("settings", [])],
    }


def _read(stage: Stage, name: str) -> LoadedPair:
    """The saved models, quantized as they are read."""
    assert stage.saved is not None
    given = {"device": stage.device, "dtype": stage.dtype, "quantize": name}
    nets = {
        role: load_transformer(stage.saved / role, **given)  # type: ignore[arg-type]
        for role in ("denoiser", "verifier")
        if (stage.saved / role).is_dir()
    }
    return replace(
        around(stage),
        denoiser=nets["denoiser"],
        verifier=nets.get("verifier"),
        allowed_ids=stage.models().allowed_ids,
        engine=resolve_engine("auto", nets.values()),
    )


@torch.inference_mode()
def products(stage: Stage) -> list[dict[str, Any]]:
    """One product of the denoiser's largest matrix of a layer, by each way there is, in seconds.

    Returns:
        For each number of rows: floats, of weights that are no integers; int8 and int4, as layers
        do it; torch_int8 and torch_int4, by torch's own kernels, each with the root mean square of
        its difference from the layer's over the spread, or `cannot`, why it does not run here.
    """
    config = stage.shapes.denoiser
    made = torch.Generator(device=stage.device).manual_seed(0)
    layers: list[QuantizedLinear] = []
    for kind in (Int8Linear, Int4Linear):
        with torch.device(stage.device):
            layer = kind(config.hidden_size, config.intermediate_size, bias=False).to(stage.dtype)
        layer.randomize(0.02, made)
        if isinstance(layer, Int4Linear) and layer.packed is None:
            layer.zero.random_(0, 16, generator=made)
        layers.append(layer)
    eight, four = layers
    weight = torch.randn(config.intermediate_size, config.hidden_size, device=stage.device)
    weight = weight.to(stage.dtype)
    found = []
    for rows in (8, bucket(LOOKAHEADS[0] + WINDOW + stage.accept - 1) or 128):
        x = torch.randn(rows, config.hidden_size, device=stage.device).to(stage.dtype)
        plain = [functools.partial(layer.product, x) for layer in layers]
        ways: dict[str, tuple[Way, Way | None]] = {
            "floats": (functools.partial(torch.mm, x, weight.t()), None),
            "int8": (plain[0], None),
            "int4": (plain[1], None),
            "torch_int8": (_torch_int8(eight, x), plain[0]),
            "torch_int4": (_torch_int4(four, x), plain[1]),
        }
        times = {name: _timed(stage, way, like) for name, (way, like) in ways.items()}
        found.append({"shape": [*weight.shape], "rows": rows, **times})
    return found


def _torch_int8(layer: QuantizedLinear, x: Tensor) -> Way:
    return lambda: torch._weight_int8pack_mm(x, layer.quantized, layer.scale[:, 0])


def _torch_int4(layer: QuantizedLinear, x: Tensor) -> Way:
    """The kernel of CUDA alone, with its own order of integers."""

    @functools.cache
    def packed() -> tuple[Tensor, Tensor]:
        assert isinstance(layer, Int4Linear)
        if layer.packed is not None:
            raise NotImplementedError("the layer's integers stand in the order of a CPU's kernel")
        integers = layer.integers()
        pairs = (integers[:, ::2] << 4) | integers[:, 1::2]
        # Its weight is (integer - 8) * scale + offset.
        offset = (8 - layer.zero.float()) * layer.scale.float()
        scales = torch.stack((layer.scale, offset.to(layer.scale.dtype)), dim=-1)
        order = torch._convert_weight_to_int4pack(pairs, 8)
        return order, scales.transpose(0, 1).contiguous()

    def product() -> Tensor:
        order, scales = packed()
        return torch._weight_int4pack_mm(x, order, GROUP, scales)

    return product


def _timed(stage: Stage, way: Way, like: Way | None) -> dict[str, Any]:
    """Seconds of a way in a graph, and how far from `like` it comes."""
    try:
        apart = {}
        if like is not None:
            one, other = way().float(), like().float()
            difference = float((one - other).pow(2).mean().sqrt() / other.std())
            apart = {"difference": difference if math.isfinite(difference) else None}
        graph = record(way, stage.device, None)
        return {"seconds": best_seconds(graph, stage.device, 2 if stage.small else 10), **apart}
    except (RuntimeError, AttributeError) as error:
        if is_full(error):
            raise
        return {"cannot": one_line(error)[:200]}
