"""A strategy that asks a verifier is refused on a profile without one, before anything loads."""

from __future__ import annotations

import pytest

from apdcli.decode.params import STRATEGIES
from apdcli.errors import UsageError
from apdcli.load.profile import check_strategy, find_profile


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("profile", ["llada", "dream"])
def test_who_needs_a_verifier(profile: str, name: str) -> None:
    found = find_profile(profile)
    if found.verifier is None and STRATEGIES[name].needs_verifier:
        with pytest.raises(UsageError, match=f"'{name}' needs a verifier.*dico"):
            check_strategy(found, name)
    else:
        check_strategy(found, name)
