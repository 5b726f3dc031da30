"""A loaded pair: denoiser, verifier and their tokenizer, and the public way to load each."""

from __future__ import annotations

import operator
import os
import reprlib
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from apdcli.decode.precision import own_precision
from apdcli.decode.types import Pair
from apdcli.engine.choice import make_models, resolve_engine
from apdcli.engine.device import check_dtype, is_full, no_room, resolve_device
from apdcli.engine.eager import EagerDenoiser, banned_ids
from apdcli.errors import DeviceError, ModelError, ParameterError, PromptError, UsageError
from apdcli.load import tokenizer as tokenizers
from apdcli.load.chat_template import Message, as_messages
from apdcli.load.hub import resolve_model
from apdcli.load.layout import check_role, read_config
from apdcli.load.profile import (
    DEFAULT_PROFILE,
    ModelSection,
    Profile,
    check_value,
    find_profile,
)
from apdcli.load.quantize import check_quantize
from apdcli.load.settings import Settings, resolve_settings
from apdcli.load.tokenizer import Tokenizer
from apdcli.load.weights import load_transformer
from apdcli.models.config import ModelConfig
from apdcli.models.transformer import Transformer

_NOT_COPIED = (
    "the models of a {} stay where they were loaded: it is neither pickled nor copied; "
    "load it in each process with apdcli.{}(...), threads may share one"
)
_A_MODEL = "a model's folder or an id of the hub, org/name"


@dataclass(frozen=True, repr=False)
class LoadedPair:
    """Models on their devices, ready to decode; made by :func:`load_pair`.

    Attributes:
        profile: where the settings came from.
        tokenizer: the denoiser's; the verifier's agrees with it on every id that may be produced.
        denoiser: the diffusion model.
        verifier: the autoregressive model; None in a profile without one.
        allowed_ids: ids that may be produced: defined, known to both models, not the mask.
        stop_ids: ids that end an answer.
        engine: what runs them: "eager", "fast" or "graphs".
    """

    profile: Profile
    tokenizer: Tokenizer
    denoiser: Transformer
    verifier: Transformer | None
    allowed_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    engine: str = field(default="eager", kw_only=True)

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NOT_COPIED.format("LoadedPair", "load_pair"))

    def __repr__(self) -> str:
        nets = {"denoiser": self.denoiser, "verifier": self.verifier}
        models = (f"{role} {_described(net)}" for role, net in nets.items() if net is not None)
        return (
            f"LoadedPair({self.profile.name!r}: {', '.join(models)}; context {self.context}, "
            f"engine {self.engine!r}, {self.device})"
        )

    @property
    def device(self) -> torch.device:
        """Where the canvas lives: the denoiser's device."""
        return self.denoiser.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the denoiser computes in."""
        return self.denoiser.model.embed_tokens.weight.dtype

    @property
    def context(self) -> int:
        """Positions that prompt and answer may take together."""
        nets = (self.denoiser, self.verifier)
        return min(net.config.max_positions for net in nets if net is not None)

    def models(self, capacity: int) -> Pair:
        """The models with empty caches for `capacity` positions, as strategies see them.

        Raises:
            DeviceError: no memory for the caches.
        """
        vocab = 1 + max(self.allowed_ids)
        banned = banned_ids(self.allowed_ids, vocab, self.device)
        try:
            return make_models(self.engine, self.denoiser, self.verifier, banned, capacity)
        except RuntimeError as error:
            if not is_full(error):
                raise
            what = f"the caches of {capacity} positions"
            raise no_room(error, self.device, what, self.dtype) from error

    def prompt_ids(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        raw: bool = False,
    ) -> tuple[int, ...]:
        """Token ids of a prompt: through the chat template, or as they are with `raw`.

        Args:
            prompt: a user message, or messages of {"role", "content"}. The texts of special
                tokens in them are ordinary text.
            system: put first as a system message, unless the messages bring their own.
            raw: `prompt` is text to continue; no template, no system message. The texts of special
                tokens in it are those tokens.

        Raises:
            PromptError: nothing to decode, a message that is none (its place and what it lacks),
                or the template refuses the messages.
            UsageError: `raw` with messages.
            ModelError: a token that a model does not know.
        """
        if raw:
            if not isinstance(prompt, str):
                raise UsageError("raw is of one text; messages go through the chat template")
            ids = self.tokenizer.encode(prompt)
        else:
            messages = as_messages(prompt)
            if system and all(m["role"] != "system" for m in messages):
                messages = [{"role": "system", "content": system}, *messages]
            ids = self.tokenizer.chat(messages)
        if not ids:
            raise PromptError("the prompt is empty")
        self.check_ids(ids)
        return tuple(ids)

    def check_ids(self, ids: Iterable[int]) -> None:
        """Raise ModelError where a token is beyond a model's vocabulary."""
        last = max(ids, default=0)
        for role, net in (("denoiser", self.denoiser), ("verifier", self.verifier)):
            if net is not None and last >= net.config.vocab_size:
                raise ModelError(
                    f"the {role} knows {net.config.vocab_size} tokens, and the text holds token "
                    f"{last} ({self.tokenizer.token_text(last)!r}): its weights and the tokenizer "
                    "are not of one model"
                )


