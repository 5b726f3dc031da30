"""`apd chat` in pipes: a message a line in, an answer out."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import apdcli
from apdcli.chat.sessions import Session, Store, Turn
from apdcli.cli.signals import Signals
from tests.cli.conftest import Apd, MakeProfile

TALK = ("My name is Mia.", "I have 25 coins.", "What is my name?")


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("APD_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def apd(apd: Apd, data: Path) -> Apd:
    """The command with a data folder of its own."""
    return Apd({**apd.environ, "APD_DATA_DIR": str(data)})


def fresh_answers(profile: Path, messages: tuple[str, ...], **values: Any) -> list[str]:
    """What a pair that keeps nothing says, turn by turn."""
    pair, said = apdcli.load_pair(str(profile), device="cpu", dtype="float32"), []
    for message in messages:
        said.append({"role": "user", "content": message})
        text = apdcli.generate(pair, said, **values).text
        said.append({"role": "assistant", "content": text})
    return [m["content"] for m in said if m["role"] == "assistant"]


def test_lines_in_answers_out(apd: Apd, profile: Path, data: Path) -> None:
    want = fresh_answers(profile, TALK, recompute_window="all")
    ran = apd("chat", "-p", profile, "-W", "all", stdin="\r\n".join(TALK))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == "".join(text if text.endswith("\n") else text + "\n" for text in want)
    whole = apd("chat", "-p", profile, "-W", "all", "--no-stream", stdin="\n\n".join(TALK) + "\n")
    assert whole.out == ran.out
    assert not data.exists()  # a script leaves nothing behind


def test_json_lines(apd: Apd, profile: Path) -> None:
    want = fresh_answers(profile, TALK, recompute_window="all", max_tokens=9)
    lines = [json.dumps({"prompt": TALK[0], "id": "a"}), TALK[1]]
    lines += [json.dumps({"prompt": TALK[2], "recompute_window": "all", "max-tokens": 9})]
    ran = apd("chat", "-p", profile, "--json", "-W", "all", "-n", 9, stdin="\n".join(lines))
    assert (ran.status, ran.err) == (0, "")
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert [r["text"] for r in records] == want
    assert [r["line"] for r in records] == [1, 2, 3]
    assert [r.get("id") for r in records] == ["a", None, None]
    assert all(sum(r["accepted"]) == len(r["token_ids"]) for r in records)
    assert records[0]["settings"]["recompute_window"] == {"value": "all", "from": "flag"}
    assert records[2]["settings"]["recompute_window"] == {"value": "all", "from": "line"}


BAD = [
    ("{", "not JSON"),
    ('{"prompt": ""}', "not empty"),
    ('{"messages": [{"role": "user", "content": "x"}]}', "keeps its messages itself"),
    ('{"id": 4}', "it needs prompt, as in"),
    ('{"prompt": "x", "raw": true}', "raw"),
    ('{"prompt": "x", "temprature": 1}', "did you mean temperature"),
    ('{"prompt": "x", "temperature": -1}', "0 to 100"),
    ('{"prompt": "x", "strategy": "apd", "k": 2}', "k"),
    ('{"prompt": "' + "w " * 3000 + '"}', "context"),
]


def test_a_bad_line_costs_only_itself(apd: Apd, profile: Path) -> None:
    lines = [TALK[0], *(line for line, _ in BAD), TALK[2]]
    ran = apd("chat", "-p", profile, "-W", "all", "--json", stdin="\n".join(lines))
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.status == 1
    assert len(records) == len(lines)
    for (_, why), record in zip(BAD, records[1:-1], strict=True):
        assert record.get("id") == (4 if "needs prompt" in why else None)
        assert set(record) <= {"line", "error", "id"}
        assert why in record["error"]
    want = fresh_answers(profile, (TALK[0], TALK[2]), recompute_window="all")
    assert [records[0]["text"], records[-1]["text"]] == want
    assert len(ran.err.splitlines()) == len(BAD)
    assert ran.err.startswith("apd: line 2: ")


def test_ids_are_given_back_and_are_json(apd: Apd, profile: Path) -> None:
    given = ('{"prompt": "hi", "id": NaN}', '{"prompt": "hi", "id": [1e999]}')
    lines = [*given, '{"prompt": "hi", "id": null}', '{"prompt": "hi"}']
    ran = apd("chat", "-p", profile, "--json", "-n", 4, stdin="\n".join(lines))
    assert "NaN" not in ran.out.replace("no NaN and no", "")
    *bad, null, none = map(json.loads, ran.out.splitlines())
    assert all("id must be JSON" in record["error"] and "id" not in record for record in bad)
    assert null["id"] is None
    assert "id" not in none
    assert none["left_out"] == 0


def test_a_line_whose_values_exclude_each_other(apd: Apd, profile: Path) -> None:
    lines = [{"prompt": "hi", "k": 4}, {"prompt": "hi", "k": 2, "max-tokens": 4}]
    given = ("-S", "left_to_right", "-M", 2)
    ran = apd("chat", "-p", profile, "--json", *given, stdin="\n".join(map(json.dumps, lines)))
    first, second = map(json.loads, ran.out.splitlines())
    assert first == {
        "line": 1,
        "error": "K 4: it must be at most max_lookahead (2), the positions drafted",
    }
    assert second["settings"]["k"] == {"value": 2, "from": "line"}
    line = json.dumps({"prompt": "hi", "steps": 3, "max-tokens": 4})
    ran = apd("chat", "-p", profile, "--json", "-S", "confidence", "-K", 2, stdin=line)
    assert json.loads(ran.out)["settings"]["steps"]["value"] == 3  # it stands over the run's K


def test_a_blank_line_has_an_answer_where_whoever_sent_it_waits(apd: Apd, profile: Path) -> None:
    ran = apd("chat", "-p", profile, "--json", "-n", 4, stdin="\n \nhi\n")
    first, second, third = map(json.loads, ran.out.splitlines())
    assert first == {"line": 1, "error": "the line is blank"}
    assert (second["line"], third["line"], "text" in third) == (2, 3, True)
    assert len(apd("chat", "-p", profile, "-n", 4, stdin="\n \nhi\n").out.splitlines()) == 1


def test_json_says_how_many_were_left_out(apd: Apd, profile: Path) -> None:
    long = "I like the colour blue and the number 7. " * 4
    ran = apd("chat", "-p", profile, "--json", "-n", 4, stdin="\n".join([long] * 14))
    counts = [json.loads(line)["left_out"] for line in ran.out.splitlines()]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] > 0


def test_a_bad_line_of_plain_text(apd: Apd, profile: Path) -> None:
    ran = apd("chat", "-p", profile, stdin=b"hi\n\xff\nhi\n")
    assert ran.status == 1
    assert ran.err == "apd: line 2: not UTF-8 text: byte 0 is 0xff\n"
    assert ran.raw.count(b"\n") >= 2


def test_nothing_in_a_line_is_a_command_or_a_file(apd: Apd, profile: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    lines = ("/bye", "/file secret.txt", "@secret.txt", "/set R 2")
    ran = apd("chat", "-p", profile, "--json", stdin="\n".join(lines))
    assert ran.status == 0
    pair = apdcli.load_pair(str(profile))
    records = [json.loads(line) for line in ran.out.splitlines()]
    said: list[dict[str, str]] = []
    for line, record in zip(lines, records, strict=True):
        said.append({"role": "user", "content": line})
        assert record["prompt_tokens"] == len(pair.prompt_ids(said))
        said.append({"role": "assistant", "content": record["text"]})


def test_pipes_get_the_exact_bytes(apd: Apd, profile: Path) -> None:
    """Whatever the model says; that terminals do not is tested with the loop's own renderers."""
    ran = apd("chat", "-p", profile, "--json", "-t", 3, "--seed", 5, stdin="tell me a story")
    text = json.loads(ran.out)["text"]
    plain = apd("chat", "-p", profile, "-t", 3, "--seed", 5, stdin="tell me a story")
    assert plain.raw == text.encode() + (b"" if text.endswith("\n") else b"\n")


