"""The fast and the graphs engine against the readable one: same logits, same greedy events."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apdcli
from apdcli.decode.loop import decode
from apdcli.decode.params import STRATEGIES, make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.engine import graphs
from apdcli.engine.choice import make_models, resolve_engine
from apdcli.engine.eager import banned_ids
from apdcli.engine.graphs import Buffers, GraphDenoiser, bucket
from apdcli.engine.pair import LoadedPair
from apdcli.errors import DeviceError
from apdcli.load.weights import load_transformer
from tests.conftest import DATA, EOS, MASK, VOCAB, Nets

ENGINES = ("fast", "graphs")
BANNED = banned_ids((i for i in range(VOCAB) if i not in (MASK, 7, 458)), VOCAB, "cpu")


@pytest.fixture(scope="module")
def own() -> Nets:
    """Networks that only these tests pack."""
    torch.set_num_threads(1)
    return Nets(
        *(
            load_transformer(DATA / "apd" / name, device="cpu", dtype=torch.float32)
            for name in ("denoiser", "verifier")
        )
    )


@pytest.fixture(autouse=True)
def _no_fallback() -> Iterator[None]:
    """A graph that fails would hand over to the eager engine, and be right by that."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def events(
    nets: Nets, engine: str, prompt: list[int], strategy: str, whole: bool = False, **values: Any
) -> list[StepEvent | Finished]:
    """What decoding gives; `whole` drafts are verified as on a GPU, not by parts."""
    shared, params = make_params(strategy, **{"max_tokens": 32, **values})
    canvas = Canvas.blank(prompt, shared.max_tokens, MASK)
    models = make_models(engine, nets.denoiser, nets.verifier, BANNED, canvas.end)
    if whole:
        models.verifier.verify_less = False  # type: ignore[union-attr]
    made = decode(
        canvas, make_strategy(strategy, shared, params), models, stop_ids=frozenset({EOS})
    )
    return [replace(event, elapsed_s=0.0) for event in made]


def assert_as_eager(
    own: Nets, nets: Nets, engine: str, prompt: list[int], strategy: str, **values: Any
) -> None:
    """The same events to the last counter. Graphs verify whole drafts, wherever they run."""
    mine, eager = (
        events(of, name, prompt, strategy, whole=engine == "graphs", **values)
        for of, name in ((own, engine), (nets, "eager"))
    )
    assert mine == eager


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_cases_of_the_published_code(
    own: Nets, golden: list[dict[str, Any]], engine: str
) -> None:
    for case in golden[::11]:
        names = ("mixture_weight", "recompute_window", "max_lookahead", "max_tokens")
        banned = banned_ids((i for i in range(VOCAB) if i != MASK), VOCAB, "cpu")
        shared, params = make_params("apd", **{name: case[name] for name in names})
        canvas = Canvas.blank(case["prompt_ids"], shared.max_tokens, MASK)
        models = make_models(engine, own.denoiser, own.verifier, banned, canvas.end)
        strategy = make_strategy("apd", shared, params)
        *steps, _ = decode(canvas, strategy, models, stop_ids=frozenset({EOS}))
        assert [t for step in steps for _, t in step.committed] == case["token_ids"]  # type: ignore[union-attr]
        assert [step.accepted for step in steps] == case["accepted"]  # type: ignore[union-attr]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_greedy_events_of_every_strategy(
    own: Nets, nets: Nets, prompts: list[list[int]], engine: str, strategy: str
) -> None:
    for prompt in prompts[:2]:
        assert_as_eager(own, nets, engine, prompt, strategy)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "values",
    [
        {"mixture_weight": 0.0},
        {"mixture_weight": 1.0},
        {"recompute_window": "all"},
        {"max_lookahead": "all", "max_tokens": 90},
        {"max_lookahead": 1},
        {"max_lookahead": "auto", "max_tokens": 90},
        {"temperature": 0.8, "seed": 5},
    ],
)
def test_the_corners_of_apd(
    own: Nets, nets: Nets, prompts: list[list[int]], engine: str, values: dict[str, Any]
) -> None:
    assert_as_eager(own, nets, engine, prompts[1], "apd", **values)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_block_caches(
    own: Nets, nets: Nets, prompts: list[list[int]], engine: str, cache: str
) -> None:
    values = {"cache": cache, "block_length": 8}
    assert_as_eager(own, nets, engine, prompts[0], "threshold", **values)


