"""Someone at the chat's terminal, who types from a list; and what was shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import apdcli
from apdcli.chat.screen import Screen
from apdcli.chat.sessions import Session, Store
from apdcli.chat.talk import Talk
from apdcli.cli.chat_knobs import Knobs
from apdcli.cli.chat_loop import Loop
from apdcli.cli.context import Context
from apdcli.cli.signals import Signals
from apdcli.engine.pair import LoadedPair
from tests.cli.conftest import DATA, Stream

TALK = ("My name is Mia.", "I have 25 coins.", "What is my name?")


class Typed:
    """A reader of what is in a list: texts to type, exceptions to press."""

    hears_interrupt = False

    def __init__(self, *texts: str | type[BaseException]) -> None:
        self.texts = list(texts)
        self.defaults: list[str] = []

    def read(self, default: str = "") -> str:
        self.defaults.append(default)
        if not self.texts:
            raise EOFError
        text = self.texts.pop(0)
        if isinstance(text, str):
            return text
        raise text

    def interrupt(self) -> None:
        """A signal raises by itself."""


@dataclass
class Seat:
    """Someone at the terminal: `seat("hi", "/undo")` types and gives back what was shown."""

    loop: Loop
    out: Stream
    reader: Typed

    def __call__(self, *texts: str | type[BaseException]) -> str:
        self.out.seek(0)
        self.out.truncate()
        self.reader = self.loop.reader = Typed(*texts)
        assert self.loop.run() == 0
        return self.out.bytes().decode().replace("\r", "")

    @property
    def said(self) -> list[str]:
        return [turn.message for turn in self.loop.talk.turns]

    @property
    def store(self) -> Store:
        assert self.loop.talk.store is not None
        return self.loop.talk.store

    def on_disk(self) -> list[str]:
        return [t.message for t in Store(self.store.folder).load(self.name).turns]

    @property
    def name(self) -> str:
        return self.loop.talk.session.name


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> LoadedPair:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("profile") / "weak.toml"
    path.write_text(
        "".join(
            f'[{role}]\nmodel = "{(DATA / role).as_posix()}"\n' for role in ("denoiser", "verifier")
        )
        + "[decode]\nmax_tokens = 24\n"
    )
    return apdcli.load_pair(str(path), device="cpu", dtype="float32")


@pytest.fixture
def seat(pair: LoadedPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Seat]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APD_CONFIG_DIR", str(tmp_path / "config"))
    out = Stream(terminal=True)
    environ = {"TERM": "dumb", "EDITOR": f"{sys.executable} {tmp_path / 'editor.py'}"}
    context = Context(None, out, Stream(terminal=True), environ, Signals())
    store = Store(tmp_path / "data" / "sessions")
    talk = Talk(pair, Session(store.fresh_name(), str(pair.profile.path)), store)
    knobs = Knobs(pair.profile, {}, {})
    screen = Screen(out, lambda: (80, 24), environ)
    with context.signals:
        yield Seat(Loop(talk, knobs, context, screen=screen, reader=Typed()), out, Typed())
