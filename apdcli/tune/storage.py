"""Where studies are kept: Optuna's storages, opened, waited for, and their failures in one line."""

from __future__ import annotations

import re
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import optuna
import platformdirs
from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from apdcli.errors import OutputError, UsageError, reason
from apdcli.load.home import home_path

_T = TypeVar("_T")
_BUSY_S = 60
_RACES = 10  # attempts to open a study whose tables other processes are making
_JOURNALS, _DATABASES = (".log", ".journal", ".jsonl"), (".db", ".sqlite", ".sqlite3")


def default_storage(environ: Mapping[str, str]) -> str:
    """The SQLite file in the platform's data folder; APD_DATA_DIR replaces that folder."""
    own = environ.get("APD_DATA_DIR")
    folder = home_path(own) if own else platformdirs.user_data_path("apd", False)
    return str(folder / "tune.db")


def shown(storage: str) -> str:
    """A storage as messages name it: without its password."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", storage)


class _Database(RDBStorage):
    """Closes its connections once nobody has it, or as the process ends; optuna's stay open."""

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        try:
            super().__init__(url, engine_kwargs=engine_kwargs)
        finally:
            if "engine" in vars(self):  # also where it is no database, or of another version
                weakref.finalize(self, self.engine.dispose)


def open_storage(storage: str) -> BaseStorage:
    """The storage behind a URL, or a path whose ending says which kind.

    Raises:
        UsageError: no such kind of storage.
    """
    if "://" not in storage:
        path = home_path(storage).absolute()
        if path.suffix not in (*_JOURNALS, *_DATABASES):
            raise UsageError(
                f"--storage {storage}: it must be a URL like sqlite:///tune.db, a path ending in "
                f"{' or '.join(_DATABASES)}, or one ending in {' or '.join(_JOURNALS)}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _JOURNALS:
            from optuna.storages.journal import JournalFileBackend

            path.open("ab").close()
            return JournalStorage(JournalFileBackend(str(path)))
        storage = f"sqlite:///{path}"
    engine: dict[str, Any] = {}
    if storage.startswith("sqlite"):
        engine = {"connect_args": {"timeout": _BUSY_S}}
    return _Database(storage, engine)


def patiently(work: Callable[[], _T], where: str, *, racing: bool = False) -> _T:
    """Do something with the storage, again for a while if another process holds it.

    Args:
        racing: several processes may be making the same tables, and all but one fail at first.

    Raises:
        UsageError, OutputError: one line on what is wrong with the storage.
    """
    began, attempt = time.monotonic(), 0
    while True:
        try:
            return work()
        except (UsageError, OutputError):
            raise
        except Exception as error:
            text = _deepest(error)
            left = attempt < _RACES if racing else time.monotonic() - began < _BUSY_S
            if not _is_storages(error) or not left or not _passes(text, racing):
                failure = _failure(error, text, where)
                if failure is None:
                    raise
                raise failure from error
        attempt += 1
        time.sleep(min(1.0, 0.02 * 2**attempt))


def _passes(text: str, racing: bool) -> bool:
    """Whether the failure is one that another process causes for a moment."""
    busy = "locked" in text or "busy" in text
    made = any(word in text for word in ("already exists", "UNIQUE", "no such table", "duplicate"))
    return busy or (racing and made)


def _is_storages(error: BaseException) -> bool:
    """Whether it comes from the storage rather than from a mistake of ours."""
    roots = {type(e).__module__.split(".")[0] for e in _chain(error)}
    return bool(roots & {"sqlalchemy", "sqlite3"}) or any(
        isinstance(e, (optuna.exceptions.StorageInternalError, OSError)) for e in _chain(error)
    )


def _failure(error: Exception, text: str, where: str) -> Exception | None:
    if isinstance(error, (ImportError, ModuleNotFoundError)):
        return UsageError(f"--storage {where}: its database driver is not installed ({text})")
    if ("parse" in text.lower() and "url" in text.lower()) or "Can't load plugin" in text:
        return UsageError(f"--storage {where}: not a storage URL; sqlite:///tune.db is one")
    if "no longer compatible" in text or "incompatible" in text.lower():
        return OutputError(f"{where} was made by another version of optuna; use another --storage")
    if _is_storages(error):
        return OutputError(f"cannot use the study in {where}: {text}; what it holds is kept")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or getattr(current, "orig", None) or current.__context__


def _deepest(error: BaseException) -> str:
    """What the storage itself says: the first failure of the chain, on one line."""
    last = list(_chain(error))[-1]
    text = reason(last) if isinstance(last, OSError) else str(last)
    return " ".join(text.split())[:200] or type(last).__name__
