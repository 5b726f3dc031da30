"""How long commands take to start: until they end, or until the first byte of an answer.

    python -m apdcli.bench.starting [--shapes dream-7b] [--repeats N] [--json] ...

Each command runs as a process of its own, in turns with `import torch`, whose time is the measure
of all: nothing that computes with torch can answer sooner. With --shapes, a pair of these sizes
with random weights is written to the disk first, as a profile that `apd generate -p` loads like any
other; it is read by an unmeasured round, so that it lies in the page cache where there is room.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from apdcli.bench.sizes import Shapes, find_shapes
from apdcli.bench.stats import Interval, Spread
from apdcli.bench.units import markdown, scaled, three
from apdcli.errors import ApdError, UsageError, reason

PROMPT = "What is seven plus five?"
TORCH = "import torch"
# Above what is read: the process itself, its caches and its arrays.
_ROOM = 1e9


@dataclass(frozen=True)
class Command:
    """A command that is timed.

    Attributes:
        name: of the row.
        words: after the interpreter.
        status: with which it ends.
        answers: whether the first byte on stdout counts, and not the end.
    """

    name: str
    words: tuple[str, ...]
    status: int = 0
    answers: bool = False

    def seconds(self) -> float:
        """Run it once.

        Raises:
            UsageError: it ended with another status.
        """
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *self.words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.read(1)
            first = time.perf_counter() - began
            _, complaint = process.communicate()
            taken = time.perf_counter() - began
        if process.returncode != self.status:
            said = " ".join(complaint.decode(errors="replace").split())[-300:]
            raise UsageError(f"{self.name}: ended with {process.returncode}: {said}")
        return first if self.answers else taken


def commands() -> list[Command]:
    """Those that are timed of every installation; the first is what others are measured by."""
    apd = ("-m", "apdcli")
    return [
        Command(TORCH, ("-c", TORCH)),
        Command("apd --help", (*apd, "--help")),
        Command("apd profiles", (*apd, "profiles")),
        Command("a usage error", (*apd, "generate", "--no-such-option"), status=2),
        Command(f'apd generate "{PROMPT}"', (*apd, "generate", PROMPT), answers=True),
    ]


def measure(timed: Sequence[Command], repeats: int) -> list[dict[str, Any]]:
    """Seconds of each, in turns, after a round that does not count.

    Args:
        timed: the first is what the others are divided by, round by round.
        repeats: rounds that count.
    """
    seconds: dict[str, list[float]] = {command.name: [] for command in timed}
    for _ in range(1 + repeats):
        for command in timed:
            seconds[command.name].append(command.seconds())
    first = seconds[timed[0].name][1:]
    rows = []
    for command in timed:
        own = seconds[command.name][1:]
        ratios = [a / b for a, b in zip(own, first, strict=True)]
        rows.append(
            {
                "name": command.name,
                "until": "the first byte" if command.answers else "the end",
                "seconds": asdict(Spread.of(own)),
                "ratio": asdict(Interval.of(ratios)),
            }
        )
    return rows


def write_pair(shapes: Shapes, folder: Path, dtype: str) -> int:
    """A profile with random weights of these sizes in files; returns their bytes.

    The embedded pair's tokenizer is given as many ids as both models have, so that their heads are
    computed as a real pair's are.

    Args:
        shapes: the sizes.
        folder: where profile.toml and the models' folders are written.
        dtype: float32, float16 or bfloat16, of the files.

    Raises:
        OSError: the disk is full, or the like.
        UsageError: fewer tokens than the embedded pair's tokenizer has.
        DeviceError: no room in memory; a network is whole in it while it is written.
    """
    import torch

    from apdcli.bench.saving import save_transformer
    from apdcli.bench.shapes import random_transformer
    from apdcli.load.hub import resolve_model
    from apdcli.load.layout import check_layout
    from apdcli.load.room import room_for

    nets = {"denoiser": shapes.denoiser, "verifier": shapes.verifier}
    configs = {role: config for role, config in nets.items() if config is not None}
    shared = min(config.vocab_size for config in configs.values())
    written = 0
    text = ""
    for seed, (role, config) in enumerate(configs.items()):
        source = resolve_model(f"embedded:{role}", base=None, revision=None)
        # The tokenizer's mask and end, in place of those of the published one.
        own = check_layout(source).config
        config = replace(config, mask_id=own.mask_id, stop_ids=own.stop_ids)
        size = config.num_parameters * getattr(torch, dtype).itemsize
        with room_for(torch.device("cpu"), f"the {role} of {shapes.name}", size):
            net = random_transformer(config, torch.device("cpu"), getattr(torch, dtype), seed)
        written += save_transformer(net, folder / role)
        del net
        _write_tokenizer(source, folder / role, shared)
        text += f'[{role}]\nmodel = "{role}"\n'
    (folder / "profile.toml").write_text(text, encoding="utf-8")
    return written


def _write_tokenizer(source: Path, folder: Path, size: int) -> None:
    """Copy a tokenizer, with as many ids as the model has: words that no text is cut into."""
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        (folder / name).write_bytes((source / name).read_bytes())
    made = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = made["model"]["vocab"]
    known = {*vocabulary.values(), *(token["id"] for token in made["added_tokens"])}
    if max(known) >= size:
        raise UsageError(f"{size} tokens are fewer than the tokenizer has; choose larger --shapes")
    vocabulary.update({f"word{n}": n for n in range(size) if n not in known})
    (folder / "tokenizer.json").write_text(json.dumps(made), encoding="utf-8")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Time what was asked for; see the module."""
    if options.repeats < 1:
        raise UsageError(f"--repeats {options.repeats}: it must be at least 1")
    timed = commands()
    found: dict[str, Any] = {"prompt": PROMPT, "repeats": options.repeats}
    with ExitStack() as held:
        if options.shapes is not None:
            shapes = find_shapes(options.shapes)
            folder = Path(
                held.enter_context(
                    tempfile.TemporaryDirectory(dir=options.scratch, prefix="apd-bench-")
                )
            )
            command, found["pair"] = _big(shapes, folder, options)
            timed.append(command)
        found["commands"] = measure(timed, options.repeats)
    return found


