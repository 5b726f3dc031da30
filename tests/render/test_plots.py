"""Pictures of quality against speed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.text import Text

from apdcli.errors import OutputError, UsageError
from apdcli.render.picture import save_picture
from apdcli.render.plots import Picture, Point, check_plot_name, save_plot, terminal_plot

POINTS = (
    Point(200, 86, 83, 89, "baseline", "one"),
    Point(1380, 88, 85, 90, "chosen", "R=0.1 $W$ <b> \x1b[31m"),
    Point(1960, 75, 71, 78, "front", "R=0.9"),
    Point(900, 80, 76, 84, "other"),
)
PICTURE = Picture(POINTS, "task <x> & $y$", "accuracy", target_speed=600)


def place(lines: list[str], mark: str) -> tuple[int, int]:
    """Column and row (from the top) of the first such mark."""
    row = next(n for n, line in enumerate(lines) if mark in line)
    return lines[row].index(mark), row


@pytest.mark.parametrize("size", [(30, 8), (80, 20), (200, 60)])
def test_points_stand_where_they_belong(size: tuple[int, int]) -> None:
    lines = terminal_plot(PICTURE, *size, ascii_only=True).splitlines()
    assert len(lines) <= size[1]
    body = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    assert all(len(line) <= size[0] for line in body)
    slow, best, fast = (place(body[1:-2], mark) for mark in ("o", "#", "*"))
    assert slow[0] < best[0] < fast[0]
    assert best[1] <= slow[1] < fast[1]
    assert body[0] == "accuracy, %"
    assert "tokens/s" in body[-2]
    assert ": " in body[1] or ":" in body[1], "the target is drawn"


def test_colours_only_where_there_are_any() -> None:
    plain = terminal_plot(Picture(POINTS, ""), 80, 20)
    assert "\x1b" not in plain
    assert "◆ chosen" in plain
    for depth in ("16", "256", "truecolor"):
        drawn = terminal_plot(Picture(POINTS, ""), 80, 20, depth)  # type: ignore[arg-type]
        assert re.sub(r"\x1b\[[0-9;]*m", "", drawn) == plain


def test_nothing_is_drawn_where_there_is_no_room() -> None:
    assert terminal_plot(PICTURE, 29, 20) == terminal_plot(PICTURE, 80, 7) == ""
    assert terminal_plot(Picture((), ""), 80, 20) == ""


def test_one_point_and_points_in_one_place() -> None:
    for points in (POINTS[:1], (POINTS[0],) * 3, (Point(5, 100, 100, 100, "chosen"),)):
        assert terminal_plot(Picture(points, ""), 60, 15).count("\n") == 14
    zero = (Point(0, 0, 0, 0, "front"),)
    assert "●" in terminal_plot(Picture(zero, ""), 60, 15)


def test_saved_pictures(tmp_path: Path) -> None:
    for suffix in ("png", "svg", "html"):
        save_plot(tmp_path / f"p.{suffix}", PICTURE)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    svg = (tmp_path / "p.svg").read_text()
    texts = "".join(ElementTree.fromstring(svg).itertext())
    assert "task <x> & $y$" in texts, "names are text, no formula and no markup"
    assert "R=0.1 $W$ <b> ␛[31m" in texts
    assert "tokens a second" in texts
    page = (tmp_path / "p.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "task &lt;x&gt; &amp; $y$" in page
    assert "src=" not in page
    assert page.count("<svg") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.html", "p.png", "p.svg"]


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        save_plot(tmp_path / name, PICTURE)
    for suffix in ("svg", "png"):
        a, b = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
        assert a == b


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--plot x\.pdf: it must end in \.png, \.svg or \.html"):
        check_plot_name("x.pdf")
    with pytest.raises(OutputError, match=r"cannot write .*p\.svg: no such file"):
        save_plot(tmp_path / "none" / "p.svg", PICTURE)


def test_a_disk_that_is_full_keeps_the_picture_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.svg"
    path.write_text("the one before")
    path.chmod(0o600)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for save in (lambda: save_plot(path, PICTURE), lambda: save_picture(path, Text("a"), "t")):
            with pytest.raises(OutputError, match="no space left"):
                save()
    assert path.read_text() == "the one before"
    save_plot(path, PICTURE)
    assert "<svg" in path.read_text()
    assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["p.svg"]


def test_matplotlib_is_loaded_only_to_save() -> None:
    script = (
        "import sys; from apdcli.render.plots import *\n"
        "terminal_plot(Picture((Point(1, 2, 1, 3, 'front'),), ''), 60, 15)\n"
        "assert not {'matplotlib', 'torch', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
