"""Every decoding parameter, with its range and its default. Loads no torch.

They stand apart from the strategies that use them so that profiles, completion and usage errors
can check a value without loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from apdcli.decode.any_order_params import (
    AnyOrderParams,
    ConfidenceParams,
    DicoParams,
    EntropyBoundParams,
    FactorParams,
    KlassParams,
    RankedParams,
    ScheduledParams,
    ThresholdParams,
)
from apdcli.decode.checks import (
    Lookahead,
    Window,
    is_int,
    is_lookahead,
    is_real,
    is_window,
    plain_number,
)
from apdcli.decode.checks import check as check
from apdcli.errors import UnknownParameterError, UsageError


@dataclass(frozen=True)
class DecodeParams:
    """What every strategy shares.

    Args:
        max_tokens: length of the response canvas in tokens, >= 1.
        temperature: 0 is greedy; otherwise logits are divided by it before filtering.
        top_k: keep the k most likely tokens; None keeps all.
        top_p: keep the smallest set with this probability mass, in (0, 1]; None keeps all.
        seed: seed of the decoder's own generator (the global one is never touched).
        stop_ids: token ids that end the generation.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        check(is_int(self.max_tokens, 1), "max_tokens", self.max_tokens, "an integer >= 1")
        check(
            is_real(self.temperature, 0.0, 100.0),
            "temperature",
            self.temperature,
            "a number from 0 to 100",
        )
        check(self.top_k is None or is_int(self.top_k, 1), "top_k", self.top_k, "an integer >= 1")
        check(
            self.top_p is None or (is_real(self.top_p, 0.0, 1.0) and self.top_p > 0),
            "top_p",
            self.top_p,
            "a number above 0 and at most 1",
        )
        check(
            is_int(self.seed, 0) and self.seed < 2**63,
            "seed",
            self.seed,
            "an integer from 0 to 2^63 - 1",
        )


@dataclass(frozen=True)
class ApdParams:
    """Adaptive parallel decoding (arXiv 2506.00413). Defaults: the paper's fast setting, table 2.

    Args:
        mixture_weight: R in [0, 1]; 1 trusts the denoiser alone, 0 lets the verifier decide.
        recompute_window: W, tokens before the cursor whose KV is refreshed each step, or "all".
        max_lookahead: M, masked positions given to the denoiser, or "all"; "auto" follows what
            was accepted lately, see :class:`apdcli.decode.strategies.window.SlidingWindow`.
    """

    mixture_weight: float = 0.7
    recompute_window: Window = 16
    max_lookahead: Lookahead = 100

    def __post_init__(self) -> None:
        check(
            is_real(self.mixture_weight, 0.0, 1.0),
            "mixture_weight",
            self.mixture_weight,
            "a number from 0 to 1",
        )
        _check_windows(self.recompute_window, self.max_lookahead)


@dataclass(frozen=True)
class LeftToRightParams:
    """A fixed number of tokens a step, left to right, from the denoiser alone.

    Args:
        k: K, tokens committed at each step, >= 1.
        recompute_window: W as in APD; at least the K tokens taken last are always recomputed.
        max_lookahead: M as in APD; K tokens are taken even where M is smaller.
    """

    k: int = 1
    recompute_window: Window = 16
    max_lookahead: Lookahead = 100

    def __post_init__(self) -> None:
        check(is_int(self.k, 1), "k", self.k, "an integer >= 1")
        _check_windows(self.recompute_window, self.max_lookahead)


@dataclass(frozen=True)
class AutoregressiveParams:
    """The verifier alone, one token a step. It has no knobs of its own."""


def _check_windows(recompute_window: object, max_lookahead: object) -> None:
    check(
        is_window(recompute_window),
        "recompute_window",
        recompute_window,
        'W >= 1 (an integer) or "all"',
    )
    check(
        is_lookahead(max_lookahead),
        "max_lookahead",
        max_lookahead,
        'M >= 1 (an integer), "all" or "auto"',
    )


StrategyParams = ApdParams | LeftToRightParams | AutoregressiveParams | AnyOrderParams


@dataclass(frozen=True)
class StrategyInfo:
    """What can be known of a strategy without loading torch."""

    name: str
    params: type[StrategyParams]
    needs_denoiser: bool
    needs_verifier: bool
    summary: str

    @cached_property
    def own_fields(self) -> tuple[str, ...]:
        """Names of the parameters that belong to this strategy alone."""
        return tuple(f.name for f in fields(self.params))


STRATEGIES: dict[str, StrategyInfo] = {
    info.name: info
    for info in (
        StrategyInfo("apd", ApdParams, True, True, "adaptive parallel decoding: R, W, M"),
        StrategyInfo(
            "left_to_right", LeftToRightParams, True, False, "K tokens a step, denoiser alone"
        ),
        StrategyInfo(
            "autoregressive", AutoregressiveParams, False, True, "one a step, verifier alone"
        ),
        StrategyInfo("dico", DicoParams, True, False, "divide, conquer, finalize: any order"),
        StrategyInfo(
            "confidence", ConfidenceParams, True, False, "the k most confident, any order"
        ),
        StrategyInfo(
            "threshold", ThresholdParams, True, False, "all above a confidence, any order"
        ),
        StrategyInfo("factor", FactorParams, True, False, "as many as are jointly safe"),
        StrategyInfo(
            "entropy_bound", EntropyBoundParams, True, False, "as many as an entropy bound allows"
        ),
        StrategyInfo("klass", KlassParams, True, False, "predictions that no longer change"),
        StrategyInfo("random", ScheduledParams, True, False, "random order, Dream's schedule"),
        StrategyInfo("margin", RankedParams, True, False, "by margin, Dream's schedule"),
        StrategyInfo("entropy", RankedParams, True, False, "by entropy, Dream's schedule"),
    )
}

SHARED_FIELDS = ("max_tokens", "temperature", "top_k", "top_p", "seed")


def strategy_info(name: str) -> StrategyInfo:
    """Look a strategy up by name.

    Raises:
        UsageError: no such strategy; the message lists those there are.
    """
    if not isinstance(name, str) or name not in STRATEGIES:
        raise UsageError(f"unknown strategy {name!r}; there are: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def make_params(strategy: str, **values: Any) -> tuple[DecodeParams, StrategyParams]:
    """Split keyword values into the shared parameters and the strategy's own, all checked.

    Raises:
        UsageError: unknown strategy.
        UnknownParameterError: a name that neither knows.
        ParameterError: a value out of range, or blocks that do not divide the response.
    """
    info = strategy_info(strategy)
    values = {name: plain_number(value) for name, value in values.items()}
    shared_names = (*SHARED_FIELDS, "stop_ids")
    for name in values:
        if name not in shared_names and name not in info.own_fields:
            raise UnknownParameterError(name, strategy, (*SHARED_FIELDS, *info.own_fields))
    shared = {name: value for name, value in values.items() if name in shared_names}
    own = {name: value for name, value in values.items() if name in info.own_fields}
    made, params = DecodeParams(**shared), info.params(**own)
    if isinstance(params, AnyOrderParams):
        params.check_fits(made.max_tokens)
    return made, params


def value_of(text: str) -> int | float | bool | str:
    """What a text writes: a number, true or false; "all", or a mistake, stays as it is."""
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