def _big(
    shapes: Shapes, folder: Path, options: argparse.Namespace
) -> tuple[Command, dict[str, Any]]:
    """A pair of these sizes in files, the command that answers by it, and what there is to say."""
    import shutil

    import torch

    from apdcli.engine.device import free_bytes

    stored = shapes.stored[0] if len(shapes.stored) == 1 else "float32"
    needed = shapes.parameters * getattr(torch, stored).itemsize
    free = shutil.disk_usage(folder).free
    if free < 1.05 * needed:
        raise UsageError(
            f"{folder.parent} has {scaled(free, 'B')} free and {shapes.name} takes "
            f"{scaled(needed, 'B')}; name another folder by --scratch"
        )
    written = write_pair(shapes, folder, stored)
    room = free_bytes(torch.device("cpu"))
    words = ["-m", "apdcli", "generate", "-p", str(folder / "profile.toml"), "-n", "16"]
    words += ["-M", "32", "--device", options.device, "--dtype", options.dtype, PROMPT]
    command = Command(f"the same by {shapes.name}", tuple(words), answers=True)
    warm = room is None or room > written + _ROOM
    about = {"shapes": shapes.name, "stored": stored, "bytes": written, "in_page_cache": warm}
    return command, {**about, "device": options.device, "dtype": options.dtype}


def text_of(found: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = []
    for row in found["commands"]:
        spread, ratio = row["seconds"], row["ratio"]
        rows.append(
            [
                f"{row['name']}, to {row['until']}",
                f"{spread['median']:.2f} s ({spread['least']:.2f} to {spread['most']:.2f})",
                f"{three(ratio['median'])} ({three(ratio['low'])} to {three(ratio['high'])})",
            ]
        )
    table = markdown(["command", "median", f"x {TORCH}"], rows)
    if "pair" not in found:
        return table
    pair = found["pair"]
    where = "read from the page cache" if pair["in_page_cache"] else "too large for the page cache"
    seconds = median(row["seconds"]["median"] for row in found["commands"][-1:])
    rate = scaled(pair["bytes"] / seconds, "B/s")
    return (
        f"{table}\n{pair['shapes']}: {scaled(pair['bytes'], 'B')} in {pair['stored']}, {where}; "
        f"{rate} to the first byte\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, or one JSON object."""
    parser = argparse.ArgumentParser(
        prog="python -m apdcli.bench.starting",
        description=(__doc__ or "").split("\n", 1)[0],
    )
    parser.add_argument("--shapes", help="also a pair of these sizes (dream-7b: 16 GB of files)")
    parser.add_argument("--device", default="auto", help="of that pair [%(default)s]")
    parser.add_argument("--dtype", default="auto", help="of that pair [%(default)s]")
    parser.add_argument("--scratch", type=Path, help="folder for its files [the system's]")
    parser.add_argument("--repeats", type=int, default=7, help="rounds [%(default)s]")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        found = run(options)
    except ApdError as error:
        sys.stderr.write(f"apdcli.bench.starting: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"apdcli.bench.starting: {error.filename}: {reason(error)}\n")
        return 1
    sys.stdout.write(json.dumps(found) + "\n" if options.json else text_of(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
