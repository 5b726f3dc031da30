"""The machine, in words and numbers: names, threads, and how much memory a run took at most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch

from apdcli import __version__

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def describe(device: torch.device) -> dict[str, Any]:
    """What a figure depends on, beside versions; without names of hosts or users."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": _cores(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device_memory"] = properties.total_memory
        found["cuda"] = torch.version.cuda
    return found


def versions() -> dict[str, str]:
    """The versions that a figure depends on."""
    return {
        "apdcli": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return _processor() if device.type == "cpu" else f"{device.type}, {_processor()}"


class PeakMemory:
    """The most memory taken between two moments, and how much of it was there at the first.

    On CUDA the allocator's own high-water mark. On a CPU the process's resident set: where Linux
    lets its high-water mark be lowered, that of the stretch alone (memory that earlier runs left
    to the C library is given back first); elsewhere that of the whole process so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda" if device.type == "cuda" else "rss"
        self._floor = 0

    def start(self) -> None:
        """Count from here."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._floor = torch.cuda.memory_allocated(self.device)
            return
        _give_back()
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            self.kind = "rss of the whole process"
        self._floor = _status("VmRSS") or 0

    def read(self) -> tuple[int, int]:
        """(bytes at most since `start`, how many of them were not there at `start`)."""
        if self.device.type == "cuda":
            most = torch.cuda.max_memory_allocated(self.device)
        else:
            most = _status("VmHWM") or _whole_process()
        return most, max(0, most - self._floor)


def _status(name: str) -> int | None:
    with contextlib.suppress(OSError):
        match = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
        if match:
            return int(match[1]) * 1024
    return None


def _whole_process() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _give_back() -> None:
    """Let the C library return the free memory that it keeps; glibc alone has a call for it."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _processor() -> str:
    with contextlib.suppress(OSError):
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
