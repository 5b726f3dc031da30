"""From logits to tokens: temperature, top-k, top-p and Gumbel noise. Pure functions.

Sampling is ``argmax(filter(logits / T) + g)`` with Gumbel noise g, the Gumbel-max trick: the draw
follows softmax(filter(logits / T)), and two draws that share g agree wherever their distributions
do (the coupling of spec/apd.md, step 5).

Where a draft's noise would be large it is never whole: a few rows of it are made, used and dropped,
and made once more from the generator's state where a second draw shares them. So a draw holds
pieces of at most 4 MB, and nothing of the size of [positions, vocab] beyond what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from apdcli.decode.params import DecodeParams

NEVER = float("-inf")
_COLDEST = 1e-30  # greedy by far; below it float32 would make infinities of logits
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

    Args:
        logits: [..., vocab]; -inf allowed.
        p: in (0, 1]; the most likely id always stays.
    """
    if p >= 1.0:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    del ordered
    mass_before = probability.cumsum(dim=-1).sub_(probability)
    del probability
    drop = mass_before >= p
    del mass_before
    drop[..., 0] = False
    return logits.masked_fill(torch.zeros_like(drop).scatter_(-1, order, drop), NEVER)


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
    return _gumbel(like.shape, like.device, generator)


def _gumbel(shape: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    noise = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return noise.clamp_min_(tiny).log_().neg_().clamp_min_(tiny).log_().neg_()


class Noise:
    """g, Gumbel noise [positions, vocab] that several draws may share, made a few rows at a time.

    Noise of one piece is kept. Of more, the generator's state before each piece is: its rows are
    the same whenever they are made. The first use must go from the first row to the last, and
    before the generator is used for anything else.

    Args:
        like: [positions, vocab], whose shape and device it has.
        generator: of that device.
        rows: how many a piece has; the last may have fewer.
    """

    def __init__(self, like: Tensor, generator: torch.Generator, rows: int) -> None:
        self._positions, self._vocab = like.shape
        self._device = like.device
        self._generator = generator
        self._rows = rows
        self._states: list[Tensor] = []
        self._kept = gumbel_noise(like, generator) if self._positions <= rows else None

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[start, stop) cut where pieces end: half-open ranges of rows."""
        while start < stop:
            end = min((start // self._rows + 1) * self._rows, stop)
            yield start, end
            start = end

    def piece(self, start: int, end: int) -> Tensor:
        """Rows [start, end), which lie in one piece: [end - start, vocab]; not to be written to."""
        if self._kept is not None:
            return self._kept[start:end]
        which, skipped = divmod(start, self._rows)
        before = start - skipped
        shape = (min(self._rows, self._positions - before), self._vocab)
        if which == len(self._states):
            generator = self._generator
            self._states.append(generator.get_state())
        else:
            generator = torch.Generator(device=self._device)
            generator.set_state(self._states[which])
        return _gumbel(shape, self._device, generator)[skipped : end - before]


class Sampler:
    """Draws tokens for one generation: greedy at T = 0, Gumbel-max otherwise."""

    def __init__(self, params: DecodeParams, device: torch.device | str) -> None:
        self.params = params
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(params.seed)

    def noise(self, logits: Tensor) -> Noise | None:
        """g for each entry of logits [positions, vocab]; None when greedy, which needs none."""
        if self.params.temperature == 0:
            return None
        entries = PIECE if self.params.top_p is None else PIECE // 2
        return Noise(logits, self.generator, max(1, entries // logits.shape[1]))

    def shaped(self, logits: Tensor) -> Tensor:
        """The logits that are drawn from: filtered at T > 0, as they are when greedy."""
        return logits if self.params.temperature == 0 else filtered(logits, self.params)

    def draw(self, logits: Tensor, noise: Noise | None, first: int = 0) -> Tensor:
        """argmax of the filtered, noised logits.

        Args:
            logits: [positions, vocab] float32, left as they are.
            noise: what `noise` gave; its first draw must be of all its rows.
            first: the row of the noise that belongs to the first of these logits.

        Returns:
            [positions] int64.
        """
        if noise is None:
            return greedy(logits)
        ids = logits.new_empty(len(logits), dtype=torch.int64)
        for start, end in noise.pieces(first, first + len(logits)):
            rows = slice(start - first, end - first)
            # The filter's own arrays are gone before the noise is made; temperature made this one.
            shaped = filtered(logits[rows], self.params)
            ids[rows] = greedy(shaped.add_(noise.piece(start, end)))
            del shaped  # before the next is made
        return ids
