"""One pair of networks for many rows: each row sees its own models, a forward serves all who ask.

A row's models keep `decode`'s protocols. Their `logits` says what is wanted and waits; whoever
runs the rows gathers these wishes and answers them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise
from apdcli.decode.types import Pair
from apdcli.engine import fused
from apdcli.engine.batch_forward import hidden_of
from apdcli.engine.eager import banned_ids, verifies_less
from apdcli.engine.fast import forbid
from apdcli.engine.pair import LoadedPair
from apdcli.models.packed import packed
from apdcli.models.rows import RowCache, Span
from apdcli.models.transformer import Transformer


class BatchModel:
    """A network and the cache slots of all rows.

    Args:
        net: the network; its device and dtype are kept.
        rows: how many rows at once.
        capacity: positions to allocate for each row; clipped to what the network was made for.
    """

    def __init__(self, net: Transformer, rows: int, capacity: int) -> None:
        weight = net.model.embed_tokens.weight
        self.net = net
        self._judged = False  # whether a draft was; the first shows what kernels are worth
        self.cache = RowCache(
            net.config,
            rows,
            min(capacity, net.config.max_positions),
            device=weight.device,
            dtype=weight.dtype,
        )

    def forward(self, asks: Sequence[Ask]) -> list[Tensor]:
        """One forward for all asks, and what each wants of it: see :class:`Ask`."""
        net = packed(self.net)
        hidden = hidden_of(net, self.cache, [ask.span for ask in asks])
        width = max(ask.ids.width for ask in asks)
        raw = torch.mm(hidden, net.head[:, :width])
        sizes = [len(ask.span.wanted) for ask in asks]
        first = asks[0].ids
        if all(ask.draft is None and ask.ids is first for ask in asks):  # then once for all
            return list(torch.split(first.forbid(raw.float().to(first.device)), sizes))
        answers = []
        for ask, row in zip(asks, torch.split(raw, sizes), strict=True):
            if ask.draft is not None:
                answers.append(ask.draft.judged(row, check=not self._judged))
                self._judged = True
            else:
                own = row[:, : ask.ids.width].float().to(ask.ids.device)
                answers.append(ask.ids.forbid(own))
        return _on_the_host(asks, answers)


def _on_the_host(asks: Sequence[Ask], answers: list[Tensor]) -> list[Tensor]:
    """The answers, those to drafts brought to the host by one copy for all rows."""
    judged = [answer for ask, answer in zip(asks, answers, strict=True) if ask.draft is not None]
    if not judged:
        return answers
    there = iter(torch.split(torch.cat(judged).cpu(), [len(answer) for answer in judged]))
    return [
        answer if ask.draft is None else next(there)
        for ask, answer in zip(asks, answers, strict=True)
    ]


class AllowedIds:
    """Which ids a row may produce.

    Attributes:
        width: logits are trimmed to this length.
        device: where the canvas lives, and the logits with it.
    """

    def __init__(self, allowed: tuple[int, ...], device: torch.device) -> None:
        self.width = 1 + max(allowed)
        self.device = device
        self._banned = banned_ids(allowed, self.width, device).nonzero().flatten()

    def forbid(self, logits: Tensor) -> Tensor:
        """Set the others to -inf, in place: logits [rows, width]."""
        return forbid(logits, self._banned)


@dataclass(frozen=True)
class Draft:
    """A draft and what it was taken from: see `decode.types.AcceptingVerifier.accept`."""

    ids: Tensor
    d: Tensor
    weight: float
    noise: KeyedNoise | None

    def judged(self, raw: Tensor, check: bool) -> Tensor:
        """The draft, and how long a prefix of it is accepted by the verifier's raw logits.

        Args:
            raw: [m - 1, vocab], in its dtype.
            check: whether the answer has to be torch's; kernels that give another are used no more.

        Returns:
            [m + 1] int64.
        """
        return torch.cat((self.ids, self._accepted(raw, check)))

    def _accepted(self, raw: Tensor, check: bool) -> Tensor:
        count = self.ids.new_full((1,), len(self.ids))
        raw = raw.to(self.d.device)
        judged = self.d, raw, self.ids, count, self.weight, self.noise
        made = fused.accepted(*judged)
        if not check or not fused.usable(self.d.device):
            return made
        expected = fused.plain(*judged)
        if not fused.agree(made, expected, self.d, raw, self.weight, self.noise):
            fused.fail("its first count is not torch's")
        return expected


@dataclass(frozen=True)
class Ask:
    """What a row wants of a model.

    Attributes:
        model: which one.
        span: the positions to run in the row's slot, and the outputs wanted.
        ids: those that may be produced.
        draft: to be judged by these outputs; None where the answer is the outputs' own logits,
            [len(span.wanted), vocab] float32.
    """

    model: BatchModel
    span: Span
    ids: AllowedIds
    draft: Draft | None = None


Answers = Callable[[Ask], Tensor]


class _RowModel:
    """A row's view of a model: the cache slot is its own."""

    def __init__(self, model: BatchModel, row: int, ids: AllowedIds, ask: Answers) -> None:
        self.model = model
        self.row = row
        self.ids = ids
        self._ask = ask
        self.crop(0)

    @property
    def length(self) -> int:
        """Positions whose keys and values are cached."""
        return self.model.cache.lengths[self.row]

    def crop(self, length: int) -> None:
        """Forget keys and values at and after `length`."""
        self.model.cache.crop(self.row, length)

    def _logits(
        self, tokens: Tensor, start: int, first: int, last: int, draft: Draft | None = None
    ) -> Tensor:
        """Run `tokens` from `start` on; what is made at positions first .. last - 1, see `Ask`."""
        # The row writes to its canvas only after the answer, so a view of it is enough.
        span = Span(self.row, tokens[start:], start, range(first - start, last - start))
        return self._ask(Ask(self.model, span, self.ids, draft))


