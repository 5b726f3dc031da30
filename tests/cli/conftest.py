"""Runs `apd` inside the test's process, with streams that can be any terminal or pipe."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from apdcli.cli.context import Context
from apdcli.cli.main import main
from apdcli.cli.signals import Signals

DATA = Path(__file__).parents[1] / "data" / "apd"


class Stream(io.TextIOWrapper):
    """A text stream over bytes that says whether it is a terminal."""

    def __init__(self, data: bytes = b"", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8", newline="")
        self._is_terminal = terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def bytes(self) -> bytes:
        self.flush()
        value = self.buffer.getvalue()  # type: ignore[attr-defined]
        assert isinstance(value, bytes)
        return value


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    status: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode("utf-8")

    @property
    def complaint(self) -> str:
        """The one line of an error: nothing else was printed, and no traceback."""
        assert self.raw == b"", self.raw
        assert self.err.endswith("\n"), self.err
        assert len(self.err.splitlines()) == 1, self.err
        assert self.err.startswith("apd: "), self.err
        assert "Traceback" not in self.err
        return self.err


@dataclass
class Apd:
    """`apd(...)` runs a command line."""

    environ: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self,
        *args: object,
        stdin: bytes | str | None = b"",
        terminal: bool = False,
        environ: Mapping[str, str] | None = None,
        signals: Signals | None = None,
    ) -> Ran:
        """Args:
        stdin: what is piped in; None is a terminal on which nobody types.
        terminal: standard output and error are terminals.
        environ: more variables.
        """
        data = stdin.encode() if isinstance(stdin, str) else stdin or b""
        out, err = Stream(terminal=terminal), Stream(terminal=terminal)
        context = Context(
            Stream(data, terminal=stdin is None),
            out,
            err,
            {**self.environ, **(environ or {})},
            signals or Signals(),
        )
        status = main([str(arg) for arg in args], context)
        return Ran(status, out.bytes(), err.bytes().decode())


@pytest.fixture
def apd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Apd:
    """The command in an empty folder, without the user's own profiles and variables."""
    monkeypatch.setenv("APD_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return Apd({"TERM": "xterm"})


MakeProfile = Callable[..., Path]


@pytest.fixture
def make_profile(tmp_path: Path) -> MakeProfile:
    """Write a profile on the reference pair: make_profile(more="[decode]\\n...", name=...)."""

    def make(
        more: str = "[decode]\nmax_tokens = 32\n",
        *,
        name: str = "weak",
        denoiser: Path = DATA / "denoiser",
        verifier: Path | None = DATA / "verifier",
    ) -> Path:
        text = f'description = "a weak pair"\n[denoiser]\nmodel = "{denoiser}"\n'
        if verifier is not None:
            text += f'[verifier]\nmodel = "{verifier}"\n'
        path = tmp_path / f"{name}.toml"
        path.write_text(text + more)
        return path

    return make


@pytest.fixture
def profile(make_profile: MakeProfile) -> Path:
    """A profile on the reference pair, 32 tokens at most."""
    return make_profile()
