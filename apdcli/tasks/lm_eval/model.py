"""The model `apd` of lm-evaluation-harness: its generation tasks run on a profile.

Importing this module registers the name; `python -m apdcli.tasks.lm_eval` is the harness' own
command with the name known. Needs the extra `eval`. Loglikelihoods are refused: a decoder that
writes in any order has no probability of a text from left to right to give.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm  # type: ignore[import-untyped]

from apdcli.engine.pair import LoadedPair, load_models
from apdcli.engine.session import Generation, Request, prepare
from apdcli.errors import PromptError, UsageError
from apdcli.load.profile import DEFAULT_PROFILE, find_profile
from apdcli.load.settings import Settings, resolve_settings

LOG = logging.getLogger("lm_eval.apd")  # under the harness' own, so that its level holds
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN = (*_LENGTHS, "until", "do_sample", "temperature", "top_p", "top_k", "seed")
_HARNESS_DEVICE = "cuda:0"  # what the harness says where --device is not given
_REFUSED = (
    "model 'apd' gives no loglikelihoods: it writes several positions at a time, in any order; "
    "choose tasks that generate (output_type: generate_until)"
)


@register_model("apd")
class ApdLM(LM):  # type: ignore[misc]
    """A profile's pair, asked by the harness."""

    def __init__(
        self,
        profile: str = DEFAULT_PROFILE,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **settings: Any,
    ) -> None:
        """Args:
        profile: a profile's name, or a path to a .toml file.
        batch_size, max_batch_size: the harness gives them; prompts are decoded one by one.
        settings: as `apdcli.generate` takes them: strategy, mixture_weight, max_tokens, ...;
            device, dtype and quantize.

        Raises:
            ApdError: no such profile, an unknown or misplaced setting, no such model.
        """
        super().__init__()
        self._profile = find_profile(str(profile))
        self._flags = {name: value for name, value in settings.items() if value is not None}
        if self._flags.get("device") == _HARNESS_DEVICE and not torch.cuda.is_available():
            del self._flags["device"]  # nobody asked for it
        self.pair: LoadedPair = load_models(self._profile, self.settings({}))

    def settings(self, asked: Mapping[str, Any]) -> Settings:
        """Every setting of a request.

        Args:
            asked: the task's generation_kwargs; they win over the model's arguments.
        """
        unknown = sorted(asked.keys() - set(_KNOWN))
        if unknown:
            LOG.warning("ignored in generation_kwargs: %s", ", ".join(unknown))
        flags = dict(self._flags)
        lengths = [asked[name] for name in _LENGTHS if asked.get(name) is not None]
        if lengths:
            flags["max_tokens"] = int(lengths[0])
        flags |= {n: asked[n] for n in ("top_p", "top_k", "seed") if asked.get(n) is not None}
        if asked.get("do_sample") is False:
            flags["temperature"] = 0.0
        elif asked.get("temperature") is not None:
            flags["temperature"] = float(asked["temperature"])
        elif asked.get("do_sample"):
            flags.setdefault("temperature", 1.0)
        until = asked.get("until") or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        if stop:
            flags["stop"] = stop
        return resolve_settings(self._profile, flags, {})

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers to the requests, in their order."""
        texts = []
        done: list[Generation] = []
        for request in tqdm(requests, disable=disable_tqdm, desc="apd"):
            context, asked = request.args
            generation = self._generate(context, self.settings(asked))
            done.append(generation)
            texts.append(generation.text)
            self.cache_hook.add_partial("generate_until", request.args, generation.text)
        tokens, steps = (sum(len(g.token_ids) for g in done), sum(g.usage.steps for g in done))
        seconds = sum(g.usage.seconds for g in done)
        if steps and seconds:
            speeds = f"{tokens / steps:.2f} tokens a step, {tokens / seconds:.1f} tokens a second"
            LOG.info("%d answers, %d tokens: %s", len(done), tokens, speeds)
        return texts

    def _generate(self, context: str, settings: Settings) -> Generation:
        request = self._request(context, settings)
        return request.result(list(request.events()))

    def _request(self, context: str, settings: Settings) -> Request:
        """The request; a context that is too long loses its beginning, as the harness has it."""
        tokenizer, room = self.pair.tokenizer, self.pair.context - settings["max_tokens"].value
        ids = tokenizer.encode(context)
        if len(ids) > room:
            if room < 1:
                raise PromptError(
                    f"max_gen_toks {settings['max_tokens'].value} leaves no room for a prompt: "
                    f"the context holds {self.pair.context} tokens"
                )
            LOG.warning("a context of %d tokens is cut to its last %d", len(ids), room)
            context = tokenizer.decode(ids[-room:], skip_special=False)
        return prepare(self.pair, context, settings, raw=True)

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Refused, in one line."""
        raise UsageError(_REFUSED)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> NoReturn:
        """Refused, in one line."""
        raise UsageError(_REFUSED)

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as the pair's template writes it, with the profile's system message.

        Without a generation prompt the last turn is an answer's beginning, to be continued.
        """
        messages = list(chat_history)
        system = self.settings({}).system
        if system and all(m["role"] != "system" for m in messages):
            messages.insert(0, {"role": "system", "content": system})
        begun = ""
        if not add_generation_prompt and messages and messages[-1]["role"] == "assistant":
            begun = messages.pop()["content"]
        return self.pair.tokenizer.chat_text(messages) + begun

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What stands in the harness' records for the template: there is but one."""
        return f"the template of {self.tokenizer_name}"

    @property
    def tokenizer_name(self) -> str:
        """The denoiser's model, by which the harness keys its caches."""
        return f"apd/{self._profile.denoiser.model}"
