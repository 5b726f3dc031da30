"""A pair made of formulas: quality and cost of a setting are known, so what is found can be judged.

Run as a module it is one process of a search: `python -m tests.tune.synthetic STORAGE TRIALS`.
With a fourth argument it says that it is ready and waits for a line before it searches.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apdcli.tasks.types import Item, Outcome, Task
from apdcli.tune.measure import Bench, in_order
from apdcli.tune.search import Found, Search
from apdcli.tune.space import knobs, known_good
from apdcli.tune.study import Setup, Study, open_study
from apdcli.tune.target import Target

OWN = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": 32}
IDENTITY = {"pair": "formulas", "task": "numbers", "strategy": "apd", "device": "this"}


def task(items: int = 40) -> Task:
    made = tuple(Item(str(n), ({"role": "user", "content": str(n)},), "") for n in range(items))
    return Task("numbers", made, "exact", lambda item, text: 0.0, f"digest-{items}")


def quality(values: Mapping[str, Any]) -> float:
    """The share of items answered rightly: falls with R, and a little with a small W."""
    if not values:
        return 0.85
    window = values["recompute_window"]
    return 0.9 - 0.5 * values["mixture_weight"] ** 2 - (0.1 if window in (1, 2) else 0.0)


def tokens_per_step(values: Mapping[str, Any]) -> int:
    if not values:
        return 1
    ahead = values["max_lookahead"]
    most = 12 if ahead == "all" else min(12, ahead)
    return max(1, round(most * (0.3 + 0.7 * values["mixture_weight"])))


def seconds_per_step(values: Mapping[str, Any]) -> float:
    if not values:
        return 0.006
    ahead = values["max_lookahead"]
    return 0.01 + 0.00005 * (256 if ahead == "all" else ahead)


@dataclass
class Formulas:
    """Answers items; counts what it was asked.

    Attributes:
        slowness: factor on the clock by the number of answers so far, for a noisy machine.
        pause: real seconds each answer takes.
    """

    slowness: Callable[[int], float] = lambda count: 1.0
    pause: float = 0.0
    asked: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def __call__(self, item: Item, values: Mapping[str, Any]) -> Outcome:
        if self.pause:
            time.sleep(self.pause)
        self.asked.append((item.id, tuple(sorted((k, str(v)) for k, v in values.items()))))
        hardness = random.Random(f"hard {item.id}").random()
        steps = 6 + int(item.id) % 5
        seconds = steps * seconds_per_step(values) * self.slowness(len(self.asked))
        return Outcome(
            item=item.id,
            score=float(hardness < quality(values)),
            text="",
            tokens=steps * tokens_per_step(values),
            steps=steps,
            denoiser_forwards=steps,
            verifier_forwards=steps,
            seconds=seconds,
            finish_reason="stop",
        )

    def clock(self) -> float:
        """Of a machine on which an answer takes 10 ms and the rest no time."""
        return 0.01 * len(self.asked)


def setup(**changed: Any) -> Setup:
    space = knobs("apd", 256, OWN)
    first = known_good("apd", space, OWN)
    made = {"identity": IDENTITY, "space": space, "reference": first[0], "first": first, **changed}
    return Setup(**made)


def study_in(storage: object, name: str = "s", **changed: Any) -> Study:
    return open_study(str(storage), name, setup(**changed))


def bench(items: int = 40, answer: Formulas | None = None) -> Bench:
    return Bench(in_order(task(items)), answer or Formulas(), OWN)


def search(
    study: Study,
    *,
    items: int = 40,
    trials: int = 20,
    target: Target | None = None,
    answer: Formulas | None = None,
    seed: int = 0,
    timeout: float = 60,
    **more: Any,
) -> Found:
    return Search(study, bench(items, answer), target, trials, timeout, seed, **more).run()


def main(storage: str, trials: str, pause: str = "0.001", waits: str = "") -> None:
    study = study_in(storage)
    if waits:
        print("ready", flush=True)
        sys.stdin.readline()
    found = search(study, trials=int(trials), items=24, answer=Formulas(pause=float(pause)))
    told = {"new": found.new, "ended": found.ended, "failure": str(found.failure or "")}
    sys.stdout.write(json.dumps({**told, "finished": len(found.finished)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
