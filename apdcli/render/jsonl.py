"""The trace: one JSON object a line, enough to play a generation again without any model.

First line the header, then one line a step, then the end. Knows no terminal. A trace that cannot
be written any more never costs the answer: the failure is kept for the caller to report.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from apdcli.errors import OutputError, reason
from apdcli.render.output_file import given_descriptor

if TYPE_CHECKING:
    from apdcli.render.state import Event, TokenBytes

FORMAT = "apd-trace"
VERSION = 1


class TraceWriter:
    """Writes events to a file as they come; a context manager.

    Attributes:
        failure: what went wrong while writing, None if nothing did.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        token_bytes: TokenBytes,
        prompt_len: int,
        settings: Mapping[str, object],
        **more: object,
    ) -> None:
        """Open the file and write the header, before anything is generated.

        Args:
            path: replaced if it exists.
            token_bytes: the exact bytes of a token.
            prompt_len: the position of the first generated token.
            settings: what the generation runs with, anything that JSON can hold.
            more: further fields of the header (versions, stop ids, ...).

        Raises:
            OutputError: the file cannot be opened.
        """
        self.failure: OutputError | None = None
        self._path = Path(path)
        self._bytes = token_bytes
        try:
            # unbuffered: a full disk shows at the line that did not fit, and closing cannot fail
            given = given_descriptor(self._path)
            place = self._path if given is None else given
            self._file = open(place, "wb", buffering=0)  # noqa: PTH123, SIM115
            self._good = 0 if given is None else _end(self._file)
        except OSError as error:
            raise OutputError(f"cannot write the trace {self._path}: {reason(error)}") from error
        header = {"format": FORMAT, "version": VERSION, "prompt_len": prompt_len}
        self._line({**header, "settings": dict(settings), **more})

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __call__(self, event: Event) -> None:
        """Write one event; after a failure, nothing."""
        record: dict[str, Any] = asdict(event)
        if hasattr(event, "reason"):
            self._line({"event": "finished", **record})
            return
        committed = [id_ for _, id_ in event.committed]
        drafted = [id_ for _, id_ in event.rejected]
        record["text"] = b"".join(map(self._bytes, committed)).decode("utf-8", "replace")
        record["pieces"] = self._pieces(committed)
        record["rejected_pieces"] = self._pieces(drafted)
        self._line({"event": "step", **record})

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _pieces(self, ids: Iterable[int]) -> list[str | dict[str, str]]:
        """Each token's text; a token that is no text by itself as {"hex": its bytes}."""
        return [_piece(self._bytes(id_)) for id_ in ids]

    def _line(self, record: Mapping[str, Any]) -> None:
        if self.failure is not None:
            return
        # ASCII only: any reader, any locale, and no control character reaches a terminal by cat
        data = json.dumps(record, default=str).encode("ascii") + b"\n"
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
            self._good += len(data)
        except OSError as error:
            self.failure = OutputError(
                f"the trace {self._path} ends early: {reason(error)} (the answer is complete)"
            )
            with contextlib.suppress(OSError):  # half a line helps no reader
                self._file.truncate(self._good)
            self.close()


def _end(file: FileIO) -> int:
    """Where what is written next begins: in a file that was open already, behind what it holds."""
    with contextlib.suppress(OSError):  # a pipe
        return file.seek(0, os.SEEK_END)
    return 0


def _piece(data: bytes) -> str | dict[str, str]:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return {"hex": data.hex()}


def piece_bytes(piece: str | Mapping[str, str]) -> bytes:
    """The bytes of a token as the trace holds it."""
    return piece.encode("utf-8") if isinstance(piece, str) else bytes.fromhex(piece["hex"])
