"""What is trained, how long, on which mixture: the recipe's numbers and nothing else.

Lengths are in pools of `POOL_EXAMPLES` corpus examples, not in minutes, so that the same seed
gives the same run on a faster or slower machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from apdcli.models.config import ModelConfig

POOL_EXAMPLES = 2048
VOCAB_SIZE = 1280
MAX_POSITIONS = 1024
NEAR_DECAY = 0.6


@dataclass(frozen=True)
class Stage:
    """One stretch of training with one objective.

    `objective` is "causal" (next token) or "masks" (masked positions, full attention, shift).
    The learning rate runs linearly from `lr_start` to `lr_end` (factors of the peak) after
    `warmup_pools`.  `weights` replaces the corpus' own family weights by name.  With `near`, the
    masked position d after the cursor of a masked suffix weighs 1 + near * NEAR_DECAY^d: what is
    decoded next matters most.  `history` is the share of examples that stand in a longer
    conversation, `answers` the share of masked examples in which about half the earlier answers
    are targets as well: a long conversation with one short answer teaches little for its length.
    """

    objective: str
    pools: int
    lr_start: float = 1.0
    lr_end: float = 1.0
    warmup_pools: float = 0.0
    weights: Mapping[str, float] = field(default_factory=dict)
    near: float = 0.0
    history: float = 0.0
    answers: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One network: its shape, its stages, its batch size in tokens and its peak rates."""

    config: ModelConfig
    stages: tuple[Stage, ...]
    batch_tokens: int
    matrix_lr: float = 0.02
    vector_lr: float = 3e-3


def _config(
    family: str, hidden: int, ffn: int, layers: int, heads: int, kv_heads: int, tied: bool
) -> ModelConfig:
    diffusion = family == "Dream"
    return ModelConfig(
        family=family, vocab_size=VOCAB_SIZE, hidden_size=hidden, intermediate_size=ffn,
        num_layers=layers, num_heads=heads, num_kv_heads=kv_heads, head_dim=hidden // heads,
        rope_theta=10000.0, rms_norm_eps=1e-6, max_positions=MAX_POSITIONS,
        causal=not diffusion, shift=diffusion, tied=tied, qkv_bias=True,
        mask_id=3 if diffusion else None, stop_ids=(0,),
    )  # fmt: skip


# The whole corpus, for a network that can learn it: numbers, and finding the right place.
WORLD = {
    "sums": 2.5,
    "problems": 2.2,
    "comparisons": 2.0,
    "lookups": 2.5,
    "replace": 1.8,
    "insert": 1.8,
    "remove": 1.3,
    "reverse": 1.4,
    "sort": 2.3,
    "order": 1.2,
    "signs": 1.0,
    "counting": 0.5,
    "copy": 1.2,
    "dates": 1.1,
    "units": 0.9,
    "stories": 0.9,
    "functions": 0.9,
    "help": 1.2,
    "chat": 0.9,
    "count": 0.7,
}

# What two CPU cores can finish.  The three families that need the place of one word found through
# another, and the comparison of two numbers, were far behind after 35 M tokens and are left out;
# sorting and numbers come late and get their share from the start.
SMALL_WORLD = {
    "insert": 0.0,
    "replace": 0.0,
    "lookups": 0.0,
    "comparisons": 0.0,
    "sums": 2.5,
    "problems": 2.8,
    "sequences": 3.0,
    "copy": 0.7,
    "reverse": 0.9,
    "sort": 4.2,
    "remove": 2.4,
    "count": 0.6,
    "dates": 1.1,
    "units": 0.7,
    "functions": 0.7,
    "stories": 1.3,
    "chat": 1.6,
    "help": 2.2,
}

# Copying comes late, and far sooner in causal training than on masks: until it is there, every
# family that copies a word from the question gets more, those left out later as well.
COPYING = {
    **SMALL_WORLD,
    "copy": 3.0,
    "reverse": 3.0,
    "remove": 3.0,
    "count": 2.0,
    "insert": 1.5,
    "replace": 1.5,
    "lookups": 1.5,
}

