"""An arm of the GPU run: weights of 8 and 4 bits."""

from __future__ import annotations

import gc
import time
from dataclasses import replace
from importlib import metadata
from typing import Any

from apdcli.bench.gpu_kernels import LOOKAHEADS
from apdcli.bench.gpu_stage import APD, PROMPT_TOKENS, Stage, around, settle
from apdcli.bench.shapes import random_pair
from apdcli.engine.choice import resolve_engine
from apdcli.engine.pair import LoadedPair
from apdcli.load.weights import load_transformer
from apdcli.models.quantized import weight_bytes

FORMATS = ("int8", "int4")


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
    return found


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