def load_pair(
    profile: str | os.PathLike[str] | Profile = DEFAULT_PROFILE,
    *,
    device: str | None = None,
    dtype: str | None = None,
    quantize: str | None = None,
    engine: str | None = None,
) -> LoadedPair:
    """Load the models of a profile.

    Args:
        profile: a profile's name, or a path to a .toml file.
        device: overrides the profile's devices: auto, cpu, cuda, cuda:N or mps.
        dtype: overrides the profile's dtypes: auto, float32, float16 or bfloat16.
        quantize: overrides the profile's: none, or int8 or int4 weights (the extra "quantize").
        engine: overrides the profile's: auto, eager (the readable reference), fast, or graphs
            (on CUDA).

    Raises:
        ProfileError: no such profile, or a damaged one.
        ModelError: a model folder is missing, damaged or of an unknown family, or the two
            tokenizers differ.
        DeviceError: the device is not there or has no room.
        ParameterError: what is given is no such value at all.
    """
    if not isinstance(profile, Profile):
        text = _text_of("profile", profile, "a profile's name or the path of a .toml file")
        profile = find_profile(text if isinstance(profile, str) else Path(text))
    flags = {"device": device, "dtype": dtype, "quantize": quantize, "engine": engine}
    return load_models(profile, resolve_settings(profile, flags, {}))


def load_models(profile: Profile, settings: Settings) -> LoadedPair:
    """Load a profile's models where `settings` say (denoiser_device, denoiser_dtype, ...).

    Raises:
        ModelError, DeviceError: as :func:`load_pair`.
    """
    denoiser_folder = _resolve(profile.denoiser, profile)
    denoiser_config = read_config(denoiser_folder)
    check_role("denoiser", denoiser_config, denoiser_folder)
    tokenizer = tokenizers.load_tokenizer(denoiser_folder)
    stops = stop_ids(tokenizer, denoiser_config)
    shared: Iterable[int] = tokenizer.defined_ids
    verifier_folder = None
    if profile.verifier is not None:
        verifier_folder = _resolve(profile.verifier, profile)
        verifier_config = read_config(verifier_folder)
        check_role("verifier", verifier_config, verifier_folder)
        other = tokenizers.load_tokenizer(verifier_folder)
        check_agreement(tokenizer, other)
        shared = tokenizer.shared_ids(other)
        # Before the larger model is read for nothing.
        quantize = settings["verifier_quantize"].value
        check_quantize(quantize, verifier_config, str(verifier_folder))
    denoiser = _load("denoiser", denoiser_folder, settings)
    verifier = None if verifier_folder is None else _load("verifier", verifier_folder, settings)
    nets = [net for net in (denoiser, verifier) if net is not None]
    try:
        engine = resolve_engine(settings["engine"].value, nets)
    except DeviceError as error:  # its handler may need the room, and it holds the frames
        traceback.clear_frames(error.__traceback__)
        del denoiser, verifier, nets
        raise
    width = min(net.config.vocab_size for net in nets)
    return LoadedPair(
        profile=profile,
        tokenizer=tokenizer,
        denoiser=denoiser,
        verifier=verifier,
        allowed_ids=tuple(i for i in shared if i < width and i != denoiser.config.mask_id),
        stop_ids=stops,
        engine=engine,
    )


def check_agreement(denoiser: Tokenizer, verifier: Tokenizer) -> None:
    """Raise ModelError naming the first difference unless one tokenizer serves both models."""
    difference = denoiser.first_difference(verifier)
    if difference is not None:
        raise ModelError(
            f"denoiser and verifier need one tokenizer, but theirs differ: {difference}; "
            "choose a verifier made for the denoiser's tokenizer"
        )


def stop_ids(tokenizer: Tokenizer, config: ModelConfig) -> frozenset[int]:
    """Ids that end an answer of a denoiser.

    Raises:
        ModelError: the mask is among them, or a file that names them is damaged.
    """
    ids = tokenizer.stop_ids | set(config.stop_ids)
    if config.mask_id in ids:
        raise ModelError(
            f"{tokenizer.folder}: token {config.mask_id} is the mask by its config.json and ends "
            "a text by its other files; a mask cannot end a text"
        )
    return ids


