"""Quick looks at a network during training: sampled positions, and batched greedy decoding.

The quality table of record comes from `evaluate`, which uses the engine; this one only steers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from apdcli.demo.corpus import Example, check
from apdcli.demo.tokenizer import END_ID, MASK_ID, chat_text
from apdcli.models.transformer import Transformer


@torch.no_grad()
def greedy(
    net: Transformer, prompts: Sequence[list[int]], causal: bool, max_new: int = 72, ahead: int = 24
) -> list[list[int]]:
    """One token a step, left to right, all prompts at once (padded at the left).

    A denoiser sees `ahead` masks after the cursor.  Returns ids without the end token.
    """
    device = next(net.parameters()).device
    width = max(map(len, prompts))
    text = torch.tensor([[END_ID] * (width - len(p)) + p for p in prompts], device=device)
    real = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts])
    real = real.to(device)
    masks = torch.full((len(prompts), 0 if causal else ahead), MASK_ID, device=device)
    seen = torch.ones_like(masks, dtype=torch.bool)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    for _ in range(max_new):
        keys = torch.cat((real, seen), 1)
        hidden = net.hidden(torch.cat((text, masks), 1), mask=keys, causal=causal)
        row = net.head(hidden[:, text.shape[1] - 1]).float()
        row[:, MASK_ID] = -torch.inf
        picked = row.argmax(-1)
        done |= picked == END_ID
        text = torch.cat((text, torch.where(done, END_ID, picked)[:, None]), 1)
        real = torch.cat((real, torch.ones_like(done)[:, None]), 1)
        if bool(done.all()):
            break
    return [_until_end(line) for line in text[:, width:].tolist()]


def _until_end(ids: list[int]) -> list[int]:
    return ids[: ids.index(END_ID)] if END_ID in ids else ids


def accuracy(
    net: Transformer, tokenizer: Tokenizer, examples: Sequence[Example], causal: bool
) -> tuple[dict[str, float], list[tuple[Example, str]]]:
    """Share of right answers per family by greedy decoding, and the wrong ones."""
    encoded = tokenizer.encode_batch_fast([chat_text(e.messages) for e in examples])
    prompts = [e.ids for e in encoded]
    order = sorted(range(len(examples)), key=lambda i: len(prompts[i]))
    right: dict[str, list[bool]] = defaultdict(list)
    wrong: list[tuple[Example, str]] = []
    for begin in range(0, len(order), 64):
        part = order[begin : begin + 64]
        for index, ids in zip(part, greedy(net, [prompts[i] for i in part], causal), strict=True):
            text = tokenizer.decode(ids)
            verdict = check(examples[index], text)
            right[examples[index].family].append(verdict)
            if not verdict:
                wrong.append((examples[index], text))
    return {name: sum(v) / len(v) for name, v in sorted(right.items())}, wrong


@torch.no_grad()
def next_token_accuracy(
    net: Transformer, tokenizer: Tokenizer, examples: Sequence[Example], causal: bool
) -> dict[str, float]:
    """Per family, how often the first masked token is right with a reference prefix before it.

    Every fourth position of each reference answer is tried, its end included.
    """
    hits: dict[str, list[float]] = defaultdict(list)
    lines: dict[int, list[tuple[str, list[int], int]]] = defaultdict(list)
    for number, example in enumerate(examples):
        prompt = tokenizer.encode(chat_text(example.messages)).ids
        answer = [*tokenizer.encode(example.answer).ids, END_ID]
        for cursor in range(number % 4, len(answer), 4):
            ids = prompt + answer[:cursor] + ([] if causal else [MASK_ID] * 8)
            lines[len(ids)].append((example.family, ids, answer[cursor]))
    for length, group in lines.items():
        batch = torch.tensor([line for _, line, _ in group], device=next(net.parameters()).device)
        row = length - 1 - (0 if causal else 8)
        picked: Tensor = net.head(net.hidden(batch, causal=causal)[:, row]).argmax(-1)
        for (name, _, target), got in zip(group, picked.tolist(), strict=True):
            hits[name].append(float(got == target))
    return {name: sum(v) / len(v) for name, v in sorted(hits.items())}
