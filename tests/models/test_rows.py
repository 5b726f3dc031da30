"""Many rows in one forward: each row's hidden states are those of the row alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from apdcli.models.cache import KVCache
from apdcli.models.config import ModelConfig
from apdcli.models.packed import packed
from apdcli.models.rows import RowCache, Span, hidden_rows, padded_bytes
from apdcli.models.transformer import Transformer

CONFIG = ModelConfig.from_hf(
    {
        "model_type": "Dream",
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "mask_token_id": 3,
        "eos_token_id": 0,
    }
)
CAPACITY = 44
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}


def network(causal: bool) -> Transformer:
    net = Transformer(replace(CONFIG, causal=causal, tied=causal, qkv_bias=not causal))
    net.init_weights(torch.Generator().manual_seed(0), std=0.2)
    return net.eval()


ALONE = {causal: network(causal) for causal in (True, False)}
PACKED = {causal: packed(network(causal)) for causal in (True, False)}


class Row:
    """One text and its cache in the plain transformer, which knows nothing of batches."""

    def __init__(self, causal: bool) -> None:
        self.net = ALONE[causal]
        self.cache = KVCache(CONFIG, CAPACITY)

    def hidden(self, span: Span) -> Tensor:
        whole = self.net.hidden(span.tokens[None], span.start, self.cache)[0]
        return whole[span.wanted.start : span.wanted.stop]


@st.composite
def spans(draw: st.DrawFn, lengths: list[int]) -> list[Span]:
    """Windows of some of the rows, each beginning in what its row has cached or right after."""
    count = len(lengths)
    rows = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True))
    made = []
    for row in rows:
        start = draw(st.integers(0, min(lengths[row], CAPACITY - 1)))
        size = draw(st.integers(1, CAPACITY - start))
        ids = draw(st.lists(st.integers(0, 39), min_size=size, max_size=size))
        first = draw(st.integers(0, size - 1))
        wanted = range(first, draw(st.integers(first + 1, size)))
        made.append(Span(row, torch.tensor(ids), start, wanted))
    return made


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
@torch.inference_mode()
def test_every_row_is_as_it_is_alone(causal: bool, padded: bool, data: st.DataObject) -> None:
    """Several forwards in a row: other rows, other windows, crops between them."""
    count = data.draw(st.integers(1, 5), label="rows")
    alone = [Row(causal) for _ in range(count)]
    cache = RowCache(CONFIG, count, CAPACITY)
    # What was never written must never be seen.
    cache.keys.fill_(1e3)
    cache.values.fill_(1e6)
    for _ in range(3):
        chosen = data.draw(spans(cache.lengths), label="spans")
        for span in chosen:
            # A causal model has nothing behind a window; a denoiser may have (dual caches).
            if causal or data.draw(st.booleans(), label="forget what is behind"):
                cache.crop(span.row, span.start)
                alone[span.row].cache.crop(span.start)
        got = hidden_rows(PACKED[causal], cache, chosen, padded=padded)
        expected = torch.cat([alone[span.row].hidden(span) for span in chosen])
        torch.testing.assert_close(got, expected, **TOLERANCE)
        assert cache.lengths == [row.cache.length for row in alone]


LONG = replace(CONFIG, max_positions=1200)


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """(rows, queries, keys) of every attention from here on, by a kernel of another layout.

    CUDA's memory-efficient kernel answers with [rows, T, heads, head_dim], heads and T swapped.
    """
    seen: list[tuple[int, int, int]] = []
    inner = F.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        seen.append((len(q), q.shape[2], k.shape[2]))
        out: Tensor = inner(q, k, v, **options)
        return out.transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    return seen


@pytest.mark.parametrize("causal", [True, False])
@torch.inference_mode()
def test_padded_shapes_are_few_and_change_nothing(
    causal: bool, shapes: list[tuple[int, int, int]]
) -> None:
    """As on CUDA: texts of many lengths, and a kernel whose result lies otherwise in memory."""
    generator = torch.Generator().manual_seed(0)
    net = Transformer(replace(LONG, causal=causal, tied=causal, qkv_bias=not causal))
    net.init_weights(torch.Generator().manual_seed(0), std=0.2)
    net.eval()
    fast = packed(net)
    cache = RowCache(LONG, 3, 701)
    alone = [KVCache(LONG, 701) for _ in range(3)]
    forwards = [((0, 30), (1, 41), (2, 7)), ((0, 300), (2, 600))]
    forwards += [((0, 20 + n), (1, 17), (2, 3 + n)) for n in range(12)]
    for forward in forwards:
        made = []
        for row, size in forward:
            start = cache.lengths[row] - min(cache.lengths[row], 3)
            cache.crop(row, start)
            alone[row].crop(start)
            ids = torch.randint(0, 40, (size,), generator=generator)
            made.append(Span(row, ids, start, range(1, size)))
        got = hidden_rows(fast, cache, made, padded=True)
        own = (net.hidden(s.tokens[None], s.start, alone[s.row])[0, 1:] for s in made)
        torch.testing.assert_close(got, torch.cat(list(own)), **TOLERANCE)
    groups = LONG.num_heads // LONG.num_kv_heads
    together = {(queries // groups, keys) for rows, queries, keys in shapes if rows == 3}
    assert together == {(48, 256), (768, 704), (24, 704), (32, 704)}


@pytest.mark.parametrize("causal", [True, False])
@torch.inference_mode()
def test_what_padded_rows_take_is_known_before(
    causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mask, the queries and their answers, as large as they are in fact."""
    taken: list[int] = []
    inner = F.scaled_dot_product_attention

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
        out: Tensor = inner(q, k, v, attn_mask=attn_mask)
        taken.append(sum(array.untyped_storage().nbytes() for array in (q, attn_mask, out)))
        return out

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    cache = RowCache(CONFIG, 3, CAPACITY)
    made = [Span(row, torch.arange(size), 0, range(size)) for row, size in enumerate((37, 4, 20))]
    hidden_rows(PACKED[causal], cache, made, padded=True)
    before = 3 * padded_bytes(replace(CONFIG, causal=causal), 37, CAPACITY, 4)
    one_line = 0 if causal else 4 * 3 * (CAPACITY + 4)
    assert before / 1.5 < max(taken) <= before + one_line


