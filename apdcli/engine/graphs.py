"""The engine for CUDA: each kind of forward recorded once as a graph, then replayed.

A forward of a 7B model is some 300 kernel launches, whose work a GPU could do faster than Python
can ask for it. A graph asks once; `engine.static` holds what it runs over. The verifier's
graph holds the whole of verify, mix and accept. Outside the graphs a step is ten small launches and
copies, and one copy to the host: the draft and how much of it is accepted. A prompt's first, long
forward is not recorded.

Of arrays as large as a draft's logits in float32, one is kept (the marginals, `Buffers.logits`);
each model's raw logits, in its own dtype, are made in memory that both models' graphs share.

The first result of every graph is compared with the eager engine's, and the first count with
torch's. Where recording fails or they differ, one warning is given and the eager engine takes over.
On a device without graphs the same functions are called instead of replayed, which is how the
tests run them on a CPU.
"""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Hashable

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise
from apdcli.engine import fused
from apdcli.engine.device import attention_kernels
from apdcli.engine.eager import EagerDenoiser, EagerVerifier
from apdcli.engine.fast import FastDenoiser, FastModel, FastVerifier, forbid
from apdcli.engine.static import (
    BUCKETS,
    COLUMNS,
    Buffers,
    Function,
    answer,
    bucket,
    needed_for,
    record,
)
from apdcli.models.transformer import Transformer

# How far a graph's first logits may be from the eager engine's, in units of their spread.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.1}
# Rows of them that are compared at once.
_ROWS = 8


