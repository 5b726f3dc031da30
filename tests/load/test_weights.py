"""Weights: equal to the published code's numbers, whatever the files look like."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apdcli.bench.sizes import SHAPES
from apdcli.errors import DeviceError
from apdcli.load import weights
from apdcli.load.layout import check_layout
from apdcli.load.room import no_room_for_weights
from apdcli.load.spare_head import spare_head
from apdcli.load.weights import load_transformer, read_config
from apdcli.models.cache import KVCache
from apdcli.models.formats import planned_bytes, unfit
from apdcli.models.names import weight_shapes
from apdcli.models.transformer import Transformer, rope_table
from tests.load.conftest import DATA

Copy = Callable[[str], Path]
DREAM = DATA / "hub_dream"
PAIR = Path(weights.__file__).parents[1] / "demo" / "pair"


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in folder.glob("model*.safetensors") for k, v in load_file(file).items()}


def as_single(folder: Path, dtype: torch.dtype | None = None) -> Path:
    tensors = {k: v.to(dtype or v.dtype) for k, v in all_tensors(folder).items()}
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    save_file(tensors, folder / "model.safetensors")
    return folder


def logits(net: Transformer, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return net.head(net.hidden(ids.view(1, -1)))[0]


def test_dream_logits_equal_the_published_codes() -> None:
    golden = load_file(DREAM / "dream_golden.safetensors")
    out = logits(load_transformer(DREAM, dtype="float32"), golden["input_ids"])
    assert (out - golden["raw_output_logits"]).abs().max() <= 1e-4


def test_one_file_equals_shards(copy: Copy) -> None:
    sharded = load_transformer(DREAM).state_dict()
    single = load_transformer(as_single(copy("hub_dream"))).state_dict()
    assert sharded.keys() == single.keys()
    assert all(torch.equal(sharded[name], single[name]) for name in sharded)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("wanted", ["float32", "float16", "bfloat16"])
def test_every_stored_dtype_is_cast_to_every_wanted_one(
    copy: Copy, stored: torch.dtype, wanted: str
) -> None:
    folder = as_single(copy("apd/verifier"), stored)
    net = load_transformer(folder, dtype=wanted)
    dtype = getattr(torch, wanted)
    for name, value in load_file(folder / "model.safetensors").items():
        assert torch.equal(net.state_dict()[name], value.to(dtype)), name
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("folder", "stored", "wanted", "rounded"),
    [
        ("hub_dream", torch.bfloat16, "float32", True),
        ("hub_dream", torch.bfloat16, "bfloat16", False),
        ("hub_dream", torch.float32, "float32", False),
        ("apd/verifier", torch.bfloat16, "float32", False),
    ],
)
def test_only_an_upcast_dream_has_rounded_frequencies(
    copy: Copy, folder: str, stored: torch.dtype, wanted: str, rounded: bool
) -> None:
    net = load_transformer(as_single(copy(folder), stored), dtype=wanted)
    rounding = torch.bfloat16 if rounded else torch.float32
    cos, _ = rope_table(net.config, len(net.cos), inverse_dtype=rounding)
    assert torch.equal(net.cos, cos)
    assert net.cos.dtype == torch.float32


def test_weights_of_the_wanted_dtype_stay_mapped() -> None:
    script = f"""
import torch
from pathlib import Path
from apdcli.load.weights import load_transformer
net = load_transformer(Path({str(DATA / "apd" / "denoiser")!r}), dtype="float32")
ranges = [line.split() for line in open("/proc/self/maps") if "model.safetensors" in line]
spans = [tuple(int(x, 16) for x in r[0].split("-")) for r in ranges]
assert all(any(a <= p.data_ptr() < b for a, b in spans) for p in net.parameters())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("needs /proc")
    subprocess.run([sys.executable, "-c", script], check=True)


def test_loading_takes_little_more_memory_than_the_weights(copy: Copy, tmp_path: Path) -> None:
    """The file's pages and the import of torch's compiler must not stay resident."""
    if sys.platform != "linux":
        pytest.skip("reads ru_maxrss as Linux has it")
    folder = copy("apd/verifier")
    config = json.loads((folder / "config.json").read_text())
    config |= {"vocab_size": 40000, "hidden_size": 256, "num_attention_heads": 8}
    (folder / "config.json").write_text(json.dumps(config))
    from apdcli.models.config import ModelConfig

    shapes = weight_shapes(ModelConfig.from_hf(config))
    save_file(
        {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in shapes.items()},
        folder / "model.safetensors",
    )
    script = f"""
import resource
from pathlib import Path
import torch
from apdcli.load.weights import load_transformer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
net = load_transformer(Path({str(folder)!r}), dtype="float32")
used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
size = sum(p.numel() * 4 for p in net.parameters()) / 2**20
assert used < size + 35, (used, size)
"""
    # Above the weights: one stored tensor (20 MB here) while it is cast, and the imports.
    subprocess.run([sys.executable, "-c", script], check=True)


def test_shapes_are_those_of_the_core() -> None:
    for folder in (DREAM, DATA / "apd" / "denoiser", DATA / "apd" / "verifier"):
        net = load_transformer(folder)
        assert weight_shapes(net.config) == {n: tuple(p.shape) for n, p in net.named_parameters()}


