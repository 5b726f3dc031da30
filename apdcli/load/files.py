"""Reading small files of a model folder, with errors that name the file. Loads no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apdcli.errors import ModelError, reason
from apdcli.load.home import exists, is_folder

AGAIN = "copy or download the folder again"


def one_line(error: object) -> str:
    """An exception's text without line breaks, for messages that must stay on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def require_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` is a folder that can be read."""
    if is_folder(folder):
        return
    if exists(folder):
        raise ModelError(f"{folder} is a file, not a model folder; name the folder it lies in")
    raise ModelError(f"model folder {folder} not found")


def read_text(path: Path) -> str:
    """The UTF-8 text of a file.

    Raises:
        ModelError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({reason(error)})") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"{path} is damaged (not UTF-8 text): {AGAIN}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelError: it cannot be read, is not JSON, or is not an object.
    """
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged (not JSON: {one_line(error)}): {AGAIN}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The JSON object in a file, or an empty one when there is no such file."""
    return read_json(path) if path.is_file() else {}
