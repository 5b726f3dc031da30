"""Which device a model runs on, in what format, and what to say when it is full."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from apdcli.errors import DeviceError
from apdcli.load.room import free_bytes, is_full, no_room

__all__ = [
    "attention_kernels",
    "check_dtype",
    "flush_subnormals",
    "free_bytes",
    "is_full",
    "no_room",
    "resolve_device",
]


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first CUDA device if there is one, else the CPU.

    Raises:
        DeviceError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            why = (
                "this torch was built without CUDA" if torch.version.cuda is None else "none found"
            )
            raise DeviceError(
                f"device {name!r} is not available: no CUDA device ({why}); use --device cpu"
            )
        if device.index is not None and device.index >= count:
            raise DeviceError(
                f"device {name!r} is not available: this machine has {count} CUDA device(s), "
                f"cuda:0 to cuda:{count - 1}"
            )
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device {name!r} is not available on this machine; use --device cpu")
    elif device.type not in ("cpu", "mps"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def flush_subnormals(device: torch.device) -> None:
    """On a CPU: this thread, and those started after it, round numbers below 1.2e-38 to zero.

    Attention over a long text is full of such probabilities, and arithmetic on them takes many
    times as long as on others. The commands call it, the library does not: it is the process's
    state. `torch.set_flush_denormal(False)` undoes it.
    """
    if device.type == "cpu":
        torch.set_flush_denormal(True)


def attention_kernels(device: torch.device) -> AbstractContextManager[None]:
    """Within it, attention on a CUDA device does without cuDNN's kernels.

    Torch 2.11 and later prefer these on Hopper GPUs; they make a plan, some tens of milliseconds,
    for every length of a text that they meet, and texts here meet all.
    """
    if device.type != "cuda":
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(kernels)


def check_dtype(name: str, device: torch.device) -> None:
    """Refuse a format that the device cannot compute in.

    Args:
        name: auto, float32, float16 or bfloat16.
        device: where the weights will be.

    Raises:
        DeviceError: naming the format, the device and what works there.
    """
    if name == "auto":
        return
    dtype: torch.dtype = getattr(torch, name)
    works = True
    if device.type == "cuda" and dtype == torch.bfloat16:
        with torch.cuda.device(device):
            works = torch.cuda.is_bf16_supported(including_emulation=False)
    if works:
        try:
            ones = torch.ones(2, 2, device=device, dtype=dtype)
            torch.mm(ones, ones)
        except RuntimeError:
            works = False
    if not works:
        other = "float16 or float32" if device.type == "cuda" else "float32"
        raise DeviceError(f"dtype {name!r} is not supported by {device}; use --dtype {other}")