def both(own: Nets, nets: Nets, engine: str) -> tuple[Pair, Pair]:
    made = make_models(engine, own.denoiser, own.verifier, BANNED, 64)
    return made, make_models("eager", nets.denoiser, nets.verifier, BANNED, 64)


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_logits_after_any_crop(own: Nets, nets: Nets, engine: str, data: st.DataObject) -> None:
    ids = torch.tensor(data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=3, max_size=60)))
    pairs = both(own, nets, engine)
    length = 0
    with torch.inference_mode():
        for _ in range(3):
            end = data.draw(st.integers(length + 1, len(ids)), label="end")
            first = data.draw(st.integers(length + 1, end), label="first")
            start = data.draw(st.integers(0, max(length - 1, 0)), label="start")
            wanted = data.draw(st.integers(start, end - 1), label="wanted")
            wanted = 0 if end == 1 else max(wanted, start + 1)
            for mine, eager in (
                [pair.verifier.logits(ids[:end], first) for pair in pairs],  # type: ignore[union-attr]
                [pair.denoiser.logits(ids[:end], start, wanted) for pair in pairs],
            ):
                torch.testing.assert_close(mine, eager, atol=3e-5, rtol=0)  # logits up to 20
            length = data.draw(st.integers(0, end - 1), label="crop")
            for model in (model for pair in pairs for model in (pair.verifier, pair.denoiser)):
                assert model is not None
                model.crop(length)
                assert model.length == length


@pytest.mark.parametrize("engine", ENGINES)
def test_position_0_and_a_window_that_starts_too_late(own: Nets, nets: Nets, engine: str) -> None:
    mine, eager = both(own, nets, engine)
    with torch.inference_mode():
        for tokens in (torch.tensor([5]), torch.tensor([5, MASK, MASK])):
            torch.testing.assert_close(
                mine.denoiser.logits(tokens, 0, 0), eager.denoiser.logits(tokens, 0, 0)
            )
        with pytest.raises(ValueError, match="before 2"):
            mine.denoiser.logits(torch.tensor([5, 6, 7, 8]), 2, 2)


def test_the_embedded_pair_runs_fast_and_equal() -> None:
    torch.set_num_threads(1)
    pair = apdcli.load_pair(device="cpu", dtype="float32")
    assert pair.engine == "fast"
    plain = apdcli.load_pair(device="cpu", dtype="float32", engine="eager")
    for prompt in ("Sort: 9 4 7 1", "Gia has 25 coins and gives 5 to Jon. How many are left?"):
        for values in ({}, {"strategy": "dico"}, {"mixture_weight": 0.5, "max_lookahead": 32}):
            fast, eager = (
                [
                    replace(e, elapsed_s=0.0)
                    for e in apdcli.stream(p, prompt, max_tokens=48, **values)
                ]
                for p in (pair, plain)
            )
            assert fast == eager


