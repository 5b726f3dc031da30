"""A part of the GPU run: attention by each of torch's kernels, alike again and of a new size."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from apdcli.bench.gpu_kernels import LOOKAHEADS, WINDOW
from apdcli.bench.gpu_stage import Stage, best_seconds, settle
from apdcli.decode.sampling import NEVER
from apdcli.engine.device import is_full
from apdcli.engine.static import bucket
from apdcli.load.files import one_line
from apdcli.models.config import ModelConfig

KERNELS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")


def attention(stage: Stage) -> dict[str, Any]:
    """One layer's attention at the denoiser's sizes, in seconds.

    Returns:
        positions, heads: of the denoiser. attention: for each number of keys what torch takes by
        its own choice: masked_s, as graphs run it, groups as more queries under a mask of floats;
        repeated_groups_s, by torch's own handling of groups under a mask of booleans; flash_s,
        without a mask, for comparison. kernels: see `_kernel_times`.
    """
    config = stage.shapes.denoiser
    length = bucket(LOOKAHEADS[0] + WINDOW + stage.accept - 1) or 128
    found = []
    for keys in (256,) if stage.small else (256, 1024, 4096):
        times = _attention_times(stage, config, length, keys)
        found.append({"keys": keys, **times, "kernels": _kernel_times(stage, config, length, keys)})
    return {"positions": length, "heads": config.num_heads, "attention": found}


class _Attended(NamedTuple):
    """What one call of attention is given.

    Attributes:
        q: [1, heads, positions, head_dim]. k, v: [1, kv_heads, keys, head_dim].
        allowed: [positions, keys] booleans.
        grouped, floats: q and its mask with groups as more positions, as graphs have it.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    allowed: Tensor
    grouped: Tensor
    floats: Tensor

    @classmethod
    def random(cls, stage: Stage, config: ModelConfig, length: int, keys: int) -> _Attended:
        """Of so many positions and keys, the last 40 of which nobody may see."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, device=stage.device).to(stage.dtype)

        q = normal(1, config.num_heads, length, config.head_dim)
        k, v = (normal(1, config.num_kv_heads, keys, config.head_dim) for _ in range(2))
        allowed = (torch.arange(keys, device=stage.device) < keys - 40).expand(length, keys)
        floats = torch.zeros(length, keys, device=stage.device, dtype=stage.dtype)
        floats.masked_fill_(~allowed, NEVER)
        groups = config.num_heads // config.num_kv_heads
        grouped = q.reshape(1, config.num_kv_heads, -1, config.head_dim)
        return cls(q, k, v, allowed, grouped, floats.repeat(groups, 1))

    def masked(self) -> Tensor:
        """As graphs run it."""
        return F.scaled_dot_product_attention(self.grouped, self.k, self.v, attn_mask=self.floats)


@torch.inference_mode()
def _attention_times(stage: Stage, config: ModelConfig, length: int, keys: int) -> dict[str, float]:
    given = _Attended.random(stage, config, length, keys)
    q, k, v = given.q, given.k, given.v
    ways: dict[str, Callable[[], Tensor]] = {
        "masked_s": given.masked,
        "repeated_groups_s": lambda: F.scaled_dot_product_attention(
            q, k, v, attn_mask=given.allowed, enable_gqa=True
        ),
        "flash_s": lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
    }
    return {name: best_seconds(way, stage.device, 20) for name, way in ways.items()}


@torch.inference_mode()
def _kernel_times(
    stage: Stage, config: ModelConfig, length: int, keys: int
) -> dict[str, dict[str, Any]]:
    """The masked way by each of torch's kernels that can.

    Returns:
        By kernel: masked_s, a call of many alike; new_length_s and new_keys_s, the call that is the
        first of its number of positions and of keys, in the middle of five, waited for; again_s,
        the one after the first, waited for as well. Or `cannot`, why it does not run here.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in KERNELS:
        try:
            with warnings.catch_warnings(), sdpa_kernel(getattr(SDPBackend, name)):
                warnings.simplefilter("ignore")  # torch warns of every reason against a kernel
                found[name.lower()] = _one_kernel(stage, config, length, keys)
        except RuntimeError as error:
            if is_full(error):
                raise
            found[name.lower()] = {"cannot": one_line(error)[:200]}
    return found


def _one_kernel(stage: Stage, config: ModelConfig, length: int, keys: int) -> dict[str, float]:
    given = _Attended.random(stage, config, length, keys)
    usual = best_seconds(given.masked, stage.device, 20)

    def waited(given: _Attended) -> float:
        settle(stage.device)
        began = time.perf_counter()
        given.masked()
        settle(stage.device)
        return time.perf_counter() - began

    new_lengths: list[float] = []
    new_keys: list[float] = []
    again: list[float] = []
    for step in range(1, 6):
        # Keys in steps of 8, as masks are aligned; positions in any.
        for times, shape in (
            (new_lengths, (length - step, keys)),
            (new_keys, (length, keys - 8 * step)),
        ):
            given = _Attended.random(stage, config, *shape)
            times.append(waited(given))
            again.append(waited(given))
    return {
        "masked_s": usual,
        "new_length_s": median(new_lengths),
        "new_keys_s": median(new_keys),
        "again_s": median(again),
    }
