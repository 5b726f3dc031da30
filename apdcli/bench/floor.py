"""The least a step can cost: bytes moved and operations done, against what a machine can do.

Pure functions of model shapes: no torch, no clock. What is counted, and what is not, so that the
sum stays a lower bound that no implementation of the same step can pass:

- Every weight of the layers is read once a forward, and the head's matrix once. Of an untied
  embedding only the rows of the tokens are read, so Dream-7B moves 14.1 of its 15.2 GB. Quantized
  weights count as they are kept.
- Keys and values of the cached prefix are read once, those of the positions run are written once.
- Matrix products cost 2 operations a weight and position (one multiply, one add); attention costs
  4 a head channel and (query, key) pair: half for the scores, half for the mix of values. A causal
  model's query pairs only with the keys up to its own.
- The head runs on the rows that are asked for (the masked positions), not on the whole window.
- Where a verifier judges a draft, the draft's logits are written once and read once: the mixture
  needs both models' (arXiv 2506.00413, algorithm 1, line 8).
- Not counted, because a perfect kernel keeps them on the chip or hides them: activations, norms,
  RoPE, softmax, the choice of tokens, launches, transfers to the host.

Parts depend on each other's results, so they run one after another, and each takes at least the
longer of its memory time and its arithmetic time (the roofline; Williams et al., CACM 52(4), 2009).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from apdcli.models.config import ModelConfig
from apdcli.models.formats import format_of, parameter_bytes, planned_bytes
from apdcli.models.names import HEAD

Window: TypeAlias = "int | str"
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Work:
    """Bytes between memory and chip, and arithmetic operations."""

    bytes: float = 0.0
    operations: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.operations + other.operations)


@dataclass(frozen=True)
class Rates:
    """What a machine can do: bytes a second from memory, operations a second in matrix products."""

    bandwidth: float
    operations: float


@dataclass(frozen=True)
class Forward:
    """One forward pass, as its cost sees it. Means over several passes may be fractions.

    Attributes:
        positions: positions that are run.
        keys: positions attended to: the cached ones and those that are run.
        rows: positions whose logits are wanted.
    """

    positions: float
    keys: float
    rows: float


@dataclass(frozen=True)
class Part:
    """A stretch of a step that must end before the next can begin."""

    name: str
    work: Work

    def memory_s(self, rates: Rates) -> float:
        """Seconds to move its bytes."""
        return self.work.bytes / rates.bandwidth

    def arithmetic_s(self, rates: Rates) -> float:
        """Seconds to do its operations."""
        return self.work.operations / rates.operations

    def floor_s(self, rates: Rates) -> float:
        """Seconds it takes at least."""
        return max(self.memory_s(rates), self.arithmetic_s(rates))


def floor_s(parts: Sequence[Part], rates: Rates) -> float:
    """Seconds that the parts take at least, one after another."""
    return sum(part.floor_s(rates) for part in parts)


def layers_work(
    config: ModelConfig, forward: Forward, dtype_bytes: int, quantize: str = "none"
) -> Work:
    """All layers and the last norm, with the gathered embedding rows and the KV cache."""
    matrices = _matrices(config)
    weights = planned_bytes(config, quantize, dtype_bytes) - _head_bytes(
        config, dtype_bytes, quantize
    )
    if not config.tied:
        weights -= config.vocab_size * config.hidden_size * dtype_bytes
    channels = config.num_layers * config.num_kv_heads * config.head_dim
    moved = (
        forward.positions * config.hidden_size
        + 2 * channels * forward.keys  # prefix read, window written: each key and value once
    )
    pairs = forward.positions * forward.keys
    if config.causal:
        pairs -= forward.positions * (forward.positions - 1) / 2
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * pairs
    operations = 2 * matrices * forward.positions + attention
    return Work(weights + moved * dtype_bytes, operations)


def head_work(config: ModelConfig, rows: float, dtype_bytes: int, quantize: str = "none") -> Work:
    """The head on `rows` positions: its matrix read once."""
    size = config.vocab_size * config.hidden_size
    return Work(_head_bytes(config, dtype_bytes, quantize) if rows else 0, 2 * size * rows)


def mixture_work(config: ModelConfig, rows: float, dtype_bytes: int) -> Work:
    """The draft's logits, written once and read once; see the module's docstring."""
    return Work(2 * rows * config.vocab_size * dtype_bytes)


def forward_parts(
    name: str, config: ModelConfig, forward: Forward, dtype_bytes: int, quantize: str = "none"
) -> tuple[Part, ...]:
    """One forward pass of the model called `name`.

    Args:
        dtype_bytes: of a number that is computed with.
        quantize: what the weights are kept in.
    """
    return (
        Part(f"{name} layers", layers_work(config, forward, dtype_bytes, quantize)),
        Part(f"{name} head", head_work(config, forward.rows, dtype_bytes, quantize)),
    )


@dataclass(frozen=True)
class ApdStep:
    """One step of adaptive parallel decoding in the middle of an answer.

    Attributes:
        cursor: i, positions decoded before the step (prompt and answer so far).
        recompute_window: W, or "all".
        max_lookahead: M.
        accepted: tokens that the step before accepted: they are recomputed too.
    """

    cursor: int
    recompute_window: Window
    max_lookahead: int
    accepted: float

    @property
    def denoiser(self) -> Forward:
        """[i - (accepted + W - 1), i + M), logits for the M masks (spec/apd.md, step 1)."""
        again = float(self.cursor)
        if not isinstance(self.recompute_window, str):
            again = min(again, self.accepted + self.recompute_window - 1)
        m = self.max_lookahead
        return Forward(positions=again + m, keys=self.cursor + m, rows=m)

    @property
    def verifier(self) -> Forward:
        """The draft but for its last token, whose successor nobody asks for."""
        m = self.max_lookahead - 1
        return Forward(positions=m, keys=self.cursor + m, rows=m)

    def parts(
        self,
        denoiser: ModelConfig,
        verifier: ModelConfig | None,
        dtype_bytes: int,
        quantize: tuple[str, str] = ("none", "none"),
    ) -> tuple[Part, ...]:
        """What the step does, in order; without a verifier the draft alone.

        Args:
            quantize: what the denoiser's and the verifier's weights are kept in.
        """
        parts = forward_parts("denoiser", denoiser, self.denoiser, dtype_bytes, quantize[0])
        if verifier is not None and self.max_lookahead > 1:
            parts += forward_parts("verifier", verifier, self.verifier, dtype_bytes, quantize[1])
            rows = self.max_lookahead
            parts += (Part("mixture", mixture_work(denoiser, rows, dtype_bytes)),)
        return parts


def causal_parts(
    config: ModelConfig, cursor: int, dtype_bytes: int, quantize: str = "none"
) -> tuple[Part, ...]:
    """One token of an autoregressive model of that shape, `cursor` positions before it."""
    forward = Forward(positions=1, keys=cursor + 1, rows=1)
    return forward_parts("autoregressive", config, forward, dtype_bytes, quantize)


def _head_bytes(config: ModelConfig, dtype_bytes: int, quantize: str) -> int:
    """What the head's matrix takes; a tied one is the embedding, which stays as it is."""
    kept = "none" if config.tied else format_of(HEAD, quantize)
    return parameter_bytes((config.vocab_size, config.hidden_size), kept, dtype_bytes)


def _matrices(config: ModelConfig) -> int:
    """Weights of the layers' matrices."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    embedding = config.vocab_size * config.hidden_size * (1 if config.tied else 2)
    everything = config.num_parameters - embedding
    biases = config.num_layers * (q + 2 * kv) if config.qkv_bias else 0
    norms = (2 * config.num_layers + 1) * config.hidden_size
    return everything - biases - norms


if __name__ == "__main__":
    import sys

    from apdcli.bench.floor_table import main

    sys.exit(main())
