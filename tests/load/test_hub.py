"""Finding a model: embedded, a folder, the hub's cache, or why not. Nothing is fetched here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from apdcli.errors import ModelError
from apdcli.load.hub import resolve_model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls made to snapshot_download, which returns /snapshot."""
    calls: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        calls.append({"name": name, **options})
        return "/snapshot"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return calls


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def snapshot(name: str, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)


def says(model: str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        resolve_model(model, **options)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 1
    return str(caught.value)


def test_embedded() -> None:
    assert resolve_model("embedded:verifier").parts[-4:] == ("apdcli", "demo", "pair", "verifier")
    assert says("embedded:x").endswith("embedded are: embedded:denoiser, embedded:verifier")


def test_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: list[dict[str, Any]]
) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve_model("org/name", base=tmp_path) == tmp_path / "org" / "name"
    assert resolve_model(str(tmp_path / "org"), base=Path("/elsewhere")) == tmp_path / "org"
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org").samefile(tmp_path / "org")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_model("~/org") == tmp_path / "org"
    assert hub == []


@pytest.mark.parametrize(
    "model",
    [
        "./none",
        "../none",
        "/none/at/all",
        "~/none",
        "~nobody-x/y",
        "a/b/c",
        "x/model.safetensors",
        "a/",
    ],
)
def test_paths_are_never_fetched(model: str, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    assert "not found" in says(model, base=tmp_path)
    assert hub == []


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    assert "is a file, not a model folder" in says("x", base=tmp_path)


@pytest.mark.parametrize("model", ["gpt2", "no such thing", "", "a b/c"])
def test_neither_folder_nor_id(model: str, tmp_path: Path, hub: list[dict[str, Any]]) -> None:
    if model == "":
        tmp_path = tmp_path / "gone"
    assert "nor a hub id like org/name" in says(model, base=tmp_path)
    assert hub == []


def test_only_data_is_fetched(hub: list[dict[str, Any]], tmp_path: Path) -> None:
    assert resolve_model("Qwen/Qwen2.5-0.5B", base=tmp_path, revision="v1") == Path("/snapshot")
    (call,) = hub
    assert (call["name"], call["revision"]) == ("Qwen/Qwen2.5-0.5B", "v1")
    assert call["allow_patterns"] == ["*.json", "*.txt", "*.jinja", "*.safetensors"]
    assert call["ignore_patterns"] == ["*/*"]
    assert call["local_files_only"] is False
    resolve_model("a/b", download=False)
    assert hub[1]["local_files_only"] is True


def make(kind: type[Exception]) -> Exception:
    # Without __init__: what the hub's errors take differs between its HTTP clients.
    return kind.__new__(kind, "several\nlines")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (errors.GatedRepoError, "org/name (revision r) is gated: accept its terms at https://"),
        (errors.RevisionNotFoundError, "the hub's org/name has no revision 'r'"),
        (errors.RepositoryNotFoundError, "no folder and no public hub model is called 'org/name'"),
        (errors.LocalEntryNotFoundError, "and the hub cannot be reached; check the network"),
        (errors.HfHubHTTPError, "cannot be fetched: HfHubHTTPError"),
        (OSError, "cannot be fetched: several lines"),
    ],
)
def test_failures(monkeypatch: pytest.MonkeyPatch, kind: type[Exception], text: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    failing(monkeypatch, make(kind))
    assert text in says("org/name", revision="r")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errors.LocalEntryNotFoundError("x"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert says("org/name").endswith("and HF_HUB_OFFLINE forbids fetching it")
    assert "is not downloaded yet" in says("org/name", download=False)


def test_a_cached_snapshot_is_used_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = tmp_path / "models--org--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    real = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **options: real(name, cache_dir=tmp_path, **options),
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("org/name").samefile(snapshot)
