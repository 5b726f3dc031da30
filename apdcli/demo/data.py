"""Corpus examples to training batches.

A pool of examples is a pure function of (seed, stage, index), so training resumes anywhere without
replaying what came before.  Batches hold sequences of nearly one length: no attention mask is
needed, because causal rows are padded at the right and masked rows are lengthened with end tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from apdcli.demo.corpus import generate
from apdcli.demo.recipe import NEAR_DECAY, POOL_EXAMPLES, Stage
from apdcli.demo.tokenizer import END_ID, IM_END_ID, IM_START_ID, MASK_ID, chat_text

PROMPT_WEIGHT = 0.2  # the prompt's tokens teach copying too, but are mostly random words


@dataclass(frozen=True)
class Row:
    """One encoded example: prompt ids, and answer ids closed by the end token."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Batch:
    """tokens [B, T]; for each target its source row in the flattened [B * T] outputs.

    `rows` [N] are the outputs that predict, `targets` [N] the ids, `weights` [N] their share.
    """

    tokens: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(*(t.to(device) for t in (self.tokens, self.rows, self.targets, self.weights)))


def encode_pool(
    tokenizer: Tokenizer,
    seed: int,
    split: str,
    weights: Mapping[str, float],
    count: int,
    history: float = 0.0,
) -> list[Row]:
    """`count` encoded examples of the stream that `seed` fixes."""
    examples = list(islice(generate(seed, split, weights, history), count))
    prompts = tokenizer.encode_batch_fast([chat_text(e.messages) for e in examples])
    answers = tokenizer.encode_batch_fast([e.answer for e in examples])
    return [Row(p.ids, [*a.ids, END_ID]) for p, a in zip(prompts, answers, strict=True)]


def pool_batches(
    tokenizer: Tokenizer, stage: Stage, seed: int, stage_index: int, pool: int, batch_tokens: int
) -> list[Batch]:
    """All batches of one pool, in random order."""
    key = seed * 1_000_003 + stage_index * 100_003 + pool
    rows = encode_pool(tokenizer, key, "train", stage.weights, POOL_EXAMPLES, stage.history)
    rng = Random(key)
    if stage.objective == "causal":
        batches = list(causal_batches(rows, batch_tokens, rng))
    else:
        batches = list(masked_batches(rows, batch_tokens, rng, stage.near, stage.answers))
    rng.shuffle(batches)
    return batches


