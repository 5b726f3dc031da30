"""`apd fill`: text with gaps in, the text with its gaps filled out.

What it shares with `apd generate`, which is all but the text and the settings, is in that module.
Loads no torch until everything that can be wrong without it has been found right.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from apdcli.cli import generate, options
from apdcli.cli.context import Context
from apdcli.cli.prompt import read_text
from apdcli.decode.gaps import GAP, MARKER, check_gap, split_gaps
from apdcli.errors import ParameterError, UsageError

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.engine.session import Request
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings

_EXAMPLE = 'apd fill "The capital of France is ___."'


@dataclass(frozen=True)
class Job(generate.Job):
    """What the command line asked for; its prompt is the text with the gaps."""

    command: ClassVar[str] = "fill"

    @classmethod
    def of(cls, prompt: str | None, values: Mapping[str, Any]) -> generate.Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that exclude each other.
        """
        job = super().of(prompt, {**values, "raw": True})
        given = {name: values[name] for name in ("marker", "gap") if values[name] is not None}
        with contextlib.suppress(ValueError):  # what is no number is refused below
            given |= {"gap": int(given["gap"])} if "gap" in given else {}
        try:
            check_gap(given.get("marker", MARKER), given.get("gap", GAP))
        except ParameterError as error:
            raise UsageError(
                f"--{error.field} {error.value}: it must be {error.allowed}; "
                f"{options.help_hint(cls.command)}"
            ) from error
        return replace(job, flags={**job.flags, **given})

    def settle(self, profile: Profile, environ: Mapping[str, str]) -> tuple[Profile, Settings]:
        """Every setting, and the profile without its verifier, which need not be loaded."""
        from apdcli.load.fill_settings import fill_settings

        alone = replace(profile, verifier=None)
        return alone, fill_settings(alone, self.flags, environ)

    def told(self, settings: Settings) -> Settings:
        """As they are: no text with gaps goes through a template."""
        return settings

    def read(self, context: Context) -> str:
        """The text, found to have a gap before anything is loaded."""
        text = read_text(self.prompt, context, example=_EXAMPLE)
        split_gaps(text, self.flags.get("marker", MARKER))
        return text

    def prepare(
        self, pair: LoadedPair, text: str, settings: Settings
    ) -> tuple[Request, generate.Layout]:
        """The request, checked; all of the text is seen from the start."""
        from apdcli.engine.fill import prepare_fill

        request = prepare_fill(pair, text, settings)
        return request, generate.Layout(0, request.given, len(request.ids))
