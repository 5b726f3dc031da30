"""Parameters of the strategies that decode in any order, over the response or block by block.

They need no verifier. Defaults are the originals'; a field that two strategies share has one
range, because a profile's [decode] table may hold it for both. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from apdcli.decode.checks import Window, check, is_int, is_real, is_window

CACHES = ("none", "prefix", "dual")
SCHEDULES = ("dream", "llada")
MOST_STEPS = 100_000  # steps that commit nothing are passed over one by one


def _unit(name: str, value: object) -> None:
    """Check a probability or a share."""
    check(is_real(value, 0.0, 1.0), name, value, "a number from 0 to 1")


def _not_negative(name: str, value: object) -> None:
    check(is_real(value, 0.0, 1e9), name, value, "a number from 0 to 1e9")


def _count(name: str, value: object) -> None:
    check(is_int(value, 1), name, value, "an integer >= 1")


def _switch(name: str, value: object) -> None:
    check(isinstance(value, bool), name, value, "true or false")


def _schedule(steps: object, schedule: object) -> None:
    fits = steps is None or (is_int(steps, 1) and is_real(steps, 1, MOST_STEPS))
    check(fits, "steps", steps, f"an integer from 1 to {MOST_STEPS}")
    check(schedule in SCHEDULES, "schedule", schedule, f"one of {', '.join(SCHEDULES)}")


@dataclass(frozen=True)
class AnyOrderParams:
    """What all any-order strategies share.

    Args:
        block_length: tokens in a block, a divisor of the response's length; a block is finished
            before the next begins. "all", or a length no shorter than the response: one block.
        early_stop: end once an end token has nothing masked before it; the text is the same.
        cache: "none" recomputes everything at every forward; "prefix" keeps the keys and values
            of what is before the block, "dual" those after it too, both refreshed by the first
            forward of each block (Fast-dLLM, arXiv 2505.22618, section 3.2). Faster, and not
            exact: the kept values do not see what the block decodes.
    """

    block_length: Window = "all"
    early_stop: bool = True
    cache: Literal["none", "prefix", "dual"] = "none"

    def __post_init__(self) -> None:
        check(
            is_window(self.block_length),
            "block_length",
            self.block_length,
            'an integer >= 1 or "all"',
        )
        _switch("early_stop", self.early_stop)
        check(self.cache in CACHES, "cache", self.cache, f"one of {', '.join(CACHES)}")

    def check_fits(self, max_tokens: int) -> None:
        """Raise :class:`ParameterError` unless the blocks fill a response of `max_tokens`."""
        length = self.block_length
        check(
            length == "all" or length >= max_tokens or max_tokens % length == 0,
            "block_length",
            length,
            f'"all" or a divisor of max_tokens ({max_tokens})',
        )


@dataclass(frozen=True)
class DicoParams(AnyOrderParams):
    """Divide and conquer (arXiv 2602.23792). Defaults: the authors', for every model and task.

    Args:
        block_length: 128, the paper's semi-autoregressive setting.
        seeds: N, seeds taken in a Divide forward; 4 of 2 .. 10 was best in the ablation.
        divide_steps: forwards of one Divide phase at most; a cap that is seldom met.
        seed_threshold: guided confidence a seed and a cluster's positions need; low, because
            seeds are few and far apart.
        tolerance: M, walls in a row that a cluster may step over, so that one hard token does
            not split a phrase.
        guidance: weigh Divide's confidences from left to right (trajectory guidance).
        guidance_alpha: how fast the weighting flattens as the response fills.
        guidance_beta: weight of the block's last position when nothing is decoded yet.
        factor: f of the prefix rule in Conquer: (k + 1)(1 - c_k) < f; 1 is what theory gives.
        low_threshold: mean confidence at which clusters are ready to be conquered, and under
            which they are left.
        sure_threshold: confidence above which a position is committed wherever it is.
        gate: share of the block that Divide and Conquer decode before Finalize.
        margin: gap between the two best logits above which Finalize commits a position.
    """

    block_length: Window = 128
    seeds: int = 4
    divide_steps: int = 10
    seed_threshold: float = 0.3
    tolerance: int = 2
    guidance: bool = True
    guidance_alpha: float = 0.5
    guidance_beta: float = 0.05
    factor: float = 1.0
    low_threshold: float = 0.6
    sure_threshold: float = 0.98
    gate: float = 0.8
    margin: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _count("seeds", self.seeds)
        _count("divide_steps", self.divide_steps)
        _unit("seed_threshold", self.seed_threshold)
        check(is_int(self.tolerance, 0), "tolerance", self.tolerance, "an integer >= 0")
        _switch("guidance", self.guidance)
        _not_negative("guidance_alpha", self.guidance_alpha)
        check(
            is_real(self.guidance_beta, 0.0, 1.0) and self.guidance_beta > 0,
            "guidance_beta",
            self.guidance_beta,
            "a number above 0 and at most 1",
        )
        _not_negative("factor", self.factor)
        for name in ("low_threshold", "sure_threshold", "gate"):
            _unit(name, getattr(self, name))
        _not_negative("margin", self.margin)


@dataclass(frozen=True)
class ConfidenceParams(AnyOrderParams):
    """The most confident positions first: LLaDA's low-confidence remasking, Dream's maskgit_plus.

    Args:
        k: positions committed at each forward.
        steps: if given, the schedule in so many steps a block instead of k.
        schedule: how `steps` share a block: "dream" as Dream's time steps do, "llada" evenly.
        alg_temp: above 0, positions are drawn from softmax(confidence / alg_temp), without
            replacement; 0 as in Dream's evaluations, its demos have 0.1.
    """

    k: int = 1
    steps: int | None = None
    schedule: Literal["dream", "llada"] = "dream"
    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _count("k", self.k)
        _schedule(self.steps, self.schedule)
        _not_negative("alg_temp", self.alg_temp)


@dataclass(frozen=True)
class ScheduledParams(AnyOrderParams):
    """Random order: Dream's origin (arXiv 2508.15487), LLaDA's random remasking (2502.09992).

    Args:
        steps: steps of the published schedule in a block; None takes one a token.
        schedule: "dream" tosses a coin for each position, "llada" takes as many at each step.
    """

    steps: int | None = None
    schedule: Literal["dream", "llada"] = "dream"

    def __post_init__(self) -> None:
        super().__post_init__()
        _schedule(self.steps, self.schedule)


@dataclass(frozen=True)
class RankedParams(ScheduledParams):
    """Dream's orders by margin and by entropy (arXiv 2508.15487).

    Args:
        alg_temp: above 0, positions are drawn from softmax(score / alg_temp), without
            replacement, the score being the margin or minus the entropy; see ConfidenceParams.
    """

    alg_temp: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative("alg_temp", self.alg_temp)


@dataclass(frozen=True)
class ThresholdParams(AnyOrderParams):
    """Every position above a confidence (Fast-dLLM, arXiv 2505.22618, algorithm 1).

    Args:
        confidence_threshold: 0.9, the authors' setting for all tasks.
    """

    confidence_threshold: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        _unit("confidence_threshold", self.confidence_threshold)


@dataclass(frozen=True)
class FactorParams(AnyOrderParams):
    """As many of the most confident as are jointly safe (Fast-dLLM, section 3.3).

    Args:
        factor: f of the prefix rule (k + 1)(1 - c_k) < f; 1 is what theory gives.
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative("factor", self.factor)


@dataclass(frozen=True)
class EntropyBoundParams(AnyOrderParams):
    """As many as keep the error of independent sampling bounded (EB-Sampler, arXiv 2505.24857).

    Args:
        gamma: bound, in nats, on the summed entropies less the largest; 0.1 as in the paper.
    """

    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _not_negative("gamma", self.gamma)


@dataclass(frozen=True)
class KlassParams(AnyOrderParams):
    """Positions whose prediction has settled (KLASS, arXiv 2511.05664).

    Args:
        confidence_threshold: with `parallel`, settled positions must also be this confident.
        kl_threshold: KL divergence, in nats, between successive forwards that counts as settled.
        kl_history_length: successive divergences that must all be under it.
        parallel: commit all such positions at once and keep the history from block to block, as
            the KLASS authors do; off, the most confident settled one, as in the DiCo authors' runs.
    """

    confidence_threshold: float = 0.9
    kl_threshold: float = 0.01
    kl_history_length: int = 2
    parallel: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _unit("confidence_threshold", self.confidence_threshold)
        _not_negative("kl_threshold", self.kl_threshold)
        _count("kl_history_length", self.kl_history_length)
        _switch("parallel", self.parallel)
