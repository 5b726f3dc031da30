"""`apd generate --input`: many prompts, one load, answers in order, and runs that go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import apdcli
from apdcli.cli import answers as answers_module
from apdcli.cli.answers import AnswersFile
from apdcli.cli.context import Context
from apdcli.cli.progress import Progress
from apdcli.cli.signals import Signals
from apdcli.errors import OutputError
from tests.cli.conftest import Apd, MakeProfile, Stream

PROMPTS = ["tell me a story", "count to three", "hello", "what is this"]


def answers(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def jsonl(tmp_path: Path, *records: object) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records))
    return path


def test_each_line_gets_the_answer_it_gets_alone(apd: Apd, profile: Path, texts: Path) -> None:
    pair = apdcli.load_pair(profile)
    ran = apd("generate", "-p", profile, "--input", texts, "-n", 12)
    assert (ran.status, ran.err) == (0, "")
    found = answers(ran.raw)
    assert [answer["line"] for answer in found] == [1, 2, 3, 4]
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = apdcli.generate(pair, prompt, max_tokens=12)
        assert answer["text"] == expected.text
        assert answer["token_ids"] == expected.token_ids
        assert answer["usage"]["steps"] == expected.usage.steps
    alone = json.loads(apd("generate", "-p", profile, "-n", 12, "--json", PROMPTS[0]).out)
    assert list(found[0]) == ["line", "input", *alone]
    assert found[0]["settings"] == alone["settings"]
    assert apd("generate", "-p", profile, "--input", "-", stdin="\n\n").raw == b""


@pytest.mark.parametrize("args", [("--input", "-", "--jsonl"), ("--jsonl",), ("-", "--jsonl")])
def test_json_lines_bring_their_own_settings(
    apd: Apd, profile: Path, args: tuple[str, ...]
) -> None:
    pair = apdcli.load_pair(profile)
    messages = [{"role": "user", "content": "hello"}]
    records = [
        {"prompt": "hello", "max_tokens": 5, "id": ["a", 1]},
        {"messages": messages, "strategy": "left_to_right", "k": 3, "max-tokens": 7},
        {"prompt": "hello", "raw": True, "temp": 1.0, "seed": 4},
        {"prompt": "hello", "stop": "e", "system": None, "id": None},
    ]
    stdin = "\ufeff" + "\r\n\r\n".join(map(json.dumps, records))
    ran = apd("generate", "-p", profile, *args, "-n", 9, stdin=stdin)
    assert (ran.status, ran.err) == (0, "")
    first, second, third, fourth = answers(ran.raw)
    assert [a["line"] for a in (first, second, third, fourth)] == [1, 3, 5, 7]
    assert (first["id"], "id" in second, fourth["id"]) == (["a", 1], False, None)
    assert first["text"] == apdcli.generate(pair, "hello", max_tokens=5).text
    assert second["accepted"][0] == 3
    assert second["settings"]["k"] == {"value": 3, "from": "line"}
    assert second["settings"]["max_tokens"] == {"value": 7, "from": "line"}
    sampled = apdcli.generate(pair, "hello", raw=True, temperature=1.0, seed=4, max_tokens=9)
    assert third["token_ids"] == sampled.token_ids
    assert "e" not in fourth["text"]
    assert fourth["settings"]["max_tokens"] == {"value": 9, "from": "flag"}


BAD = [
    ("nonsense\n", "not JSON"),
    ("[1]\n", "not an object"),
    ('{"prompt": "a\\ud800b"}\n', "half a character"),
    ({"id": 3}, "it has neither prompt nor messages"),
    ({"prompt": "a", "messages": []}, "it has both prompt and messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]: no role is 'robot'"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "no message is the user's"),
    ({"prompt": "a", "mixture_weight": 9, "id": [7]}, "0 to 1"),
    ({"prompt": "  "}, "not empty"),
    ({"messages": [{"role": "user"}]}, "messages[0]: a chat message needs 'content'"),
    ({"prompt": "a", "temprature": 1}, "did you mean temperature"),
    ({"prompt": "a", "R": 0.2}, "unknown key 'R'; did you mean mixture_weight?"),
    ({"prompt": "a", "K": 2}, "did you mean k?"),
    ({"prompt": "a", "qqq": 2}, "unknown key 'qqq'; a line takes a prompt"),
    ({"prompt": "a", "top_p": 7}, "at most 1"),
    ({"prompt": "a", "max_tokens": 2.5}, "integer >= 1"),
    ({"prompt": "a", "profile": "demo"}, "the same for all lines"),
    ({"prompt": "a", "raw": 1}, "raw = 1: it must be true or false"),
    ({"prompt": "a", "raw": "\x1b[31m"}, r'raw = "\u001b[31m": it must be'),
    ({"prompt": "a", "seed": True}, "seed = true: it must be an integer"),
    ('{"prompt": "a", "temperature": NaN}\n', "temperature = NaN: it must be a number"),
    ({"prompt": "a", "n": 3}, "did you mean max_tokens?"),
    ({"prompt": "a", "strategy": "Apd"}, 'strategy = "Apd": it must be one of'),
    ({"prompt": "a", "strategy": "left-to-right"}, "did you mean left_to_right?"),
    ({"prompt": "a", "temp": 1, "temperature": 2}, "temp and temperature are one setting"),
    (
        {"prompt": "a", "strategy": "confidence", "k": 2, "steps": 4},
        "steps = 4: it must be left out where k is given (2)",
    ),
    ({"prompt": "a", "k": 2}, "'k'"),
    (
        {"prompt": "a", "strategy": "threshold", "block_length": 7, "max_tokens": 10},
        "block_length = 7: it must be",
    ),
    ({"prompt": "word " * 3000}, "no room"),
]


def test_a_bad_line_has_an_error_in_its_place(apd: Apd, profile: Path, tmp_path: Path) -> None:
    good = {"prompt": "hello"}
    path = jsonl(tmp_path, good, *(record for record, _ in BAD), good)
    with path.open("ab") as file:
        file.write(b'{"prompt": "caf\xe9"}\n')
    ran = apd("generate", "-p", profile, "--input", path, "-n", 4)
    first, *bad, last, latin = answers(ran.raw)
    assert first["text"] == last["text"]
    for number, (answer, (sent, message)) in enumerate(zip(bad, BAD, strict=True), start=2):
        named = isinstance(sent, dict) and "id" in sent
        assert list(answer) == ["line", "input", *(["id"] if named else []), "error"]
        assert not named or answer["id"] == sent["id"]
        assert (answer["line"], message in answer["error"]) == (number, True), answer
    assert "byte 15 is 0xe9" in latin["error"]
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 1
    assert f"{len(BAD) + 1} of {len(BAD) + 3} lines" in ran.err
    assert "line 2: not JSON" in ran.err


def test_a_run_goes_on_where_it_stopped(apd: Apd, profile: Path, tmp_path: Path) -> None:
    records = [{"prompt": p, "temperature": 1} for p in PROMPTS]
    path = jsonl(tmp_path, records[0], "nonsense\n", *records[1:])
    args = ("generate", "-p", profile, "--input", path, "-n", 8, "-o", "out.jsonl")
    out = tmp_path / "out.jsonl"
    ran = apd(*args)
    assert (ran.status, ran.raw) == (1, b"")
    whole = out.read_bytes()
    ends = [at + 1 for at, byte in enumerate(whole) if byte == ord("\n")]
    for cut in (0, 1, 30, ends[0] - 1, ends[0], ends[1] + 60, ends[2] + 500, len(whole)):
        out.write_bytes(whole[:cut])
        assert apd(*args).status == 1
        healed = out.read_bytes()
        kept = max((end for end in ends if end <= cut), default=0)
        assert healed[:kept] == whole[:kept]
        assert [a["line"] for a in answers(healed)] == [1, 2, 3, 4, 5]
        if kept:  # the seed that was drawn goes on, too
            drawn = [(a["line"], a["settings"]["seed"]) for a in answers(healed) if "text" in a]
            assert {seed["from"] for _, seed in drawn} == {"default"}
            assert len({(seed["value"] - line) % 2**32 for line, seed in drawn}) == 1
            assert [a.get("text") for a in answers(healed)] == [
                a.get("text") for a in answers(whole)
            ]
    with path.open("a") as file:  # an input that has grown
        file.write(json.dumps(records[0]) + "\n")
    assert apd(*args).status == 1
    assert out.read_bytes().startswith(whole)
    assert len(answers(out.read_bytes())) == 6


def test_an_output_of_something_else_is_left_alone(apd: Apd, profile: Path, texts: Path) -> None:
    args = ("generate", "-p", profile, "--input", texts, "-o", "out.jsonl")
    out = texts.parent / "out.jsonl"
    assert apd(*args, "-n", 6).status == 0
    whole = out.read_bytes()

    def refused(*args: object, holding: bytes = whole) -> str:
        out.write_bytes(holding)
        ran = apd(*args)
        assert (ran.status, out.read_bytes()) == (2, holding)
        return ran.complaint

    assert "with max_tokens = 6, and now it is 7" in refused(*args, "-n", 7)
    assert "something else" in refused(*args, "-n", 6, holding=b"my notes\n")
    assert "something else" in refused(*args, "-n", 6, holding=b"my notes")
    for settings in (b"[]", b'{"seed": 1}', b'{"seed": {}}'):
        odd = b'{"line": 1, "input": "", "settings": %s}\n' % settings
        assert "something else" in refused(*args, "-n", 6, holding=odd)
    assert "something else" in refused(*args, "-n", 6, holding=whole + b'{"line": 9')
    texts.write_text("\n".join(PROMPTS[:2]))
    assert "4 answers and" in refused(*args, "-n", 6)
    texts.write_text("\n".join(["other", *PROMPTS[1:]]))
    assert "answers another input" in refused(*args, "-n", 6)


def test_raw_and_a_dtype_that_is_asked_for_are_not_mixed(
    apd: Apd, profile: Path, texts: Path
) -> None:
    args = ("generate", "-p", profile, "--input", texts, "-n", 4, "-o", "out.jsonl")
    out = texts.parent / "out.jsonl"
    assert apd(*args).status == 0
    one, *others = out.read_bytes().splitlines(keepends=True)
    assert json.loads(one)["settings"]["raw"] == {"value": False, "from": "default"}
    out.write_bytes(one)

    def complaint(*more: object) -> str:
        before = out.read_bytes()
        ran = apd(*args, *more)
        assert (ran.status, out.read_bytes()) == (2, before)
        return ran.complaint

    assert "was made with raw = false, and now it is true (line 1)" in complaint("--raw")
    other = complaint("--dtype", "bfloat16")
    assert 'with denoiser_dtype = "float32", and now it is "bfloat16"' in other
    assert apd(*args, "--dtype", "float32").status == 0  # what auto came to
    assert [a["text"] for a in answers(out.read_bytes())] == [
        a["text"] for a in answers(b"".join([one, *others]))
    ]
    asked = answers(out.read_bytes())[1]
    out.write_bytes(
        json.dumps({**asked, **{k: json.loads(one)[k] for k in ("line", "input")}}).encode() + b"\n"
    )
    assert 'with denoiser_dtype = "float32", and now it is "auto"' in complaint()
    told = json.loads(one)  # of a version that did not tell
    del told["settings"]["raw"]
    out.write_text(json.dumps(told) + "\n")
    assert "with raw = false" in complaint("--raw")
    assert apd(*args).status == 0


def test_each_line_draws_for_itself(apd: Apd, profile: Path, tmp_path: Path) -> None:
    path = jsonl(tmp_path, *[{"prompt": "hello"}] * 3, {"prompt": "hello", "seed": 5})
    args = ("generate", "-p", profile, "--input", path, "-n", 12, "-t", 1.5)
    found = answers(apd(*args).raw)
    assert len({a["settings"]["seed"]["value"] for a in found}) == 4
    assert len({a["text"] for a in found}) > 1  # two may end at once, by chance
    pair = apdcli.load_pair(profile)
    for answer in found:  # what it was drawn with gives it again, alone
        seed = answer["settings"]["seed"]["value"]
        alone = apdcli.generate(pair, "hello", max_tokens=12, temperature=1.5, seed=seed)
        assert answer["token_ids"] == alone.token_ids
    given = answers(apd(*args, "--seed", 7).raw)
    assert [a["settings"]["seed"]["value"] for a in given] == [7, 7, 7, 5]
    assert len({a["text"] for a in given[:3]}) == 1


def test_a_line_takes_its_own_way_of_several_tokens_a_step(
    apd: Apd, profile: Path, tmp_path: Path
) -> None:
    own = {"prompt": "hello", "strategy": "confidence", "steps": 2, "max_tokens": 8}
    path = jsonl(tmp_path, {"prompt": "hello"}, own)
    args = ("-S", "left_to_right", "-K", 4, "-n", 8)
    first, second = answers(apd("generate", "-p", profile, "--input", path, *args).raw)
    assert first["settings"]["k"] == {"value": 4, "from": "flag"}
    assert second["settings"]["steps"] == {"value": 2, "from": "line"}
    assert second["settings"]["k"] == {"value": 1, "from": "default"}


def test_a_system_message_is_used_or_not_told(apd: Apd, profile: Path, tmp_path: Path) -> None:
    own = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    path = jsonl(
        tmp_path,
        {"prompt": "hello"},
        {"messages": own},
        {"prompt": "hello", "raw": True},
        {"messages": own, "system": "Q"},
        {"prompt": "hello", "raw": True, "system": "Q"},
    )
    ran = apd("generate", "-p", profile, "--input", path, "-n", 2, "-s", "Z")
    first, second, third, fourth, fifth = answers(ran.raw)
    assert first["settings"]["system"] == {"value": "Z", "from": "flag"}
    assert second["settings"]["system"] == {"value": None, "from": "line"}
    assert third["settings"]["system"] == {"value": None, "from": "line"}
    assert third["settings"]["raw"] == {"value": True, "from": "line"}
    assert "system message in messages: give one" in fourth["error"]
    assert "raw and system exclude each other" in fifth["error"]
    ran = apd("generate", "-p", profile, "--raw", "-s", "Z", "hello")
    assert ran.status == 2
    assert "--raw and -s/--system exclude each other" in ran.complaint
    everywhere = {"APD_SYSTEM": "Z"}
    ran = apd("generate", "-p", profile, "--raw", "-n", 2, "--json", "hello", environ=everywhere)
    assert json.loads(ran.out)["settings"]["system"]["value"] is None


def test_two_at_once_do_not_write_to_one_file(apd: Apd, profile: Path, texts: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with Path("out.jsonl").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = apd("generate", "-p", profile, "--input", texts, "-o", "out.jsonl")
    assert ran.status == 1
    assert "another apd is writing to out.jsonl" in ran.complaint


def test_a_file_that_a_failed_run_takes_away_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails between another's opening the file and that one's lock: those answers are lost."""
    pytest.importorskip("fcntl")
    path, lock = tmp_path / "out.jsonl", answers_module.lock
    failing = AnswersFile(str(path))

    def late(file: int) -> bool:
        failing.__exit__(None, ValueError(), None)
        return lock(file)

    monkeypatch.setattr(answers_module, "lock", late)
    with pytest.raises(OutputError, match="another apd is writing"):
        AnswersFile(str(path))
    assert not path.exists()


