"""A layer's small kernels against torch's own operations, and within the graph engine.

The kernels run on Triton's interpreter: `TRITON_INTERPRET=1 python -m pytest
tests/engine/test_layer.py` where triton is installed; on CUDA they are compiled.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import apdcli.engine
from apdcli.bench.shapes import random_transformer
from apdcli.decode.loop import decode
from apdcli.decode.params import make_params
from apdcli.decode.strategies import make_strategy
from apdcli.decode.types import Canvas, Finished, StepEvent
from apdcli.engine import fused, layer
from apdcli.engine.choice import make_models
from apdcli.engine.eager import banned_ids
from apdcli.engine.static import BUCKETS, Buffers, Window, answer, run_layer
from apdcli.load.weights import load_transformer
from apdcli.models.config import ModelConfig
from apdcli.models.packed import Packed
from apdcli.models.quantized_packed import pack
from tests.conftest import DATA, EOS, MASK, VOCAB, Nets
from tests.engine.test_graphs import Kernels

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
INSTALLED = importlib.util.find_spec("triton") is not None
DEVICE = torch.device("cuda" if CUDA and not INTERPRETED else "cpu")
needs_kernels = pytest.mark.skipif(
    not INSTALLED or not (CUDA or INTERPRETED),
    reason="needs triton, and CUDA or TRITON_INTERPRET=1",
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
every_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test's failure is the next one's; a warning is an error; bfloat16 rounds to nearest."""
    torch.set_num_threads(1)
    monkeypatch.setattr(fused, "_failed", False)
    if INSTALLED and INTERPRETED:
        from triton.runtime import interpreter

        cut = interpreter._convert_float

        def nearest(data: Any, given: Any, wanted: Any, mode: Any) -> Any:
            """As a GPU does: the interpreter cuts off what does not fit."""
            if (given.name, wanted.name) != ("fp32", "bf16"):
                return cut(data, given, wanted, mode)
            made = torch.from_numpy(data.copy()).to(torch.bfloat16)
            return made.view(torch.int16).numpy().view("uint16")

        monkeypatch.setattr(interpreter, "_convert_float", nearest)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings(
            "ignore", "overflow encountered in exp"
        )  # numpy's; 1 / inf is right
        yield


@pytest.fixture
def kernels() -> Any:
    """The module of the kernels, which needs triton."""
    from apdcli.engine import layer_kernels

    return layer_kernels


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    made = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=made)).to(dtype).to(DEVICE)


def same(mine: Tensor, expected: Tensor, units: int = 0) -> None:
    """Equal in 16 bits but for so many units in the last place; to 1e-6 of the sizes in float32."""
    assert mine.dtype == expected.dtype
    if mine.dtype == torch.float32:
        torch.testing.assert_close(mine, expected, atol=2e-6, rtol=2e-6)
    elif units:
        bound = units * torch.finfo(mine.dtype).eps
        torch.testing.assert_close(mine, expected, atol=1e-7, rtol=bound)
        assert (mine != expected).float().mean() < 0.01
    else:
        assert torch.equal(mine, expected)


