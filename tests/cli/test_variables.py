"""APD_* variables that nothing reads are named, to whoever looks; APD_R, APD_W, APD_M are read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import apdcli
from apdcli.load.settings import known_variables
from tests.cli.conftest import Apd

PROMPT = "hello"
COMMANDS = [("generate", PROMPT, "-n", "1"), ("profiles", "show"), ("profiles", "list")]


@pytest.mark.parametrize("args", COMMANDS, ids=" ".join)
def test_a_terminal_is_told_and_a_pipe_is_not(apd: Apd, args: tuple[str, ...]) -> None:
    slip = {"APD_MAXTOKENS": "5"}
    note = "APD_MAXTOKENS is not read; did you mean APD_MAX_TOKENS?"
    told = apd(*args, environ=slip, terminal=True)
    assert told.err.count(note) == 1
    assert f"\x1b[90m{note}\x1b[0m\n" in told.err  # dim
    assert apd(*args, environ=slip).err == ""
    assert note not in apd(*args, terminal=True).err


def test_verbose_tells_a_pipe_too_and_quiet_tells_nobody(apd: Apd) -> None:
    slip = {"APD_MAXTOKENS": "5"}
    args = ("generate", PROMPT, "-n", 1)
    told = apd(*args, "-v", environ=slip).err.splitlines()
    assert told.count("APD_MAXTOKENS is not read; did you mean APD_MAX_TOKENS?") == 1
    assert apd(*args, "-q", environ=slip, terminal=True).err == ""


def test_a_profile_that_is_not_there_is_named_with_its_variable(apd: Apd) -> None:
    for command in (("generate", PROMPT), ("profiles", "show"), ("profiles", "check")):
        ran = apd(*command, environ={"APD_PROFILE": "nope"})
        assert ran.status == 2
        assert "environment variable APD_PROFILE: no profile is called 'nope'" in ran.complaint
    assert apd("generate", "-p", "nope", PROMPT).status == 1


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("APD_MARKER", "APD_MARKER is not read: it is given as --marker"),
        ("APD_GAP", "APD_GAP is not read: it is given as --gap"),
        ("APD_CONFIGDIR", "APD_CONFIGDIR is not read; did you mean APD_CONFIG_DIR?"),
        ("APD_TEMP", "APD_TEMP is not read; did you mean APD_TEMPERATURE or APD_ALG_TEMP?"),
        ("APD_Q", "APD_Q is not read\n"),
    ],
)
def test_what_may_have_been_meant(apd: Apd, name: str, says: str) -> None:
    ran = apd("profiles", "list", environ={name: "x"}, terminal=True)
    assert says in ran.err.replace("\x1b[90m", "").replace("\x1b[0m", "")


def test_what_another_command_reads_is_no_slip(apd: Apd) -> None:
    every = dict.fromkeys(known_variables(), "")
    every |= {"APD_GAMMA": "1", "APD_CACHE_DIR": "/x", "APD_DATA_DIR": "/x", "APDX": "1"}
    every |= {"APD_FOO": ""}  # empty is not set
    ran = apd("generate", PROMPT, "-n", 1, environ=every, terminal=True)
    assert (ran.status, "is not read" in ran.err) == (0, False)


def test_every_variable_that_the_code_names_is_known() -> None:
    """Nobody may add one that is called a slip."""
    sources = Path(apdcli.__file__).parent.rglob("*.py")
    named = {name for path in sources for name in re.findall(r"\bAPD_[A-Z_]+\b", path.read_text())}
    assert len(named) > 5
    assert named <= set(known_variables())


@pytest.mark.parametrize(
    ("letter", "name", "text", "value"),
    [
        ("R", "mixture_weight", "0.3", 0.3),
        ("W", "recompute_window", "all", "all"),
        ("M", "max_lookahead", "7", 7),
    ],
)
def test_the_letters_of_the_three_knobs(
    apd: Apd, letter: str, name: str, text: str, value: object
) -> None:
    def setting(**environ: str) -> object:
        return json.loads(apd("profiles", "show", "--json", environ=environ).out)["settings"][name]

    short, long = f"APD_{letter}", f"APD_{name.upper()}"
    assert setting(**{short: text}) == {"value": value, "from": "environment"}
    assert setting(**{short: text, long: text}) == {"value": value, "from": "environment"}
    ran = apd("profiles", "show", environ={short: text, long: "1"})
    assert ran.status == 2
    assert f"{short}={text} and {long}=1 are one setting" in ran.complaint
    ran = apd("profiles", "show", environ={short: "-1"})
    assert ran.status == 2
    assert f"environment variable {short}: {name} = -1" in ran.complaint
