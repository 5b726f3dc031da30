"""Batches on a device whose kernels fail or lie: one warning, and never a wrong token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import apdcli
from apdcli.engine import batch_forward
from apdcli.engine.batch import run_batch
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request
from apdcli.errors import DeviceError
from apdcli.models.packed import Packed
from apdcli.models.rows import RowCache, Span, hidden_rows
from tests.engine.test_batch import PROMPTS, asked, timeless


@pytest.fixture
def fresh() -> LoadedPair:
    """A pair of its own: what failed is kept with the networks."""
    torch.set_num_threads(1)
    return apdcli.load_pair("demo", device="cpu", dtype="float32")


def requests_to(pair: LoadedPair) -> list[Request]:
    """Of several strategies, one of which sees what stands behind its window."""
    names = ("apd", "left_to_right", "autoregressive")
    rows = [asked(pair, text, name) for text, name in zip(PROMPTS, names, strict=False)]
    return [*rows, asked(pair, PROMPTS[0], "threshold", cache="dual", block_length=8)]


def assert_as_alone(requests: Sequence[Request], events: Sequence[Any]) -> None:
    for request, result in zip(requests, events, strict=True):
        assert timeless(result.events) == timeless(list(request.events()))


@pytest.mark.parametrize("failing", ["at once", "half way", "later"])
def test_a_forward_that_fails_is_the_eager_engines(
    fresh: LoadedPair, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    calls: list[int] = []

    def forward(net: Packed, cache: RowCache, spans: Sequence[Span]) -> Tensor:
        calls.append(len(spans))
        if net.net is not fresh.denoiser or (failing == "later" and len(calls) < 6):
            return hidden_rows(net, cache, spans)
        if failing == "half way":  # keys and values that are not the rows'
            for span in spans:
                cache.keys[:, span.row, :, span.start : span.end] = 7.0
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(batch_forward, "hidden_rows", forward)
    requests = requests_to(fresh)
    why = r"^batches do not work here \(no kernel image is available\); the eager engine goes on"
    with pytest.warns(RuntimeWarning, match=why) as told:
        results = list(run_batch(requests, 4))
    assert len(told) == 1
    assert_as_alone(requests, results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_as_alone(requests, list(run_batch(requests, 4)))


@pytest.mark.parametrize("wrong", [0.02, float("nan")])
def test_a_forward_that_lies_is_the_eager_engines(
    fresh: LoadedPair, monkeypatch: pytest.MonkeyPatch, wrong: float
) -> None:
    def lying(net: Packed, cache: RowCache, spans: Sequence[Span]) -> Tensor:
        made = hidden_rows(net, cache, spans)
        made[-1, ::3] += wrong
        return made

    monkeypatch.setattr(batch_forward, "hidden_rows", lying)
    monkeypatch.setattr(batch_forward, "checks", lambda device: True)
    requests = requests_to(fresh)
    with pytest.warns(RuntimeWarning, match="a row's first result is not the eager") as told:
        results = list(run_batch(requests, 4))
    assert len(told) == 2  # one a network
    assert_as_alone(requests, results)


@pytest.mark.parametrize("padded", [True, False])
def test_a_right_forward_is_compared_once_for_each_length(
    fresh: LoadedPair, monkeypatch: pytest.MonkeyPatch, padded: bool
) -> None:
    """And passes, as a GPU would run it too."""
    compared: list[Span] = []
    alone = batch_forward._alone

    def forward(net: Packed, cache: RowCache, spans: Sequence[Span]) -> Tensor:
        return hidden_rows(net, cache, spans, padded=padded)

    def counted(net: Packed, cache: RowCache, span: Span) -> Tensor:
        compared.append(span)
        return alone(net, cache, span)

    monkeypatch.setattr(batch_forward, "hidden_rows", forward)
    monkeypatch.setattr(batch_forward, "checks", lambda device: True)
    monkeypatch.setattr(batch_forward, "_alone", counted)
    requests = requests_to(fresh)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = list(run_batch(requests, 4))
        once = len(compared)
        list(run_batch(requests, 4))
    assert 4 <= once == len(compared) <= 16
    assert_as_alone(requests, results)


def test_a_full_device_is_no_failure(fresh: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(batch_forward, "hidden_rows", full)
    with pytest.raises(DeviceError, match="has no room for"):
        list(run_batch(requests_to(fresh), 4))
