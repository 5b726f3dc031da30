"""Sampling on hand-computed distributions of four tokens."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from apdcli.bench.memory import LiveBytes
from apdcli.decode import sampling
from apdcli.decode.noise import gumbel_noise
from apdcli.decode.params import DecodeParams, make_params
from apdcli.decode.sampling import (
    PIECE,
    Sampler,
    filtered,
    top_k_filter,
    top_p_filter,
)
from apdcli.decode.strategies.apd import Apd
from apdcli.decode.types import Canvas, Pair
from apdcli.errors import ParameterError

INF = float("inf")
# Probabilities 0.5, 0.25, 0.15, 0.1 in mixed order.
LOGITS = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero().flatten().tolist()


@pytest.mark.parametrize(("k", "ids"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (9, [0, 1, 2, 3])])
def test_top_k(k: int, ids: list[int]) -> None:
    assert kept(top_k_filter(LOGITS, k)) == ids


@pytest.mark.parametrize(
    ("p", "ids"),
    [
        (0.01, [1]),
        (0.49, [1]),
        (0.51, [1, 3]),
        (0.76, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
        (1.0, [0, 1, 2, 3]),
    ],
)
def test_top_p_is_the_smallest_set_that_reaches_p(p: float, ids: list[int]) -> None:
    assert kept(top_p_filter(LOGITS, p)) == ids


def test_temperature_comes_first_then_k_then_p() -> None:
    # At T = 0.5 the probabilities square: 0.25, 0.0625, 0.0225, 0.01 over 0.345, so 0.72 of the
    # mass lies on the first; of the best two it is 0.8, so p = 0.79 keeps one after k = 2 only.
    params = DecodeParams(temperature=0.5, top_k=2, top_p=0.79)
    assert kept(filtered(LOGITS, params)) == [1]
    assert kept(filtered(LOGITS, DecodeParams(temperature=0.5, top_p=0.79))) == [1, 3]
    ratio = filtered(LOGITS, DecodeParams(temperature=0.5)).softmax(-1)[0]
    torch.testing.assert_close(ratio, torch.tensor([0.01, 0.25, 0.0225, 0.0625]) / 0.345)


def test_filtering_survives_forbidden_ids() -> None:
    logits = LOGITS.clone()
    logits[0, 1] = -INF
    for params in (DecodeParams(temperature=1, top_k=4), DecodeParams(temperature=1, top_p=0.99)):
        assert 1 not in kept(filtered(logits, params))


def test_gumbel_argmax_follows_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 20_000
    noise = gumbel_noise(torch.empty(draws, 4), generator)
    assert noise.isfinite().all()
    seen = Counter((LOGITS + noise).argmax(-1).tolist())
    expected = LOGITS[0].double().softmax(-1) * draws
    assert stats.chisquare([seen[i] for i in range(4)], expected.tolist()).pvalue > 1e-3
    assert abs(noise.mean() - 0.5772) < 0.02  # Euler's constant


def test_greedy_needs_no_noise_and_takes_the_best() -> None:
    sampler = Sampler(DecodeParams(temperature=0, top_k=1, top_p=0.1), "cpu")
    assert sampler.noise(LOGITS) is None
    assert sampler.draw(LOGITS, None).tolist() == [1]


@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-45, 1e-320])
@pytest.mark.parametrize("top_p", [None, 0.3])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float, top_p: float | None) -> None:
    params = DecodeParams(temperature=temperature, top_p=top_p)
    for logits in (LOGITS, LOGITS + 20):
        sampler = Sampler(params, "cpu")
        assert sampler.draw(logits, sampler.noise(logits)).tolist() == [1]


@given(st.integers(0, 2**63 - 1))
def test_a_seed_gives_the_same_noise_again(seed: int) -> None:
    one, two = (Sampler(DecodeParams(temperature=1, seed=seed), "cpu") for _ in range(2))
    first, second = one.noise(LOGITS), two.noise(LOGITS)
    assert first is not None
    assert second is not None
    assert torch.equal(first.piece(0, 1), second.piece(0, 1))


SHAPINGS = ({}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 50, "top_p": 0.9})


@pytest.mark.parametrize("knobs", SHAPINGS)
@pytest.mark.parametrize("vocab", [7, 33, 1280])
@pytest.mark.parametrize("rows", [1, 3, 8, 20, 100])
def test_by_pieces_as_whole(
    knobs: dict[str, Any], vocab: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many rows a piece has, the tokens are those of noise that is drawn and held whole."""
    monkeypatch.setattr(sampling, "PIECE", rows * vocab * (2 if "top_p" in knobs else 1))
    params = DecodeParams(temperature=0.8, seed=5, **knobs)
    sampler, generator = Sampler(params, "cpu"), torch.Generator().manual_seed(5)
    # Rounded, so that many are equal; and there are forbidden ids.
    d, t = (torch.randn(20, vocab).mul(4).round().div(2) for _ in range(2))
    d[:, 3] = t[:, 3] = -INF
    seen = d.clone(), t.clone()
    for _ in range(2):  # two steps of one generation
        g = gumbel_noise(d, generator)
        noise = sampler.noise(d)
        assert torch.equal(sampler.draw(d, noise), (filtered(d, params) + g).argmax(-1))
        for first, end in ((1, 20), (1, 5), (5, 20), (19, 20), (0, 20), (4, 4)):
            expected = (filtered(t[first:end], params) + g[first:end]).argmax(-1)
            assert torch.equal(sampler.draw(t[first:end], noise, first), expected)
    assert torch.equal(d, seen[0])
    assert torch.equal(t, seen[1])
    assert torch.equal(sampler.generator.get_state(), generator.get_state())


