"""From a profile, a task and a strategy to what a search needs: a bench, a study, a yardstick."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apdcli.decode.params import SHARED_FIELDS, strategy_info
from apdcli.engine.pair import LoadedPair
from apdcli.load.device_name import device_name
from apdcli.load.profile import Profile
from apdcli.load.settings import Setting, Settings, resolve_settings
from apdcli.tasks.identity import pair_digest
from apdcli.tasks.run import answer, check_prompts
from apdcli.tasks.types import Item, Outcome, Task
from apdcli.tune.measure import ONE_A_STEP, Bench, in_order
from apdcli.tune.space import Knob, knobs, known_good
from apdcli.tune.study import Setup

_ONE_A_STEP = "left_to_right"
_PLACES = ("system", "stop", "device", "dtype", "quantize", "engine")


@dataclass(frozen=True)
class Ground:
    """Everything a search stands on.

    Attributes:
        profile, pair, task: whose settings are searched, on what.
        settings: of the strategy, as they stand without the search.
        one_a_step: settings of one token a step: left to right with K = 1 and the profile's W, M.
    """

    profile: Profile
    pair: LoadedPair
    task: Task
    settings: Settings
    one_a_step: Settings

    @classmethod
    def of(
        cls,
        pair: LoadedPair,
        task: Task,
        settings: Settings,
        flags: Mapping[str, Any],
        environ: Mapping[str, str],
    ) -> Ground:
        """Args:
            flags: as given on the command line, for one token a step.

        Raises:
            PromptError: an item of the task does not fit into the context.
        """
        own = strategy_info(_ONE_A_STEP).own_fields
        shared = {n: v for n, v in flags.items() if n in (*SHARED_FIELDS, *own, *_PLACES)}
        given = {**shared, "strategy": _ONE_A_STEP, "k": 1}
        one = resolve_settings(pair.profile, given, environ)
        check_prompts(pair, task, task.items, settings)
        return cls(pair.profile, pair, task, settings, one)

    @property
    def device(self) -> str:
        """The device's name."""
        return device_name(str(self.pair.device))

    @property
    def own(self) -> dict[str, Any]:
        """The strategy's parameters as they stand."""
        names = strategy_info(self.settings.strategy).own_fields
        return {name: self.settings[name].value for name in names}

    @property
    def space(self) -> tuple[Knob, ...]:
        """The knobs."""
        return knobs(self.settings.strategy, self.settings["max_tokens"].value, self.own)

    def identity(self) -> dict[str, str]:
        """What a study is about; settings of one that differs in anything are not comparable."""
        models = [s.model for s in (self.profile.denoiser, self.profile.verifier) if s is not None]
        knob_names = {k.name for k in self.space}
        fixed = {n: v for n, v in self.own.items() if n not in knob_names}
        shared = {n: self.settings[n].value for n in (*SHARED_FIELDS, "system", "stop")}
        if not shared["temperature"]:
            del shared["seed"]
        return {
            "pair": f"{' + '.join(models)}, {pair_digest(self.pair)[:12]}",
            "task": f"{Path(self.task.name).name} of {len(self.task.items)} prompts, "
            f"{self.task.digest[:12]}",
            "strategy": self.settings.strategy,
            "device": self.device,
            "engine": self.pair.engine,
            "decoding": json.dumps({**shared, **fixed}, sort_keys=True, default=str),
        }

    def study_name(self) -> str:
        """A name that no search of anything else has."""
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        words = (self.profile.name, self.settings.strategy, Path(self.task.name).stem)
        return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', '-'.join(words))}-{digest[:8]}"

    def study_setup(self) -> Setup:
        """What a new study begins with; the reference is the profile's own setting."""
        first = known_good(self.settings.strategy, self.space, self.own)
        return Setup(self.identity(), self.space, first[0], first)

    def settings_of(self, values: Mapping[str, Any]) -> Settings:
        """The settings with these values of the strategy's parameters."""
        made = {name: Setting(value, "tuned") for name, value in values.items()}
        return replace(self.settings, table={**self.settings.table, **made})

    def bench(
        self, reference: Mapping[str, Any], interrupted: Callable[[], bool] = lambda: False
    ) -> Bench:
        """Measures settings of the strategy, and for ONE_A_STEP one token a step."""

        def run(item: Item, values: Mapping[str, Any]) -> Outcome:
            one = values == ONE_A_STEP
            settings = self.one_a_step if one else self.settings_of(values)
            return answer(self.pair, self.task, item, settings, interrupted=interrupted)

        return Bench(in_order(self.task), run, reference)
