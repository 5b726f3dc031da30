"""SIGKILL at any moment: what was said up to the last finished turn is on the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import apdcli
from tests.conftest import DATA

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

KILLS = 50
# The models are loaded once; each trial is a process of its own that really decodes and saves.
SCRIPT = """
import contextlib, json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import apdcli
from apdcli.chat.sessions import Session, Store
from apdcli.chat.talk import Talk
from apdcli.cli.chat_answer import Tracing, answer
from apdcli.cli.signals import Signals
from apdcli.load.settings import resolve_settings

profile, folder, kills, longest = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), 5
pair = apdcli.load_pair(profile, device="cpu", dtype="float32")
settings = resolve_settings(pair.profile, {}, {})

@contextlib.contextmanager
def view(state):
    yield state.apply

def talk_on(name, tell):
    talk = Talk(pair, Session(name), Store(folder))
    for turn in range(longest):
        request = talk.prepare(f"I have {turn} coins.", settings)
        done = answer(talk, request, settings, open_view=view, signals=Signals(), tracing=Tracing())
        assert done.kept and done.unsaved is None and done.renamed is None
        tell()

talk_on("warm", lambda: None)
began = time.perf_counter()
talk_on("whole", lambda: None)
whole = time.perf_counter() - began
moments = random.Random(7)
print(json.dumps({"whole": whole}))
for kill in range(kills):
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            talk_on(f"k{kill}", lambda: os.write(send, b"."))
        os._exit(0)
    os.close(send)
    told = b""
    while len(told) < kill % longest:  # however slow a busy machine makes it
        told += os.read(receive, 1)
    time.sleep(moments.uniform(0, whole / longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while piece := os.read(receive, 100):
        told += piece
    os.close(receive)
    print(json.dumps({"name": f"k{kill}", "told": len(told)}))
"""


def test_killed_fifty_times_at_random_moments(tmp_path: Path) -> None:
    from apdcli.chat.sessions import Store

    profile = tmp_path / "reference.toml"
    profile.write_text(
        "".join(
            f'[{role}]\nmodel = "{(DATA / "apd" / role).as_posix()}"\n'
            for role in ("denoiser", "verifier")
        )
        + "[decode]\nmax_tokens = 8\nmax_lookahead = 8\n"
    )
    folder = tmp_path / "sessions"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(profile), str(folder), str(KILLS)],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(apdcli.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    _, *trials = map(json.loads, done.stdout.splitlines())
    store = Store(folder)
    whole = [(turn.message, turn.answer) for turn in store.load("whole").turns]
    assert len(whole) == 5
    seen = []
    for trial in trials:
        turns = []
        if store.path(trial["name"]).exists():
            turns = [(t.message, t.answer) for t in store.load(trial["name"]).turns]
        assert turns == whole[: len(turns)], trial
        # one more turn than was told of may be on the disk, never one less
        assert trial["told"] <= len(turns) <= trial["told"] + 1, trial
        seen.append(len(turns))
    assert len(trials) == KILLS
    assert len(set(seen)) >= 3, f"the kills all fell on the same moment: {seen}"
