"""Names, files and traces are untrusted: through every command, none of them drives a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Apd, MakeProfile
from tests.cli.shell import write_trace

EVIL = "\x1b[2J\x1b]52;c;aGk=\x07\x1b]8;;http://x\x1b\\a\x9b31m\u202eb[bold red]c[/]\r\x08"
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
OURS = re.compile(  # what the live view and the progress bar send
    r"\x1b(\[\?2026[hl]|\[\?7[hl]|\[\?25[hl]|\[[KJ]|\[\d+A|[78D]|\[[0-9;]*m)|\r\n|\r+(?=\x1b\[K)"
)


def safe(text: str) -> bool:
    return CONTROLS.search(OURS.sub("", text)) is None


@pytest.mark.parametrize(
    "args",
    [
        ("generate", "-p", EVIL, "x"),
        ("generate", "-p", f"{EVIL}.toml", "x"),
        ("generate", "-W", EVIL, "x"),
        ("generate", "-O", EVIL, "x"),
        ("generate", "-O", f"gamma={EVIL}", "x"),
        ("generate", "--strategy", EVIL, "x"),
        ("generate", "--stop", "", "x"),
        ("generate", "--export", EVIL, "x"),
        ("generate", "-o", f"{EVIL}/x", "x"),
        ("generate", "--input", EVIL),
        ("generate", f"--{EVIL}"),
        ("generate", "x", EVIL),
        ("replay", EVIL),
        ("replay", "t", "--speed", EVIL),
        ("fill", EVIL),
        ("fill", "--marker", EVIL, "x"),
        ("profiles", "show", EVIL),
        ("profiles", "new", EVIL),
        (EVIL.replace(" ", ""),),  # with a space it would be a prompt
        ("--show-completion", EVIL),
        ("--debug", "generate", "-p", EVIL, "x"),
    ],
    ids=lambda args: " ".join(args).replace(EVIL, "EVIL"),
)
def test_a_mistake_is_told_safely(apd: Apd, args: tuple[str, ...]) -> None:
    ran = apd(*args, terminal=True)
    assert ran.status in (1, 2)
    assert safe(ran.err)
    assert safe(ran.out)
    if "--debug" not in args:
        assert len(ran.err.splitlines()) == 1


def test_a_profile_is_shown_safely_and_piped_exactly(apd: Apd, tmp_path: Path) -> None:
    folder = tmp_path / "config" / "profiles"
    folder.mkdir(parents=True)
    description = json.dumps(EVIL).replace("\\u202e", "\u202e").replace("\\b", "\\u0008")
    text = f'description = {description}\n[denoiser]\nmodel = "a\u202eb"\n'
    (folder / "evil.toml").write_text(text, encoding="utf-8")
    (folder / "worse.toml").write_text(f'{text}[decode]\n"\u202e\u009b" = 1\n', encoding="utf-8")
    for args in (("profiles",), ("profiles", "show", "evil"), ("profiles", "show", "worse")):
        ran = apd(*args, terminal=True)
        assert safe(ran.out + ran.err), args
        assert "⟦U+202E⟧" in ran.out + ran.err
    assert "a\u202eb" in apd("profiles", "show", "evil").out
    ran = apd("profiles", "check", "evil", terminal=True)
    assert (ran.status in (1, 2), safe(ran.err)) == (True, True)


@pytest.mark.parametrize("term", ["xterm-256color", "dumb"])
@pytest.mark.parametrize("more", [(), ("--no-live",)])
def test_a_trace_is_played_safely(apd: Apd, term: str, more: tuple[str, ...]) -> None:
    words = [chr(c) for c in range(0x100)] + [EVIL, "\u2066", "e\u0301\u0301", "end"]
    text = write_trace(Path("t.jsonl"), words)
    lines = Path("t.jsonl").read_text().splitlines()
    header = json.loads(lines[0])
    header["settings"] = {"strategy": EVIL, "mixture_weight": EVIL, EVIL: EVIL}
    steps = [json.loads(line) for line in lines[1:]]
    for step in steps[:-1]:
        step["phase"] = EVIL
    Path("t.jsonl").write_text("\n".join(map(json.dumps, [header, *steps])) + "\n")
    args = ("replay", "t.jsonl", "--speed", "max", "--export", "p.svg", *more)
    ran = apd(*args, terminal=True, environ={"TERM": term})
    assert ran.status == 0
    assert safe(ran.out)
    assert safe(ran.err)
    for shown in ("␛[2J", "⟦U+009B⟧31m", "⟦U+202E⟧", "[boldred]c[/]", "␀", "␡"):
        assert shown in re.sub(r"\s|\x1b\[[0-9;]*[mKJ]", "", ran.out).replace("\x1b", "")
    assert safe(Path("p.svg").read_text(encoding="utf-8"))
    assert apd(*args).raw == (text + "\n").encode()


def test_damaged_traces_are_told_of_safely(apd: Apd) -> None:
    for content in (EVIL, json.dumps({"format": "apd-trace", "version": EVIL}), "{" + EVIL):
        Path("t.jsonl").write_text(content, encoding="utf-8")
        ran = apd("replay", "t.jsonl", terminal=True)
        assert (ran.status, safe(ran.err), len(ran.err.splitlines())) == (1, True, 1)


def test_lines_of_an_input_are_told_of_safely(apd: Apd, make_profile: MakeProfile) -> None:
    profile = make_profile()
    for line in (json.dumps({EVIL: 1, "prompt": "x"}), json.dumps({"prompt": "x", "k": EVIL})):
        ran = apd("generate", "-p", profile, "--jsonl", terminal=True, stdin=line)
        assert (ran.status, safe(ran.out), safe(ran.err)) == (1, True, True)
        assert ran.out.isascii()


def test_verbose_lines_are_safe(apd: Apd, make_profile: MakeProfile, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m").mkdir()
    path = make_profile(name="a\x1b[31m/p\u202e")
    ran = apd("generate", "-p", path, "-v", "-n", "4", "-s", EVIL, "hello", terminal=True)
    assert ran.status == 0
    assert safe(ran.err)
    assert "␛[31m/p⟦U+202E⟧" in ran.err
