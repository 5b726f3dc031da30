"""The parts of the GPU run: each takes the stage they share and returns what it found."""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from apdcli.bench.benchmark import cases_of_shapes
from apdcli.bench.correctness import ROWS, check_correctness, check_engines
from apdcli.bench.floor import DTYPE_BYTES
from apdcli.bench.gpu_ahead import ahead
from apdcli.bench.gpu_attention import attention
from apdcli.bench.gpu_compiled import compiled
from apdcli.bench.gpu_draws import draws, sampled
from apdcli.bench.gpu_kernels import fused_kernel, profile, steps
from apdcli.bench.gpu_quantized import quantized
from apdcli.bench.gpu_stage import APD, PROMPT_TOKENS, Stage, around, settle
from apdcli.bench.gpu_verify import verify_less
from apdcli.bench.saving import save_transformer
from apdcli.engine.batch import run_batch
from apdcli.engine.choice import resolve_engine
from apdcli.engine.device import free_bytes
from apdcli.engine.pair import LoadedPair
from apdcli.load.weights import load_transformer


def correctness(stage: Stage) -> dict[str, Any]:
    """See `bench.correctness`."""
    return check_correctness(stage.device, stage.out_of_time)


def rates(stage: Stage) -> dict[str, Any]:
    """Memory bandwidth and matrix products."""
    found: dict[str, Any] = vars(stage.measured_rates())
    return dict(found)


def engines(stage: Stage) -> dict[str, Any]:
    """See `bench.correctness`."""
    return check_engines(stage.device)


def loading(stage: Stage) -> dict[str, Any]:
    """Save the random pair, read it back as a checkpoint, and make one first token.

    The files were just written, so they are read from the page cache where it holds them. Without
    room on the disk the part is skipped and the random pair stays. The files stay until the run
    is over.
    """
    size = stage.shapes.parameters * DTYPE_BYTES[stage.dtype_name]
    folder = Path(
        stage.held.enter_context(
            tempfile.TemporaryDirectory(dir=stage.scratch, prefix="apd-bench-")
        )
    )
    free = shutil.disk_usage(folder).free
    if free < 1.05 * size:
        reason = f"{size / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free in {folder.parent}"
        return {"skipped": True, "reason": reason}
    saved, allowed = _save(stage, folder)
    seconds, loaded = {}, {}
    for role in saved:
        began = time.perf_counter()
        loaded[role] = load_transformer(folder / role, device=stage.device, dtype=stage.dtype)
        settle(stage.device)
        seconds[role] = time.perf_counter() - began
    began = time.perf_counter()
    engine = resolve_engine("auto", loaded.values())
    settle(stage.device)
    seconds["engine"] = time.perf_counter() - began
    stage.pair = replace(
        around(stage),
        denoiser=loaded["denoiser"],
        verifier=loaded.get("verifier"),
        allowed_ids=allowed,
        engine=engine,
    )
    first = _first_token(stage)
    total = sum(seconds.values())
    return {
        "bytes": sum(saved.values()),
        "seconds_by_part": seconds,
        "load_s": total,
        "bytes_per_second": sum(saved.values()) / total,
        "first_token_s": first,
        "load_and_first_token_s": total + first,
    }


def _save(stage: Stage, folder: Path) -> tuple[dict[str, int], tuple[int, ...]]:
    """Write the random models and forget them: bytes of each, and the ids they may produce."""
    pair = stage.models()
    nets = {"denoiser": pair.denoiser, "verifier": pair.verifier}
    saved = {
        role: save_transformer(net, folder / role) for role, net in nets.items() if net is not None
    }
    stage.saved, stage.pair = folder, None
    allowed = pair.allowed_ids
    del pair, nets
    gc.collect()
    return saved, allowed


def _first_token(stage: Stage) -> float:
    """Seconds from the first request after loading to its first token: nothing is warm yet."""
    contenders = stage.contenders([APD], max_tokens=32)
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
            f"apd M100={APD},M=100",
            f"apd M32={APD},M=32",
            *specs,
            "verifier alone=autoregressive",
        ]
    return stage.run(specs, 32 if stage.small else 256, PROMPT_TOKENS, split=True)


def length(stage: Stage) -> dict[str, Any]:
    """Milliseconds a token of a text of 1,000 tokens against one of 100, W = 16, M = 32."""
    short, long = (20, 60) if stage.small else (100, 1000)
    spec = f"{APD},M=32" if stage.shapes.verifier is not None else "left_to_right:M=32"
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


