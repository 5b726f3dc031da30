"""Trains the embedded pair: `python -m apdcli.demo.train --help`.

The denoiser is pre-trained causally (every token is a training signal), then the same weights are
adapted to masks with full attention and Dream's shift.  The verifier is a smaller causal network
on the same corpus.  Progress goes to stderr; a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from apdcli.demo import checkpoint, quick
from apdcli.demo import tokenizer as tokens
from apdcli.demo.checkpoint import Progress
from apdcli.demo.corpus import FAMILIES, generate, probes
from apdcli.demo.data import Batch, Row, causal_batches, encode_pool, masked_batches, pool_batches
from apdcli.demo.export import save_hub_folder
from apdcli.demo.optim import Optimizer
from apdcli.demo.recipe import ASIDE, PRESETS, VOCAB_SIZE, Plan, Stage
from apdcli.models.transformer import Transformer

PAIR = Path(__file__).parent / "pair"
CLIP = 1.0


def note(text: str) -> None:
    """One progress line on stderr, with the time of day (UTC)."""
    sys.stderr.write(time.strftime("%H:%M:%S ", time.gmtime()) + text + "\n")
    sys.stderr.flush()


@dataclass
class Run:
    """One invocation: its options and how long it may go on."""

    seed: int
    device: torch.device
    state: Path
    compile: bool
    workers: int
    deadline: float
    checkpoint_s: float
    began: float = field(default_factory=time.monotonic)

    def out_of_time(self) -> bool:
        """Whether `--max-minutes` have passed."""
        return time.monotonic() > self.deadline


def make_tokenizer(seed: int) -> Tokenizer:
    """The demo tokenizer, from the first 40,000 training examples of the seed."""
    examples = list(islice(generate(seed, "train"), 40_000))
    texts = [m["content"] for e in examples for m in e.messages] + [e.answer for e in examples]
    roles = ["system\n", "user\n", "assistant\n"] * len(examples)
    return tokens.train(texts + roles, VOCAB_SIZE)


def rate_factor(stage: Stage, pool: float) -> float:
    """Share of the peak learning rate at a (fractional) pool of the stage."""
    if pool < stage.warmup_pools:
        return stage.lr_start * (pool + 0.02) / (stage.warmup_pools + 0.02)
    done = (pool - stage.warmup_pools) / max(1e-9, stage.pools - stage.warmup_pools)
    return stage.lr_start + (stage.lr_end - stage.lr_start) * done


def batch_loss(
    net: Transformer, hidden: Callable[..., torch.Tensor], batch: Batch, causal: bool
) -> torch.Tensor:
    """Weighted mean cross entropy (nats) over the batch's targets."""
    states = hidden(batch.tokens, causal=causal).flatten(0, 1)
    logits = net.head(states[batch.rows]).float()
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return (losses * batch.weights).sum() / batch.weights.sum()


def _pools(run: Run, plan: Plan, tok: Tokenizer, at: int, first: int) -> Iterator[list[Batch]]:
    """The stage's remaining pools; with workers they are made ahead in other processes."""
    stage = plan.stages[at]
    jobs = [
        (tok, stage, run.seed, at, pool, plan.batch_tokens) for pool in range(first, stage.pools)
    ]
    if run.workers == 0:
        for job in jobs:
            yield pool_batches(*job)
        return
    with ProcessPoolExecutor(run.workers) as executor:
        ahead: list[Future[list[Batch]]] = []
        for job in jobs[: run.workers * 2]:
            ahead.append(executor.submit(pool_batches, *job))
        for number in range(len(jobs)):
            batches = ahead.pop(0).result()
            if number + run.workers * 2 < len(jobs):
                ahead.append(executor.submit(pool_batches, *jobs[number + run.workers * 2]))
            yield batches


