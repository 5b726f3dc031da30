"""The whole GPU part in one run of under ten minutes: `python -m apdcli.bench.gpu -o gpu.json`.

Correctness comes first: the embedded pair on the GPU must give the greedy events of the readable
engine on the CPU, every engine the same logits in every format, and the kernels the choices and
draws of torch. Then loading, memory, speed, length, where a step's time goes, sampling, drafts
verified by parts, a forward launched ahead, batches, integer weights and torch.compile at the sizes
of Dream-7B, with random weights. Every part says whether it ran; the file is written after each, so
that a run that is cut short has lost nothing.
`--device cpu --shapes tiny` tries it anywhere.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import json
import shlex
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apdcli.errors import ApdError, reason

if TYPE_CHECKING:
    from apdcli.bench.gpu_stage import Stage

MINUTES = 9.0
# Parts of other modules: they run where the checkout has them, and are reported where it does not.
# Each module has `gpu_part(stage) -> dict`.
OPTIONAL = {"batches": "apdcli.bench.batches"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every part; status 0 if all ran and all is correct, else 1; 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        return _run(options, shlex.join(["python", "-m", "apdcli.bench.gpu", *words]))
    except ApdError as error:
        sys.stderr.write(f"apdcli.bench.gpu: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"apdcli.bench.gpu: {error.filename}: {reason(error)}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m apdcli.bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="[%(default)s]")
    parser.add_argument("--shapes", default="dream-7b", help="[%(default)s]")
    parser.add_argument("--dtype", default="auto", help="of the shapes [%(default)s]")
    parser.add_argument("--accept", type=int, default=5, help="tokens apd takes a step [5]")
    parser.add_argument("--repeats", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="then it stops [9]")
    parser.add_argument("--scratch", type=Path, help="folder for a saved model [temporary]")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file [stdout]")
    return parser


def _run(options: argparse.Namespace, command: str) -> int:
    from apdcli.bench.gpu_stage import Stage

    if options.output is not None:  # found unwritable before the work
        existed = options.output.exists()
        options.output.open("a", encoding="utf-8").close()
        if not existed:
            options.output.unlink()
    stage = Stage.of(options)
    with stage.held:
        return _run_parts(stage, options, command)


def _run_parts(stage: Stage, options: argparse.Namespace, command: str) -> int:
    """All parts, one after another."""
    from apdcli.bench.gpu_parts import PARTS
    from apdcli.bench.machine import describe, versions

    report: dict[str, Any] = {
        "format": 1,
        "command": command,
        "complete": False,
        "shapes": options.shapes,
        "machine": describe(stage.device),
        "versions": versions(),
        "parts": [],
    }
    interrupted = False
    work: list[tuple[str, Callable[[], dict[str, Any]] | str]] = [
        (name, functools.partial(part, stage)) for name, part in PARTS
    ]
    # Before the last two: torch.compile is the first to go without where time is short.
    work[-2:-2] = [(name, _optional(module, stage)) for name, module in OPTIONAL.items()]
    for name, part in work:
        try:
            report["parts"].append(_part(name, part, stage.out_of_time))
        except KeyboardInterrupt:
            interrupted = True
            report["parts"].append({"name": name, "status": "interrupted"})
        report["goals"] = goals(report["parts"])
        _write(report, options.output)
        _tell(report["parts"][-1])
        if interrupted:
            return 130
    report["complete"] = all(part["status"] in ("ran", "absent") for part in report["parts"])
    _write(report, options.output)
    if options.output is None:
        sys.stdout.write(json.dumps(report, indent=1) + "\n")
    return 0 if report["complete"] else 1


def _optional(module: str, stage: Any) -> Callable[[], dict[str, Any]] | str:
    """The part of a module, or why there is none."""
    if importlib.util.find_spec(module) is None:
        return f"this checkout has no {module}"
    return lambda: dict(importlib.import_module(module).gpu_part(stage))


def _part(
    name: str, part: Callable[[], dict[str, Any]] | str, out_of_time: Callable[[], bool]
) -> dict[str, Any]:
    """Run one part; a failure is written down and the next part still runs."""
    if isinstance(part, str):
        return {"name": name, "status": "absent", "reason": part}
    if out_of_time():
        return {"name": name, "status": "skipped", "reason": "the time was up"}
    began = time.perf_counter()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        result, status = _tried(part)
    said = sorted({" ".join(str(warning.message).split()) for warning in warned})
    result = {**result, **({"warnings": said} if said else {})}
    if result.get("equal") is False:
        status = "wrong"
    for word in ("skipped", "absent"):  # for want of time or room; of what a part is made for
        if word in result:
            status = word
    return {"name": name, "status": status, "seconds": time.perf_counter() - began, **result}


def _tried(part: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """What a part found, or why it failed, and its status."""
    try:
        return part(), "ran"
    except Exception as error:
        # Whatever a device or a driver raises: the other parts' figures are not lost to it.
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return {"reason": reason[:2000], "at": _places(error)}, "failed"


def _places(error: BaseException) -> list[str]:
    """Where in this package an error went through, the last place last."""
    return [
        f"{Path(frame.filename).name}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "apdcli" in frame.filename
    ][-6:]


def goals(parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals that this run can speak of, each with its value and whether it is met."""
    found = {part["name"]: part for part in parts if part["status"] in ("ran", "wrong")}
    made: list[dict[str, Any]] = []

    def add(goal: str, value: float | None, at_most: float) -> None:
        if value is not None:
            made.append({"goal": goal, "value": value, "at_most": at_most, "met": value <= at_most})

    if "correctness" in found:
        add("generations that differ from the CPU's", len(found["correctness"]["different"]), 0)
    if "speed" in found:
        by_name = {s["name"]: s["summary"] for s in found["speed"]["settings"]}
        floor = by_name.get("apd M100", {}).get("floor")
        add("a step at W = 16, M = 100 over its floor", floor and floor["ratio"], 1.25)
        causal = by_name.get("causal")
        if causal is not None and "apd M100" in by_name:
            speeds = [by_name[n]["tokens_per_second"]["median"] for n in ("causal", "apd M100")]
            add("tokens a second of a causal model its size over apd's", speeds[0] / speeds[1], 0.5)
    if "length" in found:
        add("ms a token at the long text over the short", found["length"].get("ratio"), 1.25)
    ratios = found.get("batches", {}).get("ratio_of_32_rows_to_1", {})
    of_apd = [ratio for name, ratio in ratios.items() if name.startswith("apd ")]
    if of_apd:  # the verifier alone gains more, but no draft is decoded by it
        add("tokens a second of batch 1 over those of batch 32, apd", 1 / max(of_apd), 0.1)
    if "memory" in found:
        add("memory above the weights over KV + 2 [M, vocab]", found["memory"].get("ratio"), 1.15)
    return made


def _write(report: dict[str, Any], path: Path | None) -> None:
    """Replace the file in one move."""
    if path is None:
        return
    if not path.parent.joinpath(path.name).is_file() and path.exists():  # a device or a pipe
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        return
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _tell(part: dict[str, Any]) -> None:
    seconds = f"  {part['seconds']:.1f} s" if "seconds" in part else ""
    why = f"  {part['reason']}" if "reason" in part else ""
    sys.stderr.write(f"{part['name']:12} {part['status']}{seconds}{why}\n")


if __name__ == "__main__":
    sys.exit(main())
