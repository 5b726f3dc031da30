"""`apd profiles`: list, show, path, new, edit, check."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from apdcli.load.device_name import device_name
from tests.cli.conftest import DATA, Apd, MakeProfile

SHIPPED = [
    "demo",
    "diffucoder",
    "dream",
    "dream-coder",
    "dream-quality",
    "llada",
    "llada-1.5",
]


def test_list_names_the_shipped_profiles(apd: Apd) -> None:
    ran = apd("profiles", "list")
    assert (ran.status, ran.err) == (0, "")
    shown = [line.split()[:2] for line in ran.out.splitlines()]
    for name in ("demo", "dream", "dream-quality"):
        assert [name, "shipped"] in shown
    assert apd("profiles").raw == ran.raw
    entries = json.loads(apd("profiles", "list", "--json").out)
    assert [entry["name"] for entry in entries] == [name for name, _ in shown]
    assert all(entry["description"] and not entry["problem"] for entry in entries)


def test_a_new_profile_is_the_users_and_wins(apd: Apd, tmp_path: Path) -> None:
    ran = apd("profiles", "new", "demo")
    assert ran.out == f"{tmp_path}/config/profiles/demo.toml\n"
    assert apd("profiles", "list").out.splitlines()[0].split()[:2] == ["demo", "user"]
    assert apd("profiles", "path", "demo").out == ran.out
    assert apd("profiles", "path").out.splitlines()[0] == f"{tmp_path}/config/profiles"
    again = apd("profiles", "new", "demo")
    assert (again.status, "there already" in again.complaint) == (1, True)


def test_what_hides_a_shipped_profile_is_told(apd: Apd, tmp_path: Path) -> None:
    assert (
        "it hides the shipped profile 'demo'" in apd("profiles", "new", "demo", terminal=True).err
    )
    assert apd("profiles", "new", "mine", terminal=True).err == ""
    assert apd("profiles", "new", "dream").err == ""  # no terminal: silent
    listed = {line.split()[0]: line for line in apd("profiles").out.splitlines()}
    for name, line in listed.items():
        assert ("hides the shipped one" in line) is (name in ("demo", "dream"))
    entries = {entry["name"]: entry for entry in json.loads(apd("profiles", "list", "--json").out)}
    assert entries["dream"]["hides"].endswith("profiles/dream.toml")
    assert entries["mine"]["hides"] is entries["llada"]["hides"] is None


def editor(tmp_path: Path, line: str) -> dict[str, str]:
    """Variables with an editor that does to the file's `text` what a line of Python says."""
    script = tmp_path / "editor.py"
    script.write_text(
        "import pathlib, sys\n"
        "path = pathlib.Path(sys.argv[-1])\n"
        f"text = path.read_text()\n{line}\npath.write_text(text)\n"
    )
    return {"EDITOR": shlex.join([sys.executable, "-S", str(script)])}


def test_edit_changes_a_profile_of_ones_own(apd: Apd, tmp_path: Path) -> None:
    apd("profiles", "new", "mine")
    path = tmp_path / "config" / "profiles" / "mine.toml"
    changes = editor(tmp_path, 'text = text.replace("max_tokens = 256", "max_tokens = 7")')
    ran = apd("profiles", "edit", "mine", environ=changes)
    assert (ran.status, ran.out, ran.err) == (0, f"{path}\n", "")
    assert "# max_tokens = 7  (profile)" in apd("profiles", "show", "mine").out
    breaks = editor(tmp_path, 'text = text.replace("max_tokens = 7", "max_tokens = 0")')
    ran = apd("profiles", "edit", "mine", environ=breaks)
    assert ran.status == 1
    complaint = apd("generate", "-p", "mine", "hello").complaint.rstrip()
    assert ran.complaint == f"{complaint}; it is kept: 'apd profiles edit mine' goes on with it\n"
    assert f"{path}: decode.max_tokens = 0: it must be" in ran.complaint
    assert "max_tokens = 0" in path.read_text()  # what was written is not lost
    wins = editor(tmp_path, 'text = text.replace("max_tokens = 0", "max_tokens = 9")')
    unused = {"EDITOR": "no-such-editor", "VISUAL": wins["EDITOR"]}
    assert apd("profiles", "edit", path, environ=unused).status == 0