def test_llada_untied_and_tied(tmp_path: Path) -> None:
    """No biases, no shift, no groups."""
    two = [
        load_transformer(DATA / "hub_llada", device="cpu", dtype=torch.float32) for _ in range(2)
    ]
    width = two[0].config.vocab_size
    banned = banned_ids((i for i in range(width) if i != two[0].config.mask_id), width, "cpu")
    tokens = torch.randint(0, width, (40,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for start, first in ((0, 0), (0, 7), (20, 20), (20, 31)):
            rows = [
                make_models(engine, net, None, banned, 64).denoiser
                for engine, net in zip(("eager", "fast"), two, strict=True)
            ]
            for model in rows:
                model.logits(tokens, 0, 1)
            a, b = (model.logits(tokens, start, first) for model in rows)
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_two_generations_at_once_do_not_share_buffers(own: Nets, prompts: list[list[int]]) -> None:
    shared, params = make_params("apd", max_tokens=32)

    def start(prompt: list[int]) -> Iterator[StepEvent | Finished]:
        canvas = Canvas.blank(prompt, 32, MASK)
        models = make_models("graphs", own.denoiser, own.verifier, BANNED, canvas.end)
        return decode(canvas, make_strategy("apd", shared, params), models)

    alone = [[e.committed for e in list(start(p))[:-1]] for p in prompts[:2]]  # type: ignore[union-attr]
    going = [start(p) for p in prompts[:2]]
    mixed: list[list[Any]] = [[], []]
    for _ in range(40):
        for events, seen in zip(going, mixed, strict=True):
            event = next(events, None)
            if isinstance(event, StepEvent):
                seen.append(event.committed)
    assert mixed == alone


def test_buffers_are_given_back_and_graphs_kept(own: Nets, prompts: list[list[int]]) -> None:
    events(own, "graphs", prompts[0], "apd")
    gc.collect()
    spare: list[Buffers] = own.denoiser.packed.spare_buffers
    count, recorded = len(spare), sum(len(b.graphs) for b in spare)
    assert recorded
    events(own, "graphs", prompts[0], "apd")
    gc.collect()
    assert (len(spare), sum(len(b.graphs) for b in spare)) == (count, recorded)


@pytest.mark.parametrize("failure", ["raises", "lies"])
def test_a_graph_that_fails_gives_one_warning_and_the_right_tokens(
    nets: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    broken = Nets(
        *(
            load_transformer(DATA / "apd" / name, device="cpu", dtype=torch.float32)
            for name in ("denoiser", "verifier")
        )
    )

    def record(function: Any, device: Any, pool: Any) -> Any:
        if failure == "raises":
            raise RuntimeError("no such kernel\nand more")
        return lambda: function().neg_()

    monkeypatch.setattr(graphs, "record", record)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        made = [events(broken, "graphs", prompt, "left_to_right", k=4) for prompt in prompts[:2]]
    assert len(seen) == 1
    assert "eager" in str(seen[0].message)
    assert "\n" not in str(seen[0].message)
    assert made == [events(nets, "eager", p, "left_to_right", k=4) for p in prompts[:2]]


def test_buckets_hold_what_they_are_asked_for() -> None:
    assert [bucket(n) for n in (1, 2, 8, 9, 116, 256, 257)] == [1, 8, 8, 16, 128, 256, None]


def test_a_long_text_grows_its_keys(own: Nets, nets: Nets) -> None:
    """Past one bucket of keys, and a prompt too long for any graph."""
    prompt = [5 + n % 400 for n in range(300)]
    values = {"max_tokens": 60, "mixture_weight": 0.3, "max_lookahead": 16}
    assert_as_eager(own, nets, "graphs", prompt, "apd", **values)
    model = make_models("graphs", own.denoiser, None, BANNED, 360).denoiser
    assert isinstance(model, GraphDenoiser)
    assert model.cache.capacity >= 360 + 63  # a window padded from 193 to 256


def test_which_engine_is_chosen(own: Nets) -> None:
    assert resolve_engine("auto", [own.denoiser, own.verifier]) == "fast"
    assert resolve_engine("eager", [own.denoiser]) == "eager"
    half = load_transformer(DATA / "apd" / "verifier", device="cpu", dtype=torch.bfloat16)
    assert resolve_engine("auto", [own.denoiser, half]) == "eager"
    assert half.packed is None
    with pytest.raises(DeviceError, match=r"fast.*float32, not bfloat16"):
        resolve_engine("fast", [half])
    with pytest.raises(DeviceError, match=r"graphs.*CUDA.*cpu"):
        resolve_engine("graphs", [own.denoiser])
    with pytest.raises(DeviceError, match="use auto, eager, fast, graphs"):
        resolve_engine("quick", [own.denoiser])


def test_the_engine_is_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    text = "\n".join(
        f'[{role}]\nmodel = "{(DATA / "apd" / role).as_posix()}"'
        for role in ("denoiser", "verifier")
    )
    file.write_text(f'engine = "eager"\n{text}\n')
    assert apdcli.load_pair(str(file), device="cpu").engine == "eager"
    assert apdcli.load_pair(str(file), device="cpu", engine="fast").engine == "fast"
    file.write_text(text)
    pair = apdcli.load_pair(str(file), device="cpu")
    assert isinstance(pair, LoadedPair)
    assert pair.engine == "fast"
    with pytest.raises(apdcli.ApdError, match="auto, eager, fast, graphs"):
        apdcli.load_pair(str(file), engine="quick")
