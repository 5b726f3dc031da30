"""The eager engine: the shift, the cache after a crop, ids that may never be produced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apdcli
from apdcli.engine.eager import EagerDenoiser, EagerVerifier, banned_ids
from apdcli.errors import ParameterError, PromptError
from tests.conftest import DATA, MASK, VOCAB, Nets


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_cached_logits_equal_full_recomputation_after_any_crop(
    nets: Nets, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=40))
    tokens = torch.tensor(ids)
    verifier = nets.pair().verifier
    assert isinstance(verifier, EagerVerifier)
    with torch.inference_mode():
        whole = nets.pair().verifier.logits(tokens, 1)  # type: ignore[union-attr]
        length = 0
        for _ in range(4):
            end = data.draw(st.integers(length + 1, len(ids)), label="end")
            rows = verifier.logits(tokens[:end], length + 1)
            torch.testing.assert_close(rows, whole[length:end], atol=1e-5, rtol=0)
            length = data.draw(st.integers(0, end - 1), label="crop")
            verifier.crop(length)
            assert verifier.length == length


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_window_over_a_cached_prefix_equals_recomputing_it(
    nets: Nets, data: st.DataObject
) -> None:
    """With nothing changed between two forwards, only the window's end matters."""
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=40))
    start = data.draw(st.integers(1, len(ids) - 2))
    first = data.draw(st.integers(start + 1, len(ids) - 1))
    tokens = torch.tensor(ids)
    denoiser = nets.pair().denoiser
    with torch.inference_mode():
        whole = denoiser.logits(tokens, 0, first)
        denoiser.crop(start)
        window = denoiser.logits(tokens, start, first)
    assert window.shape == (len(ids) - first, VOCAB)
    torch.testing.assert_close(window, whole, atol=1e-5, rtol=1e-5)


def test_row_j_predicts_position_j_whatever_the_shift(nets: Nets) -> None:
    tokens = torch.tensor([5, 6, MASK, MASK])
    with torch.inference_mode():
        raw = nets.denoiser.head(nets.denoiser.hidden(tokens[None]))[0]
        rows = nets.pair().denoiser.logits(tokens, 0, 1)
    kept = [i for i in range(VOCAB) if i != MASK]
    torch.testing.assert_close(rows[:, kept], raw[:-1, kept])


def test_a_window_that_starts_too_late_is_an_error(nets: Nets) -> None:
    denoiser = nets.pair().denoiser
    with torch.inference_mode():
        denoiser.logits(torch.tensor([5, 6, 7, 8]), 0, 1)
        with pytest.raises(ValueError, match="before 2"):
            denoiser.logits(torch.tensor([5, 6, 7, 8]), 2, 2)


def test_banned_ids_are_never_finite(nets: Nets) -> None:
    banned = banned_ids(range(10, 20), 30, "cpu")
    engine = EagerDenoiser(nets.denoiser, banned, 8)
    with torch.inference_mode():
        rows = engine.logits(torch.tensor([5, MASK]), 0, 1)
    assert rows.shape == (1, 30)
    assert rows.isfinite().flatten().nonzero().flatten().tolist() == list(range(10, 20))


def test_public_denoiser_refuses_a_format_that_there_is_not() -> None:
    with pytest.raises(ParameterError, match="quantize = 'int3': it must be one of none, int8"):
        apdcli.load_denoiser(DATA / "hub_dream", quantize="int3")


def test_public_denoiser_bans_what_the_tokenizer_lacks() -> None:
    dream = apdcli.load_denoiser(DATA / "hub_dream", device="cpu", dtype="float32")
    rows = dream.logits([1, 2, 364])
    defined = apdcli.load_tokenizer(DATA / "hub_dream").defined_ids
    assert rows.shape == (3, 384)
    finite = rows.isfinite()
    assert finite[:, list(defined)].all()
    assert finite.sum() == 3 * len(list(defined))
    assert dream.logits([7]).shape == (1, 384)
    for bad in ([], [384], [-1], [1] * 2049):
        with pytest.raises(PromptError):
            dream.logits(bad)
