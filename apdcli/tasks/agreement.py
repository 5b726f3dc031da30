"""Quality without labels: how much of the pair's own careful answer another setting gives.

The careful answer is one token a step with everything recomputed (W = "all"), greedily; it is made
once for each pair, prompt and length and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import platformdirs

from apdcli.decode.params import LeftToRightParams
from apdcli.engine.pair import LoadedPair
from apdcli.errors import InputError, OutputError, reason
from apdcli.load.home import home_path
from apdcli.load.settings import Settings, resolve_settings
from apdcli.tasks.files import Placed, placed, read_text, read_values
from apdcli.tasks.formats import header_of, messages_of
from apdcli.tasks.identity import digest_of_values, pair_digest, settings_that_count
from apdcli.tasks.load import balanced, digest_of
from apdcli.tasks.run import answer
from apdcli.tasks.types import AGREEMENT, Item, Scorer, Task

_JSON = (".json", ".jsonl", ".gz")
_KEPT = ("max_tokens", "system", "stop")  # of the settings that are compared
Progress = Callable[[int, int], None]


def load_prompts(
    path: str | Path,
    pair: LoadedPair,
    settings: Settings,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """A task that scores an answer by its likeness to the pair's own careful decoding.

    Args:
        path: plain text, one prompt a line, or JSON Lines with "prompt" or "messages".
        pair: whose decoding is the reference.
        settings: max_tokens, system message and stop strings are taken from here.
        limit, seed: at most so many prompts, drawn with the seed.
        progress: told (references made, references needed) while they are computed.

    Raises:
        InputError: the file is missing, empty or damaged (with the line).
        OutputError: the cache folder cannot be written.
    """
    prompts = read_prompts(home_path(path))
    chosen = prompts if limit is None else balanced(prompts, limit, seed)
    careful = careful_settings(pair, settings)
    texts = _references(pair, chosen, careful, progress)
    items = tuple(
        Item(item.id, item.messages, text, item.facts)
        for item, text in zip(chosen, texts, strict=True)
    )
    return Task(str(path), items, AGREEMENT, likeness(pair), digest_of(items, AGREEMENT))


def careful_settings(pair: LoadedPair, settings: Settings) -> Settings:
    """One token a step with everything recomputed, greedily, for answers of the same length."""
    flags: dict[str, Any] = {name: settings[name].value for name in _KEPT}
    flags |= {"strategy": "left_to_right", "k": 1, "recompute_window": "all", "temperature": 0.0}
    # The profile's own M, whatever is tried or was tuned.
    default = LeftToRightParams().max_lookahead
    flags["max_lookahead"] = pair.profile.decode.get("max_lookahead", default)
    return resolve_settings(pair.profile, flags, {})


def read_prompts(path: Path) -> tuple[Item, ...]:
    """The prompts of a file, without references.

    Raises:
        InputError: missing, empty or damaged (with the line).
    """
    if path.is_dir() or path.suffix in _JSON:
        values = read_values(path)
        if placed(values[0].where, lambda: header_of(values[0].value)) is not None:
            values = values[1:]
    else:
        lines = enumerate(read_text(path).split("\n"), 1)
        values = [
            Placed({"prompt": line.strip()}, f"{path}, line {n}")
            for n, line in lines
            if line.strip()
        ]
    if not values:
        raise InputError(f"{path} is empty: give at least one prompt, one a line")
    return tuple(
        Item(str(n), placed(v.where, lambda v=v: _messages(v.value)), "")  # type: ignore[misc]
        for n, v in enumerate(values, 1)
    )


def _messages(record: Any) -> Any:
    if not isinstance(record, dict) or not record.keys() & {"prompt", "messages"}:
        raise ValueError('"prompt" (or "messages") is needed')
    return messages_of(record)


def likeness(pair: LoadedPair) -> Scorer:
    """A scorer: F1 of the longest common subsequence of tokens (ROUGE-L, Lin 2004); 1 if equal."""
    encode = pair.tokenizer.encode

    def score(item: Item, text: str) -> float:
        return rouge_l(encode(item.answer), encode(text))

    return score


def rouge_l(a: Sequence[int], b: Sequence[int]) -> float:
    """2 LCS(a, b) / (|a| + |b|), in [0, 1]; 1 of two empty sequences."""
    if not a or not b:
        return float(len(a) == len(b))
    return 2 * common_subsequence(a, b) / (len(a) + len(b))


def common_subsequence(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence, a bit for each token of `a` (Hyyro 2004)."""
    places: dict[int, int] = {}
    for index, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        match = row & places.get(token, 0)
        row = ((row + match) | (row - match)) & full
    return len(a) - row.bit_count()


def _references(
    pair: LoadedPair, items: Sequence[Item], careful: Settings, progress: Progress | None
) -> list[str]:
    """The careful answer to each item: from the cache, or computed now and put there."""
    known = _Cache(cache_path(pair, careful))
    keys = [digest_of_values([dict(m) for m in item.messages]) for item in items]
    missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known.texts}
    blank = Task("", (), AGREEMENT, lambda *_: 0.0, "")
    for done, (key, item) in enumerate(missing.items()):
        if progress is not None:
            progress(done, len(missing))
        known.add(key, answer(pair, blank, item, careful).text)
    if progress is not None and missing:
        progress(len(missing), len(missing))
    return [known.texts[key] for key in keys]


def cache_path(pair: LoadedPair, careful: Settings) -> Path:
    """The file that keeps the careful answers of a pair; APD_CACHE_DIR replaces the folder."""
    own = os.environ.get("APD_CACHE_DIR")
    folder = home_path(own) if own else platformdirs.user_cache_path("apd", False)
    values = settings_that_count(careful)
    key = hashlib.sha256(f"{pair_digest(pair)} {digest_of_values(values)}".encode()).hexdigest()
    return folder / "agreement" / f"{key[:32]}.jsonl"


class _Cache:
    """Texts by key in a JSON Lines file that is only ever appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.texts: dict[str, str] = {}
        try:
            lines = path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot read {path}: {reason(error)}") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self.texts[str(entry["key"])] = str(entry["text"])
            except (ValueError, KeyError, TypeError):
                continue  # half-written when its writer was killed: computed again

    def add(self, key: str, text: str) -> None:
        """Keep a text; each on a line of its own, even after one that is half-written."""
        self.texts[key] = text
        line = "\n" + json.dumps({"key": key, "text": text}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            raise OutputError(f"cannot write {self.path}: {reason(error)}") from error