class After(Signals):
    """As if Ctrl-C were pressed after so many looks for it."""

    def __init__(self, most: float) -> None:
        self.asked, self.most = 0, most
        super().__init__()

    @property
    def interrupted(self) -> bool:  # type: ignore[override]
        self.asked += 1
        return self.asked > self.most

    @interrupted.setter
    def interrupted(self, value: bool) -> None:
        pass


def test_ctrl_c_keeps_what_is_finished(apd: Apd, profile: Path, texts: Path) -> None:
    args = ("generate", "-p", profile, "--input", texts, "-n", 8, "-o")
    never = After(float("inf"))
    assert apd(*args, "whole.jsonl", signals=never).status == 0
    whole = [answer["text"] for answer in answers(Path("whole.jsonl").read_bytes())]
    out = texts.parent / "out.jsonl"
    for share in (0.2, 0.5, 0.8):  # rows of one batch may all be finished at the last
        out.unlink(missing_ok=True)
        ran = apd(*args, out, signals=After(never.asked * share))
        assert (ran.status, ran.raw, ran.err) == (130, b"", "")
        kept = [answer["text"] for answer in answers(out.read_bytes() if out.exists() else b"")]
        assert len(kept) < len(whole) or share > 0.2
        assert kept == whole[: len(kept)]
        assert apd(*args, out).status == 0
        assert [answer["text"] for answer in answers(out.read_bytes())] == whole


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("--input", "gone.txt"), 1, "cannot read gone.txt: no such file"),
        (("--input", "."), 1, "cannot read ."),
        (("--input", "in.txt", "hello"), 2, "PROMPT does not go with it"),
        (("--input", "in.txt", "--trace", "t"), 2, "--trace is of one answer"),
        (("--input", "in.txt", "--export", "t.svg"), 2, "--export is of one answer"),
        (("--input", "in.txt", "-o", "gone/out"), 1, "cannot write gone/out: no such file"),
        (("--input", "in.txt", "-W", "0"), 2, "-W/--recompute-window 0"),
    ],
)
def test_mistakes(
    apd: Apd, profile: Path, texts: Path, args: tuple[str, ...], status: int, message: str
) -> None:
    ran = apd("generate", "-p", profile, *args)
    assert ran.status == status
    assert message in ran.complaint


