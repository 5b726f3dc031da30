"""Tokenizer, batches, checkpoint and export: everything of the recipe but the long run."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from apdcli.demo import checkpoint, data, export, optim, quick, recipe, train
from apdcli.demo import tokenizer as tokens
from apdcli.demo.checkpoint import Progress
from apdcli.demo.corpus import FAMILIES, generate, probes
from apdcli.demo.recipe import Plan, Stage
from apdcli.models.config import ModelConfig
from apdcli.models.transformer import Transformer

TINY = ModelConfig(
    family="Dream", vocab_size=700, hidden_size=16, intermediate_size=32, num_layers=1,
    num_heads=2, num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6, max_positions=512,
    causal=False, shift=True, tied=False, qkv_bias=True, mask_id=3, stop_ids=(0,),
)  # fmt: skip


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    examples = list(islice(generate(0, "train"), 3000))
    texts = [m["content"] for e in examples for m in e.messages] + [e.answer for e in examples]
    return tokens.train(texts + ["user\n", "assistant\n", "system\n"] * 500, 700)


@pytest.fixture(scope="module")
def rows(tok: Tokenizer) -> list[data.Row]:
    return data.encode_pool(tok, 0, "train", {}, 200)


def test_special_tokens_stand_first_and_digits_stand_alone(tok: Tokenizer) -> None:
    assert [tok.token_to_id(t) for t in tokens.SPECIALS] == [0, 1, 2, 3]
    assert tok.get_vocab_size() <= 2048
    assert tok.encode("12 + 305").tokens == ["1", "2", "Ġ+", "Ġ", "3", "0", "5"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_survives_the_tokenizer(tok: Tokenizer, name: str) -> None:
    rng = Random(0)
    for _ in range(20):
        example = FAMILIES[name].make(rng)
        for text in (example.answer, *(m["content"] for m in example.messages)):
            ids = tok.encode(text).ids
            assert tok.decode(ids) == text
            assert max(ids) < tok.get_vocab_size()
        if name not in ("signs", "counting"):  # mostly digits, each a token of its own
            assert len(tok.encode(example.answer).ids) < len(example.answer) * 0.7


def test_the_answer_is_encoded_alike_alone_and_after_its_prompt(tok: Tokenizer) -> None:
    for example in islice(generate(1, "train"), 100):
        prompt = tokens.chat_text(example.messages)
        joint = tok.encode(prompt + example.answer).ids
        assert joint == tok.encode(prompt).ids + tok.encode(example.answer).ids


def test_the_template_renders_what_training_sees(tok: Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokens.save(tok, tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for example in islice(generate(2, "train"), 20):
        text = loaded.apply_chat_template(
            list(example.messages), tokenize=False, add_generation_prompt=True
        )
        assert text == tokens.chat_text(example.messages)


def test_causal_batches_predict_every_next_token(rows: list[data.Row]) -> None:
    batches = list(data.causal_batches(rows, 1024, Random(0)))
    assert sum(len(b.tokens) for b in batches) == len(rows)
    for batch in batches:
        assert batch.tokens.numel() <= 1024
        flat = batch.tokens.flatten()
        assert torch.equal(flat[batch.rows + 1], batch.targets)


def test_masked_batches_hide_what_they_ask_for_and_shift_by_one(rows: list[data.Row]) -> None:
    batches = list(data.masked_batches(rows, 2048, Random(0)))
    assert sum(len(b.tokens) for b in batches) == len(rows)
    for batch in batches:
        flat = batch.tokens.flatten()
        assert bool((flat[batch.rows + 1] == tokens.MASK_ID).all())
        assert int((flat == tokens.MASK_ID).sum()) == len(batch.rows)
        assert not bool((batch.targets == tokens.MASK_ID).any())
        # Every row has something to predict, and its prompt is never hidden.
        lines = set((batch.rows // batch.tokens.shape[1]).tolist())
        assert lines == set(range(len(batch.tokens)))
        assert not bool((batch.tokens[:, :4] == tokens.MASK_ID).any())


def test_earlier_answers_are_found_between_their_opening_and_their_end(tok: Tokenizer) -> None:
    for row in data.encode_pool(tok, 3, "train", {}, 30, history=1.0):
        spans = data._earlier_answers(row.prompt)
        text = tok.decode(row.prompt, skip_special_tokens=False)
        answers = [turn.split(tokens.IM_END)[0] for turn in text.split("assistant\n")[1:-1]]
        assert [tok.decode([row.prompt[at] for at in span]) for span in spans] == answers


def test_earlier_answers_are_targets_too_and_only_they_are_hidden_before_the_last(
    tok: Tokenizer,
) -> None:
    rows = data.encode_pool(tok, 4, "train", {}, 60, history=1.0)
    by_prompt = {tuple(t for t in row.prompt): row for row in rows}
    more = 0
    for batch in data.masked_batches(rows, 4096, Random(0), near=2.0, answers=0.7):
        flat = batch.tokens.flatten()
        assert bool((flat[batch.rows + 1] == tokens.MASK_ID).all())
        assert int((flat == tokens.MASK_ID).sum()) == len(batch.rows) == len(batch.weights)
        whole = flat.clone()
        whole[batch.rows + 1] = batch.targets
        for shown, line in zip(batch.tokens, whole.view_as(batch.tokens), strict=True):
            row = next(r for p, r in by_prompt.items() if tuple(line[: len(p)].tolist()) == p)
            hidden = {at for at, t in enumerate(shown.tolist()) if t == tokens.MASK_ID}
            earlier = {at for at in hidden if at < len(row.prompt)}
            assert earlier <= {at for span in data._earlier_answers(row.prompt) for at in span}
            assert hidden - earlier
            more += bool(earlier)
    assert len(rows) * 0.4 < more < len(rows) * 0.75


def test_without_earlier_answers_as_targets_batches_stay_what_they_were(
    rows: list[data.Row],
) -> None:
    plain = list(data.masked_batches(rows, 2048, Random(7)))
    for one, other in zip(plain, data.masked_batches(rows, 2048, Random(7), 0.0, 0.0), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert not bool((one.tokens[:, :4] == tokens.MASK_ID).any())


def test_a_pool_depends_on_seed_stage_and_number_alone(
    tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "POOL_EXAMPLES", 40)
    stage = Stage("masks", 3)

    def made(pool: int) -> list[torch.Tensor]:
        return [b.tokens for b in data.pool_batches(tok, stage, 5, 1, pool, 512)]

    assert all(torch.equal(a, b) for a, b in zip(made(2), made(2), strict=True))
    assert not torch.equal(made(1)[0], made(2)[0])


def test_muon_update_is_nearly_orthogonal() -> None:
    made = optim.orthogonalize(torch.randn(8, 24, generator=torch.Generator().manual_seed(0)))
    values = torch.linalg.svdvals(made)
    assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_training_lowers_the_loss(rows: list[data.Row]) -> None:
    net = Transformer(TINY)
    net.init_weights(torch.Generator().manual_seed(0))
    optimizer = optim.Optimizer(net, 0.02, 3e-3)
    batch = next(data.masked_batches(rows, 2048, Random(0)))
    losses = []
    for _ in range(12):
        loss = train.batch_loss(net, net.hidden, batch, causal=False)
        loss.backward()
        optimizer.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.5


def test_rate_warms_up_and_falls() -> None:
    stage = Stage("masks", 10, 1.0, 0.1, 2.0)
    factors = [train.rate_factor(stage, p) for p in (0.0, 1.0, 2.0, 6.0, 10.0)]
    assert factors[0] < factors[1] < factors[2] == 1.0
    assert factors[3] == pytest.approx(0.55)
    assert factors[4] == pytest.approx(0.1)


def test_checkpoint_comes_back_in_small_shards(tmp_path: Path) -> None:
    state = {"net.a": torch.randn(1000, 3000), "net.b": torch.randn(1500, 2000), "o": torch.ones(1)}
    for pool in (1, 2):
        checkpoint.save(tmp_path / "x", state, Progress(1, pool, 5, 2.0))
    shards = list((tmp_path / "x").glob("*.safetensors"))
    assert len(shards) == 2
    assert all(s.stat().st_size <= 16 * 2**20 for s in shards)
    found = checkpoint.load(tmp_path / "x")
    assert found is not None
    assert found[1] == Progress(1, 2, 5, 2.0)
    assert all(torch.equal(found[0][k], v) for k, v in state.items())
    assert checkpoint.load(tmp_path / "y") is None


def test_restore_refuses_another_network() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        checkpoint.restore({"a": torch.ones(1)}, {"net.b": torch.ones(1)}, "net.")


def test_stopped_and_resumed_equals_uninterrupted(
    tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(TINY, (Stage("causal", 1), Stage("masks", 2, warmup_pools=1.0)), 1024)
    monkeypatch.setattr(data, "POOL_EXAMPLES", 40)
    monkeypatch.setattr(train.Trainer, "report", lambda *a, **k: None)
    made = {}
    for name, limits in (("one", [1e9]), ("two", [0.0, 0.0, 0.0, 1e9])):
        for limit in limits:
            run = train.Run(0, torch.device("cpu"), tmp_path / name, False, 0, limit, 1e9)
            run.deadline += run.began if limit > 1 else 0
            trainer = train.Trainer(run, "denoiser", plan, tok)
            done = trainer.train()
        assert done
        made[name] = trainer.net.state_dict()
    assert all(torch.equal(made["one"][k], v) for k, v in made["two"].items())


def test_exported_folder_is_what_the_families_read(tok: Tokenizer, tmp_path: Path) -> None:
    net = Transformer(TINY)
    net.init_weights(torch.Generator().manual_seed(0))
    export.save_hub_folder(net, tok, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((tmp_path / "generation_config.json").read_text(encoding="utf-8"))
    assert config["use_cache"] is generation["use_cache"] is True
    assert replace(ModelConfig.from_hf(config)) == TINY
    assert (tmp_path / "model.safetensors").exists()


def test_greedy_in_a_batch_equals_greedy_alone(rows: list[data.Row]) -> None:
    net = Transformer(TINY)
    net.init_weights(torch.Generator().manual_seed(0), std=0.3)
    prompts = [r.prompt for r in rows[:4]]
    for causal in (True, False):
        together = quick.greedy(net, prompts, causal, max_new=5, ahead=4)
        alone = [quick.greedy(net, [p], causal, max_new=5, ahead=4)[0] for p in prompts]
        assert together == alone


@pytest.mark.parametrize("preset", recipe.PRESETS)
def test_presets_keep_the_sizes_that_were_promised(preset: str) -> None:
    plans = recipe.PRESETS[preset]
    sizes = {name: plan.config.num_parameters for name, plan in plans.items()}
    assert sizes["denoiser"] >= 5 * sizes["verifier"]
    assert 2 * sum(sizes.values()) < 40e6
    assert plans["denoiser"].config.max_positions >= 1024


def test_probes_fit_the_quality_table() -> None:
    assert all(len(e.answer) < 400 for e in probes(0, "test", 3))
