"""What a generation was: the JSON object of `--json`, the lines of `--verbose`. Knows no stream."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any

from apdcli import __version__

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.engine.session import Generation
    from apdcli.load.settings import Settings

NEW_SEED = "new each run"
SYMBOLS = {"mixture_weight": "R", "recompute_window": "W", "max_lookahead": "M", "k": "K"}
_ELSEWHERE = (
    "profile",
    *(f"{m}_{p}" for m in ("denoiser", "verifier") for p in ("device", "dtype", "quantize")),
)
_LIBRARIES = ("torch", "tokenizers", "safetensors")


def versions(settings: Settings | None = None) -> dict[str, str]:
    """The versions that a result depends on, without importing anything.

    Args:
        settings: those of the result; quantized weights depend on one library more.
    """
    found = {"apdcli": __version__, "python": platform.python_version()}
    bits = () if settings is None else (s.value for n, s in settings.items() if "quantize" in n)
    for name in (*_LIBRARIES, *(["torchao"] if set(bits) - {"none"} else [])):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a library that was put on the path by hand
            found[name] = "unknown"
    return found


def envelope(
    generation: Generation, settings: Settings, pair: LoadedPair, own: Iterable[str] = ()
) -> dict[str, Any]:
    """The object of `--json`.

    Args:
        own: names of the settings that the line which asked has brought itself.
    """
    table = settings.as_json()
    for name in own:
        table[name]["from"] = "line"
    for name, value in placed(pair).items():
        table[name] = {"value": value, "from": settings[f"denoiser_{name}"].origin}
    return {**asdict(generation), "settings": table, "versions": versions(settings)}


def placed(pair: LoadedPair) -> dict[str, str]:
    """Where the denoiser really is, which "auto" does not say."""
    weight = pair.denoiser.model.embed_tokens.weight
    return {"device": str(weight.device), "dtype": str(weight.dtype).removeprefix("torch.")}


def loaded_lines(pair: LoadedPair, settings: Settings, seconds: float) -> list[str]:
    """What is about to run, for `--verbose`."""
    from apdcli.models.quantized import weight_bytes  # late: torch

    profile = pair.profile
    lines = [f"profile   {profile.name} ({profile.path}), from {settings['profile'].origin}"]
    sections = (("denoiser", pair.denoiser), ("verifier", pair.verifier))
    for name, net in sections:
        if net is None:
            continue
        weight = net.model.embed_tokens.weight
        bits = settings[f"{name}_quantize"].value
        lines.append(
            f"{name:9} {getattr(profile, name).model}, {millions(net)} parameters, "
            f"{'' if bits == 'none' else f'{bits} and '}"
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}, "
            f"{weight_bytes(net) / 1e6:,.1f} MB"
        )
    lines.append(f"loaded    in {seconds:.2f} s")
    shown = settings if settings.draws else before_a_run(settings)  # no seed was drawn then
    lines.append(f"settings  {settings_line(shown)}")
    return lines


def before_a_run(settings: Settings) -> Settings:
    """The settings as they are before anything has run: a seed that nobody chose is none yet."""
    from apdcli.load.settings import Setting, Settings

    if settings["seed"].origin != "default":
        return settings
    return Settings({**settings.table, "seed": Setting(None, "default")})


def settings_line(settings: Mapping[str, Any]) -> str:
    """Every decoding setting with where it came from: R=0.7 (profile), ..."""
    shown = []
    for name, setting in settings.items():
        value = NEW_SEED if name == "seed" and setting.value is None else setting.value
        said = value not in (None, [], ()) and (name, value) != ("raw", False)
        if name not in _ELSEWHERE and said:
            shown.append(f"{SYMBOLS.get(name, name)}={value} ({setting.origin})")
    return ", ".join(shown)


def millions(net: Any) -> str:
    """Number of parameters, in millions."""
    return f"{net.config.num_parameters / 1e6:.1f} M"
