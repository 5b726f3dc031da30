"""The any-order baselines against published code, and what they have in common."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apdcli.decode.params import make_params
from apdcli.decode.sampling import confidence, entropy, logit_margin, probability_margin
from apdcli.decode.strategies.schedule import DreamSchedule, EvenSchedule
from apdcli.decode.types import Canvas, Pair
from apdcli.errors import ParameterError, UnknownParameterError
from tests.conftest import DATA, MASK, Nets
from tests.decode.any_order import (
    Scripted,
    decode_all,
    differences,
    dream_cases,
    dream_differences,
    golden_cases,
    mask_left_in,
    scripted,
)

BASELINES = {
    "confidence": {"k": 3},
    "threshold": {},
    "factor": {},
    "entropy_bound": {"gamma": 1.0},
    "klass": {"parallel": True},
    "random": {},
    "margin": {"steps": 10},
    "entropy": {},
}


@pytest.mark.parametrize("strategy", ["threshold", "factor", "entropy_bound"])
def test_every_golden_case_is_equal(nets: Nets, strategy: str) -> None:
    cases = [case for case in golden_cases() if case["strategy"] == strategy]
    assert len(cases) == 20
    for index, case in enumerate(cases):
        assert differences(case, nets) == [], index


@pytest.fixture(scope="module")
def on_avx2() -> dict[str, list[Any]]:
    """What differs when the golden cases that hang on the last bits run with vectors of 8.

    They order end tokens whose confidences differ by 0 to 2 units in the last place: their order
    in float32 depends on the width of the CPU's vectors, and the reference run's was 8.
    """
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("the reference order needs AVX2 arithmetic")
    done = subprocess.run(
        [sys.executable, "-m", "tests.decode.any_order"],
        cwd=DATA.parent.parent,
        env={**os.environ, "ATEN_CPU_CAPABILITY": "avx2", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def test_every_golden_case_of_topk_and_klass_is_equal(on_avx2: dict[str, list[Any]]) -> None:
    assert len(on_avx2["topk, klass"]) == 30
    assert not any(on_avx2["topk, klass"])


def test_every_case_of_the_klass_authors_own_code_is_equal(on_avx2: dict[str, list[Any]]) -> None:
    assert len(on_avx2["klass"]) == 16
    assert not any(on_avx2["klass"])


def test_dreams_published_sampler_step_by_step(on_avx2: dict[str, list[Any]]) -> None:
    """Ids, forwards, and the positions of each: maskgit_plus, margin, entropy in 8 to 64 steps."""
    assert len(on_avx2["dream"]) == 45
    assert not any(on_avx2["dream"])


def test_never_producing_a_mask_turns_ties_of_dreams_sampler_only(
    on_avx2: dict[str, list[Any]],
) -> None:
    """Dream's sampler leaves the mask's id its probability; ours is 0, so scores move by an ulp."""
    assert len(on_avx2["dream, no masks"]) == 15
    turned = [found for found in on_avx2["dream, no masks"] if found]
    assert len(turned) <= 1
    for found in turned:
        assert found.keys() == {"step", "ulp"}, found
        assert found["ulp"] <= 2


@pytest.mark.parametrize("k", [1, 3])
def test_top_k_golden_texts_and_forwards_on_any_cpu(nets: Nets, k: int) -> None:
    cases = [c for c in golden_cases() if c["strategy"] == "topk" and c["parameters"]["k"] == k]
    for case in cases[:4]:
        assert differences(case, nets) in ([], ["steps"])


@settings(max_examples=100, deadline=None)
@given(
    strategy=st.sampled_from(sorted(BASELINES)),
    seed=st.integers(0, 2**32),
    B=st.integers(1, 16),
    blocks=st.integers(1, 3),
    lowest=st.sampled_from([0.3, 0.8]),
)
def test_each_position_once_and_block_after_block(
    strategy: str, seed: int, B: int, blocks: int, lowest: float
) -> None:
    dice = random.Random(seed)
    table = [[dice.uniform(lowest, 1) for _ in range(3 + B * blocks)] for _ in range(5)]
    done = scripted(
        lambda forward, j: table[forward % 5][j],
        strategy,
        B * blocks,
        block_length=B,
        seed=seed,
        **BASELINES[strategy],
    )
    assert min(done.accepted) >= 1
    order = [(p - 3) // B for e in done.events for p, _ in e.committed]
    assert order == sorted(order)
    assert done.finished.denoiser_forwards == len(done.events)


@pytest.mark.parametrize("strategy", sorted(BASELINES))
def test_temperature_repeats_with_its_seed(nets: Nets, strategy: str) -> None:
    prompt = golden_cases()[0]["prompt_ids"]
    texts = []
    for seed in (1, 1, 2):
        canvas = Canvas.blank(prompt, 24, MASK)
        values = {"temperature": 1.0, "seed": seed, "early_stop": False, **BASELINES[strategy]}
        done = decode_all(canvas, nets.pair(), strategy, **values)
        assert MASK not in done.ids
        texts.append((done.ids, [e.committed for e in done.events]))
    assert texts[0] == texts[1] != texts[2]


@settings(max_examples=60, deadline=None)
@given(
    strategy=st.sampled_from(sorted([*BASELINES, "dico"])),
    gaps=st.lists(st.booleans(), min_size=1, max_size=40).filter(any),
    block_length=st.sampled_from([1, 7, "all"]),
    seed=st.integers(0, 2**32),
)
def test_gaps_are_filled_and_the_text_around_them_stays(
    strategy: str, gaps: list[bool], block_length: int | str, seed: int
) -> None:
    dice = random.Random(seed)
    table = [[dice.uniform(0.3, 1) for _ in gaps] for _ in range(5)]
    canvas = Canvas.from_gaps([None if gap else 5 for gap in gaps], Scripted.mask_id)
    pair = Pair(Scripted(lambda forward, j: table[forward % 5][j]))
    values = {"max_tokens": 7, "stop_ids": frozenset(), **BASELINES.get(strategy, {})}
    values["block_length"] = block_length
    done = decode_all(canvas, pair, strategy, **values)
    assert canvas.tokens.tolist() == [j % 3 if gap else 5 for j, gap in enumerate(gaps)]
    positions = sorted(p for e in done.events for p, _ in e.committed)
    assert positions == [j for j, gap in enumerate(gaps) if gap]
    assert done.finished.reason == "length"


def test_text_after_a_gap_decides_what_fills_it(nets: Nets) -> None:
    case = golden_cases()[0]
    whole = case["prompt_ids"] + case["token_ids"]
    n = len(case["prompt_ids"])
    filled = []
    for changed in (None, 5):  # the answer's own number, then another one after the gap
        ids = [None if n + 20 <= j < n + 22 else t for j, t in enumerate(whole)]
        if changed is not None:
            ids[n + 24 : n + 26] = [20 + changed, 20 + changed]
        canvas = Canvas.from_gaps(ids, MASK)
        done = decode_all(canvas, nets.pair(), "dico", stop_ids=frozenset(), max_tokens=64)
        filled.append(done.events[-1].committed)
        assert [t for j, t in enumerate(canvas.tokens.tolist()) if ids[j] is not None] == [
            t for t in ids if t is not None
        ]
    assert filled[0] != filled[1]


def test_a_text_without_a_gap_is_an_error() -> None:
    with pytest.raises(ValueError, match="no gap"):
        Canvas.from_gaps([1, 2], MASK)


def test_threshold_by_hand() -> None:
    c = [0.95, 0.5, 0.91, 0.6]
    done = scripted(lambda forward, j: c[j - 3], "threshold", 4)
    committed = [[p - 3 for p, _ in e.committed] for e in done.events]
    assert committed == [[0, 2], [3], [1]]  # nothing else reaches 0.9: one at a time, best first


def test_entropy_bound_by_hand() -> None:
    # Two certain positions cost nothing; the first uncertain one is free (its own maximum).
    c = [1.0, 1.0, 0.5, 0.5]
    done = scripted(lambda forward, j: c[j - 3], "entropy_bound", 4)
    assert [[p - 3 for p, _ in e.committed] for e in done.events] == [[0, 1, 2], [3]]


def test_klass_waits_until_predictions_settle() -> None:
    # Confident throughout, but what is predicted moves until forward 3.
    def script(forward: int, j: int) -> float:
        return 0.97 if forward >= 3 else 0.91 if (forward + j) % 2 else 0.999

    done = scripted(script, "klass", 12, parallel=True)
    assert done.accepted[:5] == [1] * 5
    assert done.accepted[5] == 7
    assert len(done.accepted) == 6


def test_klass_remembers_between_blocks_as_its_authors_do() -> None:
    values = {"block_length": 8, "parallel": True}
    done = scripted(lambda forward, j: 0.95, "klass", 16, **values)
    # Two forwards of history in the block; what the first block's forwards said counts too.
    assert done.accepted == [1, 1, 6, 1, 7]
    longer = scripted(lambda forward, j: 0.95, "klass", 16, kl_history_length=3, **values)
    assert longer.accepted == [1, 1, 1, 5, 1, 1, 6]


def test_klass_one_at_a_time_forgets_between_blocks() -> None:
    def script(forward: int, j: int) -> float:
        return 0.9 - j / 99 if j % 8 != 5 else 0.99 if forward % 2 else 0.5

    # Position 5 is the surest at odd forwards and never settles.
    values = {"block_length": 8, "kl_history_length": 1, "parallel": False}
    done = scripted(script, "klass", 16, prompt=0, **values)
    order = [p for e in done.events for p, _ in e.committed]
    # Forward 0 has no history and takes the surest, forward 8 takes the new block's.
    assert order == [0, 1, 2, 3, 4, 6, 7, 5, 8, 9, 10, 11, 12, 14, 15, 13]
    assert done.accepted == [1] * 16


def test_dreams_schedule_sums_to_the_block_in_its_steps() -> None:
    for steps in (1, 5, 16, 64, 200):
        schedule, left, counts = DreamSchedule(steps), 64, []
        while left:
            counts.append(schedule.count((0, 64), left))
            left -= counts[-1]
        assert sum(counts) == 64
        assert len(counts) <= min(steps, 64)
        assert max(counts) - min(counts[:-1] or counts) <= 64 // steps + 2


@pytest.mark.parametrize("algorithm", ["maskgit_plus", "topk_margin", "entropy"])
def test_dreams_texts_and_forwards_on_any_cpu(nets: Nets, algorithm: str) -> None:
    cases = [case for case in dream_cases() if case["algorithm"] == algorithm]
    for case in cases[:3]:
        found = dream_differences(case, mask_left_in(nets))
        assert not found.keys() & {"ids", "forwards"}, found


@given(st.integers(1, 80), st.integers(1, 80))
def test_lladas_schedule_is_even_and_takes_what_is_left_over_first(masked: int, steps: int) -> None:
    schedule, left, counts = EvenSchedule(steps), masked, []
    while left:
        counts.append(schedule.count((0, masked), left))
        left -= counts[-1]
    assert sum(counts) == masked
    assert len(counts) == min(steps, masked)
    assert counts == sorted(counts, reverse=True)
    assert max(counts) - min(counts) <= 1


def test_steps_of_the_schedule_are_forwards_at_most(nets: Nets) -> None:
    prompt = golden_cases()[0]["prompt_ids"]
    for strategy in ("confidence", "random", "margin", "entropy"):
        for schedule in ("dream", "llada"):
            canvas = Canvas.blank(prompt, 32, MASK)
            values = {"steps": 9, "schedule": schedule, "early_stop": False}
            done = decode_all(canvas, nets.pair(), strategy, **values)
            assert done.finished.denoiser_forwards <= 9, strategy
            if schedule == "llada":
                assert done.accepted == [4] * 5 + [3] * 4, strategy


def test_lladas_schedule_begins_anew_in_each_block() -> None:
    for strategy in ("confidence", "random", "margin", "entropy"):
        values = {"steps": 3, "schedule": "llada", "block_length": 8}
        done = scripted(lambda f, j: 0.3 + j / 99, strategy, 16, **values)
        assert done.accepted == [3, 3, 2, 3, 3, 2]


@pytest.mark.parametrize("schedule", ["dream", "llada"])
def test_random_order_is_uniform(schedule: str) -> None:
    first = Counter(
        p
        for seed in range(400)
        for p, _ in scripted(lambda f, j: 0.5, "random", 4, seed=seed, schedule=schedule)
        .events[0]
        .committed
    )
    share = first.total() / 4
    assert all(abs(first[j] - share) < 4 * share**0.5 for j in range(3, 7)), first


@pytest.mark.parametrize("strategy", ["confidence", "margin", "entropy"])
def test_alg_temp_draws_the_order_from_the_softmax_of_the_scores(strategy: str) -> None:
    c = [0.9, 0.5, 0.3]
    if strategy == "confidence":
        scores = c
    else:  # the ten other tokens share what is left
        p = torch.tensor([[c_j, *[(1 - c_j) / 10] * 10] for c_j in c])
        scores = (probability_margin if strategy == "margin" else lambda x: -entropy(x))(p.log())
    alg_temp = 0.4
    wanted = (torch.as_tensor(scores) / alg_temp).softmax(-1).tolist()
    draws = 600
    first = Counter(
        scripted(lambda f, j: c[j - 3], strategy, 3, seed=seed, alg_temp=alg_temp)
        .events[0]
        .committed[0][0]
        - 3
        for seed in range(draws)
    )
    for j, share in enumerate(wanted):
        spread = (share * (1 - share) / draws) ** 0.5
        assert abs(first[j] / draws - share) < 4 * spread, (first, wanted)


def test_alg_temp_draws_without_replacement_and_repeats_with_its_seed() -> None:
    orders = [
        [
            e.committed
            for e in scripted(
                lambda f, j: 0.3 + j / 40, "confidence", 12, k=4, alg_temp=10.0, seed=seed
            ).events
        ]
        for seed in (1, 1, 2)
    ]
    assert [len(step) for step in orders[0]] == [4, 4, 4]
    assert orders[0] == orders[1] != orders[2]


def test_alg_temp_nearly_zero_is_the_order_without_it() -> None:
    orders = [
        [
            e.committed
            for e in scripted(lambda f, j: 0.3 + j / 40, "confidence", 12, alg_temp=t).events
        ]
        for t in (0.0, 1e-12)
    ]
    assert orders[0] == orders[1]


def test_scores_of_four_tokens_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.7, 0.1, 0.1, 0.1]]).log()
    ids = torch.tensor([0, 1])
    assert confidence(logits, ids).tolist() == pytest.approx([0.5, 0.1])
    assert probability_margin(logits).tolist() == pytest.approx([0.25, 0.6])
    assert logit_margin(logits).tolist() == pytest.approx([0.693147, 1.945910])
    assert entropy(logits).tolist() == pytest.approx([1.039721, 0.940448])


# Sixty-fourths, so that sums are exact in whatever order they are made.
sixty_fourths = st.integers(0, 192).map(lambda n: n / 64)


@given(st.lists(sixty_fourths, min_size=1, max_size=12), sixty_fourths)
def test_entropy_bound_prefix_is_a_brute_force_search(H: list[float], gamma: float) -> None:
    from apdcli.decode.any_order_params import EntropyBoundParams
    from apdcli.decode.params import DecodeParams
    from apdcli.decode.strategies.entropy_bound import EntropyBound

    strategy = EntropyBound(DecodeParams(), EntropyBoundParams(gamma=gamma))
    c = [1 - j / len(H) for j in range(len(H))]
    open_entropies = [sum(H[:k]) - max(H[:k]) for k in range(1, len(H) + 1)]
    assert all(a <= b for a, b in pairwise(open_entropies))
    sizes = [k for k, left in enumerate(open_entropies, 1) if left <= gamma]
    chosen = strategy.choose(None, [c, H])  # type: ignore[arg-type]
    assert chosen == list(range(max(sizes)))


@pytest.mark.parametrize(
    ("strategy", "name", "value"),
    [
        ("confidence", "k", 0),
        ("confidence", "steps", 0),
        ("threshold", "confidence_threshold", 1.01),
        ("factor", "factor", float("inf")),
        ("entropy_bound", "gamma", -1),
        ("klass", "kl_history_length", 0),
        ("klass", "parallel", 1),
        ("random", "steps", 1.5),
        ("random", "steps", 10**9),
        ("confidence", "alg_temp", -0.1),
        ("margin", "alg_temp", float("nan")),
        ("entropy", "alg_temp", True),
        ("random", "schedule", "even"),
        ("confidence", "schedule", None),
        ("margin", "block_length", "some"),
        ("entropy", "block_length", 48),
    ],
)
def test_bad_values_name_the_field(strategy: str, name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=name):
        make_params(strategy, **{"max_tokens": 64, name: value})


def test_anothers_parameter_lists_the_known_ones() -> None:
    with pytest.raises(UnknownParameterError, match="early_stop, cache, confidence_threshold"):
        make_params("threshold", gamma=0.1)
    with pytest.raises(UnknownParameterError, match="alg_temp"):
        make_params("random", alg_temp=0.1)  # an order without scores
