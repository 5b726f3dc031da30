"""Tasks by name: a file, a folder, or a family of the embedded pair's corpus. Loads no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from random import Random

from apdcli.demo.corpus import FAMILIES, check, probes
from apdcli.demo.corpus.base import Example
from apdcli.errors import InputError, UsageError
from apdcli.load.home import home_path
from apdcli.load.profile import nearest
from apdcli.tasks.files import placed, read_values
from apdcli.tasks.formats import header_of, read_record
from apdcli.tasks.scorers import SCORERS, ScorerInfo
from apdcli.tasks.types import Item, Task

SPLITS = ("tune", "test", "train")
EVERY = ("all", "demo")
PER_FAMILY = 50
CHECKER = "checker"  # the families' own exact checkers, by the name that results show


def load_task(
    name: str,
    *,
    split: str = "tune",
    scorer: str | None = None,
    allow_code: bool = False,
    limit: int | None = None,
    seed: int = 0,
) -> Task:
    """A task, ready to be run.

    Args:
        name: a task file (JSON Lines or JSON, also gzipped; see `apdcli.tasks.formats`) or a
            folder of such files; a family of the embedded pair's corpus ("sums", "sort", ...); or
            "all" or "demo", every family that the embedded pair was trained for.
        split: "tune", "test" or "train" of the corpus; a file has no splits.
        scorer: in place of the one that the file names or its form implies.
        allow_code: run the code of answers where the scorer needs it.
        limit: at most so many items, of each family as many as can be, drawn with the seed; None:
            a whole file, or 50 prompts of each family.
        seed: which prompts are drawn.

    Raises:
        UsageError: unknown task, split or scorer; a limit below 1; code without `allow_code`.
        InputError: a file that is missing, empty or damaged (with the line).
    """
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: it must be an integer >= 1")
    if scorer is not None and scorer not in SCORERS:
        raise UsageError(f"scorer {scorer!r} is not known; {_known(scorer, SCORERS)}")
    if is_file(name):
        items, chosen = _from_file(home_path(name), scorer)
        if chosen.runs_code and not allow_code:
            raise UsageError(
                f"task {name} runs the code that the model writes; give --allow-code "
                "(allow_code=True) if you want that"
            )
        drawn = items if limit is None else balanced(items, limit, seed)
        return make_task(name, drawn, chosen.name, chosen)
    drawn = _from_corpus(name, split, limit, seed)
    if scorer is None:
        return Task(name, drawn, CHECKER, _check, digest_of(drawn, CHECKER))
    for item in drawn:
        problem = SCORERS[scorer].problem(item)
        if problem is not None:
            raise UsageError(f"scorer {scorer!r} cannot judge task {name!r}: {problem}")
    return make_task(name, drawn, scorer, SCORERS[scorer])


def is_file(name: str) -> bool:
    """Whether a task's name means a file or folder rather than a family."""
    return name not in (*EVERY, *FAMILIES) and (
        home_path(name).exists() or "/" in name or "\\" in name or Path(name).suffix != ""
    )


def make_task(name: str, items: Sequence[Item], scorer: str, info: ScorerInfo) -> Task:
    """A task of these items, judged by a scorer of the table."""
    return Task(name, tuple(items), scorer, info.score, digest_of(items, scorer))


