"""Integer layers: products, kernels, the packed form and what they weigh. Needs no torchao."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from apdcli.load.quantize import empty_layers
from apdcli.models import quantized
from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig
from apdcli.models.formats import format_of, planned_bytes, unfit
from apdcli.models.packed import packed
from apdcli.models.quantized import (
    LINEARS,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    has_kernels,
    quantization_of,
    weight_bytes,
)
from apdcli.models.quantized_packed import Matrix, pack
from apdcli.models.transformer import Transformer

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "Dream",
        "vocab_size": 80,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "mask_token_id": 3,
        "eos_token_id": 0,
    }
)
KINDS = (Int8Linear, Int4Linear)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer_of(
    kind: type[QuantizedLinear], rows: int = 80, dtype: torch.dtype = torch.float32
) -> QuantizedLinear:
    made = kind(64, rows, bias=True)
    made.randomize(0.1, seeded())
    made.scale.mul_(torch.rand(made.scale.shape, generator=seeded(1)) + 0.5)
    assert made.bias is not None
    made.bias.normal_(generator=seeded(2))
    return made.to(dtype)


def dense(layer: QuantizedLinear) -> Tensor:
    """W [out, in] from the definition, integer by integer."""
    if isinstance(layer, Int8Linear):
        return layer.quantized.double() * layer.scale.double()
    assert isinstance(layer, Int4Linear)
    w = torch.empty(layer.out_features, layer.in_features, dtype=torch.float64)
    for column in range(layer.in_features):
        group, place = divmod(column, 32)
        byte = layer.quantized[:, group, place % 16].int()
        integer = byte // 16 if place >= 16 else byte % 16
        w[:, column] = (integer - layer.zero[:, group].int()) * layer.scale[:, group].double()
    return w


def network(quantize: str, dtype: torch.dtype = torch.float32, **other: object) -> Transformer:
    config = replace(CONFIG, **other)  # type: ignore[arg-type]
    net = Transformer(config)
    net.init_weights(seeded(), std=0.2)
    net = net.to(dtype)
    if quantize != "none":
        empty_layers(net, quantize)
        for module in net.modules():
            if isinstance(module, QuantizedLinear):
                module.to(dtype).randomize(0.1, seeded())
                if module.bias is not None:
                    module.bias.zero_()
    return net.eval().requires_grad_(False)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget, before and after, whether the kernels work."""
    for check in (quantized._int8_kernel_works, quantized._int4_kernel_works):
        check.cache_clear()
    yield
    for check in (quantized._int8_kernel_works, quantized._int4_kernel_works):
        check.cache_clear()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [2**21, 64 * 64])