class Trainer:
    """One network on its way through the stages of its plan."""

    def __init__(self, run: Run, name: str, plan: Plan, tok: Tokenizer) -> None:
        self.run, self.name, self.plan, self.tok = run, name, plan, tok
        self.net = Transformer(plan.config)
        self.net.init_weights(torch.Generator().manual_seed(run.seed))
        self.net.to(run.device)
        self.optimizer = Optimizer(self.net, plan.matrix_lr, plan.vector_lr)
        self.hidden: Callable[..., torch.Tensor] = self.net.hidden
        if run.compile:
            # Two directions, two modes and a few shapes; past the limit it would run eagerly.
            torch._dynamo.config.recompile_limit = 64
            self.hidden = torch.compile(self.net.hidden, dynamic=True)
        self.progress = Progress()
        self.folder = run.state / name
        found = checkpoint.load(self.folder)
        if found is not None:
            checkpoint.restore(self.net.state_dict(), found[0], "net.")
            checkpoint.restore(self.optimizer.state, found[0], "optimizer.")
            self.progress = found[1]
        self.held_out = encode_pool(tok, run.seed, "tune", {}, 256)
        self.probes = probes(run.seed, "tune", 16)

    def finished(self) -> bool:
        """All stages done."""
        return self.progress.stage >= len(self.plan.stages)

    def save(self) -> None:
        """Write the checkpoint."""
        state = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        state |= {f"optimizer.{k}": v for k, v in self.optimizer.state.items()}
        checkpoint.save(self.folder, state, self.progress)

    def train(self) -> bool:
        """Go on until finished (True) or out of time (False)."""
        note(f"{self.name}: {self.plan.config.num_parameters:,} parameters, {self.progress}")
        while not self.finished():
            if not self._stage(self.progress.stage):
                self.save()
                return False
            stage, done = self.progress.stage, self.progress
            self.progress = Progress(stage + 1, 0, done.tokens, done.seconds)
            self.save()
            self.report(decode=True, stage=stage)
        return True

    def _stage(self, at: int) -> bool:
        stage, saved = self.plan.stages[at], time.monotonic()
        for batches in _pools(self.run, self.plan, self.tok, at, self.progress.pool):
            began, pool = time.monotonic(), self.progress.pool
            losses = []
            for number, batch in enumerate(batches):
                factor = rate_factor(stage, pool + number / len(batches))
                losses.append(self._step(batch.to(self.run.device), stage, factor))
            count = sum(b.tokens.numel() for b in batches)
            spent = time.monotonic() - began
            loss = float(torch.stack(losses).mean())
            done = self.progress
            self.progress = Progress(at, pool + 1, done.tokens + count, done.seconds + spent)
            note(
                f"{self.name} stage {at} {stage.objective} pool {pool + 1}/{stage.pools} "
                f"loss {loss:.4f} lr {factor:.3f} {count / spent:,.0f} tok/s "
                f"total {self.progress.tokens / 1e6:.2f}M"
            )
            if time.monotonic() - saved > self.run.checkpoint_s:
                self.save()
                self.report(decode=False, stage=at)
                saved = time.monotonic()
            if self.run.out_of_time():
                return False
        return True

    def _step(self, batch: Batch, stage: Stage, factor: float) -> torch.Tensor:
        cuda = self.run.device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            # A pool's last batch may be small, and torch.compile specializes on small sizes.
            full = batch.tokens.numel() > 0.8 * self.plan.batch_tokens
            hidden = self.hidden if full else self.net.hidden
            loss = batch_loss(self.net, hidden, batch, stage.objective == "causal")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        self.optimizer.step(factor)
        return loss.detach()

    @torch.no_grad()
    def held_out_loss(self, causal: bool) -> float:
        """Mean loss on the tune split; the masks drawn are the same every time."""
        rows: list[Row] = self.held_out
        make = causal_batches if causal else masked_batches
        batches = list(make(rows, self.plan.batch_tokens, Random(self.run.seed)))
        total = [
            batch_loss(self.net, self.net.hidden, b.to(self.run.device), causal) for b in batches
        ]
        return float(torch.stack(total).mean())

    def report(self, decode: bool, stage: int) -> None:
        """Held-out loss, and accuracy per family: next tokens, or whole decoded answers."""
        causal = self.plan.stages[stage].objective == "causal"
        note(f"{self.name} held-out loss {self.held_out_loss(causal):.4f}")
        nexts = quick.next_token_accuracy(self.net, self.tok, self.probes, causal)
        _table(f"{self.name} next token", nexts)
        if decode:
            whole, wrong = quick.accuracy(self.net, self.tok, self.probes, causal)
            _table(f"{self.name} whole answers", whole)
            for example, text in wrong[:12]:
                note(f"  wrong: {example.messages[-1]['content']!r} -> {text!r}")


def _table(title: str, shares: dict[str, float]) -> None:
    mean = sum(shares.values()) / len(shares)
    cells = " ".join(f"{name} {share:.2f}" for name, share in shares.items())
    note(f"{title}: mean {mean:.4f} | {cells}")


def write_world(preset: str, seed: int, output: Path) -> None:
    """world.json beside the pair: which families it was trained to the end on, and how."""
    last = PRESETS[preset]["denoiser"].stages[-1].weights
    aside = ASIDE[preset]
    families = [n for n, f in FAMILIES.items() if last.get(n, f.weight) > 0 and n not in aside]
    made = {"preset": preset, "seed": seed, "families": families}
    tokens.write_json(output / "world.json", made)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="python -m apdcli.demo.train", description=__doc__)
    made.add_argument("--preset", choices=sorted(PRESETS), default="cpu")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--device", default="cpu", help="cpu or cuda")
    made.add_argument("--output", type=Path, default=PAIR, help="folder of the pair")
    made.add_argument("--state", type=Path, default=Path("apd-demo-state"), help="checkpoints")
    made.add_argument("--fresh", action="store_true", help="forget the checkpoints")
    made.add_argument("--only", choices=("verifier", "denoiser"), help="train one of the two")
    made.add_argument("--export", action="store_true", help="write the checkpoints as they are")
    made.add_argument("--max-minutes", type=float, default=1e9, help="stop after this; run again")
    made.add_argument("--checkpoint-minutes", type=float, default=5.0)
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    made.add_argument("--no-compile", action="store_true", help="do without torch.compile")
    return made


def main(argv: list[str] | None = None) -> int:
    """Train what is not yet trained; status 0 when all is done, 75 when time ran out first."""
    options = parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    # A trained softmax underflows; with subnormal numbers a backward pass takes 3.5 times as long.
    torch.set_flush_denormal(True)
    if options.fresh:
        shutil.rmtree(options.state, ignore_errors=True)
    options.state.mkdir(parents=True, exist_ok=True)
    run = Run(
        options.seed, torch.device(options.device), options.state, not options.no_compile,
        options.workers, time.monotonic() + options.max_minutes * 60,
        options.checkpoint_minutes * 60,
    )  # fmt: skip
    path = options.state / "tokenizer.json"
    if not path.exists():
        make_tokenizer(options.seed).save(str(path))
    tok = Tokenizer.from_file(str(path))
    for name, plan in PRESETS[options.preset].items():
        if options.only not in (None, name):
            continue
        trainer = Trainer(run, name, plan, tok)
        done = trainer.finished() or options.export or trainer.train()
        if done or options.export:
            save_hub_folder(trainer.net, tok, options.output / name)
            write_world(options.preset, options.seed, options.output)
            note(f"{name}: saved in {options.output / name}")
        if not done:
            note(f"{name}: out of time; run the same command again to go on")
            return 75
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