def test_a_script_can_go_on_with_a_session(apd: Apd, profile: Path, data: Path) -> None:
    store = Store(data / "sessions")
    store.save(Session("bot", str(profile), settings={"recompute_window": "all"}))
    for message in TALK:
        ran = apd("chat", "--resume", "bot", stdin=message)
        assert ran.status == 0, ran.err
    said = store.load("bot").turns
    assert [t.message for t in said] == list(TALK)
    assert [t.answer for t in said] == fresh_answers(profile, TALK, recompute_window="all")


def test_a_script_can_begin_a_session(apd: Apd, profile: Path, data: Path) -> None:
    store = Store(data / "sessions")
    given = ("--session", "bot", "-W", "all")
    first = apd("chat", "-p", profile, *given, stdin=TALK[0])
    assert (first.status, first.err) == (0, "")
    rest = apd("chat", "--session", "bot", "--json", stdin="\n".join(TALK[1:]))
    assert (rest.status, rest.err) == (0, "")
    said = store.load("bot").turns
    assert [t.message for t in said] == list(TALK)
    assert [t.answer for t in said] == fresh_answers(profile, TALK, recompute_window="all")
    assert json.loads(rest.out.splitlines()[0])["settings"]["recompute_window"] == {
        "value": "all",
        "from": "session",
    }
    assert store.names() == ["bot"]
    assert apd("chat", "-p", profile, "--session", "none", stdin="").status == 0
    assert store.names() == ["bot"]  # what nobody said anything in is not kept


