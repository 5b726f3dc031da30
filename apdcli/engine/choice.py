"""Which engine runs a pair: "eager", "fast" or "graphs". "auto" is the fastest proven equal.

Proven means: on a CPU in float32, tests compare the fast engine's greedy events with the eager
one's; on a CUDA device, every graph's first result is compared with the eager engine's before it
is believed (`engine.graphs`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from apdcli.decode.types import Pair
from apdcli.engine.eager import EagerDenoiser, EagerVerifier
from apdcli.engine.fast import FastDenoiser, FastVerifier
from apdcli.engine.graphs import GraphDenoiser, GraphVerifier
from apdcli.errors import DeviceError
from apdcli.models.quantized_packed import pack
from apdcli.models.transformer import Transformer

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
        DeviceError: the engine cannot run there; says what can.
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
        for net in nets:
            pack(net)
    return name


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
