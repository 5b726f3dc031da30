"""`apd tune`: what it prints, where it stores it, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apdcli.cli.context import Context
from apdcli.cli.signals import Signals
from apdcli.cli.tune import _Bar
from apdcli.cli.tune_report import Result, show
from apdcli.load.device_name import device_name
from apdcli.load.profile import find_profile
from apdcli.render.plots import Picture, Point
from apdcli.tune.search import Progress as Where
from tests.cli.conftest import Apd, MakeProfile, Ran, Stream

SMALL = ("--limit", 3, "--trials", 3, "-n", 8)
PROMPTS = "Once there was a fox.\nCount to three.\nSay hello.\n"


@pytest.fixture
def tune(apd: Apd, tmp_path: Path, profile: Path) -> Any:
    """`tune(...)` runs a small search on the reference pair, kept in the test's folder."""
    (tmp_path / "p.txt").write_text(PROMPTS)
    environ = {
        "APD_DATA_DIR": str(tmp_path / "data"),
        "APD_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(*args: object, **more: Any) -> Ran:
        given = () if "--task" in args or "--prompts" in args else ("--prompts", "p.txt")
        named = () if "-p" in args else ("-p", profile)
        environ.update(more.pop("environ", {}))
        return apd("tune", *named, *SMALL, *given, *args, environ=environ, **more)

    return run


def test_the_front_as_plain_text(tune: Any, tmp_path: Path) -> None:
    ran = tune()
    assert (ran.status, ran.err) == (0, "")
    heading, heads, one, *rest = ran.out.splitlines()
    assert heading.startswith("p.txt: 3 prompts, scored by agreement, on ")
    for head in ("settings", "quality, % (95 %)", "tokens/step", "tokens/s (95 %)"):
        assert head in heads
    assert one.startswith("one token a step")
    assert "1.00" in one
    assert any(line.startswith("R=") for line in rest)
    assert rest[-1].startswith(("3 settings tried", "~"))
    assert "\x1b" not in ran.out
    assert (tmp_path / "data" / "tune.db").is_file()


def test_json_has_everything_and_the_study_is_gone_on_with(tune: Any) -> None:
    first = json.loads(tune("--json").out)
    assert first["strategy"] == "apd"
    assert first["target"] is None
    assert len(first["tried"]) == 3
    assert first["one_a_step"]["tokens_per_step"] == 1.0
    assert first["answers"] == sum(t["prompts"] for t in first["tried"]) + 3
    for entry in first["front"]:
        assert set(entry["values"]) == {"mixture_weight", "recompute_window", "max_lookahead"}
        assert entry["agreement"]["low"] <= entry["agreement"]["mean"] <= entry["agreement"]["high"]
        speed = entry["tokens_per_second"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]
    assert "mixture_weight" not in first["settings"]
    assert first["settings"]["max_tokens"] == {"value": 8, "from": "flag"}
    assert first["settings"]["seed"] == {"value": 0, "from": "default"}
    again = json.loads(tune("--json").out)
    assert again["tried"] == first["tried"]
    more = json.loads(tune("--json", "--trials", 5).out)
    known = [(t["trial"], t["values"], t["agreement"]) for t in first["tried"]]
    assert [(t["trial"], t["values"], t["agreement"]) for t in more["tried"]][:3] == known
    assert len(more["tried"]) == 5


def test_a_target_that_is_reached_is_written_and_used(tune: Any, apd: Apd, profile: Path) -> None:
    before = profile.read_text()
    ran = tune("--target-speed", "0.01x", "--write", "--json")
    assert ran.status == 0
    found = json.loads(ran.out)
    assert found["target"]["reached"]
    assert found["written"] == str(profile)
    chosen = found["chosen"]["values"]
    best = max(t["agreement"]["mean"] for t in found["tried"] if not t["given_up"])
    assert found["chosen"]["agreement"]["mean"] == best
    assert profile.read_text().startswith(before)
    here = device_name("cpu")
    assert find_profile(profile).tuned == {here: {"strategy": "apd", **chosen}}
    assert "# apd tune for 0.01x on p.txt (3 prompts)" in profile.read_text()
    used = json.loads(apd("generate", "-p", profile, "--json", "Hello").out)["settings"]
    for name, value in chosen.items():
        assert used[name] == {"value": value, "from": "tuned"}
    by_flag = json.loads(apd("generate", "-p", profile, "--json", "-R", "0.25", "Hi").out)
    assert by_flag["settings"]["mixture_weight"] == {"value": 0.25, "from": "flag"}
    assert f"(tuned for {here})" in apd("profiles", "show", profile).out


def test_what_it_was_measured_with_is_written_down(tune: Any, profile: Path) -> None:
    ran = tune("--target-speed", "0.01x", "--write", "--dtype", "float32", "--trials", 1, "-v")
    assert "measured with --dtype float32: give it to apd generate, too" in ran.err
    assert ", measured with --dtype float32\n" in profile.read_text()


@pytest.mark.parametrize(("speed", "named"), [(50.0, False), (150.0, True)])
def test_a_slower_setting_is_not_called_the_fastest(speed: float, named: bool) -> None:
    def made(value: float) -> Any:
        span = SimpleNamespace(median=value, low=value, high=value)
        measured = SimpleNamespace(speed=SimpleNamespace(times=lambda _: span))
        return SimpleNamespace(speed=value, measured=measured, values={"k": 2})

    chosen = SimpleNamespace(candidate=made(100.0), alike=(made(speed),))
    found: Any = SimpleNamespace(chosen=chosen, steps_per_second=1.0, reference=None)
    task: Any = SimpleNamespace(scorer="agreement", items=())
    assert ("the fastest: K=2, 150" in Result(found, task, "cpu", ())._alike()) is named


def test_what_cannot_be_reached_is_said_with_the_nearest(tune: Any, profile: Path) -> None:
    before = profile.read_text()
    for target in (("--target-speed", "1e9".replace("e9", "000000000")), ("--target-quality", 100)):
        ran = tune(*target, "--write", "-t", "0.9", "--seed", 3)
        if ran.status == 0:  # a quality of 100 may be reached by luck; a speed of 10^9 may not
            assert target[0] == "--target-quality"
            continue
        assert ran.status == 1
        assert len(ran.err.splitlines()) == 1
        assert ran.err.startswith("apd: none of the 3 settings tried reaches ")
        assert "; the nearest is R=" in ran.err
        assert "no setting reaches" in ran.out
    if "tuned" not in profile.read_text():
        assert profile.read_text() == before


def test_a_share_of_one_token_a_step(tune: Any) -> None:
    found = json.loads(tune("--target-quality", "1%", "--json").out)
    assert found["target"]["reached"]
    one = found["one_a_step"]["agreement"]["mean"]
    assert found["target"]["quality"] == pytest.approx(0.01 * one)
    speeds = [t["tokens_per_second"]["median"] for t in found["tried"] if not t["given_up"]]
    assert found["chosen"]["tokens_per_second"]["median"] == max(speeds)


def test_another_strategy_has_its_own_knobs(tune: Any, apd: Apd, profile: Path) -> None:
    ran = tune("--strategy", "threshold", "--target-speed", "0.001x", "--write", "--json")
    values = json.loads(ran.out)["chosen"]["values"]
    assert set(values) == {"confidence_threshold", "block_length", "cache"}
    used = json.loads(apd("generate", "-p", profile, "-n", 8, "--json", "Hello").out)["settings"]
    assert used["strategy"] == {"value": "threshold", "from": "tuned"}
    given = ("generate", "-p", profile, "-n", 8, "--strategy", "apd", "--json", "Hello")
    used = json.loads(apd(*given).out)["settings"]
    assert "tuned" not in {setting["from"] for setting in used.values()}


def test_a_picture(tune: Any, tmp_path: Path) -> None:
    for name in ("f.svg", "f.html"):
        assert tune("--plot", name).status == 0
    assert "<svg" in (tmp_path / "f.svg").read_text()
    assert (tmp_path / "f.html").read_text().startswith("<!DOCTYPE html>")


def test_a_terminal_that_lacks_letters_gets_others_in_their_place() -> None:
    row = (">", "R=0.5", "50.0 (1.0 to 99.0)", "-", "2.00", "9 (8 to 10)", "2.00")
    result: Any = SimpleNamespace(
        task=SimpleNamespace(name="café", items=[1], scorer="exact"),
        device="cpu",
        lines=lambda: ["chosen: 日"],
        rows=lambda: [row],
        picture=lambda: Picture((Point(9, 50, 1, 99, "chosen"),), "café"),
    )
    out = Stream(terminal=True)
    out.reconfigure(encoding="ascii")
    show(result, Context(None, out, Stream(), {"TERM": "xterm"}, Signals()))
    shown = out.bytes().decode("ascii")
    assert "caf?: 1 prompts" in shown
    assert "chosen: ?" in shown


def test_on_a_terminal(tune: Any) -> None:
    ran = tune("--target-speed", "0.01x", terminal=True)
    assert ran.status == 0
    assert "tokens/s" in ran.out
    assert "□ one token a step" in _bare(ran.out)
    assert "◆ chosen" in _bare(ran.out)
    assert "\r\x1b[K" in ran.err, "the progress bar was there, and is wiped"
    assert ran.err.endswith("\x1b[K")
    assert "setting 0/" not in ran.err
    assert "\r" not in tune("-q", terminal=True).err


@pytest.mark.parametrize(
    ("tried", "doing", "says"),
    [
        (0, "one token a step", "one token a step  prompt 18/20"),
        (0, "setting", "setting 1/40  prompt 18/20"),
        (40, "setting", "setting 40/40  prompt 18/20"),
    ],
)
def test_the_progress_says_what_its_numbers_are(tried: int, doing: str, says: str) -> None:
    job: Any = SimpleNamespace(trials=40, timeout=600.0, quiet=False)
    bar = _Bar(Context(None, None, Stream(terminal=True), {"TERM": "xterm"}), job)
    bar.show(Where(tried, 40, doing, 18, 20, None))
    assert f"  {says}  at most 10:00 left" in bar.line(100)


def test_ctrl_c_ends_it_with_the_result_so_far(tune: Any, profile: Path) -> None:
    assert tune().status == 0
    pressed = Signals()
    pressed.interrupted = True
    ran = tune("--trials", 50, "--target-speed", "0.01x", "--write", signals=pressed)
    assert ran.status == 130
    assert "3 settings tried" in ran.out
    assert "1 setting tried" in tune("--trials", 1, "--study", "one").out
    assert "tuned" not in profile.read_text(), "a search that was cut short writes nothing"
    fresh = tune("--study", "other", signals=pressed)
    assert (fresh.status, fresh.out, fresh.err) == (130, "", "")


def test_the_seed_may_come_from_the_environment(tune: Any) -> None:
    ran = tune("--json", "--trials", 1, environ={"APD_SEED": "5"})
    assert json.loads(ran.out)["settings"]["seed"] == {"value": 5, "from": "environment"}


def test_too_little_time(tune: Any) -> None:
    ran = tune("--timeout", "0.001")
    assert ran.status == 1
    assert (
        "too short to measure one token a step on 3 prompts: give more --timeout" in ran.complaint
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--target-speed", "fast"), "--target-speed fast: it must be tokens a second above 0"),
        (("--target-quality", "120"), "--target-quality 120: it must be a quality from 0 to 1"),
        (("--target-speed", "3x", "--target-quality", "1"), "exclude each other"),
        (("--task", "all", "--prompts", "p.txt"), "--task and --prompts exclude each other"),
        (("--write",), "--write needs a target that chooses a setting"),
        (("--trials", "0"), "--trials 0: it must be an integer >= 1"),
        (("--limit", "some"), "--limit some: it must be an integer >= 1"),
        (("--timeout", "later"), "--timeout later: it must be a time above 0"),
        (("--plot", "f.pdf"), "--plot f.pdf: it must end in .png, .svg or .html"),
        (("--strategy", "autoregressive"), "strategy autoregressive has nothing to tune"),
        (("--strategy", "apt"), "--strategy apt"),
        (("--task", "nothing"), "nothing"),
        (("--task", "sums", "--scorer", "best"), "scorer 'best' is not known"),
        (("--storage", "here"), "--storage here: it must be a URL like sqlite:///tune.db"),
    ],
)
def test_wrong_usage(tune: Any, args: tuple[str, ...], says: str) -> None:
    ran = tune(*args)
    assert ran.status == 2
    assert says in ran.complaint