def test_a_tied_models_own_head_is_ignored(copy: Copy) -> None:
    folder = copy("apd/verifier")
    tensors = all_tensors(folder)
    tensors["lm_head.weight"] = torch.ones_like(tensors["model.embed_tokens.weight"])
    save_file(tensors, folder / "model.safetensors")
    net = load_transformer(folder)
    ids = torch.tensor([5, 6, 7])
    expected = logits(load_transformer(DATA / "apd" / "verifier"), ids)
    assert torch.equal(logits(net, ids), expected)
    said = spare_head(check_layout(folder))
    assert said is not None
    assert "lm_head.weight" in said
    assert "tie_word_embeddings = false" in said


@pytest.mark.parametrize("head", ["none", "copy", "longer"])
def test_a_head_that_is_a_copy_goes_without_saying(copy: Copy, head: str) -> None:
    folder = copy("apd/verifier")
    tensors = all_tensors(folder)
    if head != "none":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    if head == "longer":
        tensors["lm_head.weight"] = torch.cat([tensors["lm_head.weight"]] * 2)
    save_file(tensors, folder / "model.safetensors")
    assert (spare_head(check_layout(folder)) is None) == (head != "longer")


def test_the_layout_is_checked_without_torch() -> None:
    script = (
        "import sys; from pathlib import Path; from apdcli.load.layout import check_layout\n"
        f"layout = check_layout(Path({str(DREAM)!r}))\n"
        "assert len(layout.files) == 3 and layout.dtypes == ('bfloat16',)\n"
        "assert layout.num_bytes == 259200\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_unknown_dtype_or_device_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="unknown dtype 'int8'"):
        load_transformer(DREAM, dtype="int8")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="cannot be loaded on cuda"):
            load_transformer(DREAM, device="cuda")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def qwen(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """transformers' own Qwen2 with random weights, and our core loaded from what it saves."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=320,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=128,
        rope_theta=1e6,
        tie_word_embeddings=request.param,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    theirs = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    folder = tmp_path_factory.mktemp("qwen2")
    theirs.save_pretrained(folder)
    ids = torch.randint(0, 320, (1, 24))
    with torch.inference_mode():
        return load_transformer(folder), ids, theirs(ids).logits


def test_qwen2_equals_transformers(qwen: Any) -> None:
    net, ids, expected = qwen
    assert net.config.family == "qwen2"
    assert (logits(net, ids) - expected[0]).abs().max() <= 1e-5


def test_qwen2_with_a_cache_equals_transformers(qwen: Any) -> None:
    net, ids, expected = qwen
    cache = KVCache(net.config, 32)
    parts = [(0, 10), (10, 11), (11, 19), (19, 24)]
    with torch.inference_mode():
        rows = [net.head(net.hidden(ids[:, a:b], a, cache)) for a, b in parts]
    assert (torch.cat(rows, 1) - expected).abs().max() <= 1e-5


def test_qwen2_after_crop_equals_transformers(qwen: Any) -> None:
    net, ids, expected = qwen
    cache = KVCache(net.config, 32)
    with torch.inference_mode():
        net.hidden(ids[:, :8], 0, cache)
        net.hidden((ids[:, 8:20] + 1) % 320, 8, cache)  # a draft that is thrown away
        cache.crop(8)
        assert cache.length == 8
        rows = net.head(net.hidden(ids[:, 8:], 8, cache))
    assert (rows - expected[:, 8:]).abs().max() <= 1e-5


def test_check_layout_accepts_what_load_accepts() -> None:
    assert check_layout(DATA / "apd" / "denoiser").dtypes == ("float32",)


@pytest.mark.parametrize(
    ("dtype", "quantize", "uses"),
    [
        ("float32", "none", "--quantize int8, --dtype bfloat16 or another model"),
        ("bfloat16", "none", "--quantize int8 or another model"),
        ("bfloat16", "int8", "--quantize int4 or another model"),
        ("bfloat16", "int4", "another model"),
    ],
)
def test_a_device_that_is_full_says_what_the_weights_need(
    monkeypatch: pytest.MonkeyPatch, dtype: str, quantize: str, uses: str
) -> None:
    place, placed = weights._place, []

    def full_at_the_third(*args: Any) -> None:
        placed.append(args[1])
        if len(placed) == 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        if quantize == "none":
            place(*args)

    monkeypatch.setattr(weights, "_place", full_at_the_third)
    monkeypatch.setattr(weights, "free_bytes", lambda device: 5 * 2**20)
    monkeypatch.setattr(weights, "check_quantize", lambda *args: None)  # wants torchao
    folder = PAIR / "denoiser"
    with pytest.raises(DeviceError) as e:
        load_transformer(folder, dtype=dtype, quantize=quantize)
    size = planned_bytes(read_config(folder), quantize, getattr(torch, dtype).itemsize)
    assert str(e.value) == (
        f"{folder}: cpu has no room for it: its weights need {size / 2**30:.2f} GiB in "
        f"{dtype if quantize == 'none' else quantize} and 0.00 GiB were free; use {uses}"
    )
    assert len(placed) == 3


def test_a_format_that_does_not_fit_is_not_offered() -> None:
    config = replace(SHAPES["tiny"].denoiser, hidden_size=40, head_dim=10)
    assert unfit(config, "int4") is not None
    cuda = torch.device("cuda", 1)
    said = str(no_room_for_weights("here", config, cuda, torch.bfloat16, "int8", None))
    assert said.endswith("GiB in int8; use another --device")
    assert said.startswith("here: cuda:1 has no room for it: its weights need ")
