"""Which tensors a model folder holds, and whether they are the ones its config asks for.

Reads config.json and the safetensors headers, never a weight's values, and loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from apdcli.errors import ModelError
from apdcli.load.files import AGAIN, one_line, read_json, require_folder
from apdcli.models.config import ModelConfig
from apdcli.models.names import HEAD, file_name, layer_prefix, weight_shapes

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
Role = Literal["denoiser", "verifier"]
_SHOWN = 5  # problems listed one by one before the rest is only counted


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: where it lies, how it is stored, its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A model folder whose tensors' names and shapes are all as they must be.

    Attributes:
        config: the parsed config.json.
        entries: the core's parameter name -> (name in the file, where and how it is stored).
        files: the safetensors files, in the order they are read.
        ignored: tensors that are stored and not used, by their names in the files.
    """

    folder: Path
    config: ModelConfig
    entries: dict[str, tuple[str, Entry]]
    files: tuple[Path, ...]
    ignored: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the stored tensors, sorted: usually one."""
        return tuple(sorted({entry.dtype for _, entry in self.entries.values()}))

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(
            _BYTES[entry.dtype] * _product(entry.shape) for _, entry in self.entries.values()
        )


def read_config(folder: Path) -> ModelConfig:
    """Parse a model folder's config.json.

    Raises:
        ModelError: no such folder, no or damaged config.json, an unknown family, or a value that
            cannot be; the message names the file.
    """
    folder = Path(folder)
    require_folder(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder} holds no {CONFIG}: not a model folder, or half copied; {AGAIN}")
    return ModelConfig.from_hf(read_json(path), str(path))


def check_role(role: Role, config: ModelConfig, where: object) -> None:
    """Refuse a causal model as a denoiser, and a diffusion model as a verifier.

    Args:
        where: the folder that holds it, for the message.

    Raises:
        ModelError: it cannot do what it is asked for.
    """
    if role == "denoiser" and config.mask_id is None:
        raise ModelError(
            f"{where} cannot denoise: {config.family} is a causal model, without a mask token; "
            "a denoiser is a diffusion model such as Dream or LLaDA"
        )
    if role == "verifier" and not config.causal:
        raise ModelError(
            f"{where} cannot verify: {config.family} is a diffusion model, not a causal one; "
            "a verifier is a causal model such as Qwen2"
        )


def check_layout(folder: Path) -> Layout:
    """Check names, shapes and dtypes of a folder's weights without reading their values.

    Raises:
        ModelError: anything `load_transformer` would refuse, named in one line.
    """
    folder = Path(folder)
    config = read_config(folder)
    files, indexed = _weight_files(folder)
    found: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in found:
                raise ModelError(f"tensor {name} is in {found[name].file} and again in {file}")
            found[name] = entry
    entries = _match(folder, config, found, indexed)
    used = {name for name, _ in entries.values()}
    ignored = {name: entry for name, entry in found.items() if name not in used}
    return Layout(folder, config, entries, files, ignored)


def read_header(file: Path) -> dict[str, Entry]:
    """Names, dtypes and shapes of the tensors in a safetensors file.

    Raises:
        ModelError: the file is truncated, corrupt, unreadable, or of a dtype apd does not read.
    """
    if _is_lfs_pointer(file):
        raise ModelError(f"{file} is a git-lfs pointer, not the weights: run 'git lfs pull' there")
    entries: dict[str, Entry] = {}
    try:
        with safe_open(str(file), framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dictionary
                piece = opened.get_slice(name)
                stored = str(piece.get_dtype())
                if stored not in DTYPES:
                    raise ModelError(
                        f"{file}: {name} is stored as {stored}; apd reads "
                        f"{', '.join(DTYPES.values())} only (no quantised checkpoints)"
                    )
                entries[name] = Entry(file, DTYPES[stored], tuple(piece.get_shape()))
    except SafetensorError as error:
        raise damaged(file, error) from error
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({one_line(error)})") from error
    return entries


def damaged(file: Path, error: Exception) -> ModelError:
    """The error for a safetensors file that is not whole."""
    return ModelError(f"{file} is truncated or damaged ({one_line(error)}): {AGAIN}")


def _is_lfs_pointer(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(24) == b"version https://git-lfs."
    except OSError:
        return False  # the reader proper reports it


def _weight_files(folder: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The safetensors files, and which of them the index says each tensor is in (if there is one).

    The single file wins over an index, as it does in transformers.
    """
    single, index = folder / SINGLE, folder / INDEX
    if single.is_file():
        return (single,), {}
    if not index.is_file():
        raise _no_weights(folder)
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise ModelError(f"{index} has no weight_map: {AGAIN}")
    indexed = {name: folder / _shard_name(index, file) for name, file in table.items()}
    files = tuple(sorted(set(indexed.values())))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ModelError(
            f"{folder} is half copied: {_some(missing)} named by {INDEX} "
            f"{'is' if len(missing) == 1 else 'are'} missing; {AGAIN}"
        )
    return files, indexed


def _shard_name(index: Path, name: Any) -> str:
    # A name with a folder in it could point outside the model folder.
    if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
        raise ModelError(f"{index}: {name!r} is not the name of a safetensors file")
    return name


def _no_weights(folder: Path) -> ModelError:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        return ModelError(
            f"{folder} has its weights as {_some(pickles)} only; apd never unpickles: "
            "convert them to safetensors"
        )
    return ModelError(f"{folder} holds neither {SINGLE} nor {INDEX}: half copied; {AGAIN}")


def _match(
    folder: Path, config: ModelConfig, found: dict[str, Entry], indexed: dict[str, Path]
) -> dict[str, tuple[str, Entry]]:
    """Pair what the config asks for with what the files hold, or say everything that differs."""
    _check_layers(folder, config, found)
    wanted = {file_name(config.family, core): core for core in weight_shapes(config)}
    shapes = weight_shapes(config)
    missing, misshapen = [], []
    for name, core in wanted.items():
        if name not in found:
            missing.append(f"{name} ({indexed[name].name})" if name in indexed else name)
        elif found[name].shape != shapes[core]:
            misshapen.append(
                f"{name} ({found[name].file.name}) is {list(found[name].shape)}, "
                f"{CONFIG} asks for {list(shapes[core])}"
            )
    # A tied model's head is the embedding: some exporters write it out all the same.
    ignored = {file_name(config.family, HEAD)} if config.tied else set()
    unexpected = [
        f"{name} ({entry.file.name})"
        for name, entry in found.items()
        if name not in wanted and name not in ignored
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    problems = [f"{len(names)} {kind}: {_some(names)}" for kind, names in kinds if names]
    if problems:
        where = folder / (INDEX if indexed else SINGLE)
        raise ModelError(f"{where}: wrong tensors for this {CONFIG}; {'; '.join(problems)}")
    return {core: (name, found[name]) for name, core in wanted.items()}


def _check_layers(folder: Path, config: ModelConfig, found: Iterable[str]) -> None:
    """Refuse more layers than the files hold, before a list of what they lack is made."""
    prefix = layer_prefix(config.family)
    stored = {name[len(prefix) :].split(".")[0] for name in found if name.startswith(prefix)}
    if config.num_layers > len(stored):
        raise ModelError(
            f"{folder / CONFIG}: {config.layers_key} is {config.num_layers}, and the weights have "
            f"{len(stored)} layer{'s' if len(stored) != 1 else ''}: {AGAIN}"
        )


def _some(names: Sequence[str]) -> str:
    """The first few names, then how many more there are."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
