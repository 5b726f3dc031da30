"""The kernels that draw at T > 0 compiled for GPUs that are not here, see `test_fused_compiled`."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if sys.platform != "linux" or os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton compiles on Linux, and not while it interprets", allow_module_level=True)

from tests.engine.test_fused_compiled import (  # noqa: E402 (after what it needs is known)
    ALIGNED,
    Compiled,
    Hopper,
    resources,
)

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
VOCAB = 151665  # Dream's: no multiple of 16
STRIDES = {"d_stride": "i32", "a_stride": "i32", "vocab": "i32"}
SCALES = dict.fromkeys(("weight", "rest", "scale"), "fp32")
WANTED = {
    "best_noised_of_part": {
        "d": "*fp32", "a": "*bf16", "count": "*i64", "edge": "*fp32", "key": "*i64",
        "value": "*fp32", "id_": "*i32", **STRIDES, **SCALES, "first": "i32",
    },
    "edge_of_row": {
        "d": "*fp32", "a": "*bf16", "count": "*i64", "edge": "*fp32", **STRIDES, **SCALES,
        "k": "fp32", "p": "fp32",
    },
    "best_of_parts": {"value": "*fp32", "id_": "*i32", "out": "*i64"},
}  # fmt: skip
ODD = {"vocab", *SCALES, "first", "k", "p", "count"}  # no multiples of 16, as far as is known
# A draw reads d alone; the verifier's logits are mixed in, in any dtype, where it accepts.
READ = pytest.mark.parametrize("a", [None, "*bf16", "*fp32"], ids=["draw", "accept", "accept32"])
CAPABILITIES = pytest.mark.parametrize("capability", [80, 90])


@functools.cache
def _built(kernel: str, a: str | None, capability: int, warps: int, **constants: int) -> Any:
    """A kernel as the launcher asks for it; pointers and strides are multiples of 16."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from apdcli.engine import draw_kernels as kernels

    wanted = {**WANTED[kernel], **({"a": a or "*fp32"} if kernel != "best_of_parts" else {})}
    if kernel != "best_of_parts":
        constants |= {"FIRST": int(a is not None), "MIX": a is not None}
    signature = {**wanted, **dict.fromkeys(constants, "constexpr")}
    hints = {(i,): ALIGNED for i, name in enumerate(wanted) if name not in ODD}
    source = ASTSource(getattr(kernels, kernel), signature, constants, hints)
    options = {"num_warps": warps}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _drawn_from(a: str | None, capability: int, edge: bool) -> Any:
    from apdcli.decode.noise import RUN
    from apdcli.engine import fused_kernels as greedy

    blocks, parts = greedy.cut(100, VOCAB, 4 * RUN)
    sizes = {"EDGE": edge, "PARTS": parts, "BLOCKS": blocks}
    return _built("best_noised_of_part", a, capability, greedy.WARPS, **sizes)


def _searched(a: str | None, capability: int, top_k: bool, top_p: bool) -> Any:
    from apdcli.engine import draw_kernels as kernels

    block = kernels.SEARCHED
    sizes = {"BITS": kernels.BITS, "BLOCKS": triton.cdiv(VOCAB, block), "BLOCK": block}
    asked = {"TOP_K": top_k, "TOP_P": top_p}
    return _built("edge_of_row", a, capability, kernels.SEARCH_WARPS, **asked, **sizes)


def _wide(built: Any) -> int:
    """How many loads of 16 bytes there are."""
    return len(re.findall(r"ld\.global\S*\.v4\.b32", built.asm["ptx"]))


