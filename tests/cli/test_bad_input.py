"""What bad input gets: one line on stderr that says what, where and the mend; the right status."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import apdcli
from apdcli.cli.context import Context
from apdcli.cli.main import main, outcome
from apdcli.cli.signals import Signals, Terminated
from apdcli.errors import reason
from tests.cli.conftest import DATA, Apd, MakeProfile, Stream

PROMPT = "tell me a story"


@pytest.mark.parametrize(
    ("args", "pieces"),
    [
        (("generate", "--nonsense", PROMPT), ("--nonsense", "apd generate --help")),
        (("generate", "-W", "0", PROMPT), ("-W/--recompute-window 0", ">= 1", '"all"')),
        (("generate", "-W", "some", PROMPT), ("-W/--recompute-window some", '"all"')),
        (("generate", "-M", "0", PROMPT), ("-M/--max-lookahead 0", ">= 1")),
        (("generate", "-R", "1.01", PROMPT), ("-R/--mixture-weight 1.01", "from 0 to 1")),
        (("generate", "-R", "nan", PROMPT), ("-R/--mixture-weight nan", "from 0 to 1")),
        (("generate", "-K", "0", PROMPT), ("-K/--k 0", ">= 1")),
        (("generate", "-n", "0", PROMPT), ("-n/--max-tokens 0", ">= 1")),
        (("generate", "-n", "1.5", PROMPT), ("-n/--max-tokens 1.5", "integer >= 1")),
        (("generate", "-t", "-1", PROMPT), ("--temperature", "-1", "from 0 to 100")),
        (("generate", "--top-p", "0", PROMPT), ("--top-p 0", "above 0 and at most 1")),
        (("generate", "--top-k", "x", PROMPT), ("--top-k x", "integer >= 1")),
        (("generate", "--seed", "-1", PROMPT), ("--seed -1", "0 to 2^63 - 1")),
        (("generate", "--stop", "", PROMPT), ("apd: --stop: it must not be empty; see",)),
        (("generate", "--stop", "a", "--stop", "", PROMPT), ("apd: --stop: it must not be empty",)),
        (("generate", "--dtype", "", PROMPT), ("--dtype '': it must be one of auto",)),
        (("generate", "--strategy", "adp", PROMPT), ("--strategy adp", "apd", "left_to_right")),
        (("generate", "--device", "gpu", PROMPT), ("--device gpu", "cuda:N")),
        (("generate", "--dtype", "int8", PROMPT), ("--dtype int8", "bfloat16")),
        (("generate", "-O", "gama=1", PROMPT), ("gama", "did you mean gamma?")),
        (("generate", "-O", "R=0.2", PROMPT), ("'R'", "did you mean mixture_weight?")),
        (("generate", "-O", "temp=1", PROMPT), ("it is an option by itself: -t/--temperature",)),
        (("generate", "-O", "n=1", PROMPT), ("it is an option by itself: -n/--max-tokens",)),
        (("generate", "-S", "DICO", PROMPT), ("it must be one of apd", "did you mean dico?")),
        (("generate", "-S", "left-to-right", PROMPT), ("did you mean left_to_right?",)),
        (
            ("generate", "-R", "0.5", "-O", "mixture-weight=0.2", PROMPT),
            ("-R/--mixture-weight 0.5 and -O mixture_weight=0.2 are one setting: give one",),
        ),
        (
            ("generate", "-S", "left_to_right", "-M", "2", "-K", "4", PROMPT),
            ("-K/--k 4 (flag): it must be at most max_lookahead (2)",),
        ),
        (
            ("generate", "-S", "confidence", "-K", "2", "-O", "steps=4", PROMPT),
            ("-O steps 4 (flag): it must be left out where k is given (2)",),
        ),
        (
            ("fill", "-S", "confidence", "-K", "2", "-O", "steps=4", "a ___"),
            ("steps = 4: it must be left out where k is given (2)",),
        ),
        (("generate", "--raw", "-s", "Z", PROMPT), ("--raw and -s/--system exclude each",)),
        (("bench", "--raw", "-s", "Z", PROMPT), ("--raw and -s/--system exclude each",)),
        (("generate", "-O", "gamma", PROMPT), ("-O gamma", "NAME=VALUE")),
        (("generate", "-O", "gamma=-1", PROMPT), ("-O gamma -1", "from 0")),
        (("generate", "-q", "-v", PROMPT), ("-q", "-v", "exclude")),
        (("generate", "--export", "x.png", PROMPT), ("--export x.png", ".svg", ".html")),
        (("generate", "--export", ".svg", PROMPT), ("--export .svg", ".html")),
        (("generate", "-o", "", PROMPT), ("-o/--output is empty: it must name a file",)),
        (("--json", "generate", PROMPT), ("--json goes after the command: apd generate --json",)),
        (("--version", "generate", PROMPT), ("--version is asked for without a command",)),
        (("generate", "two", "words"), ("words", "quotes")),
        (("generate", "--out", PROMPT), ("no option --out; did you mean --output? See 'apd gen",)),
        (("--verison",), ("no option --verison; did you mean --version? See 'apd --help'\n",)),
        (("chat", "--foo"), ("no option --foo; see 'apd chat --help'",)),
        # one wording, though the parser comes to a letter and to a long option on two ways
        (("fill", "-R", "1", "a ___"), ("apd: no option -R; see 'apd fill --help'\n",)),
        (("fill", "--input", "x", "a ___"), ("apd: no option --input; see 'apd fill --help'\n",)),
        (("generate", "-r", "1"), ("no option -r; did you mean -R (--mixture-weight)? See 'apd",)),
        (("generate", "-xq", "1"), ("no option -x; see 'apd generate --help'",)),
        (("generate", "-i", "x"), ("no option -i; did you mean --input? See",)),
        (("profiles", "list", "-j"), ("no option -j; did you mean --json? See",)),
        (("fill", "-n", "8", "a ___"), ("no option -n: a gap takes as many tokens as --gap",)),
        (("bench", "--model", "x"), ("no option --model: a profile names", "'apd bench --help'")),
        (("generat", "x"), ("no command 'generat'; did you mean generate? See 'apd --help'\n",)),
        (("profiles", "rm", "x"), ("apd: no command 'rm'; see 'apd profiles --help'\n",)),
        (("generate", "-p"), ("-p", "argument", "apd generate --help")),
        (("generate", "--trace", "-", PROMPT), ("--trace", "file")),
        (("profiles", "shwo"), ("shwo", "show")),
        (("profiles", "new"), ("NAME", "apd profiles new --help")),
        (("profiles", "new", "../x"), ("../x", "letters")),
    ],
    ids=lambda value: " ".join(value[1:3]) if isinstance(value, tuple) else None,
)
def test_wrong_usage_is_status_2(apd: Apd, args: tuple[str, ...], pieces: tuple[str, ...]) -> None:
    ran = apd(*args)
    for piece in pieces:
        assert piece in ran.complaint
    assert ran.status == 2


@pytest.mark.parametrize(
    ("strategy", "flag", "pieces"),
    [
        ("left_to_right", ("-R", "0.5"), ("-R/--mixture-weight", "left_to_right", "-K/--k")),
        ("autoregressive", ("-K", "2"), ("-K/--k", "autoregressive", "none")),
        ("apd", ("-O", "gamma=1"), ("-O gamma", "apd", "-R/--mixture-weight")),
    ],
)
def test_a_parameter_of_another_strategy(
    apd: Apd, profile: Path, strategy: str, flag: tuple[str, ...], pieces: tuple[str, ...]
) -> None:
    ran = apd("generate", "-p", profile, "--strategy", strategy, *flag, PROMPT)
    for piece in pieces:
        assert piece in ran.complaint
    assert ran.status == 2


def test_values_that_do_not_go_together(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, PROMPT, "--strategy", "dico", "-n", "300")
    assert ran.status == 2
    assert "-O block_length 128 (default)" in ran.complaint
    assert "300" in ran.complaint


_BOTH = "[decode]\nstrategy = 'left_to_right'\nk = 4\nmax_lookahead = 2\n"


@pytest.mark.parametrize(
    "args",
    [
        ("generate", "hi"),
        ("chat",),
        ("eval", "--task", "sums", "--limit", 1),
        ("tune", "--limit", 1),
        ("bench", "--strategies", "left_to_right", "hi"),
        ("profiles", "check"),
    ],
)
def test_more_tokens_a_step_than_positions_drafted_are_refused_on_every_way_in(
    apd: Apd, make_profile: MakeProfile, args: tuple[str, ...]
) -> None:
    said = "it must be at most max_lookahead (2), the positions drafted"
    profile = make_profile(_BOTH)
    command, *rest = args
    place = [profile] if command == "profiles" else ["-p", profile]
    ran = apd(command, *rest, *place, stdin="hi")
    assert (ran.status, said in ran.complaint) == (2, True), ran.err
    plain = make_profile("")
    place = [plain] if command == "profiles" else ["-p", plain]
    both = {"APD_STRATEGY": "left_to_right", "APD_K": "4", "APD_M": "2"}
    ran = apd(command, *rest, *place, stdin="hi", environ=both)
    assert (ran.status, said in ran.complaint) == (2, True), ran.err
    if command in ("profiles", "bench"):
        return
    ran = apd(*args, "-p", plain, "-S", "left_to_right", "-K", 4, "-M", 2, stdin="hi")
    assert (ran.status, said in ran.complaint) == (2, True), ran.err


def test_no_prompt_and_nobody_pipes_shows_an_example(apd: Apd) -> None:
    ran = apd("generate", stdin=None)
    assert ran.status == 2
    assert 'apd generate "' in ran.complaint


@pytest.mark.parametrize("args", [("generate",), ("generate", ""), ("generate", " \n", "-n", "3")])
def test_an_empty_prompt(apd: Apd, profile: Path, args: tuple[str, ...]) -> None:
    ran = apd(*args, "-p", profile, stdin="\n")
    assert ran.status == 1
    assert "the prompt is empty" in ran.complaint


def test_standard_input_that_is_not_utf8(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, "what is this", stdin=b"caf\xe9 au lait")
    assert ran.status == 1
    assert "byte 3" in ran.complaint
    assert "UTF-8" in ran.complaint
    for command, name in (("generate", "PROMPT"), ("fill", "TEXT")):
        ran = apd(command, "-p", profile, "caf\udce9 ___")
        assert ran.status == 1
        assert f"{name} is not UTF-8 text (character 3); pipe it" in ran.complaint


PROFILES = {
    "syntax": ("[decode]\nmax_tokens == 3\n", ("line 7", "column", "TOML")),
    "key": ("[decode]\nmax_token = 3\n", ("decode.max_token", "max_tokens")),
    "table": ("[decoder]\n", ("decoder", "decode")),
    "type": ('[decode]\nmax_tokens = "3"\n', ("decode.max_tokens", "'3'", "integer")),
    "range": ("[decode]\nrecompute_window = 0\n", ("decode.recompute_window", "0", ">= 1")),
    "strategy": ('[decode]\nstrategy = "x"\n', ("decode.strategy", "'x'", "apd")),
}


@pytest.mark.parametrize("case", PROFILES)
def test_a_profile_with_a_mistake(apd: Apd, make_profile: MakeProfile, case: str) -> None:
    more, pieces = PROFILES[case]
    path = make_profile(more)
    ran = apd("generate", "-p", path, PROMPT)
    for piece in (str(path), *pieces):
        assert piece in ran.complaint
    assert ran.status == 1


def test_an_unknown_profile_names_the_nearest(apd: Apd) -> None:
    ran = apd("generate", "-p", "deno", PROMPT)
    assert "did you mean demo" in ran.complaint
    assert ran.status == 1
    assert "gone.toml" in apd("generate", "-p", "gone.toml", PROMPT).complaint


def test_a_wrong_environment_variable_is_named(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, PROMPT, environ={"APD_TEMPERATURE": "hot"})
    assert "APD_TEMPERATURE" in ran.complaint
    assert ran.status == 2


def _truncated(folder: Path) -> tuple[str, ...]:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return (str(file), "truncated")


def _corrupt(folder: Path) -> tuple[str, ...]:
    file = folder / "model.safetensors"
    file.write_bytes(b"\xff" * 4096)
    return (str(file), "damaged")


def _missing_shard(folder: Path) -> tuple[str, ...]:
    (folder / "model.safetensors").unlink()
    table = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
    return (str(folder), "model-00002-of-00002.safetensors", "missing")


def _half_copied(folder: Path) -> tuple[str, ...]:
    (folder / "config.json").unlink()
    return (str(folder), "config.json")


def _no_weights(folder: Path) -> tuple[str, ...]:
    (folder / "model.safetensors").unlink()
    return (str(folder), "model.safetensors")


def _unknown_family(folder: Path) -> tuple[str, ...]:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "mystery"}))
    return (str(file), "mystery")


def _missing(folder: Path) -> tuple[str, ...]:
    shutil.rmtree(folder)
    return (str(folder), "not found")


DAMAGE = (
    *(_truncated, _corrupt, _missing_shard, _half_copied, _no_weights, _unknown_family, _missing),
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("command", [("generate", PROMPT, "-p"), ("profiles", "check")])
def test_a_damaged_model_folder(
    apd: Apd,
    make_profile: MakeProfile,
    tmp_path: Path,
    damage: Callable[[Path], tuple[str, ...]],
    command: tuple[str, ...],
) -> None:
    folder = tmp_path / "denoiser"
    shutil.copytree(DATA / "denoiser", folder)
    pieces = damage(folder)
    ran = apd(*command, make_profile(denoiser=folder))
    for piece in pieces:
        assert piece in ran.complaint
    assert ran.status == 1


DENOISER, VERIFIER = DATA / "denoiser", DATA / "verifier"


@pytest.mark.parametrize(
    ("pair", "where", "what"),
    [
        ((VERIFIER, VERIFIER), VERIFIER, "cannot denoise: qwen2 is a causal model, without a mask"),
        ((VERIFIER, DENOISER), VERIFIER, "cannot denoise: qwen2 is a causal model, without a mask"),
        ((DENOISER, DENOISER), DENOISER, "cannot verify: Dream is a diffusion model, not a causal"),
    ],
)
def test_a_model_in_the_wrong_place_is_the_same_line_on_every_way_in(
    apd: Apd, make_profile: MakeProfile, pair: tuple[Path, Path], where: Path, what: str
) -> None:
    profile = make_profile(denoiser=pair[0], verifier=pair[1])
    lines = []
    for command in (
        ("profiles", "check"),
        ("generate", PROMPT, "-p"),
        ("chat", "-p"),
        ("bench", "-n", "2", "--limit", "1", "-p"),
        ("bench", "--floor-only", "--rates", "1,1", "-p"),
    ):
        ran = apd(*command, profile)
        assert ran.status == 1
        lines.append(ran.complaint)
    with pytest.raises(apdcli.ModelError) as refused:
        apdcli.load_pair(profile)
    lines.append(f"apd: {refused.value}\n")
    if what.startswith("cannot denoise"):
        with pytest.raises(apdcli.ModelError) as refused:
            apdcli.load_denoiser(pair[0])
        lines.append(f"apd: {refused.value}\n")
    assert lines[0].startswith(f"apd: {where} {what}")
    assert set(lines) == {lines[0]}


def test_tokenizers_that_differ(apd: Apd, make_profile: MakeProfile, tmp_path: Path) -> None:
    folder = tmp_path / "verifier"
    shutil.copytree(DATA / "verifier", folder)
    file = folder / "tokenizer.json"
    table = json.loads(file.read_text())
    vocab = table["model"]["vocab"]
    first, second = (next(t for t, i in vocab.items() if i == n) for n in (450, 451))
    vocab[first], vocab[second] = 451, 450
    file.write_text(json.dumps(table))
    for command in (("generate", PROMPT, "-p"), ("profiles", "check")):
        ran = apd(*command, make_profile(verifier=folder))
        assert ran.status == 1
        assert "450" in ran.complaint
        assert str(folder) in ran.complaint


def test_no_room_in_the_context_gives_both_numbers(apd: Apd, profile: Path) -> None:
    ran = apd("generate", "-p", profile, stdin="word " * 3000)
    assert ran.status == 1
    numbers = [int(word) for word in ran.complaint.replace(":", " ").split() if word.isdigit()]
    assert 1024 in numbers
    assert max(numbers) > 1024


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_device_that_is_not_there(apd: Apd, profile: Path, device: str) -> None:
    import torch

    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("this machine has one")
    ran = apd("generate", "-p", profile, PROMPT, "--device", device)
    assert ran.status == 1
    assert device in ran.complaint


def test_a_strategy_without_its_verifier(apd: Apd, make_profile: MakeProfile) -> None:
    path = make_profile(verifier=None)
    for args in (("generate", "-p", path, PROMPT), ("profiles", "check", path)):
        ran = apd(*args)
        assert ran.status == 2
        assert "verifier" in ran.complaint
    assert apd("generate", "-p", path, PROMPT, "--strategy", "left_to_right").status == 0


@pytest.mark.parametrize("flag", ["-o", "--trace", "--export"])
@pytest.mark.parametrize("where", ["gone/x.svg", "folder.svg"])
def test_an_unwritable_file_is_found_before_anything_is_read(
    apd: Apd, make_profile: MakeProfile, tmp_path: Path, flag: str, where: str
) -> None:
    (tmp_path / "folder.svg").mkdir()
    # the model is missing, too: the file is complained of first
    ran = apd("generate", "-p", make_profile(denoiser=Path("gone")), PROMPT, flag, where)
    assert ran.status == 1
    assert f"cannot write {where}" in ran.complaint


@pytest.mark.parametrize(
    ("one", "other"), [("-o", "--export"), ("-o", "--trace"), ("--trace", "--export")]
)
def test_two_outputs_are_two_files(
    apd: Apd, make_profile: MakeProfile, tmp_path: Path, one: str, other: str
) -> None:
    path = make_profile(denoiser=Path("gone"))  # missing: the names are complained of first
    ran = apd("generate", "-p", path, PROMPT, one, "x.svg", other, tmp_path / "x.svg")
    assert ran.status == 2
    assert "are one file" in ran.complaint
    assert not (tmp_path / "x.svg").exists()


def test_a_full_disk_under_the_trace_costs_no_answer(apd: Apd, profile: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    ran = apd("generate", "-p", profile, PROMPT, "--trace", "/dev/full")
    assert ran.raw == apd("generate", "-p", profile, PROMPT).raw
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 1
    assert "/dev/full" in ran.err


def test_debug_shows_the_traceback_and_only_then(apd: Apd) -> None:
    args = ("generate", "-p", "gone.toml", PROMPT)
    assert "Traceback" not in apd(*args).err
    ran = apd("--debug", *args)
    assert ran.status == 1
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1] + "\n" == apd(*args).err


def test_names_in_messages_cannot_drive_the_terminal(apd: Apd) -> None:
    ran = apd("generate", "-p", "\x1b[2J\nx", PROMPT)
    assert "\x1b" not in ran.complaint


def test_closed_streams(profile: Path) -> None:
    err = Stream()
    context = Context(None, None, err, {})
    assert main(["generate", "-p", str(profile), PROMPT], context) == 1
    assert "standard output is closed" in err.bytes().decode()
    assert main(["generate", "-W", "0", PROMPT], Context(None, None, None, {})) == 2
    assert main(["generate"], Context(None, Stream(), None, {})) == 2


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, ""),
        (Terminated(15), 143, ""),
        (BrokenPipeError(), 141, ""),
        (OSError(28, "No space left on device"), 1, "standard output: no space left on device"),
        (OSError(13, "Permission denied", "x.txt"), 1, "x.txt: permission denied"),
        (OSError(20, "Not a directory", "x.txt"), 1, "x.txt: not a folder"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "out of memory; try a "),
        (ZeroDivisionError("a\nb"), 1, "ZeroDivisionError: a b (this should not happen"),
    ],
)
def test_the_map_from_failures_to_statuses(error: BaseException, status: int, line: str) -> None:
    found = outcome(error)
    assert found[0] == status
    assert found[1].startswith(line)
    assert "\n" not in found[1]


def test_an_import_cut_short_by_ctrl_c_is_an_interrupt() -> None:
    assert outcome(ImportError("half"), interrupted=True) == (130, "")


def test_signals_that_were_ignored_stay_ignored() -> None:
    import signal

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("generate", "--input", "."), "cannot read .: is a folder"),
        (("generate", PROMPT, "-o", "."), "is a folder"),
        (("generate", PROMPT, "-o", "gone/a.txt"), "no such file or folder"),
        (("generate", PROMPT, "--trace", "gone/t.jsonl"), "no such file or folder"),
        (("generate", PROMPT, "-p", "."), "is a folder"),
        (("replay", "."), "cannot read .: is a folder"),
        (("eval", "--task", "gone/task.jsonl"), "no such file or folder"),
    ],
    ids=str,
)
def test_a_folder_has_one_name(apd: Apd, args: tuple[str, ...], says: str) -> None:
    complaint = apd(*args).complaint
    assert says in complaint
    assert "director" not in complaint


def test_reasons_are_in_small_letters_and_on_one_line() -> None:
    assert reason(OSError(39, "Directory not empty")) == "folder not empty"
    assert reason(OSError("odd\n  Thing")) == "odd Thing"
    assert reason(OSError(13, "Permission denied", "Directory.txt")) == "permission denied"