def test_a_product_is_that_of_the_integers(
    kind: type[QuantizedLinear], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "_CPU_BLOCK", block)
    layer = layer_of(kind, rows=150)
    x = torch.randn(2, 3, 64, generator=seeded(3))
    assert layer.bias is not None
    expected = x.double() @ dense(layer).t() + layer.bias
    made = layer(x)
    assert made.shape == (2, 3, 150)
    torch.testing.assert_close(made.double(), expected, atol=1e-5, rtol=1e-5)
    # A head's product goes to kernels that read rows.
    assert layer.product(x[0]).is_contiguous()


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_of_the_cpu_give_the_plain_product(
    kind: type[QuantizedLinear], fresh: None
) -> None:
    plain = layer_of(kind, dtype=torch.bfloat16)
    x = torch.randn(7, 64, generator=seeded(3)).bfloat16()
    expected = x.double() @ dense(plain).t()
    if isinstance(plain, Int4Linear):
        before = sum(p.nbytes for p in plain.parameters())
        plain.pack()
        assert plain.packed is not None, "this torch has no such kernel"
        assert plain.quantized is None
        assert sum(p.nbytes for p in plain.parameters()) <= 1.1 * before
    made = plain.product(x)
    assert made.dtype == torch.bfloat16
    assert (made.double() - expected).abs().max() < 0.03 * expected.std()
    # Rows that do not stand one behind the other in memory.
    strided = x.t().contiguous().t()
    torch.testing.assert_close(plain.product(strided), made)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_a_kernel_that_fails_or_errs_is_not_used(
    kind: type[QuantizedLinear], fault: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
        if fault == "missing":
            raise NotImplementedError
        return x.new_zeros(x.shape[0], packed.shape[0])

    for name in ("_int8_kernel", "_int4_kernel"):
        monkeypatch.setattr(quantized, name, broken)
    layer = layer_of(kind, dtype=torch.bfloat16)
    if isinstance(layer, Int4Linear):
        layer.pack()
        assert layer.packed is None
    x = torch.randn(5, 64, generator=seeded(3)).bfloat16()
    expected = x.double() @ dense(layer).t()
    assert (layer.product(x).double() - expected).abs().max() < 0.03 * expected.std()


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_packed_form_computes_what_the_network_does(quantize: str, tied: bool) -> None:
    net = network(quantize, tied=tied, causal=tied, qkv_bias=not tied)
    assert quantization_of(net) == quantize
    form = pack(net)
    assert packed(net) is form  # engines and batches find it
    tokens = torch.randint(4, 80, (20,), generator=seeded(4))
    with torch.inference_mode():
        expected = net.head(net.hidden(tokens[None]))[0]
        hidden = form.hidden(tokens, 0, KVCache(net.config, 64))
        torch.testing.assert_close(torch.mm(hidden, form.head), expected, atol=2e-4, rtol=1e-4)
        short = torch.mm(hidden, form.head[:, :50])
        torch.testing.assert_close(short, expected[:, :50], atol=2e-4, rtol=1e-4)


def test_a_matrix_answers_for_its_layers_and_refuses_the_rest() -> None:
    one, two = (layer_of(Int4Linear, rows) for rows in (48, 80))
    matrix = Matrix([one, two])
    x = torch.randn(5, 64, generator=seeded(3))
    whole = torch.cat([one.product(x), two.product(x)], dim=1)
    product: Callable[..., Tensor] = torch.mm
    assert matrix.shape == (64, 128)
    assert matrix.device == torch.device("cpu")
    assert torch.equal(product(x, matrix), whole)
    assert torch.equal(product(x, matrix[:, :48]), whole[:, :48])
    assert torch.equal(product(x, matrix[:, 48:]), whole[:, 48:])
    bias: Tensor = torch.randn(128, generator=seeded(5))
    assert torch.equal(torch.addmm(bias, x, matrix), whole + bias)  # type: ignore[call-overload]
    total = torch.ones(5, 128)
    assert total.addmm_(x, matrix) is total  # type: ignore[arg-type]
    assert torch.equal(total, whole + 1)
    with pytest.raises(NotImplementedError, match="columns 10 to 60"):
        matrix[:, 10:60]
    with pytest.raises(NotImplementedError, match="matmul of quantized weights"):
        torch.matmul(x, matrix)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", ["none", "int8", "int4"])
def test_bytes_are_known_before_loading(quantize: str, dtype: torch.dtype, tied: bool) -> None:
    net = network(quantize, dtype, tied=tied, causal=tied)
    kernel = has_kernels(torch.device("cpu"), dtype)
    planned = planned_bytes(net.config, quantize, dtype.itemsize, kernel=kernel)
    assert weight_bytes(net) == planned
    if quantize != "none":
        assert planned < planned_bytes(net.config, "none", dtype.itemsize)


def test_what_is_quantized() -> None:
    kept = {
        name: format_of(name, "int4")
        for name, _ in Transformer(replace(CONFIG, num_layers=1)).named_parameters()
    }
    assert {n for n, k in kept.items() if k == "int8"} == {"lm_head.weight"}
    assert {n.split(".")[-2] for n, k in kept.items() if k == "int4"} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    assert set(LINEARS) == {"int8", "int4"}
    net = network("int4")
    assert not [m for m in net.modules() if isinstance(m, nn.Linear)]


def test_groups_that_do_not_divide() -> None:
    odd = replace(CONFIG, intermediate_size=100)
    assert unfit(odd, "int8") is None
    assert unfit(CONFIG, "int4") is None
    reason = unfit(odd, "int4")
    assert reason is not None
    assert "mlp.down_proj has 100 inputs" in reason
    assert "use int8" in reason
