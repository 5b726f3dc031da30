"""A benchmark from its settings to its result: cases, rates, turns, figures.

Knows nothing of options, streams or files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from apdcli.bench.floor import Rates
from apdcli.bench.floor_table import weights_read
from apdcli.bench.machine import describe
from apdcli.bench.rates import measure_rates
from apdcli.bench.report import Measured, Shape, summarize
from apdcli.bench.runs import Case, Plan, Turn, complete
from apdcli.bench.settings import Contender, written
from apdcli.bench.shapes import (
    Kept,
    WrappedPair,
    accepting,
    causal_view,
    check_memory,
    random_pair,
    random_prompt,
)
from apdcli.bench.sizes import Shapes
from apdcli.decode.params import ApdParams, make_params
from apdcli.engine.choice import resolve_engine
from apdcli.engine.device import check_dtype, resolve_device
from apdcli.engine.pair import LoadedPair, load_models
from apdcli.engine.session import Prompt, Request, prepare
from apdcli.load.dtype import resolve_dtype
from apdcli.load.settings import Settings
from apdcli.models.quantized import quantization_of, weight_bytes
from apdcli.models.transformer import Transformer

FORMAT = 1  # of the JSON object; goes up when a key changes its meaning


@dataclass(frozen=True)
class Order:
    """How to measure.

    Attributes:
        repeats, warmup, split: see `runs.Plan`.
        rates: in place of measuring the machine.
        rate_seconds: how long each rate is measured.
        interrupted, progress: see `runs.Plan`.
    """

    repeats: int = 5
    warmup: int = 1
    split: bool = True
    rates: Rates | None = None
    rate_seconds: float = 0.7
    interrupted: Callable[[], bool] = lambda: False
    progress: Callable[[int, int, str], None] = field(default=lambda done, total, name: None)


def cases_of(
    pair: LoadedPair, contenders: Sequence[Contender], prompts: Sequence[Prompt], *, raw: bool
) -> list[Case]:
    """The requests of a loaded pair, all checked.

    Raises:
        PromptError, UsageError: as `engine.session.prepare`.
    """
    pairs = {_kept(pair): pair}
    made = []
    for contender in contenders:
        kept = _wanted(contender.settings)
        if kept not in pairs:
            pairs[kept] = load_models(pair.profile, contender.settings)
        own = _as_asked(pairs[kept], contender)
        requests = (prepare(own, prompt, contender.settings, raw=raw) for prompt in prompts)
        made.append(Case(contender.spec.name, tuple(requests)))
    return made


def cases_of_shapes(
    shapes: Shapes,
    pair: LoadedPair,
    contenders: Sequence[Contender],
    *,
    accept: int,
    prompt_tokens: int,
    seed: int = 0,
    prompts: int = 1,
) -> list[Case]:
    """The same on random weights: prompts of random ids, apd made to accept `accept` a step."""
    ids = [random_prompt(shapes, prompt_tokens, seed + n) for n in range(prompts)]
    pairs = {_kept(pair): pair}
    made = []
    for contender in contenders:
        settings = contender.settings
        shared, own = make_params(contender.settings.strategy, **settings.decode_values())
        kept = _wanted(contender.settings)
        if kept not in pairs:
            pairs[kept] = _random(shapes, contender.settings)
        models = _as_asked(pairs[kept], contender)
        if isinstance(own, ApdParams):
            models = WrappedPair.of(models, accepting(accept))
        requests = (Request(models, prompt, settings.strategy, shared, own) for prompt in ids)
        made.append(Case(contender.spec.name, tuple(requests)))
    return made


def load_shapes(
    shapes: Shapes, contenders: Sequence[Contender], *, prompt_tokens: int
) -> LoadedPair:
    """Random models of these sizes where the settings say, if there is room.

    Raises:
        DeviceError: no such device, or too little memory on it.
    """
    settings = contenders[0].settings
    device, dtype = _place(settings, shapes)
    check_dtype(settings["denoiser_dtype"].value, device)
    positions = prompt_tokens + max(c.settings["max_tokens"].value for c in contenders)
    kept = tuple(dict.fromkeys(_wanted(c.settings) for c in contenders))
    check_memory(shapes, device, dtype, positions, _rows(contenders), kept)
    return _random(shapes, settings)


def _place(settings: Settings, shapes: Shapes) -> tuple[torch.device, torch.dtype]:
    device = resolve_device(settings["denoiser_device"].value)
    return device, resolve_dtype(settings["denoiser_dtype"].value, device, shapes.stored)


def _random(shapes: Shapes, settings: Settings) -> LoadedPair:
    """Random models of these sizes, as the settings want their weights."""
    kept = _wanted(settings)
    return random_pair(shapes, *_place(settings, shapes), settings["engine"].value, kept)


def _kept(pair: LoadedPair) -> Kept:
    """What a pair's weights are kept in."""
    verifier = "none" if pair.verifier is None else quantization_of(pair.verifier)
    return quantization_of(pair.denoiser), verifier


def _wanted(settings: Settings) -> Kept:
    """What settings want the weights kept in."""
    names = ("denoiser_quantize", "verifier_quantize")
    denoiser, verifier = (settings[n].value if n in settings else "none" for n in names)
    return denoiser, verifier


