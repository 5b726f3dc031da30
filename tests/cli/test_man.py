"""The manual page and `apd --version`."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import apdcli
from apdcli.chat.commands import help_lines
from apdcli.cli.man import _roff
from apdcli.cli.options import FLAGS
from apdcli.decode.params import STRATEGIES
from tests.cli.conftest import Apd

PAGE = Path(apdcli.__file__).parent / "cli" / "apd.1"


def test_the_page_that_is_shipped_is_what_the_help_says(apd: Apd) -> None:
    fresh = apd("man").out
    assert PAGE.read_text() == fresh, "make it anew: apd man > apdcli/cli/apd.1"
    for flag in FLAGS:
        for spelling in flag.flags:
            assert "\\fB" + spelling.replace("-", "\\-") + "\\fR" in fresh
    for name, text in help_lines():  # what /help says in a chat
        assert f"\\fB{_roff(name)}" in fresh
        assert _roff(text) in fresh
    for name in STRATEGIES:
        assert f"\\fB{name}\\fR" in fresh


def test_the_wheel_installs_it() -> None:
    text = (Path(apdcli.__file__).parents[1] / "pyproject.toml").read_text()
    assert '"apdcli/cli/apd.1" = "share/man/man1/apd.1"' in text


def test_groff_has_no_complaint_and_loses_nothing() -> None:
    if shutil.which("groff") is None:
        pytest.skip("needs groff")
    command = ["groff", "-man", "-Tascii", "-P-cbou", "-ww", str(PAGE)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = " ".join(done.stdout.split())
    for piece in (
        "-R, --mixture-weight R",
        "(APD_TEMPERATURE=0.7)",
        '{"error": ...}',
        "'apd profiles list'",
        "~/.config/apd/profiles/*.toml",
        'apd generate "Write a haiku about the sea"',
        "apd profiles check [NAME]",
        "/retry, /regenerate",
        "~/.local/share/apd/sessions/*.json",
        "~/.local/share/apd/tune.db",
    ):
        assert piece in shown


def test_versions_of_what_matters(apd: Apd) -> None:
    assert apd("--version").out == f"apd {apdcli.__version__}\n"
    found = json.loads(apd("--version", "--json").out)
    assert found["apdcli"] == apdcli.__version__
    assert found["python"] == platform.python_version()
    for name in ("torch", "transformers", "tokenizers", "safetensors"):
        assert found[name] == metadata.version(name)
    assert found["platform"] == platform.platform()
    import torch

    assert found["cuda"] == torch.version.cuda
    assert apd("--json").status == 2


def test_neither_loads_torch() -> None:
    code = (
        "import sys\nfrom apdcli.cli.main import main\n"
        "assert main(['--version', '--json']) == main(['man']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
