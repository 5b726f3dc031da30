"""Arms of the GPU run that no default follows yet: integer weights, and torch.compile in a graph.

`python -m apdcli.bench.gpu_arms SHAPES DEVICE DTYPE MODE POSITIONS` is one start of the second: it
compiles a layer and prints the seconds, for the arm to compare a start with an empty cache on disk
with the one after it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
from torch import Tensor
from torch.nn import functional as F

from apdcli.bench.gpu_kernels import LOOKAHEADS, WINDOW, Scene
from apdcli.bench.gpu_stage import APD, PROMPT_TOKENS, Stage, around, best_seconds, settle
from apdcli.bench.shapes import random_transformer
from apdcli.bench.sizes import find_shapes
from apdcli.engine.choice import resolve_engine
from apdcli.engine.graphs import TOLERANCE, GraphDenoiser
from apdcli.engine.static import Buffers, Layer, Window, answer, bucket, record
from apdcli.load.home import home_path
from apdcli.load.weights import load_transformer
from apdcli.models.packed import Packed, PackedLayer, packed

FORMATS = ("int8", "int4")
MODES = ("default", "max-autotune-no-cudagraphs")


def quantized(stage: Stage) -> dict[str, Any]:
    """Integer weights of both models, read from the saved checkpoint: load, memory, speed."""
    if "quantize" not in inspect.signature(load_transformer).parameters:
        return {"absent": True, "reason": "this checkout quantizes no weights"}
    if stage.saved is None:
        return {"skipped": True, "reason": "no checkpoint was saved to read them from"}
    found: dict[str, Any] = {}
    for name in FORMATS:
        if stage.out_of_time():
            return {**found, "skipped": True, "reason": "the time was up"}
        try:
            found[name] = _quantized(stage, name)
        except Exception as error:
            # One format's failure is not the other's: torchao is missing, a size does not divide.
            found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"}
        gc.collect()
    if all("failed" in result for result in found.values()):
        return {**found, "absent": True, "reason": found[FORMATS[0]]["failed"]}
    return found


def _quantized(stage: Stage, name: str) -> dict[str, Any]:
    assert stage.saved is not None
    began = time.perf_counter()
    nets = {
        role: load_transformer(
            stage.saved / role, device=stage.device, dtype=stage.dtype, quantize=name
        )
        for role in ("denoiser", "verifier")
        if (stage.saved / role).is_dir()
    }
    engine = resolve_engine("auto", nets.values())
    settle(stage.device)
    load_s = time.perf_counter() - began
    pair = replace(
        around(stage),
        denoiser=nets["denoiser"],
        verifier=nets.get("verifier"),
        allowed_ids=stage.models().allowed_ids,
        engine=engine,
    )
    specs = [f"{APD},M={m}" if pair.verifier else f"left_to_right:M={m}" for m in LOOKAHEADS]
    specs = [f"M{m}={spec}" for m, spec in zip(LOOKAHEADS, specs, strict=True)]
    run = stage.run(specs, 32 if stage.small else 128, PROMPT_TOKENS, split=False, pair=pair)
    parameters = [p for net in nets.values() for p in net.parameters()]
    return {
        "load_s": load_s,
        "bytes": sum(p.nbytes for p in parameters),
        "engine": engine,
        "graphs_failed": [r for r, n in nets.items() if n.packed and n.packed.graphs_failed],
        "settings": [{"name": s["name"], "summary": s["summary"]} for s in run.get("settings", [])],
    }


def compiled(stage: Stage) -> dict[str, Any]:
    """The denoiser's graph with layers by torch.compile against the plain one, replay by replay.

    The compiled layer is the plain one's mathematics for the compiler to fuse; matrix products are
    the library's or, with max-autotune, the fastest that it finds. It runs within our own graph,
    so that launches cost neither anything. On a device other than CUDA the compiler only traces.

    Returns:
        cache: the folder of the compiler's files. modes: for each seconds of compilation with an
        empty cache and of a second start, and for each lookahead seconds of a replay, plain and
        compiled, their ratio, and how far their logits lie apart in units of their spread.
    """
    config = stage.shapes.denoiser
    folder = _cache_folder()
    found: dict[str, Any] = {"cache": str(folder), "modes": []}
    for mode in MODES[:1] if stage.device.type != "cuda" else MODES:
        if stage.out_of_time():
            return {**found, "skipped": True, "reason": "the time was up"}
        cache = folder / mode
        shutil.rmtree(cache, ignore_errors=True)
        positions = bucket(LOOKAHEADS[0] + WINDOW + stage.accept - 1) or 128
        starts = []
        for _ in range(2):
            starts.append(_start(stage, mode, positions, cache))
        with _compiler_cache(cache):
            # Weights are arguments and the same sizes in every layer: one compilation serves all.
            torch.compiler.reset()
            replays = [_replays(stage, mode, m) for m in LOOKAHEADS]
        found["modes"].append(
            {"mode": mode, "positions": positions, "starts": starts, "replays": replays}
        )
    found["layers"] = config.num_layers
    apart = [r["difference"] for made in found["modes"] for r in made["replays"]]
    found["tolerance"] = TOLERANCE[stage.dtype]
    found["within"] = max(apart) <= TOLERANCE[stage.dtype]
    return found


@torch.inference_mode()
def _replays(stage: Stage, mode: str, m: int) -> dict[str, Any]:
    """Both graphs of one window, in turns."""
    pair = replace(stage.models(), engine="graphs")
    scene = Scene.of(stage, pair, m)
    denoiser = cast(GraphDenoiser, scene.models.denoiser)
    pack, buffers, head = denoiser.packed, denoiser.buffers, denoiser._wide
    padded, rows = bucket(len(scene.tokens) - scene.left), bucket(m)
    assert padded is not None
    assert rows is not None
    keys = buffers.keys(len(scene.tokens))
    buffers.load(scene.tokens, scene.left, scene.cursor - denoiser.lookback)

    def recorded(layer: Layer | None) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            return answer(pack, buffers, head, padded, rows, keys, layer=layer)

        # Results stand in the graphs' memory: two that are compared need two memories.
        return record(forward, stage.device, None)

    began = time.perf_counter()
    plain = recorded(None)
    plain_s = time.perf_counter() - began
    other = recorded(compiled_layer(pack, stage.device, mode))
    settle(stage.device)
    compile_s = time.perf_counter() - began - 2 * plain_s
    a, b = plain()[:m].float(), other()[:m].float()
    difference = float((a - b).pow(2).mean().sqrt() / a.std())
    taken: list[list[float]] = [[], []]
    for _ in range(2 if stage.small else 5):
        for times, graph in zip(taken, (plain, other), strict=True):
            times.append(best_seconds(graph, stage.device, 2 if stage.small else 10))
    one, two = (min(times) for times in taken)
    return {
        "lookahead": m,
        "difference": difference,
        "plain_s": one,
        "compiled_s": two,
        "ratio": two / one,
        "compile_s": compile_s,
    }


def compiled_layer(pack: Packed, device: torch.device, mode: str) -> Layer:
    """`engine.static.run_layer`, compiled: nothing is written over but the cache."""
    heads, kv_heads, size = pack.heads, pack.kv_heads, pack.head_dim
    hidden, inner, eps = pack.net.config.hidden_size, pack.layers[0].down.shape[0], pack.eps

    def layer(
        x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, positions: Tensor, k: Tensor, v: Tensor,
        before: Tensor, qkv: Tensor, bias: Tensor | None, out: Tensor, after: Tensor,
        gate_up: Tensor, down: Tensor,
    ) -> Tensor:  # fmt: skip
        length, keys = x.shape[0], mask.shape[1]
        joined = F.rms_norm(x, (hidden,), before, eps) @ qkv
        if bias is not None:
            joined = joined + bias
        by_head = joined.view(length, -1, size).transpose(0, 1)
        turning = by_head[: heads + kv_heads]
        # `sin` is negative in its first half.
        turned = turning * cos + turning.roll(size // 2, -1) * sin
        k.index_copy_(1, positions, turned[heads:])
        v.index_copy_(1, positions, by_head[heads + kv_heads :])
        grouped = turned[:heads].reshape(1, kv_heads, -1, size)
        seen = F.scaled_dot_product_attention(
            grouped, k[None, :, :keys], v[None, :, :keys], attn_mask=mask
        )
        attended = seen.view(kv_heads, -1, length, size).permute(2, 0, 1, 3).reshape(length, -1)
        x = x + attended @ out
        both = F.rms_norm(x, (hidden,), after, eps) @ gate_up
        return x + torch.mm(F.silu(both[:, :inner]) * both[:, inner:], down)

    on_gpu = device.type == "cuda"
    quick: Callable[..., Tensor] = torch.compile(
        layer,
        fullgraph=True,
        dynamic=False,
        backend="inductor" if on_gpu else "eager",
        mode=mode if on_gpu else None,
    )

    def run(w: PackedLayer, x: Tensor, window: Window, k: Tensor, v: Tensor) -> Tensor:
        given = (w.attention_norm, w.qkv, w.qkv_bias, w.out, w.mlp_norm, w.gate_up, w.down)
        at = (window.cos, window.sin, window.mask, window.positions)
        return quick(x, *at, k, v, *given)

    return run


def _cache_folder() -> Path:
    """Where the compiler keeps its files; APD_CACHE_DIR replaces the folder of all caches."""
    own = os.environ.get("APD_CACHE_DIR")
    folder = home_path(own) if own else platformdirs.user_cache_path("apd", False)
    return folder / "compiled"


def _variables(cache: Path) -> dict[str, str]:
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }


@contextlib.contextmanager
def _compiler_cache(cache: Path) -> Iterator[None]:
    """The compiler keeps its files there, in this process."""
    before = {name: os.environ.get(name) for name in _variables(cache)}
    os.environ.update(_variables(cache))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start(stage: Stage, mode: str, positions: int, cache: Path) -> dict[str, Any]:
    """One start in a process of its own: seconds, or why there are none."""
    words = [stage.shapes.name, str(stage.device), stage.dtype_name, mode, str(positions)]
    try:
        made = subprocess.run(
            [sys.executable, "-m", "apdcli.bench.gpu_arms", *words],
            env={**os.environ, **_variables(cache)},
            capture_output=True,
            text=True,
            timeout=max(1.0, stage.seconds_left),
            check=True,
        )
    except subprocess.TimeoutExpired:
        return {"failed": "the time was up"}
    except subprocess.CalledProcessError as error:
        return {"failed": " ".join(error.stderr.split())[-500:]}
    found: dict[str, Any] = json.loads(made.stdout)
    return found


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """Compile a layer of random weights and print the seconds of the first call and of another."""
    parser = argparse.ArgumentParser(prog="python -m apdcli.bench.gpu_arms", description=__doc__)
    for name in ("shapes", "device", "dtype", "mode"):
        parser.add_argument(name)
    parser.add_argument("positions", type=int)
    options = parser.parse_args(argv)
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    config = replace(find_shapes(options.shapes).denoiser, num_layers=2, vocab_size=1024, mask_id=3)
    pack = packed(random_transformer(config, device, dtype, seed=1))
    buffers = Buffers.allocate(pack, 512)
    tokens = torch.arange(200 + options.positions, device=device) % 1000
    buffers.load(tokens, 200, 216)
    layer = compiled_layer(pack, device, options.mode)
    keys = buffers.keys(len(tokens))

    def forward() -> None:
        answer(pack, buffers, pack.head, options.positions, 8, keys, layer=layer)
        settle(device)

    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - began)
    sys.stdout.write(json.dumps({"first_s": seconds[0], "again_s": seconds[1]}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
