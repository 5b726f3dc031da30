"""What is said beside the answer: dim on a terminal, so that the answer stands out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

from apdcli.render.palette import Palette, depth_of
from apdcli.render.terminal import can_draw


def remark(text: str, stream: TextIO | None, environ: Mapping[str, str]) -> str:
    """Safe text as it is to be written to a stream: dim on a terminal, as it is anywhere else."""
    if stream is None or not can_draw(stream, environ):
        return text
    palette = Palette(depth_of(environ))
    return palette.paint(text, palette.quiet)
