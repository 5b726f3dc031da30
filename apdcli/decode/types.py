"""What strategies, the loop and the engines say to each other.

Knows torch and nothing else: no files, no terminal, no tokenizer, no model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from apdcli.decode.noise import KeyedNoise

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass
class Canvas:
    """The sequence being decoded: prompt, then response positions that start as masks.

    The only mutable thing in `decode`, and only the loop mutates it.

    Attributes:
        tokens: [L] int64 on the models' device; the mask id where `masked`.
        masked: [L] one bool a position, kept on the host so that strategies can ask without a
            device-to-host transfer.
        prompt_len: n, the first response position.
        cursor: i, the first position not yet decoded (L when all are).
    """

    tokens: Tensor
    masked: list[bool]
    prompt_len: int
    cursor: int

    @classmethod
    def blank(
        cls, prompt: Iterable[int], length: int, mask_id: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """A canvas of `prompt` followed by `length` masks."""
        prompt = list(prompt)
        ids = prompt + [mask_id] * length
        return cls(
            tokens=torch.tensor(ids, dtype=torch.int64, device=device),
            masked=[False] * len(prompt) + [True] * length,
            prompt_len=len(prompt),
            cursor=len(prompt),
        )

    @classmethod
    def from_gaps(
        cls, ids: Iterable[int | None], mask_id: int, device: torch.device | str = "cpu"
    ) -> Canvas:
        """A text with gaps, for strategies that decode in any order: None stands for a mask.

        The response begins at the first gap; text inside and after it is there from the start.

        Raises:
            ValueError: there is no gap.
        """
        given = list(ids)
        masked = [i is None for i in given]
        if not any(masked):
            raise ValueError("the text has no gap")
        first = masked.index(True)
        return cls(
            tokens=torch.tensor(
                [mask_id if i is None else i for i in given], dtype=torch.int64, device=device
            ),
            masked=masked,
            prompt_len=first,
            cursor=first,
        )

    @property
    def end(self) -> int:
        """N, one past the last response position."""
        return len(self.masked)

    @property
    def masked_left(self) -> int:
        """How many positions are still masks."""
        return sum(self.masked)


@dataclass(frozen=True)
class Commit:
    """What a strategy wants written in this step.

    Attributes:
        positions: positions to write, each still masked.
        ids: the token id for each position.
        proposed: how many tokens the step had drafted.
        rejected: (position, id) of drafted tokens that were not accepted, for display only.
        phase: the strategy's name for what it was doing, "" when it has only one phase.
        clusters: half-open [start, end) ranges the strategy is working in, for display only.
    """

    positions: tuple[int, ...]
    ids: tuple[int, ...]
    proposed: int
    rejected: tuple[tuple[int, int], ...] = ()
    phase: str = ""
    clusters: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class StepEvent:
    """One step as consumers see it: plain Python, no tensors.

    Positions are absolute: the prompt's first token is position 0. Counters count from the start
    of the generation up to and including this step.

    Attributes:
        step: 1 for the first step.
        committed: (position, token id) written by this step.
        proposed: tokens drafted in this step.
        accepted: tokens of them that were committed: ``len(committed)``.
        masked_left: response positions still masked after this step.
        denoiser_forwards: forward passes of the denoiser so far.
        verifier_forwards: forward passes of the verifier so far.
        tokens_forwarded: positions run through either model so far.
        elapsed_s: seconds since the generation began.
        rejected: (position, token id) drafted but not accepted.
        phase: see :class:`Commit`.
        clusters: see :class:`Commit`.
    """

    step: int
    committed: tuple[tuple[int, int], ...]
    proposed: int
    accepted: int
    masked_left: int
    denoiser_forwards: int
    verifier_forwards: int
    tokens_forwarded: int
    elapsed_s: float
    rejected: tuple[tuple[int, int], ...] = ()
    phase: str = ""
    clusters: tuple[tuple[int, int], ...] = field(default=())


@dataclass(frozen=True)
class Finished:
    """Closes the stream.

    Attributes:
        reason: "stop" (end token or stop string), "length" (canvas full) or "interrupted".
        steps, denoiser_forwards, verifier_forwards, tokens_forwarded, elapsed_s: totals.
    """

    reason: FinishReason
    steps: int
    denoiser_forwards: int
    verifier_forwards: int
    tokens_forwarded: int
    elapsed_s: float


class Denoiser(Protocol):
    """A masked diffusion model with its KV cache, below the shift, padding rows and mask id."""

    @property
    def mask_id(self) -> int: ...

    @property
    def length(self) -> int:
        """Positions [0, length) whose keys and values are cached."""
        ...

    @property
    def lookback(self) -> int:
        """How far before a position its logits are made: 1 with the published shift, else 0."""
        ...

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        """Run positions [start, len(tokens)) against the cached prefix [0, start).

        Args:
            tokens: [right] int64, the whole sequence up to the end of the window.
            start: where the window begins, 0 <= start <= min(first, length); with the published
                shift the row for `first` is made at first - 1, so start < first unless first is 0.
            first: first position whose logits are wanted.
            keep_after: attend also to what is cached at and after len(tokens), and keep it;
                otherwise it is forgotten.

        Returns:
            [right - first, vocab] float32: row r is the marginal of position first + r. Ids that
            may never be produced (undefined, or the mask itself) are -inf.
        """
        ...

    def crop(self, length: int) -> None:
        """Forget the keys and values at and after `length`."""
        ...


class AsynchronousDenoiser(Denoiser, Protocol):
    """A denoiser whose logits may be asked for long before they are looked at.

    Attributes:
        asynchronous: whether `logits` returns while the device still computes. What the host does
            meanwhile then costs no time.
    """

    asynchronous: bool


class Verifier(Protocol):
    """A causal language model with its own KV cache.

    An engine's verifier may also have what :class:`AcceptingVerifier` or
    :class:`ThriftyVerifier` has; a strategy asks for it by name.
    """

    @property
    def length(self) -> int:
        """Positions [0, length) whose keys and values are cached."""
        ...

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        """Run the positions of `tokens` that are not cached yet.

        Args:
            tokens: [n] int64; its first `length` ids are those that are cached.
            first: first position whose conditional is wanted, length < first <= n.

        Returns:
            [n - first + 1, vocab] float32: row r is p(x_{first + r} | x_{< first + r}); the last
            row predicts position n. Ids that may never be produced are -inf. Made for the
            caller, who may write over it.
        """
        ...

    def crop(self, length: int) -> None:
        """Forget the keys and values at and after `length`."""
        ...


class AcceptingVerifier(Verifier, Protocol):
    """A verifier that also mixes and accepts, the whole draft in one call."""

    def accept(
        self,
        tokens: Tensor,
        draft: Tensor,
        d: Tensor,
        weight: float,
        noise: KeyedNoise | None = None,
    ) -> Tensor:
        """Verify, mix and accept a draft; nothing waits for the device before that is done.

        Args:
            tokens: [n] int64, as for `logits`: the text before the draft, then all of the draft
                but its last token.
            draft: [m] int64, m > 1.
            d: [m, vocab] float32, the marginals that the draft was taken from.
            weight: R in [0, 1).
            noise: with which the draft was drawn; None where it is greedy.

        Returns:
            [m + 1] int64, the draft and then how long a prefix of it the mixture agrees with, at
            least 1: in one piece, for it goes to the host next, where it may be already.
        """
        ...


class ThriftyVerifier(Verifier, Protocol):
    """A verifier of whom few positions are worth less time than many: on CPUs, not on GPUs.

    Attributes:
        verify_less: whether a strategy had better show it the beginning of a draft first, and
            more only while it agrees. Each part costs a forward and brings its result to the host.
    """

    verify_less: bool


@dataclass(frozen=True)
class Pair:
    """The models a strategy may ask. A strategy that needs no verifier never touches it."""

    denoiser: Denoiser
    verifier: Verifier | None = None


class Strategy(Protocol):
    """Chooses which masked positions to write next. One object serves one generation."""

    @property
    def early_stop(self) -> bool:
        """Whether an end token with nothing masked before it ends the generation."""
        ...

    def step(self, canvas: Canvas, pair: Pair) -> Commit: ...


class ForesightedStrategy(Strategy, Protocol):
    """A strategy that knows its next forward as soon as the last commit is written."""

    def ahead(self, canvas: Canvas, pair: Pair) -> None:
        """Ask the denoiser for what the next step will need; its `step` then asks no more.

        Called at most once between two steps, with the canvas that the next one sees.
        """
        ...
