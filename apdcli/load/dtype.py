"""The number format that weights are computed in."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from apdcli.errors import DeviceError

# Formats by name.
TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def resolve_dtype(name: str, device: torch.device, stored: Sequence[str] = ()) -> torch.dtype:
    """The dtype to compute in.

    "auto" is bfloat16 on a GPU. On a CPU it is float32, but for weights that are all stored in
    bfloat16 where the processor multiplies them as they are: 1.2 to 3.3 times as fast with the
    sizes of Qwen2.5-0.5B and Dream-7B (an AMD EPYC with AVX512-BF16), in half the memory.

    Args:
        name: auto, float32, float16 or bfloat16.
        device: where the weights will be.
        stored: the dtypes in which they are stored.

    Raises:
        DeviceError: no such dtype.
    """
    if name == "auto":
        as_stored = tuple(stored) == ("bfloat16",) and multiplies_bfloat16()
        return torch.bfloat16 if device.type != "cpu" or as_stored else torch.float32
    if name not in TORCH:
        raise DeviceError(f"unknown dtype {name!r}; use auto, {', '.join(TORCH)}")
    return TORCH[name]


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16 (AVX512-BF16)."""
    if hasattr(torch.cpu, "get_capabilities"):  # of torch 2.13
        return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(asked and asked())