def test_edit_of_a_shipped_profile_makes_it_ones_own(apd: Apd, tmp_path: Path) -> None:
    shipped = Path(apd("profiles", "path", "demo").out.strip())
    before = shipped.read_bytes()
    own = tmp_path / "config" / "profiles" / "demo.toml"
    ran = apd("profiles", "edit", "demo", environ=editor(tmp_path, "pass"), terminal=True)
    assert (ran.status, ran.out, own.exists()) == (0, "", False)
    assert "unchanged" in ran.err
    failing = editor(tmp_path, "sys.exit(3)")
    ran = apd("profiles", "edit", "demo", environ=failing)
    assert (ran.status, own.exists()) == (2, False)
    assert "ended with status 3" in ran.complaint
    leaves = editor(tmp_path, 'path.write_text(text + "# half\\n"); sys.exit(3)')
    ran = apd("profiles", "edit", "demo", environ=leaves)
    assert (ran.status, own.read_bytes()) == (2, before + b"# half\n")
    assert f"ended with status 3; {own} is as it left it" in ran.complaint
    own.unlink()
    adds = editor(tmp_path, 'text += "# mine\\n"')
    ran = apd("profiles", "edit", "demo", environ=adds, terminal=True)
    assert (ran.status, ran.out) == (0, f"{own}\n")
    assert "it hides the shipped profile 'demo'" in ran.err
    assert own.read_bytes() == before + b"# mine\n"
    assert shipped.read_bytes() == before
    assert (
        apd("profiles", "edit", "demo", environ=adds, terminal=True).err == ""
    )  # already one's own


def test_edit_says_what_becomes_of_a_file_with_an_error(apd: Apd, tmp_path: Path) -> None:
    own = tmp_path / "config" / "profiles" / "demo.toml"
    breaks = editor(tmp_path, 'text += "[decode\\n"')
    ran = apd("profiles", "edit", "demo", environ=breaks)
    assert f"{own}, line " in ran.complaint
    assert "it is kept: 'apd profiles edit demo' goes on with it" in ran.complaint
    assert "; deleting it brings the shipped one back" in ran.complaint
    assert own.read_text().endswith("[decode\n")
    mine = tmp_path / "mine.toml"
    mine.write_bytes(own.read_bytes())
    ran = apd("profiles", "edit", mine, environ=breaks)
    assert (f"'apd profiles edit {mine}'" in ran.complaint, "shipped" in ran.complaint) == (1, 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("strategy = 'left_to_right'\nk = 4\nmax_lookahead = 2\n", "decode.k = 4: it must be at"),
        ("strategy = 'confidence'\nk = 4\nsteps = 2\n", "decode.steps = 2: it must be left out"),
        ("strategy = 'dico'\nblock_length = 7\nmax_tokens = 24\n", "decode.block_length = 7: it"),
    ],
)
def test_edit_finds_values_that_exclude_each_other(
    apd: Apd, make_profile: MakeProfile, tmp_path: Path, values: str, said: str
) -> None:
    path = make_profile("[decode]\n")
    ran = apd("profiles", "edit", path, environ=editor(tmp_path, f"text += {values!r}"))
    assert f"{path}: {said}" in ran.complaint
    assert "it is kept" in ran.complaint
    assert path.read_text().endswith(values)


def test_edit_refuses_what_it_cannot_do(apd: Apd, tmp_path: Path) -> None:
    ran = apd("profiles", "edit", "demo")
    assert (ran.status, "set $EDITOR" in ran.complaint) == (2, True)
    ran = apd("profiles", "edit", "demo", environ={"EDITOR": "no-such-editor"})
    assert "cannot start the editor 'no-such-editor'" in ran.complaint
    ran = apd("profiles", "edit", "dmeo", environ={"EDITOR": "true"})
    assert "did you mean demo?" in ran.complaint
    assert not list((tmp_path / "config").rglob("*.toml"))


