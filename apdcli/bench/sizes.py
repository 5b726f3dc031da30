"""Published sizes of models by name, and what random weights of these sizes can time. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apdcli.bench.settings import CAUSAL, Contender, Spec, parse_spec
from apdcli.decode.params import ApdParams, make_params
from apdcli.errors import PromptError, UsageError
from apdcli.load.hub import resolve_model
from apdcli.load.layout import Layout, Role, check_layout, check_role
from apdcli.load.profile import ChatSection, ModelSection, Profile, find_profile
from apdcli.models.config import ModelConfig

# Strategies whose tokens a step do not depend on what the models say; apd's are made so.
_FIXED = ("apd", "left_to_right", "autoregressive", "confidence", "random", "margin", "entropy")


@dataclass(frozen=True)
class Shapes:
    """A pair's sizes.

    Attributes:
        name: of the pair.
        denoiser, verifier: None where the denoiser goes without one.
        stored: the dtypes of the weights in the denoiser's files, where they are known.
    """

    name: str
    denoiser: ModelConfig
    verifier: ModelConfig | None
    stored: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Of both models."""
        nets = (self.denoiser, self.verifier)
        return sum(config.num_parameters for config in nets if config is not None)


_QWEN: dict[str, Any] = {
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "qkv_bias": True,
}
# Sizes: the config.json files of Dream-org/Dream-v0-Instruct-7B, Qwen/Qwen2.5-0.5B and
# GSAI-ML/LLaDA-8B-Instruct.
DREAM_7B = ModelConfig(
    family="Dream", vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_layers=28,
    num_heads=28, num_kv_heads=4, head_dim=128, max_positions=131072, causal=False, shift=True,
    tied=False, mask_id=151666, **_QWEN,
)  # fmt: skip
QWEN_05B = ModelConfig(
    family="qwen2", vocab_size=151936, hidden_size=896, intermediate_size=4864, num_layers=24,
    num_heads=14, num_kv_heads=2, head_dim=64, max_positions=32768, causal=True, shift=False,
    tied=True, **_QWEN,
)  # fmt: skip
LLADA_8B = ModelConfig(
    family="llada", vocab_size=126464, hidden_size=4096, intermediate_size=12288, num_layers=32,
    num_heads=32, num_kv_heads=32, head_dim=128, rope_theta=500000.0, rms_norm_eps=1e-5,
    max_positions=4096, causal=False, shift=False, tied=False, qkv_bias=False, mask_id=126336,
)  # fmt: skip
_TINY_DENOISER = replace(
    DREAM_7B, vocab_size=512, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, max_positions=1024, mask_id=3,
)  # fmt: skip
_TINY_VERIFIER = replace(
    QWEN_05B, vocab_size=512, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=16, max_positions=1024,
)  # fmt: skip
EMBEDDED = "embedded"
SHAPES = {
    shapes.name: shapes
    for shapes in (
        Shapes("dream-7b", DREAM_7B, QWEN_05B, ("bfloat16",)),
        Shapes("llada-8b", LLADA_8B, None, ("bfloat16",)),
        Shapes("tiny", _TINY_DENOISER, _TINY_VERIFIER),
    )
}


def find_shapes(name: str) -> Shapes:
    """Shapes by name.

    "embedded" are those of the pair inside the package, read from its folder.

    Raises:
        UsageError: none of that name.
    """
    if name == EMBEDDED:
        return replace(profile_shapes(find_profile("demo")), name=EMBEDDED)
    if name not in SHAPES:
        known = ", ".join((*SHAPES, EMBEDDED))
        raise UsageError(f"unknown shapes {name!r}; there are: {known}")
    return SHAPES[name]


def check_timeable(shapes: Shapes, strategy: str, *, temperature: float) -> None:
    """Refuse what random weights cannot time: a number of tokens a step that is arbitrary.

    Raises:
        UsageError: naming what can be timed.
    """
    if strategy not in _FIXED:
        raise UsageError(
            f"{strategy} cannot be timed with random weights: how many tokens it takes a step "
            f"would be arbitrary; --shapes times {', '.join(_FIXED)}"
        )
    if strategy in ("apd", "autoregressive") and shapes.verifier is None:
        raise UsageError(f"strategy {strategy!r} needs a verifier and {shapes.name} has none")
    if temperature != 0:
        raise UsageError("--shapes times greedy decoding only; leave --temperature at 0")


def shapes_profile(shapes: Shapes) -> Profile:
    """A profile that stands for the shapes, so that settings are resolved as for any other."""
    verifier = None if shapes.verifier is None else ModelSection(model=f"random:{shapes.name}")
    return Profile(
        name=f"random weights, {shapes.name}",
        path=Path(),
        source="shipped",
        description="",
        denoiser=ModelSection(model=f"random:{shapes.name}"),
        verifier=verifier,
        decode={},
        chat=ChatSection(),
    )


def profile_shapes(profile: Profile) -> Shapes:
    """The sizes of a profile's models, read from their folders; nothing is fetched.

    Raises:
        ModelError: a model is not on this machine, or damaged.
    """

    def layout(role: Role, section: ModelSection) -> Layout:
        folder = resolve_model(
            section.model, base=profile.base, revision=section.revision, download=False
        )
        found = check_layout(folder)
        check_role(role, found.config, folder)
        return found

    denoiser = layout("denoiser", profile.denoiser)
    verifier = None if profile.verifier is None else layout("verifier", profile.verifier).config
    return Shapes(profile.name, denoiser.config, verifier, denoiser.dtypes)


def default_shape_specs(shapes: Shapes) -> tuple[Spec, ...]:
    """What is timed when nothing is named: one token a step first."""
    names = ("left_to_right", "apd", "autoregressive") if shapes.verifier else ("left_to_right",)
    return tuple(map(parse_spec, (*names, CAUSAL)))


def check_shapes(
    shapes: Shapes, contenders: Sequence[Contender], *, accept: int, prompt_tokens: int
) -> int:
    """Refuse what random weights cannot time; returns how many positions a run takes at most.

    Raises:
        UsageError: a strategy, a value or an acceptance that cannot be timed.
        PromptError: no room for prompt and answer.
    """
    positions = 0
    for contender in contenders:
        spec, settings = contender.spec, contender.settings
        shared, own = make_params(settings.strategy, **settings.decode_values())
        if not spec.causal:
            check_timeable(shapes, settings.strategy, temperature=shared.temperature)
        if isinstance(own, ApdParams):
            if own.mixture_weight == 1.0:
                raise UsageError(
                    f"setting {spec.name!r}: with R = 1 whole drafts are accepted and nothing is "
                    "verified; time left_to_right with K = M instead"
                )
            if isinstance(own.max_lookahead, int) and accept > own.max_lookahead:
                raise UsageError(
                    f"setting {spec.name!r}: --accept {accept} is more than M = {own.max_lookahead}"
                )
        positions = max(positions, prompt_tokens + shared.max_tokens)
    nets = (shapes.denoiser, shapes.verifier)
    room = min(config.max_positions for config in nets if config is not None)
    if positions > room:
        raise PromptError(
            f"prompt and answer take {positions} positions and {shapes.name} has {room}; "
            "lower --prompt-tokens or --max-tokens"
        )
    return positions
