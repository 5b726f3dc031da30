"""`apd fill`: the filled text on stdout, JSON, files, the view, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Apd, MakeProfile

TEXT = "one, ___, three\r\n"
FAST = ("--gap", 4)


def filled(out: str) -> str:
    """The gap's text, everything else having come back."""
    assert out.startswith("one, ")
    assert out.endswith(", three\r\n")
    return out[len("one, ") : -len(", three\r\n")]


def test_piped_it_is_the_filled_text_and_nothing_else(apd: Apd, profile: Path) -> None:
    ran = apd("fill", "-p", profile, *FAST, TEXT)
    assert (ran.status, ran.err) == (0, "")
    whole = filled(ran.out)
    assert whole
    assert "___" not in whole
    for args in ((), ("-",)):
        assert apd("fill", "-p", profile, *FAST, *args, stdin=TEXT).raw == ran.raw
    assert apd("fill", "-p", profile, *FAST, "--no-stream", TEXT).raw == ran.raw
    assert apd("fill", "-p", profile, *FAST, TEXT, stdin="not read").raw == ran.raw


def test_json_has_the_gaps_and_the_settings(apd: Apd, profile: Path) -> None:
    ran = apd("fill", "-p", profile, *FAST, "--strategy", "factor", "--json", "--", TEXT)
    assert ran.status == 0
    data = json.loads(ran.out)
    assert [filled(data["text"])] == data["gaps"]
    assert len(data["token_ids"]) == sum(data["accepted"]) == 4
    assert data["settings"]["strategy"] == {"value": "factor", "from": "flag"}
    assert data["settings"]["gap"] == {"value": 4, "from": "flag"}
    assert data["settings"]["marker"] == {"value": "___", "from": "default"}
    assert "max_tokens" not in data["settings"]


def test_files_trace_picture_and_replay(apd: Apd, profile: Path, tmp_path: Path) -> None:
    ran = apd(
        *("fill", "-p", profile, *FAST, "-o", "out.txt", "--trace", "t.jsonl"),
        *("--export", "p.svg", "--marker", "<?>", "-v", "日本 <?>!"),
    )
    assert (ran.status, ran.out) == (0, "")
    text = (tmp_path / "out.txt").read_text()
    assert text.startswith("日本 ")
    assert text.endswith("!\n")
    assert "strategy=dico (default)" in ran.err
    assert "verifier" not in ran.err
    assert "日本" in (tmp_path / "p.svg").read_text()
    again = apd("replay", "t.jsonl")
    assert (again.status, again.out) == (0, text)


def test_it_streams_in_place_on_a_terminal(apd: Apd, profile: Path) -> None:
    ran = apd("fill", "-p", profile, *FAST, "one, ___, three", stdin=None, terminal=True)
    assert ran.status == 0
    assert "\x1b[?25l" in ran.out
    # the first frame has it all: whether there is a second depends on the clock
    assert ran.out.index("three") < ran.out.index("reading the prompt")
    assert "4 tokens in" in ran.err


def test_a_profile_without_a_verifier_will_do(apd: Apd, make_profile: MakeProfile) -> None:
    alone = make_profile('[decode]\nstrategy = "threshold"\n', verifier=None)
    ran = apd("fill", "-p", alone, *FAST, "--json", TEXT)
    assert json.loads(ran.out)["settings"]["strategy"]["from"] == "profile"


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("no gap here",), 1, "the text has no gap: write ___"),
        (("",), 1, "the text is empty"),
        (("--gap", "0", TEXT), 2, "--gap 0: it must be an integer >= 1; see 'apd fill --help'"),
        (("--gap", "many", TEXT), 2, "--gap many: it must be an integer >= 1"),
        (("--gap", "100000", TEXT), 1, "the context holds 1024"),
        (("--marker", "", TEXT), 2, "it must be a text that is not empty"),
        (("--strategy", "apd", TEXT), 2, "strategy apd (flag) writes from left to right"),
        (("--strategy", "nothing", TEXT), 2, "see 'apd fill --help'"),
        (("-R", "0.5", TEXT), 2, "no option -R; see"),
        (("-O", "mixture_weight=0.5", TEXT), 2, "does not go with strategy dico"),
        (("-O", "seeds=x", TEXT), 2, "-O seeds x: it must be"),
        (("-q", "-v", TEXT), 2, "exclude each other; see 'apd fill --help'"),
        (("--export", "p.png", TEXT), 2, "see 'apd fill --help'"),
        (("one", "two"), 2, "put the text in quotes"),
    ],
)
def test_mistakes_are_one_line(
    apd: Apd, profile: Path, args: tuple[str, ...], status: int, message: str
) -> None:
    ran = apd("fill", "-p", profile, *args)
    assert ran.status == status
    assert message in ran.complaint


def test_without_a_text_and_nothing_piped(apd: Apd, profile: Path) -> None:
    ran = apd("fill", "-p", profile, stdin=None)
    assert ran.status == 2
    assert "no text" in ran.complaint
    assert "is empty" in apd("fill", "-p", profile, stdin="").complaint
    assert "not UTF-8" in apd("fill", "-p", profile, stdin=b"\xff ___").complaint


def test_the_help_lists_what_can_fill(apd: Apd, capsys: pytest.CaptureFixture[str]) -> None:
    assert apd("fill", "--help").status == 0
    shown = capsys.readouterr().out  # Typer writes it there by itself
    assert "--marker" in shown
    assert "dico" in shown
    assert "left_to_right  " not in shown
    assert "--mixture-weight" not in shown
