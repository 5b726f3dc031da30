"""A byte-level BPE tokenizer out of a hub folder's files; no code of the folder is run.

Loads no torch and no transformers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from apdcli.errors import ModelError
from apdcli.load.files import AGAIN, one_line, read_json, read_json_if_there, read_text

TOKENIZER, VOCAB, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
CONFIG, ADDED, SPECIALS = "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"

# Split pattern of the Qwen2 tokenizer; Dream's is the same.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
_ROLES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def build(folder: Path) -> tokenizers.Tokenizer:
    """The folder's tokenizer, from tokenizer.json or from vocab.json and merges.txt.

    Raises:
        ModelError: files that are missing, damaged, or not of a byte-level tokenizer.
    """
    config = read_json_if_there(folder / CONFIG)
    added = _added_tokens(folder, config)
    if (folder / TOKENIZER).is_file():
        return _from_json(folder / TOKENIZER, added)
    missing = [name for name in (VOCAB, MERGES) if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} holds no tokenizer: neither {TOKENIZER} nor {' and '.join(missing)}; {AGAIN}"
        )
    name = config.get("tokenizer_class")
    if name not in _QWEN2_CLASSES:
        raise ModelError(
            f"{folder / CONFIG}: tokenizer_class {name!r} is not known and its code is never run; "
            f"add a {TOKENIZER}, or use one of: {', '.join(_QWEN2_CLASSES)}"
        )
    return _from_vocab(folder, added)


def role_tokens(folder: Path) -> dict[str, str]:
    """Texts of the tokens with a role: {"eos_token": "<|endoftext|>", ...}."""
    roles: dict[str, str] = {}
    for file in (SPECIALS, CONFIG):  # the second wins
        table = read_json_if_there(folder / file)
        for role in _ROLES:
            value = table.get(role)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                roles[role] = value
    return roles


def template_source(folder: Path) -> tuple[str, Path] | None:
    """The chat template's text and the file it is in; a file of its own wins."""
    own, config = folder / TEMPLATE, folder / CONFIG
    if own.is_file():
        return read_text(own), own
    value = read_json_if_there(config).get("chat_template")
    if isinstance(value, list):
        named = {t.get("name"): t.get("template") for t in value if isinstance(t, dict)}
        value = named.get("default")
        if value is None:
            raise ModelError(f"{config}: chat_template has no template named 'default'")
    if value is None or isinstance(value, str):
        return None if value is None else (value, config)
    raise ModelError(f"{config}: chat_template must be a string or a list of named templates")


def eos_ids(folder: Path) -> dict[int, Path]:
    """End-of-text ids of generation_config.json and config.json, with the file that names each.

    Raises:
        ModelError: one of them is damaged, or what it gives is no id.
    """
    ids: dict[int, Path] = {}
    for file in ("generation_config.json", "config.json"):
        value = read_json_if_there(folder / file).get("eos_token_id")
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in items):
            raise ModelError(f"{folder / file}: eos_token_id must be token ids, not {value!r}")
        ids |= {item: folder / file for item in items if item not in ids}
    return ids


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Added tokens by id; tokenizer_config.json says more of each than added_tokens.json."""
    tokens: dict[int, AddedToken] = {}
    for text, index in read_json_if_there(folder / ADDED).items():
        if not isinstance(index, int):
            raise ModelError(f"{folder / ADDED}: the id of {text!r} must be a number: {index!r}")
        tokens[index] = AddedToken(text, normalized=False, special=False)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise ModelError(f"{folder / CONFIG}: added_tokens_decoder must be a table of tokens")
    for key, value in decoder.items():
        try:
            flags = {
                name: bool(value.get(name, False))
                for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            tokens[int(key)] = AddedToken(value["content"], **flags)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{folder / CONFIG}: added_tokens_decoder.{key} is not a token ({one_line(error)})"
            ) from error
    return tokens


def _from_json(path: Path, added: dict[int, AddedToken]) -> tokenizers.Tokenizer:
    table = read_json(path)
    model = table.get("model")
    if not isinstance(model, dict):
        raise ModelError(f"{path} is damaged (it holds no model): {AGAIN}")
    kind = model.get("type")
    if "ByteLevel" not in repr(table.get("decoder")) or kind not in ("BPE", None):
        raise ModelError(f"{path}: only byte-level BPE tokenizers are supported")
    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(f"{path} is damaged ({one_line(error)}): {AGAIN}") from error
    made.no_truncation()
    made.no_padding()
    present = made.get_added_tokens_decoder()
    for index in sorted(added):
        if index in present and present[index].content == added[index].content:
            continue
        _add(made, added[index])
        if made.token_to_id(added[index].content) != index:
            raise ModelError(
                f"{path.parent / CONFIG}: {added[index].content!r} has id {index} there, but "
                f"{made.token_to_id(added[index].content)} by {path.name}"
            )
    return made


def _from_vocab(folder: Path, added: dict[int, AddedToken]) -> tokenizers.Tokenizer:
    vocab = read_json(folder / VOCAB)
    ids = list(vocab.values())
    if not all(isinstance(i, int) and i >= 0 for i in ids) or len(set(ids)) != len(ids):
        raise ModelError(f"{folder / VOCAB} is damaged (ids must be distinct numbers): {AGAIN}")
    by_id = {index: text for text, index in vocab.items()}
    for index, token in added.items():
        if by_id.get(index, token.content) != token.content:
            raise ModelError(
                f"{folder}: id {index} is {by_id[index]!r} in {VOCAB} and {token.content!r} among "
                "the added tokens"
            )
        # Added tokens stand in the model's vocabulary too, so that their ids are what is written.
        vocab[token.content] = index
    try:
        made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=_merges(folder / MERGES)))
    except Exception as error:  # the library raises plain Exception
        raise ModelError(
            f"{folder}: {VOCAB} and {MERGES} do not fit ({one_line(error)})"
        ) from error
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    for index in sorted(added):
        _add(made, added[index])
    return made


def _add(made: tokenizers.Tokenizer, token: AddedToken) -> None:
    (made.add_special_tokens if token.special else made.add_tokens)([token])


def _merges(path: Path) -> list[tuple[str, str]]:
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2:
            raise ModelError(f"{path}, line {number}: a merge is two tokens, not {line!r}")
        merges.append((parts[0], parts[1]))
    return merges
