"""`apd eval`: what it measures, how it is shown, killed and gone on with, and bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import apdcli
from apdcli.cli.eval_options import swept_values
from apdcli.cli.signals import Signals
from apdcli.decode.params import STRATEGIES
from apdcli.demo.metrics import wilson
from apdcli.errors import UsageError
from apdcli.tasks.load import load_task
from apdcli.tasks.metrics import quantile
from apdcli.tasks.sweep import default_values, knob_of
from tests.cli.conftest import Apd, Ran


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Threads that wait for each other make a busy machine slower."""
    torch.set_num_threads(1)


DEMO = ("eval", "--dtype", "float32", "--device", "cpu", "-n", "48")
SORT = (*DEMO, "--task", "sort", "--limit", "4")


def found(ran: Ran) -> Any:
    assert (ran.status, ran.err) == (0, ""), ran.err
    assert ran.out.count("\n") == 1
    return json.loads(ran.out)


def lines(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text().split("\n")[:-1]]


def test_json_has_what_the_api_gives(apd: Apd) -> None:
    task = load_task("sort", split="test", limit=4)
    pair = apdcli.load_pair("demo", device="cpu", dtype="float32")
    done = [
        apdcli.generate(pair, list(i.messages), max_tokens=48, mixture_weight=0.8)
        for i in task.items
    ]
    scores = [task.score(i, d.text) for i, d in zip(task.items, done, strict=True)]
    ran = found(apd(*SORT, "-R", "0.8", "--json"))
    assert ran["task"] == {
        "name": "sort",
        "split": "test",
        "scorer": "checker",
        "prompts": 4,
        "digest": task.digest,
    }
    low, high = wilson(round(sum(scores)), 4)
    assert ran["accuracy"] == {"mean": sum(scores) / 4, "low": low, "high": high}
    assert ran["complete"] is True
    assert ran["tokens"] == sum(len(d.token_ids) for d in done)
    for name in ("steps", "denoiser_forwards", "verifier_forwards"):
        assert ran[name] == sum(getattr(d.usage, name) for d in done)
    assert ran["tokens_per_step"] == ran["tokens"] / ran["steps"]
    assert ran["tokens_per_forward"] == ran["tokens"] / ran["denoiser_forwards"]
    assert ran["tokens_per_second"] == pytest.approx(ran["tokens"] / ran["seconds"])
    assert 0 < ran["seconds_per_prompt"]["median"] <= ran["seconds_per_prompt"]["p90"]
    assert ran["settings"]["mixture_weight"] == {"value": 0.8, "from": "flag"}
    assert ran["settings"]["seed"] == {"value": 0, "from": "default"}
    assert ran["settings"]["dtype"]["value"] == "float32"
    assert "torch" in ran["versions"]


def test_several_families_are_told_apart(apd: Apd) -> None:
    ran = found(apd(*DEMO, "--task", "all", "--limit", "32", "--json"))
    assert len(ran["families"]) == 16
    assert sum(f["prompts"] for f in ran["families"].values()) == 32
    mean = sum(f["prompts"] * f["accuracy"]["mean"] for f in ran["families"].values()) / 32
    assert mean == pytest.approx(ran["accuracy"]["mean"])


def test_a_pipe_gets_plain_text_and_nothing_else(apd: Apd) -> None:
    ran = apd(*DEMO, "--task", "all", "--limit", "14")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("all, test split: 14 prompts, scored by checker\n")
    for row in ("accuracy, %", "tokens a step", "forwards", "tokens a second", "seconds a prompt"):
        assert re.search(rf"^{row} +\S", ran.out, re.MULTILINE)
    assert re.search(r"^sort +1 ", ran.out, re.MULTILINE)
    assert ran.out.isascii()
    assert "\x1b" not in ran.out


