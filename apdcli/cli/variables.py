"""A note on APD_* variables that nothing reads: most are slips of the pen. Loads no torch.

A variable that this command leaves alone but another one reads is none of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from apdcli.cli.context import Context
from apdcli.render.terminal import is_terminal

_PREFIX = "APD_"


def note_unknown(context: Context, *, quiet: bool = False, verbose: bool = False) -> None:
    """Name each unknown variable that is set, with the nearest known one.

    To people, unless they want it `quiet`; elsewhere only where `verbose` asks for it.
    """
    if not (verbose or (is_terminal(context.stderr) and not quiet)):
        return
    given = [name for name, text in context.environ.items() if name.startswith(_PREFIX) and text]
    if not given:
        return
    from apdcli.load.settings import known_variables

    known = known_variables()
    for name in given:
        if name not in known:
            context.remark(f"{name} is not read{_instead(name, known)}")


def _instead(name: str, known: Sequence[str]) -> str:
    """What may have been meant."""
    from apdcli.cli.options import FILL_FLAGS, FLAGS
    from apdcli.load.profile import nearest

    bare = name.removeprefix(_PREFIX)
    for flag in (*FLAGS, *FILL_FLAGS):
        if flag.name.upper() == bare:
            return f": it is given as {flag.shown}"
    # without what all have in common, which would liken anything to anything
    near = nearest(bare, [other.removeprefix(_PREFIX) for other in known])
    near = near.replace("mean ", f"mean {_PREFIX}").replace(" or ", f" or {_PREFIX}")
    return f"; {near}" if near else ""
