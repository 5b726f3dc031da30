"""What the wheel carries, and that it works alone in an empty folder, offline."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_carries_profiles_weights_and_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for profile in (ROOT / "profiles").glob("*.toml"):
        assert f"apdcli/profiles/{profile.name}" in names
    for role in ("denoiser", "verifier"):
        for file in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
            assert f"apdcli/demo/pair/{role}/{file}" in names
    assert "apdcli/py.typed" in names
    assert not [n for n in names if n.startswith(("tests/", "profiles/"))]
    assert wheel.stat().st_size < 45_000_000


def test_an_installed_wheel_works_in_an_empty_folder_offline(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    environ = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}
    environ.pop("APD_PROFILE", None)
    # -P keeps this checkout off the path; the wheel's own copy must be the one that answers.
    code = (
        "import apdcli, pathlib, sys; pathlib.Path(apdcli.__file__).relative_to(sys.argv[1]);"
        "pair = apdcli.load_pair('demo');"
        "print(apdcli.generate(pair, 'Hello!', max_tokens=32).text)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(site)],
        cwd=empty,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    listed = subprocess.run(
        [sys.executable, "-m", "apdcli", "profiles", "list"],
        cwd=empty,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0, listed.stderr
    assert "demo" in listed.stdout
    assert not list(empty.iterdir())
