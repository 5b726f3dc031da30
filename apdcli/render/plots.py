"""Quality against speed as a picture: drawn with characters, or saved as PNG, SVG or HTML.

Knows neither what was measured nor how: points in, picture out. Matplotlib is loaded only to save.
"""

from __future__ import annotations

import html
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apdcli.errors import UsageError
from apdcli.render.output_file import OutputFile
from apdcli.render.palette import Depth, Look, Palette
from apdcli.render.safe import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Kind = Literal["other", "baseline", "front", "chosen"]
PICTURES = (".png", ".svg", ".html")
_MARKS: Mapping[Kind, str] = {"other": "·", "baseline": "□", "front": "●", "chosen": "◆"}
_ASCII: Mapping[Kind, str] = {"other": ".", "baseline": "o", "front": "*", "chosen": "#"}
_COLOURS: Mapping[Kind, str] = {
    "other": "#7f7f7f",
    "baseline": "#c47f00",
    "front": "#1f7fc4",
    "chosen": "#d55e00",
}
_NAMES: Mapping[Kind, str] = {
    "other": "tried",
    "baseline": "one token a step",
    "front": "front",
    "chosen": "chosen",
}
_LEAST = (30, 8)  # columns and rows under which there is nothing to see


@dataclass(frozen=True)
class Point:
    """A setting in the picture.

    Attributes:
        speed: tokens a second.
        quality, low, high: in per cent; the mean and its interval.
        label: a few words beside it in saved pictures.
    """

    speed: float
    quality: float
    low: float
    high: float
    kind: Kind
    label: str = ""


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Attributes:
        points: at least one.
        measure: what the quality is called.
        target_speed, target_quality: a line to draw, in the units of the points.
    """

    points: Sequence[Point]
    title: str
    measure: str = "quality"
    target_speed: float | None = None
    target_quality: float | None = None

    @property
    def kinds(self) -> list[Kind]:
        """The kinds of points there are, as the legend names them."""
        return [kind for kind in _MARKS if any(p.kind == kind for p in self.points)]


def terminal_plot(
    picture: Picture, columns: int, rows: int, depth: Depth = "none", *, ascii_only: bool = False
) -> str:
    """The picture in characters, lines joined by newlines; "" where the room is too small.

    Args:
        columns, rows: the room, axes and legend included.
        depth: the colours that the terminal shows.
        ascii_only: for terminals that know no other characters.
    """
    if columns < _LEAST[0] or rows < _LEAST[1] or not picture.points:
        return ""
    marks = _ASCII if ascii_only else _MARKS
    side, bottom, corner, dotted = ("|", "-", "+", ":") if ascii_only else ("│", "─", "└", "┊")
    across = "." if ascii_only else "┄"
    margin, wide, high = 7, columns - 9, rows - 4
    x_axis = _Axis.over([p.speed for p in picture.points], wide, start=0.0)
    y_axis = _Axis.over([p.quality for p in picture.points], high, stop=100.0)
    cells: dict[tuple[int, int], tuple[str, Look]] = {}
    faint = Palette(depth).quiet
    if picture.target_speed is not None and (x := x_axis.cell(picture.target_speed)) is not None:
        cells |= {(x, y): (dotted, faint) for y in range(high)}
    if (
        picture.target_quality is not None
        and (y := y_axis.cell(picture.target_quality)) is not None
    ):
        cells |= {(x, y): (across, faint) for x in range(wide)}
    for kind in picture.kinds:  # what matters most is drawn last
        look = Look(_COLOURS[kind], bold=kind == "chosen") if depth != "none" else Look()
        for point in picture.points:
            place = x_axis.cell(point.speed), y_axis.cell(point.quality)
            if point.kind == kind and place[0] is not None and place[1] is not None:
                cells[place[0], place[1]] = (marks[kind], look)
    paint = Palette(depth).paint
    ticks = {y_axis.cell(value): value for value in y_axis.ticks(high // 3)}
    lines = [f"{picture.measure}, %"]
    for y in reversed(range(high)):
        label = f"{ticks[y]:g}" if y in ticks else ""
        row = "".join(paint(*cells[x, y]) if (x, y) in cells else " " for x in range(wide)).rstrip()
        lines.append(f"{label:>{margin - 1}} {side}{row}")
    lines.append(" " * margin + corner + bottom * wide)
    lines.append(" " * (margin + 1) + _scale(x_axis, wide))
    names, used = [], margin + 1
    for kind in picture.kinds:
        used += len(f"{marks[kind]} {_NAMES[kind]}   ")
        if used > columns + 3:  # what does not fit has to be known without it
            break
        look = Look(_COLOURS[kind]) if depth != "none" else Look()
        names.append(f"{paint(marks[kind], look)} {_NAMES[kind]}")
    return "\n".join([*lines, " " * (margin + 1) + "   ".join(names)])


@dataclass(frozen=True)
class _Axis:
    """A stretch of numbers laid over cells."""

    start: float
    stop: float
    cells: int

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        cells: int,
        *,
        start: float | None = None,
        stop: float = math.inf,
    ) -> _Axis:
        """An axis that holds all values, with a little room; never beyond `stop`."""
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
        first = low - room if start is None else start
        return cls(first, min(stop, high + room) if high < stop else high + 1e-9, cells)

    def cell(self, value: float) -> int | None:
        """The cell a value is in; None outside."""
        share = (value - self.start) / (self.stop - self.start)
        return min(self.cells - 1, int(share * self.cells)) if 0 <= share <= 1 else None

    def ticks(self, most: int) -> list[float]:
        """Round values, at most so many."""
        span = self.stop - self.start
        step = 10 ** math.floor(math.log10(span))
        sizes = [step * f for f in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        step = next((s for s in sizes if span / s <= max(1, most)), sizes[-1])
        first = math.ceil(self.start / step)
        return [round(n * step, 10) for n in range(first, math.floor(self.stop / step) + 1)]


def _scale(axis: _Axis, wide: int) -> str:
    """The numbers under the horizontal axis, and its unit at the right."""
    unit = "tokens/s"
    line = [" "] * wide
    for value in axis.ticks(max(2, wide // 14)):
        text, at = f"{value:g}", axis.cell(value)
        if at is None:
            continue
        at = max(0, at - len(text) // 2)
        free = all(c == " " for c in line[max(0, at - 1) : at + len(text) + 1])
        if free and at + len(text) < wide - len(unit) - 1:
            line[at : at + len(text)] = text
    line[wide - len(unit) :] = unit
    return "".join(line)


def check_plot_name(path: str) -> None:
    """Raise UsageError unless the name ends in a format that can be drawn."""
    if Path(path).suffix.lower() not in PICTURES:
        raise UsageError(f"--plot {path}: it must end in {', '.join(PICTURES[:-1])} or .html")


def save_plot(path: str | Path, picture: Picture) -> None:
    """Draw the picture into a file, whole or not at all.

    Args:
        path: ends in .png, .svg or .html, which is a page of its own with the SVG in it.

    Raises:
        UsageError: another ending. OutputError: the file cannot be written.
    """
    check_plot_name(str(path))
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    drawn = _drawn(picture, "svg" if kind == "html" else kind)
    if kind == "html":
        drawn = _page(picture.title, drawn.decode("utf-8")).encode("utf-8")
    with OutputFile(path) as file:
        file.write(drawn)


def _drawn(picture: Picture, kind: str) -> bytes:
    """The picture by matplotlib, the same bytes each time; no window system is asked."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # text stays text in an SVG, with fonts that every browser has
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "apd", "font.family": "sans-serif"}):
        figure = Figure(figsize=(8, 5), layout="constrained")
        axes = figure.subplots()
        out = io.BytesIO()
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sign that the font lacks is drawn as a box
            _draw(axes, picture)
            figure.savefig(out, format=kind, dpi=160, metadata=metadata)
    return out.getvalue()


