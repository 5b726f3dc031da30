"""The engine for CUDA on a CPU, with a recorder that replays kernels and not Python.

On a CPU `engine.static.record` gives back the function itself, and `test_fast.py` holds that engine
to the eager one's events. Here a recording is what it is on CUDA: the list of kernels that ran and
the memory that they ran on. Whatever Python decided while recording stays decided.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from apdcli.decode import sampling
from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, Pair, StepEvent
from apdcli.engine import fast, fused, graphs, layer, static
from apdcli.engine.choice import make_models
from apdcli.engine.eager import banned_ids
from apdcli.engine.graphs import GraphDenoiser, GraphVerifier
from apdcli.engine.sampling import KernelSampler
from apdcli.engine.static import needed_for, room_for
from apdcli.load.weights import load_transformer
from tests.conftest import DATA, EOS, MASK, VOCAB, Nets

BANNED = banned_ids((i for i in range(VOCAB) if i not in (MASK, 7, 458)), VOCAB, "cpu")
APD = {"mixture_weight": 0.5, "recompute_window": 4, "max_lookahead": 12}


def places(tree: Any) -> set[int]:
    """Where the memory of all tensors among the arguments begins."""
    tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor))
    return {x.untyped_storage().data_ptr() for x in tensors}


class Kernels(TorchDispatchMode):
    """Notes every operation that would be a kernel: all but those that only make views."""

    paused = False  # while a graph is replayed

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        writes = any(arg.alias_info and arg.alias_info.is_write for arg in func._schema.arguments)
        view = not writes and bool(places(out) & places((args, kwargs)))
        if not (view or "empty" in func.name() or Kernels.paused):
            self.ran.append((func, args, kwargs or {}, out))
        return out

    @property
    def names(self) -> Counter[str]:
        return Counter(func.name().removeprefix("aten::") for func, *_ in self.ran)


def by_kernels(function: Callable[[], Tensor], device: object, pool: object) -> Any:
    """`static.record` for a CPU: warm up, record, and from then on repeat the kernels."""
    function()
    function()
    with Kernels() as kernels:
        made = function()

    def replay() -> Tensor:
        for func, args, kwargs, out in kernels.ran:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    with _disable_current_modes():  # on CUDA it is written there at once
                        old.copy_(new)
        return made

    return replay


close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)


def argmax(logits: Tensor) -> Tensor:
    """`greedy` as it is on CUDA: numpy's, which a CPU takes, cannot be recorded."""
    return logits.argmax(dim=-1)


