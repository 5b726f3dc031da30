"""Which engine runs a pair: "eager", "fast" or "graphs". "auto" is the fastest proven equal.

Proven means: on a CPU in float32, tests compare the fast engine's greedy events with the eager
one's; on a CUDA device, every graph's first result is compared with the eager engine's before it
is believed (`engine.graphs`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from apdcli.decode.types import Pair
from apdcli.engine.eager import EagerDenoiser, EagerVerifier
from apdcli.engine.fast import FastDenoiser, FastVerifier
from apdcli.engine.graphs import GraphDenoiser, GraphVerifier
from apdcli.errors import DeviceError
from apdcli.load.room import lighter, room_for
from apdcli.models.quantized import quantization_of
from apdcli.models.quantized_packed import pack
from apdcli.models.transformer import Layer, Transformer

_MODELS = {
    "eager": (EagerDenoiser, EagerVerifier),
    "fast": (FastDenoiser, FastVerifier),
    "graphs": (GraphDenoiser, GraphVerifier),
}


def resolve_engine(name: str, nets: Iterable[Transformer]) -> str:
    """The engine to use for these networks, prepared for it.

    Args:
        name: auto, eager, fast or graphs.
        nets: loaded networks; unless the engine is eager their weights are packed.

    Raises:
        DeviceError: the engine cannot run there; says what can. Or there is no room to pack them.
    """
    nets = list(nets)
    weights = [net.model.embed_tokens.weight for net in nets]
    if name == "auto":
        name = min((_best(weight) for weight in weights), key=list(_MODELS).index)
    elif name not in _MODELS:
        raise DeviceError(f"unknown engine {name!r}; use auto, {', '.join(_MODELS)}")
    for weight in weights:
        kind, dtype = weight.device.type, str(weight.dtype).removeprefix("torch.")
        if name == "graphs" and kind != "cuda":
            raise DeviceError(f"engine 'graphs' needs a CUDA device, not {kind}; use auto")
        if name == "fast" and kind == "cpu" and weight.dtype != torch.float32:
            raise DeviceError(
                f"engine 'fast' on the cpu needs float32, not {dtype}; use eager or auto"
            )
    if name != "eager":
        _pack([net for net in nets if net.packed is None])
    return name


def packing_bytes(net: Transformer) -> int:
    """Memory that packing a network takes at most, beside the weights that are there.

    A joined matrix takes the place of those that it was made of, one after another. Weights that
    are mapped from a file took none: their copies add up.
    """
    if quantization_of(net) != "none":
        return 0
    on_cpu = net.model.embed_tokens.weight.device.type == "cpu"
    groups: list[list[nn.Linear]] = []
    for layer in cast(Iterable[Layer], net.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        groups.append([attention.q_proj, attention.k_proj, attention.v_proj])
        groups.append([mlp.gate_proj, mlp.up_proj])
        if on_cpu:  # in another order there
            groups += [[attention.o_proj], [mlp.down_proj]]
    if on_cpu and not net.config.tied:
        groups.append([net.lm_head])
    added, passing = 0, 0
    for group in groups:
        size = sum(linear.weight.nbytes for linear in group)
        if group[0].weight.untyped_storage().resizable():
            passing = max(passing, size)
        else:  # not from torch's allocator: mapped
            added += size
    return added + passing


def _pack(nets: list[Transformer]) -> None:
    """Pack networks, all or none.

    Raises:
        DeviceError: no room for it.
    """
    try:
        for net in nets:
            weight = net.model.embed_tokens.weight
            uses = ["--engine eager", *lighter([net.config], weight.dtype, quantization_of(net))]
            uses.append("another model" if weight.device.type == "cpu" else "another --device")
            what = f"packing the weights of the {net.config.family} model"
            with room_for(weight.device, what, packing_bytes(net), uses):
                pack(net)
    except DeviceError:
        for net in nets:  # a network and its packed form hold each other
            net.packed = None
        raise


def _best(weight: Tensor) -> str:
    """The fastest engine that is known to be right for weights of that kind."""
    if weight.device.type == "cuda":
        return "graphs"
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return "fast" if plain else "eager"


def make_models(
    engine: str, denoiser: Transformer, verifier: Transformer | None, banned: Tensor, capacity: int
) -> Pair:
    """The models with empty caches for `capacity` positions, behind `decode`'s protocols."""
    denoising, verifying = _MODELS[engine]
    return Pair(
        denoising(denoiser, banned, capacity),
        None if verifier is None else verifying(verifier, banned, capacity),
    )
