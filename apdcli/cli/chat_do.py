"""What the chat's commands do, one function each. Knows no flags and no loop."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from apdcli.chat.commands import help_lines
from apdcli.chat.files import MOST_BYTES, joined, read_text_file
from apdcli.chat.screen import clipboard_code, stats_lines
from apdcli.chat.session_names import is_automatic
from apdcli.chat.sessions import Session, Turn, user_store
from apdcli.cli.chat_knobs import UNSET, fresh_seed, settings_in, shown
from apdcli.cli.editor import run_editor
from apdcli.cli.outputs import check_picture_name, check_writable
from apdcli.errors import ProfileError, UsageError
from apdcli.load.home import home_path
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.chat.sessions import Store
    from apdcli.cli.chat_loop import Loop

_ON_OFF = {"on": True, "off": False}
_MOST_SESSIONS = 20
# Never kept as settings.
_OF_THE_RUN = ("profile", "system", "device", "dtype", "quantize", "engine")


def _help(loop: Loop, _: str) -> None:
    loop.screen.table(help_lines())
    loop.screen.note(f"files: UTF-8 text, at most {MOST_BYTES >> 10} KiB; \\@ is just an @")


def _set(loop: Loop, argument: str) -> None:
    name, _, value = argument.partition(" ")
    value = value.strip()
    if name.lower() == "markdown":
        if not value:
            loop.screen.note(f"markdown is {'on' if loop.talk.session.markdown else 'off'}")
            return
        if value.lower() not in _ON_OFF:
            raise UsageError(f"markdown {value}: it must be on or off")
        loop.talk.session.markdown = _ON_OFF[value.lower()]
        _remember(loop)
        loop.screen.note(f"markdown is {value.lower()}")
    elif name.lower() in ("system", "profile"):
        DO[name.lower()](loop, value)
    else:
        setting = loop.knobs.set(name, value) if value else loop.knobs.get(name)
        if value:
            _remember(loop)
        field = loop.knobs.field(name)
        now = "new for each answer" if _unseeded(loop, field) else _written(setting.value)
        told = setting.origin in ("flag", "set")
        origin = "" if told else f" (from the {setting.origin})"
        loop.screen.note(f"{shown(field)} is {now}{origin}")


def _show(loop: Loop, _: str) -> None:
    talk, session, settings = loop.talk, loop.talk.session, loop.settings()
    rows = [("profile", settings["profile"].value)]
    for name, setting in settings.items():
        if name in ("profile", "system") or setting.value in (None, [], ()):
            continue
        value = "new for each answer" if _unseeded(loop, name) else _written(setting.value)
        rows.append((shown(name), f"{value}  ({setting.origin})"))
    rows.append(("system", settings.system or "none"))
    rows.append(("markdown", "on" if session.markdown else "off"))
    rows.append(("trace", loop.tracing.next_path() or "off"))
    where = talk.store.path(session.name) if talk.store is not None else "not saved"
    rows.append(("session", f"{session.name}, {plural(len(talk.turns), 'message')} ({where})"))
    rows.append(("context", _context(loop)))
    if loop.pending:
        rows.append(("next message", "with " + ", ".join(file.name for file in loop.pending)))
    loop.screen.table(rows)


def _context(loop: Loop) -> str:
    talk = loop.talk
    used = len(talk.prepare("?", loop.settings()).prompt_ids)
    out = talk.conversation.left_out
    left = f"; the first {plural(out, 'message')} left out" if out else ""
    return f"{used} of {talk.pair.context} tokens{left}"


def _system(loop: Loop, text: str) -> None:
    session = loop.talk.session
    if not text:
        system = loop.settings().system
        loop.screen.say(system or "there is no system message; /system TEXT sets one")
        return
    session.system = "" if text.lower() in UNSET or not text.strip("\"' ") else text
    _remember(loop)
    loop.screen.note("no system message from here on" if not session.system else f"system: {text}")


def _retry(loop: Loop, _: str) -> None:
    last = _last(loop)
    settings = loop.settings(seed=fresh_seed())
    if not settings.draws:
        loop.screen.note(
            "temperature is 0, so every seed gives the same answer; /set temperature 0.7 varies it"
        )
    loop.screen.note(f"again: {_short(last.shown)}")
    loop.say_again(last.message, last.typed, settings)


def _edit(loop: Loop, _: str) -> None:
    last = _last(loop)
    text = edited(loop, last.message)
    if text == last.message:
        loop.screen.note("unchanged; nothing was done")
    elif not text.strip():
        loop.screen.note("empty; nothing was done")
    else:
        loop.screen.echo(text)
        loop.say_again(text, None, loop.settings())


def edited(loop: Loop, text: str) -> str:
    """The text as the user's editor leaves it.

    Raises:
        UsageError: the editor cannot be started, or says that it failed.
    """
    with tempfile.TemporaryDirectory(prefix="apd-") as folder:
        path = Path(folder) / "message.md"
        path.write_bytes((text + "\n").encode("utf-8", "replace"))
        run_editor(path, loop.context)
        return path.read_bytes().decode("utf-8", "replace").rstrip("\r\n")


def _undo(loop: Loop, _: str) -> None:
    _last(loop)
    taken = loop.talk.undo()
    loop.screen.note(f"taken back: {_short(taken.shown)}")


def _clear(loop: Loop, _: str) -> None:
    talk, old = loop.talk, loop.talk.session
    talk.change_session(_fresh(loop, old))
    kept = f"; the old one is saved as {old.name}" if talk.session.name != old.name else ""
    loop.screen.note(f"a new conversation{kept}")


def _fresh(loop: Loop, like: Session) -> Session:
    store = loop.talk.store
    name = like.name if store is None else store.fresh_name()
    if not like.turns and is_automatic(like.name):
        name = like.name
    settings = dict(like.settings)
    return Session(name, like.profile, like.system, settings, markdown=like.markdown)


def _save(loop: Loop, name: str) -> None:
    store = _store(loop)
    old = loop.talk.session.name
    store.rename(loop.talk.session, name)
    how = "saved as" if is_automatic(old) or old == name else f"copied from {old} to"
    loop.screen.note(f"{how} {name}; it stays saved after every answer")


def _load(loop: Loop, name: str) -> None:
    from apdcli.chat.talk import profile_name

    session = _store(loop).load(name)
    settings = settings_in(session)
    try:
        loop.knobs.take_over(settings, stay=_OF_THE_RUN)
    except UsageError as error:
        raise UsageError(f"session {name}: {error}") from error
    loop.talk.change_session(session)
    show_session(loop)
    current = profile_name(loop.talk.pair)
    if session.profile != current:
        loop.screen.note(
            f"it was held with profile {session.profile}{_gone(session.profile)} and goes on "
            f"with {current}"
        )
        session.profile = current


def _gone(profile: str) -> str:
    from apdcli.load.profile import find_profile

    try:
        find_profile(profile)
    except ProfileError:
        return ", which cannot be used here,"
    return f" (/profile {profile} changes back)"


def show_session(loop: Loop) -> None:
    """What was resumed: its name and its last message with the answer."""
    session = loop.talk.session
    count = plural(len(session.turns), "message")
    loop.screen.note(f"{session.name}: {count}" + ("; the last was:" if session.turns else ""))
    if session.turns:
        loop.screen.echo(session.turns[-1].shown)
        loop.show_answer(session.turns[-1].answer.rstrip("\n"))


def _sessions(loop: Loop, which: str) -> None:
    if which.lower() not in ("", "all"):
        raise UsageError("write it as /sessions or /sessions all")
    store = loop.talk.store or user_store(loop.context.environ)
    entries = sorted(store.entries(), key=lambda entry: entry.problem is not None)
    most = len(entries) if which else _MOST_SESSIONS
    if not entries:
        loop.screen.say(f"none yet; they will be in {store.folder}")
        return
    rows = []
    for entry in entries[:most]:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.updated))
        said = entry.problem or f"{when}, {plural(entry.turns, 'message')}: {_short(entry.first)}"
        mark = "* " if entry.name == loop.talk.session.name else "  "
        rows.append((mark + entry.name, said))
    loop.screen.table(rows)
    if len(entries) > most:
        loop.screen.note(f"and {len(entries) - most} more: /sessions all")


def _file(loop: Loop, name: str) -> None:
    file = read_text_file(_unquoted(name))
    pending = joined([*loop.pending, file])
    again = ", once" if len(pending) == len(loop.pending) else ""
    loop.pending = pending
    loop.screen.note(f"{file.described} goes with your next message{again}")


def _profile(loop: Loop, name: str) -> None:
    from apdcli.cli.models import load_models
    from apdcli.load.profile import list_profiles

    current = loop.talk.pair.profile.name
    if not name:
        entries = list_profiles()
        loop.screen.table(
            [(("* " if e.name == current else "  ") + e.name, e.description) for e in entries]
        )
        return
    if name == current:
        loop.screen.note(f"{name} answers already")
        return
    knobs = loop.knobs
    before = knobs.profile, knobs.flags, dict(knobs.origins)
    settings = knobs.change_profile(name)
    try:
        loop.screen.note(f"loading {name}")
        pair = load_models(knobs.profile, settings)
    except BaseException:
        knobs.profile, knobs.flags, knobs.origins = before
        raise
    loop.talk.change_pair(pair)
    _remember(loop)
    loop.screen.note(f"{name} answers from here on")


def _trace(loop: Loop, argument: str) -> None:
    switch, _, path = argument.partition(" ")
    path = _path(path.strip())
    if not switch:
        goes = loop.tracing.next_path()
        loop.screen.note(f"the next answer's steps go to {goes}" if goes else "no trace")
        return
    if switch.lower() == "off" and not path:
        was_on = loop.tracing.path is not None
        loop.tracing.turn_off()
        loop.screen.note("no trace from here on" if was_on else "no trace is on")
    elif switch.lower() == "on" and path:
        check_writable(path)
        loop.tracing.turn_on(path)
        loop.screen.note(
            f"the next answer's steps go to {path}{_replacing(path)}, later ones beside it (-2, -3)"
        )
    else:
        raise UsageError("write it as /trace on FILE or /trace off")


def _stats(loop: Loop, _: str) -> None:
    for line in stats_lines(loop.talk.turns, loop.screen.columns):
        loop.screen.say(line)


def _copy(loop: Loop, _: str) -> None:
    text = _last(loop).answer
    code = clipboard_code(text)
    if code is None:
        raise UsageError("the answer is too long for a terminal's clipboard; /export or select it")
    loop.screen.raw(code)
    loop.screen.note(
        f"{plural(len(text), 'character')} sent to the terminal's clipboard (OSC 52; a terminal "
        "that does not know it ignores it)"
    )


def _export(loop: Loop, path: str) -> None:
    from apdcli.chat.picture import export_chat

    path = _path(path)
    check_picture_name(path, "as in /export chat.svg", "/export")
    replacing = _replacing(path)
    export_chat(path, loop.talk.turns, loop.talk.states)
    loop.screen.note(f"drawn to {path}{replacing}")


def _replacing(path: str) -> str:
    return ", replacing what it held" if Path(path).is_file() else ""


def _unquoted(name: str) -> str:
    """A file's name, which Tab puts in quotes where it has a space."""
    return name.strip("\"'") if len(name) > 1 else name