def test_a_broken_profile_is_listed_with_its_problem(apd: Apd, tmp_path: Path) -> None:
    apd("profiles", "new", "mine")
    (tmp_path / "config" / "profiles" / "mine.toml").write_text("[decode\n")
    ran = apd("profiles", "list")
    assert ran.status == 0
    assert "unusable" in next(line for line in ran.out.splitlines() if line.startswith("mine"))


def test_show_has_the_text_and_what_is_in_effect(apd: Apd, profile: Path) -> None:
    ran = apd("profiles", "show", profile, environ={"APD_MAX_TOKENS": "5"})
    assert str(profile) in ran.out.splitlines()[0]
    assert profile.read_text().strip() in ran.out
    assert "# max_tokens = 5  (environment)" in ran.out
    assert "# mixture_weight = 0.7  (default)" in ran.out
    found = json.loads(apd("profiles", "show", "dream", "--json").out)
    assert found["settings"]["max_lookahead"] == {"value": 100, "from": "profile"}
    assert found["source"] == "shipped"


def test_show_without_a_name_is_of_the_profile_in_effect(apd: Apd, profile: Path) -> None:
    assert apd("profiles", "show").raw == apd("profiles", "show", "demo").raw
    here = {"APD_PROFILE": str(profile)}
    ran = apd("profiles", "show", environ=here)
    assert (ran.status, ran.out.splitlines()[0]) == (0, f"# {profile} (file)")
    found = json.loads(apd("profiles", "show", "--json", environ=here).out)
    assert found["settings"]["profile"] == {"value": str(profile), "from": "environment"}


def test_a_seed_that_nobody_chose_is_new_each_run(apd: Apd, make_profile: MakeProfile) -> None:
    fixed = make_profile("[decode]\nseed = 0\n", name="fixed")
    for command in ("show", "check"):
        assert "new each run" in apd("profiles", command, "demo").out
        found = json.loads(apd("profiles", command, "demo", "--json").out)
        assert found["settings"]["seed"] == {"value": None, "from": "default"}
        assert "new each run" not in apd("profiles", command, fixed).out
        found = json.loads(apd("profiles", command, fixed, "--json").out)
        assert found["settings"]["seed"] == {"value": 0, "from": "profile"}
    assert "seed=new each run (default)" in apd("profiles", "check", "demo").out
    assert "# seed = new each run  (default)" in apd("profiles", "show", "demo").out
    apd("profiles", "new", "mine")
    assert "# seed = new each run  (default)" in apd("profiles", "show", "mine").out


@pytest.mark.parametrize("columns", [40, 80])
def test_check_is_wrapped_between_settings(
    apd: Apd, profile: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    piped = apd("profiles", "check", profile).out.splitlines()
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = apd("profiles", "check", profile, terminal=True).out.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("settings"))
    settings = lines[start:-1]
    assert len(settings) > 2
    assert all(len(line) <= columns for line in settings)
    assert all(line.startswith(" " * 10) for line in settings[1:])
    assert all(re.fullmatch(r"settings .*\),|.*\),|.*\)", line) for line in settings), settings
    assert " ".join(" ".join(settings).split()) == " ".join(piped[-2].split())
    assert all(len(line) <= columns for line in lines if "/" not in line)


def test_check_says_what_would_run(apd: Apd, profile: Path) -> None:
    ran = apd("profiles", "check", profile)
    assert (ran.status, ran.err) == (0, "")
    for piece in ("denoiser", "verifier", "Dream", "float32 on cpu", "R=0.7", "ready"):
        assert piece in ran.out
    found = json.loads(apd("profiles", "check", profile, "--json").out)
    denoiser, verifier = found["models"]
    assert denoiser["parameters"] * 4 == denoiser["bytes_loaded"]
    assert (denoiser["context"], verifier["family"]) == (1024, "qwen2")


MakeBroken = Callable[[str, dict[str, str]], Path]


