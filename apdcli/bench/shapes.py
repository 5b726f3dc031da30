"""Random weights of real sizes, straight on the device, to time steps without a download.

This times steps, not quality: random models agree on nothing, so how many tokens a step accepts
would be arbitrary. The number is therefore set (`accept`): the verifier runs as ever, and then its
logits are nudged so that the unchanged algorithm accepts just so many tokens of each draft.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from apdcli.bench.floor import DTYPE_BYTES
from apdcli.bench.sizes import Shapes, shapes_profile
from apdcli.decode.types import Denoiser, Pair, Verifier
from apdcli.engine.choice import resolve_engine
from apdcli.engine.device import free_bytes
from apdcli.engine.pair import LoadedPair, load_tokenizer
from apdcli.errors import DeviceError, ModelError
from apdcli.load.quantize import empty_layers
from apdcli.load.room import either, lighter, room_for
from apdcli.models.config import ModelConfig
from apdcli.models.formats import planned_bytes, unfit
from apdcli.models.quantized import QuantizedLinear
from apdcli.models.quantized_packed import pack
from apdcli.models.transformer import Transformer

_BLOCK = 1_000_003  # prime, so that no two rows of a matrix are the same
_SURE = 1e6  # beside any difference of logits of random weights


Kept: TypeAlias = tuple[str, str]  # what the denoiser's and the verifier's weights are kept in
_AS_THEY_ARE: Kept = ("none", "none")


def needed_bytes(
    shapes: Shapes,
    dtype: torch.dtype,
    positions: int,
    rows: int,
    quantize: Sequence[Kept] = (_AS_THEY_ARE,),
) -> int:
    """Memory that a run takes: weights, caches, and two [rows, vocab] float32 arrays a model.

    Args:
        quantize: of each pair that is held at once.
    """
    size = DTYPE_BYTES[str(dtype).removeprefix("torch.")]
    total = 0
    for index, config in enumerate((shapes.denoiser, shapes.verifier)):
        if config is not None:
            total += sum(planned_bytes(config, kept[index], size) for kept in quantize)
            channels = config.num_layers * config.num_kv_heads * config.head_dim
            total += 2 * channels * positions * size + 2 * rows * config.vocab_size * 4
    return total


def check_memory(
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    positions: int,
    rows: int,
    quantize: Sequence[Kept] = (_AS_THEY_ARE,),
) -> None:
    """Refuse, before anything is allocated, what the device has no room for.

    Raises:
        DeviceError: with what is needed and what is free.
    """
    needed = needed_bytes(shapes, dtype, positions, rows, quantize)
    free = free_bytes(device)
    if free is not None and needed > free:
        shown = str(dtype).removeprefix("torch.")
        uses = _smaller(shapes, dtype, *quantize)
        raise DeviceError(
            f"{shapes.name} in {shown} needs {needed / 1e9:.1f} GB on {device} and "
            f"{free / 1e9:.1f} GB is free; try {either(uses)}"
        )


def _smaller(shapes: Shapes, dtype: torch.dtype, *quantize: Kept) -> list[str]:
    """What makes the weights of these sizes smaller, of pairs that are kept so."""
    configs = [config for config in (shapes.denoiser, shapes.verifier) if config is not None]
    kept = {name for pair in quantize for name in pair[: len(configs)]}
    # Where formats are mixed, settings have been chosen one by one.
    uses = lighter(configs, dtype, kept.pop() if len(kept) == 1 else "int4")
    return [*uses, "smaller --shapes", "another --device"]


def random_pair(
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    engine: str = "auto",
    quantize: Kept = _AS_THEY_ARE,
) -> LoadedPair:
    """A pair of these sizes with random weights; no text can be read from it.

    No stop id ends its answers, and its tokenizer is the embedded pair's: it only stands there.

    Raises:
        DeviceError: the device has no room for them.
        ModelError: a matrix does not fit the format.
    """
    what = f"the random weights of {shapes.name}"
    configs = [config for config in (shapes.denoiser, shapes.verifier) if config is not None]
    sizes = map(planned_bytes, configs, quantize, [dtype.itemsize] * 2)
    with room_for(device, what, sum(sizes), _smaller(shapes, dtype, quantize)):
        denoiser, verifier = _random_nets(shapes, device, dtype, quantize)
    nets = [net for net in (denoiser, verifier) if net is not None]
    width = min(net.config.vocab_size for net in nets)
    return LoadedPair(
        profile=shapes_profile(shapes),
        tokenizer=load_tokenizer("embedded:denoiser"),
        denoiser=denoiser,
        verifier=verifier,
        allowed_ids=tuple(i for i in range(width) if i != shapes.denoiser.mask_id),
        stop_ids=frozenset(),
        engine=resolve_engine(engine, nets),
    )


def _random_nets(
    shapes: Shapes, device: torch.device, dtype: torch.dtype, quantize: Kept
) -> tuple[Transformer, Transformer | None]:
    denoiser = random_transformer(shapes.denoiser, device, dtype, 1, quantize[0])
    if shapes.verifier is None:
        return denoiser, None
    return denoiser, random_transformer(shapes.verifier, device, dtype, 2, quantize[1])


def random_transformer(
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    seed: int,
    quantize: str = "none",
) -> Transformer:
    """Weights of spread 0.02 made in place: no second copy, no float32 of the whole model.

    Quantized ones are made as integers: torchao, which chooses them otherwise, is not needed.

    Raises:
        ModelError: a matrix does not fit the format.
    """
    reason = unfit(config, quantize)
    if reason is not None:
        raise ModelError(f"these sizes cannot be quantized to {quantize}: {reason}")
    with torch.device("meta"):
        net = Transformer(config)
        if quantize != "none":
            empty_layers(net, quantize)
        net = net.to(dtype)
    net = net.to_empty(device=device)
    generator = torch.Generator(device=device).manual_seed(seed)
    block = torch.empty(_BLOCK, device=device, dtype=dtype)
    block.normal_(0.0, 0.02, generator=generator)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif parameter.is_floating_point() and not name.endswith("scale"):
                _tile(parameter.view(-1), block)
        for module in net.modules():
            if isinstance(module, QuantizedLinear):
                module.randomize(0.02, generator)
    net.refresh_rope(device)
    net.eval().requires_grad_(False)
    if quantize != "none":
        pack(net)
    return net


def random_prompt(shapes: Shapes, length: int, seed: int) -> tuple[int, ...]:
    """Ids of a prompt that means nothing."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (length,), generator=generator).tolist()
    return tuple(i if i != shapes.denoiser.mask_id else 0 for i in ids)


