"""What a device that cannot, or is full, says: one line that names what and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import apdcli
from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.batch import run_batch
from apdcli.engine.device import check_dtype, flush_subnormals, is_full, no_room
from apdcli.engine.pair import load_pair
from apdcli.engine.session import prepare, with_room
from apdcli.errors import DeviceError
from apdcli.load.settings import resolve_settings
from apdcli.models.cache import KVCache
from apdcli.models.rows import RowCache

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
