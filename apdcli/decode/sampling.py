"""From logits to tokens: temperature, top-k, top-p and Gumbel noise. Pure functions.

Sampling is ``argmax(filter(logits / T) + g)`` with Gumbel noise g, the Gumbel-max trick: the draw
follows softmax(filter(logits / T)), and two draws that share g agree wherever their distributions
do (the coupling of spec/apd.md, step 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.decode.params import DecodeParams

NEVER = float("-inf")
_COLDEST = 1e-30  # greedy by far; below it float32 would make infinities of logits


def top_k_filter(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest of the last axis, the others -inf. Ties with the k-th are kept.

    Args:
        logits: [..., vocab].
        k: >= 1; at least vocab keeps everything.
    """
    if k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, NEVER)


def top_p_filter(logits: Tensor, p: float) -> Tensor:
    """Keep the smallest set of most likely ids whose probability reaches p, the others -inf.

    Args:
        logits: [..., vocab]; -inf allowed.
        p: in (0, 1]; the most likely id always stays.
    """
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    mass_before = probability.cumsum(dim=-1) - probability
    drop = mass_before >= p
    drop[..., 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter(-1, order, drop), NEVER)


def filtered(logits: Tensor, params: DecodeParams) -> Tensor:
    """filter(logits / T): temperature, then top-k, then top-p. T must be above 0."""
    logits = logits / max(params.temperature, _COLDEST)
    if params.top_k is not None:
        logits = top_k_filter(logits, params.top_k)
    if params.top_p is not None:
        logits = top_p_filter(logits, params.top_p)
    return logits


def confidence(logits: Tensor, ids: Tensor) -> Tensor:
    """softmax probability of each chosen id: logits [n, vocab], ids [n] -> [n] in [0, 1]."""
    return logits.softmax(dim=-1).gather(-1, ids[:, None]).squeeze(-1)


def logit_margin(logits: Tensor) -> Tensor:
    """Best logit minus second best: [n, vocab] -> [n]."""
    best = logits.topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def probability_margin(logits: Tensor) -> Tensor:
    """Best probability minus second best: [n, vocab] -> [n] in [0, 1]."""
    best = logits.softmax(dim=-1).topk(2, dim=-1).values
    return best[:, 0] - best[:, 1]


def entropy(logits: Tensor) -> Tensor:
    """Shannon entropy in nats: [n, vocab] -> [n]; ids at -inf contribute nothing."""
    p = logits.softmax(dim=-1)
    return -(p * p.clamp_min(torch.finfo(p.dtype).tiny).log()).sum(dim=-1)


def greedy(logits: Tensor) -> Tensor:
    """The most likely id of each row, the first among equals: [n, vocab] -> [n] int64."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        # The same search, vectorised: torch's own takes as long as a layer of a small model.
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in the shape of `like`, from the decoder's own generator."""
    uniform = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return -torch.log((-torch.log(uniform.clamp_min(tiny))).clamp_min(tiny))


class Sampler:
    """Draws tokens for one generation: greedy at T = 0, Gumbel-max otherwise."""

    def __init__(self, params: DecodeParams, device: torch.device | str) -> None:
        self.params = params
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(params.seed)

    def noise(self, logits: Tensor) -> Tensor | None:
        """g for each entry of logits [positions, vocab]; None when greedy, which needs none."""
        if self.params.temperature == 0:
            return None
        return gumbel_noise(logits, self.generator)

    def shaped(self, logits: Tensor) -> Tensor:
        """The logits that are drawn from: filtered at T > 0, as they are when greedy."""
        return logits if self.params.temperature == 0 else filtered(logits, self.params)

    def draw(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """argmax of the filtered, noised logits [positions, vocab] -> ids [positions] int64."""
        if noise is None:
            return greedy(logits)
        return (filtered(logits, self.params) + noise).argmax(dim=-1)
