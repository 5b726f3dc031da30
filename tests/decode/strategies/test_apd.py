"""APD against the authors' code, and the laws of spec/apd.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from apdcli.decode import sampling
from apdcli.decode.noise import gumbel_noise
from apdcli.decode.params import ApdParams, DecodeParams
from apdcli.decode.sampling import filtered
from apdcli.decode.strategies.apd import mixture
from apdcli.errors import ParameterError
from tests.conftest import EOS, MASK, Decoded, Nets

Run = Callable[..., Decoded]


def test_every_golden_case_is_equal(golden: list[dict[str, Any]], run: Run) -> None:
    assert len(golden) == 192
    for case in golden:
        knobs = {
            k: case[k]
            for k in ("mixture_weight", "recompute_window", "max_lookahead", "max_tokens")
        }
        done = run(case["prompt_ids"], **knobs)
        assert (done.ids, done.accepted) == (case["token_ids"], case["accepted"]), knobs


windows = st.one_of(st.integers(1, 40), st.just("all"))


@settings(max_examples=25, deadline=None)
@given(
    which=st.integers(0, 50),
    mixture_weight=st.floats(0, 1),
    recompute_window=windows,
    max_lookahead=windows,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.sampled_from([None, 1, 5]),
    top_p=st.sampled_from([None, 0.5, 0.95]),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_position_once_and_one_at_least_per_step(
    prompts: list[list[int]], run: Run, which: int, **knobs: Any
) -> None:
    prompt = prompts[which % len(prompts)]
    done = run(prompt, max_tokens=24, **knobs)  # run() checks prompt and positions
    assert min(done.accepted) >= 1
    assert sum(done.accepted) == len(done.ids)
    positions = [p for e in done.events for p, _ in e.committed]
    assert positions == list(range(len(prompt), len(prompt) + len(done.ids)))
    assert MASK not in done.ids
    assert EOS not in done.ids[:-1]
    assert done.finished.reason == ("stop" if done.ids[-1] == EOS else "length")
    if done.finished.reason == "length":
        assert len(done.ids) == 24


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.5])
def test_R_1_accepts_the_whole_lookahead(
    prompts: list[list[int]], run: Run, temperature: float
) -> None:
    for prompt in prompts[:4]:
        knobs = {"temperature": temperature, "top_p": 0.9, "seed": 3, "stop_ids": frozenset()}
        done = run(prompt, mixture_weight=1.0, max_lookahead=10, **knobs)
        assert done.accepted == [10, 10, 10, 10, 8]
        assert done.finished.verifier_forwards == 0


def test_near_R_1_the_mixture_path_accepts_everything_too(
    prompts: list[list[int]], run: Run
) -> None:
    # The law's own path, not the shortcut that skips the verifier at exactly 1.
    almost = run(prompts[0], mixture_weight=1 - 1e-9, max_lookahead=10, temperature=0.7, seed=5)
    exact = run(prompts[0], mixture_weight=1.0, max_lookahead=10, temperature=0.7, seed=5)
    assert almost.finished.verifier_forwards > 0
    assert (almost.ids, almost.accepted) == (exact.ids, exact.accepted)


@pytest.mark.parametrize("mixture_weight", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_M_1_is_left_to_right_with_K_1(
    prompts: list[list[int]], run: Run, mixture_weight: float, temperature: float
) -> None:
    for prompt in prompts[:3]:
        shared = {"recompute_window": 8, "max_lookahead": 1, "temperature": temperature, "seed": 9}
        apd = run(prompt, mixture_weight=mixture_weight, **shared)
        ltr = run(prompt, "left_to_right", k=1, **shared)
        assert apd.ids == ltr.ids
        assert set(apd.accepted) == {1}


def test_R_0_greedy_keeps_only_the_verifiers_own_choices(
    prompts: list[list[int]], run: Run, nets: Nets
) -> None:
    checked = 0
    for prompt in prompts[:6]:
        done = run(prompt, mixture_weight=0.0)
        tokens = torch.tensor(prompt + done.ids)
        with torch.inference_mode():
            own = nets.pair().verifier.logits(tokens, 1).argmax(-1)  # row r predicts r + 1
        for event in done.events:
            for position, token in event.committed[1:]:
                assert own[position - 1] == token
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("mixture_weight", [0.3, 0.7])
def test_W_all_and_W_at_least_N_equal_no_cache(
    prompts: list[list[int]], run: Run, mixture_weight: float
) -> None:
    for prompt in prompts[:4]:
        everything, wide = (
            run(prompt, mixture_weight=mixture_weight, recompute_window=w) for w in ("all", 1000)
        )
        assert (everything.ids, everything.accepted) == (wide.ids, wide.accepted)


def test_no_cache_reference(prompts: list[list[int]], run: Run, nets: Nets) -> None:
    """W = "all" equals a decoder written from scratch that recomputes everything every step."""
    prompt, length, R, M = prompts[1], 40, 0.5, 12
    tokens = prompt + [MASK] * length
    i, accepted = len(prompt), []
    while i < len(tokens) and (i == len(prompt) or tokens[i - 1] != EOS):
        right = min(i + M, len(tokens))
        with torch.inference_mode():
            seen = torch.tensor([tokens[:right]])
            d = nets.denoiser.head(nets.denoiser.hidden(seen))[0, i - 1 : right - 1]
            d[:, MASK] = float("-inf")
            draft = d.argmax(-1).tolist()
            told = torch.tensor([tokens[:i] + draft])
            a = nets.verifier.head(nets.verifier.hidden(told))[0, i - 1 : right - 1]
            a[:, MASK] = float("-inf")
        target = mixture(d.log_softmax(-1), a.log_softmax(-1), R).argmax(-1).tolist()
        count = 1
        while count < len(draft) and draft[count] == target[count]:
            count += 1
        taken = draft[:count]
        if EOS in taken:
            taken = taken[: taken.index(EOS) + 1]
        tokens[i : i + len(taken)] = taken
        accepted.append(len(taken))
        i += len(taken)
    done = run(prompt, mixture_weight=R, max_lookahead=M, recompute_window="all", max_tokens=length)
    assert (done.ids, done.accepted) == (tokens[len(prompt) : i], accepted)


def test_first_token_of_a_step_follows_the_filtered_distribution(
    prompts: list[list[int]], run: Run, nets: Nets
) -> None:
    prompt, params = prompts[2], DecodeParams(temperature=6.0, top_k=6, top_p=0.95)
    # max_tokens = 1 shows the denoiser one mask; ask it the same way.
    with torch.inference_mode():
        tokens = torch.tensor([*prompt, MASK])
        d = nets.pair().denoiser.logits(tokens, 0, len(prompt))
    expected = filtered(d[0], params).double().softmax(-1)
    support = (expected > 0).nonzero().flatten().tolist()
    assert 3 <= len(support) <= 6
    draws = 1500
    knobs = {"temperature": params.temperature, "top_k": params.top_k, "top_p": params.top_p}
    seen = Counter(run(prompt, max_tokens=1, seed=seed, **knobs).ids[0] for seed in range(draws))
    assert set(seen) <= set(support)
    observed = [seen[i] for i in support]
    assert stats.chisquare(observed, [draws * float(expected[i]) for i in support]).pvalue > 1e-3


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), R=st.sampled_from([0.2, 0.5, 0.8]))
def test_shared_noise_agrees_at_least_as_often_as_independent_noise(seed: int, R: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    d, a = (3 * torch.randn(1, 12, generator=generator) for _ in range(2))
    t = mixture(d, a, R)
    draws = 4000
    g = gumbel_noise(torch.empty(draws, 12), generator)
    shared = ((d + g).argmax(-1) == (t + g).argmax(-1)).double().mean()
    independent = (d.softmax(-1) * t.softmax(-1)).sum()
    assert shared >= independent - 3 * (0.25 / draws) ** 0.5


def test_same_seed_same_tokens_and_the_global_generator_is_left_alone(
    prompts: list[list[int]], run: Run
) -> None:
    knobs = {"temperature": 1.0, "mixture_weight": 0.6, "max_lookahead": 8}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = run(prompts[0], seed=11, **knobs)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    again, other = run(prompts[0], seed=11, **knobs), run(prompts[0], seed=12, **knobs)
    assert (first.ids, first.accepted) == (again.ids, again.accepted)
    assert first.ids != other.ids


@pytest.mark.parametrize("knobs", [{}, {"top_k": 20}, {"top_p": 0.9}])
@pytest.mark.parametrize("mixture_weight", [0.0, 0.5])
def test_noise_in_pieces_gives_the_tokens_of_whole_noise(
    prompts: list[list[int]],
    run: Run,
    mixture_weight: float,
    knobs: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    knobs |= {"temperature": 0.8, "mixture_weight": mixture_weight, "max_lookahead": 20, "seed": 4}
    whole = run(prompts[0], **knobs)
    for entries in (1, 8000):
        monkeypatch.setattr(sampling, "PIECE", entries)
        pieces = run(prompts[0], **knobs)
        assert (pieces.ids, pieces.accepted) == (whole.ids, whole.accepted)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("recompute_window", 0, "W >= 1"),
        ("recompute_window", "some", '"all"'),
        ("max_lookahead", 0, "M >= 1"),
        ("max_lookahead", True, "M >= 1"),
        ("mixture_weight", 1.01, "from 0 to 1"),
        ("mixture_weight", float("nan"), "from 0 to 1"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object, words: str) -> None:
    with pytest.raises(ParameterError) as caught:
        ApdParams(**{name: value})  # type: ignore[arg-type]
    assert name in str(caught.value)
    assert words in str(caught.value)
