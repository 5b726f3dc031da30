"""Runs a small Python function that a model wrote, without trusting it.

Two walls: a whitelist over the syntax tree, then a separate interpreter (`python -I -S`) with
limits on CPU time, memory, files and processes, and a wall-clock timeout.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from typing import Any

_NODES: tuple[type[ast.AST], ...] = (
    ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Return, ast.Expr, ast.Constant,
    ast.Name, ast.Load, ast.Store, ast.Assign, ast.AugAssign, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.If, ast.IfExp, ast.For, ast.Call, ast.Subscript, ast.Slice, ast.List,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_CALLS = frozenset(
    {"len", "sum", "max", "min", "sorted", "list", "reversed", "range", "abs", "str"}
)
MAX_CODE_CHARS = 2000

_DRIVER = """
import json, sys
job = json.load(sys.stdin)
space = {}
exec(job["code"], space)
function = space[job["name"]]
print(json.dumps([function(*args) for args in job["cases"]]))
"""


class Refused(ValueError):
    """The code holds something that the whitelist does not know."""


def vet(code: str, name: str) -> None:
    """Raise `Refused` unless `code` is one function `name` in the small whitelisted language."""
    if len(code) > MAX_CODE_CHARS:
        raise Refused(f"code of {len(code)} characters (at most {MAX_CODE_CHARS})")
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise Refused(f"not Python: {error}") from error
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
        raise Refused("expected exactly one function")
    if tree.body[0].name != name or tree.body[0].decorator_list:
        raise Refused(f"expected a plain function named {name}")
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or isinstance(node, ast.Pow | ast.LShift):
            raise Refused(f"{type(node).__name__} is not allowed")
        if isinstance(node, ast.Call) and not (
            isinstance(node.func, ast.Name) and node.func.id in _CALLS
        ):
            raise Refused("only a few built-in calls are allowed")
        if isinstance(node, ast.Name) and node.id.startswith("__"):
            raise Refused(f"the name {node.id} is not allowed")


def _limits() -> None:
    """Runs in the child before the interpreter starts: CPU seconds, bytes, files, processes."""
    import resource

    for limit, value in (
        (resource.RLIMIT_CPU, 2),
        (resource.RLIMIT_AS, 256 * 2**20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))


def run(code: str, name: str, cases: list[list[Any]], timeout_s: float = 5.0) -> list[Any] | None:
    """What the function `name` returns for each list of arguments, or None if it fails.

    Raises `Refused` when the code may not run at all.
    """
    vet(code, name)
    job = json.dumps({"code": code, "name": name, "cases": cases})
    command = [sys.executable, "-I", "-S", "-c", _DRIVER]
    limits = _limits if sys.platform != "win32" else None
    try:
        done = subprocess.run(
            command, input=job, capture_output=True, text=True, timeout=timeout_s,
            env={}, preexec_fn=limits,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return None
    try:
        results: list[Any] = json.loads(done.stdout)
    except ValueError:
        return None
    return results