def test_a_schedule_of_steps_leaves_nothing_to_search(tune: Any) -> None:
    said = tune("-S", "confidence", "-O", "steps=4").complaint
    assert said == (
        "apd: -O steps 4 (flag) says how many tokens a step takes, and the search is for K: "
        "leave it out, or begin with -K/--k N\n"
    )


def test_a_damaged_task_names_its_line(tune: Any, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    ran = tune("--task", "t.jsonl", "--scorer", "exact")
    assert ran.status == 1
    assert "t.jsonl, line 2" in ran.complaint
    assert "empty.jsonl" in tune("--task", "empty.jsonl").complaint


def test_a_study_of_another_task_or_pair_is_refused(
    tune: Any, tmp_path: Path, make_profile: MakeProfile
) -> None:
    assert tune("--study", "mine").status == 0
    (tmp_path / "q.txt").write_text("Another question?\n")
    ran = tune("--study", "mine", "--prompts", "q.txt")
    assert ran.status == 2
    assert "study 'mine' is of another task" in ran.complaint
    ran = tune("--study", "mine", "-t", "0.5")
    assert "study 'mine' is of another decoding" in ran.complaint
    ran = tune("--study", "mine", "--engine", "eager")
    assert "study 'mine' is of another engine (fast, here eager)" in ran.complaint
    other = make_profile(name="other", denoiser=_changed_copy(tmp_path))
    ran = tune("--study", "mine", "-p", other)
    assert ran.status == 2
    assert "study 'mine' is of another pair" in ran.complaint
    assert tune("-p", other).status == 0, "without --study each has its own"


def test_a_read_only_profile_is_refused_before_any_work(tune: Any, profile: Path) -> None:
    profile.chmod(0o444)
    ran = tune("--target-speed", "0.1x", "--write")
    assert ran.status == 1
    assert ran.complaint == f"apd: cannot write {profile}: it is read-only\n"


def _changed_copy(tmp_path: Path) -> Path:
    """The reference denoiser with other weights."""
    from safetensors.torch import load_file, save_file

    from tests.cli.conftest import DATA

    folder = tmp_path / "denoiser"
    shutil.copytree(DATA / "denoiser", folder)
    (weights,) = folder.glob("*.safetensors")
    tensors = load_file(weights)
    save_file({name: t * 1.5 for name, t in tensors.items()}, weights, {"format": "pt"})
    return folder


def _bare(text: str) -> str:
    import re

    return re.sub(r"\x1b\[[0-9;]*m", "", text)
