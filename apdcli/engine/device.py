"""Which device a model runs on, in what format, and what to say when it is full."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from apdcli.errors import DeviceError
from apdcli.load.files import one_line


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


def is_full(error: BaseException) -> bool:
    """Whether torch found no memory. For a CPU's it has no exception of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def no_room(error: BaseException, device: torch.device, what: str) -> DeviceError:
    """The one line for a full device: what was needed, what was free, what to lower.

    Args:
        error: what torch raised.
        device: the full one.
        what: what was to be put there.
    """
    needed = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    sized = f" (needed {needed.group(1)} more" if needed else f" ({one_line(error)[:120]}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        sized += f"; {free / 2**30:.2f} of {total / 2**30:.2f} GiB are free"
    elsewhere = "" if device.type == "cpu" else " or --device cpu"
    return DeviceError(
        f"{device} has no room for {what}{sized}); lower --max-tokens or -M, "
        f"shorten the prompt, or use --dtype bfloat16{elsewhere}"
    )


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be taken on a device now; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    try:  # Linux
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
