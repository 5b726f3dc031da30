"""How a token's cost grows with the text, and what APD's own choices gain.

    python -m apdcli.bench.growth [growth|lookahead|causal|verify_less|forward] [--profile P] ...

The choices are M = "auto" (lookahead), drafts at all (causal), and drafts verified by parts
(verify_less). A forward is held against its arithmetic.

Prints one JSON object. Times are of this process's CPU on a CPU, where others may be at work, and
of the clock elsewhere and for a forward; what is compared takes turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from apdcli.bench.floor import ApdStep
from apdcli.bench.forward import forward
from apdcli.bench.judging import JudgingVerifier, judging
from apdcli.bench.shapes import accepting
from apdcli.bench.stats import Interval
from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Pair, StepEvent
from apdcli.engine.choice import make_models
from apdcli.engine.device import flush_subnormals
from apdcli.engine.eager import banned_ids
from apdcli.engine.pair import LoadedPair, load_pair
from apdcli.engine.sampling import make_sampler
from apdcli.errors import ApdError
from apdcli.models.packed import packed

PROMPTS = ("Count from 1 to 9.", "Sort: 9 4 7 1", "Gia has 25 coins and gives 5 to Jon. And now?")
# Short: the context may hold little more than the answer.
STARTS = ("The ", "Count from ", "Sort: 9 4", "Gia has 25")
LOOKAHEADS = (8, 16, 32, 64, 100, "auto")
VERIFIED = (32, 100)  # lookaheads whose drafts are verified whole and by parts


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds: of the CPU where the work is done there, else of the clock."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def timed(
    pair: LoadedPair, models: Pair, ids: Sequence[int], strategy: str, tokens: int, **values: Any
) -> list[StepEvent]:
    """The steps of one generation, up to an end token if the pair may produce one."""
    shared, own = make_params(strategy, max_tokens=tokens, stop_ids=pair.stop_ids, **values)
    canvas = Canvas.blank(ids, tokens, models.denoiser.mask_id, pair.device)
    events = decode(
        canvas,
        make_strategy(strategy, shared, own, make_sampler(shared, pair.device)),
        models,
        stop_ids=shared.stop_ids,
        clock=clock_of(pair.device),
    )
    return [event for event in events if isinstance(event, StepEvent)]


def around(steps: Sequence[StepEvent], count: int, span: int) -> tuple[float, int, int]:
    """Seconds, tokens and steps of the stretch of `span` tokens that ends at token `count`."""
    made, begin, end = 0, None, None
    for index, step in enumerate(steps):
        made += step.accepted
        if begin is None and made >= count - span:
            begin = (index, made)
        if made >= count:
            end = (index, made)
            break
    if begin is None or end is None or begin[0] == end[0]:
        raise ValueError(f"the generation is too short, or too coarse, for {count} tokens")
    seconds = steps[end[0]].elapsed_s - steps[begin[0]].elapsed_s
    return seconds, end[1] - begin[1], end[0] - begin[0]


def until(steps: Sequence[StepEvent], count: int) -> tuple[float, int]:
    """Seconds and tokens from the start of a generation to the step that reaches `count`."""
    made = 0
    for step in steps:
        made += step.accepted
        if made >= count:
            return step.elapsed_s, made
    raise ValueError(f"the generation is too short for {count} tokens")


def arithmetic(pair: LoadedPair, cursor: int, accepted: float) -> float:
    """Operations of one step, W = 16, M = 32: what no engine can save of a longer text."""
    verifier = None if pair.verifier is None else pair.verifier.config
    parts = ApdStep(cursor, 16, 32, accepted).parts(pair.denoiser.config, verifier, 4)
    return sum(part.work.operations for part in parts)


def endless(pair: LoadedPair) -> LoadedPair:
    """The pair without its end tokens: its texts are as long as they may be."""
    ended = pair.stop_ids | pair.tokenizer.special_ids
    return replace(pair, allowed_ids=tuple(i for i in pair.allowed_ids if i not in ended))


def growth(pair: LoadedPair, near: int, far: int, repeats: int, accept: int = 0) -> dict[str, Any]:
    """Milliseconds a token and a step at `near` generated tokens and at `far`, W = 16, M = 32.

    "At" is over the last tokens before that place; `whole` is over all from the start: what a text
    of `far` tokens costs against one of `near`. Beside them what the arithmetic of a step grows
    by, from the middle of one stretch to that of the other. Over some texts together: how much a
    step accepts changes along each of them by chance, and with it what a token costs. End tokens
    are banned: after one, a model repeats it, and every draft is accepted. A small pair may repeat
    itself all the same: `accept` makes every step take that many tokens, so that the two stretches
    differ in their length alone.
    """
    span = min(80, near - 10)
    pair = endless(pair)
    found: dict[int, list[tuple[float, float, float, float]]] = {near: [], far: []}
    for repeat in range(repeats + 1):
        sums: dict[int, tuple[float, ...]] = dict.fromkeys(found, (0.0,) * 5)
        for start in STARTS:
            models = pair.models(16 + far)
            if accept:
                models = accepting(accept)(models)
            setting = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": 32}
            steps = timed(pair, models, pair.prompt_ids(start, raw=True), "apd", far, **setting)
            for count, sum_ in sums.items():
                more = (*around(steps, count, span), *until(steps, count))
                sums[count] = tuple(a + b for a, b in zip(sum_, more, strict=True))
        if repeat:  # the first warms
            for count, (seconds, tokens, number, whole_s, whole) in sums.items():
                row = (seconds / tokens, seconds / number, tokens / number, whole_s / whole)
                found[count].append(row)
    middle = {
        count: [statistics.median(column) for column in zip(*rows, strict=True)]
        for count, rows in found.items()
    }
    work = {
        count: arithmetic(pair, count - span // 2, tokens)
        for count, (_, _, tokens, _) in middle.items()
    }
    return {
        "texts": len(STARTS),
        "accept": accept or None,
        "ms_a_token": {count: 1e3 * token for count, (token, _, _, _) in middle.items()},
        "ms_a_step": {count: 1e3 * step for count, (_, step, _, _) in middle.items()},
        "tokens_a_step": {count: tokens for count, (_, _, tokens, _) in middle.items()},
        "whole_ms_a_token": {count: 1e3 * whole for count, (_, _, _, whole) in middle.items()},
        "ratio_a_token": middle[far][0] / middle[near][0],
        "whole_ratio_a_token": middle[far][3] / middle[near][3],
        "ratio_a_step": middle[far][1] / middle[near][1],
        "arithmetic_ratio_a_step": work[far] / work[near],
        "goal": 1.25,
    }


def lookahead(pair: LoadedPair, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second by M at R = .5 and W = 16, in turn, and "auto" against the best fixed M."""
    rates: dict[int | str, list[float]] = {m: [] for m in LOOKAHEADS}
    for repeat in range(repeats + 1):
        for m, kept in rates.items():
            made, seconds = 0, 0.0
            for prompt in PROMPTS:
                ids = pair.prompt_ids(prompt)
                models = pair.models(len(ids) + tokens)
                values = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": m}
                steps = timed(pair, models, ids, "apd", tokens, **values)
                made += sum(step.accepted for step in steps)
                seconds += steps[-1].elapsed_s
            if repeat:
                kept.append(made / seconds)
    middle = {m: statistics.median(kept) for m, kept in rates.items()}
    best = max((m for m in middle if m != "auto"), key=middle.__getitem__)
    return {
        "tokens_a_second": middle,
        "best_fixed": best,
        "auto_over_best": middle["auto"] / middle[best],
    }


