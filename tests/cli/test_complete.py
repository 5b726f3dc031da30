"""What Tab offers: by the protocol, and in real shells with the scripts that are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tree_sitter
import tree_sitter_powershell

from apdcli.chat.sessions import Session, Store
from apdcli.cli.complete import candidates
from apdcli.cli.shells import SHELLS, install
from apdcli.decode.gaps import FILLING
from apdcli.decode.params import STRATEGIES
from tests.cli.conftest import Apd

PROFILES = ["demo", "diffucoder", "dream", "dream-coder", "dream-quality", "llada", "llada-1.5"]


def offered(line: str, **environ: str) -> list[str]:
    """Candidates for the last word of a line."""
    *words, current = line.split(" ")
    return [candidate.value for candidate in candidates(words[1:], current, environ)[0]]


@pytest.fixture(autouse=True)
def no_profiles_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APD_CONFIG_DIR", str(tmp_path / "config"))


def names(strategy: str) -> list[str]:
    return [f"{name}=" for name in STRATEGIES[strategy].own_fields]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("apd gen", ["generate"]),
        ("apd nonsense ", []),
        ("apd profiles s", ["show"]),
        ("apd profiles show dream", ["dream", "dream-coder", "dream-quality"]),
        ("apd profiles new d", []),
        ("apd profiles e", ["edit"]),
        ("apd profiles edit dream-", ["dream-coder", "dream-quality"]),
        ("apd --vers", ["--version"]),
        ("apd --show-completion z", ["zsh"]),
        ("apd generate -p ", PROFILES),
        ("apd generate --profile=lla", ["--profile=llada", "--profile=llada-1.5"]),
        ("apd generate --strategy ", list(STRATEGIES)),
        ("apd fill --strategy ", list(FILLING)),
        ("apd generate -O ", names("apd")),
        (
            "apd generate --strategy dico --option s",
            ["seeds=", "seed_threshold=", "sure_threshold="],
        ),
        ("apd generate --strategy=klass -O ", names("klass")),
        ("apd fill -O ", names("dico")),
        ("apd generate --strategy dico -O seeds=2 -O seed", ["seed_threshold="]),
        ("apd generate --strategy dico -O cache=", ["cache=none", "cache=prefix", "cache=dual"]),
        ("apd generate --strategy dico -O early-stop=t", ["early-stop=true"]),
        ("apd generate --strategy dico -O early_stop=t", ["early_stop=true"]),
        ("apd generate --strategy dico -O block_length=", ["block_length=all"]),
        ("apd generate --strategy nonsense -O ", []),
        ("apd generate -W al", ["all"]),
        ("apd generate -R0.5 --dtype b", ["bfloat16"]),
        ("apd generate -s system --te", ["--temperature", "--temp"]),
        ("apd generate -q --qui", []),
        ("apd generate --stop a --sto", ["--stop"]),
        ("apd generate -- --te", []),
        ("apd generate hel", []),
        ("apd generate hello -", None),
    ],
)
def test_candidates(line: str, expected: list[str] | None) -> None:
    found = offered(line)
    if expected is None:
        assert {"--json", "-o", "--output", "--help"} <= set(found)
    else:
        assert found == expected


def test_the_strategy_may_come_from_anywhere(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[denoiser]\nmodel = "x"\n[decode]\nstrategy = "factor"\n')
    assert offered(f"apd generate -p {own} -O ") == names("factor")
    assert offered("apd generate -O ", APD_PROFILE=str(own)) == names("factor")
    assert offered(f"apd generate -p {own} -O ", APD_STRATEGY="klass") == names("klass")
    assert offered("apd generate -p gone -O ") == names("apd")


@pytest.fixture
def sessions(tmp_path: Path) -> str:
    """A data folder with three conversations, "new" being the last one."""
    folder = tmp_path / "data"
    for age, name in enumerate(("new", "old-1", "old-2")):
        store = Store(folder / "sessions")
        store.save(Session(name))
        os.utime(store.path(name), (1e9 - age, 1e9 - age))
    (folder / "sessions" / "notes.txt").touch()
    return str(folder)


def test_sessions(sessions: str) -> None:
    assert offered("apd chat --resume ", APD_DATA_DIR=sessions) == ["new", "old-1", "old-2"]
    assert offered("apd chat --resume=old", APD_DATA_DIR=sessions) == [
        "--resume=old-1",
        "--resume=old-2",
    ]
    found, files = candidates(["chat", "--resume"], "ne", {"APD_DATA_DIR": sessions})
    assert found[0].help.startswith("last used 2001-09-0")
    assert not files
    assert offered("apd chat --session ol", APD_DATA_DIR=sessions) == ["old-1", "old-2"]
    # --resume may stand alone
    assert offered("apd chat --resume -p dem", APD_DATA_DIR=sessions) == ["demo"]
    assert "--markdown" in offered("apd chat --resume --", APD_DATA_DIR=sessions)
    assert offered("apd chat --resume ", APD_DATA_DIR=f"{sessions}/none") == []


def test_files_where_files_go() -> None:
    def files(line: str) -> bool:
        *words, current = line.split(" ")
        return candidates(words[1:], current, {})[1]

    assert files("apd replay ")
    assert files("apd generate -o ")
    assert files("apd generate --trace=x")
    assert files("apd generate -p ./")
    assert not files("apd generate -n ")
    assert not files("apd generate hello")


def ask(apd: Apd, shell: str, words: str, place: int | None = None) -> tuple[list[str], int]:
    environ = {"_APD_COMPLETE": f"complete_{shell}", "COMP_WORDS": words}
    if place is not None:
        environ["COMP_CWORD"] = str(place)
    ran = apd(environ=environ)
    assert ran.err == ""
    return ran.out.splitlines(), ran.status


def test_the_protocol(apd: Apd) -> None:
    assert ask(apd, "bash", "apd gen", 1) == (["generate"], 0)
    assert ask(apd, "bash", "apd gen") == (["generate"], 0)
    assert ask(apd, "bash", "apd generate --dtype ")[0][0] == "auto"
    assert ask(apd, "bash", "apd generate -n ", 3) == ([], 1)
    assert ask(apd, "bash", "apd replay ", 2) == ([], 0)  # the shell's own file names
    assert ask(apd, "bash", "apd generate -s 'two words' --dty", 4) == (["--dtype"], 0)
    assert ask(apd, "bash", "apd generate -s 'open", 3) == ([], 1)
    # bash cuts words at = and :, and replaces only the last piece
    split = "\n".join(["apd", "generate", "--strategy", "=", "dico", "-O", "cache", "=", "p"])
    assert ask(apd, "bash", split, 8) == (["prefix"], 0)
    assert ask(apd, "bash", split[:-2], 7)[0] == ["none", "prefix", "dual"]
    assert ask(apd, "zsh", "apd gen", 1)[0][0].startswith("generate:Generate text: ")
    assert ask(apd, "fish", "apd gen", 1)[0][0].startswith("generate\tGenerate text: ")
    ran = apd(environ={"_APD_COMPLETE": "source_zsh"})
    assert (ran.out.rstrip("\n"), ran.status) == (SHELLS["zsh"].script.rstrip("\n"), 0)


def test_powershell_hands_over_words_without_their_quotes(apd: Apd, tmp_path: Path) -> None:
    own = tmp_path / "my profile.toml"
    own.write_text('[denoiser]\nmodel = "x"\n[decode]\nstrategy = "klass"\n')

    def found(*words: str) -> tuple[list[str], int]:
        lines, status = ask(apd, "powershell", "\n".join(("apd", *words)), len(words))
        return [line.split("\t")[0] for line in lines], status

    assert found("gen") == (["generate"], 0)
    assert found("generate", "-s", "it's \\ two words", "--dty") == (["--dtype"], 0)
    assert found("generate", "-p", str(own), "-O", "") == (names("klass"), 0)
    assert found("generate", "--strategy=dico", "-O", "cache=pre") == (["cache=prefix"], 0)
    assert found("generate", "-p", r".\pro") == ([], 0)  # a file's name
    assert found("generate", "=", "--dty") == (["--dtype"], 0)
    assert found("generate", "-n", "") == ([], 1)
    line = ask(apd, "powershell", "apd\ngenerate\n--strategy\ndi", 3)[0][0]
    assert line == f"dico\t{STRATEGIES['dico'].summary}"


SCRIPT = SHELLS["powershell"].script


def results(apd: Apd, *words: str) -> list[tuple[str, str, str, str]]:
    """The four arguments of each CompletionResult that the PowerShell script makes.

    With exactly the variables that it sets, and by its own words for what is quoted.
    """
    values = {
        '$words -join "`n"': "\n".join(words),
        "$words.Count - 1": str(len(words) - 1),
        "'complete_powershell'": "complete_powershell",
    }
    setting = dict(re.findall(r"^ +\$env:(\w+) = ([^=\n]+)$", SCRIPT, re.MULTILINE))
    ran = apd(environ={name: values[text] for name, text in setting.items()})
    assert ran.err == ""
    bare = re.search(r"\$value -notmatch '(.*?)'\)", SCRIPT)
    assert bare is not None
    made = []
    for line in ran.out.splitlines() if ran.status == 0 else []:
        value, _, tip = line.partition("\t")
        quoted = value if re.match(bare[1], value) else "'" + value.replace("'", "''") + "'"
        made.append((quoted, value, "ParameterValue", tip or value))
    return made


def test_powershell_takes_what_it_is_given(apd: Apd, tmp_path: Path) -> None:
    """No argument of a CompletionResult may be empty; Tab replaces a word by the first of them."""
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    for name in ("it's mine", "übung", "plain"):
        text = 'description = "größer"\n[denoiser]\nmodel = "x"\n'
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    found = {value: rest for value, *rest in results(apd, "apd", "generate", "-p", "")}
    assert found["plain"] == ["plain", "ParameterValue", "größer"]
    assert found["übung"] == ["übung", "ParameterValue", "größer"]
    assert found["'it''s mine'"] == ["it's mine", "ParameterValue", "größer"]
    assert results(apd, "apd", "generate", "--profile=it's m")[0][:2] == (
        "'--profile=it''s mine'",
        "--profile=it's mine",
    )
    every = [
        ("gen",),
        ("",),
        ("generate", "--"),
        ("generate", "-"),
        ("chat", "-"),
        ("tune", "-S", ""),
    ]
    every += [("generate", "-W", ""), ("generate", "-O", ""), ("--show-completion", "")]
    for words in every:
        made = results(apd, "apd", *words)
        assert made, words
        for result in made:
            assert all(result), words
            assert not any(c in "".join(result) for c in "\r\n\t\x1b")


def test_powershell_leaves_nothing_behind() -> None:
    """What a script block of Register-ArgumentCompleter -Native gets, and what this one undoes."""
    assert "Register-ArgumentCompleter -Native -CommandName apd -ScriptBlock {" in SCRIPT
    assert "param($wordToComplete, $commandAst, $cursorPosition)" in SCRIPT
    work, _, undone = SCRIPT.partition("} finally {")
    set_here = set(re.findall(r"\$env:(\w+) = ", work))
    assert set_here == {"COMP_WORDS", "COMP_CWORD", "_APD_COMPLETE"}
    # $null takes a variable away in every version; '' leaves it there, empty, from 7.5 on
    chain = re.search(r"^ +((?:\$env:\w+ = )+)\$null$", undone, re.MULTILINE)
    assert chain is not None
    assert set(re.findall(r"\$env:(\w+)", chain[1])) == set_here
    assert "$global:LASTEXITCODE = $status" in undone
    assert "$global:LASTEXITCODE" not in work  # strict mode: an error where nothing has run yet
    assert SCRIPT.isascii()  # Windows PowerShell 5.1 reads a file without a mark as ANSI


def test_powershell_can_read_it() -> None:
    """By a grammar of PowerShell that others wrote: the script, and the line in $PROFILE."""
    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_powershell.language()))

    def reads(text: str) -> bool:
        return not parser.parse(text.encode()).root_node.has_error

    shell = SHELLS["powershell"]
    assert reads(shell.script)
    assert reads(shell.naming.format("C:/it''s mine/apd-completion.ps1"))
    assert not reads(shell.script.replace("try {", "try", 1))
    assert not reads(shell.naming.format("C:/it's mine/apd-completion.ps1"))


def test_a_profile_cannot_drive_the_shell(apd: Apd, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    text = 'description = "a\\u001b]0;x\\u0007\\n$(touch pwned):b"\n[denoiser]\nmodel = "x"\n'
    (folder / "evil.toml").write_text(text)
    for shell in SHELLS:
        found, _ = ask(apd, shell, "apd\ngenerate\n-p\nevil", 3)
        assert len(found) == 1
        assert "\x1b" not in found[0]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("apd generate -p demo -O ", names("apd")),
        ("apd chat --resume ", ["new", "old-1", "old-2"]),
    ],
)
def test_completion_loads_nothing_heavy(line: str, found: list[str], sessions: str) -> None:
    code = (
        "import sys\nfrom apdcli.cli.main import main\nassert main([]) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    words = {
        "_APD_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "APD_DATA_DIR": sessions,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.split()) == (0, found), done.stderr


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A home of its own in which `apd` is on the path and its completion is installed."""
    home = tmp_path / "home"
    (home / "bin").mkdir(parents=True)
    (home / "work").mkdir()
    (home / "work" / "a trace.jsonl").touch()
    command = home / "bin" / "apd"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m apdcli "$@"\n')
    command.chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ZDOTDIR", "APD_"))}
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    root = str(Path(__file__).parents[2])
    own = {"HOME": str(home), "PATH": path, "PYTHONPATH": root, "TERM": "dumb", "PS1": "$ "}
    return {**kept, **own, "APD_CONFIG_DIR": str(tmp_path / "config")}


