"""How far the pair's confidences can be believed, measured on reference answers of a split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

import torch

from apdcli.demo.corpus import Example
from apdcli.demo.metrics import expected_calibration_error, reliability
from apdcli.engine.pair import LoadedPair

AHEAD = 16  # masked positions looked at behind each cursor


@dataclass
class Seen:
    """Confidence of the most likely token, and whether it was the reference's."""

    confidences: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)

    def add(self, probabilities: torch.Tensor, targets: Sequence[int]) -> None:
        """probabilities [positions, vocab] against one target id for each position."""
        best = probabilities.max(-1)
        self.confidences += best.values.tolist()
        self.hits += [i == t for i, t in zip(best.indices.tolist(), targets, strict=True)]

    def summary(self) -> dict[str, Any]:
        """Error, accuracy, count and the reliability curve."""
        curve = reliability(self.confidences, self.hits)
        return {
            "positions": len(self.hits),
            "accuracy": sum(self.hits) / len(self.hits),
            "ece": expected_calibration_error(curve),
            "curve": [asdict(b) for b in curve],
        }


@torch.inference_mode()
def calibrate(pair: LoadedPair, examples: Sequence[Example], seed: int = 0) -> dict[str, Any]:
    """Calibration of the denoiser (next position, and the whole lookahead) and of the verifier.

    For each example: two random cursors in the reference answer; the denoiser sees the reference
    before the cursor and `AHEAD` masks after it (end tokens follow the answer).  The verifier
    predicts every position of the answer from the reference before it.
    """
    rng = Random(seed)
    seen: dict[str, Seen] = defaultdict(Seen)
    stop = min(pair.stop_ids)
    mask = pair.denoiser.config.mask_id
    assert mask is not None
    for example in examples:
        prompt = list(pair.prompt_ids(example.messages))
        answer = [*pair.tokenizer.encode(example.answer), stop]
        for cursor in rng.sample(range(len(answer)), min(2, len(answer))):
            targets = (answer + [stop] * AHEAD)[cursor : cursor + AHEAD]
            ids = prompt + answer[:cursor] + [mask] * AHEAD
            rows = _probabilities(pair.denoiser, ids, len(ids) - AHEAD - 1, mask)[:AHEAD]
            seen["denoiser_next"].add(rows[:1], targets[:1])
            seen["denoiser_lookahead"].add(rows, targets)
        if pair.verifier is not None:
            ids = prompt + answer
            rows = _probabilities(pair.verifier, ids, len(prompt) - 1, mask)[: len(answer)]
            seen["verifier_next"].add(rows, answer)
    return {name: found.summary() for name, found in seen.items()}


def _probabilities(net: Any, ids: list[int], first: int, mask: int) -> torch.Tensor:
    """softmax of the raw outputs from row `first` on, [rows, vocab] float32, without the mask."""
    device = next(net.parameters()).device
    hidden = net.hidden(torch.tensor([ids], device=device))[0, first:]
    logits = net.head(hidden).float()
    logits[:, mask] = -torch.inf
    return torch.softmax(logits, -1).cpu()