def test_a_terminal_gets_tables_and_a_bar_that_goes_away(apd: Apd) -> None:
    ran = apd(*SORT, terminal=True)
    assert ran.status == 0
    assert "accuracy, %" in ran.out
    assert "\x1b[1m" in ran.out
    assert "4/4" in ran.err or "3/4" in ran.err or "0/4" in ran.err
    assert ran.err.endswith("\r\x1b[K")
    quiet = apd(*SORT, "-q", terminal=True)
    assert (quiet.status, quiet.err) == (0, "")
    plain = apd(*SORT, "-q", terminal=True, environ={"NO_COLOR": "1"})
    assert "\x1b[3" not in plain.out


def test_names_of_files_are_no_markup_and_no_escapes(apd: Apd) -> None:
    name = "[red]\x1b[31mx.jsonl"
    Path(name).write_text(
        '{"scorer": "contains"}\n{"prompt": "What is 1 plus 1?", "answer": "2"}\n'
    )
    ran = apd(*DEMO, "--task", name, terminal=True)
    assert ran.status == 0
    assert "[red]" in ran.out
    assert "\x1b[31m" not in ran.out


def test_task_files(apd: Apd) -> None:
    Path("t.jsonl").write_text(
        '{"question": "What is 3 plus 4?", "answer": "3 + 4 = 7\\n#### 7"}\n'
        '{"question": "What is 2 plus 2?", "answer": "#### 5"}\n'
    )
    ran = found(apd(*DEMO, "--task", "t.jsonl", "--json"))
    task = load_task("t.jsonl")
    pair = apdcli.load_pair("demo", device="cpu", dtype="float32")
    texts = [apdcli.generate(pair, list(i.messages), max_tokens=48).text for i in task.items]
    expected = sum(map(task.score, task.items, texts)) / 2
    assert (ran["accuracy"]["mean"], ran["task"]["scorer"]) == (expected, "number")
    assert ran["task"]["split"] is None
    other = found(apd(*DEMO, "--task", "t.jsonl", "--scorer", "exact", "--json"))
    assert other["accuracy"]["mean"] == 0.0


def test_code_runs_only_when_allowed(apd: Apd) -> None:
    Path("t.jsonl").write_text(json.dumps({"prompt": "Write f.", "tests": "assert f(1)"}) + "\n")
    refused = apd(*DEMO, "--task", "t.jsonl")
    assert "--allow-code" in refused.complaint
    assert refused.status == 2
    assert found(apd(*DEMO, "--task", "t.jsonl", "--allow-code", "--json"))["prompts"] == 1


def test_prompts_without_answers(apd: Apd, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("APD_CACHE_DIR", str(tmp_path / "cache"))
    Path("p.txt").write_text("What is 3 plus 4?\nReverse the list: pear, apple.\n")
    args = (*DEMO, "--prompts", "p.txt", "--json")
    careful = ("--strategy", "left_to_right", "-K", "1", "-W", "all")
    ran = found(apd(*args, *careful))
    assert ran["agreement"]["mean"] == 1.0
    assert "accuracy" not in ran
    assert 0 <= found(apd(*args, "-R", "1"))["agreement"]["mean"] <= 1
    assert apd(*args[:-1]).out.startswith("p.txt: 2 prompts, scored by agreement\n")


def test_results_are_kept_and_not_computed_twice(apd: Apd) -> None:
    first = found(apd(*SORT, "-o", "r.jsonl", "--json"))
    before = Path("r.jsonl").read_bytes()
    header, *answers = lines("r.jsonl")
    assert header["task"] == first["task"]
    assert [a["item"] for a in answers] == [
        i.id for i in load_task("sort", split="test", limit=4).items
    ]
    assert found(apd(*SORT, "-o", "r.jsonl", "--json")) == first  # to the last nanosecond
    assert Path("r.jsonl").read_bytes() == before


def test_killed_in_the_middle_it_goes_on(apd: Apd, tmp_path: Path) -> None:
    args = ["eval", "--task", "all", "--limit", "100", "-n", "96", "-o", "r.jsonl"]
    path = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "apdcli", *args]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 120
        while not path.exists() or path.read_bytes().count(b"\n") < 8:
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        out, _ = process.communicate()
    assert (process.returncode, out) == (-signal.SIGKILL, b"")
    kept = path.read_bytes()
    whole = kept[: kept.rfind(b"\n") + 1]
    assert 7 < whole.count(b"\n") < 101
    path.write_bytes(whole + b'{"item": "sort/12')  # as if it had been killed while writing
    ran = apd(*args, "--json")
    assert (ran.status, ran.err) == (0, "")
    assert path.read_bytes().startswith(whole)
    _, *answers = lines(str(path))
    items = [i.id for i in load_task("all", split="test", limit=100).items]
    assert [a["item"] for a in answers] == items
    result = json.loads(ran.out)
    assert result["prompts"] == 100
    assert result["accuracy"]["mean"] == sum(a["score"] for a in answers) / 100
    assert result["tokens"] == sum(a["tokens"] for a in answers)
    assert result["seconds_per_prompt"]["p90"] == quantile([a["seconds"] for a in answers], 0.9)


