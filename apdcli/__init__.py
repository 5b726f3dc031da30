"""apdcli: diffusion language models on the command line, several tokens at a time.

    import apdcli
    pair = apdcli.load_pair("demo")
    print(apdcli.generate(pair, "Hello!").text)

Importing it is cheap: torch is loaded when one of the functions is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from apdcli.decode.types import Finished as Finished
    from apdcli.decode.types import StepEvent as StepEvent
    from apdcli.engine.fill import Filled as Filled
    from apdcli.engine.fill import fill as fill
    from apdcli.engine.pair import LoadedDenoiser as LoadedDenoiser
    from apdcli.engine.pair import LoadedPair as LoadedPair
    from apdcli.engine.pair import load_denoiser as load_denoiser
    from apdcli.engine.pair import load_pair as load_pair
    from apdcli.engine.pair import load_tokenizer as load_tokenizer
    from apdcli.engine.session import Generation as Generation
    from apdcli.engine.session import Usage as Usage
    from apdcli.engine.session import generate as generate
    from apdcli.engine.session import stream as stream
    from apdcli.errors import ApdError as ApdError
    from apdcli.errors import DeviceError as DeviceError
    from apdcli.errors import ModelError as ModelError
    from apdcli.errors import ParameterError as ParameterError
    from apdcli.errors import ProfileError as ProfileError
    from apdcli.errors import PromptError as PromptError
    from apdcli.errors import UnknownParameterError as UnknownParameterError
    from apdcli.errors import UsageError as UsageError
    from apdcli.streaming import stream_text as stream_text

_HOMES = {
    "ApdError": "apdcli.errors",
    "DeviceError": "apdcli.errors",
    "Filled": "apdcli.engine.fill",
    "Finished": "apdcli.decode.types",
    "Generation": "apdcli.engine.session",
    "LoadedDenoiser": "apdcli.engine.pair",
    "LoadedPair": "apdcli.engine.pair",
    "ModelError": "apdcli.errors",
    "ParameterError": "apdcli.errors",
    "ProfileError": "apdcli.errors",
    "PromptError": "apdcli.errors",
    "StepEvent": "apdcli.decode.types",
    "UnknownParameterError": "apdcli.errors",
    "Usage": "apdcli.engine.session",
    "UsageError": "apdcli.errors",
    "fill": "apdcli.engine.fill",
    "generate": "apdcli.engine.session",
    "load_denoiser": "apdcli.engine.pair",
    "load_pair": "apdcli.engine.pair",
    "load_tokenizer": "apdcli.engine.pair",
    "stream": "apdcli.engine.session",
    "stream_text": "apdcli.streaming",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'apdcli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
