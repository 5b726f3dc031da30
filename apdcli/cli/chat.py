"""`apd chat`: settings, session, models, and then a person's loop or a script's lines.

Torch is imported only once everything that can be wrong without it has been found right.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from apdcli.cli import generate, options
from apdcli.cli.chat_options import LATEST
from apdcli.cli.context import Context
from apdcli.cli.outputs import check_apart, check_writable
from apdcli.cli.variables import note_unknown
from apdcli.errors import ModelError, ParameterError, ProfileError, UsageError
from apdcli.render.terminal import can_draw, is_terminal, no_echo, stream_size

if TYPE_CHECKING:
    from apdcli.chat.reader import Reader
    from apdcli.chat.screen import Screen
    from apdcli.chat.sessions import Session, Store
    from apdcli.chat.talk import Talk
    from apdcli.cli.chat_knobs import Knobs
    from apdcli.cli.chat_loop import Loop
    from apdcli.engine.pair import LoadedPair
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings

_HISTORY = "history"


@dataclass(frozen=True)
class Job(generate.Job):
    """What the command line asked for.

    Attributes:
        resume: a session's name, LATEST for the last one, None for a new one.
        session: the name of a session to go on with, or to begin.
    """

    command: ClassVar[str] = "chat"

    resume: str | None = None
    session: str | None = None
    no_save: bool = False
    markdown: bool = False

    @classmethod
    def of(cls, prompt: str | None, values: Mapping[str, Any]) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that exclude each other.
        """
        given = [name for name in ("resume", "session") if values[name] is not None]
        given += ["no_save"] if values["no_save"] else []
        if len(given) > 1:
            one, other = map(options.long_flag, given[:2])
            hint = options.help_hint(cls.command)
            raise UsageError(f"{one} and {other} exclude each other; {hint}")
        job = super().of(prompt, {"output": None, "raw": False, **values})
        assert isinstance(job, Job)
        return job


def run(job: Job, context: Context) -> int:
    """Hold the conversation; returns the exit status."""
    note_unknown(context, quiet=job.quiet, verbose=job.verbose)
    from apdcli.chat.sessions import user_store

    people = is_terminal(context.stdin) and is_terminal(context.stdout) and not job.json
    named = job.resume is not None or job.session is not None
    store = user_store(context.environ) if people or named else None
    store = None if job.no_save else store
    session, kept, given = _resumed(job, store), dict[str, Any](), job.flags
    if session is not None:
        from apdcli.cli.chat_knobs import settings_in

        kept = settings_in(session, but=given)
        job = _with_session(job, session, kept)
    with _remedy(session, given):
        profile, settings = generate.resolve(job, context)
    check_apart({"--trace": job.trace, "--export": job.export})
    for path in (job.trace, job.export):
        if path is not None:
            check_writable(path)
    _ = context.out  # closed: say so before the work
    from apdcli.cli.chat_knobs import Knobs

    flags = {**kept, **job.flags}
    knobs = Knobs(profile, flags, context.environ, kept=flags.keys() - given.keys())
    with _remedy(session, given):
        knobs.settings()  # with what the session set for its strategy
    screen = _screen(context) if people else None
    # what is typed ahead is seen at the prompt, once
    keys = people and can_draw(context.out, context.environ)
    with no_echo(context.stdin if people else None, keys=keys):
        with _remedy(session, given):
            pair = _load(job, context, profile, settings)
        talk = _talk(job, store, session, pair, knobs)
        loop = None if screen is None else _loop(job, context, talk, knobs, screen)
    status = _with_script(job, context, talk, knobs) if loop is None else _with_person(loop)
    if job.export is not None and talk.turns:
        from apdcli.chat.picture import export_chat

        export_chat(job.export, talk.turns, talk.states)
    return status


def _resumed(job: Job, store: Store | None) -> Session | None:
    """The session that goes on; None for a new one."""
    if store is None or (job.resume is None and job.session is None):
        return None
    if job.session is not None:
        return store.load(job.session) if store.has(job.session) else None
    name = None if job.resume == LATEST else job.resume
    if name is not None:
        store.path(name)  # what is no name begins nothing either
    try:
        return store.load(name)
    except UsageError as error:
        begins = "begins one" if name is None else "begins it"
        raise UsageError(f"{error}; apd chat --session {name or 'NAME'} {begins}") from error


