"""What a device that cannot, or is full, says: one line that names what and how to mend it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from apdcli.decode.types import Finished, StepEvent
from apdcli.engine.device import check_dtype, no_room
from apdcli.engine.pair import load_pair
from apdcli.engine.session import with_room
from apdcli.errors import DeviceError

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


def test_a_dtype_that_the_device_cannot_compute_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for name in ("auto", "float32", "bfloat16"):
        check_dtype(name, cpu)

    def refuse(*_: object) -> None:
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", refuse)
    with pytest.raises(DeviceError, match=r"'float16' is not supported by cpu.*--dtype float32"):
        check_dtype("float16", cpu)


def test_a_loaded_pair_computes_without_subnormal_numbers() -> None:
    torch.set_flush_denormal(False)
    try:
        tiny = torch.tensor(1e-30)
        assert float(tiny * 1e-10) > 0
        load_pair("demo", device="cpu")
        assert float(tiny * 1e-10) == 0
        assert float(tiny * 1e-7) > 0
    finally:
        torch.set_flush_denormal(False)