def digest_of(items: Iterable[Item], scorer: str) -> str:
    """SHA-256, in hex, of everything that decides what is asked and how it is judged."""
    parts = [
        [item.id, [dict(m) for m in item.messages], item.answer, dict(item.facts)] for item in items
    ]
    text = json.dumps([scorer, parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def family_of(item: Item) -> str:
    """The family an item belongs to; "" where the task has none."""
    return str(item.facts.get("family", ""))


def balanced(items: Sequence[Item], limit: int, seed: int) -> tuple[Item, ...]:
    """At most `limit` items, drawn with a seed, of each family as many as can be, in turns.

    A smaller limit gives the beginning of what a larger one gives.
    """
    groups: dict[str, list[Item]] = {}
    for item in items:
        groups.setdefault(family_of(item), []).append(item)
    for name, group in groups.items():
        Random(f"{seed}-{name}").shuffle(group)
    return in_turns(groups.values())[:limit]


def in_turns(groups: Iterable[Sequence[Item]]) -> tuple[Item, ...]:
    """The first of each group, then the second of each, ...: every beginning is balanced."""
    queues = [list(group) for group in groups]
    longest = max(map(len, queues), default=0)
    return tuple(q[i] for i in range(longest) for q in queues if i < len(q))


def _from_file(path: Path, scorer: str | None) -> tuple[tuple[Item, ...], ScorerInfo]:
    """The items of a file in its order, and what judges them: named, by the file, by its form."""
    first, *rest = values = read_values(path)
    named = placed(first.where, lambda: header_of(first.value))
    if named is not None and named not in SCORERS:
        raise InputError(f"{first.where}: scorer {named!r} is not known; {_known(named, SCORERS)}")
    records = values if named is None else rest
    if not records:
        raise InputError(f"{path} has no prompts after its first line")
    read = [
        placed(r.where, lambda r=r, n=n: read_record(r.value, n))  # type: ignore[misc]
        for n, r in enumerate(records, 1)
    ]
    implied = next((form for _, form in read if form is not None), None)
    chosen = scorer or named or implied
    if chosen is None:
        raise UsageError(
            f"{path} does not say how to judge an answer: give --scorer NAME, or a first line "
            f'like {{"scorer": "exact"}}; there are: {", ".join(SCORERS)}'
        )
    info = SCORERS[chosen]
    seen: dict[str, str] = {}
    for record, (item, _) in zip(records, read, strict=True):
        if item.id in seen:
            raise InputError(f"{record.where}: id {item.id!r} is that of {seen[item.id]}, too")
        seen[item.id] = record.where
        problem = info.problem(item)
        if problem is not None:
            raise InputError(f"{record.where}: {problem} (scorer {chosen})")
    return tuple(item for item, _ in read), info


def _from_corpus(name: str, split: str, limit: int | None, seed: int) -> tuple[Item, ...]:
    families = pair_families() if name in EVERY else (name,)
    unknown = [f for f in families if f not in FAMILIES]
    if unknown:
        near = nearest(name, (*EVERY, *FAMILIES))
        known = near or f"families: {', '.join((*EVERY, *FAMILIES))}"
        raise UsageError(f"no task {name!r}: there is no such file, and no such family; {known}")
    if split not in SPLITS:
        raise UsageError(f"split {split!r} is not known; there are: {', '.join(SPLITS)}")
    each = PER_FAMILY if limit is None else -(-limit // len(families))
    while True:
        # Every beginning of a family's probes is the same, however many are asked for.
        groups: dict[str, list[Item]] = {family: [] for family in families}
        for example in probes(seed, split, each):
            if example.family in groups:
                groups[example.family].append(_item(example))
        drawn = in_turns(groups.values())
        if limit is None or len(drawn) >= limit or max(map(len, groups.values())) < each:
            return drawn[:limit]
        each *= 2  # a family with a small world gave fewer: the others make up for it


def pair_families() -> tuple[str, ...]:
    """The families that the embedded pair was trained for."""
    text = (resources.files("apdcli.demo") / "pair" / "world.json").read_text(encoding="utf-8")
    return tuple(str(name) for name in json.loads(text)["families"])


def _item(example: Example) -> Item:
    text = repr(example.messages).encode()
    name = f"{example.family}/{hashlib.sha256(text).hexdigest()[:12]}"
    facts = {"family": example.family, "facts": dict(example.facts)}
    return Item(name, example.messages, example.answer, facts)


def _check(item: Item, text: str) -> float:
    family = family_of(item)
    example = Example(family, tuple(map(dict, item.messages)), item.answer, item.facts["facts"])
    return float(check(example, text))


def _known(name: str, known: Iterable[str]) -> str:
    return nearest(name, known) or f"there are: {', '.join(known)}"