class AfterSomeSteps(Signals):
    """As if Ctrl-C were pressed during the first answers."""

    asked = 0

    @property
    def interrupted(self) -> bool:  # type: ignore[override]
        self.asked += 1
        return self.asked > 40

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        pass


def test_ctrl_c_gives_the_result_so_far_and_130(apd: Apd) -> None:
    args = (*DEMO, "--task", "all", "--limit", "40", "-o", "r.jsonl")
    ran = apd(*args, "--json", signals=AfterSomeSteps())
    result = json.loads(ran.out)
    assert (ran.status, ran.err, result["complete"]) == (130, "", False)
    assert 0 < result["prompts"] == len(lines("r.jsonl")) - 1 < 40
    shown = apd(*args, signals=AfterSomeSteps())
    assert re.search(r"^answered +\d+ of 40 prompts$", shown.out, re.MULTILINE)
    on_terminal = apd(*args[:-1], "s.jsonl", signals=AfterSomeSteps(), terminal=True)
    assert re.search(r"stopped after \d+ of 40 answers; the same command goes on", on_terminal.err)
    assert found(apd(*args, "--json"))["complete"] is True


def test_ctrl_c_before_the_first_answer(apd: Apd) -> None:
    signals = AfterSomeSteps()
    signals.asked = 100
    assert apd(*SORT, signals=signals) == Ran(130, b"", "")


def test_a_sweep_by_its_points(apd: Apd) -> None:
    args = (*DEMO, "--task", "all", "--limit", "14")
    ran = found(apd(*args, "--sweep", "0.2,1", "--json", "-o", "r.jsonl"))
    assert ran["sweep"]["knob"] == "mixture_weight"
    assert "mixture_weight" not in ran["settings"]
    first, second = ran["sweep"]["points"]
    for point in (first, second):
        alone = found(apd(*args, "-R", str(point["value"]), "--json"))
        for name in ("accuracy", "tokens", "denoiser_forwards", "tokens_per_forward", "families"):
            assert point[name] == alone[name]
    change = second["against_first"]
    assert change["mean"] == pytest.approx(second["accuracy"]["mean"] - first["accuracy"]["mean"])
    assert first["against_first"]["mean"] == 0.0
    rho, y = first["tokens_per_forward"], 100 * first["accuracy"]["mean"]
    if not second["counted"]:
        assert ran["sweep"]["aup"] == pytest.approx(rho * y)
    # One more value: what is known is not answered again.
    before = Path("r.jsonl").read_bytes()
    more = found(apd(*args, "--sweep", "0.2,1,0.6", "--json", "-o", "r.jsonl"))
    assert more["sweep"]["points"][:2] == ran["sweep"]["points"]
    assert Path("r.jsonl").read_bytes().startswith(before)
    shown = apd(*args, "--sweep", "0.2,1", "-o", "r.jsonl").out
    assert re.search(r"^AUP \d+\.\d ", shown, re.MULTILINE)
    assert shown.count("\n0.2 ") == shown.count("\n1 ") == 1


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "autoregressive"])
def test_every_strategy_has_values_to_sweep(strategy: str) -> None:
    knob = knob_of(strategy)
    assert knob in STRATEGIES[strategy].own_fields
    values = default_values(strategy, 64)
    assert len(values) > 3
    listed = ",".join(map(str, values))
    assert swept_values(listed, knob) == (knob, list(values))
    assert swept_values("auto", knob) == (knob, [])


