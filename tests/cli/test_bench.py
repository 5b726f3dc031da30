"""`apd bench`: tables, JSON, files, interruption and refusals, on the reference pair."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from apdcli.cli.signals import Signals
from tests.cli.conftest import Apd

FEW = ("--repeats", "2", "--warmup", "0", "--rates", "3e10,1e11", "-n", "12")


def bench(apd: Apd, profile: Path, *args: object, **more: Any) -> Any:
    return apd("bench", "-p", profile, *FEW, *args, **more)


def test_a_table_on_stdout_and_nothing_else(apd: Apd, profile: Path) -> None:
    ran = bench(apd, profile, "--strategies", "left_to_right,apd", "the cat", "a dog")
    assert ran.status == 0
    assert ran.err == ""
    rows = [line.split("|")[1].strip() for line in ran.out.splitlines() if line.startswith("| ")]
    assert [name for name in rows if not name.startswith("-")] == [
        "setting", "left_to_right", "apd", "ms a step", "left_to_right", "apd",
    ]  # fmt: skip
    assert "2 prompts of" in ran.out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_gets_tables_as_wide_as_it_is(
    apd: Apd, profile: Path, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apdcli.cli.tables.stream_size", lambda _: lambda: (columns, 24))
    args = ("--strategies", "left_to_right,apd", "the cat", "-q", "--repeats", "1")
    ran = bench(apd, profile, *args, terminal=True)
    assert ran.status == 0
    *lines, again = re.sub(r"\x1b\[\d*m", "", ran.out).splitlines()
    assert max(map(len, lines)) <= columns
    assert not [line for line in lines if line.startswith("|")]
    assert again.startswith("Again: apd bench ")  # whole, to be copied
    words = " ".join(lines).split()
    assert {"left_to_right", "tokens/s", "step/floor"} <= set(words)
    assert "One repeat: no spread and no interval" in " ".join(words)
    raw = bench(apd, profile, *args, "--markdown", terminal=True)
    rows = [line for line in raw.out.splitlines() if line.startswith("| ")]
    assert len(rows) == 8


def test_json_and_the_file_are_the_same(apd: Apd, profile: Path, tmp_path: Path) -> None:
    path, plot = tmp_path / "out.json", tmp_path / "out.svg"
    ran = bench(
        apd, profile, "-S", "slow=apd:R=0,W=4,M=4", "-S", "apd:R=1,M=8", "-M", "6", "--json",
        "-o", path, "--plot", plot, "the cat",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found == json.loads(path.read_text())
    assert plot.read_text().startswith("<?xml")
    assert [s["name"] for s in found["settings"]] == ["slow", "apd:R=1,M=8"]
    slow, fast = (s["values"] for s in found["settings"])
    assert (slow["max_lookahead"]["value"], fast["max_lookahead"]["value"]) == (4, 8)
    assert (slow["mixture_weight"]["value"], fast["mixture_weight"]["value"]) == (0, 1)
    assert slow["max_tokens"] == {"value": 12, "from": "flag"}
    assert found["complete"] is True
    assert found["repeats"] == 2
    assert len(found["runs"]) == 2
    assert found["settings"][1]["summary"]["verifier_forwards"] == 0
    assert found["versions"]["torch"]


def test_the_command_that_is_named_is_the_one_that_was_run(apd: Apd, profile: Path) -> None:
    ran = bench(apd, profile, "--json", "--strategies", "autoregressive", "--no-split", "a 'cat'")
    found = json.loads(ran.out)
    words = shlex.split(found["command"])
    assert words[:2] == ["apd", "bench"]
    assert words[-1] == "a 'cat'"
    assert "--json" not in words
    again = json.loads(apd(*words[1:], "--json").out)
    assert again["command"] == found["command"]
    first, second = (r["settings"][0]["summary"] for r in (found, again))
    assert first["tokens"] == second["tokens"]
    assert first["split"] is None


def test_the_defaults_are_a_few_prompts_of_the_test_split(apd: Apd, profile: Path) -> None:
    ran = bench(apd, profile, "--limit", "2", "--json", "--repeats", "1", "--no-split", "-n", "4")
    found = json.loads(ran.out)
    assert [s["name"] for s in found["settings"]] == [
        "left_to_right", "apd", "autoregressive", "threshold",
    ]  # fmt: skip
    assert len(found["prompts"]) == 2


def test_a_profile_without_a_verifier(apd: Apd, make_profile: Any) -> None:
    path = make_profile("", verifier=None)
    ran = bench(apd, path, "--repeats", "1", "--json", "the cat")
    assert [s["name"] for s in json.loads(ran.out)["settings"]] == ["left_to_right", "threshold"]
    ran = bench(apd, path, "--strategies", "causal_denoiser", "--json", "the cat")
    (causal,) = json.loads(ran.out)["settings"]
    assert causal["summary"]["tokens"] == 2 * 12  # nothing ends it
    assert bench(apd, path, "--strategies", "apd", "the cat").status == 2


def test_standard_input_is_a_prompt(apd: Apd, profile: Path) -> None:
    args = ("--strategies", "autoregressive", "--json", "--repeats", "1")
    piped, given = (
        bench(apd, profile, *args, "-", stdin="the cat\n"),
        bench(apd, profile, *args, "the cat"),
    )
    one, other = (json.loads(ran.out) for ran in (piped, given))
    assert one["prompts"] == other["prompts"]
    assert bench(apd, profile, *args, "-", stdin="").status != 0


def test_random_weights(apd: Apd, tmp_path: Path) -> None:
    ran = apd(
        "bench", "--shapes", "tiny", "--accept", "3", "--prompt-tokens", "7", "-n", "12",
        "--repeats", "2", "--warmup", "0", "--rates", "3e10,1e11", "-o", tmp_path / "a.json",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    assert "times steps, not quality; apd was made to accept 3 tokens a step" in ran.out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["prompts"] == [{"tokens": 7}]
    by_name = {s["name"]: s["summary"] for s in found["settings"]}
    assert by_name["apd"]["tokens_per_step"]["median"] == 3
    assert by_name["left_to_right"]["tokens_per_step"]["median"] == 1
    assert by_name["causal_denoiser"]["denoiser_forwards"] == 0


def test_the_floor_alone(apd: Apd, profile: Path) -> None:
    args = ("--floor-only", "--rates", "3e10,1e11", "-W", "4", "-M", "9", "--accept", "2")
    ran = apd("bench", "-p", profile, *args)
    assert (ran.status, ran.err) == (0, "")
    assert "W = 4, M = 9, cursor at 256, 2 tokens accepted a step: 14 positions" in ran.out
    auto = apd("bench", "-p", profile, *args[:3], "-M", "auto", "--accept", "20")
    assert "M = 40, cursor at 256, 20 tokens accepted a step" in auto.out  # twice as many
    made = json.loads(apd("bench", "-p", profile, *args, "--json").out)["floor"]
    assert made["rates"] == {"bandwidth": 3e10, "operations": 1e11}
    later = apd("bench", "-p", profile, *args, "--prompt-tokens", "500", "--json")
    further = json.loads(later.out)["floor"]
    assert [step["cursor"] for step in further["steps"]] == [500]
    assert further["steps"][0]["floor_s"] > made["steps"][0]["floor_s"]
    assert further["causal"]["floor_s"] > made["causal"]["floor_s"]
    dream = apd("bench", "--shapes", "dream-7b", "--dtype", "bfloat16", *args, "--json")
    assert json.loads(dream.out)["floor"]["denoiser_parameters"] == 7_615_616_512


def test_batches_of_several_sizes(apd: Apd, profile: Path, tmp_path: Path) -> None:
    args = ("--batch-sizes", "2,1", "--strategies", "apd", "--repeats", "1", "-n", "8")
    path, plot = tmp_path / "a.json", tmp_path / "a.svg"
    ran = apd("bench", "-p", profile, *args, "-o", path, "--plot", plot, "the cat", "a dog", "b")
    assert (ran.status, ran.err) == (0, "")
    assert "rows at once" in ran.out
    assert "a batch" in plot.read_text() or "rows" in plot.read_text()
    found = json.loads(path.read_text())
    assert "--batch-sizes 2,1" in found["command"]
    sizes = [size["rows"] for size in found["settings"][0]["sizes"]]
    assert sizes[-2:] == [1, 2]
    shapes = apd("bench", "--shapes", "tiny", "--prompt-tokens", "5", *args, "--json")
    (setting,) = json.loads(shapes.out)["settings"]
    assert [size["rows"] for size in setting["sizes"]][-2:] == [1, 2]


class Pressed(Signals):
    """Ctrl-C after so many questions."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    @property
    def interrupted(self) -> bool:
        if self._patient:
            self.left -= 1
        return self.left < 0

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        pass


