"""The memory that a generation takes above the weights: bytes of live tensors, and their bound.

    python -m apdcli.bench.memory [--json] [--profile P] [--shapes NAME] [--context N] ...

Every tensor that torch makes during a run is followed from the operation that makes it until its
storage is freed. A pair of a profile really generates, greedily by apd, on a CPU: once after a
prompt that fills the context, once from a short one. Random shapes stand on torch's meta device,
where tensors have sizes and no contents: there the same forwards run, but nothing is decided, so
that the tokens accepted a step are set. What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apdcli.bench.sizes import Shapes, find_shapes
from apdcli.bench.units import markdown, scaled, three
from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.sampling import greedy
from apdcli.decode.strategies import make_strategy
from apdcli.decode.strategies.apd import mixture
from apdcli.decode.types import Canvas
from apdcli.engine.fast import FastDenoiser, FastModel, FastVerifier
from apdcli.engine.graphs import GraphDenoiser, GraphVerifier
from apdcli.engine.pair import LoadedPair, load_pair
from apdcli.engine.sampling import make_sampler
from apdcli.engine.static import Function
from apdcli.models.config import ModelConfig
from apdcli.models.packed import packed
from apdcli.models.transformer import Transformer

MARGIN = 1.15  # what a run may take beyond its caches and two arrays of logits
COUNTS = {
    "bound": "1.15 x (kv, keys and values of both models for the context, + logits, two arrays "
    "[M, vocab] of float32)",
    "prompt, steps": "bytes of live tensors above the weights, at most, in the first step and in "
    "those after it; not what a kernel or a library takes for itself, nor what an allocator keeps",
    "meta": "without the comparison of each graph's first result",
}
WINDOW, WEIGHT = 16, 0.5
SHORT_PROMPT, SHORT_ANSWER = 16, 64
_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made inside the context, until they are freed.

    Attributes:
        now: bytes alive.
        peak: the most that were; set it back to `now` to begin another stretch.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for given in tree_leaves((args, kwargs)):
            self._follow(given, made_here=False)
        # An operation that is made of others is taken apart, so that what they make is seen.
        made = NotImplemented
        if not (func is _ATTENTION and args[0].is_meta):
            with self:
                made = func.decompose(*args, **kwargs)
        if made is NotImplemented:
            made = func(*args, **kwargs)
        for result in tree_leaves(made):
            self._follow(result, made_here=True)
        return made

    def _follow(self, value: Any, *, made_here: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        size = storage.nbytes() if made_here else 0
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Peak:
    """What one run took above the weights, in bytes, and what it may take.

    Attributes:
        run: which models, and how the context was filled.
        how: "run" where it was, "meta" where tensors had sizes only.
        engine, dtype: what the models ran in.
        context: positions of prompt and answer.
        max_lookahead: M.
        kv: keys and values of both models for the context.
        logits: two arrays [M, vocab] of float32.
        prompt: the peak of the first step, which reads the prompt.
        steps: the peak of those after it.
    """

    run: str
    how: str
    engine: str
    dtype: str
    context: int
    max_lookahead: int
    kv: int
    logits: int
    prompt: int
    steps: int

    @property
    def bound(self) -> int:
        """KV + 2 x [M, vocab] float32 + 15 %."""
        return round(MARGIN * (self.kv + self.logits))

    @property
    def share(self) -> float:
        """The peak over the bound."""
        return max(self.prompt, self.steps) / self.bound


def kv_bytes(config: ModelConfig, positions: int, dtype: torch.dtype) -> int:
    """Keys and values of so many positions."""
    channels = config.num_layers * config.num_kv_heads * config.head_dim
    return 2 * channels * positions * dtype.itemsize


def _planned(
    configs: Sequence[ModelConfig], context: int, m: int, dtype: torch.dtype
) -> dict[str, Any]:
    """What of a Peak is known before the run."""
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "max_lookahead": m,
        "kv": sum(kv_bytes(config, context, dtype) for config in configs),
        "logits": 2 * m * min(config.vocab_size for config in configs) * 4,
    }


def generated(pair: LoadedPair, context: int, answer: int, m: int) -> Peak:
    """A greedy generation by apd of `answer` tokens, with a prompt that leaves just that room."""
    values = {"mixture_weight": WEIGHT, "recompute_window": WINDOW, "max_lookahead": m}
    shared, own = make_params("apd", max_tokens=answer, **values)
    allowed = pair.allowed_ids
    ids = [allowed[place % len(allowed)] for place in range(context - answer)]
    nets = [net for net in (pair.denoiser, pair.verifier) if net is not None]
    with LiveBytes() as live:
        models = pair.models(context)
        canvas = Canvas.blank(ids, answer, models.denoiser.mask_id, pair.device)
        steps = decode(
            canvas, make_strategy("apd", shared, own, make_sampler(shared, pair.device)), models
        )
        next(steps)
        prompt, live.peak = live.peak, live.now
        for _ in steps:
            pass
    return Peak(
        run=f"{pair.profile.name}, {len(ids)} + {answer} tokens",
        how="run",
        engine=pair.engine,
        prompt=prompt,
        steps=live.peak,
        **_planned([net.config for net in nets], context, m, nets[0].model.norm.weight.dtype),
    )


class _Unchecked:
    """Graphs whose first results nobody compares: without contents there is nothing to see."""

    def _recorded(self, key: Hashable, function: Function) -> tuple[Function, bool]:
        return function, False


class _MetaGraphDenoiser(_Unchecked, GraphDenoiser):
    pass


class _MetaGraphVerifier(_Unchecked, GraphVerifier):
    pass


ON_META: dict[str, tuple[type[FastModel], type[FastModel]]] = {
    "fast": (FastDenoiser, FastVerifier),
    "graphs": (_MetaGraphDenoiser, _MetaGraphVerifier),
}


def on_meta(
    shapes: Shapes, engine: str, context: int, answer: int, m: int, dtype: torch.dtype
) -> Peak:
    """The forwards of a first, a second and a last step: sizes without contents.

    As on a GPU; which tokens are accepted decides nothing. Graphs are called, not recorded: that
    their memory is used again by the next one is what the recording does, and the comparison of
    each graph's first result is left out.
    """
    assert shapes.verifier is not None
    configs = [shapes.denoiser, shapes.verifier]
    width = min(config.vocab_size for config in configs)
    nets = [_hollow(config, dtype) for config in configs]
    tokens = torch.empty(context, dtype=torch.int64, device="meta")
    # Which ids are banned is looked up on the CPU, and here none is.
    none = torch.zeros(width, dtype=torch.bool)
    with torch.inference_mode(), LiveBytes() as live:
        made = [kind(net, none, context) for kind, net in zip(ON_META[engine], nets, strict=True)]
        for model in made:
            model.banned = tokens.new_empty(width, dtype=torch.bool)
        denoiser, verifier = made
        cursor, last = context - answer, context - m
        _step(denoiser, verifier, tokens, 0, cursor, m)
        prompt, live.peak = live.peak, live.now
        for at in (cursor + 1, last, last):
            _step(denoiser, verifier, tokens, at - WINDOW, at, m)
    return Peak(
        run=f"{shapes.name}, {context - answer} + {answer} tokens",
        how="meta",
        engine=engine,
        prompt=prompt,
        steps=live.peak,
        **_planned(configs, context, m, dtype),
    )


def _hollow(config: ModelConfig, dtype: torch.dtype) -> Transformer:
    """A network of sizes only, packed."""
    with torch.device("meta"):
        net = Transformer(config).to(dtype).eval().requires_grad_(False)
    net.refresh_rope("meta")
    packed(net)
    return net


def _step(denoiser: Any, verifier: Any, tokens: Tensor, left: int, cursor: int, m: int) -> None:
    """The forwards of `Apd.step`, after which the first of its tokens is accepted."""
    d = denoiser.logits(tokens[: cursor + m], left, cursor)
    draft = greedy(d)
    seen = torch.cat((tokens[:cursor], draft[:-1]))
    if isinstance(verifier, GraphVerifier):
        verifier.accept(seen, draft, d, WEIGHT)
    else:
        greedy(mixture(d[1:], verifier.logits(seen, cursor + 1), WEIGHT))
    verifier.crop(cursor)


def table(peaks: Sequence[Peak]) -> str:
    """A Markdown table, a row a run."""
    head = ("tokens", "how", "M", "KV", "2 x [M, vocab]", "bound", "prompt", "steps", "peak/bound")
    rows = []
    for peak in peaks:
        sizes = (peak.kv, peak.logits, peak.bound, peak.prompt, peak.steps)
        how = f"{peak.how}, {peak.engine}, {peak.dtype}"
        shown = [scaled(size, "B") for size in sizes]
        rows.append((peak.run, how, str(peak.max_lookahead), *shown, three(peak.share)))
    return markdown(head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m apdcli.bench.memory")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--context", type=int, default=1024, help="of the profile's pair")
    parser.add_argument("--shapes", default="dream-7b", help="counted on meta; none: leave out")
    parser.add_argument("--shapes-context", type=int, default=4096)
    parser.add_argument("--dtype", default="bfloat16", help="of the shapes")
    given = parser.parse_args(arguments)
    pair = load_pair(given.profile, device=given.device, engine=given.engine)
    peaks = [
        generated(pair, given.context, answer, m)
        for m in (32, 100)
        for answer in (SHORT_ANSWER, given.context - SHORT_PROMPT)
    ]
    if given.shapes != "none":
        shapes, dtype = find_shapes(given.shapes), getattr(torch, given.dtype)
        room = given.shapes_context
        peaks += [on_meta(shapes, e, room, 256, m, dtype) for m in (32, 100) for e in ON_META]
    if given.json:
        made = [{**asdict(p), "bound": p.bound, "peak_over_bound": p.share} for p in peaks]
        sys.stdout.write(
            json.dumps({"torch": torch.__version__, "counts": COUNTS, "peaks": made}) + "\n"
        )
    else:
        sys.stdout.write(table(peaks))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
