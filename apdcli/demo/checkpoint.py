"""Training state on disk: safetensors shards of at most 16 MiB and one JSON file, no pickle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARD_BYTES = 16 * 2**20 - 65536  # room for the header


@dataclass(frozen=True)
class Progress:
    """Where a network's training stands: the next pool of the current stage."""

    stage: int = 0
    pool: int = 0
    tokens: int = 0
    seconds: float = 0.0


def save(folder: Path, tensors: Mapping[str, Tensor], progress: Progress) -> None:
    """Write a complete checkpoint beside the old one, then put it in its place."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for stale in (fresh, old):
        shutil.rmtree(stale, ignore_errors=True)
    fresh.mkdir(parents=True)
    shard: dict[str, Tensor] = {}
    size = count = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            save_file(shard, fresh / f"state-{count:03d}.safetensors")
            shard, size, count = {}, 0, count + 1
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    save_file(shard, fresh / f"state-{count:03d}.safetensors")
    (fresh / "progress.json").write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
    if folder.exists():
        folder.replace(old)
    fresh.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[dict[str, Tensor], Progress] | None:
    """The checkpoint's tensors and progress, or None if there is none."""
    place = (
        folder if (folder / "progress.json").exists() else folder.with_name(folder.name + ".old")
    )
    if not (place / "progress.json").exists():
        return None
    tensors: dict[str, Tensor] = {}
    for shard in sorted(place.glob("state-*.safetensors")):
        tensors |= load_file(shard)
    progress = Progress(**json.loads((place / "progress.json").read_text(encoding="utf-8")))
    return tensors, progress


@torch.no_grad()
def restore(target: Mapping[str, Tensor], saved: Mapping[str, Tensor], prefix: str) -> None:
    """Copy every `prefix` tensor of `saved` into `target`; names must match exactly."""
    names = {n.removeprefix(prefix) for n in saved if n.startswith(prefix)}
    if names != set(target):
        raise ValueError(f"checkpoint does not fit: {sorted(names ^ set(target))[:4]} differ")
    for name in names:
        target[name].copy_(saved[prefix + name])
