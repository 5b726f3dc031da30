"""Fixtures for the loaders' tests: copies of the reference folders that a test may break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    """copy("hub_dream") or copy("apd/verifier"): a writable copy of that folder."""

    def make(name: str) -> Path:
        target = tmp_path / Path(name).name
        shutil.copytree(DATA / name, target, copy_function=shutil.copyfile)
        return target

    return make


@pytest.fixture
def config_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty configuration folder of the user's."""
    folder = tmp_path / "config"
    monkeypatch.setenv("APD_CONFIG_DIR", str(folder))
    return folder
