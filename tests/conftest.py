"""Fixtures shared by all tests: the small reference pair and a decoder over it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.engine.eager import EagerDenoiser, EagerVerifier, banned_ids
from apdcli.load.weights import load_transformer
from apdcli.models.transformer import Transformer

DATA = Path(__file__).parent / "data"
MASK, EOS, VOCAB = 3, 0, 460


@dataclass(frozen=True)
class Decoded:
    """What one generation did."""

    ids: list[int]
    accepted: list[int]
    events: list[StepEvent]
    finished: Finished


@dataclass(frozen=True)
class Nets:
    """The reference pair's networks."""

    denoiser: Transformer
    verifier: Transformer

    def pair(self, capacity: int = 256) -> Pair:
        """Both models with empty caches."""
        banned = banned_ids((i for i in range(VOCAB) if i != MASK), VOCAB, "cpu")
        return Pair(
            EagerDenoiser(self.denoiser, banned, capacity),
            EagerVerifier(self.verifier, banned, capacity),
        )


@pytest.fixture(autouse=True)
def _subnormals() -> Iterator[None]:
    """The commands flush subnormal numbers in their process, which here is that of all tests."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(scope="session")
def nets() -> Nets:
    """The reference pair in float32 on the CPU."""
    torch.set_num_threads(1)
    return Nets(
        *(
            load_transformer(DATA / "apd" / name, device="cpu", dtype=torch.float32)
            for name in ("denoiser", "verifier")
        )
    )


@pytest.fixture(scope="session")
def golden() -> list[dict[str, Any]]:
    """What the APD authors' code does on the reference pair."""
    return json.loads((DATA / "apd" / "golden.json").read_text())["cases"]


@pytest.fixture(scope="session")
def prompts(golden: list[dict[str, Any]]) -> list[list[int]]:
    """The distinct prompts of the golden cases, after the chat template."""
    return [list(ids) for ids in dict.fromkeys(tuple(c["prompt_ids"]) for c in golden)]


@pytest.fixture(scope="session")
def run(nets: Nets) -> Callable[..., Decoded]:
    """Decode a prompt of ids: run(prompt_ids, strategy="apd", **parameters)."""

    def run(prompt: list[int], strategy: str = "apd", **values: Any) -> Decoded:
        values = {"max_tokens": 48, "stop_ids": frozenset({EOS}), **values}
        shared, own = make_params(strategy, **values)
        canvas = Canvas.blank(prompt, shared.max_tokens, MASK)
        *steps, last = decode(
            canvas,
            make_strategy(strategy, shared, own),
            nets.pair(canvas.end),
            stop_ids=shared.stop_ids,
        )
        assert isinstance(last, Finished)
        events = [e for e in steps if isinstance(e, StepEvent)]
        assert canvas.tokens[: len(prompt)].tolist() == prompt, "the prompt was changed"
        positions = [p for e in events for p, _ in e.committed]
        assert len(positions) == len(set(positions)), "a position was committed twice"
        ids = [t for _, t in sorted(pt for e in events for pt in e.committed)]
        return Decoded(ids, [e.accepted for e in events], events, last)

    return run