def _groups(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices sorted by length, cut so that rows times the longest stay within the budget."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i], reverse=True)
    while order:
        size = max(1, batch_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def causal_batches(rows: Sequence[Row], batch_tokens: int, rng: Random) -> Iterator[Batch]:
    """Every token predicts the next one; padding at the right carries no target."""
    lengths = [len(r.prompt) + len(r.answer) for r in rows]
    for group in _groups(lengths, batch_tokens):
        width = lengths[group[0]]
        tokens: list[list[int]] = []
        sources: list[int] = []
        targets: list[int] = []
        shares: list[float] = []
        for line, index in enumerate(group):
            row = rows[index]
            ids = row.prompt + row.answer
            tokens.append(ids + [END_ID] * (width - len(ids)))
            sources += range(line * width, line * width + len(ids) - 1)
            targets += ids[1:]
            shares += [PROMPT_WEIGHT] * (len(row.prompt) - 1) + [1.0] * len(row.answer)
        yield _batch(tokens, sources, targets, shares)


@dataclass(frozen=True)
class _Masking:
    """Which response positions exist (`end` of them) and which are masked."""

    end: int
    cursor: int  # suffix masking from here on; -1 for any order
    share: float  # any order: probability that a position is masked


def _draw_masking(answer: int, rng: Random) -> _Masking:
    """Half as adaptive parallel decoding sees masks (a suffix, cut at M), half as any order does.

    Beyond the answer the text is end tokens, as far as the window reaches at decoding time.
    """
    if rng.random() < 0.5:
        kind = rng.random()
        end = answer + (rng.randint(16, 100) if kind < 0.06 else rng.randint(0, 12))
        return _Masking(end, -1, rng.uniform(0.05, 1.0))
    cursor = rng.randrange(answer)
    kind = rng.random()
    if kind < 0.4:
        end = cursor + rng.randint(1, 16)
    elif kind < 0.94:
        end = answer + rng.randint(0, 16)
    else:
        end = answer + rng.randint(16, 100)
    return _Masking(end, cursor, 1.0)


def masked_batches(
    rows: Sequence[Row], batch_tokens: int, rng: Random, near: float = 0.0, answers: float = 0.0
) -> Iterator[Batch]:
    """Masked positions are predicted from the output one to their left (Dream's shift).

    `near` is the extra weight right after the cursor of a masked suffix, `answers` the share of
    rows whose earlier answers are targets too (see `Stage`).
    """
    plans = [_draw_masking(len(r.answer), rng) for r in rows]
    lengths = [len(r.prompt) + p.end for r, p in zip(rows, plans, strict=True)]
    for group in _groups(lengths, batch_tokens):
        width = lengths[group[0]]
        tokens: list[list[int]] = []
        sources: list[int] = []
        targets: list[int] = []
        shares: list[float] = []
        for line, index in enumerate(group):
            row, plan = rows[index], plans[index]
            space = width - len(row.prompt)
            text = (row.answer + [END_ID] * max(0, space - len(row.answer)))[:space]
            hidden = _hidden_positions(plan, space, rng)
            shown = [MASK_ID if h else t for t, h in zip(text, hidden, strict=True)]
            base = line * width + len(row.prompt) - 1
            sources += [base + j for j, h in enumerate(hidden) if h]
            targets += [t for t, h in zip(text, hidden, strict=True) if h]
            extra = near if plan.cursor >= 0 else 0.0
            shares += [1.0 + extra * NEAR_DECAY**d for d in range(sum(hidden))]
            prompt = list(row.prompt)
            if answers > 0 and rng.random() < answers:
                for span in _hidden_answers(row.prompt, plan, rng):
                    sources += [line * width + at - 1 for at in span]
                    targets += [prompt[at] for at in span]
                    shares += [1.0 + extra * NEAR_DECAY**d for d in range(len(span))]
                    for at in span:
                        prompt[at] = MASK_ID
            tokens.append(prompt + shown)
        yield _batch(tokens, sources, targets, shares)


def _hidden_positions(plan: _Masking, space: int, rng: Random) -> list[bool]:
    if plan.cursor >= 0:
        return [j >= plan.cursor for j in range(space)]
    hidden = [rng.random() < plan.share for _ in range(space)]
    hidden[rng.randrange(min(space, plan.end))] = True
    return hidden


def _earlier_answers(prompt: Sequence[int]) -> list[range]:
    """Where the earlier answers of a chat prompt stand, without the tokens that close them."""
    opening = list(prompt[max(at for at, token in enumerate(prompt) if token == IM_START_ID) :])
    size, found = len(opening), []
    for at in range(len(prompt) - size):
        if list(prompt[at : at + size]) == opening:
            found.append(range(at + size, prompt.index(IM_END_ID, at + size)))
    return found


def _hidden_answers(prompt: Sequence[int], plan: _Masking, rng: Random) -> list[list[int]]:
    """Positions to hide of about half the earlier answers, in the way the last one is hidden."""
    chosen = [span for span in _earlier_answers(prompt) if len(span) and rng.random() < 0.5]
    if plan.cursor >= 0:
        return [list(span[rng.randrange(len(span)) :]) for span in chosen]
    return [[at for at in span if rng.random() < plan.share] for span in chosen]


def _batch(
    tokens: list[list[int]], rows: list[int], targets: list[int], weights: list[float]
) -> Batch:
    return Batch(
        torch.tensor(tokens, dtype=torch.int64),
        torch.tensor(rows, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        torch.tensor(weights, dtype=torch.float32),
    )
