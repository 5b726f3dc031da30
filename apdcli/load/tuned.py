"""Writes tuned settings into a profile, as `[tuned."<device name>"]`. Loads no torch.

Comments and the order of keys stay as they are; a shipped profile is copied to the user's folder
first. The file is replaced whole or not at all.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apdcli.errors import OutputError, ProfileError, reason
from apdcli.load.profile import Profile, user_profiles_dir

_READ_ONLY = "it is read-only"


def tuned_path(profile: Profile) -> Path:
    """The file that tuned settings of this profile go to: its own, or the user's copy of it."""
    if profile.source == "shipped":
        return user_profiles_dir() / profile.path.name
    return profile.path


def check_tunable(profile: Profile) -> None:
    """Find out before hours of work whether :func:`write_tuned` can write.

    Raises:
        OutputError: it cannot; nothing was changed.
    """
    path = tuned_path(profile)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = Path(os.path.realpath(path))
        if target.exists():
            _check_mode(target)
            target.open("r+b").close()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        os.close(descriptor)
        Path(name).unlink()
    except OSError as error:
        raise _failed(path, error) from error


def write_tuned(
    profile: Profile, device: str, values: Mapping[str, Any], *, note: str = ""
) -> Path:
    """Store the settings for a device in the profile; an earlier table of that device goes.

    Args:
        profile: as `find_profile` gave it.
        device: the device's name, from `device_name`.
        values: "strategy" and that strategy's own parameters.
        note: becomes a comment line in the table.

    Returns:
        The file that was written.

    Raises:
        ProfileError: the file has changed and is no longer TOML. OutputError: it is read-only, or
            the disk is full; what was there before is still there.
    """
    path = tuned_path(profile)
    source = path if path.is_file() else profile.path
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{source}: cannot be read ({error})") from error
    new = with_tuned(text, device, values, note=note, where=source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(Path(os.path.realpath(path)), new)
    except OSError as error:
        raise _failed(path, error) from error
    return path


def with_tuned(
    text: str, device: str, values: Mapping[str, Any], *, note: str = "", where: object = "profile"
) -> str:
    """The TOML text with the table `[tuned."device"]` set; all else is as it was."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError
    from tomlkit.items import Table

    try:
        document = tomlkit.parse(text)
        tuned = document.get("tuned")
        if tuned is None:
            tuned = tomlkit.table(is_super_table=True)
            document["tuned"] = tuned
        made: Table = tomlkit.table()
        if note:
            made.add(tomlkit.comment(" ".join(note.split())))
        for name, value in values.items():
            made.add(name, value)
        tuned[device] = made
        new = tomlkit.dumps(document)
    except (TOMLKitError, TypeError) as error:
        raise ProfileError(f"{where}: [tuned] cannot be written into it: {error}") from error
    if text.count("\r\n") == text.count("\n") > 0:  # what tomlkit adds ends in \n alone
        new = new.replace("\r\n", "\n").replace("\n", "\r\n")
    return new


def _replace(target: Path, text: str) -> None:
    """Give the file this content, whole or not at all; a link stays a link."""
    exists = target.exists()
    if exists:
        _check_mode(target)
        target.open("r+b").close()
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(stat.S_IMODE(target.stat().st_mode) if exists else 0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_mode(path: Path) -> None:
    """A file without any write bit is not to be changed, whoever asks: root would be let in."""
    if not path.stat().st_mode & 0o222:
        raise PermissionError(13, _READ_ONLY)


def _failed(path: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write {path}: {reason(error)}")