def test_nobody_is_waited_for_at_a_terminal(apd: Apd, profile: Path) -> None:
    assert "nothing is piped" in apd("generate", "-p", profile, "--jsonl", stdin=None).complaint


def test_nothing_is_loaded_for_lines_that_are_answered(
    apd: Apd, make_profile: MakeProfile, texts: Path
) -> None:
    path = make_profile()
    args = ("generate", "-p", path, "--input", texts, "-n", 4, "-o", "out.jsonl")
    assert apd(*args).status == 0
    make_profile(denoiser=Path("gone"))  # the same file, and now it could not be loaded
    assert apd(*args).status == 0
    assert apd(*args[:-2]).status == 1


def test_a_co_process_is_answered_line_by_line(profile: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "apdcli", "generate", "--jsonl", "-p", str(profile), "-n", "4"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    for number in (1, 2):
        child.stdin.write(b'{"prompt": "hello", "id": %d}\n' % number)
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["id"] == number
    child.send_signal(signal.SIGINT)  # it waits for a line
    out, err = child.communicate()
    assert (child.returncode, out, err) == (130, b"", b"")


def test_the_bar_is_for_terminals_and_fits(apd: Apd, profile: Path, texts: Path) -> None:
    args = ("generate", "-p", profile, "--input", texts, "-n", 4)
    ran = apd(*args, terminal=True)
    assert "\x1b[K" in ran.err
    assert "4 lines · " in ran.err.rsplit("\x1b[K", 1)[1]
    assert ran.err.rsplit("\x1b[K", 1)[1].count("\n") == 1
    assert answers(ran.raw) != []
    assert "\x1b" not in apd(*args, terminal=True, environ={"TERM": "dumb"}).err
    assert apd(*args, "-q", terminal=True).err == ""
    ticks = iter(range(1000))
    context = Context(None, None, Stream(terminal=True), {"TERM": "xterm"})
    bar = Progress(context, 40, clock=lambda: float(next(ticks)))
    for _ in range(10):
        bar.step(50)
    for columns in (200, 40, 19, 6):
        line = bar.line(columns)
        assert len(line) <= columns
        assert "10/40" in line
    assert "tok/s" in bar.line(40)


def test_jsonl_alone_is_named_as_it_was_typed(apd: Apd) -> None:
    ran = apd("generate", "--jsonl", "hello")
    assert ran.status == 2
    assert "--jsonl reads prompts from standard input, so PROMPT" in ran.complaint
    assert "--input brings the prompts" in apd("generate", "--input", "x", "hello").complaint