def in_shell(shell: str, code: str, environ: dict[str, str]) -> list[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    command = [shell, "--norc", "-c", code] if shell == "bash" else [shell, "-c", code]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, cwd=f"{environ['HOME']}/work"
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_bash(environ: dict[str, str], sessions: str) -> None:
    environ["APD_DATA_DIR"] = sessions
    install("bash", environ)
    ask = (
        'f() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _apd_complete apd; '
        'printf "%s\\n" "${COMPREPLY[@]}"; }\n. ~/.bashrc\n'
    )
    code = ask + "f apd gen; f apd generate -O cache = ''; f apd generate --strategy '='  th"
    code += "; f apd chat --resume n; f apd chat --resume = old"
    found = in_shell("bash", code, environ)
    assert found == ["generate", "", "threshold", "new", "old-1", "old-2"]


def test_fish(environ: dict[str, str], sessions: str) -> None:
    environ["APD_DATA_DIR"] = sessions
    install("fish", environ)
    code = "complete -C 'apd gen'; complete -C 'apd generate --strategy dico -O cache='; "
    code += "complete -C 'apd replay a'; complete -C 'apd generate -p dem'; "
    code += "complete -C 'apd chat --resume n'"
    generate, *caches, trace, demo, new = in_shell("fish", code, environ)
    assert generate.startswith("generate\tGenerate text")
    assert sorted(caches) == ["cache=dual", "cache=none", "cache=prefix"]
    assert trace.split("\t")[0].replace("\\", "") == "a trace.jsonl"
    assert demo.startswith("demo\tthe embedded pair")
    assert new.startswith("new\tlast used 2001-09-0")


def typing(shell: str, environ: dict[str, str]) -> Any:
    pexpect = pytest.importorskip("pexpect")
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    args = {"bash": ["--noprofile", "-i"], "zsh": ["-i", "+o", "globalrcs"]}[shell]
    cwd = f"{environ['HOME']}/work"
    child = pexpect.spawn(shell, args, env=environ, cwd=cwd, encoding="utf-8", timeout=60)
    child.delaybeforesend = None
    return child


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_tab_in_a_real_terminal(shell: str, environ: dict[str, str], sessions: str) -> None:
    environ["APD_DATA_DIR"] = sessions
    install(shell, environ)
    child = typing(shell, environ)
    child.send("echo rea''dy\n")
    child.expect("ready\r\n")
    child.send("apd ge\t")
    child.expect("nerate ")
    child.send("--strategy dic\t")
    child.expect("o ")
    child.send("-O guidance_al\t")
    child.expect("pha=")
    child.send("1 -O cache=pre\t")
    child.expect("fix ")
    child.send("\x15apd chat --resume n\t")
    child.expect("ew ")
    child.send("\x15apd repl\t")
    child.expect("ay ")
    child.send("a\t")
    child.expect(r"\\ trace\.jsonl")
    child.send("\x15exit\n")
    child.close(force=True)


@pytest.fixture
def started_by_no_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves may have been started by any shell, which `apd` would find."""
    monkeypatch.setattr(os, "getppid", os.getpid)


def test_the_file_that_cannot_be_written_is_named(apd: Apd, environ: dict[str, str]) -> None:
    start = Path(environ["HOME"]) / ".bashrc"
    start.mkdir()
    ran = apd("--install-completion", "bash", environ={"HOME": environ["HOME"]})
    assert f"cannot write {start}: is a folder" in ran.complaint


@pytest.mark.usefixtures("started_by_no_shell")
def test_installing_twice_changes_nothing_the_second_time(
    apd: Apd, environ: dict[str, str]
) -> None:
    home = Path(environ["HOME"])
    for shell, start in (("bash", ".bashrc"), ("zsh", ".zshrc")):
        (home / start).write_bytes(b"mine=1 # \xff")
        ran = apd("--install-completion", shell, environ={"HOME": str(home)})
        assert (ran.status, ran.out.count("written: ")) == (0, 2)
        text = (home / start).read_bytes()
        assert text.startswith(b"mine=1 # \xff\n")
        assert text.count(b"\n") == 2
        ran = apd("--install-completion", shell, environ={"HOME": str(home)})
        assert (ran.status, "already" in ran.out) == (0, True)
        assert (home / start).read_bytes() == text
    ran = apd("--install-completion", environ={"HOME": str(home), "SHELL": "/usr/bin/fish"})
    assert (home / ".config/fish/completions/apd.fish").read_text() == SHELLS["fish"].script
    assert ran.status == 0


def test_the_shell_that_asks_goes_before_the_login_shell(environ: dict[str, str]) -> None:
    words = [sys.executable, "-m", "apdcli", "--show-completion"]
    ran = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)}; true"],
        env={**environ, "SHELL": "/bin/zsh"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == SHELLS["bash"].script


@pytest.mark.usefixtures("started_by_no_shell")
def test_which_shell(apd: Apd) -> None:
    for shell in SHELLS:
        assert apd("--show-completion", shell).out == SHELLS[shell].script
    assert apd("--show-completion", "pwsh").out == SHELLS["powershell"].script
    ran = apd("--show-completion", environ={"SHELL": "/bin/zsh"})
    assert ran.out == SHELLS["zsh"].script
    assert "there is: bash, zsh" in apd("--show-completion", "tcsh").complaint
    ran = apd("--install-completion", environ={"SHELL": "/bin/tcsh"})
    assert (ran.status, "which shell?" in ran.complaint) == (2, True)
