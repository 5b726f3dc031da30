"""The growth command measures: figures in order, the same weights for the causal run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from apdcli.bench import forward as forward_module
from apdcli.bench import growth as module
from apdcli.bench.growth import arithmetic, around, main, until
from apdcli.decode.strategies.apd import Apd
from apdcli.decode.types import StepEvent
from apdcli.engine.pair import load_pair


def step(number: int, accepted: int, elapsed_s: float) -> StepEvent:
    return StepEvent(number, (), accepted, accepted, 0, 0, 0, 0, elapsed_s)


def test_a_stretch_around_a_token() -> None:
    steps = [step(n, 5, 0.01 * n) for n in range(1, 21)]
    assert around(steps, 50, 20) == pytest.approx((0.04, 20, 4))
    assert until(steps, 48) == pytest.approx((0.1, 50))
    with pytest.raises(ValueError, match="200 tokens"):
        around(steps, 200, 20)
    with pytest.raises(ValueError, match="200 tokens"):
        until(steps, 200)


def test_arithmetic_counts_what_a_longer_text_adds() -> None:
    """Only attention grows: 4 operations a channel and (query, key) pair."""
    pair = load_pair("demo", device="cpu")
    assert pair.verifier is not None
    positions = 2 + 16 - 1 + 32
    pairs = {pair.denoiser.config: positions * 900, pair.verifier.config: 31 * 900}
    more = sum(4 * c.num_layers * c.num_heads * c.head_dim * n for c, n in pairs.items())
    assert arithmetic(pair, 1000, 2) - arithmetic(pair, 100, 2) == pytest.approx(more)


@pytest.mark.parametrize("what", ["growth", "lookahead", "causal"])
def test_each_measure(capsys: pytest.CaptureFixture[str], what: str) -> None:
    sizes = ["--near", "80", "--far", "160", "--tokens", "12", "--repeats", "1"]
    assert main([what, "--device", "cpu", *sizes]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["what"] == what
    assert found["engine"] == "fast"
    figures = found.get("tokens_a_second") or found["ms_a_step"]
    assert all(value > 0 for value in figures.values())


def test_a_forward_against_its_arithmetic(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its operations are the products that torch counts, and attention's, which it does not."""
    monkeypatch.setattr(forward_module, "PRODUCT_S", 0.01)
    assert main(["forward", "--device", "cpu", "--positions", "24", "--repeats", "1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    pair = load_pair("demo", device="cpu", engine="eager")
    config, denoiser = pair.denoiser.config, pair.models(24).denoiser
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        denoiser.logits(torch.full((24,), denoiser.mask_id), 0, 0)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * 24 * 24
    assert found["operations"] == counter.get_total_flops() + attention
    least = 1e3 * found["operations"] / found["operations_a_second"]
    assert found["ratio"]["median"] == pytest.approx(found["ms"] / least)
    with pytest.raises(SystemExit):
        main(["forward", "--device", "cpu", "--positions", "2000"])
    assert "--positions 2000: the context holds 1024" in capsys.readouterr().err


def test_growth_with_so_many_tokens_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--near", "40", "--far", "80", "--repeats", "1", "--accept", "3"]
    assert main(["growth", "--device", "cpu", *sizes]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["accept"] == 3
    # the last step of a stretch may find less room
    assert found["tokens_a_step"] == pytest.approx({"40": 3, "80": 3}, abs=0.2)


def verified(capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    """Drafts verified whole and by parts."""
    sizes = ["--tokens", "24", "--repeats", "1", *more]
    status = main(["verify_less", "--device", "cpu", *sizes])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, found


@pytest.mark.parametrize("accept", [0, 3])
def test_drafts_verified_whole_and_by_parts(
    capsys: pytest.CaptureFixture[str], accept: int
) -> None:
    status, found = verified(capsys, "--accept", str(accept))
    assert (status, found["equal"], found["accept"]) == (0, True, accept or None)
    rows = found["settings"]
    assert [(row["texts"], row["lookahead"]) for row in rows] == [
        (texts, m) for texts in ("answers", "endless") for m in (32, 100)
    ]
    for row in rows:
        whole, parts, ratio = row["whole"], row["parts"], row["ratio"]
        assert all(value > 0 for way in (whole, parts) for value in way.values())
        assert parts["verifier_positions"] <= whole["verifier_positions"]
        assert parts["verifier_forwards"] >= whole["verifier_forwards"]
        assert ratio["low"] <= ratio["median"] <= ratio["high"]
    for row in rows[2:]:  # of many steps
        assert row["parts"]["verifier_positions"] < 0.9 * row["whole"]["verifier_positions"]
        if accept:  # the first part is always enough
            assert row["tokens_a_step"] == pytest.approx(accept, abs=0.2)
            assert row["parts"]["verifier_forwards"] == row["whole"]["verifier_forwards"]


def test_parts_that_accept_otherwise_are_found(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VERIFIED", (32,))
    monkeypatch.setattr(Apd, "_by_parts", lambda *given: 1)
    status, found = verified(capsys)
    assert (status, found["equal"]) == (1, False)


@pytest.mark.parametrize(
    ("more", "said", "status"),
    [
        (["--repeats", "0"], "--repeats 0: it must be at least 1", 2),
        (["--accept", "-1"], "--accept -1: it must be at least 0", 2),
        (["--profile", "no-such"], "apd: no profile is called 'no-such'", 1),
    ],
)
def test_bad_input(
    more: list[str], said: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["verify_less", *more])
    assert left.value.code == status
    assert said in capsys.readouterr().err.splitlines()[-1]
