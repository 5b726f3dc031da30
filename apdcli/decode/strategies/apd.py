"""Adaptive parallel decoding (arXiv 2506.00413, algorithm 1; spec/apd.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise, Noise
from apdcli.decode.params import ApdParams, DecodeParams
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.window import Sliding, SlidingWindow
from apdcli.decode.types import Canvas, Commit, Pair, Verifier

# A draft that is verified by parts: how far the first goes beyond what was accepted lately, how
# many times as far each next one, and how many tokens a part must leave out to be worth its while.
# Found best, with a flat optimum, on two small pairs on a CPU, where a second forward costs as much
# as 40 to 75 more positions in the first: so a first part must nearly always be enough.
PART_MARGIN, PART_GROWTH, PART_SAVES = 6, 4, 8


class Apd(Sliding):
    """Draft with the denoiser, accept the prefix on which the mixture with the verifier agrees."""

    early_stop = True

    def __init__(
        self, shared: DecodeParams, own: ApdParams, sampler: Sampler | None = None
    ) -> None:
        self.R = own.mixture_weight
        self.stop_ids = shared.stop_ids
        super().__init__(SlidingWindow(own.recompute_window, own.max_lookahead))
        self.sampler = sampler or Sampler(shared)

    def step(self, canvas: Canvas, pair: Pair) -> Commit:
        """One step at the cursor i: window, denoise, draft, verify, mix, accept."""
        i = canvas.cursor
        d = self.marginals(canvas, pair)  # [m, vocab]
        g = self.sampler.noise(d)
        draft = self.sampler.draw(d, g)

        ids, a = self._accepted(canvas, pair, d, draft, g)
        if pair.verifier is not None:
            pair.verifier.crop(i + a)
        self.window.advance(a)
        return Commit(
            positions=tuple(range(i, i + a)),
            ids=tuple(ids[:a]),
            proposed=len(ids),
            rejected=tuple(enumerate(ids[a:], start=i + a)),
        )

    def _accepted(
        self, canvas: Canvas, pair: Pair, d: Tensor, draft: Tensor, g: Noise | None
    ) -> tuple[list[int], int]:
        """The draft, and how long a prefix of it is accepted.

        The first token always is: nothing before it is masked, so its marginal is already the
        right conditional. With R = 1 the mixture is the marginal itself, and everything is.
        """
        m = draft.shape[0]
        if m == 1 or self.R == 1.0:
            return draft.tolist(), m
        assert pair.verifier is not None
        tokens = torch.cat((canvas.tokens[: canvas.cursor], draft[:-1]))
        accept = getattr(pair.verifier, "accept", None)
        if accept is not None and (g is None or isinstance(g, KeyedNoise)):
            together = accept(tokens, draft, d, self.R, g)
        elif getattr(pair.verifier, "verify_less", False):
            ids = draft.tolist()
            return ids, self._by_parts(pair.verifier, tokens, ids, d, g)
        else:
            a = 1 + prefix(draft[1:] == self._target(pair.verifier, tokens, d[1:], g, 1))
            together = torch.cat((draft, a))
        # The step's only device-to-host transfer.
        *ids, count = together.tolist()
        return ids, count

    def _by_parts(
        self, verifier: Verifier, tokens: Tensor, ids: list[int], d: Tensor, g: Noise | None
    ) -> int:
        """How long a prefix is accepted: the same, from no more of the draft than it takes.

        What lies behind the first disagreement is judged for nothing, and how much is accepted
        hardly changes from step to step. So the parts follow this text's own acceptance, which is
        the same whatever runs it. Behind a token that ends the text nothing is judged: if that one
        is accepted, the loop drops what follows.
        """
        i = tokens.shape[0] - len(ids) + 1
        judged = 1
        worth = next((n for n, id_ in enumerate(ids, 1) if id_ in self.stop_ids), len(ids))
        for end in part_ends(worth, self.window.recent):
            target = self._target(verifier, tokens[: i + end - 1], d[judged:end], g, judged)
            for drafted, wanted in zip(ids[judged:end], target.tolist(), strict=True):
                if drafted != wanted:
                    return judged
                judged += 1
        return judged

    def _target(
        self, verifier: Verifier, tokens: Tensor, d: Tensor, g: Noise | None, first: int
    ) -> Tensor:
        """What the mixture draws for the last positions that `tokens` lead to.

        Args:
            verifier: its cache ends before those.
            tokens: [n] int64.
            d: [k, vocab], marginals of positions n - k + 1 .. n.
            g: the draft's noise.
            first: where in the draft the first of those positions stands.

        Returns:
            [k] int64.
        """
        a = verifier.logits(tokens, tokens.shape[0] - d.shape[0] + 1)
        return self.sampler.draw(mixture(d, a, self.R), g, first)


def part_ends(drafted: int, recent: float | None) -> Iterator[int]:
    """How far into a draft of so many tokens each part of its verification goes.

    Args:
        drafted: how many are worth judging; the last part ends there, and one token has none.
        recent: the running mean of accepted tokens a step; before any there is but one part.
    """
    end = drafted if recent is None else math.ceil(recent + PART_MARGIN)
    while end <= drafted - PART_SAVES:
        yield end
        end *= PART_GROWTH
    if drafted > 1:
        yield drafted


def prefix(agree: Tensor) -> Tensor:
    """How many are True before the first False: [n] bool -> [1] int64."""
    return agree.long().cumprod(dim=0).sum(dim=0, keepdim=True)


def mixture(d: Tensor, a: Tensor, R: float) -> Tensor:
    """R log p_D + (1 - R) log p_A up to a constant a row: d, a [positions, vocab] logits.

    Written over `a`: there is never a third array of that size.
    """
    if R == 0.0:  # 0 * -inf would be nan
        return a
    return a.mul_(1.0 - R).add_(d, alpha=R)
