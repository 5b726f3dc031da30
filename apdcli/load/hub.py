"""From what a user calls a model to a folder on this machine: embedded, local, cached or fetched.

Loads no torch. Only data files are ever fetched: no Python, no pickle.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from apdcli.errors import ModelError
from apdcli.load.files import one_line
from apdcli.load.home import exists, home_path, is_folder

EMBEDDED = "embedded:"
_EMBEDDED_PARTS = ("denoiser", "verifier")
_PATTERNS = ["*.json", "*.txt", "*.jinja", "*.safetensors"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
# Hub names hold dots themselves (Qwen2.5-0.5B), so only suffixes of files tell a path.
_FILE_SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".json", ".toml")


def resolve_model(
    model: str, *, base: Path | None = None, revision: str | None = None, download: bool = True
) -> Path:
    """The folder of a model.

    Args:
        model: "embedded:denoiser", "embedded:verifier", a folder, or a hub id "org/name".
        base: what a relative folder is relative to: the profile's folder; None: where we are.
        revision: branch, tag or commit of a hub id; folders have none.
        download: False looks in the hub's cache only.

    Raises:
        ModelError: neither a folder nor a hub id, or it cannot be fetched; one line says why.
    """
    if model.startswith(EMBEDDED):
        return _embedded(model)
    folder = (base or Path()) / home_path(model)
    if is_folder(folder):
        return folder
    if exists(folder):
        raise ModelError(f"{folder} is a file, not a model folder; name the folder it lies in")
    if _looks_like_path(model):
        raise ModelError(f"model folder {folder} not found")
    if not is_hub_id(model):
        raise ModelError(
            f"{model!r} is neither a folder ({folder} does not exist) nor a hub id like org/name"
        )
    return _snapshot(model, revision, download)


def is_hub_id(text: str) -> bool:
    """Whether a text is written as the hub's models are: owner/name."""
    return not _looks_like_path(text) and _HUB_ID.fullmatch(text) is not None


def _embedded(model: str) -> Path:
    part = model.removeprefix(EMBEDDED)
    if part not in _EMBEDDED_PARTS:
        raise ModelError(
            f"unknown model {model!r}; embedded are: "
            f"{', '.join(EMBEDDED + name for name in _EMBEDDED_PARTS)}"
        )
    return Path(__file__).resolve().parents[1] / "demo" / "pair" / part


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "/", "~"))
        or "\\" in model
        or model.endswith(("/", *_FILE_SUFFIXES))
        or model.count("/") > 1
        or Path(model).is_absolute()
    )


def _snapshot(model: str, revision: str | None, download: bool) -> Path:
    # Imported late: a folder needs none of it.
    from huggingface_hub import constants, errors, snapshot_download

    name = f"{model} (revision {revision})" if revision else model
    try:
        folder = snapshot_download(
            model,
            revision=revision,
            allow_patterns=_PATTERNS,
            ignore_patterns=["*/*"],  # other formats and precisions lie in subfolders
            local_files_only=not download,
        )
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{name} is gated: accept its terms at {constants.ENDPOINT}/{model}, then set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"the hub's {model} has no revision {revision or 'main'!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"no folder and no public hub model is called {model!r}; if it is private, set HF_TOKEN"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _not_cached(name, download) from error
    except errors.HFValidationError as error:
        raise ModelError(f"{model!r} is not a hub id: {one_line(error)}") from error
    except (errors.HfHubHTTPError, OSError) as error:
        raise ModelError(f"{name} cannot be fetched: {one_line(error)[:200]}") from error
    return Path(folder)


def _not_cached(name: str, download: bool) -> ModelError:
    from huggingface_hub import constants

    cache = f"it is not in the hub's cache ({constants.HF_HUB_CACHE})"
    if not download:
        return ModelError(f"{name} is not downloaded yet: {cache}; apd generate fetches it")
    if constants.HF_HUB_OFFLINE:
        variable = next(
            (v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if v in os.environ), ""
        )
        return ModelError(f"{name}: {cache} and {variable or 'HF_HUB_OFFLINE'} forbids fetching it")
    return ModelError(
        f"{name}: {cache} and the hub cannot be reached; check the network, or name a local folder"
    )
