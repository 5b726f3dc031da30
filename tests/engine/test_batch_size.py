"""How many rows at once: what fits into memory, what still pays on a CPU, what is refused."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

import apdcli
from apdcli.decode.params import make_params
from apdcli.engine import batch_size
from apdcli.engine.batch_size import choose_size, out_of_memory, row_bytes
from apdcli.engine.device import free_bytes
from apdcli.engine.pair import LoadedPair
from apdcli.engine.session import Request
from apdcli.errors import DeviceError, ParameterError
from apdcli.models.rows import padded_bytes
from tests.conftest import DATA


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    file = tmp_path_factory.mktemp("profile") / "reference.toml"
    roles = ("denoiser", "verifier")
    file.write_text("\n".join(f'[{r}]\nmodel = "{(DATA / "apd" / r).as_posix()}"' for r in roles))
    return apdcli.load_pair(str(file), device="cpu", dtype="float32")


def rows(pair: LoadedPair, count: int, strategy: str = "apd", **values: Any) -> list[Request]:
    shared, own = make_params(strategy, **{"max_tokens": 64, **values})
    return [Request(pair, (5, 6, 7, 8), strategy, shared, own)] * count


def test_a_number_is_taken_but_never_more_than_there_are(pair: LoadedPair) -> None:
    assert [choose_size(rows(pair, 5), n) for n in (1, 4, 5, 9)] == [1, 4, 5, 5]
    assert choose_size([], 3) == 1
    for wrong in (0, -1, 1.5, "many", True):
        with pytest.raises(ParameterError, match="batch_size"):
            choose_size(rows(pair, 5), wrong)  # type: ignore[arg-type]


def test_a_cpu_stops_where_its_matrix_products_are_large_enough(pair: LoadedPair) -> None:
    """512 positions a step: W + M each, 1, or the whole canvas."""
    many = 2000
    assert choose_size(rows(pair, many, recompute_window=16, max_lookahead=32)) == 512 // 48
    assert choose_size(rows(pair, many, recompute_window=16, max_lookahead="all")) == 512 // 80
    assert choose_size(rows(pair, many, recompute_window="all", max_lookahead=32)) == 512 // 68
    assert choose_size(rows(pair, many, "autoregressive")) == 256
    assert choose_size(rows(pair, many, "threshold")) == 512 // 68
    assert choose_size(rows(pair, many, "threshold", max_tokens=700)) == 1
    assert choose_size(rows(pair, 3)) == 3


def test_a_row_takes_its_caches_its_logits_and_its_activations(pair: LoadedPair) -> None:
    def kv(net: Any, positions: int) -> int:
        c = net.config
        return 4 * 2 * c.num_layers * c.num_kv_heads * c.head_dim * positions

    assert pair.verifier is not None
    base = row_bytes(rows(pair, 1, max_lookahead=8))
    longer = row_bytes(rows(pair, 1, max_lookahead=8, max_tokens=164))
    assert longer - base == kv(pair.denoiser, 100) + kv(pair.verifier, 100)
    # The verifier alone asks for one row of logits and leaves the denoiser's cache out.
    assert row_bytes(rows(pair, 1, "autoregressive")) < kv(pair.denoiser, 68) + base / 2
    assert row_bytes([*rows(pair, 1, max_lookahead=8), *rows(pair, 1, "threshold")]) > base


def test_a_gpu_pads_rows_too(pair: LoadedPair, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = rows(pair, 1, max_lookahead=8, max_tokens=512)
    requests = [replace(requests[0], prompt_ids=tuple(range(5, 505)))]
    base = row_bytes(requests)
    monkeypatch.setattr(
        type(pair.denoiser.model.embed_tokens.weight), "device", torch.device("cuda")
    )
    assert pair.verifier is not None
    configs = pair.denoiser.config, pair.verifier.config
    most = max(padded_bytes(config, 508, 1012, 4) for config in configs)
    assert most > 4 * 512 * 1012  # the verifier's mask
    assert base < row_bytes(requests) <= base + most


def test_memory_bounds_auto_and_refuses_a_number(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = rows(pair, 50, max_lookahead=8)
    each = row_bytes(requests)
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 5 * each)
    assert choose_size(requests) == 4  # nine tenths of it
    assert choose_size(requests, 5) == 5
    with pytest.raises(DeviceError, match="lower the batch size to 5, or use auto") as caught:
        choose_size(requests, 6)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: 0)
    assert choose_size(requests) == choose_size(requests, 1) == 1
    monkeypatch.setattr(batch_size, "free_bytes", lambda device: None)
    assert choose_size(requests, 50) == 50


def test_a_full_gpu_says_what_was_needed_and_what_to_lower(
    pair: LoadedPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what would help: no smaller weights where they are that small, nor where none fit."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 79 * 2**30))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
    net = deepcopy(pair.denoiser).bfloat16()
    weight = net.model.embed_tokens.weight
    monkeypatch.setattr(type(weight), "device", torch.device("cuda", 0))
    told = (
        "cuda:0 has no room for a forward of 32 rows at once (needed 2.00 GiB more; 0.50 of "
        "79.00 GiB are free); lower --batch-size, --max-tokens or -M, or shorten the prompts; "
        "or use --quantize int8 or --device cpu"
    )
    assert str(out_of_memory(error, 32, net)) == told
    monkeypatch.setattr(batch_size, "unfit", lambda config, name: "no")
    told = told.replace("--quantize int8 or ", "").replace("32 rows at once", "1 row")
    assert str(out_of_memory(error, 1, net)) == told


def test_this_machine_says_what_is_free() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