class RowDenoiser(_RowModel):
    """A row of a diffusion model behind :class:`apdcli.decode.types.Denoiser`."""

    @property
    def mask_id(self) -> int:
        """Id of the mask token."""
        assert self.model.net.config.mask_id is not None
        return self.model.net.config.mask_id

    @property
    def lookback(self) -> int:
        """1 with the shift: position j is predicted by output j - 1."""
        return int(self.model.net.config.shift)

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        """See the protocol."""
        if not keep_after:
            self.crop(start)
        made_at = max(first - self.lookback, 0)
        if made_at < start:
            raise ValueError(f"the logits for {first} are made at {made_at}, before {start}")
        last = max(len(tokens) - self.lookback, made_at + 1)
        rows = self._logits(tokens, start, made_at, last)
        if made_at == first - self.lookback:
            return rows
        # Position 0 has no output before it; like the published code, its own output stands in.
        return torch.cat((rows[:1], rows))[: len(tokens)]


class RowVerifier(_RowModel):
    """A row of a causal model behind :class:`apdcli.decode.types.ThriftyVerifier`."""

    @property
    def verify_less(self) -> bool:
        """As the engine of one row has it, so that a row makes the forwards that it makes alone."""
        return verifies_less(self.model.net)

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """See the protocol. Output j predicts position j + 1."""
        start = self.length
        if first - 1 < start:
            raise ValueError(f"the logits for {first} need position {first - 1}, already cached")
        return self._logits(tokens, start, first - 1, len(tokens))


class JudgingRowVerifier(RowVerifier):
    """The same behind :class:`apdcli.decode.types.AcceptingVerifier`."""

    def accept(
        self,
        tokens: Tensor,
        draft: Tensor,
        d: Tensor,
        weight: float,
        noise: KeyedNoise | None = None,
    ) -> Tensor:
        """See the protocol. Of no row an array of float32 logits or of a mixture is made."""
        first = len(tokens) - len(draft) + 1
        judged = Draft(draft, d, weight, noise)
        return self._logits(tokens, self.length, first, len(tokens), judged)


def judges(net: Transformer) -> bool:
    """Whether a verifier's rows judge drafts themselves: where kernels do it in one pass."""
    device = net.model.embed_tokens.weight.device
    return not verifies_less(net) and fused.usable(device)


class BatchPair:
    """A pair's networks with cache slots for a number of rows."""

    def __init__(self, pair: LoadedPair, rows: int, capacity: int) -> None:
        self.denoiser = BatchModel(pair.denoiser, rows, capacity)
        self.verifier = None if pair.verifier is None else BatchModel(pair.verifier, rows, capacity)
        self._ids: dict[tuple[int, ...], AllowedIds] = {}

    def ids(self, allowed: tuple[int, ...], device: torch.device) -> AllowedIds:
        """Made once for all rows that may produce the same."""
        if allowed not in self._ids:
            self._ids[allowed] = AllowedIds(allowed, device)
        return self._ids[allowed]


@dataclass(frozen=True)
class RowPair(LoadedPair):
    """A loaded pair as one row sees it: its `models` are the row's own, served by the batch.

    Attributes:
        batch: the networks and their slots.
        row: which slot.
        ask: waits for the batch's answer.
        wrap: what the pair wraps its models in, if it does (see `bench.shapes.WrappedPair`).
    """

    batch: BatchPair = field(kw_only=True)
    row: int = field(kw_only=True)
    ask: Answers = field(kw_only=True)
    wrap: Callable[[Pair], Pair] = field(kw_only=True)

    @classmethod
    def of(cls, pair: LoadedPair, batch: BatchPair, row: int, ask: Answers) -> RowPair:
        """`pair` for one row of a batch."""
        own = {name: getattr(pair, name) for name in LoadedPair.__dataclass_fields__}
        wrap = getattr(pair, "wrap", lambda models: models)
        return cls(**own, batch=batch, row=row, ask=ask, wrap=wrap)

    def models(self, capacity: int) -> Pair:
        """The row's models, their slots empty."""
        ids = self.batch.ids(self.allowed_ids, self.device)
        verifier = None
        if self.verifier is not None and self.batch.verifier is not None:
            kind = JudgingRowVerifier if judges(self.verifier) else RowVerifier
            verifier = kind(self.batch.verifier, self.row, ids, self.ask)
        denoiser = RowDenoiser(self.batch.denoiser, self.row, ids, self.ask)
        return self.wrap(Pair(denoiser, verifier))
