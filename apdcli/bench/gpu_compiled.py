"""An arm of the GPU run that no engine follows yet: torch.compile within a graph.

`python -m apdcli.bench.gpu_compiled SHAPES DEVICE DTYPE MODE POSITIONS` is one start in a process
of its own: it compiles a layer and prints the seconds, for the arm to compare a start with an empty
cache on disk with the one after it. With `--replays M ...` it then compares graphs. A compiler that
takes too long, or takes its process with it, costs the run only what it was given.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import platformdirs
import torch
from torch import Tensor
from torch.nn import functional as F

from apdcli.bench.gpu_kernels import LOOKAHEADS, WINDOW, Scene
from apdcli.bench.gpu_stage import Stage, best_seconds, settle
from apdcli.bench.shapes import random_transformer
from apdcli.bench.sizes import find_shapes
from apdcli.engine.graphs import TOLERANCE, GraphDenoiser
from apdcli.engine.static import Buffers, Layer, Window, answer, bucket, record
from apdcli.load.home import home_path
from apdcli.models.packed import Packed, PackedLayer, packed

MODES = ("default", "max-autotune-no-cudagraphs")


def compiled(stage: Stage) -> dict[str, Any]:
    """The denoiser's graph with layers by torch.compile against the plain one, replay by replay.

    The compiled layer is the plain one's mathematics for the compiler to fuse; matrix products are
    the library's or, with max-autotune, the fastest that it finds. It runs within our own graph,
    so that launches cost neither anything. On a device other than CUDA the compiler only traces.
    All of it runs in other processes, which are ended when the time is up: their lines stay.

    Returns:
        cache: the folder of the compiler's files. modes: for each, `starts`, the seconds of
        compilation with an empty cache and of a second start, and `replays`, for each lookahead
        seconds of a replay, plain and compiled, their ratio, and how far their logits lie apart in
        units of their spread; `failed` where a process ended before its end.

    Raises:
        RuntimeError: no mode gave anything.
    """
    folder = _cache_folder()
    found: dict[str, Any] = {"cache": str(folder), "modes": []}
    found["layers"] = stage.shapes.denoiser.num_layers
    found["tolerance"] = TOLERANCE[stage.dtype]
    stage.pair = None  # the processes make models of their own
    gc.collect()
    if stage.device.type == "cuda":
        torch.cuda.empty_cache()
    for mode in MODES[:1] if stage.device.type != "cuda" else MODES:
        if stage.out_of_time():
            return {**found, "skipped": True, "reason": "the time was up"}
        found["modes"].append(_mode(stage, mode, folder / mode))
    apart = [r["difference"] for made in found["modes"] for r in made["replays"]]
    if apart:
        found["within"] = max(apart) <= TOLERANCE[stage.dtype]
    if stage.out_of_time():
        return {**found, "skipped": True, "reason": "the time was up"}
    if not apart:
        raise RuntimeError(found["modes"][0].get("failed", "no replay"))
    return found


def _mode(stage: Stage, mode: str, cache: Path) -> dict[str, Any]:
    """Both starts of one mode, the second with replays."""
    shutil.rmtree(cache, ignore_errors=True)
    positions = bucket(LOOKAHEADS[0] + WINDOW + stage.accept - 1) or 128
    words = [stage.shapes.name, str(stage.device), stage.dtype_name, mode, str(positions)]
    replays = ["--accept", str(stage.accept), "--replays", *map(str, LOOKAHEADS)]
    made: dict[str, Any] = {"mode": mode, "positions": positions, "starts": [], "replays": []}
    for more in ([], replays):
        command = [sys.executable, "-m", "apdcli.bench.gpu_compiled", *words, *more]
        lines, failed = _bounded(command, _variables(cache), stage.seconds_left)
        made["starts"] += lines[:1]
        made["replays"] += lines[1:]
        if failed:
            return {**made, "failed": failed}
    return made


def _bounded(
    command: Sequence[str], variables: Mapping[str, str], seconds: float
) -> tuple[list[dict[str, Any]], str]:
    """Objects that a process printed, a line each, and why it ended, "" where it was done.

    When the time is up, and after Ctrl-C, its compiler's own processes end with it.
    """
    with subprocess.Popen(
        command,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        failed = ""
        try:
            out, said = process.communicate(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            failed = "the time was up"
            _end(process)
            out, said = process.communicate()
        except BaseException:
            _end(process)
            raise
    if process.returncode and not failed:
        failed = f"status {process.returncode}: {' '.join(said.split())[-500:]}"
    return [json.loads(line) for line in out.splitlines(keepends=True) if line[-1] == "\n"], failed


def _end(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Print the seconds of the first call of a compiled layer and of another; then the replays."""
    parser = argparse.ArgumentParser(
        prog="python -m apdcli.bench.gpu_compiled", description=__doc__
    )
    for name in ("shapes", "device", "dtype", "mode"):
        parser.add_argument(name)
    parser.add_argument("positions", type=int)
    parser.add_argument("--replays", type=int, nargs="*", default=[], metavar="M")
    parser.add_argument("--accept", type=int, default=5)
    options = parser.parse_args(argv)
    stage = Stage(
        device=torch.device(options.device),
        dtype=getattr(torch, options.dtype),
        shapes=replace(find_shapes(options.shapes), verifier=None),
        accept=options.accept,
        repeats=1,
        deadline=math.inf,
    )
    _print(_compile_times(stage, options.mode, options.positions))
    # Weights are arguments and the same sizes in every layer: one compilation serves all.
    torch.compiler.reset()
    for m in options.replays:
        _print(_replays(stage, options.mode, m))
    return 0


def _print(found: dict[str, Any]) -> None:
    """At once: what stands is kept when the process is ended."""
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


@torch.inference_mode()
def _compile_times(stage: Stage, mode: str, positions: int) -> dict[str, Any]:
    """Of a network of two layers of these sizes."""
    config = replace(stage.shapes.denoiser, num_layers=2, vocab_size=1024, mask_id=3)
    pack = packed(random_transformer(config, stage.device, stage.dtype, seed=1))
    buffers = Buffers.allocate(pack, 512)
    tokens = torch.arange(200 + positions, device=stage.device) % 1000
    buffers.load(tokens, 200, 216)
    layer = compiled_layer(pack, stage.device, mode)
    keys = buffers.keys(len(tokens))

    def forward() -> None:
        answer(pack, buffers, pack.head, positions, 8, keys, layer=layer)
        settle(stage.device)

    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - began)
    return {"first_s": seconds[0], "again_s": seconds[1]}


if __name__ == "__main__":
    sys.exit(main())
