"""The stored search: shared, killed, refused, full."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

from apdcli.errors import OutputError, UsageError
from apdcli.tasks.types import Item, Outcome
from apdcli.tune.measure import Bench, in_order
from apdcli.tune.sampler import MEASURED, key_of, stored_distributions
from apdcli.tune.search import Search
from apdcli.tune.space import knobs, possible
from apdcli.tune.storage import default_storage, open_storage, shown
from apdcli.tune.study import TakenError, open_study
from tests.tune.synthetic import IDENTITY, search, setup, study_in, task

ROOT = Path(__file__).parents[2]
KINDS = ("t.db", "t.log")


def worker(storage: object, trials: int, pause: float = 0.001, *flags: str, **more: Any) -> Any:
    """One process of a search."""
    arguments = (str(storage), str(trials), str(pause), *flags)
    command = [sys.executable, "-m", "tests.tune.synthetic", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **more
    )


def wait_for(trials: int, storage: Path, process: Any) -> None:
    """Until so many settings are measured."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        time.sleep(0.05)
        if process.poll() is not None:
            raise AssertionError(f"it ended early: {process.communicate()}")
        if storage.exists() and storage.stat().st_size and study_in(storage).count() >= trials:
            return
    raise AssertionError("too little was measured in 120 s")


@pytest.mark.parametrize("kind", KINDS)
def test_three_processes_share_one_search(tmp_path: Path, kind: str) -> None:
    storage, trials = tmp_path / kind, 15
    processes = [worker(storage, trials, 0.004, "waits", stdin=subprocess.PIPE) for _ in range(3)]
    for process in processes:  # who starts late may find nothing left to do
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        told.append(json.loads(out))
    study = study_in(storage)
    candidates = [*study.finished(), *study.pruned()]
    assert all(t["new"] > 0 and t["failure"] == "" for t in told), told
    assert sum(t["new"] for t in told) == len(candidates)
    assert trials <= len(candidates) <= trials + 2  # two may have begun with the last
    keys = [key_of(study.space, c.values) for c in candidates]
    assert len(set(keys)) == len(keys), "a setting was measured twice"
    assert study.count(running=True) == study.count(), "nothing is left running"


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_search_goes_on(tmp_path: Path, kind: str) -> None:
    storage = tmp_path / kind
    process = worker(storage, 200, 0.002)
    wait_for(3, storage, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    study = study_in(storage)
    before = study.finished()
    assert len(before) + len(study.pruned()) >= 3
    running = study.count(running=True) - study.count()
    trials = study.count() + 9  # on a busy machine the kill may come late
    found = search(study_in(storage), items=24, trials=trials)
    assert list(found.finished)[: len(before)] == before, "what was measured is kept as it was"
    assert len(found.finished) + len(found.pruned) == trials
    assert study_in(storage).count(running=True) == study_in(storage).count()
    assert found.baseline is not None
    if running:  # it had begun with a setting, which another process then measured
        keys = {key_of(study.space, c.values) for c in (*found.finished, *found.pruned)}
        assert {key_of(study.space, values) for values in setup().first} <= keys


@pytest.mark.parametrize(
    ("part", "value"), [("pair", "others"), ("task", "letters"), ("device", "that")]
)
def test_a_study_of_something_else_is_refused(tmp_path: Path, part: str, value: str) -> None:
    search(study_in(tmp_path / "t.db"), trials=2)
    before = (tmp_path / "t.db").read_bytes()
    with pytest.raises(UsageError) as refused:
        study_in(tmp_path / "t.db", identity={**IDENTITY, part: value})
    assert str(refused.value) == (
        f"study 's' is of another {part} ({IDENTITY[part]}, here {value}); "
        "use another --study, or none"
    )
    assert (tmp_path / "t.db").read_bytes() == before


def test_whoever_joins_searches_the_same_space_beside_the_same_reference(tmp_path: Path) -> None:
    first = study_in(tmp_path / "t.db")
    other = {"mixture_weight": 0.25, "recompute_window": 4, "max_lookahead": 8}
    joined = study_in(tmp_path / "t.db", reference=other, space=setup().space[:1])
    assert joined.reference == first.reference
    assert joined.space == first.space


def test_what_waits_is_not_queued_twice(tmp_path: Path) -> None:
    for _ in range(3):
        study_in(tmp_path / "t.db")
    kept = optuna.load_study(study_name="s", storage=open_storage(str(tmp_path / "t.db")))
    assert len(kept.trials) == len(setup().first)


def test_no_more_tokens_a_step_than_positions_drafted(tmp_path: Path) -> None:
    """Neither from the sampler nor from the queue or the results of an earlier apd."""
    own = {"k": 1, "recompute_window": 16, "max_lookahead": 2}
    old = {"k": 8, "recompute_window": 16, "max_lookahead": 2}
    space = knobs("left_to_right", 256, own)
    made = {"space": space, "reference": own, "first": [own, old]}
    study = study_in(tmp_path / "t.db", **made)

    def answer(item: Item, values: Mapping[str, Any]) -> Outcome:
        k = values.get("k", 1)
        score = float(int(item.id) >= k)
        return Outcome(item.id, score, "", 4 * k, 4, 4, 4, 0.01, "stop")

    found = Search(study, Bench(in_order(task(12)), answer, own), None, 24, 60, 0).run()
    tried = [c.values for c in (*found.finished, *found.pruned)]
    assert len(tried) >= 20
    assert [v for v in tried if not possible(v)] == []
    kept = optuna.load_study(study_name="s", storage=open_storage(str(tmp_path / "t.db")))
    assert [t.params for t in kept.trials if not possible(t.params)] == [old]  # given up unmeasured
    storage = open_storage(str(tmp_path / "t.db"))
    storage.create_new_trial(
        storage.get_study_id_from_name("s"),
        optuna.trial.create_trial(
            values=[1.0, 1.0],
            params=old,
            distributions=stored_distributions(space),
            user_attrs={MEASURED: found.finished[0].measured.as_json()},
        ),
    )
    assert old not in [dict(c.values) for c in study.finished()]


def test_a_trial_that_was_taken_for_dead_is_left_to_others(tmp_path: Path) -> None:
    """This process was silent for too long; another has put its setting back."""
    study, other = study_in(tmp_path / "t.db"), study_in(tmp_path / "t.db")
    trial = study.ask()
    assert trial is not None
    trial.set_user_attr("owner", {"host": "elsewhere", "pid": 1, "seen": time.time() - 7200})
    assert other.free_stale() == 1
    with pytest.raises(TakenError):
        study.beat(trial, now=True)
    found = search(study, trials=7)
    assert dict(trial.params) in [dict(c.values) for c in found.finished]
    assert other.free_stale() == 0


@pytest.mark.parametrize("stored", [0, 1, 3])
def test_a_setting_taken_by_a_process_that_dies_at_once_waits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    """It has written that it took it, and so many of its values, and not yet who it is."""
    study = study_in(tmp_path / "t.db")
    study._study.ask(dict(list(stored_distributions(study.space).items())[:stored]))
    assert study.free_stale() == 0, "it may be about to say so"
    monkeypatch.setattr("apdcli.tune.study._UNCLAIMED_S", 0)
    assert study.free_stale() == 1
    wanted = [key_of(study.space, values) for values in setup().first]
    found = search(study, trials=len(wanted), prune=False)
    assert sorted(map(str, (key_of(study.space, c.values) for c in found.finished))) == sorted(
        map(str, wanted)
    )


def test_a_full_disk_keeps_what_was_measured(tmp_path: Path) -> None:
    """The process may write no file longer than the study is by then, as on a full disk."""
    storage = tmp_path / "t.db"
    search(study_in(storage), items=24, trials=5)
    before = study_in(storage).finished()
    limit = storage.stat().st_size + 512

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = worker(storage, 60, 0.0, preexec_fn=full, env=environ)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["ended"] == "failed"
    assert str(storage) in told["failure"]
    assert "what it holds is kept" in told["failure"]
    assert "\n" not in told["failure"]
    assert told["finished"] >= 5
    kept = study_in(storage).finished()
    assert kept[:5] == before
    after = search(study_in(storage), items=24, trials=len(kept) + 2)
    assert after.failure is None


def test_bad_storages_are_one_line(tmp_path: Path) -> None:
    for text, says in (
        ("nowhere", r"--storage nowhere: it must be a URL like sqlite:///tune\.db, a path ending"),
        ("what://x", r"--storage what://x: "),
        ("mysql://u:secret@h/x", r"--storage mysql://u:\*\*\*@h/x: its database driver is not"),
    ):
        with pytest.raises(UsageError, match=says) as refused:
            open_study(text, "s", setup())
        assert "\n" not in str(refused.value)
        assert "secret" not in str(refused.value)
    (tmp_path / "file").write_text("")
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database" * 200)
    for path in (tmp_path / "file" / "t.db", damaged):
        with pytest.raises(OutputError) as failed:
            open_study(str(path), "s", setup())
        assert "\n" not in str(failed.value)
        assert str(path) in str(failed.value)
    assert damaged.read_bytes() == b"this is no database" * 200


def test_no_connection_is_left_open(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database" * 200)
    opened: list[Any] = []
    closed: list[Any] = []

    def connect(connection: Any, _: Any) -> None:
        opened.append(connection)

    def close(connection: Any, _: Any) -> None:
        closed.append(connection)

    event.listen(Pool, "connect", connect)
    event.listen(Pool, "close", close)
    try:
        for storage in (tmp_path / "t.db", "sqlite://"):
            search(study_in(storage), trials=2)
        with pytest.raises(UsageError):
            study_in(tmp_path / "t.db", identity={**IDENTITY, "pair": "others"})
        with pytest.raises(OutputError):
            study_in(damaged)
        gc.collect()  # a study and its sampler know each other
    finally:
        event.remove(Pool, "connect", connect)
        event.remove(Pool, "close", close)
    assert len(opened) >= 4
    assert all(any(one is other for other in closed) for one in opened)


def test_a_study_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 't.db'}"
    optuna.create_study(storage=open_storage(url), study_name="s", direction="minimize")
    with pytest.raises(UsageError, match=r"study 's' in .* was not made by apd tune"):
        study_in(url)


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert shown("sqlite:///a.db") == "sqlite:///a.db"


def test_where_it_is_kept(tmp_path: Path) -> None:
    assert default_storage({"APD_DATA_DIR": str(tmp_path)}) == str(tmp_path / "tune.db")
    assert default_storage({}).endswith("tune.db")


def test_optuna_is_silent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    search(study_in(tmp_path / "t.db"), trials=14)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn if "optuna" in str(w.filename)] == []
    assert optuna.logging.get_verbosity() >= logging.CRITICAL
