"""The options of `apd generate` that are about many prompts, and those that do not go with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from apdcli.cli.prompt import STDIN
from apdcli.errors import UsageError


def batch_size(text: str | None, input: str | None, hint: str) -> int | Literal["auto"]:
    """What --batch-size says."""
    if text is None:
        return "auto"
    if input is None:
        raise UsageError(f"--batch-size goes with --input; {hint}")
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise UsageError(f"--batch-size {text}: it must be an integer >= 1 or auto; {hint}")
    return int(text)


def check_many(prompt: str | None, own: Mapping[str, Any], hint: str, *, piped: bool) -> None:
    """Refuse what is about one answer where there are many; `piped`: nobody wrote --input."""
    if prompt is not None and not prompt == own["input"] == STDIN:
        brings = (
            "--jsonl reads prompts from standard input" if piped else "--input brings the prompts"
        )
        raise UsageError(
            f"{brings}, so PROMPT does not go with it; a text for all of them goes into --system; "
            f"{hint}"
        )
    for name in ("trace", "export"):
        if own[name] is not None:
            raise UsageError(f"--{name} is of one answer and does not go with --input; {hint}")