class GraphModel(FastModel):
    """What both models share: buffers, and forwards recorded over them.

    Args: see :class:`apdcli.engine.eager.EagerModel`.
    """

    def __init__(self, net: Transformer, banned: Tensor, capacity: int) -> None:
        super().__init__(net, banned, 0)
        capacity = min(capacity, net.config.max_positions)
        spare: list[Buffers] = self.packed.spare_buffers
        if not spare:
            gc.collect()  # a generation that is over may lie in a cycle with buffers still lent
        fitting = [b for b in spare if b.cache.capacity >= needed_for(capacity)]
        self.buffers = fitting[0] if fitting else Buffers.allocate(self.packed, capacity)
        spare[:] = fitting[1:]  # smaller ones would only take room
        self.buffers.forbid(banned, self._banned_ids)
        self.cache = self.buffers.cache
        self.cache.crop(0)
        # The head up to the last id that may be produced, and on to a round number of columns.
        width = -(-len(banned) // COLUMNS) * COLUMNS
        self._wide = self.packed.head[:, : min(width, self.packed.head.shape[1])]
        # A generation that is dropped half way gives its buffers back too.
        weakref.finalize(self, spare.append, self.buffers)

    @property
    def broken(self) -> bool:
        """Whether a graph failed on this network: from then on the eager engine runs it."""
        return self.packed.graphs_failed

    def _fail(self, why: str) -> None:
        self.packed.graphs_failed = True
        self.buffers.graphs.clear()
        message = f"CUDA graphs do not work here ({why}); the eager engine goes on, slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)

    def _without_triton(self, start: int) -> bool:
        """A graph's first result is not the eager engine's: whether to record it anew by torch."""
        what = "a graph's first result is not the eager engine's"
        if not fused.usable(self._head.device):
            self._fail(what)
            return False
        self.buffers.graphs.clear()
        fused.fail(what)
        self.crop(start)
        return True

    def _raw(self, tokens: Tensor, start: int, first: int, last: int) -> Tensor:
        """Raw logits [last - first, columns] of a forward that is not recorded.

        Args: see :meth:`FastModel.outputs`.
        """
        ids = tokens[start:].to(self._head.device)
        with attention_kernels(self._head.device):
            hidden = self.packed.hidden(ids, start, self.cache, first - start, last - start)
        return torch.mm(hidden, self._wide)

    def _logits(self, tokens: Tensor, start: int, first: int, last: int) -> Tensor | None:
        """What `FastModel.outputs` gives, by a graph where it is short enough; into the buffer.

        None where a graph failed, once that is said.
        """
        self.crop(start)
        try:
            if len(tokens) - start > BUCKETS[-1]:
                raw = self._raw(tokens, start, first, last)
                into = self.buffers.rows(bucket(len(raw)) or len(raw), raw.shape[1])
                made = into[: len(raw), : len(self.banned)].copy_(raw[:, : len(self.banned)])
                return forbid(made, self._banned_ids).to(self.banned.device)
            replayed = self._replay_logits(tokens, start, first, last)
            return None if replayed is None else replayed.to(self.banned.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self._fail(str(error).split("\n")[0])
            return None

    def _replay_logits(self, tokens: Tensor, start: int, first: int, last: int) -> Tensor | None:
        """The same by a graph; None where its first result is wrong."""
        buffers, vocab = self.buffers, len(self.banned)
        padded, rows, keys = self._load(tokens, start, first, last)
        packed, head = self.packed, self._wide  # not self, whom the graph would keep alive
        into = buffers.rows(rows, head.shape[1])

        def logits() -> Tensor:
            answer(packed, buffers, head, padded, rows, keys, into)
            return forbid(into[:, :vocab], buffers.banned_ids)

        run, new = self._recorded((padded, rows, keys), logits)
        made = run()[: last - first]
        self.cache.length = len(tokens)
        if new and not self._close(made, self._eager(tokens, start, first, last)):
            if self._without_triton(start):
                return self._replay_logits(tokens, start, first, last)
            return None
        return made

    def _load(
        self,
        tokens: Tensor,
        start: int,
        first: int,
        last: int,
        draft: Tensor | None = None,
        noise: KeyedNoise | None = None,
    ) -> tuple[int, int, int]:
        """Fill the buffers; (positions, rows, keys) of the graph that serves."""
        padded, rows = bucket(len(tokens) - start), bucket(last - first)
        assert padded is not None
        assert rows is not None
        self.buffers.load(tokens, start, first, draft, noise)
        return padded, rows, self.buffers.keys(len(tokens))

    def _eager(self, tokens: Tensor, start: int, first: int, last: int) -> Tensor:
        """The eager engine's hidden states [last - first, hidden] of those outputs."""
        self.crop(start)
        return self._run(tokens, start)[first - start : last - start]

    def _recorded(self, key: Hashable, function: Function) -> tuple[Function, bool]:
        """A replayable `function`, and whether it was recorded just now."""
        known = self.buffers.graphs.get(key)
        if known is not None:
            return known, False
        made = record(function, self.buffers.tokens.device, self.buffers.pool)
        self.buffers.graphs[key] = made
        return made, True

    def _close(self, mine: Tensor, hidden: Tensor) -> bool:
        """Whether logits [n, vocab or more] are the eager head's, as far as their dtype lets them.

        A few rows at a time: in float32 all of them are the largest array of a step.

        Args:
            mine: the logits.
            hidden: [n, hidden] of the eager engine.
        """
        kept = (~self.banned).nonzero().flatten().to(mine.device)
        off, sum_, squares = torch.zeros(3, dtype=torch.float64, device=mine.device)
        for at in range(0, len(mine), _ROWS):
            eager = self.net.head(hidden[at : at + _ROWS])[:, kept].float()
            off += (mine[at : at + _ROWS, kept].float() - eager).pow(2).sum()
            sum_ += eager.sum()
            squares += eager.pow(2).sum()
        count = len(mine) * len(kept)
        spread = (squares / count - (sum_ / count).pow(2)).clamp_min(1).sqrt()
        return bool((off / count).sqrt() <= TOLERANCE[self.packed.embedding.dtype] * spread)


class GraphDenoiser(GraphModel, FastDenoiser):
    """A diffusion model behind :class:`apdcli.decode.types.AsynchronousDenoiser`."""

    @property
    def asynchronous(self) -> bool:
        """Whether a forward is one launch, for which nobody waits."""
        return self._head.device.type == "cuda" and not self.broken

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        """See the protocol. The answer stands in a buffer: the next forward overwrites it."""
        made_at, last = first - self.lookback, len(tokens) - self.lookback
        kept = keep_after and self.length > len(tokens)
        if not self.broken:
            if kept or made_at < start or last - made_at > BUCKETS[-1]:
                return super().logits(tokens, start, first, keep_after=keep_after)
            made = self._logits(tokens, start, made_at, last)
            if made is not None:
                return made
        return EagerDenoiser.logits(self, tokens, start, first, keep_after=keep_after)


class GraphVerifier(GraphModel, FastVerifier):
    """A causal language model behind :class:`apdcli.decode.types.AcceptingVerifier`."""

    def __init__(self, net: Transformer, banned: Tensor, capacity: int) -> None:
        super().__init__(net, banned, capacity)
        self._place: Hashable = None  # where the last marginals stood

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """See the protocol. The answer stands in a buffer: the next forward overwrites it."""
        start = self.cache.length
        if not self.broken:
            if first - 1 < start or len(tokens) - first >= BUCKETS[-1]:
                return super().logits(tokens, first)
            made = self._logits(tokens, start, first - 1, len(tokens))
            if made is not None:
                return made
            self.crop(start)
        return EagerVerifier.logits(self, tokens, first)

    def accept(
        self,
        tokens: Tensor,
        draft: Tensor,
        d: Tensor,
        weight: float,
        noise: KeyedNoise | None = None,
    ) -> Tensor:
        """See the protocol: verify, mix and accept as one graph, for a denoiser of this engine."""
        start, first = self.cache.length, len(tokens) - len(draft) + 1
        # A graph reads the marginals where they stood when it was recorded.
        place = (d.data_ptr(), d.stride(), d.shape[1])
        stands, self._place = self._place == place, place
        short = len(tokens) - start <= BUCKETS[-1] and _padded_rows(d) is not None
        here = d.device == self._head.device == draft.device
        if not self.broken and stands and short and here:
            try:
                accepted = self._replay(tokens, start, first, draft, d, weight, noise)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._fail(str(error).split("\n")[0])
                accepted = None
            if accepted is not None:
                return torch.cat((draft, accepted))
            self.crop(start)
        if self.broken:
            a = EagerVerifier.logits(self, tokens, first + 1)
        else:
            a = self._raw(tokens, start, first, len(tokens)).to(d.device)
        count = draft.new_full((1,), len(draft))
        return torch.cat((draft, fused.accepted(d, a, draft, count, weight, noise)))

    def _replay(
        self,
        tokens: Tensor,
        start: int,
        first: int,
        draft: Tensor,
        d: Tensor,
        weight: float,
        noise: KeyedNoise | None,
    ) -> Tensor | None:
        """The accepted count by a graph; None where its first result is wrong."""
        buffers, marginals = self.buffers, _padded_rows(d)
        assert marginals is not None
        padded, rows, keys = self._load(tokens, start, first, first + len(draft), draft, noise)
        packed, head = self.packed, self._wide  # not self, whom the graph would keep alive
        drafted, count = buffers.draft[:rows], buffers.count
        kept = None if noise is None else noise.at(buffers.key)
        shaping = None if noise is None else noise.shaping

        def accept() -> Tensor:
            a = answer(packed, buffers, head, padded, rows, keys)[: rows - 1]
            made = fused.accepted(marginals, a, drafted, count, weight, kept)
            return buffers.accepted.copy_(made)

        run, new = self._recorded((padded, rows, keys, weight, self._place, shaping), accept)
        accepted = run()
        self.cache.length = len(tokens)
        if new:
            counted = accepted.clone()
            mine = answer(packed, buffers, head, padded, rows, keys)[: len(draft) - 1]
            expected = fused.plain(d, mine, draft, count, weight, noise)
            if not self._close(mine, self._eager(tokens, start, first, len(tokens))):
                if self._without_triton(start):
                    return self._replay(tokens, start, first, draft, d, weight, noise)
                return None
            if not fused.agree(counted, expected, d, mine, weight, noise):
                if not fused.usable(d.device):
                    self._fail("a graph's first count is not torch's")
                    return None
                buffers.graphs.clear()
                fused.fail("its first count is not torch's")
                return expected
        return accepted


def _padded_rows(d: Tensor) -> Tensor | None:
    """d [m, vocab] with the rows that its array has behind it, up to a bucket; None if too few."""
    rows = bucket(len(d))
    if rows is None or d.stride(1) != 1:
        return None
    end = d.storage_offset() + (rows - 1) * d.stride(0) + d.shape[1]
    if end * d.element_size() > d.untyped_storage().nbytes():
        return None
    return d.as_strided((rows, d.shape[1]), d.stride())