@pytest.fixture
def broken(make_profile: MakeProfile, tmp_path: Path) -> MakeBroken:
    """broken(role, {file: text}): a profile on a copy of the pair with these files in one model."""

    def make(role: str, files: dict[str, str]) -> Path:
        folder = tmp_path / "broken"
        shutil.copytree(DATA / role, folder, copy_function=shutil.copyfile)
        for name, text in files.items():
            (folder / name).write_text(text)
        return make_profile(**{role: folder})

    return make


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("generation_config.json", "["),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", '{"eos_token_id": 3}'),
        ("chat_template.jinja", "{% for m in messages %}{{ m.content }"),
        ("chat_template.jinja", "{{ raise_exception('no') }}"),
        ("chat_template.jinja", ""),
    ],
)
def test_check_refuses_what_generate_refuses(
    apd: Apd, broken: MakeBroken, tmp_path: Path, file: str, text: str
) -> None:
    path = broken("denoiser", {file: text})
    checked, ran = apd("profiles", "check", path), apd("generate", "-p", path, "hi")
    assert (checked.status, ran.status) == (1, 1)
    assert checked.complaint == ran.complaint
    assert str(tmp_path / "broken") in checked.complaint


def test_check_refuses_a_template_that_leaves_out_the_message(
    apd: Apd, broken: MakeBroken, tmp_path: Path
) -> None:
    path = broken("denoiser", {"chat_template.jinja": "hello"})
    assert str(tmp_path / "broken/chat_template.jinja") in apd("profiles", "check", path).complaint


def test_the_verifiers_own_ends_and_template_are_not_asked_for(
    apd: Apd, broken: MakeBroken
) -> None:
    path = broken("verifier", {"generation_config.json": "[", "chat_template.jinja": "{"})
    assert apd("profiles", "check", path).out.endswith("ready     yes\n")
    assert apd("generate", "-p", path, "hi").status == 0


def test_check_notes_a_missing_template(apd: Apd, broken: MakeBroken, tmp_path: Path) -> None:
    path = broken("denoiser", {})
    folder = tmp_path / "broken"
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    table = json.loads((folder / "tokenizer_config.json").read_text())
    table.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(table))
    ran = apd("profiles", "check", path)
    assert ran.out.endswith(f"note      {folder} has no chat template: use --raw\nready     yes\n")
    found = json.loads(apd("profiles", "check", path, "--json").out)
    assert found["notes"] == [f"{folder} has no chat template: use --raw"]
    assert "use --raw" in apd("generate", "-p", path, "hi").complaint
    assert apd("generate", "-p", path, "--raw", "hi").status == 0


def test_an_end_that_no_token_has_is_noted(apd: Apd, broken: MakeBroken, tmp_path: Path) -> None:
    path = broken("denoiser", {"generation_config.json": '{"eos_token_id": [2, 99999]}'})
    note = (
        f"{tmp_path}/broken/generation_config.json: eos_token_id 99999 is no token of this "
        "tokenizer and ends nothing"
    )
    assert f"note      {note}\n" in apd("profiles", "check", path).out
    for command in (("generate", "hi"), ("chat",)):
        given = (*command, "-p", path, "-n", 4)
        assert apd(*given, stdin="hi").err == ""  # a script's stays clean
        assert note in apd(*given, "-v", stdin="hi").err
        assert note not in apd(*given, "-q", stdin="hi", terminal=True).err
    assert note in apd("generate", "hi", "-p", path, "-n", 4, terminal=True).err


def test_check_notes_a_head_that_is_not_used(apd: Apd, broken: MakeBroken, tmp_path: Path) -> None:
    path = broken("verifier", {})
    file = tmp_path / "broken/model.safetensors"
    tensors = load_file(file)
    assert "lm_head.weight" not in tensors  # the reference verifier's is tied
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, file)
    *_, note, ready = apd("profiles", "check", path).out.splitlines()
    assert note.startswith(f"note      lm_head.weight in {file} is not used")
    assert ready == "ready     yes"


