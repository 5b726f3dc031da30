"""Results files: begun, gone on with after any cut, refused when they are another's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from apdcli.errors import ApdError, InputError, OutputError
from apdcli.tasks import results as module
from apdcli.tasks.results import Header, Results, read_results
from apdcli.tasks.types import Outcome

HEADER = Header(
    task={"name": "sort", "split": "test", "scorer": "checker", "digest": "d", "prompts": 2},
    profile="demo",
    pair="p",
    settings={"mixture_weight": 0.5, "stop": ["x"]},
    knob=None,
    versions={},
)


def outcome(item: str) -> Outcome:
    return Outcome(item, 1.0, "text \u2028\n", 3, 2, 2, 2, 0.5, "stop")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two results, the second of a swept value."""
    path = tmp_path / "r.jsonl"
    with Results(path, HEADER) as results:
        results.add(None, outcome("1"))
        results.add(0.7, outcome("1"))
    return path


def test_what_is_written_is_read(path: Path) -> None:
    expected = {(None, "1"): outcome("1"), (0.7, "1"): outcome("1")}
    assert read_results(path, HEADER) == expected
    with Results(path, HEADER) as results:
        assert results.outcomes == expected
        results.add(None, outcome("2"))
    assert len(read_results(path, HEADER)) == 3
    assert len(path.read_text().splitlines()) == 4 + path.read_text().count("\u2028")


def test_any_cut_loses_at_most_the_cut_line(path: Path) -> None:
    whole = path.read_bytes()
    lines = whole.split(b"\n")
    ends = [i for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {*range(0, len(whole) + 1, 29), *(e + d for e in ends for d in (-1, 0, 1))}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        kept = max(0, whole[:cut].count(b"\n") - 1)
        with Results(path, HEADER) as results:
            assert len(results.outcomes) == kept
            results.add(None, outcome("3"))
        text = path.read_bytes()
        assert text.startswith(b"\n".join(lines[: kept + 1]) + b"\n")
        assert len(read_results(path, HEADER)) == kept + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {**HEADER.task, "digest": "e", "name": "sums"}}, "another task (sort test"),
        ({"pair": "q"}, "another pair (demo)"),
        ({"settings": {"mixture_weight": 0.7, "stop": ["x"]}}, "mixture_weight = 0.5, not 0.7"),
        ({"settings": {**HEADER.settings, "k": 1}}, "k = null, not 1"),
        ({"knob": "k"}, "one setting, not of a sweep"),
    ],
)
def test_results_of_another_are_refused_and_kept(
    path: Path, change: dict[str, Any], message: str
) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        Results(path, replace(HEADER, **change))
    assert message in str(caught.value)
    assert "choose another file" in str(caught.value)
    assert path.read_bytes() == before


def test_the_pair_is_not_asked_for_while_it_is_not_loaded(path: Path) -> None:
    assert len(read_results(path, replace(HEADER, pair=""))) == 2


@pytest.mark.parametrize(
    "text",
    [
        "my notes",
        "my notes\n",
        "{}\n",
        "[" * 100_000 + "\n",
        '{"results": 1}\n',
        "[]\n",
        '{"results": "apd ev"}\n',
    ],
)
def test_files_that_are_no_results_are_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="does not hold results"):
        Results(path, HEADER)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "line", ["{}", "nothing", '{"item": 3}', "", '{"item": "1", "score": "x"}', "[" * 100_000]
)
def test_damage_in_the_middle_names_its_line(path: Path, line: str) -> None:
    header, first, second = path.read_text().split("\n")[:3]
    path.write_text("\n".join([header, first, line, second, ""]))
    with pytest.raises(InputError, match=r"r\.jsonl, line 3: damaged"):
        Results(path, HEADER)


def test_another_version_is_refused(path: Path) -> None:
    header, rest = path.read_text().split("\n", 1)
    path.write_text(json.dumps({**json.loads(header), "version": 99}) + "\n" + rest)
    with pytest.raises(InputError, match="another version"):
        Results(path, HEADER)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone" / "r.jsonl", Path(os.devnull)):
        with pytest.raises(ApdError, match=r"plain file|cannot write"):
            Results(place, HEADER)


@pytest.mark.skipif(sys.platform != "linux", reason="needs flock and /dev/full")
def test_two_writers_are_not_let_in(path: Path) -> None:
    with Results(path, HEADER), pytest.raises(OutputError, match="another apd eval"):
        Results(path, HEADER)


def test_what_another_writes_before_it_lets_go_is_known(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = module.lock
    with Results(path, HEADER) as other:

        def waits(file: int) -> bool:
            other.add(None, outcome("late"))
            os.close(other._file)
            other._file = os.open(path, os.O_RDONLY)
            return lock(file)

        monkeypatch.setattr(module, "lock", waits)
        with Results(path, HEADER) as mine:
            assert (None, "late") in mine.outcomes
    assert len(read_results(path, HEADER)) == len(mine.outcomes)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    # A limit on the size of files is what a full disk looks like to a writer.
    code = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.tasks.test_results import HEADER, outcome
from apdcli.errors import OutputError
from apdcli.tasks.results import Results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with Results("r.jsonl", HEADER) as results:
    try:
        for n in range(100):
            results.add(None, outcome(str(n)))
    except OutputError as error:
        print(n, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    kept, said = done.stdout.split(" ", 1)
    assert "cannot write r.jsonl: file too large; the results before are kept" in said
    assert len(read_results(tmp_path / "r.jsonl", HEADER)) == int(kept) > 0
    assert (tmp_path / "r.jsonl").read_bytes().endswith(b"\n")