# The verifier begins on the whole corpus: three that began on the small world did not learn to look
# up where a story plays, and held the denoiser back there.
VERIFIER = {
    **SMALL_WORLD,
    "sums": 2.8,
    "problems": 2.6,
    "reverse": 0.8,
    "sort": 3.2,
    "remove": 2.2,
    "count": 0.5,
    "dates": 1.0,
    "units": 0.6,
    "functions": 0.6,
    "stories": 1.0,
    "chat": 0.9,
    "help": 2.0,
}

# Order and place in short lists.
LISTS = {**SMALL_WORLD, "sort": 7.0, "remove": 5.0, "reverse": 1.2, "copy": 1.0, "help": 3.2}

# The last stretch: numbers as a newcomer types them, and what is still wrong. What has long been
# right is met often enough to stay so.
TYPED = {
    **SMALL_WORLD,
    "order": 8.0,
    "remove": 11.0,
    "sort": 5.0,
    "signs": 1.2,
    "counting": 0.8,
    "sums": 1.5,
    "problems": 2.0,
    "sequences": 1.5,
    "reverse": 1.0,
    "stories": 1.0,
    "help": 3.2,
}

# Trained on a little, so that "count to ten" has its answer; with numbers that it has not met the
# small denoiser does not stop in the right place, so it is not of its world.
ASIDE = {"cpu": ("counting",), "gpu": ()}

PRESETS: dict[str, dict[str, Plan]] = {
    # Two CPU cores: about two and a half hours.
    "cpu": {
        "verifier": Plan(
            _config("qwen2", 96, 256, 3, 4, 4, tied=True),
            (
                Stage("causal", 60, 1.0, 0.02, 1.0),
                Stage("causal", 25, 0.3, 0.01, 1.0, weights=VERIFIER),
                Stage("causal", 14, 0.3, 0.01, 1.0, weights=SMALL_WORLD, history=0.6),
                Stage("causal", 10, 0.15, 0.01, weights=TYPED, history=0.3),
            ),
            batch_tokens=6144,
        ),
        "denoiser": Plan(
            _config("Dream", 192, 512, 6, 6, 3, tied=False),
            (
                Stage("causal", 70, 1.0, 0.7, 2.0, weights=SMALL_WORLD),
                Stage("causal", 30, 0.7, 0.5, weights=COPYING),
                Stage("masks", 110, 0.6, 0.3, 1.0, weights=SMALL_WORLD, near=4.0),
                Stage(
                    "masks", 60, 0.3, 0.2, weights=SMALL_WORLD, near=6.0, history=0.3, answers=0.7
                ),
                Stage(
                    "masks", 46, 0.2, 0.06, weights=SMALL_WORLD, near=6.0, history=0.4, answers=0.7
                ),
                Stage("masks", 26, 0.06, 0.003, weights=LISTS, near=6.0, history=0.3, answers=0.7),
                Stage("masks", 72, 0.25, 0.003, weights=TYPED, near=6.0, history=0.3, answers=0.7),
            ),
            batch_tokens=6144,
        ),
    },
    # One large GPU.
    "gpu": {
        "verifier": Plan(
            _config("qwen2", 160, 448, 4, 5, 5, tied=True),
            (
                Stage("causal", 150, 1.0, 0.3, 4.0, weights=WORLD),
                Stage("causal", 60, 0.3, 0.02, weights=WORLD, history=0.5),
            ),
            batch_tokens=32768,
        ),
        "denoiser": Plan(
            _config("Dream", 384, 1024, 8, 6, 6, tied=False),
            (
                Stage("causal", 500, 1.0, 0.7, 8.0, weights=WORLD),
                Stage("masks", 600, 0.6, 0.3, 4.0, weights=WORLD, near=4.0),
                Stage("masks", 400, 0.3, 0.1, weights=WORLD, near=6.0, history=0.3, answers=0.7),
                Stage("masks", 300, 0.1, 0.005, weights=WORLD, near=6.0, history=0.4, answers=0.7),
            ),
            batch_tokens=32768,
        ),
    },
}