@torch.inference_mode()
def test_other_rows_and_stale_keys_change_nothing() -> None:
    """Not a bit changes in a row, whatever stands in the other slots and behind its end."""
    for padded in (True, False):
        outs = []
        for seed in (0, 1):
            generator = torch.Generator().manual_seed(seed)
            cache = RowCache(CONFIG, 3, CAPACITY)
            cache.keys.normal_(0, 10, generator=generator)
            cache.values.normal_(0, 10, generator=generator)
            other = torch.randint(0, 40, (9,), generator=generator)
            own = torch.arange(5, 17)
            made = [Span(2, other, 0, range(9)), Span(0, own, 0, range(12))]
            outs.append(hidden_rows(PACKED[False], cache, made, padded=padded)[9:])
        assert torch.equal(*outs)


@torch.inference_mode()
def test_the_cache_is_bounded_and_costs_nothing_unused() -> None:
    cache = RowCache(CONFIG, 2, 8)
    assert "keys" not in vars(cache)
    assert "values" not in vars(cache)
    with pytest.raises(ValueError, match="position 8 in a cache of 8"):
        hidden_rows(PACKED[False], cache, [Span(1, torch.arange(6), 3, range(6))])
    hidden_rows(PACKED[False], cache, [Span(1, torch.arange(6), 0, range(6))])
    assert cache.keys.shape == cache.values.shape == (3, 2, 2, 8, 8)
    assert cache.lengths == [0, 6]
    for length, expected in ((7, 6), (4, 4), (-1, 0)):
        cache.crop(1, length)
        assert cache.lengths == [0, expected]
