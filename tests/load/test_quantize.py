"""Quantization while loading: what it does to weights and logits, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from apdcli.errors import ApdError, DeviceError, ModelError
from apdcli.load import quantize as module
from apdcli.load.weights import load_transformer
from apdcli.models.quantized import Int4Linear, Int8Linear, quantization_of, weight_bytes
from apdcli.models.transformer import Transformer
from tests.load.conftest import DATA

PAIR = Path(module.__file__).parents[1] / "demo" / "pair"
MODELS = (DATA / "apd" / "denoiser", PAIR / "denoiser", PAIR / "verifier")
# RMS error of the logits that a format may cause, in units of their spread, on random tokens.
ALLOWED = {"int8": 0.05, "int4": 0.5}


@pytest.fixture(scope="module")
def _torchao() -> None:
    pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")


def logits(net: Transformer) -> torch.Tensor:
    ids = torch.randint(
        0, net.config.vocab_size, (1, 40), generator=torch.Generator().manual_seed(0)
    )
    with torch.inference_mode():
        return net.head(net.hidden(ids))[0]


@pytest.mark.usefixtures("_torchao")
@pytest.mark.parametrize("folder", MODELS, ids=lambda p: "/".join(p.parts[-2:]))
def test_logits_stay_close(folder: Path) -> None:
    exact = load_transformer(folder, dtype="float32")
    errors = {}
    for name, allowed in ALLOWED.items():
        net = load_transformer(folder, dtype="float32", quantize=name)
        assert quantization_of(net) == name
        assert weight_bytes(net) < weight_bytes(exact)
        errors[name] = float(
            (logits(net) - logits(exact)).pow(2).mean().sqrt() / logits(exact).std()
        )
        assert 0 < errors[name] < allowed
    assert errors["int8"] < errors["int4"]


@pytest.mark.usefixtures("_torchao")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_weights_are_off_by_a_step_at_most_and_the_rest_is_as_it_was(name: str) -> None:
    folder = DATA / "apd" / "denoiser"
    exact = dict(load_transformer(folder, dtype="float32").named_parameters())
    net = load_transformer(folder, dtype="float32", quantize=name)
    seen = set()
    for path, layer in net.named_modules():
        if isinstance(layer, (Int8Linear, Int4Linear)):
            seen.add(f"{path}.weight")
            weight = exact[f"{path}.weight"]
            made = layer._floats(0, torch.empty_like(weight))
            step = layer.scale
            if isinstance(layer, Int8Linear):
                made = made * layer.scale
                half = 0.501
            else:
                step = step.repeat_interleave(32, dim=1)
                half = 1.001  # its zero point is rounded too
            assert ((made - weight).abs() <= half * step).all()
            assert isinstance(layer, Int8Linear) == (name == "int8" or path == "lm_head")
    rest = {n: p for n, p in net.named_parameters() if n in exact}
    assert seen | rest.keys() == exact.keys()
    assert "model.embed_tokens.weight" in rest
    for path, weight in rest.items():
        assert torch.equal(weight, exact[path]), path


@pytest.mark.usefixtures("_torchao")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_pieces_of_a_matrix_are_quantized_as_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = PAIR / "verifier"
    whole = load_transformer(folder, dtype="float32", quantize=name).state_dict()
    monkeypatch.setattr(module, "_PIECE", 1000)
    parts = load_transformer(folder, dtype="float32", quantize=name).state_dict()
    assert whole.keys() == parts.keys()
    for path, value in whole.items():
        assert torch.equal(value, parts[path]), path


@pytest.mark.usefixtures("_torchao")
def test_no_more_than_a_piece_in_floating_point(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    by_torchao = module._by_torchao

    def counted(weight: torch.Tensor, bits: int) -> Any:
        sizes.append(weight.numel())
        assert weight.dtype == torch.float32
        return by_torchao(weight, bits)

    monkeypatch.setattr(module, "_by_torchao", counted)
    monkeypatch.setattr(module, "_PIECE", 4096)
    load_transformer(DATA / "apd" / "denoiser", dtype="float32", quantize="int8")
    assert len(sizes) > 22
    assert max(sizes) <= 4096


@pytest.mark.usefixtures("_torchao")
@pytest.mark.parametrize("name", ["int8", "int4"])
def test_bfloat16_is_close_too(name: str) -> None:
    folder = PAIR / "denoiser"
    exact = logits(load_transformer(folder, dtype="float32"))
    made = logits(load_transformer(folder, dtype="bfloat16", quantize=name)).float()
    assert (made - exact).pow(2).mean().sqrt() / exact.std() < ALLOWED[name]


def refused(folder: Path, kind: type[ApdError], name: str = "int8") -> str:
    with pytest.raises(kind) as caught:
        load_transformer(folder, dtype="float32", quantize=name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    monkeypatch.setattr(module, "fill", None)  # it is said before any weight is read
    message = refused(DATA / "apd" / "denoiser", DeviceError)
    assert message.endswith("pip install 'apdcli[quantize]'")
    assert quantization_of(load_transformer(DATA / "apd" / "verifier")) == "none"


@pytest.mark.usefixtures("_torchao")
def test_a_torchao_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchao.quantization

    def broken(*_: Any) -> None:
        raise AttributeError("module 'torch' has no attribute\n'something'")

    monkeypatch.setattr(torchao.quantization, "quantize_", broken)
    message = refused(DATA / "apd" / "denoiser", DeviceError)
    assert f"torchao {metadata.version('torchao')} cannot quantize" in message
    assert torch.__version__ in message
    assert "--upgrade" in message


def test_a_matrix_without_whole_groups(copy: Callable[[str], Path]) -> None:
    folder = copy("hub_dream")  # its MLP is 144 wide
    message = refused(folder, ModelError, "int4")
    assert str(folder) in message
    assert "mlp.down_proj has 144 inputs" in message
    assert "use int8" in message


def test_nobody_imports_torchao_who_does_not_need_it() -> None:
    code = (
        "import sys, apdcli; apdcli.generate(apdcli.load_pair('demo'), 'hi', max_tokens=2); "
        "print([name for name in sys.modules if name.split('.')[0] == 'torchao'])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.usefixtures("_torchao")
def test_torchao_says_nothing() -> None:
    code = "import apdcli; apdcli.load_pair('demo', quantize='int4')"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("", "")