def causal(pair: LoadedPair, tokens: int, repeats: int) -> dict[str, Any]:
    """APD (R = .5, W = 16, M = 32) against the denoiser's layers run causally, in turn."""
    if pair.engine == "eager":
        raise SystemExit("apd: causal needs the engine fast or graphs")
    net = copy.copy(pair.denoiser)
    net.config = replace(net.config, causal=True, shift=False)
    net.packed = copy.copy(packed(pair.denoiser))  # the same weights
    net.packed.net, net.packed.spare_buffers = net, []
    banned = banned_ids(pair.allowed_ids, 1 + max(pair.allowed_ids), pair.device)
    rates: dict[str, list[float]] = {"apd": [], "autoregressive": []}
    for repeat in range(repeats + 1):
        for strategy, kept in rates.items():
            made, seconds = 0, 0.0
            for prompt in PROMPTS:
                ids = pair.prompt_ids(prompt)
                capacity = len(ids) + tokens
                models = pair.models(capacity)
                values = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": 32}
                if strategy == "autoregressive":
                    models = make_models(pair.engine, pair.denoiser, net, banned, capacity)
                    values = {}
                steps = timed(pair, models, ids, strategy, tokens, **values)
                made += sum(step.accepted for step in steps)
                seconds += steps[-1].elapsed_s
            if repeat:
                kept.append(made / seconds)
    middle = {name: statistics.median(kept) for name, kept in rates.items()}
    return {
        "tokens_a_second": middle,
        "ratio": middle["apd"] / middle["autoregressive"],
        "goal": 2.0,
    }


@dataclass
class _Run:
    """Some generations: their steps, and what they took.

    Attributes:
        texts: what each step of them wrote and what it threw away.
        seconds, tokens, steps, forwards, positions: sums; the last two are the verifier's.
    """

    texts: list[Any]
    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    forwards: int = 0
    positions: int = 0

    def add(self, steps: Sequence[StepEvent], positions: int) -> None:
        """Add a generation, for which the verifier ran so many positions."""
        self.texts.append([(step.committed, step.rejected) for step in steps])
        self.seconds += steps[-1].elapsed_s
        self.tokens += sum(step.accepted for step in steps)
        self.steps += len(steps)
        self.forwards += steps[-1].verifier_forwards
        self.positions += positions

    def figures(self, seconds: float) -> dict[str, float]:
        """What is told of it, with the middle of many runs' seconds in place of its own."""
        return {
            "tokens_a_second": self.tokens / seconds,
            "ms_a_step": 1e3 * seconds / self.steps,
            "verifier_positions": self.positions,
            "verifier_forwards": self.forwards,
        }