def turned(
    kernels: Any, dtype: torch.dtype, kv_heads: int, groups: int, size: int, padded: int,
    start: int, end: int,
) -> None:  # fmt: skip
    """The kernel against `Packed`'s operations for a window of which [start, end) is no padding."""
    heads, capacity = kv_heads * groups, 300
    joined = drawn(padded, (heads + 2 * kv_heads) * size, dtype=dtype, seed=padded)
    up = torch.arange(padded, device=DEVICE)
    positions = torch.minimum(up + start, torch.tensor(end, device=DEVICE))
    angles = drawn(capacity, size // 2, dtype=torch.float32, seed=1, scale=3.0).repeat(1, 2)
    cos, sin = angles.cos().to(dtype)[positions], angles.sin().to(dtype)[positions]
    sin[:, : size // 2].neg_()
    before = joined.clone()
    both = torch.full((2 * kv_heads, capacity, size), 7.0, dtype=dtype, device=DEVICE)

    q = kernels.turned(joined, cos, sin, positions, both[:kv_heads], both[kv_heads:])

    assert torch.equal(joined, before)
    by_head = before.view(padded, -1, size).transpose(0, 1).contiguous()
    turning = by_head[: heads + kv_heads]
    other = turning.roll(size // 2, -1)
    turning.mul_(cos).addcmul_(other, sin)
    assert q.shape == (heads, padded, size)
    same(q, by_head[:heads])
    # Positions of the text hold their own; the one behind it something of the padding; others are
    # as they were.
    real = end - start
    same(both[:, start:end], by_head[heads:, :real])
    untouched = [both[:, :start], both[:, end + (real < padded) :]]
    assert all(bool((part == 7.0).all()) for part in untouched)
    if real < padded:
        assert torch.isfinite(both[:, end]).all()
        assert bool((both[:, end] != 7.0).all())


@needs_kernels
@every_dtype
@pytest.mark.parametrize("size", [16, 32, 64, 96, 128])
@pytest.mark.parametrize("groups", [1, 3, 7])
def test_kernels_turn_and_write(kernels: Any, dtype: torch.dtype, groups: int, size: int) -> None:
    turned(kernels, dtype, 2, groups, size, 24, 37, 56)


@needs_kernels
@pytest.mark.parametrize("padded", BUCKETS)
def test_kernels_turn_windows_of_every_bucket(kernels: Any, padded: int) -> None:
    dtype = DTYPES[padded // 8 % 3]
    turned(kernels, dtype, 1, 2, 128, padded, 0, padded)  # a window without padding
    if padded > 1:
        turned(kernels, dtype, 1, 2, 128, padded, 41, 41 + padded * 3 // 4)


@needs_kernels
def test_kernels_take_a_product_of_any_layout(kernels: Any) -> None:
    """A quantized product may be a transposed one."""
    wide = drawn(12, 8, dtype=torch.float32, scale=2.0)
    expected = kernels.gated(wide.t().contiguous())
    same(kernels.gated(wide.t()), expected)
    joined, angles = drawn(6 * 32, 8, dtype=torch.float32), drawn(8, 32, dtype=torch.float32)
    found = []
    for given in (joined.t(), joined.t().contiguous()):
        both = torch.zeros(4, 16, 32, device=DEVICE)
        positions = torch.arange(8, device=DEVICE)
        q = kernels.turned(given, angles, angles, positions, both[:2], both[2:])
        found.append(torch.cat((q.flatten(), both.flatten())))
    assert torch.equal(*found)


@needs_kernels
def test_kernels_refuse_a_cache_whose_halves_stand_unlike(kernels: Any) -> None:
    joined, angles = torch.zeros(8, 4 * 32, device=DEVICE), torch.zeros(8, 32, device=DEVICE)
    k, v = torch.zeros(1, 16, 32, device=DEVICE), torch.zeros(1, 32, 16, device=DEVICE).mT
    with pytest.raises(ValueError, match="must stand alike"):
        kernels.turned(joined, angles, angles, torch.arange(8, device=DEVICE), k, v)


@needs_kernels
@every_dtype
@pytest.mark.parametrize(("rows", "width"), [(1, 8), (5, 33), (24, 256), (3, 1024), (2, 18944)])
def test_kernels_gate(kernels: Any, dtype: torch.dtype, rows: int, width: int) -> None:
    both = drawn(rows, 2 * width, dtype=dtype, seed=width, scale=4.0)
    edges = [0.0, -0.0, 1e-6, -1e-6, 20.0, -20.0, -90.0, 60.0][:width]
    both[0, : len(edges)] = torch.tensor(edges, device=DEVICE).to(dtype)
    gate, up = both.clone().chunk(2, -1)
    expected = F.silu(gate, inplace=True).mul_(up)
    kept = both[:, width:].clone()
    mine = kernels.gated(both)
    assert mine.data_ptr() == both.data_ptr()  # nothing was allocated
    assert torch.equal(both[:, width:], kept)
    same(mine, expected, units=2)


@needs_kernels
@every_dtype
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 33), (70, 96), (9, 896), (3, 3584)])
def test_kernels_norm(kernels: Any, dtype: torch.dtype, rows: int, width: int) -> None:
    x = drawn(rows, width, dtype=dtype, seed=rows)
    weight = 1 + drawn(width, dtype=dtype, seed=2, scale=0.3)
    if rows > 1:
        x[0] = 0.0  # no root mean square but eps
        x[1] *= 900.0  # whose square is no float16
    before = x.clone()
    same(kernels.normed(x, weight, 1e-6), F.rms_norm(x, (width,), weight, 1e-6), units=1)
    assert torch.equal(x, before)


def test_norms_of_torch_round_once() -> None:
    """As the kernel does; the eager engine's norm rounds before it multiplies by the weight."""
    x, weight = drawn(9, 300, dtype=torch.bfloat16), 1 + drawn(300, dtype=torch.bfloat16, scale=0.3)
    wide = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    same(F.rms_norm(x, (300,), weight, 1e-6), (wide * weight.float()).to(x.dtype), units=1)


def network(
    dtype: torch.dtype, causal: bool = False, quantize: str = "none", **other: Any
) -> Packed:
    sizes = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32, "qkv_bias": True, **other}
    config = ModelConfig(
        family="qwen2" if causal else "Dream", vocab_size=128, hidden_size=192,
        intermediate_size=256, num_layers=2, rope_theta=1e4, rms_norm_eps=1e-6, max_positions=512,
        causal=causal, shift=not causal, tied=False, mask_id=None if causal else 3, **sizes,
    )  # fmt: skip
    net = random_transformer(config, DEVICE, dtype, seed=1, quantize=quantize)
    for name, parameter in net.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            noise = drawn(*parameter.shape, dtype=dtype, seed=len(name), scale=0.2)
            parameter.data.add_(noise)
    return pack(net)


def forward(packed: Packed, filled: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a window in a text of 61 ids, and the cache after it: its padding is left out."""
    buffers = Buffers.allocate(packed, 100)
    buffers.cache.both.copy_(filled)
    tokens = torch.arange(61, device=DEVICE) * 7 % 128
    buffers.load(tokens, 41, 45)
    made = answer(packed, buffers, packed.head, 24, 16, 256)
    written = buffers.cache.both.clone()
    written[:, :, :, 61] = 0.0
    return made, written


@needs_kernels
@torch.inference_mode()
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("dtype", "quantize"),
    [*((dtype, "none") for dtype in DTYPES), (torch.float32, "int8"), (torch.float32, "int4")],
)
def test_kernels_give_the_forward_that_torch_gives(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, quantize: str, causal: bool
) -> None:
    packed = network(dtype, causal, quantize, qkv_bias=quantize == "none" or causal)
    filled = drawn(*Buffers.allocate(packed, 100).cache.both.shape, dtype=dtype)
    monkeypatch.setattr(fused, "_installed", lambda: True)
    mine, written = forward(packed, filled)
    assert fused.usable(DEVICE)
    monkeypatch.setattr(fused, "_installed", lambda: False)
    expected, kept = forward(packed, filled)
    bound = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(mine, expected, atol=bound * float(expected.std()), rtol=bound)
    torch.testing.assert_close(written, kept, atol=bound, rtol=bound)
    assert not torch.equal(written, filled)


class Launched:
    """A kernel that counts its launches; what it does itself is no operation of torch's."""

    def __init__(self, kernel: Any, count: Counter[str], name: str) -> None:
        self.kernel, self.count, self.name = kernel, count, name

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            self.count[self.name] += 1
            Kernels.paused = True
            try:
                self.kernel[grid](*args, **constants)
            finally:
                Kernels.paused = False

        return launch


def operations(packed: Packed) -> Counter[str]:
    """What a layer of a window of 24 positions runs, but for what only makes views."""
    size = packed.head_dim
    dtype = packed.embedding.dtype
    both = torch.zeros(2 * packed.kv_heads, 256, size, dtype=dtype, device=DEVICE)
    rows = 24 * packed.heads // packed.kv_heads
    window = Window(
        torch.arange(24, device=DEVICE),
        drawn(24, size, dtype=dtype),
        drawn(24, size, dtype=dtype),
        torch.zeros(rows, 256, dtype=dtype, device=DEVICE),
    )
    x, (k, v) = drawn(24, 192, dtype=dtype), both.chunk(2)
    with Kernels() as ran:
        run_layer(packed, packed.layers[0], x, window, k, v)
    names: Counter[str] = ran.names
    return names


@needs_kernels
@pytest.mark.skipif(DEVICE.type == "cuda", reason="counts a CPU's attention")
@torch.no_grad()
def test_kernels_a_layer(kernels: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four products, the attention, its result's copy, and four of Triton's."""
    packed = network(torch.bfloat16)
    monkeypatch.setattr(fused, "_installed", lambda: True)
    launched: Counter[str] = Counter()
    for name in ("turn", "gate", "norm"):
        monkeypatch.setattr(kernels, name, Launched(getattr(kernels, name), launched, name))
    found = operations(packed)
    attention = "_scaled_dot_product_flash_attention_for_cpu"
    assert found == {"addmm": 1, attention: 1, "clone": 1, "addmm_": 2, "mm": 1}
    assert launched == {"norm": 2, "turn": 1, "gate": 1}


@torch.no_grad()
def test_operations_a_layer_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_installed", lambda: False)
    found = operations(network(torch.bfloat16))
    small = ("clone", "roll", "mul_.Tensor", "addcmul_", "index_copy_", "silu_")
    assert {name: found[name] for name in small} == {
        "clone": 2, "roll": 1, "mul_.Tensor": 2, "addcmul_": 1, "index_copy_": 2, "silu_": 1,
    }  # fmt: skip


def events(nets: Nets, engine: str, prompt: list[int]) -> list[StepEvent | Finished]:
    own = {"mixture_weight": 0.5, "recompute_window": 4, "max_lookahead": 12}
    shared, params = make_params("apd", max_tokens=12, **own)
    banned = banned_ids((i for i in range(VOCAB) if i != MASK), VOCAB, "cpu")
    canvas = Canvas.blank(prompt, shared.max_tokens, MASK)
    pair = make_models(engine, nets.denoiser, nets.verifier, banned, canvas.end)
    strategy = make_strategy("apd", shared, params)
    return list(decode(canvas, strategy, pair, stop_ids=frozenset({EOS})))


@needs_kernels
@pytest.mark.skipif(DEVICE.type == "cuda", reason="the interpreter's")
def test_kernels_give_the_eager_events(
    kernels: Any, nets: Nets, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Nets(
        *(
            load_transformer(DATA / "apd" / name, device="cpu", dtype=torch.float32)
            for name in ("denoiser", "verifier")
        )
    )
    launched: Counter[str] = Counter()
    for name in ("turn", "gate", "norm"):
        monkeypatch.setattr(kernels, name, Launched(getattr(kernels, name), launched, name))
    monkeypatch.setattr(fused, "_installed", lambda: True)
    mine = events(own, "graphs", prompts[0])
    monkeypatch.setattr(fused, "_installed", lambda: False)
    expected = events(nets, "eager", prompts[0])
    assert [getattr(e, "committed", None) for e in mine] == [
        getattr(e, "committed", None) for e in expected
    ]
    layers = launched["turn"]
    assert layers > 0
    assert launched["gate"] == layers
    assert launched["norm"] > 2 * layers  # and one before the head
    for net in (own.denoiser, own.verifier):
        assert not net.packed.graphs_failed
    assert not fused._failed


def given_kernels(monkeypatch: pytest.MonkeyPatch, error: Exception, after: int = 0) -> list[str]:
    """Kernels that fail at their call number `after`; the calls, as they come."""
    calls: list[str] = []

    def called(name: str, plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            calls.append(name)
            if len(calls) > after:
                raise error
            return plain(*args)

        return run

    def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, eps)

    def never(*args: Any) -> Tensor:
        raise AssertionError(args)

    fake = SimpleNamespace(
        normed=called("norm", norm), turned=called("turn", never), gated=called("gate", never)
    )
    monkeypatch.setattr(apdcli.engine, "layer_kernels", fake, raising=False)
    monkeypatch.setitem(sys.modules, "apdcli.engine.layer_kernels", fake)
    monkeypatch.setattr(fused, "_installed", lambda: True)
    monkeypatch.setattr(fused, "_interpreted", lambda: True)
    return calls


@torch.inference_mode()
@pytest.mark.parametrize("after", [0, 1])
def test_kernels_that_fail_are_replaced_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    packed = network(torch.float32)
    filled = drawn(*Buffers.allocate(packed, 100).cache.both.shape, dtype=torch.float32)
    monkeypatch.setattr(fused, "_installed", lambda: False)
    expected, kept = forward(packed, filled)
    calls = given_kernels(monkeypatch, RuntimeError("Failed to find C compiler\nand more"), after)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = [forward(packed, filled) for _ in range(2)]
    assert calls == ["norm", "turn"][: after + 1]
    (warning,) = seen
    assert "Failed to find C compiler" in str(warning.message)
    assert "\n" not in str(warning.message)
    for made, written in found:
        assert torch.equal(made, expected)
        assert torch.equal(written, kept)


@torch.inference_mode()
def test_kernels_without_memory_do_not_count_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = network(torch.float32)
    given_kernels(monkeypatch, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        layer.mlp(packed, packed.layers[0], drawn(8, 192, dtype=torch.float32))
    assert fused.usable(DEVICE)


@torch.inference_mode()
def test_kernels_are_not_asked_for_other_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = network(torch.float64)
    calls = given_kernels(monkeypatch, RuntimeError("asked"))
    x = drawn(8, 192, dtype=torch.float64)
    layer.mlp(packed, packed.layers[0], layer.norm(packed, x, packed.norm))
    assert calls == []
