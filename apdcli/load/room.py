"""A device that is full: how it is known, what is free on it, what is said of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from apdcli.errors import DeviceError
from apdcli.load.files import one_line
from apdcli.models.config import ModelConfig
from apdcli.models.formats import planned_bytes, unfit

GIB = 2**30
# What else than an exception of its own torch says of a full device: of a CPU, of a CUDA driver, of
# the library for its products.
_FULL = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_full(error: BaseException) -> bool:
    """Whether torch found no memory. It has no exception of its own for all the ways to say so."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _FULL)


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


def no_room(
    error: BaseException,
    device: torch.device,
    what: str,
    dtype: torch.dtype | None = None,
    *,
    shorten: str = "lower --max-tokens or -M, or shorten the prompt",
    smaller: Sequence[str] = (),
) -> DeviceError:
    """The one line for a device that is full at work: what was needed and free, what to lower.

    Args:
        error: what torch raised.
        device: the full one.
        what: what was to be put there.
        dtype: what is computed in, where that is known: a smaller one is offered where it is large.
        shorten: what takes less room.
        smaller: what else the weights may be loaded as.
    """
    needed = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    sized = f" (needed {needed.group(1)} more" if needed else f" ({one_line(error)[:120]}"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        sized += f"; {free / GIB:.2f} of {total / GIB:.2f} GiB are free"
    uses = [*smaller, *(["--dtype bfloat16"] if dtype == torch.float32 else [])]
    uses += [] if device.type == "cpu" else ["--device cpu"]
    return DeviceError(
        f"{device} has no room for {what}{sized}); {shorten}{_or('; or use ', uses)}"
    )


def no_room_for_weights(
    source: str,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str,
    free: int | None,
) -> DeviceError:
    """The same for a device that is full before the model is there.

    Args:
        source: the model's folder.
        config, dtype, quantize: of the model and its weights.
        device: the full one.
        free: what was free before the first weight, where that is known.
    """
    size = planned_bytes(config, quantize, dtype.itemsize)
    kept = str(dtype).removeprefix("torch.") if quantize == "none" else quantize
    sized = f"its weights need {size / GIB:.2f} GiB in {kept}"
    if free is not None:
        sized += f" and {free / GIB:.2f} GiB were free"
    smaller = {"none": ("int8", "int4"), "int8": ("int4",)}.get(quantize, ())
    fitting = [name for name in smaller if unfit(config, name) is None]
    uses = [f"--quantize {name}" for name in fitting[:1]]
    uses += ["--dtype bfloat16"] if dtype == torch.float32 else []
    uses += ["another model"] if device.type == "cpu" else ["another --device"]
    return DeviceError(f"{source}: {device} has no room for it: {sized}{_or('; use ', uses)}")


def _or(before: str, words: list[str]) -> str:
    """ "a, b or c" after what introduces it; nothing of nothing."""
    *rest, last = words or [""]
    listed = f"{', '.join(rest)} or {last}" if rest else last
    return before + listed if listed else ""
