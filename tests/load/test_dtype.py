"""Which number format "auto" is."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
import torch

from apdcli.errors import DeviceError
from apdcli.load import dtype as module
from apdcli.load.dtype import multiplies_bfloat16, resolve_dtype
from apdcli.load.weights import load_transformer
from tests.load.conftest import DATA

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("able", [True, False])
def test_auto_on_a_cpu_is_bfloat16_where_weights_and_processor_are(
    monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: able)
    expected = torch.bfloat16 if able else torch.float32
    assert resolve_dtype("auto", CPU, ("bfloat16",)) == expected
    for stored in ((), ("float16",), ("float32",), ("bfloat16", "float32")):
        assert resolve_dtype("auto", CPU, stored) == torch.float32
        assert resolve_dtype("auto", GPU, stored) == torch.bfloat16
    for name in ("float32", "float16", "bfloat16"):
        assert resolve_dtype(name, CPU, ("bfloat16",)) == getattr(torch, name)
    with pytest.raises(DeviceError, match="unknown dtype 'half'; use auto, float32, float16"):
        resolve_dtype("half", CPU)


@pytest.mark.parametrize("able", [True, False])
def test_a_folder_is_loaded_so(monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    """hub_dream is stored in bfloat16, the reference pair in float32, the embedded in float16."""
    monkeypatch.setattr(module, "multiplies_bfloat16", lambda: able)
    embedded = Path(module.__file__).parents[1] / "demo" / "pair" / "denoiser"
    dtypes = [
        {p.dtype for p in load_transformer(folder).parameters()}
        for folder in (DATA / "hub_dream", DATA / "apd" / "denoiser", embedded)
    ]
    assert dtypes == [{torch.bfloat16 if able else torch.float32}, {torch.float32}, {torch.float32}]


def test_the_processor_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("needs an x86 processor on Linux")
    able = re.search(r"\bavx512_bf16\b", cpuinfo.read_text()) is not None
    assert multiplies_bfloat16() is able
    for older in (True, False):  # before torch 2.13
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        asked = "_is_avx512_bf16_supported"
        monkeypatch.setattr(torch.cpu, asked, lambda older=older: older, raising=False)
        assert multiplies_bfloat16() is older
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert multiplies_bfloat16() is False
