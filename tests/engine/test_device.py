"""What a device that cannot, or is full, says: one line that names what and how to mend it."""

from __future__ import annotations

import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apdcli
from apdcli.bench.shapes import random_transformer
from apdcli.bench.sizes import SHAPES
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine import pair as pair_module
from apdcli.engine.batch import run_batch
from apdcli.engine.choice import packing_bytes
from apdcli.engine.device import check_dtype, flush_subnormals, is_full, no_room
from apdcli.engine.pair import load_pair
from apdcli.engine.session import prepare, with_room
from apdcli.errors import DeviceError
from apdcli.load.settings import resolve_settings
from apdcli.load.weights import load_transformer
from apdcli.models.cache import KVCache
from apdcli.models.packed import Packed
from apdcli.models.rows import RowCache
from tests.conftest import DATA

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has\nmore")


def test_a_full_device_says_what_was_needed_and_what_to_lower() -> None:
    def events() -> Iterator[StepEvent | Finished]:
        yield Finished("length", 0, 0, 0, 0, 0.0)
        raise FULL

    guarded = with_room(events(), torch.device("cpu"), "1,024 positions")
    assert isinstance(next(guarded), Finished)
    with pytest.raises(DeviceError, match=r"1,024 positions \(needed 2.50 GiB more\); lower") as e:
        next(guarded)
    assert "\n" not in str(e.value)
    assert "\n" not in str(no_room(RuntimeError("two\nlines"), torch.device("cpu"), "it"))


@pytest.mark.parametrize(("dtype", "offered"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_smaller_format_is_offered_where_it_is_smaller(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, offered: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 79 * 2**30))
    said = str(no_room(FULL, torch.device("cuda", 0), "1,024 positions", dtype))
    assert "(needed 2.50 GiB more; 3.00 of 79.00 GiB are free); lower --max-tokens or -M" in said
    assert said.endswith("use --dtype bfloat16 or --device cpu" if offered else "use --device cpu")
    assert ("--dtype" in said) is offered


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("unable to mmap 5866552 bytes from file <a>: Cannot allocate memory (12)"),
        MemoryError(),
    ],
)
def test_every_way_to_say_full_is_known(error: Exception) -> None:
    assert is_full(error)
    assert not is_full(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_other_errors_pass() -> None:
    def events() -> Iterator[StepEvent | Finished]:
        yield Finished("length", 0, 0, 0, 0, 0.0)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(with_room(events(), torch.device("cpu"), "it"))


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_a_cpu_that_is_full_says_so_too(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Its caches are allocated at their first use, and torch has no exception for it."""

    def endless(self: KVCache) -> Tensor:
        return torch.empty(10**16)

    monkeypatch.setattr(KVCache, "_zeros", endless)
    monkeypatch.setattr(RowCache, "keys", property(endless))
    pair = load_pair("demo", device="cpu")
    request = prepare(pair, "hi", resolve_settings(pair.profile, {}, {}))

    def ask() -> None:
        if rows == 0:
            apdcli.fill(pair, "One, ___ and three.", gap=4)
        for result in run_batch([request] * rows, max(rows, 1)):
            raise result.error or AssertionError(result)

    with pytest.raises(DeviceError, match=r"no (room|memory) for .*lower") as e:
        ask()
    assert "--device cpu" not in str(e.value)


@pytest.mark.parametrize(
    "error",
    [FULL, RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ..."), None],
)
def test_a_device_full_at_packing_says_so_and_lets_all_go(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """In the second model: whoever loads a smaller pair has all the memory of this one."""
    load, join = pair_module._load, Packed.joined
    nets: list[weakref.ref[Any]] = []
    joined: list[int] = []

    def loaded(*args: Any) -> Any:
        net = load(*args)
        nets.append(weakref.ref(net))
        return net

    def full(self: Packed, *linears: Any) -> Tensor:
        if len(nets) == 2 and self.net is nets[1]() and len(joined) > 30:
            raise error or ValueError("of another kind")
        joined.append(1)
        return join(self, *linears)

    monkeypatch.setattr(pair_module, "_load", loaded)
    monkeypatch.setattr(Packed, "joined", full)
    if error is None:
        with pytest.raises(ValueError, match="of another kind"):
            load_pair("demo", device="cpu")
        return
    with pytest.raises(
        DeviceError,
        match=r"^cpu has no room for packing the weights of the qwen2 model: it takes 0\.\d MiB "
        r"and \S+ [GM]iB were free; use --engine eager, --quantize int8, --dtype bfloat16 or "
        r"another model$",
    ) as e:
        load_pair("demo", device="cpu")
    assert e.value.__cause__ is error
    assert [net() is None for net in nets] == [True, True]  # the error is still there


_FULL_FOR_REAL = """
import resource, torch
from dataclasses import replace
from pathlib import Path
from apdcli.bench.rates import measure_rates
from apdcli.bench.shapes import random_pair
from apdcli.bench.sizes import SHAPES
from apdcli.engine.choice import resolve_engine
from apdcli.errors import DeviceError
from apdcli.load.room import free_bytes

torch.set_num_threads(1)
cpu, tiny = torch.device("cpu"), SHAPES["tiny"]
wide = replace(tiny.denoiser, intermediate_size=20000, hidden_size=512, num_layers=3)
wide = replace(tiny, denoiser=wide)
net = random_pair(wide, cpu, torch.float32, "eager").denoiser
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**25, resource.RLIM_INFINITY))
assert free_bytes(cpu) <= 2**25
for work in (
    lambda: resolve_engine("fast", [net]),
    lambda: random_pair(wide, cpu, torch.float32, "eager"),
    lambda: measure_rates(cpu, torch.float32, weights=2**28, seconds=0),
):
    try:
        work()
    except DeviceError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of /proc and RLIMIT_AS")
