"""The sandbox runs plain functions and refuses or limits everything else."""

from __future__ import annotations

import sys
import time

import pytest

from apdcli.demo.corpus.sandbox import Refused, run, vet


def test_runs_a_function() -> None:
    assert run("def f(x):\n    return x + 1", "f", [[1], [2]]) == [2, 3]


@pytest.mark.parametrize(
    "code",
    [
        "import os\ndef f(x):\n    return 1",
        "def f(x):\n    import os\n    return 1",
        "def f(x):\n    return open('/etc/passwd').read()",
        "def f(x):\n    return eval('1')",
        "def f(x):\n    return x.__class__",
        "def f(x):\n    return __builtins__",
        "def f(x):\n    while True:\n        x = 1",
        "def f(x):\n    return 9 ** 9 ** 9",
        "def f(x):\n    return (lambda: 1)()",
        "def f(x):\n    return [].append(1)",
        "@f\ndef f(x):\n    return 1",
        "def g(x):\n    return 1",
        "f = 1",
        "def f(x:\n",
        "",
        "def f(x):\n    return 1\n" + " " * 3000,
    ],
)
def test_refuses(code: str) -> None:
    with pytest.raises(Refused):
        vet(code, "f")


def test_a_failing_function_gives_none() -> None:
    assert run("def f(x):\n    return x[5]", "f", [[[1]]]) is None


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_memory_is_limited() -> None:
    assert run("def f(x):\n    return len([x] * 1000000000)", "f", [[1]]) is None


def test_time_is_limited() -> None:
    began = time.monotonic()
    code = "def f(x):\n    for i in range(1000000000):\n        x += 1\n    return x"
    assert run(code, "f", [[1]], timeout_s=1.0) is None
    assert time.monotonic() - began < 4