@contextlib.contextmanager
def _remedy(session: Session | None, given: Mapping[str, Any]) -> Iterator[None]:
    """Name the session whose settings or models cannot be used, and the way to go on with it."""
    try:
        yield
    except (ProfileError, ModelError) as error:
        if session is None or "profile" in given:
            raise
        text = f"session {session.name}: {error}; -p NAME goes on with another profile"
        raise type(error)(text) from error
    except UsageError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ParameterError) else error
        words = set(re.findall(r"\w+", str(cause)))
        if session is None or not words & (session.settings.keys() - given.keys()):
            raise  # it is not about anything that the session keeps
        raise UsageError(
            f"session {session.name}: {error}; what is given by flag stands over what it kept"
        ) from error


def _with_session(job: Job, session: Session, kept: Mapping[str, Any]) -> Job:
    """The job with the session's profile and settings under what was given by flag.

    Without those of strategies: they may wait for another one, where a flag would be a mistake.
    """
    shared = {n: v for n, v in kept.items() if n not in options.OWN_FIELDS}
    return replace(job, flags={"profile": session.profile, **shared, **job.flags})


def _load(job: Job, context: Context, profile: Profile, settings: Settings) -> LoadedPair:
    began = time.perf_counter()
    from apdcli.cli.loading import loading, tell_loaded

    with loading(context, quiet=job.quiet):
        from apdcli.cli.models import load_models

        pair = load_models(profile, settings)
    tell_loaded(context, pair, settings, began, quiet=job.quiet, verbose=job.verbose)
    return pair


def _talk(
    job: Job, store: Store | None, session: Session | None, pair: LoadedPair, knobs: Knobs
) -> Talk:
    from apdcli.chat.sessions import Session
    from apdcli.chat.talk import Talk, profile_name
    from apdcli.cli.chat_do import kept_settings

    if session is None:
        session = Session(job.session or (store.fresh_name() if store is not None else "-"))
    session.profile = profile_name(pair)
    session.settings = kept_settings(knobs.flags)
    session.markdown |= job.markdown
    if "system" in job.flags:
        session.system = job.flags["system"]
        knobs.flags.pop("system")
    return Talk(pair, session, store)


def _screen(context: Context) -> Screen:
    from apdcli.chat.screen import Screen

    return Screen(context.out, stream_size(context.out), context.environ)


def _loop(job: Job, context: Context, talk: Talk, knobs: Knobs, screen: Screen) -> Loop:
    """The loop, its headline and what was resumed being on the screen."""
    from apdcli.cli.chat_do import show_session
    from apdcli.cli.chat_loop import Loop

    loop = Loop(
        talk,
        knobs,
        context,
        screen=screen,
        reader=_reader(job, context, talk, knobs),
        live=not (job.no_live or job.quiet),
        quiet=job.quiet,
    )
    if job.trace is not None:
        loop.tracing.turn_on(job.trace)
    if not job.quiet:
        screen.note(f"{_headline(talk, loop.settings())} · /help for commands, Ctrl-D leaves")
    if talk.turns or job.resume is not None:
        show_session(loop)
    elif job.session is not None and not job.quiet:
        screen.note(f"a new conversation, saved as {job.session} from its first answer on")
    return loop


def _with_person(loop: Loop) -> int:
    status, talk = loop.run(), loop.talk
    if talk.turns and talk.store is not None and not loop.quiet:
        loop.screen.note(f"saved as {talk.session.name}; apd chat --resume goes on with it")
    return status


def _headline(talk: Talk, settings: Settings) -> str:
    from apdcli.cli.report import SYMBOLS

    knobs = [f"{s} {settings[n].value}" for n, s in SYMBOLS.items() if n in settings]
    return " ".join((f"{talk.pair.profile.name}: {settings.strategy}", *knobs))


def _reader(job: Job, context: Context, talk: Talk, knobs: Knobs) -> Reader:
    from apdcli.chat.reader import PlainReader, PromptReader
    from apdcli.chat.sessions import data_folder

    assert context.stdin is not None
    if not can_draw(context.out, context.environ):
        return PlainReader(context.stdin, context.out)
    from apdcli.chat.completion import Sources
    from apdcli.load.profile import list_profiles

    sources = Sources(
        settings=knobs.names,
        values=knobs.values(),
        profiles=lambda: [entry.name for entry in list_profiles()],
        sessions=lambda: talk.store.names() if talk.store is not None else [],
    )
    history = None if job.no_save else data_folder(context.environ) / _HISTORY
    return PromptReader(
        context.stdin, context.out, context.environ, history=history, sources=sources
    )


def _with_script(job: Job, context: Context, talk: Talk, knobs: Knobs) -> int:
    from apdcli.cli.chat_answer import Tracing
    from apdcli.cli.chat_lines import Lines

    lines = Lines(
        talk,
        knobs,
        context,
        as_json=job.json,
        streams=not (job.json or job.no_stream),
        verbose=job.verbose,
        tracing=Tracing(job.trace),
    )
    return lines.run()
