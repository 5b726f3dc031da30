"""The Triton kernels compiled for GPUs that are not here: what the compiler makes of them.

Triton and its assembler need no GPU to compile for one. Whether the kernels are right is
`test_fused.py`'s, on Triton's interpreter.
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


def _resources(built: Any, folder: Path) -> dict[str, int]:
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
    used = _resources(built, tmp_path)
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
    used = _resources(_built("agreeing_prefix", "", True, 90, **sizes), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0


def test_a_vocabulary_of_any_size_compiles(tmp_path: Path) -> None:
    part = {"PARTS": 16, "BLOCKS": 3, "BLOCK": 4096}
    used = _resources(_built("best_of_part", "*bf16", False, 90, **part), tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
