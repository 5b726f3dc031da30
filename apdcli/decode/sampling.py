"""From logits to tokens: temperature, top-k, top-p and Gumbel noise. Pure functions.

Sampling is ``argmax(filter(logits / T) + g)`` with Gumbel noise g, the Gumbel-max trick: the draw
follows softmax(filter(logits / T)), and two draws that share g agree wherever their distributions
do (the coupling of spec/apd.md, step 5).
"""

from __future__ import annotations

import torch
from torch import Tensor

from apdcli.decode.noise import DrawnNoise, Noise
from apdcli.decode.params import DecodeParams

NEVER = float("-inf")
COLDEST = 1e-30  # greedy by far; below it float32 would make infinities of logits
# Entries that a draw shapes at once. Half as many where they are sorted, which takes five arrays.
PIECE = 2**20


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

    Ties with the last of them are kept.

    Args:
        logits: [..., vocab]; -inf allowed.
        p: in (0, 1]; the most likely id always stays.
    """
    if p >= 1.0:
        return logits
    ordered = logits.sort(dim=-1, descending=True).values
    probability = ordered.softmax(dim=-1)
    mass_before = probability.cumsum(dim=-1).sub_(probability)
    del probability
    # Mass only grows: those that are kept come first.
    last = (mass_before < p).sum(dim=-1, keepdim=True).sub_(1).clamp_min_(0)
    del mass_before
    smallest_kept = ordered.gather(-1, last)
    return logits.masked_fill(logits < smallest_kept, NEVER)


def filtered(logits: Tensor, params: DecodeParams) -> Tensor:
    """filter(logits / T): temperature, then top-k, then top-p. T must be above 0."""
    logits = logits / max(params.temperature, COLDEST)
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


def drawn(logits: Tensor, params: DecodeParams, noise: Noise, first: int = 0) -> Tensor:
    """argmax of the filtered, noised logits, a piece of the noise at a time.

    Args:
        logits: [positions, vocab] float32, left as they are.
        params: what shapes them; T > 0.
        noise: g.
        first: the row of the noise that belongs to the first of these logits.

    Returns:
        [positions] int64.
    """
    ids = logits.new_empty(len(logits), dtype=torch.int64)
    for start, end in noise.pieces(first, first + len(logits)):
        rows = slice(start - first, end - first)
        # The filter's own arrays are gone before the noise is made; temperature made this one.
        shaped = filtered(logits[rows], params)
        ids[rows] = greedy(shaped.add_(noise.piece(start, end)))
        del shaped  # before the next is made
    return ids


class Sampler:
    """Draws tokens for one generation: greedy at T = 0, Gumbel-max otherwise."""

    def __init__(self, params: DecodeParams, device: torch.device | str = "cpu") -> None:
        self.params = params
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(params.seed)

    def noise(self, logits: Tensor) -> Noise | None:
        """g for each entry of logits [positions, vocab]; None when greedy, which needs none."""
        if self.params.temperature == 0:
            return None
        return DrawnNoise(logits, self.generator, self.rows(logits.shape[1]))

    def rows(self, vocab: int) -> int:
        """How many rows of so many ids a draw shapes at once."""
        entries = PIECE if self.params.top_p is None else PIECE // 2
        return max(1, entries // vocab)

    def shaped(self, logits: Tensor) -> Tensor:
        """The logits that are drawn from: filtered at T > 0, as they are when greedy."""
        return logits if self.params.temperature == 0 else filtered(logits, self.params)

    def draw(self, logits: Tensor, noise: Noise | None, first: int = 0) -> Tensor:
        """argmax of the filtered, noised logits: see :func:`drawn`.

        Args:
            noise: what `noise` gave; its first draw must be of all its rows.
        """
        return greedy(logits) if noise is None else drawn(logits, self.params, noise, first)
