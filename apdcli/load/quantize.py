"""Weight-only quantization while weights are read: torchao chooses the integers and their scales.

Which parameters take part is `models.formats`, what is done with the integers `models.quantized`.
torchao is an extra: it is imported here alone, and only when it is asked for.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from apdcli.errors import DeviceError, ModelError
from apdcli.load.files import one_line
from apdcli.models.config import ModelConfig
from apdcli.models.formats import GROUP, format_of, unfit
from apdcli.models.quantized import LINEARS, Int4Linear, QuantizedLinear
from apdcli.models.transformer import Transformer

INSTALL = "pip install 'apdcli[quantize]'"
_PIECE = 2**24  # weights that are quantized at a time, in float32 with as many temporaries


def check_quantize(quantize: str, config: ModelConfig, source: str) -> None:
    """Refuse a format that cannot be had, before any weight is read.

    Args:
        quantize: none, int8 or int4.
        config: of the model.
        source: its folder, for messages.

    Raises:
        ModelError: a matrix does not fit it.
        DeviceError: torchao is not installed.
    """
    if quantize == "none":
        return
    reason = unfit(config, quantize)
    if reason is not None:
        raise ModelError(f"{source} cannot be quantized to {quantize}: {reason}")
    try:
        metadata.version("torchao")
    except metadata.PackageNotFoundError:
        raise DeviceError(
            f"quantization needs torchao, which is not installed: {INSTALL}"
        ) from None


def empty_layers(net: Transformer, quantize: str) -> None:
    """Put quantized layers, still without weights, in the places of the linear ones.

    Args:
        net: on the meta device.
        quantize: int8 or int4; it fits.
    """
    linears = [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear)]
    for path, linear in linears:
        kind = LINEARS[format_of(f"{path}.weight", quantize)]
        owner, _, leaf = path.rpartition(".")
        made = kind(linear.in_features, linear.out_features, bias=linear.bias is not None)
        setattr(net.get_submodule(owner), leaf, made)


def fill(layer: QuantizedLinear, weight: Tensor, device: torch.device, dtype: torch.dtype) -> None:
    """Quantize a weight [out, in] into its layer, some rows at a time on the device.

    Args:
        weight: as it is stored, anywhere.
        device, dtype: where the integers go, and what their scales are in.

    Raises:
        DeviceError: torchao cannot be used with this torch.
    """
    step = max(1, _PIECE // layer.in_features)
    pieces = [
        _quantized(layer, piece.to(device, torch.float32)) for piece in torch.split(weight, step)
    ]
    for leaf in pieces[0]:
        made = torch.cat([piece[leaf] for piece in pieces])
        if leaf == "scale":
            made = made.to(dtype)
        layer.register_parameter(leaf, nn.Parameter(made, requires_grad=False))
    if isinstance(layer, Int4Linear):
        layer.pack()


def _quantized(layer: QuantizedLinear, weight: Tensor) -> dict[str, Tensor]:
    """The parameters of some rows [rows, in] float32 of a layer."""
    bits = 4 if isinstance(layer, Int4Linear) else 8
    integers, scale, zero = _by_torchao(weight, bits)
    if bits == 8:
        return {"quantized": integers, "scale": scale}
    # torchao's integers are -8 to 7, and so are their zero points.
    halves = (integers + 8).to(torch.uint8).view(len(weight), layer.groups, 2, GROUP // 2)
    return {
        "quantized": halves[:, :, 0] | (halves[:, :, 1] << 4),
        "scale": scale,
        "zero": (zero + 8).to(torch.uint8),
    }


def _by_torchao(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """(integers [rows, in] int8, scale and zero point [rows, groups]) of weight [rows, in]."""
    try:
        with _quiet():
            from torchao.quantization import IntxWeightOnlyConfig, quantize_
            from torchao.quantization.granularity import PerAxis, PerGroup
            from torchao.quantization.quant_primitives import MappingType

            # At 8 bits one symmetric scale a row costs next to nothing; at 4 bits a zero point
            # takes a seventh off the error.
            config = IntxWeightOnlyConfig(
                weight_dtype=getattr(torch, f"int{bits}"),
                granularity=PerAxis(0) if bits == 8 else PerGroup(GROUP),
                mapping_type=MappingType.SYMMETRIC if bits == 8 else MappingType.ASYMMETRIC,
                version=2,
            )
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=False)
            holder = nn.Sequential(linear)
            quantize_(holder, config)
            made: Any = linear.weight
            return made.qdata, made.scale, made.zero_point
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a library of another age may raise
        raise DeviceError(
            f"torchao {_version()} cannot quantize with torch {torch.__version__} "
            f"({one_line(error)[:120]}); {INSTALL} --upgrade, or see "
            "https://github.com/pytorch/ao/issues/2919 for which versions go together"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torchao's notes on kernels that are not used here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _version() -> str:
    try:
        return metadata.version("torchao")
    except metadata.PackageNotFoundError:
        return "(not installed)"
