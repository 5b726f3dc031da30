"""How tokens are drawn at T > 0 where kernels can: from noise that is never an array."""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise, Noise
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.engine import fused


class KernelSampler(Sampler):
    """Draws with noise that is a function of the seed, the draw, the row and the id.

    A kernel makes it where it is added, so a draw reads the logits and writes the ids. The same
    noise by torch stands in where the kernels fail, and the tokens are the same.
    """

    def __init__(self, params: DecodeParams, device: torch.device | str) -> None:
        super().__init__(params, "cpu")
        self._device = device
        self._draws = 0

    def noise(self, logits: Tensor) -> Noise | None:
        """See `Sampler`."""
        if self.params.temperature == 0:
            return None
        # From ordinary memory: the driver has taken its own copy when the call returns.
        key = torch.tensor((self.params.seed, self._draws)).to(self._device, non_blocking=True)
        self._draws += 1
        vocab = logits.shape[1]
        return KeyedNoise(self.params, key, vocab, self.rows(vocab))

    def draw(self, logits: Tensor, noise: Noise | None, first: int = 0) -> Tensor:
        """See `Sampler`."""
        if isinstance(noise, KeyedNoise):
            return fused.drawn(logits, noise, first)
        return super().draw(logits, noise, first)


def make_sampler(params: DecodeParams, device: torch.device) -> Sampler:
    """What draws the tokens of one generation whose logits are on `device`."""
    return (KernelSampler if fused.has_kernels(device) else Sampler)(params, device)