def test_a_bare_sweep_takes_the_strategys_values(apd: Apd) -> None:
    ran = found(
        apd(*DEMO, "--task", "copy", "--limit", "1", "--strategy", "entropy", "--sweep", "--json")
    )
    assert ran["sweep"]["knob"] == "steps"
    assert [p["value"] for p in ran["sweep"]["points"]] == [48, 24, 12, 6]
    ran = found(
        apd(*DEMO, "--task", "copy", "--limit", "1", "--sweep", "max_lookahead=4,all", "--json")
    )
    assert [p["value"] for p in ran["sweep"]["points"]] == [4, "all"]


def test_a_bare_sweep_takes_no_more_tokens_than_are_drafted(apd: Apd) -> None:
    given = (*DEMO, "--task", "copy", "--limit", "1", "-S", "left_to_right", "-M", "3")
    ran = found(apd(*given, "--sweep", "--json"))
    assert [p["value"] for p in ran["sweep"]["points"]] == [1, 2, 3]
    assert "-K/--k 6 (flag): it must be at most" in apd(*given, "--sweep", "2,6").complaint


@pytest.mark.parametrize(
    ("more", "setting"),
    [
        ((), {"value": True, "from": "default"}),
        (("-O", "parallel=false"), {"value": False, "from": "flag"}),
    ],
)
def test_a_sweep_of_klass_is_of_its_fast_form_unless_it_was_chosen(
    apd: Apd, more: tuple[str, ...], setting: object
) -> None:
    args = ("--task", "copy", "--limit", "1", "--strategy", "klass", "--sweep", "0.1,1", "--json")
    assert found(apd(*DEMO, *args, *more))["settings"]["parallel"] == setting


def test_a_sweep_names_its_values_as_options_do() -> None:
    assert swept_values("max-lookahead=8,all", "mixture_weight") == ("max_lookahead", [8, "all"])
    assert swept_values("0.5,0.5,1", "mixture_weight") == ("mixture_weight", [0.5, 1])
    with pytest.raises(UsageError, match=r"--sweep 0.5,: mixture_weight '': it must be"):
        swept_values("0.5,", "mixture_weight")