@pytest.fixture(autouse=True)
def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(graphs, "record", by_kernels)
    monkeypatch.setattr(sampling, "greedy", argmax)
    monkeypatch.setattr(fused, "greedy", argmax)
    monkeypatch.setattr(fused, "_failed", False)
    monkeypatch.setattr(fused, "_installed", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a graph that fails would hand over, and be right by that
        yield


@pytest.fixture
def own() -> Nets:
    """Networks that nothing was recorded of."""
    torch.set_num_threads(1)
    return Nets(
        *(
            load_transformer(DATA / "apd" / name, device="cpu", dtype=torch.float32)
            for name in ("denoiser", "verifier")
        )
    )


@dataclass
class Made:
    """A generation's events and what it ran on."""

    pair: Pair
    events: list[StepEvent | Finished] = field(default_factory=list)

    @property
    def denoiser(self) -> GraphDenoiser:
        assert isinstance(self.pair.denoiser, GraphDenoiser)
        return self.pair.denoiser

    @property
    def verifier(self) -> GraphVerifier:
        assert isinstance(self.pair.verifier, GraphVerifier)
        return self.pair.verifier


def generation(
    nets: Nets,
    engine: str,
    prompt: list[int],
    strategy: str = "apd",
    banned: Tensor = BANNED,
    keyed: bool = False,
    **values: Any,
) -> tuple[Made, Iterator[StepEvent | Finished]]:
    given = APD if strategy == "apd" else {}
    shared, params = make_params(strategy, **{"max_tokens": 24, **given, **values})
    canvas = Canvas.blank(prompt, shared.max_tokens, MASK)
    pair = make_models(engine, nets.denoiser, nets.verifier, banned, canvas.end)
    sampler = KernelSampler(shared, "cpu") if keyed else None
    chosen = make_strategy(strategy, shared, params, sampler)
    return Made(pair), decode(canvas, chosen, pair, stop_ids=frozenset({EOS}))


def made(nets: Nets, engine: str, prompt: list[int], strategy: str = "apd", **values: Any) -> Made:
    one, events = generation(nets, engine, prompt, strategy, **values)
    # On a CPU the eager verifier is shown drafts by parts: what it ran is not compared.
    same = {"elapsed_s": 0.0, "verifier_forwards": 0, "tokens_forwarded": 0}
    one.events = [replace(event, **same) for event in events]  # type: ignore[arg-type]
    return one


@pytest.mark.parametrize(
    ("strategy", "values"),
    [
        ("apd", {}),
        ("apd", {"mixture_weight": 0.0}),
        ("apd", {"max_lookahead": "auto", "max_tokens": 60}),
        ("apd", {"recompute_window": "all"}),
        ("apd", {"temperature": 0.8, "seed": 5}),
        ("left_to_right", {"k": 3}),
        ("autoregressive", {}),
        ("dico", {}),
        ("threshold", {"cache": "dual", "block_length": 8}),
    ],
)
@pytest.mark.parametrize("ahead", [True, False])
def test_recorded_kernels_give_the_eager_events(
    own: Nets,
    nets: Nets,
    prompts: list[list[int]],
    strategy: str,
    values: dict[str, Any],
    ahead: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a step's denoiser runs while the last one's event is looked at."""
    monkeypatch.setattr(GraphDenoiser, "asynchronous", ahead)
    for prompt in prompts[:2]:  # the second finds the graphs of the first
        mine = made(own, "graphs", prompt, strategy, **values)
        assert not own.denoiser.packed.graphs_failed  # type: ignore[union-attr]
        assert mine.events == made(nets, "eager", prompt, strategy, **values).events
    recorded = [*mine.denoiser.buffers.graphs, *mine.verifier.buffers.graphs]
    assert recorded


@pytest.mark.parametrize("shaping", [{}, {"top_k": 9}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.8}])
def test_a_sampled_step_is_recorded_too(
    own: Nets, nets: Nets, prompts: list[list[int]], shaping: dict[str, Any]
) -> None:
    """Verify, mix, filter, noise and accept: the noise's key is read at every replay."""
    seen = []
    for seed, prompt in zip((5, 2**40), prompts[:2], strict=True):
        values = {"temperature": 0.9, "seed": seed, "keyed": True, **shaping}
        mine = made(own, "graphs", prompt, **values)
        assert mine.events == made(nets, "eager", prompt, **values).events
        assert mine.events != made(own, "graphs", prompt).events
        seen += mine.events[:-1]
    assert any(1 < event.accepted < event.proposed for event in seen)  # type: ignore[union-attr]
    shapings = {key[-1] for key in mine.verifier.buffers.graphs if len(key) > 3}  # type: ignore[arg-type, index]
    assert shapings == {None, (0.9, shaping.get("top_k"), shaping.get("top_p"))}


def test_graphs_of_one_generation_forbid_what_the_next_one_may_not_say(
    own: Nets, nets: Nets, prompts: list[list[int]]
) -> None:
    first = made(own, "graphs", prompts[0])
    said = {id_ for event in first.events[:-1] for _, id_ in event.committed}  # type: ignore[union-attr]
    silent = BANNED.clone()
    silent[list(said - {EOS})] = True
    del first
    mine = made(own, "graphs", prompts[0], banned=silent)
    assert mine.events == made(nets, "eager", prompts[0], banned=silent).events
    assert not own.denoiser.packed.graphs_failed  # type: ignore[union-attr]


def test_a_layer_that_lies_is_recorded_anew_without_triton(
    own: Nets, nets: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On either model: the first result of a graph is the eager engine's or it is not used."""
    run, lying = static.run_layer, {"causal": False}

    def lies(packed: Any, weights: Any, x: Tensor, *rest: Any) -> Tensor:
        right = run(packed, weights, x, *rest)
        wrong = packed.net.config.causal == lying["causal"] and not fused._failed
        return right.mul_(-1.5) if wrong else right

    monkeypatch.setattr(static, "run_layer", lies)
    monkeypatch.setattr(layer, "_DTYPES", ())  # the real kernels are not asked
    monkeypatch.setattr(fused, "usable", lambda device: not fused._failed)
    monkeypatch.setattr(fused, "by_triton", fused.plain)
    for causal in (False, True):
        lying["causal"] = causal
        monkeypatch.setattr(fused, "_failed", False)
        for net in (own.denoiser, own.verifier):
            net.packed = None
        with pytest.warns(RuntimeWarning, match="first result is not the eager") as said:
            mine = made(own, "graphs", prompts[0])
        assert len(said) == 1
        assert mine.events == made(nets, "eager", prompts[0]).events
        assert not own.denoiser.packed.graphs_failed  # type: ignore[union-attr]
        assert not own.verifier.packed.graphs_failed  # type: ignore[union-attr]
        assert mine.denoiser.buffers.graphs
        assert mine.verifier.buffers.graphs


class Reads(TorchDispatchMode):
    """Notes the memory that operations read and that none of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, weakref.ref[Any]] = {}
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self._made:
                name = f"{func.name()} of {tuple(x.shape)} at {x.untyped_storage().data_ptr()}"
                self.found.setdefault(name, weakref.ref(x.untyped_storage()))
        self._made |= places(out) - places((args, kwargs))
        return out


class Replayed:
    """A recording that holds its function until it is let go, as a CUDA graph does at once."""

    def __init__(self, function: Callable[[], Tensor]) -> None:
        self.function: Callable[[], Tensor] | None = function

    def __call__(self) -> Tensor:
        assert self.function is not None
        return self.function()


def test_what_graphs_read_lives_as_long_as_they(
    own: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph holds no tensor: what it reads must be held by what holds the graph."""
    read: list[Reads] = []

    def record(function: Callable[[], Tensor], device: object, pool: object) -> Replayed:
        with Reads() as reads:
            function()
        read.append(reads)
        return Replayed(function)

    monkeypatch.setattr(graphs, "record", record)
    mine = made(own, "graphs", prompts[0], banned=BANNED.clone())
    recorded = [*mine.denoiser.buffers.graphs.values(), *mine.verifier.buffers.graphs.values()]
    assert len(recorded) == len(read) > 1
    for replayed in recorded:
        replayed.function = None  # type: ignore[attr-defined]
    del mine
    fast._places.cache_clear()
    gc.collect()
    assert own.denoiser.packed.spare_buffers  # type: ignore[union-attr]
    gone = [name for reads in read for name, memory in reads.found.items() if memory() is None]
    assert gone == []


def test_a_prompt_longer_than_any_graph(own: Nets, nets: Nets) -> None:
    prompt = [5 + n % 400 for n in range(300)]
    values = {"mixture_weight": 0.3, "max_lookahead": 16, "max_tokens": 60}
    mine = made(own, "graphs", prompt, **values)
    assert mine.events == made(nets, "eager", prompt, **values).events
    assert len(mine.events) < 3 or mine.verifier.buffers.graphs
    # Its marginals stand where those of the other steps do.
    assert mine.denoiser.buffers.logits.shape == (16, VOCAB)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_launches_and_copies_of_a_step(
    own: Nets, prompts: list[list[int]], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the graphs: ten launches and copies, and one copy to the host.

    Eight are seen here. With the two others the loop brings ids to the device and writes them to
    the canvas, which it does in another way on a CPU. At T > 0 two copies of the noise's key are
    among them, and in place of the greedy choice the kernels that draw, which are torch's here.
    """
    values = {"temperature": temperature, "keyed": True}
    made(own, "graphs", prompts[0], **values)  # everything is recorded
    monkeypatch.setattr(fused, "drawn", lambda d, noise, first: d.argmax(-1))
    counting: list[Kernels] = []
    read: list[str] = []

    def quiet(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            monkeypatch.setattr(Kernels, "paused", True)
            made = function()
            monkeypatch.setattr(Kernels, "paused", False)
            return made

        return replay

    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__index__"):
        plain = getattr(Tensor, name)

        def noted(self: Tensor, *rest: Any, _name: str = name, _plain: Any = plain) -> Any:
            read.append(_name)
            return _plain(self, *rest)

        monkeypatch.setattr(Tensor, name, noted)
    one, events = generation(own, "graphs", prompts[0], **values)
    for buffers in (one.denoiser.buffers, one.verifier.buffers):
        buffers.graphs = {key: quiet(function) for key, function in buffers.graphs.items()}
    next(events)
    next(events)
    for _ in range(2):
        with Kernels() as kernels:
            read.clear()
            next(events)
        counting.append(kernels)
        assert read == ["tolist", "numpy"]  # the latter writes to the canvas, on a CPU alone
    for kernels in counting:
        names = kernels.names
        names.pop("detach_", None)  # of `torch.tensor`, on the host
        names.pop("lift_fresh", None)  # the same
        keyed = 1 if temperature else 0  # its key comes to a CPU without a copy
        assert names == {
            "copy_": 5 + keyed,  # facts and window of both models, the draft
            "argmax": 1,  # the draft
            "cat": 2,  # text and draft for the verifier; draft and count for the host
        }


def test_a_step_holds_one_large_array(own: Nets, prompts: list[list[int]]) -> None:
    """Of [M, vocab] in float32: the marginals. Raw logits are not counted: of half the size."""
    one, events = generation(own, "graphs", prompts[0])
    for _ in range(3):
        next(events)
    with Kernels() as kernels:
        next(events)
    large = {
        x.untyped_storage().data_ptr()
        for *_, out in kernels.ran
        for x in tree_leaves(out)
        if isinstance(x, Tensor) and x.shape[-1:] == (VOCAB,) and len(x) > 8
    }
    assert one.denoiser.buffers.logits.untyped_storage().data_ptr() in large
    raw = 1  # the verifier's: in float32 these are as large
    assert len(large) == 1 + raw


def test_the_lookahead_that_grows_grows_the_buffer_seldom(own: Nets) -> None:
    buffers = graphs.Buffers.allocate(
        made(own, "graphs", [5, 6, 7], max_tokens=2).denoiser.packed, 64
    )
    sizes = []
    for rows in (24, 24, 32, 48, 64, 96, 256):
        buffers.graphs["of the old one"] = lambda: torch.empty(0)
        assert buffers.rows(rows, VOCAB).shape == (rows, VOCAB)
        sizes.append(len(buffers.logits))
        assert bool(buffers.graphs) == (len(sizes) > 1 and sizes[-1] == sizes[-2])
    assert sizes == [24, 24, 48, 48, 96, 96, 256]


@pytest.mark.parametrize("capacity", [1, 100, 192, 193, 1000, 4096, 32768])
def test_room_for_a_text(capacity: int) -> None:
    room = room_for(capacity)
    assert room >= needed_for(capacity)
    assert room % 8 == 0  # kernels that take a mask ask for it
    assert room - needed_for(capacity) < max(256, capacity / 8)
    assert needed_for(capacity) > capacity  # the padding of a window at the text's end


def test_a_power_of_two_takes_hardly_more_than_itself() -> None:
    for capacity in (256, 1024, 4096, 32768):
        assert room_for(capacity) == capacity + static.SPARE


def test_a_text_that_fills_the_context(own: Nets, nets: Nets) -> None:
    """Behind it stands the padding of the last windows, which has no angle of its own."""
    for net in (own.denoiser, own.verifier):
        assert net is not None
        net.config = replace(net.config, max_positions=256)
        net.refresh_rope("cpu")
    tokens = torch.tensor([5 + n % 400 for n in range(256)])
    mine, eager = (
        make_models(engine, one.denoiser, one.verifier, BANNED, 256)
        for engine, one in (("graphs", own), ("eager", nets))
    )
    assert isinstance(mine.denoiser, GraphDenoiser)
    assert len(mine.denoiser.buffers.cos) == mine.denoiser.cache.capacity == 256 + static.SPARE
    assert mine.verifier is not None
    assert eager.verifier is not None
    with torch.inference_mode():
        for start, end in ((0, 230), (229, 256)):  # the latter runs 27 positions, padded to 32
            given = tokens[:end], start, end - 20
            close(mine.denoiser.logits(*given), eager.denoiser.logits(*given))
            close(mine.verifier.logits(*given[::2]), eager.verifier.logits(*given[::2]))
            for pair in (mine, eager):
                assert pair.verifier is not None
                pair.verifier.crop(229)
    assert len(mine.denoiser.buffers.graphs) == 2


def test_padding_writes_to_one_place_behind_the_text(own: Nets) -> None:
    one, events = generation(own, "graphs", [5 + n for n in range(30)])
    next(events)
    for model in (one.denoiser, one.verifier):
        both = model.buffers.cache.both
        both.fill_(7.0)
        model.buffers.load(torch.arange(5, 26), 10, 10)
        static.answer(model.packed, model.buffers, model.packed.head, 24, 8, 256)
        written = (both != 7.0).any(dim=(0, 1, 2, 4)).nonzero().flatten()
        assert written.tolist() == list(range(10, 22))  # eleven positions, and one behind them


def test_shorter_buffers_are_dropped_when_a_longer_text_comes(own: Nets) -> None:
    first = made(own, "graphs", [5, 6, 7])
    spare: list[Any] = first.denoiser.packed.spare_buffers
    del first
    assert len(spare) == 1
    capacity = spare[0].cache.capacity
    second = made(own, "graphs", [5 + n % 400 for n in range(capacity)])
    assert spare == []
    assert second.denoiser.cache.capacity > capacity


def test_marginals_of_another_engine_are_judged_without_a_graph(
    own: Nets, nets: Nets, prompts: list[list[int]]
) -> None:
    """A denoiser whose graphs failed answers with new arrays: none of them is recorded."""
    eager = made(nets, "eager", prompts[0]).events
    made(own, "fast", prompts[0])  # packs
    packed: Any = own.denoiser.packed
    packed.graphs_failed = True
    mine = made(own, "graphs", prompts[0])
    assert mine.events == eager
    kept = len(mine.verifier.buffers.graphs)
    # An allocator may give the same place twice; then, and only then, a graph may read it.
    assert kept <= len(mine.events) // 2


def test_a_kernel_that_lies_is_replaced_with_one_warning(
    own: Nets, nets: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first count of every graph is torch's, or Triton is not asked again."""
    eager = [made(nets, "eager", prompt).events for prompt in prompts[:2]]
    monkeypatch.setattr(fused, "_installed", lambda: True)
    monkeypatch.setattr(fused, "_interpreted", lambda: True)

    monkeypatch.setattr(layer, "_DTYPES", ())  # a layer's kernels are not asked
    lied = []

    def lies(*args: Any) -> Tensor:
        lied.append(1)
        return fused.plain(*args) + 1

    monkeypatch.setattr(fused, "by_triton", lies)
    # Outside graphs nobody compares: the first steps' counts are right here.
    honest = fused.accepted
    state = {"recording": False}

    def accepted(*args: Any) -> Tensor:
        return honest(*args) if state["recording"] else fused.plain(*args)

    def recording(function: Callable[[], Tensor], device: object, pool: object) -> Any:
        state["recording"] = True
        try:
            return by_kernels(function, device, pool)
        finally:
            state["recording"] = False

    monkeypatch.setattr(fused, "accepted", accepted)
    monkeypatch.setattr(graphs, "record", recording)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        mine = [made(own, "graphs", prompt).events for prompt in prompts[:2]]
    (said,) = seen
    assert "Triton does not work here (its first count is not torch's)" in str(said.message)
    assert lied
    assert mine == eager
    assert not own.verifier.packed.graphs_failed  # type: ignore[union-attr]


def test_memory_that_runs_out_is_no_broken_graph(
    own: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eager engine would need more still: who called says what to lower."""

    def full(*args: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(graphs, "record", full)
    _, events = generation(own, "graphs", prompts[0])
    with pytest.raises(torch.OutOfMemoryError):
        next(events)
    assert not own.denoiser.packed.graphs_failed  # type: ignore[union-attr]


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs triton and TRITON_INTERPRET=1",
)
def test_the_kernels_within_the_engine(
    own: Nets, nets: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "_installed", lambda: True)
    monkeypatch.setattr(graphs, "record", static.record)  # the interpreter cannot be recorded
    seen: list[int] = []
    kernels = fused.by_triton

    def noted(*args: Any) -> Tensor:
        seen.append(len(args[2]))
        return kernels(*args)

    monkeypatch.setattr(fused, "by_triton", noted)
    mine = made(own, "graphs", prompts[0])
    assert mine.events == made(nets, "eager", prompts[0]).events
    assert seen
    assert fused.usable(torch.device("cpu"))  # none failed
    packed: Any = own.verifier.packed
    assert not packed.graphs_failed
