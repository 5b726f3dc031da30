"""The pair that the package ships: its folders, and what a newcomer sees first."""

from __future__ import annotations

import json
from typing import Any

import pytest

import apdcli
from apdcli.demo.corpus import check, probes
from apdcli.demo.corpus.help import REPLIES
from apdcli.demo.evaluate import chosen_families
from apdcli.demo.train import PAIR


@pytest.fixture(scope="module")
def pair() -> Any:
    return apdcli.load_pair("demo", device="cpu", dtype="float32")


def test_folders_are_ordinary_hub_folders_of_at_most_40_megabytes() -> None:
    files = [f for f in PAIR.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 40e6
    for part, family in (("denoiser", "Dream"), ("verifier", "qwen2")):
        folder = PAIR / part
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        assert config["model_type"] == family
        assert config["use_cache"] is generation["use_cache"] is True
        assert config["max_position_embeddings"] >= 1024
        assert (folder / "model.safetensors").exists()
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            same = (folder / name).read_bytes()
            assert same == (PAIR / "denoiser" / name).read_bytes()


def test_the_verifier_is_at_least_five_times_smaller(pair: Any) -> None:
    sizes = [net.config.num_parameters for net in (pair.denoiser, pair.verifier)]
    assert sizes[0] >= 5 * sizes[1]


def test_tokenizer_is_small(pair: Any) -> None:
    assert len(pair.allowed_ids) <= 2048


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("hi", REPLIES["hello"]),
        ("Hello!", REPLIES["hello"]),
        ("What can you do?", REPLIES["what"]),
        ("Who are you?", REPLIES["who"]),
        ("What is seven plus five?", "7 + 5 = 12. The answer is 12."),
        ("Sort this list: pear, apple, dog.", "The sorted list is apple, dog, pear."),
        ("Sort the list 5, 2, 9, 1", "The sorted list is 1, 2, 5, 9."),
        ("12+9", "12 + 9 = 21. The answer is 21."),
        ("count from 1 to 10", "1, 2, 3, 4, 5, 6, 7, 8, 9, 10."),
        ("Write a poem about the sea.", REPLIES["unknown"]),
        ("What is the capital of France?", REPLIES["unknown"]),
        ("Explain quantum physics.", REPLIES["unknown"]),
    ],
)
def test_what_a_newcomer_types_first(pair: Any, prompt: str, answer: str) -> None:
    assert apdcli.generate(pair, prompt, max_tokens=96).text == answer


def test_a_newcomers_function_and_story(pair: Any) -> None:
    code = apdcli.generate(pair, "Write a Python function that adds two numbers.").text
    assert code.startswith("def add(a, b):")
    assert "return a + b" in code
    story = apdcli.generate(pair, "Tell me a story about a fox.").text
    assert story.startswith("Once there was a fox named ")


def test_two_answers_of_each_family_of_the_test_split_are_mostly_right(pair: Any) -> None:
    world = chosen_families(None)
    examples = [e for e in probes(0, "test", 2) if e.family in world]
    given = [
        apdcli.generate(pair, list(e.messages), max_tokens=96, mixture_weight=0.5).text
        for e in examples
    ]
    right = sum(check(e, text) for e, text in zip(examples, given, strict=True))
    assert right >= 0.65 * len(examples)