def test_two_that_begin_one_session_lose_nothing(
    apd: Apd, profile: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(data / "sessions")

    def has_not_yet(self: Store, name: str) -> bool:
        store.save(Session(name, "demo", turns=[Turn("their question", "their answer")]))
        return False

    monkeypatch.setattr(Store, "has", has_not_yet)
    ran = apd("chat", "-p", profile, "--session", "bot", stdin=TALK[0])
    assert ran.err.endswith("this conversation goes on as bot-2\n")
    monkeypatch.undo()
    assert [store.load(n).turns[0].message for n in ("bot", "bot-2")] == ["their question", TALK[0]]


def test_a_script_is_told_where_its_session_goes_on(
    apd: Apd, profile: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, load = Store(data / "sessions"), Store.load
    store.save(Session("bot", str(profile)))

    def load_while_another_writes(self: Store, name: str | None = None) -> Session:
        mine, other = load(self, name), Store(self.folder)
        theirs = load(other, name)
        theirs.turns.append(Turn("their question", "their answer"))
        other.save(theirs)
        return mine

    monkeypatch.setattr(Store, "load", load_while_another_writes)
    ran = apd("chat", "--resume", "bot", stdin=TALK[0])
    assert (ran.status, ran.err.count("\n")) == (0, 1)
    assert ran.err.endswith("this conversation goes on as bot-2\n")
    assert [t.message for t in load(store, "bot-2").turns] == [TALK[0]]
    assert [t.message for t in load(store, "bot").turns] == ["their question"]


def test_a_session_whose_profile_is_gone_can_go_on_with_another(apd: Apd, data: Path) -> None:
    Store(data / "sessions").save(Session("bot", "gone"))
    said = apd("chat", "--resume", "bot", stdin="hi").complaint
    assert "session bot: no profile is called 'gone'" in said
    assert "-p NAME goes on with another profile" in said
    assert "-p NAME" not in apd("chat", "--resume", "bot", "-p", "gome", stdin="hi").complaint


@pytest.mark.parametrize(
    ("settings", "said", "remedy"),
    [
        ({"temperature": -1}, "temperature = -1: it must be", ("-t", 0)),
        (
            {"strategy": "left_to_right", "k": 4, "max_lookahead": 2},
            "K 4: it must be at most max_lookahead (2)",
            ("-M", 8),
        ),
        ({"strategy": "confidence", "k": 4, "steps": 2}, "steps 2: it must be", ("-K", 2)),
    ],
)
def test_a_session_whose_settings_do_not_hold_goes_on_with_flags(
    apd: Apd, profile: Path, data: Path, settings: dict[str, Any], said: str, remedy: Any
) -> None:
    Store(data / "sessions").save(Session("bot", str(profile), settings=settings))
    refused = apd("chat", "--resume", "bot", stdin="hi").complaint
    assert refused.startswith("apd: session bot: ")
    assert said in refused
    assert "stands over" in refused
    ran = apd("chat", "--resume", "bot", "-n", 8, *remedy, stdin="hi")
    assert (ran.status, ran.err) == (0, "")


def test_a_mistake_that_no_session_has_made_is_not_put_down_to_it(
    apd: Apd, profile: Path, data: Path
) -> None:
    store = Store(data / "sessions")
    store.save(Session("bot", str(profile), settings={"temperature": 0.5}))
    said = apd("chat", "--resume", "bot", "-K", 2, stdin="hi").complaint
    assert said.startswith("apd: -K/--k does not go with strategy apd")
    store.save(Session("other", str(profile), settings={"strategy": "apd"}))
    said = apd("chat", "--resume", "other", "-K", 2, stdin="hi").complaint
    assert said.startswith("apd: session other: -K/--k does not go with strategy apd")


def test_a_session_whose_models_are_gone_can_go_on_with_another(
    apd: Apd, make_profile: MakeProfile, profile: Path, data: Path, tmp_path: Path
) -> None:
    gone = make_profile(name="gone", denoiser=tmp_path / "no-model")
    Store(data / "sessions").save(Session("bot", str(gone)))
    said = apd("chat", "--resume", "bot", stdin="hi").complaint
    assert said.startswith("apd: session bot: ")
    assert "-p NAME goes on with another profile" in said
    assert apd("chat", "--resume", "bot", "-p", profile, "-n", 4, stdin="hi").status == 0


def test_settings_that_waited_for_another_strategy_still_wait(
    apd: Apd, profile: Path, data: Path
) -> None:
    store = Store(data / "sessions")
    settings = {"k": 3, "mixture_weight": 0.1, "temperature": 0.0}
    store.save(Session("bot", str(profile), settings=settings))
    ran = apd("chat", "--resume", "bot", "--json", stdin="hi")
    assert ran.status == 0, ran.err
    shown = json.loads(ran.out)["settings"]
    assert shown["mixture_weight"] == {"value": 0.1, "from": "session"}
    assert "k" not in shown
    assert store.load("bot").settings == settings
    ran = apd("chat", "--resume", "bot", "--json", "--strategy", "left_to_right", stdin="hi")
    assert json.loads(ran.out)["settings"]["k"]["value"] == 3


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (("--resume", "no-such"), "there are: none yet; apd chat --session no-such begins it"),
        (("--resume", "../x"), "cannot be a session's name: use up to"),
        (("--session", "../x"), "cannot be a session's name: use up to"),
        (("--resume",), "no session to resume yet"),
        (("--resume",), "apd chat --session NAME begins one"),
        (("--resume", "--session", "x"), "--resume and --session exclude each other"),
        (("--session", "x", "--no-save"), "--session and --no-save exclude each other"),
        (("--continue",), "--resume goes on with the last conversation"),
        (("--resume", ""), "'' cannot be a session's name"),
        (("--resume=",), "'' cannot be a session's name"),
        (("--resume", "--no-save"), "exclude each other"),
        (("-W", "0"), "-W/--recompute-window 0"),
        (("-K", "2"), "does not go with strategy apd"),
        (("--export", "x.png"), ".svg"),
        (("hello",), "unexpected"),
        (("-q", "-v"), "exclude"),
        (("-p", "nonsense"), "no profile"),
        (("--seed", "x"), "--seed x"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_loaded(
    apd: Apd, args: tuple[str, ...], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("apdcli.engine.pair.load_models", fail)
    ran = apd("chat", *args, stdin="hi")
    assert ran.status in (1, 2)
    assert why in ran.complaint


def test_a_damaged_session_is_one_line_and_stays(apd: Apd, data: Path) -> None:
    (data / "sessions").mkdir(parents=True)
    (data / "sessions" / "bad.json").write_text("{")
    for flag in ("--resume", "--session"):
        said = apd("chat", flag, "bad", stdin="hi").complaint
        assert "damaged" in said
        assert "mend or delete it, or begin another" in said
    assert (data / "sessions" / "bad.json").read_text() == "{"


def test_traces_of_a_chat_can_be_played(apd: Apd, profile: Path, tmp_path: Path) -> None:
    ran = apd("chat", "-p", profile, "--json", "--trace", "t.jsonl", stdin="hi\nho\nhu")
    texts = [json.loads(line)["text"] for line in ran.out.splitlines()]
    for name, text in zip(("t.jsonl", "t-2.jsonl", "t-3.jsonl"), texts, strict=True):
        played = apd("replay", name, stdin=b"")
        assert played.out.removesuffix("\n") == text.removesuffix("\n")


class Late(Signals):
    """Ctrl-C comes when the last step of an answer is done."""

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with super().held():
            yield
            self.interrupted = True


def test_ctrl_c_after_the_last_step_begins_no_other_answer(apd: Apd, profile: Path) -> None:
    ran = apd("chat", "-p", profile, "--json", stdin="\n".join(TALK), signals=Late())
    assert ran.status == 130
    (record,) = map(json.loads, ran.out.splitlines())
    assert record["finish_reason"] != "interrupted"


def test_a_trace_that_fails_costs_no_answer_and_no_turn_of_a_script(
    apd: Apd, profile: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    args, talk = ("chat", "-p", profile, "--json"), "\n".join(TALK)
    ran, plain = apd(*args, "--trace", "/dev/full", stdin=talk), apd(*args, stdin=talk)
    said, want = ([json.loads(line) for line in r.out.splitlines()] for r in (ran, plain))
    assert [r["text"] for r in said] == [r["text"] for r in want]  # a line in, a line out
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert "line 1: the trace /dev/full ends early" in ran.err
    assert not Path("/dev/full-2").exists()


def test_help_loads_neither_torch_nor_prompt_toolkit() -> None:
    code = """
import sys
from apdcli.cli.main import main
for line in sys.argv[1:]:
    main(line.split())
    heavy = {"torch", "prompt_toolkit", "transformers", "rich", "markdown_it"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    lines = ("chat --help", "chat -W 0", "chat --resume no-such", "chat x")
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=Path(apdcli.__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert "--resume [NAME]" in done.stdout
    assert "in a pipe only with --session NAME or --resume" in " ".join(done.stdout.split())