COUNTS = (
    "ratio: the most that tensors took at once on the device (max_memory_allocated: that includes "
    "the products' workspaces, not what graphs keep reserved between replays) less the weights, "
    "or on a CPU what the process took more than before, over kv_bytes, keys and values of both "
    "models for all positions of the context, and arrays_bytes, two arrays [M, vocab] of float32. "
    "reserved_peak_bytes: the most that torch had taken from the device for all of it, weights, "
    "fragments and graphs included; graph_pools_bytes: what of it the graphs' own pools hold at "
    "the end"
)


def memory(stage: Stage) -> dict[str, Any]:
    """Memory above the weights at a context of 4,096 against KV and two [M, vocab] arrays.

    A pair that holds less is filled to its end.
    """
    context = 256 if stage.small else min(4096, stage.context)
    m = answer = 100
    spec = f"{APD},M={m}" if stage.shapes.verifier is not None else f"left_to_right:M={m}"
    if stage.device.type == "cuda":  # what others let go of is not reserved for this
        stage.models()
        gc.collect()
        torch.cuda.empty_cache()
    found = stage.run([f"memory={spec}"], answer, context - answer, split=False)
    if "settings" not in found:
        return found
    nets = [c for c in (stage.shapes.denoiser, stage.shapes.verifier) if c is not None]
    size = DTYPE_BYTES[stage.dtype_name]
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
        "counts": COUNTS,
        **_reserved(stage.device),
        "buffers": _buffers(stage.models()),
        "free_bytes": free_bytes(stage.device),
    }


def _reserved(device: torch.device) -> dict[str, int]:
    """What torch has taken from a CUDA device, whether tensors fill it or not."""
    if device.type != "cuda":
        return {}
    index = torch.cuda.current_device() if device.index is None else device.index
    pools = [
        part["total_size"]
        for part in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if part["device"] == index and tuple(part.get("segment_pool_id", (0, 0))) != (0, 0)
    ]
    return {
        "reserved_bytes": torch.cuda.memory_reserved(device),
        "reserved_peak_bytes": torch.cuda.max_memory_reserved(device),
        "graph_pools_bytes": sum(pools),
    }


def rows(stage: Stage) -> dict[str, Any]:
    """A batch at the shapes: every row gives as many tokens as it was asked for, all allowed.

    In float32 they must be those of the row alone; formats of 16 bits may choose otherwise where
    logits of random weights are nearly equal, so there such rows are only counted.
    """
    specs = [f"apd={APD},M=32", "autoregressive"]
    if stage.shapes.verifier is None:
        specs = ["left_to_right:M=32"]
    wanted, allowed = 16, set(stage.models().allowed_ids)
    contenders = stage.contenders(specs, max_tokens=wanted)
    cases = cases_of_shapes(
        stage.shapes, stage.models(), contenders, accept=stage.accept, prompt_tokens=48, prompts=4
    )
    found = []
    for case in cases:
        requests = [  # of lengths of their own
            replace(request, prompt_ids=request.prompt_ids[: 48 - 7 * place])
            for place, request in enumerate(case.requests)
        ]
        alone = [request.result(list(request.events())).token_ids for request in requests]
        made = [row.generation for row in run_batch(requests, ROWS)]
        ids = [[] if one is None else one.token_ids for one in made]
        found.append(
            {
                "name": case.name,
                "whole": sum(len(row) == wanted and allowed >= set(row) for row in ids),
                "unlike": sum(one != other for one, other in zip(ids, alone, strict=True)),
            }
        )
    same = stage.dtype != torch.float32 or all(row["unlike"] == 0 for row in found)
    whole = all(row["whole"] == len(cases[0].requests) for row in found)
    return {"rows": ROWS, "settings": found, "equal": same and whole}


def _buffers(pair: LoadedPair) -> dict[str, int]:
    """Bytes that the engine for CUDA keeps between two generations."""
    spare = [b for net in (pair.denoiser, pair.verifier) if net and net.packed is not None
             for b in net.packed.spare_buffers]  # fmt: skip
    kv = [x for b in spare for x in (b.cache.keys, b.cache.values)]
    return {
        "kv_bytes": sum(x.nbytes for x in kv),
        "logits_bytes": sum(b.logits.nbytes for b in spare),
        "graphs": sum(len(b.graphs) for b in spare),
    }


PARTS: tuple[tuple[str, Callable[[Stage], dict[str, Any]]], ...] = (
    ("correctness", correctness),
    ("engines", engines),
    ("fused", fused_kernel),
    ("draws", draws),
    ("rates", rates),
    ("loading", loading),
    ("memory", memory),  # before others have left their buffers
    ("rows", rows),
    ("speed", speed),
    ("steps", steps),
    ("sampled", sampled),
    ("verify_less", verify_less),
    ("ahead", ahead),
    ("length", length),
    ("attention", attention),
    ("profile", profile),
    ("quantized", quantized),
    ("compiled", compiled),
)
