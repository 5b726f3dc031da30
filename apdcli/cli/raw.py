"""What settings say of a prompt's form: raw or by the chat template, and whose system message."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apdcli.load.settings import Settings

RAW_IS_ALL = "a raw text stands as it is, without one"


def told(
    settings: Settings, *, raw: bool, prompt: str | Sequence[Mapping[str, str]] = ""
) -> Settings:
    """The settings with `raw` among them, and without a system message that is not used.

    Args:
        prompt: what is asked; messages may bring their own system message.
    """
    from apdcli.load.settings import Setting, Settings  # late: pydantic

    table = {**settings.table, "raw": Setting(raw, "flag" if raw else "default")}
    if settings.system and (raw or brings_system(prompt)):
        table["system"] = Setting(None, "flag" if raw else "default")
    return Settings(table)


def brings_system(prompt: str | Sequence[Mapping[str, str]]) -> bool:
    """Whether the messages hold a system message."""
    return not isinstance(prompt, str) and any(m["role"] == "system" for m in prompt)
