"""DiCo against the authors' code, and the laws of spec/dico.md."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apdcli.decode.params import make_params
from apdcli.decode.strategies.dico import furthest, merged, soft_nms
from apdcli.decode.strategies.factor import safe_prefix
from apdcli.decode.types import Canvas
from apdcli.errors import ParameterError
from tests.conftest import EOS, MASK, Decoded, Nets
from tests.decode.any_order import decode_all, differences, golden_cases, phases, scripted

CASES = [case for case in golden_cases() if case["strategy"] == "dico"]


def test_every_golden_case_is_equal(nets: Nets) -> None:
    assert len(CASES) == 50
    for index, case in enumerate(CASES):
        assert differences(case, nets) == [], index


@st.composite
def settings_of_dico(draw: st.DrawFn) -> dict[str, Any]:
    unit = st.floats(0, 1)
    return {
        "seeds": draw(st.integers(1, 10)),
        "divide_steps": draw(st.integers(1, 10)),
        "seed_threshold": draw(unit),
        "tolerance": draw(st.integers(0, 4)),
        "guidance": draw(st.booleans()),
        "guidance_alpha": draw(unit),
        "guidance_beta": draw(st.floats(0.01, 1)),
        "factor": draw(st.floats(0, 3)),
        "low_threshold": draw(unit),
        "sure_threshold": draw(unit),
        "gate": draw(unit),
        "margin": draw(st.floats(0, 10)),
    }


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 40),
    blocks=st.sampled_from([1, 1, 2, 4]),
    lowest=st.sampled_from([0.3, 0.5, 0.9]),
    stable=st.booleans(),
    values=st.one_of(st.just({}), settings_of_dico()),
)
def test_the_laws(
    seed: int, length: int, blocks: int, lowest: float, stable: bool, values: dict[str, Any]
) -> None:
    prompt, B = 3, length
    length *= blocks
    dice = random.Random(seed)
    table = [[dice.uniform(lowest, 1) for _ in range(prompt + length)] for _ in range(7)]

    def script(forward: int, j: int) -> float:
        return table[0 if stable else forward % 7][j]

    done = scripted(script, "dico", length, prompt, **{"block_length": B, **values})
    idle = "".join("x" if accepted else "." for accepted in done.accepted)
    assert "..." not in idle, "at least one in any three consecutive forwards"
    _check_clusters(done, prompt, length, B)


def _check_clusters(done: Decoded, prompt: int, length: int, B: int) -> None:
    """Disjoint, apart, inside the block, and ending on positions masked at the forward."""
    masked = [False] * prompt + [True] * length
    for event in done.events:
        b0 = prompt + (masked.index(True) - prompt) // B * B
        border = b0 - 1
        for start, end in event.clusters:
            assert border < start < end <= min(b0 + B, prompt + length)
            border = end
        if event.phase == "conquer":
            assert event.clusters
            assert all(masked[start] and masked[end - 1] for start, end in event.clusters)
        if event.phase == "divide" and event.committed:
            inside = [any(s <= p < e for s, e in event.clusters) for p, _ in event.committed]
            assert all(inside), "a seed outside every cluster"
        assert event.phase in ("divide", "conquer", "finalize")
        for position, _ in event.committed:
            masked[position] = False


def test_all_sure_the_first_conquer_forward_finishes_the_block() -> None:
    done = scripted(lambda forward, j: 1.0, "dico", 64, block_length=32)
    first = [e.phase for e in done.events].index("conquer")
    left = [e.masked_left for e in done.events]
    assert left[first] == 32
    assert left[-1] == 0
    assert done.events[-1].phase == "conquer"


def test_all_low_it_degenerates_to_one_a_forward_and_ends() -> None:
    done = scripted(lambda forward, j: 0.26, "dico", 32)
    assert phases(done) == [["divide", 1], ["finalize", 32]]
    assert done.accepted == [0] + [1] * 32


def test_moderate_all_over_still_ends() -> None:
    # Above the seed threshold, under the low threshold: seeds only, then Finalize.
    done = scripted(lambda forward, j: 0.45, "dico", 64, margin=10.0)
    assert phases(done)[0][0] == "divide"
    assert phases(done)[-1][0] == "finalize"


def _brute_force_prefix(c: list[float], f: float) -> int:
    allowed = [k for k in range(1, len(c) + 1) if math.floor(f / (1 - c[k - 1] + 1e-6) - 1) >= k]
    return max(allowed, default=0)


@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0, 4))
def test_the_prefix_rule_is_a_brute_force_search(c: list[float], f: float) -> None:
    ordered = sorted(c, reverse=True)
    assert safe_prefix(ordered, f) == _brute_force_prefix(ordered, f)


def test_the_prefix_rule_by_hand() -> None:
    # (k + 1)(1 - c_k) < 1: 0.4 and 0.6 hold for k = 1 and 2, 4 * 0.3 for k = 3 does not.
    assert safe_prefix([0.8, 0.8, 0.7], 1.0) == 2
    # A later position may allow what an earlier k alone would not: c = 0.9 at k = 4 is 0.5.
    assert safe_prefix([0.9, 0.9, 0.9, 0.9], 1.0) == 4
    assert safe_prefix([0.4], 1.0) == 0
    assert safe_prefix([], 1.0) == 0


def test_soft_nms_prefers_a_distant_second() -> None:
    scores = [0.9, 0.85, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5]
    assert soft_nms(scores, 2, threshold=0.3, sigma=8 / 3) == [0, 7]
    # Under the threshold is judged by the score itself, not by what damping left of it.
    assert soft_nms([0.9, 0.85], 2, threshold=0.5, sigma=100.0) == [0, 1]
    assert soft_nms([0.2, -math.inf], 2, threshold=0.3, sigma=1.0) == []


def test_furthest_steps_over_at_most_tolerance_walls() -> None:
    walls = {1, 2, 4, 6, 7, 8}
    assert furthest(range(12), walls.__contains__, 2) == 5
    assert furthest(range(12), walls.__contains__, 1) == 0
    assert furthest(range(12), walls.__contains__, 3) == 11
    assert furthest(range(6, 9), walls.__contains__, 2) is None


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=6))
def test_merged_covers_the_same_and_leaves_gaps(pieces: list[tuple[int, int]]) -> None:
    clusters = [(start, start + length) for start, length in pieces]
    joined = merged(clusters)
    assert {j for c in joined for j in range(*c)} == {j for c in clusters for j in range(*c)}
    assert all(a[1] < b[0] for a, b in pairwise(joined))


@pytest.mark.parametrize("block_length", [64, 16])
def test_early_stop_ends_sooner_with_the_same_text(nets: Nets, block_length: int) -> None:
    saved = 0
    for case in CASES[:6:2]:
        canvas, whole = (Canvas.blank(case["prompt_ids"], 64, MASK) for _ in range(2))
        early = decode_all(canvas, nets.pair(), "dico", block_length=block_length)
        late = decode_all(whole, nets.pair(), "dico", block_length=block_length, early_stop=False)
        end = late.ids.index(EOS) + 1 if EOS in late.ids else 64
        assert early.ids[:end] == late.ids[:end]
        assert early.finished.reason == late.finished.reason
        assert late.events[-1].masked_left == 0
        saved += late.finished.denoiser_forwards - early.finished.denoiser_forwards
    # In one block the end tokens fill in first; in short ones the last need not be decoded.
    assert saved > 0 if block_length == 16 else saved >= 0


def test_temperature_draws_and_repeats_with_its_seed(nets: Nets) -> None:
    prompt = CASES[0]["prompt_ids"]
    texts = []
    for seed in (1, 1, 2):
        canvas = Canvas.blank(prompt, 64, MASK)
        values = {"temperature": 1.0, "seed": seed, "early_stop": False}
        texts.append(decode_all(canvas, nets.pair(), "dico", **values).ids)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 0),
        ("divide_steps", 0),
        ("seed_threshold", 1.5),
        ("tolerance", -1),
        ("guidance", 1),
        ("guidance_alpha", -0.1),
        ("guidance_beta", 0.0),
        ("factor", -1.0),
        ("low_threshold", float("nan")),
        ("sure_threshold", 2),
        ("gate", -0.5),
        ("margin", "wide"),
        ("block_length", 0),
        ("block_length", 48),
        ("early_stop", "yes"),
    ],
)
def test_bad_values_name_the_field(name: str, value: object) -> None:
    with pytest.raises(ParameterError, match=name) as caught:
        make_params("dico", **{"max_tokens": 64, name: value})
    assert "\n" not in str(caught.value)


def test_a_block_as_long_as_the_response_or_longer_is_one_block() -> None:
    for block_length in (20, 128, "all"):
        done = scripted(lambda f, j: 0.26, "dico", 20, block_length=block_length)
        assert phases(done) == [["divide", 1], ["finalize", 20]]
