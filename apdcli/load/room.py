"""A device that is full: how it is known, what is free on it, what is said of it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from apdcli.errors import DeviceError
from apdcli.load.files import one_line
from apdcli.models.config import ModelConfig
from apdcli.models.formats import planned_bytes, unfit

GIB, _MIB = 2**30, 2**20
# What else than an exception of its own torch says of a full device: of a CPU, of a file that it
# maps, of a CUDA driver, of the library for its products.
_FULL = (
    "can't allocate memory",
    "Cannot allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_full(error: BaseException) -> bool:
    """Whether torch found no memory. It has no exception of its own for all the ways to say so."""
    said = str(error)
    own = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return own or any(words in said for words in _FULL)


def free_bytes(device: torch.device) -> int | None:
    """Memory that can be taken on a device now; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    try:  # Linux
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        allowed = _allowed_bytes()
    except OSError:
        return None
    there = [int(found[1]) * 1024] if found else []
    return min([*there, *allowed], default=None)


def _allowed_bytes() -> list[int]:
    """What `ulimit -v` leaves this process; empty without such a limit. Of Linux, as its caller."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return [max(0, limit - pages * resource.getpagesize())]


@contextlib.contextmanager
def room_for(
    device: torch.device, what: str, needed: int, uses: Sequence[str] = ()
) -> Iterator[None]:
    """Within it a full device ends in one line; what the calls within had half made is let go.

    Args:
        device: where memory is taken.
        what: it is taken for.
        needed: bytes that it takes at most.
        uses: what takes less.

    Raises:
        DeviceError: the device is full: what was needed, what was free before it, what to use.
    """
    free: int | None = None
    try:
        free = free_bytes(device)
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full(error):
            raise
        # Its frames hold what was half made, and a handler may load something smaller meanwhile.
        error.__traceback__ = None
        sized = f"it takes {_shown(needed)}"
        if free is not None:
            sized += f" and {_shown(free)} were free"
        offered = _use("; use ", uses)
        raise DeviceError(f"{device} has no room for {what}: {sized}{offered}") from error


def lighter(configs: Iterable[ModelConfig], dtype: torch.dtype, quantize: str) -> list[str]:
    """The options that make the weights of these models smaller.

    Args:
        configs: of the models.
        dtype, quantize: what their weights are in.
    """
    smaller = {"none": ("int8", "int4"), "int8": ("int4",)}.get(quantize, ())
    fitting = [name for name in smaller if all(unfit(c, name) is None for c in configs)]
    uses = [f"--quantize {name}" for name in fitting[:1]]
    return uses + (["--dtype bfloat16"] if dtype == torch.float32 else [])


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
        f"{device} has no room for {what}{sized}); {shorten}{_use('; or use ', uses)}"
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
    uses = lighter([config], dtype, quantize)
    uses += ["another model"] if device.type == "cpu" else ["another --device"]
    return DeviceError(f"{source}: {device} has no room for it: {sized}{_use('; use ', uses)}")


def _shown(size: int) -> str:
    """Bytes for people."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / _MIB:.1f} MiB"


def _use(before: str, words: Sequence[str]) -> str:
    """ "a, b or c" after what introduces it; nothing of nothing."""
    return before + either(words) if words else ""


def either(words: Sequence[str]) -> str:
    """ "a, b or c" of one word or more."""
    *rest, last = words
    return f"{', '.join(rest)} or {last}" if rest else last