@pytest.mark.parametrize(
    ("args", "pieces"),
    [
        ((), ("--task", "--prompts", "needed")),
        (("--task", "sort", "--prompts", "p.txt"), ("exclude",)),
        (("--task", "srot"), ("srot", "did you mean sort")),
        (("--task", "sort", "--scorer", "exakt"), ("exakt", "did you mean exact")),
        (("--task", "sort", "--split", "dev"), ("dev", "tune, test, train")),
        (("--task", "empty.jsonl", "--split", "tune"), ("--split tune", "file")),
        (("--prompts", "empty.jsonl", "--split", "tune"), ("--split", "--task")),
        (("--prompts", "empty.jsonl", "--scorer", "exact"), ("--scorer", "--task")),
        (("--task", "sort", "--limit", "0"), ("--limit 0", ">= 1")),
        (("--task", "sort", "--limit", "1.5"), ("--limit 1.5", ">= 1")),
        (("--task", "sort", "-o", "-"), ("--output", "file")),
        (("--task", "sort", "-q", "-v"), ("-q", "exclude")),
        (("--task", "sort", "-R", "2"), ("--mixture-weight 2", "from 0 to 1")),
        (("--task", "sort", "-K", "2"), ("-K/--k", "apd")),
        (("--task", "sort", "--strategy", "autoregressive", "--sweep"), ("no knob",)),
        (("--task", "sort", "-R", "0.5", "--sweep"), ("-R/--mixture-weight", "exclude")),
        (("--task", "sort", "--sweep", "0.5,2"), ("--sweep 0.5,2", "mixture_weight 2", "0 to 1")),
        (("--task", "sort", "--sweep", "k=1,2"), ("-K/--k", "apd")),
        (("--task", "sort", "extra"), ("extra", "apd eval --help")),
        (("--task",), ("--task", "argument")),
        (("--task", "plain.jsonl"), ("--scorer", "exact")),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_status_2(apd: Apd, args: tuple[str, ...], pieces: tuple[str, ...]) -> None:
    Path("empty.jsonl").write_text("")
    Path("plain.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    ran = apd("eval", *args)
    for piece in pieces:
        assert piece in ran.complaint
    assert ran.status == 2


@pytest.mark.parametrize(
    ("args", "pieces"),
    [
        (("--task", "empty.jsonl"), ("empty.jsonl is empty",)),
        (("--task", "gone.jsonl"), ("gone.jsonl", "no such file")),
        (("--task", "~nobody-here/t.jsonl"), ("~nobody-here/t.jsonl", "no such file")),
        (("--task", "damaged.jsonl"), ("damaged.jsonl, line 3", "not JSON")),
        (("--task", "unknown.jsonl"), ("unknown.jsonl, line 1", "exakt", "did you mean exact")),
        (("--task", "sort", "-o", "notes.txt"), ("notes.txt", "does not hold results")),
        (("--task", "sort", "-o", "gone/r.jsonl"), ("gone/r.jsonl", "no such file")),
        (("--task", "sort", "-o", "."), ("plain file",)),
        (("--prompts", "empty.jsonl"), ("empty.jsonl is empty",)),
        (("--task", "long.jsonl"), ("long.jsonl, prompt 2", "shorten")),
        (("--task", "sort", "-p", "nobody"), ("nobody",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_bad_files_are_status_1(apd: Apd, args: tuple[str, ...], pieces: tuple[str, ...]) -> None:
    item = '{"prompt": "a", "answer": "b"}\n'
    Path("empty.jsonl").write_text("\n")
    Path("damaged.jsonl").write_text('{"scorer": "exact"}\n' + item + item[:-5] + "\n" + item)
    Path("unknown.jsonl").write_text('{"scorer": "exakt"}\n' + item)
    Path("long.jsonl").write_text(
        '{"scorer": "exact"}\n' + item + json.dumps({"prompt": "x " * 9000, "answer": "b"}) + "\n"
    )
    Path("notes.txt").write_text("my notes\n")
    ran = apd("eval", *args)
    for piece in pieces:
        assert piece in ran.complaint
    assert ran.status == 1
    assert Path("notes.txt").read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        (("--limit", "3"), "another task"),
        (("--seed", "1"), "another task"),
        (("-R", "0.9"), "mixture_weight"),
        (("-n", "40"), "max_tokens"),
        (("--strategy", "threshold"), "other settings"),
        (("--sweep",), "not of a sweep"),
        (("--dtype", "bfloat16"), "dtype"),
    ],
)
def test_results_of_another_run_are_refused(apd: Apd, change: tuple[str, ...], piece: str) -> None:
    assert apd(*SORT, "-o", "r.jsonl").status == 0
    before = Path("r.jsonl").read_bytes()
    ran = apd(*SORT, "-o", "r.jsonl", *change)
    assert piece in ran.complaint
    assert "r.jsonl" in ran.complaint
    assert ran.status == 1
    assert Path("r.jsonl").read_bytes() == before


def test_results_of_another_pair_are_refused(apd: Apd, make_profile: Any) -> None:
    from tests.cli.conftest import DATA

    changed = make_profile("[decode]\nmax_tokens = 8\n", name="pair", denoiser=DATA / "denoiser")
    args = ("eval", "--task", "sort", "--limit", "2", "-o", "r.jsonl", "-p", changed)
    assert apd(*args).status == 0
    changed.write_text(changed.read_text().replace(str(DATA), "embedded:").replace("/", ""))
    assert "embedded:denoiser" in changed.read_text()
    ran = apd(*args)
    assert "another pair (pair)" in ran.complaint
    assert ran.status == 1


def test_usage_errors_load_no_torch() -> None:
    code = (
        "import sys; from apdcli.cli.main import main\n"
        "main(['eval', '--task', 'srot']); main(['eval', '--help'])\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "False"
    assert "--sweep" in done.stdout