def _label(axes: Axes, points: Sequence[Point]) -> None:
    """Write the labels that have room, the chosen point's first; at the right, leftwards."""
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # only then is it known where things stand
    at = axes.transData.transform([(p.speed, p.quality) for p in points if p.label])
    taken = [Bbox([(x - 8, y - 8), (x + 8, y + 8)]) for x, y in at]
    # from both ends of the front inwards: its ends say most
    ordered = sorted(points, key=lambda p: p.speed)
    ends = [ordered[i // 2 if i % 2 else -1 - i // 2] for i in range(len(ordered))]
    for point in sorted(ends, key=lambda p: p.kind != "chosen"):
        if not point.label:
            continue
        right = axes.transAxes.inverted().transform(
            axes.transData.transform((point.speed, point.quality))
        )[0]
        written = axes.annotate(
            _plain(point.label),
            (point.speed, point.quality),
            xytext=(-6, 6) if right > 0.7 else (6, 6),
            textcoords="offset points",
            fontsize=7,
            ha="right" if right > 0.7 else "left",
        )
        box = written.get_window_extent()
        own = axes.transData.transform((point.speed, point.quality))
        others = [b for b in taken if not b.contains(*own)]
        if any(box.overlaps(other) for other in others):
            written.remove()
        else:
            taken.append(box)


def _draw(axes: Axes, picture: Picture) -> None:
    order = {"other": 1, "baseline": 2, "front": 3, "chosen": 4}
    for kind in picture.kinds:
        points = sorted((p for p in picture.points if p.kind == kind), key=lambda p: p.speed)
        xs, ys = [p.speed for p in points], [p.quality for p in points]
        below, above = [p.quality - p.low for p in points], [p.high - p.quality for p in points]
        axes.errorbar(
            xs,
            ys,
            yerr=None
            if kind == "other"
            else [[max(0.0, s) for s in side] for side in (below, above)],
            fmt={"other": "o", "baseline": "s", "front": "o", "chosen": "D"}[kind],
            markersize=4 if kind == "other" else 7,
            color=_COLOURS[kind],
            alpha=0.5 if kind == "other" else 1.0,
            elinewidth=1,
            capsize=3,
            zorder=order[kind],
            label=_NAMES[kind],
        )
    edge = sorted(
        (p for p in picture.points if p.kind in ("front", "chosen")), key=lambda p: p.speed
    )
    axes.plot(
        [p.speed for p in edge], [p.quality for p in edge], color=_COLOURS["front"], alpha=0.5
    )
    if picture.target_speed is not None:
        axes.axvline(picture.target_speed, color="#7f7f7f", linestyle=":")
    if picture.target_quality is not None:
        axes.axhline(picture.target_quality, color="#7f7f7f", linestyle=":")
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens a second")
    axes.set_ylabel(f"{_plain(picture.measure)}, % (95 % interval)")
    axes.set_title(_plain(picture.title), fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(loc="best", fontsize=8)
    _label(axes, picture.points)


def _plain(text: str) -> str:
    """Names from files are text, never a formula."""
    return visible(text).replace("\n", " ").replace("$", r"\$")


def _page(title: str, svg: str) -> str:
    """A page that needs nothing from anywhere."""
    inside = svg[svg.index("<svg") :]
    safe = html.escape(visible(title))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{safe}</title>\n"
        "<style>body{margin:2rem auto;max-width:60rem;font-family:sans-serif}"
        "svg{width:100%;height:auto}</style>\n"
        f"</head>\n<body>\n{inside}\n</body>\n</html>\n"
    )