def test_ctrl_c_gives_the_result_so_far(apd: Apd, profile: Path) -> None:
    args = ("--strategies", "autoregressive", "--no-split", "--repeats", "50", "--json", "the cat")
    ran = bench(apd, profile, *args, signals=Pressed(60))
    assert ran.status == 130
    found = json.loads(ran.out)
    assert found["complete"] is False
    assert 1 <= found["repeats"] < 50


def test_ctrl_c_before_there_is_anything(apd: Apd, profile: Path) -> None:
    ran = bench(apd, profile, "--strategies", "autoregressive", "the cat", signals=Pressed(1))
    assert ran.status == 130
    assert ran.complaint == "apd: interrupted before every setting had answered once\n"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--strategies", "adp"], "did you mean apd"),
        (["--strategies", "apd,apd"], "two settings are called 'apd'"),
        (["-S", "apd:R=7"], "R = 7 must be a number from 0 to 1"),
        (["--strategies", "threshold", "-R", "0.5"], "none of the settings has it: threshold"),
        (["--repeats", "0"], "--repeats 0: it must be an integer >= 1"),
        (["--repeats", "x"], "--repeats x: it must be an integer >= 1"),
        (["--warmup", "-1"], "--warmup -1: it must be an integer >= 0"),
        (["--rates", "fast"], "write bytes and operations a second"),
        (["--shapes", "big"], "there are: dream-7b, llada-8b, tiny, embedded"),
        (["--shapes", "tiny", "--strategies", "dico"], "dico cannot be timed with random weights"),
        (["--shapes", "tiny", "a prompt"], "--shapes takes no prompts"),
        (["--shapes", "tiny", "-p", "demo"], "--shapes takes no --profile"),
        (["--shapes", "tiny", "-t", "1"], "greedy decoding only"),
        (["--shapes", "tiny", "--accept", "200"], "--accept 200 is more than M = 100"),
        (["--accept", "2"], "--accept goes with --shapes"),
        (["--prompt-tokens", "2"], "--prompt-tokens goes with --shapes"),
        (["--task", "sums", "a prompt"], "prompts and --task exclude each other"),
        (["--limit", "3", "a prompt"], "--limit goes with a task"),
        (["--task", "summs"], "summs"),
        (["--floor-only", "a prompt"], "--floor-only runs nothing"),
        (["--batch-sizes", "x"], "--batch-sizes x: it must be numbers with commas between"),
        (["--batch-sizes", "0,2"], "write whole numbers from 1 to"),
        (["--batch-sizes", "2", "--rates", "1,1"], "--batch-sizes does not go with --rates"),
        (["--plot", "a.gif"], "it must end in .svg or .png"),
        (["-n", "0"], "-n/--max-tokens 0"),
        (["--unknown"], "see 'apd bench --help'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(apd: Apd, args: list[str], said: str) -> None:
    ran = apd("bench", *args)
    assert ran.status == 2
    assert said in ran.complaint


def test_files_that_cannot_be_written_are_found_before_the_work(apd: Apd, profile: Path) -> None:
    for flag, name in (("-o", "x.json"), ("--plot", "x.svg")):
        ran = bench(apd, profile, flag, f"/no/such/folder/{name}", "the cat")
        assert ran.status == 1
        assert "cannot write /no/such/folder" in ran.complaint


def test_too_large_shapes_are_refused(apd: Apd, monkeypatch: pytest.MonkeyPatch) -> None:
    from apdcli.bench import shapes

    monkeypatch.setattr(shapes, "free_bytes", lambda device: 10**9)
    ran = apd("bench", "--shapes", "dream-7b", "--device", "cpu", "--dtype", "bfloat16")
    assert ran.status == 1
    assert "dream-7b in bfloat16 needs 16." in ran.complaint
    assert "1.0 GB is free" in ran.complaint


def test_a_terminal_sees_how_far_it_is(apd: Apd, profile: Path) -> None:
    args = ("--strategies", "autoregressive", "--repeats", "1", "the cat")
    ran = bench(apd, profile, *args, terminal=True)
    assert ran.status == 0
    assert "0/2" in ran.err
    assert bench(apd, profile, *args, "-q", terminal=True).err == ""
