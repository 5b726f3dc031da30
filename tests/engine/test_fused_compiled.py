"""The Triton kernels compiled for GPUs that are not here: what the compiler makes of them.

Triton and its assembler need no GPU to compile for one. Whether the kernels are right is
`test_fused.py`'s and `test_layer.py`'s, on Triton's interpreter.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if sys.platform != "linux" or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles on Linux, and not while it interprets", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings(
    "ignore:TRITON_DEFAULT_FP_FUSION"
)  # no sum here is left to it
ALIGNED = [["tt.divisibility", 16]]
LOGITS = {"d": "*fp32", "a": "*bf16", "count": "*i64", "value": "*fp32", "id_": "*i32"}
NUMBERS = {"d_stride": "i32", "a_stride": "i32", "vocab": "i32", "weight": "fp32", "rest": "fp32"}
PREFIX = {"value": "*fp32", "id_": "*i32", "draft": "*i64", "count": "*i64", "out": "*i64"}


@functools.cache
def _built(kernel: str, dtype: str, round_vocab: bool, capability: int, **constants: int) -> Any:
    """A kernel as the launcher asks for it: pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apdcli.engine import fused_kernels as kernels

    wanted = {**LOGITS, "a": dtype, **NUMBERS} if kernel == "best_of_part" else PREFIX
    signature = {**wanted, **dict.fromkeys(constants, "constexpr")}
    odd = ("weight", "rest") if round_vocab else ("weight", "rest", "vocab")
    hints = {(i,): ALIGNED for i, name in enumerate(wanted) if name not in odd}
    source = ASTSource(getattr(kernels, kernel), signature, dict(constants), hints)
    options = {"num_warps": kernels.WARPS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(built: Any, folder: Path) -> dict[str, int]:
    """What a kernel takes of a multiprocessor: registers a thread, bytes of stack and so on."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(built.asm["cubin"])
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    words = [reader, "-res-usage", binary]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = {name: int(n) for name, n in re.findall(r"\b([A-Z]+):(\d+)", done.stdout + done.stderr)}
    assert {"REG", "STACK", "LOCAL"} <= set(found), done.stdout + done.stderr
    return found


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_a_row_is_read_in_16_byte_loads_and_nothing_spills(
    dtype: str, capability: int, tmp_path: Path
) -> None:
    part = {"PARTS": 16, "BLOCKS": 3, "BLOCK": 4096}  # M = 100 over 152,064 ids
    built = _built("best_of_part", dtype, True, capability, **part)
    ptx = built.asm["ptx"]
    # 16 entries a thread: 4 loads of four float32, and of the verifier's dtype 2 or 4.
    wide = re.findall(r"ld\.global\S*\.v4\.b32", ptx)
    assert len(wide) >= 4 + (2 if dtype == "*bf16" else 4), wide
    used = resources(built, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    if dtype == "*bf16":  # as real verifiers are: two programs of 8 warps fit a multiprocessor
        assert used["REG"] <= 128


def test_the_mixture_is_one_multiplication_and_one_fused_addition() -> None:
    part = {"PARTS": 16, "BLOCKS": 3, "BLOCK": 4096}
    ptx = _built("best_of_part", "*bf16", True, 90, **part).asm["ptx"]
    entries = len(re.findall(r"\bfma\.rn\.f32", ptx))
    assert entries >= 16
    assert entries == len(re.findall(r"\bmul\.(rn\.)?f32", ptx))
    assert not re.findall(r"\badd\.(rn\.)?f32", ptx)


@pytest.mark.parametrize(
    ("parts", "rows", "blocks"),
    [(16, 128, 1), (38, 32, 1), (38, 256, 2)],
    ids=["M=100", "M=32", "M=512"],
)
def test_the_prefix_needs_no_memory_of_its_own(
    parts: int, rows: int, blocks: int, tmp_path: Path
) -> None:
    cells = triton.next_power_of_2(parts)
    sizes = {"PARTS": parts, "CELLS": cells, "ROWS": rows, "BLOCKS": blocks}
    used = resources(_built("agreeing_prefix", "", True, 90, **sizes), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_a_vocabulary_of_any_size_compiles(tmp_path: Path) -> None:
    part = {"PARTS": 16, "BLOCKS": 3, "BLOCK": 4096}
    used = resources(_built("best_of_part", "*bf16", False, 90, **part), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


_STRIDES = {"stride": "i32", "head_stride": "i32", "row_stride": "i32"}


@functools.cache
def _of_layer(kernel: str, dtype: str, width: int, capability: int, heads: int = 0) -> Any:
    """A kernel of a layer as its launcher asks for it; `width` is a half head's or a row's."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apdcli.engine import layer_kernels as kernels

    def arrays(*names: str) -> dict[str, str]:
        return dict.fromkeys(names, dtype)

    block = kernels.NORM_BLOCK if kernel == "norm" else kernels.BLOCK
    rows, columns = kernels.tile(width, max(block, width if kernel == "norm" else 1))
    constants = {"ROWS": rows, "COLUMNS": columns}
    if kernel == "turn":
        tables = {**arrays("joined", "cos", "sin"), "positions": "*i64", **arrays("q", "k", "v")}
        wanted = {**tables, **_STRIDES, "length": "i32"}
        constants |= {"HEADS": heads, "KV_HEADS": heads // 7, "HALF": width}
    elif kernel == "gate":
        wanted = {**arrays("both"), "stride": "i32", "rows": "i32", "width": "i32"}
    else:
        sizes = {"stride": "i32", "rows": "i32", "width": "i32", "eps": "fp32"}
        wanted = {**arrays("x", "weight", "out"), **sizes}
    signature = {**wanted, **dict.fromkeys(constants, "constexpr")}
    odd = ("length", "rows", "eps")
    hints = {(i,): ALIGNED for i, name in enumerate(wanted) if name not in odd}
    source = ASTSource(getattr(kernels, kernel), signature, constants, hints)
    options = {"num_warps": kernels.warps(rows * columns), "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["*bf16", "*fp16", "*fp32"])
@pytest.mark.parametrize(
    ("kernel", "width", "heads", "loads", "stores"),
    [
        # Two halves of a head; of q and k two of cosines and of sines. Written: to q, k or v.
        ("turn", 64, 28, 6, 4),
        ("turn", 32, 14, 6, 4),
        ("gate", 18944, 0, 2, 1),
        ("gate", 4864, 0, 2, 1),
        ("norm", 3584, 0, 2, 1),
        ("norm", 4096, 0, 2, 1),
        ("norm", 896, 0, 1, 1),  # four rows a program share the weights
        ("norm", 8192, 0, 4, 2),
    ],
)
def test_a_layers_kernels_read_and_write_16_bytes_at_a_time_and_spill_nothing(
    kernel: str, width: int, heads: int, loads: int, stores: int, dtype: str, capability: int,
    tmp_path: Path,
) -> None:  # fmt: skip
    built = _of_layer(kernel, dtype, width, capability, heads)
    ptx = built.asm["ptx"]
    times = 2 if dtype == "*fp32" else 1
    assert len(re.findall(r"ld\.global\S*\.v4\.b32", ptx)) == times * loads
    assert len(re.findall(r"st\.global\S*\.v4\.b32", ptx)) == times * stores
    used = resources(built, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= 64  # all of a multiprocessor's threads fit


@pytest.mark.parametrize("kernel", ["turn", "gate", "norm"])
def test_a_layers_kernels_contract_nothing(kernel: str) -> None:
    """Each product is rounded before it is added, as torch's are."""
    ptx = _of_layer(kernel, "*fp32", 64 if kernel == "turn" else 1024, 90, 28).asm["ptx"]
    assert re.findall(r"\bmul\.(rn\.)?f32", ptx)
    assert re.findall(r"\badd\.(rn\.)?f32", ptx)
    assert not re.findall(r"\bfma\.", ptx)


class Compiled:
    """A kernel whose launches end before the GPU is asked: bound and compiled as real ones are."""

    def __init__(self, kernel: Any, asked: list[Any]) -> None:
        self.kernel, self.asked = kernel, asked

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **options: Any) -> None:
            built = self.kernel.run(*args, grid=grid, warmup=True, **options)
            self.asked.append(built.result() if hasattr(built, "result") else built)

        return launch


class Hopper:
    """What Triton asks a driver before it compiles."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


def test_a_layers_launches_compile_once_for_windows_of_all_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dream's sizes; what a length changes is but how many programs there are."""
    from triton.runtime.driver import driver

    from apdcli.engine import layer_kernels as kernels

    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", Hopper())
    asked: dict[str, list[Any]] = {"turn": [], "gate": [], "norm": []}
    for name, seen in asked.items():
        monkeypatch.setattr(kernels, name, Compiled(getattr(kernels, name), seen))
    dtype = torch.bfloat16
    for length in (1, 8, 24, 112, 256):
        both = torch.zeros(8, 264, 128, dtype=dtype)
        angles = torch.zeros(length, 128, dtype=dtype)
        joined, at = torch.zeros(length, 36 * 128, dtype=dtype), torch.arange(length)
        kernels.turned(joined, angles, angles, at, both[:4], both[4:])
        kernels.gated(torch.zeros(length, 2 * 18944, dtype=dtype))
        kernels.normed(torch.zeros(length, 3584, dtype=dtype), angles.new_ones(3584), 1e-6)
    for seen in asked.values():
        assert len(seen) == 5
        assert len({built.hash for built in seen}) == 1
        ptx = seen[0].asm["ptx"]
        assert not re.findall(r"\bfma\.", ptx)
        assert re.findall(r"ld\.global\S*\.v4\.b32", ptx)
