"""Gumbel noise as a function of a key: known answers, the law, and pieces."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from apdcli.decode.noise import RUN, KeyedNoise, philox
from apdcli.decode.params import DecodeParams
from apdcli.decode.sampling import drawn, filtered

PARAMS = DecodeParams(temperature=1)


def keyed(
    vocab: int, seed: int = 5, number: int = 0, rows: int = 8, params: DecodeParams = PARAMS
) -> KeyedNoise:
    return KeyedNoise(params, torch.tensor([seed, number]), vocab, rows)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([2**32 - 1] * 4, [2**32 - 1] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_the_known_answers_of_philox(counter: list[int], key: list[int], words: list[int]) -> None:
    """Of Random123 1.09, kat_vectors: philox4x32, ten rounds."""
    made = philox([torch.tensor([c]) for c in counter], [torch.tensor(k) for k in key])
    assert [int(word) for word in made] == words


def test_it_is_gumbels() -> None:
    noise = keyed(50_000).piece(0, 4)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    assert stats.kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3


def test_neither_rows_nor_draws_nor_ids_nor_seeds_share_numbers() -> None:
    """Numbers have 23 random bits: of 16,384, some 16 have a twin by chance."""
    vocab = 4 * RUN
    rows = [keyed(vocab).piece(0, 2), keyed(vocab, number=1).piece(0, 1)]
    rows += [keyed(vocab, number=2**32).piece(0, 1), keyed(vocab, seed=6).piece(0, 1)]
    rows += [keyed(vocab, seed=5 + 2**32).piece(0, 1)]
    noise = torch.cat(rows)
    assert len(noise.unique()) > noise.numel() - 100
    for one, other in itertools.combinations(noise, 2):
        assert abs(torch.corrcoef(torch.stack((one, other)))[0, 1]) < 0.08  # five deviations


@given(
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**40),
    st.integers(1, 3 * RUN),
    st.integers(1, 5),
    st.tuples(st.integers(0, 9), st.integers(1, 9)).map(sorted),
)
@settings(max_examples=25, deadline=None)
def test_pieces_are_those_of_the_whole(
    seed: int, number: int, vocab: int, rows: int, part: list[int]
) -> None:
    whole = keyed(vocab, seed, number, rows=99).piece(0, 9)
    wider = keyed(vocab + 77, seed, number, rows=99).piece(0, 9)
    assert torch.equal(whole, wider[:, :vocab])  # however many ids there are
    noise = keyed(vocab, seed, number, rows)
    start, end = part
    cut = list(noise.pieces(start, end))
    assert [a for a, _ in cut[1:]] == [b for _, b in cut[:-1]]
    if start < end:
        made = torch.cat([noise.piece(a, b) for a, b in cut])
        assert torch.equal(made, whole[start:end])


def test_its_key_may_be_read_elsewhere() -> None:
    buffer = torch.tensor([1, 2])
    noise = keyed(40).at(buffer)
    assert noise.shaping == (1, None, None)
    first = noise.piece(0, 3)
    buffer.copy_(torch.tensor([5, 0]))
    assert not torch.equal(noise.piece(0, 3), first)
    assert torch.equal(noise.piece(0, 3), keyed(40).piece(0, 3))


def counted(ids: Tensor, vocab: int) -> list[int]:
    return torch.bincount(ids, minlength=vocab).tolist()


@pytest.mark.parametrize(
    "shaping", [{}, {"top_k": 3}, {"top_p": 0.7}, {"top_k": 4, "top_p": 0.9}], ids=str
)
def test_draws_follow_the_filtered_softmax(shaping: dict[str, float]) -> None:
    """4,000 positions of one draw and two draws' numbers of it: chi-square."""
    params = DecodeParams(temperature=0.7, seed=3, **shaping)  # type: ignore[arg-type]
    logits = torch.tensor([[0.3, 1.2, -0.5, 0.9, 0.0, -2.0, 1.1]]).expand(4000, -1)
    expected = filtered(logits[:1], params)[0].double().softmax(-1)
    for number in (0, 1):
        seen = counted(drawn(logits, params, keyed(7, 3, number, 512, params)), 7)
        pairs = [(s, 4000 * e) for s, e in zip(seen, expected.tolist(), strict=True)]
        assert all(s == 0 for s, e in pairs if e == 0)
        possible = [(s, e) for s, e in pairs if e > 0]
        assert stats.chisquare(*zip(*possible, strict=True)).pvalue > 1e-3
