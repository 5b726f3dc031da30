"""The registry: a strategy's name to the object that carries one generation out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apdcli.decode.params import STRATEGIES, DecodeParams, StrategyParams, strategy_info
from apdcli.decode.sampling import Sampler
from apdcli.decode.strategies.apd import Apd
from apdcli.decode.strategies.autoregressive import Autoregressive
from apdcli.decode.strategies.confidence import Confidence
from apdcli.decode.strategies.dico import Dico
from apdcli.decode.strategies.entropy import Entropy
from apdcli.decode.strategies.entropy_bound import EntropyBound
from apdcli.decode.strategies.factor import Factor
from apdcli.decode.strategies.klass import Klass
from apdcli.decode.strategies.left_to_right import LeftToRight
from apdcli.decode.strategies.margin import Margin
from apdcli.decode.strategies.random_order import RandomOrder
from apdcli.decode.strategies.threshold import Threshold
from apdcli.decode.types import Strategy

_MAKERS: dict[str, Callable[..., Any]] = {
    "apd": Apd,
    "left_to_right": LeftToRight,
    "autoregressive": Autoregressive,
    "dico": Dico,
    "confidence": Confidence,
    "threshold": Threshold,
    "factor": Factor,
    "entropy_bound": EntropyBound,
    "klass": Klass,
    "random": RandomOrder,
    "margin": Margin,
    "entropy": Entropy,
}
assert _MAKERS.keys() == STRATEGIES.keys()


def make_strategy(
    name: str, shared: DecodeParams, own: StrategyParams, sampler: Sampler | None = None
) -> Strategy:
    """A fresh strategy for one generation.

    Args:
        sampler: draws its tokens: a fresh one, for `shared`. By default one for the CPU.

    Raises:
        UsageError: no strategy of that name.
    """
    strategy: Strategy = _MAKERS[strategy_info(name).name](shared, own, sampler)
    return strategy
