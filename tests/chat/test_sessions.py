"""Sessions on disk: whole or not at all, never over something else, never outside the folder."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apdcli.chat.session_names import check_name
from apdcli.chat.sessions import Session, Store, Turn, data_folder
from apdcli.errors import InputError, OutputError, UsageError

TURN = Turn("hi\n@x", "Hello \u202e\x1b[31m", "hi", "interrupted", (3, 0, 1), 0.25, 7, "apd")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "sessions")


def session(name: str = "fox", *turns: Turn) -> Session:
    return Session(name, "demo", "Be brief.", {"mixture_weight": 0.3, "stop": ["x"]}, [*turns], 1)


def test_what_is_saved_is_loaded(store: Store) -> None:
    made = session("fox", TURN, Turn("a", "b"))
    assert store.save(made) is None
    assert Store(store.folder).load("fox") == made
    assert Store(store.folder).load() == made
    assert {path.name for path in store.folder.iterdir()} == {"fox.json", ".lock"}


@given(st.text(), st.text())
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, said: str, got: str) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "any")
    made = Session("any", turns=[Turn(said, got, accepted=(1,))])
    store.save(made)
    assert store.load(made.name).turns == made.turns


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_nobody_else_may_read_them(store: Store) -> None:
    store.save(session())
    assert stat.S_IMODE(store.path("fox").stat().st_mode) == 0o600
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "/etc/x",
        "a\\b",
        ".hid",
        "-x",
        "a\0",
        "a\n",
        "é",
        "con",
        "x" * 101,
        "nul.txt",
        "a.",
        "a b",
        "~",
        "$HOME",
    ],
)
def test_names_that_leave_the_folder_or_break_a_platform(store: Store, name: str) -> None:
    for use in (check_name, store.load, store.path):
        with pytest.raises(UsageError, match=r"cannot be a session's name.*ASCII.*such as con"):
            use(name)
    with pytest.raises(UsageError):
        store.rename(session(), name)


def test_a_session_that_is_not_there_names_the_nearest(store: Store) -> None:
    with pytest.raises(UsageError, match="no session to resume yet"):
        store.load()
    with pytest.raises(UsageError, match="no session is called 'holiday'; there are: none yet"):
        store.load("holiday")
    store.save(session("holiday"))
    with pytest.raises(UsageError, match="did you mean holiday"):
        store.load("hoilday")


GOOD = {
    "format": "apd-session",
    "version": 1,
    "profile": "demo",
    "system": None,
    "settings": {},
    "turns": [],
    "left_out": 0,
    "created": 1.0,
    "updated": 1.0,
}


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"format": "other"}',
        json.dumps({**GOOD, "version": 0}).encode(),
        json.dumps({**GOOD, "turns": [{"message": 1, "answer": ""}]}).encode(),
        json.dumps({**GOOD, "turns": [{"message": "a"}]}).encode(),
        json.dumps({**GOOD, "turns": ["a"]}).encode(),
        json.dumps({**GOOD, "left_out": 5}).encode(),
        json.dumps({**GOOD, "settings": []}).encode(),
        json.dumps({**GOOD, "updated": 1e300}).encode(),
        json.dumps({**GOOD, "created": float("nan")}).encode(),
        b"[" * 100_000,
    ],
    ids=lambda data: ascii(data[-30:]),
)
def test_a_damaged_file_is_one_line_and_stays_as_it_is(store: Store, damage: bytes) -> None:
    store.folder.mkdir(parents=True)
    path = store.path("bad")
    path.write_bytes(damage)
    with pytest.raises(InputError, match="is damaged") as caught:
        store.load("bad")
    assert "\n" not in str(caught.value)
    (entry,) = store.entries()
    assert entry.problem == str(caught.value)
    other = session("bad", TURN)
    assert store.save(other) == "bad-2"  # never over what we have not read
    assert path.read_bytes() == damage


def test_a_later_format_is_not_called_damaged(store: Store) -> None:
    store.folder.mkdir(parents=True)
    store.path("late").write_text(json.dumps({**GOOD, "version": 2, "turns": 7}))
    with pytest.raises(InputError, match="late was written by a newer apd"):
        store.load("late")
    (entry,) = store.entries()
    assert "newer apd" in str(entry.problem)


def test_the_minimum_of_a_file_is_read(store: Store) -> None:
    store.folder.mkdir(parents=True)
    store.path("good").write_text(json.dumps(GOOD))
    assert store.load("good").turns == []


def test_two_processes_do_not_lose_each_others_turns(store: Store) -> None:
    store.save(session("both", TURN))
    here, there = Store(store.folder), Store(store.folder)
    mine, theirs = here.load("both"), there.load("both")
    theirs.turns.append(Turn("c", "d"))
    assert there.save(theirs) is None
    mine.turns.append(Turn("e", "f"))
    assert here.save(mine) == mine.name == "both-2"
    assert here.save(mine) is None
    assert [t.message for t in here.load("both").turns] == [TURN.message, "c"]
    assert [t.message for t in here.load("both-2").turns] == [TURN.message, "e"]


def test_many_at_the_same_instant_do_not_lose_each_others_turns(store: Store) -> None:
    store.save(session("bot", TURN))
    others = [Store(store.folder) for _ in range(8)]
    conversations = [other.load("bot") for other in others]
    start = threading.Barrier(len(others))

    def answer(number: int) -> None:
        conversations[number].turns.append(Turn(f"question {number}", "answer"))
        start.wait()
        others[number].save(conversations[number])

    threads = [threading.Thread(target=answer, args=(n,)) for n in range(len(others))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [turn.message for name in store.names() for turn in store.load(name).turns]
    assert {f"question {n}" for n in range(len(others))} < set(found)


def test_what_the_user_named_stays_and_is_copied(store: Store) -> None:
    one = session("one", TURN)
    store.save(one)
    store.rename(one, "two")
    assert one.name == "two"
    assert sorted(store.names()) == ["one", "two"]
    assert store.load("one").turns == store.load("two").turns == [TURN]


def test_rename_moves_and_never_replaces(store: Store) -> None:
    dated = store.fresh_name()
    one, two = session(dated, TURN), session("two")
    store.save(one)
    store.save(two)
    with pytest.raises(UsageError, match="already"):
        store.rename(one, "two")
    assert one.name == dated
    store.rename(one, "three")
    store.rename(one, "three")
    assert sorted(store.names()) == ["three", "two"]
    assert store.load("three").turns == [TURN]


def test_the_last_changed_comes_first(store: Store) -> None:
    for at, name in enumerate(("old", "new", "mid")):
        store.save(session(name, TURN))
        os.utime(store.path(name), (at if name != "new" else 99, at if name != "new" else 99))
    assert store.names() == ["new", "mid", "old"]
    assert [e.first for e in store.entries()] == ["hi"] * 3
    assert store.load().name == "new"


def test_fresh_names_are_free(store: Store) -> None:
    assert check_name(store.fresh_name())
    store.save(session("a"))
    (store.folder / "con.json").write_text("{}")  # no name that we give is such a one
    assert [entry.name for entry in store.entries()] == ["a"]
    assert store.fresh_name("a") == "a-2"


def test_another_name_for_the_longest_is_one_still(store: Store) -> None:
    name = "x" * 100
    store.save(session(name, TURN))
    other = session(name, TURN)
    assert Store(store.folder).save(other) == other.name == "x" * 98 + "-2"
    assert store.load(other.name).turns == [TURN]


def test_what_cannot_be_renamed_keeps_its_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = session("one", TURN)
    store.save(one)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OutputError, match="no space left"):
            store.rename(one, "two")
    assert one.name == "one"
    assert store.save(one) is None
    assert store.names() == ["one"]


def test_what_a_killed_process_left_is_swept_and_never_read(store: Store) -> None:
    store.save(session())
    old, young = store.folder / ".fox.abc.part", store.folder / ".fox.def.part"
    for path in (old, young):
        path.write_text("{")
    os.utime(old, (1, 1))
    store.save(session("other"))
    assert (old.exists(), young.exists()) == (False, True)
    assert sorted(store.names()) == ["fox", "other"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be saved") as caught:
        Store(tmp_path / "file").save(session())
    assert "\n" not in str(caught.value)
    assert Store(tmp_path / "file").names() == []


def test_the_data_folder_can_be_named(tmp_path: Path) -> None:
    assert data_folder({"APD_DATA_DIR": str(tmp_path)}) == tmp_path
    assert data_folder({}).name == "apd"