@CAPABILITIES
@READ
@pytest.mark.parametrize("edge", [False, True])
def test_a_draw_reads_16_bytes_at_a_time_and_spills_nothing(
    edge: bool, a: str | None, capability: int, tmp_path: Path
) -> None:
    built = _drawn_from(a, capability, edge)
    # Four runs of a block, each four entries a thread; the verifier's of 16 bits are 8 bytes.
    assert _wide(built) == (8 if a == "*fp32" else 4)
    used = resources(built, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= 80  # three programs of 8 warps fit a multiprocessor


@CAPABILITIES
@READ
def test_the_noises_logarithms_are_accurate(a: str | None, capability: int) -> None:
    """Of a number near 1 the approximation of the hardware has no right digit."""
    ptx = _drawn_from(a, capability, True).asm["ptx"]
    assert not re.findall(r"\blg2\.approx", ptx)
    # A polynomial instead, in a fused step a coefficient: two a number, 16 numbers a thread.
    assert len(re.findall(r"\bfma\.rn(\.ftz)?\.f32", ptx)) >= 2 * 8 * 16
    # And Philox's products are of unsigned words.
    assert re.findall(r"\bmul\.(hi\.u32|wide\.u32)", ptx)


@CAPABILITIES
@READ
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(True, False), (False, True), (True, True)], ids=["k", "p", "both"]
)
def test_a_search_reads_16_bytes_at_a_time_and_spills_nothing(
    top_k: bool, top_p: bool, a: str | None, capability: int, tmp_path: Path
) -> None:
    from apdcli.engine import draw_kernels as kernels

    built = _searched(a, capability, top_k, top_p)
    # A pass for top-k; for top-p one for the largest, one for the sum, and one for the search.
    passes = top_k + 3 * top_p
    entries = kernels.SEARCHED // (32 * kernels.SEARCH_WARPS)  # a thread, of one block
    assert entries % 4 == 0
    assert _wide(built) >= passes * entries // 4 * (2 if a == "*fp32" else 1)
    used = resources(built, tmp_path)
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] * 32 * kernels.SEARCH_WARPS <= 65536  # or it does not start
    # Sums of warps alone: no entry goes from one thread to another.
    assert built.metadata.shared < 1024


@CAPABILITIES
@pytest.mark.parametrize("parts", [13, 38])
def test_what_puts_parts_together_needs_no_memory_of_its_own(
    parts: int, capability: int, tmp_path: Path
) -> None:
    cells = triton.next_power_of_2(parts)
    used = resources(_built("best_of_parts", None, capability, 1, PARTS=parts, CELLS=cells),
                     tmp_path)  # fmt: skip
    assert used["STACK"] == used["LOCAL"] == 0


def test_launches_compile_once_for_drafts_of_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few rows and of many, at every step of a generation, with and without an odd first row."""
    from triton.runtime.driver import driver

    from apdcli.decode.noise import KeyedNoise
    from apdcli.decode.params import DecodeParams
    from apdcli.engine import draw_kernels as kernels
    from apdcli.engine import fused_kernels as greedy

    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", Hopper())
    names = ("edge_of_row", "best_noised_of_part", "best_of_parts")
    asked: dict[str, list[Any]] = {name: [] for name in names}
    for name, seen in asked.items():
        monkeypatch.setattr(kernels, name, Compiled(getattr(kernels, name), seen))
    monkeypatch.setattr(greedy, "agreeing_prefix", Compiled(greedy.agreeing_prefix, []))
    wide = torch.zeros(112, 152064)
    wide_a = torch.zeros(112, 151680, dtype=torch.bfloat16)
    params = DecodeParams(temperature=0.8, top_p=0.9)
    for step, rows in enumerate((100, 96, 64, 33)):
        noise = KeyedNoise(params, torch.tensor((2**40 + step, step)), VOCAB, 3)
        kernels.drawn(wide[:rows, :VOCAB], noise, 0)
        draft = torch.zeros(rows, dtype=torch.int64)
        d, a = wide[:rows, :VOCAB], wide_a[: rows - 1]
        kernels.accepted(d, a, draft, torch.tensor([rows]), 0.5, noise)
    counts = {name: len({built.hash for built in seen}) for name, seen in asked.items()}
    assert counts == {"edge_of_row": 2, "best_noised_of_part": 2, "best_of_parts": 1}
    assert all(_wide(built) >= 4 for built in asked["best_noised_of_part"])
