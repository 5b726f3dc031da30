"""Profiles: found, read, and refused in one line."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from apdcli.decode.params import make_params
from apdcli.errors import OutputError, ProfileError, UsageError
from apdcli.load.new_profile import new_profile
from apdcli.load.profile import (
    find_profile,
    known_decode_keys,
    list_profiles,
    nearest,
    profile_path,
    shipped_profiles_dir,
    user_profiles_dir,
)

BASE = '[denoiser]\nmodel = "x"\n'


def refused(tmp_path: Path, text: str | bytes) -> str:
    path = tmp_path / "x.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ProfileError) as caught:
        find_profile(path)
    says = str(caught.value)
    assert caught.value.exit_status == 1
    assert says.startswith(str(path))
    assert "\n" not in says
    return says.removeprefix(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = \n", ", line 1, column 5: not valid TOML: Invalid value"),
        ("a = 1\nb = [1,\n", ", line 3, column 1: not valid TOML: Invalid value"),
        (BASE + 'model = "y"\n', ", line 3, column 12: not valid TOML: Cannot overwrite a value"),
        (b"a = '\xff'", ": not UTF-8 text (byte 5)"),
        ("", ": the table [denoiser] is missing"),
        ("[denoiser]\n", ": the key denoiser.model is missing"),
        ("denoiser = 3", ": denoiser = 3 is wrong: it must be a table, [denoiser]"),
        ("[denoiser]\nmodel = 3", ": denoiser.model = 3 is wrong: it must be a string"),
        (BASE + 'devise = "cpu"', ": unknown key denoiser.devise; did you mean device?"),
        (
            BASE + "[sampling]",
            ": unknown key sampling; known are: description, denoiser, verifier,",
        ),
        (BASE + '[chat]\nsistem="x"', ": unknown key chat.sistem; did you mean system?"),
        (BASE + "[chat]\nsystem = 1", ": chat.system = 1 is wrong: it must be a string"),
        (BASE + 'dtype = "fp8"', ": denoiser.dtype = 'fp8' is wrong: it must be one of auto,"),
        (BASE + 'device = "gpu"', "it must be auto, cpu, cuda, cuda:N or mps"),
        (
            BASE + "[decode]\nmixture_wieght = 1",
            ": unknown key decode.mixture_wieght; did you mean mixture_weight?",
        ),
        (
            BASE + "[decode]\nmixture_weight = 1.5",
            ": decode.mixture_weight = 1.5: it must be a number from 0 to 1",
        ),
        (BASE + "[decode]\nrecompute_window = 0", ": decode.recompute_window = 0: it must be"),
        (BASE + '[decode]\nmax_tokens = "8"', ": decode.max_tokens = '8': it must be"),
        (BASE + "[decode]\ntemperature = nan", ": decode.temperature = nan: it must be"),
        (BASE + "[decode]\nseed = true", ": decode.seed = True: it must be"),
        (BASE + "[decode]\nk = 0", ": decode.k = 0: it must be an integer >= 1"),
        (BASE + '[decode]\nstop = "a"', ": decode.stop = 'a': it must be a list"),
        (BASE + '[decode]\nstrategy = "apt"', ": decode.strategy = 'apt': it must"),
    ],
)
def test_refusals(tmp_path: Path, text: str | bytes, says: str) -> None:
    assert says in refused(tmp_path, text)


def test_a_full_profile(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'description = "d"\n[denoiser]\nmodel = "den"\nrevision = "v1"\ndtype = "bfloat16"\n'
        'device = "cuda:1"\n[verifier]\nmodel = "ver"\n[decode]\nstrategy = "left_to_right"\n'
        'k = 2\nmixture_weight = 1\nrecompute_window = "all"\n'
        'stop = ["a", "b"]\n[chat]\nsystem = "s"\n'
    )
    profile = find_profile(str(path))
    assert (profile.name, profile.source, profile.base) == ("mine", "file", tmp_path)
    assert profile.description == "d"
    assert profile.denoiser.device == "cuda:1"
    assert profile.verifier is not None
    assert profile.verifier.dtype == "auto"
    assert profile.decode["recompute_window"] == "all"
    assert profile.chat.system == "s"


def test_a_profile_needs_no_verifier(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(BASE)
    assert find_profile(tmp_path / "x.toml").verifier is None


OPTIONS = ("--output", "--quiet", "--option", "--json", "--version", "--verbose", "-o", "--resume")


@pytest.mark.parametrize(
    ("name", "known", "says"),
    [
        ("--out", OPTIONS, "did you mean --output?"),
        ("--verison", OPTIONS, "did you mean --version?"),
        ("--foo", OPTIONS, ""),
        ("--re", OPTIONS, "did you mean --resume?"),
        ("--Jsno", OPTIONS, "did you mean --json?"),
        ("dream-q", ("demo", "dream", "dream-quality"), "did you mean dream or dream-quality?"),
        ("llada-1", ("llada", "llada-1.5", "demo"), "did you mean llada-1.5 or llada?"),
        ("x", ("y", "z"), ""),
        ("demo", (), ""),
    ],
)
def test_a_second_name_is_suggested_only_if_it_is_about_as_near(
    name: str, known: tuple[str, ...], says: str
) -> None:
    assert nearest(name, known) == says


def test_unknown_names_get_the_nearest(config_dir: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        find_profile("dreem-qualty")
    assert str(caught.value) == (
        f"no profile is called 'dreem-qualty'; did you mean dream-quality? "
        f"(your own live in {config_dir / 'profiles'})"
    )
    with pytest.raises(ProfileError, match="there are: demo, diffucoder, dream, "):
        find_profile("xyz")
    with pytest.raises(
        ProfileError, match=r"profile file \./no\.toml not found|no\.toml not found"
    ):
        find_profile("./no.toml")


def test_a_model_in_place_of_a_profile(
    config_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(name: str) -> str:
        with pytest.raises(ProfileError) as caught:
            find_profile(name)
        return str(caught.value)

    assert "the profile 'dream' runs it: -p dream" in said("Dream-org/Dream-v0-Instruct-7B")
    own = "not found; if that is a model of the hub, write a profile ('apd profiles new NAME')"
    assert own in said("someone/Model-7B.v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    for folder in ("models", "models/mine", "./models", str(tmp_path / "models")):
        assert "is a folder, not a profile; write a profile ('apd profiles new" in said(folder)
    (config_dir / "profiles").mkdir(parents=True)
    (config_dir / "profiles" / "broken.toml").write_text("[")
    (config_dir / "profiles" / "mine.toml").write_text('[denoiser]\nmodel = "someone/Model"\n')
    assert "-p mine" in said("someone/Model")
    for path in ("gone/x.toml", "./gone", "a/b/c", "~/gone", "~nobody-x/y"):
        assert said(path).endswith("not found")


def test_the_users_profile_wins_by_name(config_dir: Path) -> None:
    assert find_profile("demo").source == "shipped"
    path = new_profile("demo")
    assert path == config_dir / "profiles" / "demo.toml" == profile_path("demo")
    profile = find_profile("demo")
    assert (profile.source, profile.description) == ("user", "my own profile")
    entries = {entry.name: entry for entry in list_profiles()}
    assert entries["demo"].source == "user"
    assert entries["dream"].source == "shipped"
    assert list(entries) == sorted(entries)


def test_a_broken_profile_does_not_break_the_list(config_dir: Path) -> None:
    folder = user_profiles_dir()
    folder.mkdir(parents=True)
    (folder / "broken.toml").write_text("=")
    entry = next(entry for entry in list_profiles() if entry.name == "broken")
    assert entry.problem is not None
    assert "line 1" in entry.problem


def test_new_profiles_are_whole_and_never_replace(config_dir: Path) -> None:
    path = new_profile("mine")
    text = path.read_text()
    assert [p.name for p in path.parent.iterdir()] == ["mine.toml"]
    path.write_text(BASE)
    with pytest.raises(OutputError, match="is there already"):
        new_profile("mine")
    assert path.read_text() == BASE
    for key in known_decode_keys():
        assert key in text, f"the template does not show {key}"
    for name in ("../x", "", "a b", ".x", "a/b"):
        with pytest.raises(UsageError, match="cannot name a profile"):
            new_profile(name)


def test_the_templates_comments_are_valid_when_uncommented(config_dir: Path) -> None:
    path = new_profile("mine")
    written = re.sub(r"(?m)^# (\w+ = )", r"\1", path.read_text())
    path.write_text(written)
    profile = find_profile("mine")
    assert profile.decode["stop"] == ["\n\n"]
    assert set(profile.decode) == set(known_decode_keys())
    assert profile.chat.system is not None


def test_new_profile_says_when_it_cannot_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("APD_CONFIG_DIR", str(tmp_path / "file"))
    with pytest.raises(OutputError, match="cannot be written"):
        new_profile("mine")


def test_shipped_profiles() -> None:
    shipped = {path.stem: find_profile(path) for path in shipped_profiles_dir().glob("*.toml")}
    assert set(shipped) >= {"demo", "dream", "dream-quality"}
    values = {
        name: tuple(p.decode[k] for k in ("mixture_weight", "recompute_window", "max_lookahead"))
        for name, p in shipped.items()
        if p.decode["strategy"] == "apd"
    }
    assert values["dream"] == (0.7, 16, 100)
    assert values["dream-quality"] == (0.6, 32, 200)
    assert shipped["demo"].denoiser.model == "embedded:denoiser"
    assert {name for name, p in shipped.items() if p.verifier is None} == {"llada", "llada-1.5"}
    for profile in shipped.values():
        assert profile.description
        decode = dict(profile.decode)
        make_params(decode.pop("strategy"), **decode)


def test_profiles_and_settings_load_no_torch() -> None:
    script = (
        "import sys, apdcli.load.settings, apdcli.load.new_profile, apdcli.load.hub\n"
        "from apdcli.load.profile import list_profiles; assert list_profiles()\n"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