@pytest.mark.parametrize("role", ["denoiser", "verifier"])
def test_weights_that_are_not_numbers_give_one_line(
    apd: Apd, broken: MakeBroken, tmp_path: Path, role: str
) -> None:
    path = broken(role, {})
    file = tmp_path / "broken/model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"].fill_(float("nan"))
    save_file(tensors, file)
    for more in ([], ["-t", "1"], ["--engine", "eager"]):
        ran = apd("generate", "-p", path, "hi", *more)
        assert ran.status == 1
        assert f"the {role}'s logits are not numbers" in ran.complaint
    said = apd("profiles", "check", path).complaint
    assert f"{file}: model.layers.0.mlp.up_proj.weight holds values that are not numbers" in said
    if role == "denoiser":
        assert "not numbers" in apd("fill", "-p", path, "a ___ b").complaint
        assert "not numbers" in apd("generate", "-p", path, "hi", "-S", "dico").complaint


def test_check_says_which_values_it_has_looked_at(
    apd: Apd, broken: MakeBroken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = broken("denoiser", {})
    file = tmp_path / "broken/model.safetensors"
    tensors = load_file(file)
    name, matrix = max(tensors.items(), key=lambda item: item[1].shape[0])
    rows = len(matrix)
    assert rows > 32
    found = json.loads(apd("profiles", "check", path, "--json").out)
    assert [model["values"] for model in found["models"]] == ["all", "all"]
    matrix[1, 0] = float("-inf")
    save_file(tensors, file)
    assert f"{name} holds values that are not" in apd("profiles", "check", path).complaint
    monkeypatch.setattr("apdcli.load.finite._WHOLE", 0)  # as if it were a large one
    note = "of the denoiser's weights 16 rows of each tensor were looked at, not every value"
    assert f"note      {note}\n" in apd("profiles", "check", path).out
    matrix[0, 0] = float("nan")
    save_file(tensors, file)
    assert f"{name} holds values that are not" in apd("profiles", "check", path).complaint


def test_show_says_what_was_tuned_for_this_device(apd: Apd, make_profile: MakeProfile) -> None:
    here = device_name("cpu")
    tuned = f'[tuned.{json.dumps(here)}]\nstrategy = "apd"\nmax_lookahead = 24\n'
    path = make_profile(tuned)
    ran = apd("profiles", "show", path)
    assert f"# max_lookahead = 24  (tuned for {here})" in ran.out
    assert "# recompute_window = 16  (default)" in ran.out
    found = json.loads(apd("profiles", "show", path, "--json").out)
    assert found["settings"]["max_lookahead"] == {"value": 24, "from": "tuned"}
    found = json.loads(
        apd("profiles", "show", path, "--json", environ={"APD_STRATEGY": "dico"}).out
    )
    assert "tuned" not in {setting["from"] for setting in found["settings"].values()}


@pytest.mark.parametrize("role", ["denoiser", "verifier"])
def test_a_token_beyond_a_vocabulary_gives_one_line(
    apd: Apd, broken: MakeBroken, tmp_path: Path, role: str
) -> None:
    config = json.loads((DATA / role / "config.json").read_text())
    path = broken(role, {"config.json": json.dumps({**config, "vocab_size": 400})})
    file = tmp_path / "broken/model.safetensors"
    tensors = load_file(file)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & tensors.keys():
        tensors[name] = tensors[name][:400].clone()
    save_file(tensors, file)
    said = f"the {role} knows 400 tokens, and the text holds token 4"
    asked = ("generate", "Ben"), ("chat", "--json"), ("fill", "Ben ___ there")
    for words in asked if role == "denoiser" else asked[:2]:
        ran = apd(*words, "-p", path, stdin='{"prompt": "Ben"}' if words[0] == "chat" else None)
        assert ran.status == 1
        assert said in ran.out + ran.err
        assert "their" not in ran.err
    if role == "verifier":
        assert apd(*asked[2], "-p", path).status == 0  # who fills asks no verifier
    note = f"note      the {role} knows 400 tokens and the tokenizer writes 60 more: a text with"
    assert note in apd("profiles", "check", path).out
