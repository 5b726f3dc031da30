"""`--quantize` as a user meets it: answers, what is told of the weights, and refusals."""

from __future__ import annotations

import json
from importlib import metadata

import pytest

import apdcli
from tests.cli.conftest import Apd

PROMPT = "What is 3 + 4?"


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="the extra 'quantize' is not installed")


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("bits", ["int8", "int4"])
def test_an_answer(apd: Apd, bits: str) -> None:
    pair = apdcli.load_pair("demo", device="cpu", quantize=bits)
    expected = apdcli.generate(pair, PROMPT, max_tokens=16)
    ran = apd("generate", PROMPT, "--quantize", bits, "-n", 16, "--device", "cpu", "--json")
    assert (ran.status, ran.err) == (0, "")
    made = json.loads(ran.out)
    assert made["text"] == expected.text
    assert made["token_ids"] == list(expected.token_ids)
    for model in ("denoiser", "verifier"):
        assert made["settings"][f"{model}_quantize"] == {"value": bits, "from": "flag"}
    assert made["versions"]["torchao"] == metadata.version("torchao")
    plain = json.loads(apd("generate", PROMPT, "-n", 4, "--json").out)
    assert plain["settings"]["denoiser_quantize"] == {"value": "none", "from": "default"}
    assert "torchao" not in plain["versions"]


@pytest.mark.usefixtures("torchao")
def test_lines_of_a_file_at_once(apd: Apd) -> None:
    lines = f"{PROMPT}\nWhat is 5 + 1?\n"
    at_once, one = (
        apd("generate", "--input", "-", "--quantize", "int8", "--batch-size", size, stdin=lines)
        for size in (2, 1)
    )
    texts = [[json.loads(line)["text"] for line in ran.out.splitlines()] for ran in (at_once, one)]
    assert len(texts[0]) == 2
    assert texts[0] == texts[1]


@pytest.mark.usefixtures("torchao")
def test_what_the_weights_weigh(apd: Apd) -> None:
    plain, eighth = (
        json.loads(apd("profiles", "check", "demo", "--json", environ=environ).out)["models"]
        for environ in ({}, {"APD_QUANTIZE": "int8"})
    )
    assert [model["quantize"] for model in plain + eighth] == ["none"] * 2 + ["int8"] * 2
    for before, after in zip(plain, eighth, strict=True):
        assert after["bytes_loaded"] < before["bytes_loaded"] / 2
    told = apd("generate", PROMPT, "-n", 2, "--quantize", "int8", "--device", "cpu", "-v").err
    assert f"int8 and float32 on cpu, {eighth[0]['bytes_loaded'] / 1e6:.1f} MB" in told


@pytest.mark.usefixtures("torchao")
def test_a_benchmark_compares_formats(apd: Apd) -> None:
    ran = apd(
        *("bench", PROMPT, "--strategies", "apd", "-S", "q=apd:quantize=int4"),
        *("--repeats", 1, "--rates", "30e9,120e9", "-n", 4, "--device", "cpu", "--json"),
    )
    assert ran.status == 0, ran.err
    one, two = json.loads(ran.out)["settings"]
    assert two["setting"] == "q=apd:quantize=int4"
    assert two["values"]["verifier_quantize"]["value"] == "int4"
    assert two["weights_bytes"] < one["weights_bytes"] / 3
    assert two["summary"]["floor"]["bytes"] < one["summary"]["floor"]["bytes"]


def test_shapes_need_no_torchao(apd: Apd, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("apdcli.load.quantize.metadata.version", missing)
    ran = apd(
        *("bench", "--shapes", "tiny", "--strategies", "apd", "--quantize", "int4", "--json"),
        *("--repeats", 1, "--rates", "30e9,120e9", "-n", 4, "--device", "cpu"),
    )
    assert ran.status == 0, ran.err
    made = json.loads(ran.out)
    assert [model["quantize"] for model in made["models"].values()] == ["int4", "int4"]
    ran = apd("generate", PROMPT, "--quantize", "int8")
    assert ran.status == 1
    assert "pip install 'apdcli[quantize]'" in ran.complaint


def test_wrong_values(apd: Apd) -> None:
    ran = apd("generate", PROMPT, "--quantize", "8")
    assert ran.status == 2
    assert "--quantize 8: it must be one of none, int8, int4" in ran.complaint
    ran = apd("generate", PROMPT, environ={"APD_QUANTIZE": "fp8"})
    assert ran.status == 2
    assert "APD_QUANTIZE" in ran.complaint
    ran = apd("bench", PROMPT, "-S", "apd:quantize=2")
    assert ran.status == 2
    assert "one of none, int8, int4" in ran.complaint
