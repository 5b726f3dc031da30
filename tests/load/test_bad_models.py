"""Model folders that cannot be used: one line that names what, where and the mend."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from apdcli.errors import ModelError
from apdcli.load.layout import check_layout, read_config
from apdcli.load.weights import load_transformer
from apdcli.models.formats import unfit
from tests.load.conftest import DATA

Copy = Callable[[str], Path]
SHARD = "model-00002-of-00003.safetensors"


def message(folder: Path) -> str:
    """What both the check and the loading say of a folder, on one line."""
    with pytest.raises(ModelError) as checked:
        check_layout(folder)
    with pytest.raises(ModelError) as loaded:
        load_transformer(folder)
    text = str(checked.value)
    assert text == str(loaded.value)
    assert "\n" not in text
    assert checked.value.exit_status == 1
    return text


def edit(path: Path, **changes: object) -> None:
    table = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**table, **changes}.items() if v is not ...}))


def test_missing_folder(tmp_path: Path) -> None:
    assert message(tmp_path / "none") == f"model folder {tmp_path / 'none'} not found"


def test_a_file_is_no_folder() -> None:
    text = message(DATA / "hub_dream" / "config.json")
    assert "is a file, not a model folder" in text


def test_no_config(copy: Copy) -> None:
    folder = copy("hub_dream")
    (folder / "config.json").unlink()
    text = message(folder)
    assert text.startswith(f"{folder} holds no config.json")
    assert "download the folder again" in text


@pytest.mark.parametrize("content", ["{", "", "[1]", "\udc80\udc80", '"x"'])
def test_damaged_config(copy: Copy, content: str) -> None:
    folder = copy("hub_dream")
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert message(folder).startswith(f"{folder / 'config.json'}")


def test_unknown_family(copy: Copy) -> None:
    folder = copy("hub_dream")
    edit(folder / "config.json", model_type="mamba")
    text = message(folder)
    assert str(folder / "config.json") in text
    assert "'mamba'" in text
    assert "known families: Dream, llada, qwen2" in text


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling", "model_type"])
@pytest.mark.parametrize("value", ["linear", ["linear"]])
def test_config_with_a_value_of_another_kind(copy: Copy, key: str, value: object) -> None:
    folder = copy("hub_dream")
    edit(folder / "config.json", **{key: value})
    assert f"{folder / 'config.json'}: {key} " in message(folder)


def test_config_with_a_wrong_value(copy: Copy) -> None:
    folder = copy("hub_dream")
    edit(folder / "config.json", num_hidden_layers="two")
    with pytest.raises(ModelError, match=r"config\.json: num_hidden_layers must be a positive"):
        read_config(folder)


def test_no_weights(copy: Copy) -> None:
    folder = copy("apd/verifier")
    (folder / "model.safetensors").unlink()
    text = message(folder)
    assert "holds neither model.safetensors nor model.safetensors.index.json" in text


def test_pickles_are_refused(copy: Copy) -> None:
    folder = copy("apd/verifier")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    text = message(folder)
    assert "pytorch_model.bin" in text
    assert "never unpickles" in text


def test_missing_shard(copy: Copy) -> None:
    folder = copy("hub_dream")
    (folder / SHARD).unlink()
    text = message(folder)
    assert f"{folder} is half copied: {SHARD} named by model.safetensors.index.json" in text


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_file(copy: Copy, keep: int) -> None:
    file = copy("hub_dream") / SHARD
    file.write_bytes(file.read_bytes()[:keep])
    text = message(file.parent)
    assert text.startswith(f"{file} is truncated or damaged")
    assert "download the folder again" in text


@pytest.mark.parametrize(
    "header", [b"not json at all", b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}']
)
def test_corrupt_header(copy: Copy, header: bytes) -> None:
    file = copy("apd/verifier") / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    assert message(file.parent).startswith(f"{file} is truncated or damaged")


def test_a_header_of_absurd_length(copy: Copy) -> None:
    file = copy("apd/verifier") / "model.safetensors"
    file.write_bytes(b"\xff" * 64)
    assert message(file.parent).startswith(f"{file} is truncated or damaged")


def test_git_lfs_pointer(copy: Copy) -> None:
    file = copy("apd/verifier") / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in message(file.parent)


def test_missing_unexpected_and_misshapen_are_all_named(copy: Copy) -> None:
    file = copy("apd/verifier") / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    tensors["model.extra"] = torch.zeros(1)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 2)
    save_file(tensors, file)
    text = message(file.parent)
    assert str(file) in text
    assert "1 missing: model.norm.weight" in text
    assert "1 unexpected: model.extra (model.safetensors)" in text
    assert "up_proj.weight (model.safetensors) is [3, 2], config.json asks for [128, 48]" in text


def test_long_lists_are_counted(copy: Copy) -> None:
    folder = copy("apd/verifier")
    file = folder / "model.safetensors"
    stored = load_file(file)
    kept = {name: value for name, value in stored.items() if "norm" in name}
    save_file(kept, file)
    assert f"{len(stored) - len(kept)} missing: model.embed_tokens.weight" in message(folder)
    assert f"and {len(stored) - len(kept) - 5} more" in message(folder)


@pytest.mark.parametrize("name", ["apd/verifier", "hub_dream", "hub_llada"])
@pytest.mark.parametrize("layers", [9, 10**9, 10**30])
def test_more_layers_than_the_files_hold_are_refused_at_once(
    copy: Copy, name: str, layers: int
) -> None:
    folder = copy(name)
    key = "n_layers" if name == "hub_llada" else "num_hidden_layers"
    config = folder / "config.json"
    held = json.loads(config.read_text())[key]
    fits = unfit(read_config(folder), "int4")
    edit(config, **{key: layers})
    assert message(folder).startswith(
        f"{config}: {key} is {layers}, and the weights have {held} layers: "
    )
    assert unfit(read_config(folder), "int4") == fits  # asked before the files are looked at


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "head_dim"])
@pytest.mark.parametrize("size", [10**9, 10**30])
def test_other_absurd_sizes_are_refused(copy: Copy, key: str, size: int) -> None:
    folder = copy("apd/verifier")
    edit(folder / "config.json", **{key: size})
    text = message(folder)
    assert "misshapen" in text
    assert len(text) < 1500


@pytest.mark.parametrize("value", [10**400, float("inf"), float("nan"), 0, -1.0, True])
def test_numbers_that_no_float_holds(copy: Copy, value: float) -> None:
    folder = copy("hub_dream")
    edit(folder / "config.json", rms_norm_eps=value)
    assert "config.json: rms_norm_eps must be a positive number" in message(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"eos_token_id": 10**7}, r"eos_token_id \(10000000\) is not below vocab_size"),
        ({"eos_token_id": [0, -1]}, r"eos_token_id \(-1\) is not below vocab_size"),
        (
            {"mask_token_id": 5, "eos_token_id": [4, 5]},
            r"mask_token_id and eos_token_id are both 5",
        ),
    ],
)
def test_ids_that_cannot_end_a_text(copy: Copy, changes: dict[str, object], why: str) -> None:
    folder = copy("apd/denoiser")
    edit(folder / "config.json", **changes)
    assert re.search(r"config\.json: " + why, message(folder))


def test_a_shard_lacks_what_the_index_promises(copy: Copy) -> None:
    file = copy("hub_dream") / SHARD
    tensors = load_file(file)
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, file)
    assert f"1 missing: model.embed_tokens.weight ({SHARD})" in message(file.parent)


def test_the_same_tensor_twice(copy: Copy) -> None:
    folder = copy("hub_dream")
    file = folder / "model-00001-of-00003.safetensors"
    save_file({**load_file(file), "model.norm.weight": torch.zeros(64)}, file)
    assert "model.norm.weight is in" in message(folder)


def test_an_untied_models_head_is_required(copy: Copy) -> None:
    folder = copy("apd/verifier")
    edit(folder / "config.json", tie_word_embeddings=False)
    assert "1 missing: lm_head.weight" in message(folder)


def test_quantised_weights_are_refused(copy: Copy) -> None:
    file = copy("apd/verifier") / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int8)
    save_file(tensors, file)
    assert "model.norm.weight is stored as I8" in message(file.parent)


@pytest.mark.parametrize("name", ["../../etc/x.safetensors", "model.py", 3])
def test_an_index_cannot_point_elsewhere(copy: Copy, name: object) -> None:
    index = copy("hub_dream") / "model.safetensors.index.json"
    edit(index, weight_map={"model.norm.weight": name})
    assert "is not the name of a safetensors file" in message(index.parent)


@pytest.mark.parametrize("table", [..., {}, "x"])
def test_an_index_without_a_map(copy: Copy, table: object) -> None:
    index = copy("hub_dream") / "model.safetensors.index.json"
    edit(index, weight_map=table)
    assert f"{index} has no weight_map" in message(index.parent)
