"""Gumbel noise that several draws share, made a few rows at a time.

Where a draft's noise would be large it is never whole: a few rows of it are made, used and dropped,
and made once more where a second draw shares them. So a draw holds pieces of at most 4 MB, and
nothing of the size of [positions, vocab] beyond what it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from apdcli.decode.params import DecodeParams

# What `KeyedNoise` computes four numbers of at a time: ids this far apart, in runs of this many.
RUN = 1024
# Philox's constants: what a counter is multiplied by, and what is added to the key, at each round.
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 2**32 - 1


class Noise(Protocol):
    """g [positions, vocab]: the same numbers whenever they are asked for."""

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """[start, stop) cut where pieces end: half-open ranges of rows."""
        ...

    def piece(self, start: int, end: int) -> Tensor:
        """Rows [start, end), which lie in one piece: [end - start, vocab]; not to be written to."""
        ...


class _Rows:
    """Rows that come in pieces."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """See `Noise`."""
        while start < stop:
            end = min((start // self.rows + 1) * self.rows, stop)
            yield start, end
            start = end


class DrawnNoise(_Rows):
    """Noise from a generator.

    Noise of one piece is kept. Of more, the generator's state before each piece is: its rows are
    the same whenever they are made. The first use must go from the first row to the last, and
    before the generator is used for anything else.

    Args:
        like: [positions, vocab], whose shape and device it has.
        generator: of that device.
        rows: how many a piece has; the last may have fewer.
    """

    def __init__(self, like: Tensor, generator: torch.Generator, rows: int) -> None:
        super().__init__(rows)
        self._positions, self._vocab = like.shape
        self._device = like.device
        self._generator = generator
        self._states: list[Tensor] = []
        self._kept = gumbel_noise(like, generator) if self._positions <= rows else None

    def piece(self, start: int, end: int) -> Tensor:
        """See `Noise`."""
        if self._kept is not None:
            return self._kept[start:end]
        which, skipped = divmod(start, self.rows)
        before = start - skipped
        shape = (min(self.rows, self._positions - before), self._vocab)
        if which == len(self._states):
            generator = self._generator
            self._states.append(generator.get_state())
        else:
            generator = torch.Generator(device=self._device)
            generator.set_state(self._states[which])
        return _gumbel(shape, self._device, generator)[skipped : end - before]


class KeyedNoise(_Rows):
    """Noise that is a function of its key, the row and the id, so that a kernel makes it in place.

    A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011:
    Philox 4x32 with ten rounds) gives four numbers for a counter, here (lane, row, low and high
    half of the draw's number), under the seed. They belong to ids that lie `RUN` apart. The kernels
    of `engine.draw_kernels` compute the same; this is for where they do not run, and their test.

    Attributes:
        params: what shapes the logits of the draws that share it.
        key: [2] int64 on the device: the seed, and the draw's number in its generation.
        rows: how many a piece has.

    Args:
        vocab: ids of a row.
    """

    def __init__(self, params: DecodeParams, key: Tensor, vocab: int, rows: int) -> None:
        super().__init__(rows)
        self.params = params
        self.key = key
        self._vocab = vocab

    @property
    def shaping(self) -> tuple[float, int | None, float | None]:
        """Temperature, top-k and top-p."""
        return self.params.temperature, self.params.top_k, self.params.top_p

    def at(self, key: Tensor) -> KeyedNoise:
        """The same, its key read elsewhere."""
        return KeyedNoise(self.params, key, self._vocab, self.rows)

    def piece(self, start: int, end: int) -> Tensor:
        """See `Noise`."""
        device = self.key.device
        blocks = -(-self._vocab // (4 * RUN))
        lane = torch.arange(blocks * RUN, device=device).expand(end - start, -1)
        row = torch.arange(start, end, device=device)[:, None].expand_as(lane)
        seed, number = self.key.unbind()
        counter = (lane, row, (number & _WORD).expand_as(lane), (number >> 32).expand_as(lane))
        words = philox(counter, (seed & _WORD, seed >> 32))
        by_run = [word.view(end - start, blocks, RUN) for word in words]
        bits = torch.stack(by_run, dim=2).view(end - start, -1)[:, : self._vocab]
        uniform = ((bits >> 9).float() + 0.5) * 2.0**-23  # never 0, never 1
        return uniform.log_().neg_().log_().neg_()


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox 4x32-10: four random words for each counter.

    Args:
        counter: four tensors of one shape, int64 that hold unsigned 32-bit words.
        key: two words, of a shape that broadcasts.

    Returns:
        Four tensors like the counter's.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        (high0, low0), (high2, low2) = _product(c0, _MULTIPLIERS[0]), _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def _product(word: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """High and low word of a product of 64 bits, of which int64 holds 63: so by halves."""
    upper, lower = word * (by >> 16), word * (by & 0xFFFF)
    together = upper + (lower >> 16)
    return together >> 16, ((together & 0xFFFF) << 16) | (lower & 0xFFFF)


def gumbel_noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise in the shape of `like`, from the decoder's own generator."""
    return _gumbel(like.shape, like.device, generator)


def _gumbel(shape: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    noise = torch.rand(shape, generator=generator, device=device, dtype=torch.float32)
    tiny = torch.finfo(torch.float32).tiny
    return noise.clamp_min_(tiny).log_().neg_().clamp_min_(tiny).log_().neg_()
