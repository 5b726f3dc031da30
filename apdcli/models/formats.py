"""Which parameters are kept as integers, and how many bytes they take then. Loads no torch.

The arithmetic with them is `models.quantized`.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from apdcli.models.config import ModelConfig
from apdcli.models.names import HEAD, weight_shapes

GROUP = 32  # inputs that share a scale at 4 bits
KERNEL_ROWS = 16  # the rows of a matrix that torch's 4-bit kernel takes: a multiple of these


def format_of(parameter: str, quantize: str) -> str:
    """What a network's parameter is kept in: "none", "int8" or "int4".

    The layers' matrices are in the format asked for, a head of its own in 8 bits in either: 4 cost
    it more than they save. The embedding, a head tied to it, norms and biases stay as they are.

    Args:
        parameter: the core's name of it.
        quantize: the format asked for.
    """
    if quantize == "none":
        return "none"
    if parameter == HEAD:
        return "int8"
    return quantize if parameter.endswith("_proj.weight") else "none"


def unfit(config: ModelConfig, quantize: str) -> str | None:
    """Why a model cannot be kept so, in words; None where it can."""
    # All layers are alike, and a config.json that nobody compared yet may ask for a billion.
    for parameter, shape in weight_shapes(replace(config, num_layers=1)).items():
        if format_of(parameter, quantize) == "int4" and shape[1] % GROUP:
            name = parameter.removesuffix(".weight")
            return f"{name} has {shape[1]} inputs, which are no multiple of {GROUP}; use int8"
    return None


def parameter_bytes(
    shape: tuple[int, ...], kept: str, float_bytes: int, *, kernel: bool = False
) -> int:
    """Memory of one parameter.

    Args:
        shape: of the parameter.
        kept: see :func:`format_of`.
        float_bytes: of a number that is computed with.
        kernel: in the order of torch's CPU kernel, where the layer has that.
    """
    count = prod(shape)
    if kept == "int8":
        return count + shape[0] * float_bytes
    if kept == "int4":
        packs = kernel and shape[0] % KERNEL_ROWS == 0
        return count // 2 + count // GROUP * (2 * float_bytes if packs else float_bytes + 1)
    return count * float_bytes


def planned_bytes(
    config: ModelConfig, quantize: str, float_bytes: int, *, kernel: bool = False
) -> int:
    """Memory of a network's weights, before it is loaded; see :func:`parameter_bytes`."""
    return sum(
        parameter_bytes(shape, format_of(name, quantize), float_bytes, kernel=kernel)
        for name, shape in weight_shapes(config).items()
    )