def causal_view(net: Transformer) -> Transformer:
    """The same weights looking back only: an autoregressive model of the denoiser's size."""
    view = copy.copy(net)
    view.config = replace(net.config, family="qwen2", causal=True, shift=False, mask_id=None)
    if net.packed is not None:  # fused weights are shared, too; all they ask `net` is its config
        view.packed = copy.copy(net.packed)
        view.packed.net = view
        view.packed.spare_buffers = []  # graphs recorded over the others look both ways
    return view


@dataclass(frozen=True)
class WrappedPair(LoadedPair):
    """A pair whose models are wrapped each time they are handed out."""

    wrap: Callable[[Pair], Pair] = field(kw_only=True)

    @classmethod
    def of(cls, pair: LoadedPair, wrap: Callable[[Pair], Pair]) -> WrappedPair:
        """`pair`, wrapped."""
        return cls(**{f.name: getattr(pair, f.name) for f in fields(LoadedPair)}, wrap=wrap)

    def models(self, capacity: int) -> Pair:
        """See `LoadedPair.models`."""
        return self.wrap(super().models(capacity))


def accepting(count: int) -> Callable[[Pair], Pair]:
    """Wraps models so that greedy adaptive parallel decoding accepts `count` tokens a step."""

    def wrap(pair: Pair) -> Pair:
        if pair.verifier is None:
            return pair
        denoiser = _SeenDenoiser(pair.denoiser)
        return Pair(denoiser, _AgreeingVerifier(pair.verifier, denoiser, count))

    return wrap


class _SeenDenoiser:
    """Remembers where the draft begins, and its logits."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.mask_id = inner.mask_id
        self.lookback = inner.lookback
        self.crop = inner.crop
        self.first = 0
        self.rows: Tensor | None = None  # [m, vocab]

    @property
    def length(self) -> int:
        return self.inner.length

    def logits(self, tokens: Tensor, start: int, first: int, *, keep_after: bool = False) -> Tensor:
        self.rows = self.inner.logits(tokens, start, first, keep_after=keep_after)
        self.first = first
        return self.rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class _AgreeingVerifier:
    """Runs the real verifier, then makes it agree with so much of the draft and no more."""

    def __init__(self, inner: Verifier, denoiser: _SeenDenoiser, count: int) -> None:
        self.inner = inner
        self.denoiser = denoiser
        self.count = count
        self.crop = inner.crop
        self._made: Tensor | None = None  # [count]

    @property
    def length(self) -> int:
        return self.inner.length

    def logits(self, tokens: Tensor, first: int) -> Tensor:
        made = self.inner.logits(tokens, first)
        if self.denoiser.rows is None:  # no draft: the verifier decodes alone
            return made
        # Row r judges the draft of position first + r: agree with `count` - 1 of them (the draft's
        # first token needs no judge), refuse the next; what lies behind it does not matter.
        before = first - (self.denoiser.first + 1)
        nudge = self._nudge(made.device)[before : before + len(made)]
        draft = tokens[first : first + len(nudge)]
        if len(draft) < len(nudge):  # what the last row judges is not among the tokens
            last = self.denoiser.rows[len(tokens) - self.denoiser.first]
            draft = torch.cat((draft, last.argmax(dim=-1, keepdim=True)))
        made[: len(nudge)].scatter_(1, draft[:, None], nudge[:, None])
        return made

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name != "accept":
            return found

        def accept(tokens: Tensor, draft: Tensor, *rest: Any) -> Tensor:
            made: Tensor = found(tokens, draft, *rest)
            made[-1] = min(self.count, len(draft))
            return made

        return accept

    def _nudge(self, device: torch.device) -> Tensor:
        if self._made is None:
            self._made = torch.full((self.count,), _SURE, device=device)
            self._made[-1] = -_SURE
        return self._made


def _tile(flat: Tensor, block: Tensor) -> None:
    whole = len(flat) // len(block) * len(block)
    flat[:whole].view(-1, len(block)).copy_(block.expand(whole // len(block), -1))
    flat[whole:].copy_(block[: len(flat) - whole])
