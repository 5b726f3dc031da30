"""Files in messages: which words name one, what is refused."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apdcli.chat.files import MOST_BYTES, begun_path, files_in, joined, read_text_file, with_files
from apdcli.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("one\r\ntwo\n")
    (tmp_path / "my notes.txt").write_text("spaces")
    (tmp_path / "Makefile").write_text("all:")
    (tmp_path / "odd).txt").write_text("odd")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("sum up @notes.txt", ["notes.txt"]),
        ("@notes.txt and @notes.txt, please", ["notes.txt"]),
        ("(see) @notes.txt.", ["notes.txt"]),
        ('@"my notes.txt" @Makefile!', ["my notes.txt", "Makefile"]),
        ("@odd).txt", ["odd).txt"]),
        ("line\n@./notes.txt", ["./notes.txt"]),
        ("mail mia@notes.txt", []),
        ("hi @mia, how are you @ 5?", []),
        ("@", []),
        ("@pytest.fixture\ndef a(): ...", []),
        ("ask @bob.smith or @team/docs", []),
        ("@~nobody-here/f.txt @nofile.txt @no/file", []),
        ("what is in \\@/etc and \\@notes.txt?", []),
    ],
)
def test_which_words_are_files(text: str, names: list[str]) -> None:
    assert [file.name for file in files_in(text)] == names


@pytest.mark.parametrize("text", ['@"no file"', "@/", "@/dev/null"])
def test_what_is_there_or_in_quotes_and_no_file_is_an_error(text: str) -> None:
    with pytest.raises(InputError) as caught:
        files_in(text)
    assert "\n" not in str(caught.value)


def test_the_message_is_what_was_typed_and_then_each_file() -> None:
    files = files_in("compare @notes.txt @Makefile")
    assert with_files("compare @notes.txt @Makefile", files) == (
        "compare @notes.txt @Makefile\n\nnotes.txt:\none\ntwo\n\nMakefile:\nall:"
    )
    assert with_files("", files[1:]) == "Makefile:\nall:"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("see @no", "no"),
        ("@", ""),
        ('see @"my no', '"my no'),
        ('@"my notes.txt"', None),
        ("see @notes ", None),
        ("mia@no", None),
        ("\\@no", None),
        ("one\n@no", "no"),
        ('@a"b', 'a"b'),
        ("see", None),
    ],
)
def test_where_a_path_is_begun(text: str, path: str | None) -> None:
    assert begun_path(text) == path


@given(st.text(alphabet='@\\ab "\n.', max_size=12))
def test_what_is_whole_was_begun(text: str) -> None:
    """Every word that names a file is one that Tab would have completed."""
    for match in re.finditer(r'(?<!\S)@(?:"[^"\n]+"|[^\s"]\S*)', text):
        typed = text[: match.end()].removesuffix('"')
        assert begun_path(typed) is not None


def test_home_and_marks_of_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbfhi")
    assert read_text_file("~/bom.txt").text == "hi"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"a\0b", "byte 1 is NUL"),
        (b"\x89PNG\r\n", "not UTF-8 text: byte 0 is 0x89"),
        (b"x" * (MOST_BYTES + 1), "256 KiB"),
        (b" \n", "empty"),
        (b"", "empty"),
    ],
)
def test_binary_large_and_empty_files_are_refused(folder: Path, data: bytes, why: str) -> None:
    (folder / "f").write_bytes(data)
    with pytest.raises(InputError, match=why):
        read_text_file("f")


def test_the_largest_file_is_taken(folder: Path) -> None:
    (folder / "f").write_bytes(b"x" * MOST_BYTES)
    assert len(read_text_file("f").text) == MOST_BYTES


def test_what_may_not_be_looked_at_is_no_mere_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def shut(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:  # whoever runs the tests may be root
        patch.setattr(Path, "stat", shut)
        with pytest.raises(InputError, match=r"cannot read shut/a\.txt: permission denied"):
            files_in("sum up @shut/a.txt")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_nothing_is_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_text_file("pipe")
    with pytest.raises(InputError, match="a folder"):
        read_text_file(str(folder))
    with pytest.raises(InputError, match="not a file's name"):
        read_text_file("a\0b")


def test_a_backslash_sends_the_word_itself(folder: Path) -> None:
    with pytest.raises(InputError, match=r'a folder.*; \\@"\." sends just the word'):
        files_in('what is in @"."')
    assert with_files(r"look at \@. or a\@b", []) == r"look at @. or a\@b"


def test_each_file_goes_once(folder: Path) -> None:
    first, other = read_text_file("notes.txt"), read_text_file("Makefile")
    (folder / "notes.txt").write_text("new")
    again = read_text_file(str(folder / "notes.txt"))
    assert [file.text for file in joined([first, other, again])] == ["new", "all:"]