def _resolve(spec: ModelSection, profile: Profile) -> Path:
    return resolve_model(spec.model, base=profile.base, revision=spec.revision)


def _load(role: str, folder: Path, settings: Settings) -> Transformer:
    device = resolve_device(settings[f"{role}_device"].value)
    dtype = settings[f"{role}_dtype"].value
    check_dtype(dtype, device)
    quantize = settings[f"{role}_quantize"].value
    return load_transformer(folder, device=device, dtype=dtype, quantize=quantize)


class LoadedDenoiser:
    """One denoiser without a cache, for looking at its logits; made by :func:`load_denoiser`."""

    def __init__(self, net: Transformer, tokenizer: Tokenizer) -> None:
        self.net = net
        self.tokenizer = tokenizer
        width = net.config.vocab_size
        device = net.model.embed_tokens.weight.device
        defined = (i for i in tokenizer.defined_ids if i < width)
        self._banned = banned_ids(defined, width, device)

    def __reduce__(self) -> NoReturn:
        raise TypeError(_NOT_COPIED.format("LoadedDenoiser", "load_denoiser"))

    def __repr__(self) -> str:
        context = self.net.config.max_positions
        folder = str(self.tokenizer.folder)
        return f"LoadedDenoiser({folder!r}: {_described(self.net)}, context {context})"

    def logits(self, tokens: Sequence[int] | Tensor) -> Tensor:
        """Logits that predict each position of `tokens`, whatever the family's shift.

        Args:
            tokens: ids, masks included: a sequence of integers, or a tensor or array [n] of them.

        Returns:
            [len(tokens), vocab] float32 on the CPU; ids that the tokenizer lacks are -inf. With
            Dream's shift nothing predicts position 0: its own output stands in, as in the
            published code.

        Raises:
            PromptError: no tokens, too many, what is no id, or an id outside the vocabulary.
        """
        tokens = _ids_of(tokens)
        config = self.net.config
        if not 0 < len(tokens) <= config.max_positions:
            raise PromptError(
                f"{len(tokens)} tokens given; 1 to {config.max_positions} are possible"
            )
        outside = [i for i in tokens if not 0 <= i < config.vocab_size]
        if outside:
            raise PromptError(f"id {outside[0]} is outside the vocabulary of {config.vocab_size}")
        device = self.net.model.embed_tokens.weight.device
        with torch.inference_mode(), own_precision():
            engine = EagerDenoiser(self.net, self._banned, len(tokens))
            return engine.logits(torch.tensor(tokens, device=device), 0, 0).cpu()


def _ids_of(tokens: Any) -> list[int]:
    """Token ids as a list; raises PromptError naming what is none."""
    given = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(given, Sequence) or isinstance(given, str | bytes | bytearray):
        raise PromptError(f"tokens = {reprlib.repr(tokens)}: it must be a sequence of token ids")
    ids = []
    for place, value in enumerate(given):
        try:
            ids.append(operator.index(value))
        except TypeError:
            value = None
        if value is None or isinstance(value, bool):
            raise PromptError(
                f"tokens[{place}] = {reprlib.repr(given[place])}: it must be a token id, an integer"
            )
    return ids


def _described(net: Transformer) -> str:
    """The family and the size of a model."""
    config = net.config
    return (
        f"{config.family} of {config.num_parameters:,} parameters, vocabulary {config.vocab_size:,}"
    )


def _text_of(name: str, value: Any, allowed: str) -> str:
    """A name or a path as a text; raises ParameterError where it is neither."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text.strip():
        raise ParameterError(name, value, allowed)
    return text


def load_denoiser(
    model: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
) -> LoadedDenoiser:
    """Load one denoiser from a folder or a hub id; errors as in :func:`load_pair`.

    Raises:
        ModelError: also for a causal model, which has no mask token.
    """
    check_value("quantize", quantize)
    folder = resolve_model(_text_of("model", model, _A_MODEL), base=None, revision=None)
    check_role("denoiser", read_config(folder), folder)
    net = load_transformer(folder, device=resolve_device(device), dtype=dtype, quantize=quantize)
    return LoadedDenoiser(net, tokenizers.load_tokenizer(folder))


def load_tokenizer(model: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer from a folder or a hub id.

    Its `encode` takes the texts of special tokens ("<|im_end|>") for those tokens, unless it is
    told `special=False`. Prompts given to :func:`apdcli.generate` are data: there such a text is
    ordinary text, but for `raw`.

    Raises:
        ModelError: the folder is missing or its tokenizer is damaged.
        ParameterError: `model` is neither a text nor a path.
    """
    text = _text_of("model", model, _A_MODEL)
    return tokenizers.load_tokenizer(resolve_model(text, base=None, revision=None))