class Models:
    """A denoiser and a verifier in one, with logits of any size and nothing else."""

    mask_id, lookback, length = 3, 1, 0

    def __init__(self, vocab: int, verify_less: bool) -> None:
        self.vocab, self.verify_less = vocab, verify_less

    def logits(self, tokens: torch.Tensor, *at: int) -> torch.Tensor:
        # Asked as a denoiser by (start, first); as a verifier by (first), for one row more.
        return torch.randn(len(tokens) - at[-1] + 2 - len(at), self.vocab)

    def crop(self, length: int) -> None:
        pass


@pytest.mark.parametrize("knobs", SHAPINGS)
@pytest.mark.parametrize("verify_less", [False, True])
def test_a_sampled_step_holds_two_large_arrays(knobs: dict[str, Any], verify_less: bool) -> None:
    """Of [M, vocab]: the marginals and the verifier's logits. Beside them, pieces."""
    m, vocab = 32, 151_936
    shared, own = make_params(
        "apd", max_tokens=m, max_lookahead=m, mixture_weight=0.5, temperature=0.8, **knobs
    )
    models = Models(vocab, verify_less)
    canvas = Canvas.blank([5, 6, 7], m, models.mask_id)
    with torch.inference_mode(), LiveBytes() as live:
        commit = Apd(shared, own).step(canvas, Pair(models, models))
    assert commit.proposed == m
    two, piece = 2 * m * vocab * 4, PIECE * 4
    assert live.peak > two - vocab * 4
    assert live.peak < two + 2.25 * piece
    assert two > 9 * piece  # so that no third one hides among the pieces


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("temperature", -0.1),
        ("temperature", INF),
        ("temperature", 10**400),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("seed", -1),
        ("seed", 2**63),
        ("temperature", True),
    ],
)
def test_out_of_range_names_field_value_and_range(name: str, value: object) -> None:
    with pytest.raises(ParameterError) as caught:
        make_params("apd", **{name: value})
    assert caught.value.field == name
    assert repr(value) in str(caught.value)
    assert caught.value.allowed in str(caught.value)
