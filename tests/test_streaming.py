"""The text piece by piece: joined it is the answer, for every strategy and stop string."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import apdcli
from apdcli.decode.params import STRATEGIES
from tests.conftest import DATA

QUESTION = "Gia has 25 coins. Gia gives 5 coins to Jon. How many coins are left?"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> apdcli.LoadedPair:
    file = tmp_path_factory.mktemp("profile") / "reference.toml"
    models = {role: (DATA / "apd" / role).as_posix() for role in ("denoiser", "verifier")}
    file.write_text("".join(f'[{role}]\nmodel = "{model}"\n' for role, model in models.items()))
    torch.set_num_threads(1)
    return apdcli.load_pair(Path(file))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_pieces_joined_are_the_text(pair: apdcli.LoadedPair, strategy: str) -> None:
    # Warm texts of such a small model hold bytes that are no character.
    for temperature in (0.0, 2.0):
        asked: dict[str, Any] = {"strategy": strategy, "max_tokens": 12, "seed": 5}
        asked["temperature"] = temperature
        whole = apdcli.generate(pair, QUESTION, **asked).text
        pieces = list(apdcli.stream_text(pair, QUESTION, **asked))
        assert "".join(pieces) == whole
        assert all(pieces)
        # One that comes, one that only begins, one that never does.
        asked["stop"] = [whole[7:9] or "x", whole[2:4] + "\x00", "@@"]
        done = apdcli.generate(pair, QUESTION, **asked)
        assert "".join(apdcli.stream_text(pair, QUESTION, **asked)) == done.text


def test_it_comes_as_it_settles(pair: apdcli.LoadedPair) -> None:
    steps = apdcli.generate(pair, QUESTION, strategy="autoregressive", max_tokens=12).usage.steps
    pieces = list(apdcli.stream_text(pair, QUESTION, strategy="autoregressive", max_tokens=12))
    assert 1 < len(pieces) <= steps


def test_closed_early_it_leaves_the_pair_usable(pair: apdcli.LoadedPair) -> None:
    before = apdcli.generate(pair, QUESTION, max_tokens=12)
    pieces = cast("Generator[str]", apdcli.stream_text(pair, QUESTION, strategy="autoregressive"))
    first = next(pieces)
    pieces.close()
    assert first
    assert list(pieces) == []
    assert apdcli.generate(pair, QUESTION, max_tokens=12).token_ids == before.token_ids


def test_everything_is_checked_before_the_first_piece(pair: apdcli.LoadedPair) -> None:
    with pytest.raises(apdcli.PromptError):
        apdcli.stream_text(pair, "")
    with pytest.raises(apdcli.UnknownParameterError):
        apdcli.stream_text(pair, "x", mixing=1)
    assert "stream_text" in (apdcli.stream.__doc__ or "")
