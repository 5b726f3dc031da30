"""The pair of a command: loaded in a process that is ours to set up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings


def load_models(profile: Profile, settings: Settings) -> LoadedPair:
    """As :func:`apdcli.engine.pair.load_models`; on a CPU this process then flushes subnormals.

    Raises:
        ModelError, DeviceError: as there.
    """
    from apdcli.engine import pair
    from apdcli.engine.device import flush_subnormals

    loaded = pair.load_models(profile, settings)
    flush_subnormals(loaded.device)
    return loaded