def _rows(contenders: Sequence[Contender]) -> int:
    """Masked positions that one forward is asked for at most."""
    rows = [1]
    for contender in contenders:
        settings = contender.settings
        most = settings["max_tokens"].value
        ahead = settings["max_lookahead"].value if "max_lookahead" in settings else most
        rows.append(min(ahead, most) if isinstance(ahead, int) else most)
    return max(rows)


def measure(
    pair: LoadedPair, cases: Sequence[Case], contenders: Sequence[Contender], order: Order
) -> dict[str, Any] | None:
    """Run everything in turns; the result as plain numbers, None where not one turn is complete.

    Keys: complete, machine, models, prompts, repeats, warmup, rates, settings, runs. `complete` is
    False after an interruption: the figures are then of the repeats that were finished, or, in the
    first repeat, of the prompts that every setting had answered.
    """
    order.progress(0, 0, "measuring this machine")
    rates = order.rates or _rates(pair, order.rate_seconds)
    plan = Plan(cases, order.repeats, order.warmup, order.split, order.interrupted, order.progress)
    memory = plan.memory() if plan.warm_up() else None
    turns = [] if memory is None else list(plan.turns())
    if memory is None or not turns:
        return None
    repeats = complete(turns, plan.prompts)
    settings = [
        {
            **_setting(contender, case, cases[0].name, repeats, rates),
            "memory": asdict(memory[case.name]),
        }
        for contender, case in zip(contenders, cases, strict=True)
    ]
    return {
        "complete": len(turns) == order.repeats * plan.prompts,
        "machine": describe(pair.device),
        "models": _models(pair),
        "prompts": [{"tokens": len(request.prompt_ids)} for request in cases[0].requests],
        "repeats": len(repeats),
        "warmup": order.warmup,
        "rates": asdict(rates),
        "settings": settings,
        "runs": [_record(turn) for turns in repeats for turn in turns],
    }


def _setting(
    contender: Contender,
    case: Case,
    first: str,
    repeats: Sequence[Sequence[Turn]],
    rates: Rates,
) -> dict[str, Any]:
    pair = case.requests[0].pair
    measured = Measured(
        denoiser=_shape(pair.denoiser),
        verifier=None if pair.verifier is None else _shape(pair.verifier),
        rates=rates,
    )
    return {
        "name": case.name,
        "setting": written(contender.spec),
        "strategy": contender.spec.strategy,
        "values": contender.settings.as_json(),
        "engine": pair.engine,
        "weights_bytes": _weights(pair),
        "summary": summarize(case.name, repeats, first, measured),
    }


def _record(turn: Turn) -> dict[str, Any]:
    """A turn for JSON: its forwards one by one would be most of the file."""
    runs: dict[str, Any] = {}
    for name, run in turn.runs.items():
        table = asdict(replace(run, split=None))
        if run.split is not None:
            split = replace(run.split, denoiser_forwards=(), verifier_forwards=())
            kept = ("denoiser", "verifier", "sampling", "rest", "steps")
            table["split"] = {key: getattr(split, key) for key in kept}
        runs[name] = table
    return {"repeat": turn.repeat, "prompt": turn.prompt, "runs": runs}


def _as_asked(pair: LoadedPair, contender: Contender) -> LoadedPair:
    """The pair with the engine of a setting, and the verifier that it wants."""
    nets = [net for net in (pair.denoiser, pair.verifier) if net is not None]
    engine = resolve_engine(contender.settings["engine"].value, nets)
    own = pair if engine == pair.engine else replace(pair, engine=engine)
    return _as_causal(own) if contender.spec.causal else own


def _as_causal(pair: LoadedPair) -> LoadedPair:
    """The denoiser in the verifier's place, looking back only; nothing ends its text."""
    profile = replace(pair.profile, verifier=pair.profile.denoiser)
    verifier = causal_view(pair.denoiser)
    return replace(pair, profile=profile, verifier=verifier, stop_ids=frozenset())


def _rates(pair: LoadedPair, seconds: float) -> Rates:
    weight = pair.denoiser.model.embed_tokens.weight
    verifier = None if pair.verifier is None else pair.verifier.config
    shape = _shape(pair.denoiser)
    weights = weights_read(shape.config, verifier, shape.dtype)
    return measure_rates(weight.device, weight.dtype, weights=weights, seconds=seconds)


def _shape(net: Transformer) -> Shape:
    dtype = net.model.embed_tokens.weight.dtype
    return Shape(net.config, str(dtype).removeprefix("torch."), quantization_of(net))


def _weights(pair: LoadedPair) -> int:
    """Memory of both models' weights; a causal view has none of its own."""
    nets = {id(net.model): net for net in (pair.denoiser, pair.verifier) if net is not None}
    return sum(map(weight_bytes, nets.values()))


def _models(pair: LoadedPair) -> dict[str, Any]:
    made = {}
    for name, net in (("denoiser", pair.denoiser), ("verifier", pair.verifier)):
        if net is not None:
            weight = net.model.embed_tokens.weight
            made[name] = {
                "family": net.config.family,
                "parameters": net.config.num_parameters,
                "bytes": weight_bytes(net),
                "device": str(weight.device),
                "dtype": str(weight.dtype).removeprefix("torch."),
                "quantize": quantization_of(net),
            }
    return made