def test_a_process_that_may_take_no_more_says_what_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FULL_FOR_REAL], capture_output=True, text=True, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    said = [re.sub(r"[\d.]+ MiB were", "N MiB were", line) for line in done.stdout.splitlines()]
    lighter = "--quantize int8, --dtype bfloat16"
    assert said == [
        "cpu has no room for packing the weights of the Dream model: it takes 78.1 MiB and N MiB "
        f"were free; use --engine eager, {lighter} or another model",
        "cpu has no room for the random weights of tiny: it takes 0.35 GiB and N MiB were free; "
        f"use {lighter}, smaller --shapes or another --device",
        "cpu has no room for measuring its rates: it takes 0.25 GiB and N MiB were free; "
        "use --rates BYTES,OPERATIONS in place of measuring or another --device",
    ]


def test_packing_takes_a_matrix_of_each_kind_or_all_that_is_mapped() -> None:
    config = SHAPES["tiny"].denoiser
    own = random_transformer(config, torch.device("cpu"), torch.float32, 0)
    layer: Any = own.model.layers[0]
    largest = max(2 * layer.mlp.gate_proj.weight.nbytes, own.lm_head.weight.nbytes)
    assert packing_bytes(own) == largest
    assert packing_bytes(own.to("meta")) == 2 * layer.mlp.gate_proj.weight.nbytes
    mapped = load_transformer(DATA / "apd" / "denoiser", device="cpu")
    linears = [m for m in mapped.modules() if isinstance(m, nn.Linear)]
    assert packing_bytes(mapped) == sum(linear.weight.nbytes for linear in linears)


def test_a_dtype_that_the_device_cannot_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("auto", "float32", "bfloat16"):
        check_dtype(name, cpu)

    def refuse(*_: object) -> None:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(DeviceError, match=r"'float16' is not supported by cpu.*--dtype float32"):
        check_dtype("float16", cpu)


def test_subnormal_numbers_are_flushed_on_a_cpu_and_only_when_asked() -> None:
    pair, tiny = load_pair("demo", device="cpu"), torch.tensor(1e-30)
    assert float(tiny * 1e-10) > 0
    flush_subnormals(pair.device)
    assert float(tiny * 1e-10) == 0
    assert float(tiny * 1e-7) > 0
