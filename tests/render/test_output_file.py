"""Files that are written whole, and open files that are written where they stand."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apdcli.cli.answers import AnswersFile
from apdcli.cli.outputs import check_writable
from apdcli.errors import OutputError
from apdcli.render.output_file import OutputFile

needs_descriptors = pytest.mark.skipif(not Path("/dev/fd/0").exists(), reason="no /dev/fd here")


def put(path: str | Path, content: str) -> None:
    with OutputFile(path) as file:
        file.write(content)


@contextmanager
def shell_gave(path: Path, flags: int) -> Iterator[int]:
    """A descriptor that the process was started with, as 3>>FILE of a shell."""
    descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    os.set_inheritable(descriptor, True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_file_is_replaced_whole_and_a_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "a.txt", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target.name)
    with pytest.raises(RuntimeError), OutputFile(link):
        raise RuntimeError
    assert target.read_text() == "old"
    put(link, "new")
    assert (target.read_text(), link.is_symlink()) == ("new", True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "link"]


@needs_descriptors
@pytest.mark.parametrize(
    "name", ["/dev/fd/{}", "/proc/self/fd/{}", "/proc/thread-self/fd/{}", "link"]
)
@pytest.mark.parametrize("append", [True, False])
def test_an_open_file_is_written_where_it_stands(tmp_path: Path, name: str, append: bool) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with shell_gave(log, os.O_WRONLY | (os.O_APPEND if append else 0)) as descriptor:
        if not append:
            os.lseek(descriptor, 0, os.SEEK_END)
        if name == "link":
            path = tmp_path / "link"
            path.symlink_to(f"/dev/fd/{descriptor}")
        else:
            path = Path(name.format(descriptor))
        if not path.parent.exists():
            pytest.skip(f"no {path.parent} here")
        put(path, "answer\n")
        os.write(descriptor, b"after\n")
    assert log.read_text() == "before\nanswer\nafter\n"


@needs_descriptors
def test_answers_are_added_to_an_open_file(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with shell_gave(log, os.O_WRONLY | os.O_APPEND) as descriptor:
        with AnswersFile(f"/dev/fd/{descriptor}") as file:
            assert file.finished == []
            file.begin(None)
            file.write({"line": 1})
        os.write(descriptor, b"after\n")
    assert log.read_text() == 'before\n{"line": 1}\nafter\n'


@needs_descriptors
def test_a_pipe_is_written_to() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    with os.fdopen(reading) as reader:
        put(f"/dev/fd/{writing}", "answer\n")
        os.close(writing)
        assert reader.read() == "answer\n"


@needs_descriptors
@pytest.mark.parametrize("open_output", [OutputFile, AnswersFile])
def test_what_nobody_gave_to_write_is_refused(
    tmp_path: Path, open_output: Callable[[str], object]
) -> None:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    own, reading = kept.open("r+"), pytest.raises(OutputError, match="open for reading only")
    with own, pytest.raises(OutputError, match="bad file descriptor"):
        open_output(f"/dev/fd/{own.fileno()}")  # opened by this process for itself
    with shell_gave(kept, os.O_RDONLY) as descriptor, reading:
        open_output(f"/dev/fd/{descriptor}")
    with pytest.raises(OutputError, match="bad file descriptor"):
        open_output("/dev/fd/999999")
    assert kept.read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_looking_at_a_named_pipe_opens_it_not(tmp_path: Path) -> None:
    """Opened and closed it would have ended for its reader; without one, opening waits."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    looking = threading.Thread(target=check_writable, args=(pipe,), daemon=True)
    looking.start()
    looking.join(10)
    assert not looking.is_alive()
