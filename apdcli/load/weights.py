"""Safetensors to a Transformer on its device: strict, no pickle, no second copy in memory.

What a folder holds is decided by `load.layout`; this module only moves the values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from apdcli.errors import DeviceError, ModelError
from apdcli.load.dtype import TORCH, resolve_dtype
from apdcli.load.files import one_line
from apdcli.load.layout import Layout, check_layout, damaged, read_config
from apdcli.load.quantize import check_quantize, empty_layers, fill
from apdcli.load.room import free_bytes, is_full, no_room_for_weights
from apdcli.models.quantized import QuantizedLinear
from apdcli.models.quantized_packed import pack
from apdcli.models.transformer import Transformer

__all__ = ["check_layout", "load_transformer", "read_config"]


def load_transformer(
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str = "auto",
    quantize: str = "none",
) -> Transformer:
    """Load a hub folder's weights (one file or shards) in evaluation mode, without gradients.

    Args:
        folder: holds config.json and model.safetensors, or shards with their index.
        device: where the weights go, tensor by tensor.
        dtype: what they are cast to; "auto": see :func:`apdcli.load.dtype.resolve_dtype`. Weights
            that are stored in it already stay memory-mapped on a CPU, read as they are used.
        quantize: none, int8 or int4, see `load.quantize`; matrix by matrix as they are read, so
            that the device never holds more than a piece of one in floating point.

    Raises:
        ModelError: every missing, unexpected or misshapen tensor, or a damaged file, by name; a
            matrix that the format does not fit.
        DeviceError: the device has no room, or is not there; torchao is missing or does not fit.
    """
    layout = check_layout(Path(folder))
    check_quantize(quantize, layout.config, str(layout.folder))
    device = torch.device(device)
    wanted = resolve_dtype(dtype, device, layout.dtypes) if isinstance(dtype, str) else dtype
    with torch.device("meta"), _NoInit():
        net = Transformer(layout.config)
        if quantize != "none":
            empty_layers(net, quantize)
    free: int | None = None
    try:
        free = free_bytes(device)
        _fill(net, layout, device, wanted)
        net.refresh_rope(device, _rope_dtype(layout, wanted))
    except (torch.OutOfMemoryError, RuntimeError, AssertionError) as error:
        if is_full(error):
            source = str(layout.folder)
            raise no_room_for_weights(
                source, layout.config, device, wanted, quantize, free
            ) from error
        raise DeviceError(
            f"{layout.folder}: cannot be loaded on {device} ({one_line(error)[:200]})"
        ) from error
    net.eval().requires_grad_(False)
    if quantize != "none":
        pack(net)  # engines and batches take the packed form as they find it
    return net


class _NoInit(TorchFunctionMode):
    """Skips random initialisation: on the meta device it imports 80 MB of compiler for nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _rope_dtype(layout: Layout, wanted: torch.dtype) -> torch.dtype:
    """Precision of the inverse RoPE frequencies."""
    # Dream's published code casts the whole model to bfloat16 and then up, frequencies included.
    upcast = layout.dtypes == ("bfloat16",) and wanted == torch.float32
    return torch.bfloat16 if layout.config.family == "Dream" and upcast else torch.float32


def _fill(net: Transformer, layout: Layout, device: torch.device, dtype: torch.dtype) -> None:
    """Put every stored tensor in its place in `net`, whose parameters are on the meta device."""
    for file in layout.files:
        names = {core: name for core, (name, entry) in layout.entries.items() if entry.file == file}
        mapped = device.type == "cpu" and all(
            TORCH[layout.entries[core][1].dtype] == dtype for core in names
        )
        try:
            if mapped:
                with safe_open(str(file), framework="pt") as opened:
                    for core, name in names.items():
                        _place(net, core, opened.get_tensor(name), device, dtype)
                continue
            for core, name in names.items():
                # Opened anew for each tensor: closing unmaps the pages that were read.
                with safe_open(str(file), framework="pt") as opened:
                    _place(net, core, opened.get_tensor(name), device, dtype)
        except SafetensorError as error:
            raise damaged(file, error) from error
        except OSError as error:
            raise ModelError(f"{file}: cannot be read ({one_line(error)})") from error


def _place(
    net: nn.Module, name: str, value: Tensor, device: torch.device, dtype: torch.dtype
) -> None:
    path, _, leaf = name.rpartition(".")
    owner = net.get_submodule(path)
    if isinstance(owner, QuantizedLinear) and leaf == "weight":
        fill(owner, value, device, dtype)
    else:
        value = value.to(device, dtype)
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
