"""Law 1: imports point down only, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import apdcli

PACKAGE = Path(apdcli.__file__).parent
# Bottom to top. models is a sibling of decode; the package's own __init__ and __main__ are on top.
ORDER = [
    *("words", "errors", "decode", "models", "load", "engine", "demo"),
    *("tasks", "tune", "bench", "render", "chat", "cli"),
]
FORBIDDEN = {("models", "decode"), ("decode", "models"), ("render", "engine"), ("render", "models")}
OUTSIDERS = {"decode": {"torch"}, "models": {"torch"}}


def imports(path: Path) -> set[str]:
    """Every module that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "apdcli" and len(parts) > 1 and parts[1] in ORDER else None


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem in ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for module in imports(path):
        other = layer(module)
        if other is not None and other != own:
            assert ORDER.index(other) < ORDER.index(own), f"{path} imports {module}"
            assert (own, other) not in FORBIDDEN, f"{path} imports {module}"
        root = module.split(".")[0]
        if own in OUTSIDERS and root not in sys.stdlib_module_names and root != "apdcli":
            assert root in OUTSIDERS[own], f"{path} imports {module}"


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import apdcli", {"torch", "typer", "rich", "transformers", "pydantic"}),
        ("import apdcli.decode.params, apdcli.load.settings", {"torch", "transformers"}),
        (
            "import apdcli.decode.loop, apdcli.decode.strategies",
            {"typer", "rich", "safetensors", "transformers"},
        ),
        ("import apdcli.cli.main", {"torch", "transformers"}),
        ("import apdcli.engine.session", {"transformers", "typer", "rich"}),
    ],
)
def test_nothing_heavy_before_it_is_needed(code: str, absent: set[str]) -> None:
    report = "import sys; print(*[m for m in sys.modules if '.' not in m])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    assert not absent & set(done.stdout.split())


def test_the_public_names_are_all_there() -> None:
    for name in apdcli.__all__:
        assert getattr(apdcli, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = apdcli.no_such_name
