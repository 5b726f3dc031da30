"""Tuned settings are written into profiles, and nothing else of them changes."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from apdcli.errors import OutputError, ProfileError
from apdcli.load.profile import find_profile, shipped_profiles_dir
from apdcli.load.tuned import check_tunable, tuned_path, with_tuned, write_tuned

TEXT = """\
# mine

description = "x"   # why
[denoiser]
model = "a/b"

[decode]
temperature = 0.5 # warm
strategy = "apd"
mixture_weight = 0.25

[chat]
system = "s"
"""
VALUES = {"strategy": "apd", "mixture_weight": 0.5, "recompute_window": "all", "max_lookahead": 8}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "p.toml"
    made.write_text(TEXT)
    return made


def test_everything_else_stays_as_it_was(path: Path) -> None:
    assert write_tuned(find_profile(path), 'A "6" GPU', VALUES, note="found\nby a test") == path
    text = path.read_text()
    assert text.startswith(TEXT)
    assert "# found by a test\n" in text
    assert find_profile(path).tuned == {'A "6" GPU': VALUES}
    write_tuned(find_profile(path), "B", {"strategy": "dico", "guidance": False})
    write_tuned(find_profile(path), 'A "6" GPU', {"strategy": "apd", "mixture_weight": 0.75})
    assert path.read_text().startswith(TEXT)
    assert find_profile(path).tuned == {
        'A "6" GPU': {"strategy": "apd", "mixture_weight": 0.75},
        "B": {"strategy": "dico", "guidance": False},
    }
    assert [p.name for p in path.parent.iterdir()] == ["p.toml"]


def test_windows_line_ends_stay(path: Path) -> None:
    new = with_tuned(TEXT.replace("\n", "\r\n"), "A", VALUES)
    assert new.replace("\r\n", "").count("\n") == 0
    path.write_bytes(new.encode())
    assert find_profile(path).tuned["A"] == VALUES


def test_a_link_stays_a_link_and_the_mode_stays(path: Path, tmp_path: Path) -> None:
    path.chmod(0o640)
    link = tmp_path / "link.toml"
    link.symlink_to(path)
    write_tuned(find_profile(link), "A", VALUES)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert find_profile(path).tuned["A"] == VALUES


def test_a_shipped_profile_is_copied_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APD_CONFIG_DIR", str(tmp_path / "config"))
    shipped = shipped_profiles_dir() / "demo.toml"
    before = shipped.read_bytes()
    profile = find_profile("demo")
    check_tunable(profile)
    written = write_tuned(profile, "A", VALUES)
    assert written == tuned_path(profile) == tmp_path / "config" / "profiles" / "demo.toml"
    assert shipped.read_bytes() == before
    assert written.read_bytes().startswith(before)
    assert find_profile("demo").source == "user"
    assert find_profile("demo").tuned["A"] == VALUES


def test_a_read_only_profile_is_refused(path: Path) -> None:
    profile = find_profile(path)
    path.chmod(0o444)
    for refused in (
        lambda: check_tunable(profile),
        lambda: write_tuned(profile, "A", VALUES),
    ):
        with pytest.raises(OutputError, match=f"^cannot write {path}: it is read-only$"):
            refused()
    assert path.read_text() == TEXT


def test_a_full_disk_keeps_the_profile(path: Path) -> None:
    """The process may write no file longer than the profile is, as on a disk that is full."""
    script = (
        "import sys; from apdcli.load.profile import find_profile\n"
        "from apdcli.load.tuned import write_tuned\n"
        f"write_tuned(find_profile({str(path)!r}), 'A', {VALUES!r})"
    )
    limit = len(TEXT)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        cwd=Path(__file__).parents[2],
    )
    assert f"OutputError: cannot write {path}: file too large" in done.stderr
    assert path.read_text() == TEXT
    assert [p.name for p in path.parent.iterdir()] == ["p.toml"]


@pytest.mark.parametrize(
    ("tuned", "says"),
    [
        ('[tuned."A"]\nseeds = 3', 'the key tuned."A".strategy is missing'),
        ('[tuned."A"]\nstrategy = "apt"', "tuned.\"A\".strategy = 'apt': it must be"),
        ('[tuned."A"]\nstrategy = "apd"\nseeds = 3', 'unknown key tuned."A".seeds; known are: str'),
        (
            '[tuned."A"]\nstrategy = "apd"\nmixture_weight = 2',
            'tuned."A".mixture_weight = 2: it must be a number from 0 to 1',
        ),
        ("tuned = 3", "tuned = 3 is wrong: it must be a table, [tuned]"),
        ('[tuned]\nstrategy = "apd"', "it must be a table"),
    ],
)
def test_bad_tables_are_refused(path: Path, tuned: str, says: str) -> None:
    path.write_text(f"{tuned}\n{TEXT}" if tuned.startswith("tuned =") else f"{TEXT}\n{tuned}\n")
    with pytest.raises(ProfileError) as caught:
        find_profile(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(path))
