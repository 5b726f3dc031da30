"""The numbers, the colours and the picture."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from apdcli.errors import OutputError, UsageError
from apdcli.render import sparkline, summary_line
from apdcli.render.palette import RUN_COLOURS, Look, Palette, depth_of
from apdcli.render.picture import export_picture, picture
from apdcli.render.summary import summary_text
from tests.render.fakes import Vocabulary, apd_events, finished, step


def test_the_summary() -> None:
    words = Vocabulary([b"a"] * 3)
    state = words.state()
    state.apply(step(1, [(0, 0)]))
    state.apply(step(2, [(1, 1), (2, 2), (3, words.end)]))
    state.apply(finished(2))
    assert summary_line(state) == (
        "4 tokens in 2 steps · 2.00 tokens/step · 20.0 tokens/s · 0.2 s · stop"
    )


def test_an_end_that_is_none_says_why() -> None:
    assert summary_text(1, 1, 0.5, "length") == (
        "1 token in 1 step · 1.00 tokens/step · 2.0 tokens/s · 0.5 s · cut at max-tokens"
    )
    assert summary_text(0, 0, 0.0, "interrupted").startswith("0 tokens in 0 steps · 0.00")


def test_nothing_generated_is_no_division_by_zero() -> None:
    state = Vocabulary([]).state()
    state.apply(finished(0, "interrupted"))
    assert summary_line(state).startswith("0 tokens in 0 steps · 0.00")


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([0, 1, 4, 8]) == "·▁▄█"
    assert sparkline([1, 50, 100]) == "▁▄█"


def _linear(colour: str) -> list[float]:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def _lab(rgb: list[float]) -> list[float]:
    r, g, b = (min(1.0, max(0.0, c)) for c in rgb)
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089,
    )
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in xyz)
    return [116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)]


VISION = {  # Machado, Oliveira and Fernandes (2009), severity 1
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("vision", VISION)
def test_neighbouring_runs_differ_for_every_eye(vision: str) -> None:
    matrix = VISION[vision]

    def seen(colour: str) -> list[float]:
        rgb = _linear(colour)
        return _lab([sum(m * c for m, c in zip(row, rgb, strict=True)) for row in matrix])

    colours = [seen(colour) for colour in RUN_COLOURS]
    for a, b in itertools.pairwise([*colours, colours[0]]):
        assert sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5 > 35


@pytest.mark.parametrize("colour", RUN_COLOURS)
def test_runs_can_be_read_on_black_and_on_white(colour: str) -> None:
    r, g, b = _linear(colour)
    luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b
    assert 1.05 / (luminance + 0.05) > 3
    assert (luminance + 0.05) / 0.05 > 3


@pytest.mark.parametrize("depth", ["16", "256", "truecolor", "none"])
def test_neighbours_differ_at_every_depth(depth) -> None:
    palette = Palette(depth)
    codes = [palette.run(n).sgr(depth) for n in range(1, 12)]
    assert all(a != b for a, b in itertools.pairwise(codes))
    assert ("38" in "".join(codes)) == (depth in ("256", "truecolor"))
    assert Look().sgr(depth) == ""


@pytest.mark.parametrize(
    ("environ", "depth"),
    [
        ({"TERM": "xterm-256color", "NO_COLOR": "1"}, "none"),
        ({"TERM": "xterm-256color", "NO_COLOR": ""}, "256"),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "truecolor"),
        ({"TERM": "screen"}, "16"),
        ({"TERM": "xterm-kitty"}, "256"),
        ({"TERM": "dumb"}, "none"),
        ({}, "none"),
    ],
)
def test_colour_depth(environ: dict[str, str], depth: str) -> None:
    assert depth_of(environ) == depth


@pytest.mark.parametrize("suffix", [".svg", ".html"])
def test_the_picture_of_a_finished_and_of_a_running_view(tmp_path: Path, suffix: str) -> None:
    words = Vocabulary([b"one", b" two", b" three", b" four"])
    state = words.state()
    events = list(apd_events(words, seed=1))
    state.apply(step(1, [(0, 0)], rejected=[(1, 3), (2, 2)]))
    assert " four three" in picture(state).plain
    for event in events:
        state.apply(event)
    export_picture(tmp_path / f"p{suffix}", state, "apd", prompt="count", columns=60)
    content = (tmp_path / f"p{suffix}").read_text(encoding="utf-8")
    plain = picture(state, "count", 60).plain
    assert "count\n\none two three four\n\napd" in plain
    assert RUN_COLOURS[0] in content
    assert "tok/step" in content.replace("&#160;", " ")


def test_a_picture_with_another_ending_or_in_no_folder(tmp_path: Path) -> None:
    state = Vocabulary([b"a"]).state()
    with pytest.raises(UsageError, match=r"\.svg or \.html"):
        export_picture(tmp_path / "p.png", state)
    with pytest.raises(OutputError):
        export_picture(tmp_path / "none" / "p.svg", state)