def verify_less(pair: LoadedPair, tokens: int, repeats: int, accept: int = 0) -> dict[str, Any]:
    """Drafts verified by parts against drafts verified whole, at R = .5 and W = 16.

    Over answers, which may take a step or two, and over texts without an end. With `accept` every
    step is made to take that many tokens: this many are then nearly always in the first part.
    `equal` says whether every step wrote and threw away the same tokens both ways.
    """
    if pair.verifier is None:
        raise SystemExit("apd: verify_less needs a profile with a verifier")
    answers = [(pair, pair.prompt_ids(prompt)) for prompt in PROMPTS]
    free = endless(pair)
    texts = {"answers": answers, "endless": [(free, free.prompt_ids(s, raw=True)) for s in STARTS]}
    rows = [
        {"texts": name, **both_ways(asked, tokens, m, repeats, accept)}
        for name, asked in texts.items()
        for m in VERIFIED
    ]
    equal = all(row.pop("equal") for row in rows)
    sizes = {"tokens": tokens, "repeats": repeats, "accept": accept or None}
    return {**sizes, "settings": rows, "equal": equal}


def both_ways(
    asked: Sequence[tuple[LoadedPair, Sequence[int]]],
    tokens: int,
    m: int,
    repeats: int,
    accept: int,
) -> dict[str, Any]:
    """Texts by drafts of `m` tokens, verified whole and by parts in turn.

    Each repeat goes through them twice, with either way first: the second finds caches warm. The
    ratio is of seconds, whole over parts: the median over the repeats, an interval around it, and
    how sure that is.

    Args:
        asked: pairs and the ids that they go on from.
        tokens: of a text, at most.
        accept: see `verify_less`.
    """
    runs: dict[str, list[_Run]] = {"whole": [], "parts": []}
    setting = {"mixture_weight": 0.5, "recompute_window": 16, "max_lookahead": m}
    equal = True
    ratios = []
    for repeat in range(repeats + 1):
        took = dict.fromkeys(runs, 0.0)
        for order in (list(runs), list(runs)[::-1]):
            both = {way: _Run([]) for way in order}
            for pair, ids in asked:
                for way, run in both.items():
                    models = judging(way == "parts")(pair.models(len(ids) + tokens))
                    judge = models.verifier
                    assert isinstance(judge, JudgingVerifier)
                    if accept:
                        models = accepting(accept)(models)
                    run.add(timed(pair, models, ids, "apd", tokens, **setting), judge.positions)
            equal = equal and both["whole"].texts == both["parts"].texts
            for way, run in both.items():
                took[way] += run.seconds
                if repeat:  # the first warms
                    runs[way].append(run)
        if repeat:
            ratios.append(took["whole"] / took["parts"])
    seconds = {way: [run.seconds for run in kept] for way, kept in runs.items()}
    one = runs["whole"][0]
    return {
        "lookahead": m,
        "steps": one.steps,
        "tokens_a_step": one.tokens / one.steps,
        **{way: kept[0].figures(statistics.median(seconds[way])) for way, kept in runs.items()},
        "ratio": asdict(Interval.of(ratios)),
        "equal": equal,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; status 0, or 1 if two ways that must agree did not."""
    parser = argparse.ArgumentParser(prog="python -m apdcli.bench.growth")
    parser.add_argument("what", nargs="?", default="growth")
    parser.add_argument("--profile", default="demo")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--near", type=int, default=100)
    parser.add_argument("--far", type=int, default=1000)
    parser.add_argument("--accept", type=int, default=0, help="a step, growth and verify_less")
    parser.add_argument("--tokens", type=int, default=96, help="of an answer, all but growth")
    parser.add_argument("--positions", type=int, default=128, help="of a forward")
    given = parser.parse_args(arguments)
    for name, least in (("repeats", 1), ("tokens", 1), ("accept", 0), ("positions", 2)):
        if getattr(given, name) < least:
            parser.error(f"--{name} {getattr(given, name)}: it must be at least {least}")
    try:
        pair = load_pair(given.profile, device=given.device, engine=given.engine)
    except ApdError as error:
        parser.exit(error.exit_status, f"apd: {error}\n")
    if given.positions > pair.context:
        parser.error(f"--positions {given.positions}: the context holds {pair.context}")
    flush_subnormals(pair.device)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "growth": lambda: growth(pair, given.near, given.far, given.repeats, given.accept),
        "lookahead": lambda: lookahead(pair, given.tokens, given.repeats),
        "causal": lambda: causal(pair, given.tokens, given.repeats),
        "verify_less": lambda: verify_less(pair, given.tokens, given.repeats, given.accept),
        "forward": lambda: forward(pair, given.positions, given.repeats),
    }
    if given.what not in measures:
        parser.error(f"{given.what} is not one of {', '.join(measures)}")
    found = measures[given.what]()
    about = {"what": given.what, "engine": pair.engine, "device": str(pair.device)}
    about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
    sys.stdout.write(json.dumps({**about, **found}) + "\n")
    return 0 if found.get("equal", True) else 1


if __name__ == "__main__":
    raise SystemExit(main())
