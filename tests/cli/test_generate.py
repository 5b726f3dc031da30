"""`apd generate` with good input: what goes to which stream, and that it is what the API gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import apdcli
from apdcli.cli.signals import Signals
from tests.cli.conftest import Apd, MakeProfile

PROMPT = "tell me a story"


def test_a_pipe_gets_the_answer_and_nothing_else(apd: Apd, profile: Path) -> None:
    expected = apdcli.generate(apdcli.load_pair(profile), PROMPT).text
    ran = apd("generate", "-p", profile, PROMPT)
    assert (ran.status, ran.raw, ran.err) == (0, (expected + "\n").encode(), "")
    assert b"\x1b" not in ran.raw


@pytest.mark.parametrize("flag", ["--no-stream", "--no-live", "-q"])
def test_the_text_is_the_same_however_it_is_shown(apd: Apd, profile: Path, flag: str) -> None:
    ran = apd("generate", "-p", profile, PROMPT, flag)
    assert (ran.status, ran.raw) == (0, apd("generate", "-p", profile, PROMPT).raw)


def test_standard_input_goes_before_the_prompt_with_a_blank_line(apd: Apd, profile: Path) -> None:
    def text(*args: str, stdin: str | None) -> str:
        ran = apd("generate", "-p", profile, *args, stdin=stdin)
        assert (ran.status, ran.err) == (0, "")
        return ran.out

    whole = text("some notes\n\nsum up", stdin=None)
    assert text("sum up", stdin="some notes\n") == whole
    assert text(stdin="some notes\n\nsum up\n") == whole
    assert text("-", stdin="some notes\n\nsum up") == whole
    assert text("sum up", stdin="") == text("sum up", stdin=None)


def test_raw_text_is_continued_as_it_is(apd: Apd, profile: Path) -> None:
    pair = apdcli.load_pair(profile)
    expected = apdcli.generate(pair, "Once upon\n", raw=True).text
    assert apd("generate", "-p", profile, "--raw", stdin="Once upon\n").out == expected + "\n"


def test_json_holds_what_the_api_gives(apd: Apd, profile: Path) -> None:
    expected = apdcli.generate(apdcli.load_pair(profile), PROMPT, mixture_weight=0.5)
    ran = apd("generate", "-p", profile, PROMPT, "-R", "0.5", "--json")
    found = json.loads(ran.out)
    assert list(found) == [
        *("text", "finish_reason", "prompt_tokens", "token_ids", "accepted"),
        *("usage", "settings", "versions"),
    ]
    for name in ("text", "finish_reason", "prompt_tokens", "token_ids", "accepted"):
        assert found[name] == getattr(expected, name)
    assert list(found["usage"]) == [
        *("steps", "denoiser_forwards", "verifier_forwards", "tokens_forwarded"),
        *("seconds", "tokens_per_second", "tokens_per_step"),
    ]
    assert sum(found["accepted"]) == len(found["token_ids"])
    assert found["usage"]["steps"] == len(found["accepted"])
    assert {"apdcli", "python", "torch"} <= found["versions"].keys()
    assert ran.err == ""
    assert ran.out.count("\n") == 1


def test_each_setting_says_where_it_came_from(apd: Apd, make_profile: MakeProfile) -> None:
    profile = make_profile("[decode]\nmax_tokens = 8\nmax_lookahead = 9\nmixture_weight = 0.1\n")
    environ = {"APD_MAX_LOOKAHEAD": "7", "APD_MIXTURE_WEIGHT": "0.2", "APD_PROFILE": str(profile)}
    ran = apd("generate", PROMPT, "-R", "0.3", "-W", "all", "--json", environ=environ)
    settings = json.loads(ran.out)["settings"]
    shown = {name: (entry["value"], entry["from"]) for name, entry in settings.items()}
    assert shown["mixture_weight"] == (0.3, "flag")
    assert shown["recompute_window"] == ("all", "flag")
    assert shown["max_lookahead"] == (7, "environment")
    assert shown["max_tokens"] == (8, "profile")
    assert shown["temperature"] == (0.0, "default")
    assert shown["profile"] == (str(profile), "environment")
    assert (shown["strategy"], shown["device"]) == (("apd", "default"), ("cpu", "default"))


def test_strategies_take_their_own_parameters(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, PROMPT, "--strategy", "left_to_right", "-K", "3", "--json")
    assert json.loads(ran.out)["accepted"][0] == 3
    ran = apd(
        *("generate", "-p", profile, PROMPT, "--strategy", "threshold", "--json"),
        *("-O", "block-length=16", "-O", "confidence_threshold=0.5"),
    )
    settings = json.loads(ran.out)["settings"]
    assert settings["block_length"] == {"value": 16, "from": "flag"}
    assert settings["confidence_threshold"] == {"value": 0.5, "from": "flag"}


@pytest.mark.parametrize(
    "drawn",
    [("-t", "1"), ("--strategy", "random"), ("--strategy", "margin", "-O", "alg_temp=5")],
    ids=" ".join,
)
def test_a_fresh_seed_each_run_and_it_is_reported(
    apd: Apd, profile: Path, drawn: tuple[str, ...]
) -> None:
    def sampled(*args: str) -> tuple[int, str]:
        ran = apd("generate", "-p", profile, PROMPT, *drawn, "--json", *args)
        found = json.loads(ran.out)
        return found["settings"]["seed"]["value"], found["text"]

    first, second = sampled(), sampled()
    assert first[0] != second[0]
    assert sampled("--seed", str(first[0])) == first


def test_verbose_names_the_seed_only_where_one_was_drawn(apd: Apd, profile: Path) -> None:
    greedy = apd("generate", "-p", profile, PROMPT, "-n", "4", "-v").err
    assert "seed=new each run (default)" in greedy
    assert "seed=new" not in apd("generate", "-p", profile, PROMPT, "-n", "4", "-v", "-t", "1").err


def test_output_goes_to_the_file_alone(apd: Apd, profile: Path, tmp_path: Path) -> None:
    target = tmp_path / "answer.txt"
    target.write_text("before")
    target.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(target)
    expected = apd("generate", "-p", profile, PROMPT).raw
    ran = apd("generate", "-p", profile, PROMPT, "-o", link)
    assert (ran.status, ran.raw, ran.err) == (0, b"", "")
    assert target.read_bytes() == expected
    assert target.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    ran = apd("generate", "-p", profile, PROMPT, "--json", "-o", target)
    assert json.loads(target.read_text())["text"] + "\n" == expected.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answer.txt", "link", "weak.toml"]


def test_a_failure_leaves_the_file_as_it_was(apd: Apd, make_profile: MakeProfile) -> None:
    target = Path("answer.txt")
    target.write_text("before")
    ran = apd("generate", "-p", make_profile(denoiser=Path("gone")), PROMPT, "-o", target)
    assert ran.status == 1
    assert target.read_text() == "before"
    assert sorted(path.name for path in Path().iterdir()) == ["answer.txt", "weak.toml"]


def test_trace_and_picture(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, PROMPT, "--trace", "t.jsonl", "--export", "t.svg")
    assert (ran.status, ran.err) == (0, "")
    header, *steps, last = map(json.loads, Path("t.jsonl").read_text().splitlines())
    assert header["settings"]["profile"]["from"] == "flag"
    assert last["event"] == "finished"
    assert last["steps"] == len(steps)
    assert "".join(step["text"] for step in steps).startswith(ran.out.rstrip("\n"))
    assert Path("t.svg").read_text().startswith("<svg")


def test_stop_strings_end_the_answer(apd: Apd, profile: Path) -> None:
    whole = apd("generate", "-p", profile, PROMPT).out
    stop = whole.split()[2]
    found = json.loads(apd("generate", "-p", profile, PROMPT, "--stop", stop, "--json").out)
    assert found["text"] == whole[: whole.index(stop)]
    assert found["finish_reason"] == "stop"


class AfterTwoSteps(Signals):
    """As if Ctrl-C were pressed during the second step."""

    asked = 0

    @property
    def interrupted(self) -> bool:  # type: ignore[override]
        self.asked += 1
        return self.asked > 2

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        pass


def test_interrupted_prints_what_there_is(apd: Apd, profile: Path) -> None:
    whole = apd("generate", "-p", profile, PROMPT, "-K", "2", "--strategy", "left_to_right").out
    args = ("generate", "-p", profile, PROMPT, "-K", "2", "--strategy", "left_to_right")
    ran = apd(*args, signals=AfterTwoSteps())
    assert (ran.status, ran.err) == (130, "")
    assert whole.startswith(ran.out.rstrip("\n"))
    assert 0 < len(ran.out) < len(whole)
    ran = apd(*args, "--json", signals=AfterTwoSteps())
    found = json.loads(ran.out)
    assert (ran.status, found["finish_reason"], found["usage"]["steps"]) == (130, "interrupted", 2)


def test_verbose_tells_on_stderr_what_runs(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, PROMPT, "-v", "-W", "8")
    quiet = apd("generate", "-p", profile, PROMPT, "-W", "8")
    assert ran.raw == quiet.raw
    for piece in (str(profile), "float32 on cpu", "loaded", "W=8 (flag)", "tokens/s"):
        assert piece in ran.err


def test_on_a_terminal_without_a_cursor_the_text_is_plain(apd: Apd, profile: Path) -> None:
    piped = apd("generate", "-p", profile, PROMPT)
    ran = apd("generate", "-p", profile, PROMPT, terminal=True, environ={"TERM": "dumb"})
    assert ran.raw == piped.raw
    assert "tokens/step" in ran.err
    ran = apd("generate", "-p", profile, PROMPT, "-q", terminal=True)
    assert (ran.raw, ran.err) == (piped.raw, "")


def test_the_embedded_pair_answers_without_any_configuration(apd: Apd) -> None:
    ran = apd("generate", "hello", "-n", "16")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.strip()
    assert ran.raw == apd("generate", "-p", "demo", "hello", "-n", "16").raw
