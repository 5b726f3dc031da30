"""Tasks from files as they are published, and from the corpus; damage names its line."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from apdcli.demo.corpus.base import split_of
from apdcli.errors import ApdError, InputError, UsageError
from apdcli.tasks.load import family_of, load_task, pair_families

GSM8K = {
    "question": "Natalia sold 48 clips in April and half as many in May. How many altogether?",
    "answer": "In May 48/2 = <<48/2=24>>24.\nIn total 48+24 = <<48+24=72>>72.\n#### 72",
}
MATH = {
    "problem": "What is $\\frac{1}{4}+\\frac{1}{4}$?",
    "level": "Level 1",
    "type": "Prealgebra",
    "solution": "It is $\\frac{2}{4}$, that is $\\boxed{\\frac{1}{2}}$.",
}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef double(xs: List[int]) -> list:\n    """x2"""\n',
    "entry_point": "double",
    "canonical_solution": "    return [2 * x for x in xs]\n",
    "test": "def check(candidate):\n    assert candidate([1, 2]) == [2, 4]\n",
}


def write(path: Path, *records: Any) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_our_own_form(tmp_path: Path) -> None:
    name = write(
        tmp_path / "t.jsonl",
        {"scorer": "contains"},
        {"prompt": "Capital of France?", "answer": "Paris"},
        {"messages": [{"role": "user", "content": "And of Italy?"}], "answer": "Rome", "id": "it"},
        {"prompt": "6 x 7?", "answer": 42},
        {"prompt": "Two?", "answer": ["two", "2"]},
    )
    task = load_task(name)
    assert (task.name, task.scorer) == (name, "contains")
    assert [item.id for item in task.items] == ["1", "it", "3", "4"]
    assert task.items[0].messages == ({"role": "user", "content": "Capital of France?"},)
    assert [task.score(i, "Paris Rome 42 2") for i in task.items] == [1, 1, 1, 1]
    assert task.score(task.items[0], "London") == 0


def test_the_scorer_named_by_the_caller_wins(tmp_path: Path) -> None:
    name = write(tmp_path / "t.jsonl", {"scorer": "exact"}, {"prompt": "1+1?", "answer": "2"})
    assert load_task(name, scorer="number").score(load_task(name).items[0], "It is 2.") == 1
    assert load_task(name).digest != load_task(name, scorer="number").digest


def test_choices_are_shown_unless_the_prompt_shows_them(tmp_path: Path) -> None:
    name = write(
        tmp_path / "t.jsonl",
        {"scorer": "choice"},
        {"prompt": "Which is a colour?", "choices": ["dog", "red"], "answer": "B"},
        {"prompt": "dog or red?", "choices": ["dog", "red"], "answer": 1},
    )
    first, second = load_task(name).items
    assert first.messages[-1]["content"] == "Which is a colour?\n\nA. dog\nB. red"
    assert second.messages[-1]["content"] == "dog or red?"
    assert [load_task(name).score(i, "The answer is B.") for i in (first, second)] == [1, 1]


def test_gsm8k_as_published(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "test.jsonl", GSM8K, GSM8K))
    assert task.scorer == "number"
    assert task.items[0].messages[-1]["content"] == GSM8K["question"]
    assert task.score(task.items[0], "48 + 24 = 72, so 72 clips.") == 1
    assert task.score(task.items[0], "I think 24.") == 0


def test_math_as_published_one_object_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "test" / "prealgebra"
    folder.mkdir(parents=True)
    (folder / "1.json").write_text(json.dumps(MATH, indent=4))
    (folder / "2.json").write_text(json.dumps({**MATH, "type": "Algebra"}))
    for name in (str(folder / "1.json"), str(tmp_path / "test")):
        task = load_task(name)
        assert task.scorer == "math"
        assert task.items[0].answer == "\\frac{1}{2}"
        assert task.score(task.items[0], "So \\boxed{0.5}.") == 1
    assert [family_of(item) for item in task.items] == ["Prealgebra", "Algebra"]


def test_math_as_json_lines(tmp_path: Path) -> None:
    task = load_task(write(tmp_path / "m.jsonl", MATH, {**MATH, "answer": "7", "unique_id": "x/7"}))
    assert [(item.id, item.answer) for item in task.items] == [("1", "\\frac{1}{2}"), ("x/7", "7")]


def test_humaneval_as_published(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps(HUMANEVAL) + "\n")
    with pytest.raises(UsageError, match="--allow-code"):
        load_task(str(path))
    task = load_task(str(path), allow_code=True)
    assert (task.scorer, task.items[0].id) == ("python", "HumanEval/0")
    assert HUMANEVAL["prompt"].strip() in task.items[0].messages[-1]["content"]
    assert task.score(task.items[0], HUMANEVAL["canonical_solution"]) == 1
    whole = "```python\ndef double(xs: List[int]):\n    return [x + x for x in xs]\n```"
    assert task.score(task.items[0], whole) == 1
    assert task.score(task.items[0], "    return xs\n") == 0


def test_json_arrays_and_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    records = [{"prompt": "a", "answer": "b"}, {"prompt": "c", "answer": "d"}]
    path.write_text("\ufeff" + json.dumps(records, indent=2))
    assert len(load_task(str(path), scorer="exact").items) == 2


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", ("is empty",)),
        ("\n\n", ("is empty",)),
        ("[]", ("is empty",)),
        ('{"scorer": "exact"}\n', ("no prompts",)),
        ('{"scorer": "exakt"}\n{"prompt": "a", "answer": "b"}', ("line 1", "exakt", "mean exact")),
        ('{"scorer": 3}\n{"prompt": "a", "answer": "b"}', ("line 1", "name")),
        ('{"scorer": "exact", "x": 1}\n', ("line 1", "not x")),
        ('{"scorer": "exact", "prompt": "a", "answer": "b"}\n', ("line 1", "first line")),
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"\n', ("line 2", "not JSON", "column")),
        ('{"prompt": "a", "ans\n{"prompt": "a", "answer": "b"}\n', ("line 1", "not JSON")),
        ('{"prompt": "a", "answer": "b"}\n\n7\n', ("line 3", "object", "int")),
        ('{"prompt": "a", "answer": "b"}\n{"text": "a"}\n', ("line 2", '"prompt"', "text")),
        ('{"prompt": "", "answer": "b"}\n', ("line 1", '"prompt" is empty')),
        ('{"prompt": ["a"], "answer": "b"}\n', ("line 1", "list")),
        ('{"prompt": "a", "answer": null}\n', ("line 1", '"answer"', "NoneType")),
        ('{"prompt": "a", "answer": NaN}\n', ("line 1", "NaN")),
        ('{"messages": [], "answer": "b"}\n', ("line 1", '"messages"')),
        ('{"messages": [{"role": "user"}], "answer": "b"}\n', ("line 1", '"content"')),
        (
            '{"messages": [{"role": "assistant", "content": "x"}], "answer": "b"}\n',
            ("line 1", "user's turn"),
        ),
        ('{"prompt": "a", "answer": "A", "choices": ["x"]}\n', ("line 1", '"choices"')),
        ('{"problem": "a", "solution": "none"}\n', ("line 1", "boxed")),
        ('{"prompt": "a", "answer": "b", "id": 1}\n' * 2, ("line 2", "id '1'", "line 1")),
        ('{\n  "prompt": "a",\n  "answer": \n}', ("line 4", "not JSON")),
        ('[{"prompt": "a", "answer": "b"},\n 5]', ("entry 2", "object")),
        ("What is this?\n", ("line 1", "not JSON")),
        ("[" * 100_000, ("line 1", "not JSON")),
    ],
)
def test_damaged_files_name_the_line(tmp_path: Path, text: str, pieces: tuple[str, ...]) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    scorer = None if '"scorer"' in text or "problem" in text else "exact"
    with pytest.raises(InputError) as caught:
        load_task(str(path), scorer=scorer)
    for piece in ("t.jsonl", *pieces):
        assert piece in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"line 2: not UTF-8"):
        load_task(str(tmp_path / "t.jsonl"))
    (tmp_path / "t.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(InputError, match="not gzip"):
        load_task(str(tmp_path / "t.jsonl.gz"))
    with gzip.open(tmp_path / "cut.jsonl.gz", "wb") as file:
        file.write(json.dumps(GSM8K).encode() * 100)
    whole = (tmp_path / "cut.jsonl.gz").read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="not gzip"):
        load_task(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"no \.json or \.jsonl file"):
        load_task(str(tmp_path / "folder"))
    with pytest.raises(InputError, match="no such file"):
        load_task(str(tmp_path / "gone.jsonl"))


def test_a_file_without_a_scorer_asks_for_one(tmp_path: Path) -> None:
    name = write(tmp_path / "t.jsonl", {"prompt": "a", "answer": "b"})
    with pytest.raises(UsageError, match=r"--scorer.*exact.*python"):
        load_task(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "srot"}, "did you mean sort"),
        ({"name": "nothing-like-it"}, "families: all, demo, sums"),
        ({"name": "sort", "split": "dev"}, "tune, test, train"),
        ({"name": "sort", "scorer": "nubmer"}, "did you mean number"),
        ({"name": "sort", "scorer": "choice"}, "cannot judge"),
        ({"name": "sort", "limit": 0}, ">= 1"),
    ],
)
def test_wrong_values_are_usage_errors(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_task(**values)


def test_families_have_their_own_prompts_in_each_split() -> None:
    tune, test = (load_task("sums", split=s, limit=20) for s in ("tune", "test"))
    assert len(tune.items) == len(test.items) == 20
    assert {split_of(i.messages) for i in tune.items} == {"tune"}
    assert not {i.id for i in tune.items} & {i.id for i in test.items}
    assert tune.digest != test.digest
    assert load_task("sums", split="tune", limit=20) == tune
    assert load_task("sums", split="tune", limit=20, seed=1).digest != tune.digest


def test_reference_answers_are_right_and_others_wrong() -> None:
    task = load_task("all", split="test", limit=32)
    assert Counter(map(family_of, task.items)) == dict.fromkeys(pair_families(), 2)
    assert all(task.score(item, item.answer) == 1 for item in task.items)
    assert all(task.score(item, "I do not say.") == 0 for item in task.items)


def test_limits_are_balanced_nested_and_keep_ids(tmp_path: Path) -> None:
    every = load_task("all", limit=36).items
    assert load_task("demo", limit=10).items == every[:10]
    assert set(Counter(map(family_of, every)).values()) <= {2, 3}
    records = [{"prompt": str(n), "answer": "x", "family": "ab"[n % 3 == 0]} for n in range(30)]
    name = write(tmp_path / "t.jsonl", *records)
    drawn = load_task(name, scorer="exact", limit=8, seed=5).items
    assert Counter(map(family_of, drawn)) == {"a": 4, "b": 4}
    whole = {item.id: item for item in load_task(name, scorer="exact").items}
    assert all(whole[item.id] == item for item in drawn)
    assert load_task(name, scorer="exact", limit=8, seed=6).items != drawn
    assert len(load_task(name, scorer="exact", limit=99).items) == 30


def test_a_small_world_gives_what_it_has() -> None:
    assert 0 < len(load_task("units", limit=120).items) < 120


def test_loading_a_task_loads_no_torch() -> None:
    code = "import sys; from apdcli.tasks.load import load_task; load_task('sums', limit=2)"
    code += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_error_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    for text in ("\x00", "{}", "null", '"x"', "{]", '{"prompt": {}, "answer": []}'):
        path.write_text(text)
        with pytest.raises(ApdError):
            load_task(str(path), scorer="exact")