def _path(name: str) -> str:
    """The file that a command writes; "" for none."""
    return str(home_path(_unquoted(name))) if name else ""


def _last(loop: Loop) -> Turn:
    if not loop.talk.turns:
        raise UsageError("nothing was said yet")
    return loop.talk.turns[-1]


def _store(loop: Loop) -> Store:
    if loop.talk.store is None:
        raise UsageError("this conversation is not saved: apd was started with --no-save")
    return loop.talk.store


def _remember(loop: Loop) -> None:
    """Put what was set into the session, on disk once something was said."""
    session = loop.talk.session
    session.settings = kept_settings(loop.knobs.flags)
    if session.turns:
        loop.talk.save()


def kept_settings(flags: Mapping[str, object]) -> dict[str, object]:
    """Of the flags those that a session keeps."""
    return {n: v for n, v in flags.items() if n not in _OF_THE_RUN}


def _unseeded(loop: Loop, field: str) -> bool:
    return field == "seed" and loop.settings()["seed"].origin == "default"


def _written(value: object) -> str:
    if value and isinstance(value, (list, tuple)):
        return ", ".join(repr(item) for item in value)
    return (
        "none"
        if value in (None, [], ())
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )


def _short(text: str, most: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


DO: dict[str, Callable[[Loop, str], None]] = {
    "help": _help,
    "set": _set,
    "show": _show,
    "system": _system,
    "retry": _retry,
    "edit": _edit,
    "undo": _undo,
    "clear": _clear,
    "save": _save,
    "load": _load,
    "sessions": _sessions,
    "file": _file,
    "profile": _profile,
    "trace": _trace,
    "stats": _stats,
    "copy": _copy,
    "export": _export,
}
