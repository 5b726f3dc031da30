"""The least uncertain positions first: Dream's entropy order (arXiv 2508.15487)."""

from __future__ import annotations

from torch import Tensor

from apdcli.decode.sampling import entropy
from apdcli.decode.strategies.blocks import Reading
from apdcli.decode.strategies.margin import Margin


class Entropy(Margin):
    """Commit the positions of least entropy."""

    def score(self, x: Reading) -> tuple[Tensor, ...]:
        """-H, after temperature and filters as in the original."""
        return (-entropy(self.sampler.shaped(x.logits)),)
