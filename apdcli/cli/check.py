"""What would run with a profile: everything `apd generate` loads, and a look at the weights.

Knows nothing of streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from apdcli.cli.generate import check_settings
from apdcli.cli.report import before_a_run, settings_line
from apdcli.engine.device import resolve_device
from apdcli.engine.pair import check_agreement, stop_ids
from apdcli.load.dtype import resolve_dtype
from apdcli.load.finite import ROWS, check_finite
from apdcli.load.hub import resolve_model
from apdcli.load.layout import Layout, Role, check_layout, check_role
from apdcli.load.profile import Profile, check_strategy
from apdcli.load.quantize import check_quantize
from apdcli.load.settings import Settings, chosen_profile, resolve_settings
from apdcli.load.spare_head import spare_head
from apdcli.load.tokenizer import load_tokenizer
from apdcli.models.formats import planned_bytes
from apdcli.models.quantized import has_kernels


@dataclass(frozen=True)
class ModelReport:
    """One model of the pair, as it would be loaded; `values` that were looked at: all or some."""

    role: str
    folder: str
    family: str
    parameters: int
    bytes_stored: int
    bytes_loaded: int
    context: int
    device: str
    dtype: str
    quantize: str
    values: str


@dataclass(frozen=True)
class Report:
    """A profile that can run; `notes` say what may surprise."""

    profile: Profile
    settings: Settings
    models: tuple[ModelReport, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "profile": self.profile.name,
            "path": str(self.profile.path),
            "models": [asdict(model) for model in self.models],
            "settings": self.settings.as_json(),
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, str]]:
        """For people: what of, and what it is; "" where it is more of the row before."""
        rows = [("profile", f"{self.profile.name} ({self.profile.path})")]
        for model in self.models:
            rows.append((model.role, model.folder))
            what = (
                f"{model.family}, {_counted(model.parameters)} parameters, "
                f"{_sized(model.bytes_loaded)} as {_format(model)} on {model.device}, "
                f"context {model.context}"
            )
            rows.append(("", what))
        rows.append(("settings", settings_line(self.settings)))
        return [*rows, *(("note", note) for note in self.notes), ("ready", "yes")]


def check_profile(name: str | None, environ: Mapping[str, str]) -> Report:
    """Check a profile and its models.

    Args:
        name: a profile's name or path; None takes APD_PROFILE or the default.
        environ: the process's environment.

    Raises:
        ApdError: what `apd generate` would refuse; of weights that are not numbers, the tensor.
            Of models over 1 GiB only some rows of each tensor are looked at, which is noted.
    """
    profile = chosen_profile(name, environ)
    settings = resolve_settings(profile, {"profile": name}, environ)
    check_settings(settings)
    check_strategy(profile, settings.strategy)
    layouts: dict[Role, Layout] = {}
    roles: tuple[Role, ...] = ("denoiser", "verifier")
    for role in roles:
        section = getattr(profile, role)
        if section is not None:
            # A check must not fetch gigabytes: what is not here yet is told.
            folder = resolve_model(
                section.model, base=profile.base, revision=section.revision, download=False
            )
            layouts[role] = check_layout(folder)
            check_role(role, layouts[role].config, folder)
    tokenizers = [load_tokenizer(layout.folder) for layout in layouts.values()]
    if len(tokenizers) == 2:
        check_agreement(*tokenizers)
    writer = tokenizers[0]  # the denoiser's makes the prompt and ends the answer
    ends = stop_ids(writer, layouts["denoiser"].config)
    writer.check_chat(settings.system)
    notes = [] if writer.has_chat_template else [f"{writer.folder} has no chat template: use --raw"]
    notes += writer.end_notes(ends)
    notes += [
        f"the {role} knows {layout.config.vocab_size} tokens and the tokenizer writes {beyond} "
        "more: a text with one of these is refused"
        for role, layout in layouts.items()
        if (beyond := sum(i >= layout.config.vocab_size for i in writer.defined_ids))
    ]
    notes += [note for layout in layouts.values() if (note := spare_head(layout))]
    models = tuple(_model(role, layout, settings) for role, layout in layouts.items())
    notes += [
        f"of the {model.role}'s weights {ROWS} rows of each tensor were looked at, not every value"
        for model in models
        if model.values != "all"
    ]
    return Report(profile, before_a_run(settings), models, tuple(notes))


def _model(role: str, layout: Layout, settings: Settings) -> ModelReport:
    device = resolve_device(settings[f"{role}_device"].value)
    dtype = resolve_dtype(settings[f"{role}_dtype"].value, device, layout.dtypes)
    quantize = settings[f"{role}_quantize"].value
    check_quantize(quantize, layout.config, str(layout.folder))
    parameters = sum(prod(entry.shape) for _, entry in layout.entries.values())
    return ModelReport(
        role=role,
        folder=str(Path(layout.folder)),
        family=layout.config.family,
        parameters=parameters,
        bytes_stored=layout.num_bytes,
        bytes_loaded=planned_bytes(
            layout.config, quantize, dtype.itemsize, kernel=has_kernels(device, dtype)
        ),
        context=layout.config.max_positions,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        quantize=quantize,
        values="all" if check_finite(layout) else "some",
    )


def _format(model: ModelReport) -> str:
    return model.dtype if model.quantize == "none" else f"{model.quantize} and {model.dtype}"


def _counted(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"


def _sized(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
