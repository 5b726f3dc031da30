"""Commands timed as processes, and a pair of given sizes in files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import apdcli
from apdcli.bench import starting
from apdcli.bench.sizes import SHAPES, find_shapes
from apdcli.bench.starting import Command, measure, text_of, write_pair
from apdcli.errors import UsageError


def test_a_pair_in_files_is_loaded_like_any_other(tmp_path: Path) -> None:
    """Also where the two models know other numbers of tokens, as Dream and Qwen do."""
    embedded = find_shapes("embedded")
    assert embedded.verifier is not None
    denoiser = replace(embedded.denoiser, vocab_size=1400, num_layers=1)
    shapes = replace(embedded, denoiser=denoiser, verifier=replace(embedded.verifier, tied=True))
    written = write_pair(shapes, tmp_path, "bfloat16")
    assert written == 2 * shapes.parameters
    pair = apdcli.load_pair(tmp_path / "profile.toml", device="cpu", dtype="bfloat16")
    assert pair.denoiser.config.num_layers == 1
    assert len(pair.allowed_ids) == embedded.verifier.vocab_size - 1
    made = apdcli.generate(pair, starting.PROMPT, max_tokens=12)
    assert 1 <= len(made.token_ids) <= 12
    assert made.prompt_tokens == len(apdcli.load_pair().prompt_ids(starting.PROMPT))


def test_sizes_that_the_tokenizer_does_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="512 tokens are fewer than the tokenizer has"):
        write_pair(SHAPES["tiny"], tmp_path, "float32")


def test_the_first_byte_or_the_end_counts() -> None:
    script = "import sys, time; print('a', flush=True); time.sleep(0.4); sys.exit(3)"
    timed = [
        Command(name, ("-c", script), status=3, answers=answers)
        for name, answers in (("whole", False), ("answer", True))
    ]
    whole, answer = measure(timed, 1)
    assert whole["seconds"]["median"] > answer["seconds"]["median"] + 0.3
    assert (whole["ratio"]["median"], answer["until"]) == (1.0, "the first byte")
    assert answer["ratio"]["median"] < 1
    with pytest.raises(UsageError, match="whole: ended with 3: "):
        replace(timed[0], status=0).seconds()


def test_the_table_and_the_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Everything real but the commands, which would take half a minute."""
    quick = Command("import torch", ("-c", "pass"))
    monkeypatch.setattr(starting, "commands", lambda: [quick])
    line = ["--repeats", "1", "--shapes", "embedded", "--scratch", str(tmp_path), "--device", "cpu"]
    assert starting.main(line) == 0
    shown = capsys.readouterr().out
    assert "| the same by embedded, to the first byte |" in shown
    assert "embedded: 6.77 MB in float16, read from the page cache; " in shown
    assert list(tmp_path.iterdir()) == []  # the files are gone
    assert starting.main(["--repeats", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["commands"]] == ["import torch"]
    assert found["commands"][0]["seconds"]["count"] == 2
    assert text_of(found).startswith("| command")


def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = {
        ("--repeats", "0"): "--repeats 0: it must be at least 1",
        ("--shapes", "huge"): "unknown shapes 'huge'; there are: dream-7b",
        ("--shapes", "embedded", "--scratch", str(tmp_path / "none")): "none",
    }
    for words, said in asked.items():
        assert starting.main(words) in (1, 2)
        complaint = capsys.readouterr().err
        assert complaint.count("\n") == 1
        assert complaint.startswith("apdcli.bench.starting: ")
        assert said in complaint


def test_the_commands_are_those_of_the_readme() -> None:
    """Each ends as it says: one that fails would be quick."""
    for command in starting.commands()[1:4]:
        assert command.seconds() > 0
