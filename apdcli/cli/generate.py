"""`apd generate`: settings, prompt, models, events, answer; each step is another module's work.

Torch is imported only once everything that can be wrong without it has been found right. Knows
nothing of exit statuses but those of an answer: 0, or 130 when it was cut short by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from apdcli.cli import options
from apdcli.cli.context import Context
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.many_options import batch_size, check_many
from apdcli.cli.outputs import check_apart, check_picture_name, check_writable
from apdcli.cli.prompt import STDIN, read_prompt
from apdcli.cli.raw import RAW_IS_ALL, told
from apdcli.cli.variables import note_unknown
from apdcli.decode.params import make_params
from apdcli.errors import ParameterError, UnknownParameterError, UsageError
from apdcli.render.output_file import OutputFile
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from apdcli.cli.signals import Signals
    from apdcli.decode.types import Finished, StepEvent
    from apdcli.engine.conversation import TurnRequest
    from apdcli.engine.pair import LoadedPair
    from apdcli.engine.session import Generation, Request
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings
    from apdcli.render import LiveView, PlainWriter, TraceWriter, ViewState

View = Callable[[Any], None]


@dataclass(frozen=True)
class Layout:
    """What is on the view before anything is generated.

    Attributes:
        start: the position of the first token shown.
        given: (position, text) that is there from the start (infilling).
        length: up to which position something will stand, 0 where that is not known (infilling).
        heading: a line above it in a picture.
    """

    start: int
    given: tuple[tuple[int, str], ...] = ()
    length: int = 0
    heading: str = ""


@dataclass(frozen=True)
class Job:
    """What the command line asked for, checked as far as it can be without reading any file.

    A command that decodes something else than the answer to a prompt overrides its methods.
    """

    command: ClassVar[str] = "generate"

    prompt: str | None
    flags: Mapping[str, Any]  # settings given by flag, by name
    raw: bool
    json: bool
    output: str | None
    trace: str | None
    export: str | None
    no_live: bool
    no_stream: bool
    quiet: bool
    verbose: bool
    input: str | None = None
    jsonl: bool = False
    batch_size: int | Literal["auto"] = "auto"

    @classmethod
    def of(cls, prompt: str | None, values: Mapping[str, Any]) -> Job:
        """The job of these option texts.

        Raises:
            UsageError: a value out of range, or options that exclude each other.
        """
        hint = options.help_hint(cls.command)
        if values["quiet"] and values["verbose"]:
            raise UsageError(f"-q and -v exclude each other; {hint}")
        if values.get("raw") and values.get("system"):
            raise UsageError(f"--raw and -s/--system exclude each other: {RAW_IS_ALL}; {hint}")
        export = values["export"]
        if export is not None:
            check_picture_name(export, hint)
        if "-" in (values["trace"], export):
            raise UsageError("--trace and --export need a file: stdout is for the answer only")
        own = {n: v for n, v in values.items() if n in cls.__dataclass_fields__}
        own["output"] = None if own["output"] == "-" else own["output"]
        piped = bool(own.get("jsonl")) and own.get("input") is None
        if piped:
            own["input"] = STDIN
        if "batch_size" in own:
            own["batch_size"] = batch_size(own["batch_size"], own["input"], hint)
        if own.get("input") is not None:
            check_many(prompt, own, hint, piped=piped)
        return cls(prompt=prompt, flags=options.read_values(values, cls.command), **own)

    @property
    def streams(self) -> bool:
        """Whether the answer is shown while it is made."""
        return not (self.json or self.output or self.no_stream)

    def settle(self, profile: Profile, environ: Mapping[str, str]) -> tuple[Profile, Settings]:
        """Every setting, and the profile as far as it is needed."""
        from apdcli.load.settings import resolve_settings

        settings = resolve_settings(profile, self.flags, environ)
        check_settings(settings)
        return profile, settings

    def told(self, settings: Settings) -> Settings:
        """The settings as the answer's are told: whether the template was used is among them."""
        return told(settings, raw=self.raw)

    def read(self, context: Context) -> str:
        """The text to decode from."""
        return read_prompt(self.prompt, context, raw=self.raw)

    def prepare(self, pair: LoadedPair, text: str, settings: Settings) -> tuple[Request, Layout]:
        """The request, checked, and what is seen of it from the start."""
        from apdcli.engine.session import prepare

        request = prepare(pair, text, settings, raw=self.raw)
        return request, Layout(len(request.prompt_ids), heading=text)


def run(job: Job, context: Context) -> int:
    """Do the job; returns the exit status."""
    note_unknown(context, quiet=job.quiet, verbose=job.verbose)
    if job.input is not None:
        from apdcli.cli import many

        return many.run(job, context)
    profile, settings = resolve(job, context)
    try:
        return _run(job, context, profile, job.told(settings))
    finally:
        context.signals.release()


def _run(job: Job, context: Context, profile: Profile, settings: Settings) -> int:
    check_apart({"-o/--output": job.output, "--trace": job.trace, "--export": job.export})
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(OutputFile(job.output)) if job.output else None
        for path in filter(None, (job.trace, job.export)):
            check_writable(path)
        if target is None:
            _ = context.out  # closed: say so before the work
        text = job.read(context)
        going = _load(profile, settings, text, job, context)
        traced = going.request, going.layout, settings
        trace = stack.enter_context(open_trace(job.trace, *traced)) if job.trace else None
        context.signals.hold()  # a second Ctrl-C does not take away what there is
        consumers: list[View] = [] if trace is None else [trace]
        generation = decoded(going.request, consumers, lambda: _view(going), context.signals)
        _deliver(generation, going, target)
    if job.export is not None:
        from apdcli.render.picture import export_picture

        export_picture(job.export, going.state, prompt=going.layout.heading)
    if trace is not None and trace.failure is not None:
        raise trace.failure
    return INTERRUPTED if generation.finish_reason == "interrupted" else 0


@dataclass(frozen=True)
class _Going:
    """A job that is ready to decode, and how it looks while it does."""

    job: Job
    context: Context
    settings: Settings
    request: Request
    layout: Layout
    state: ViewState


def resolve(job: Job, context: Context, seed: int | None = None) -> tuple[Profile, Settings]:
    """The profile and every setting, with `seed` (None: a new one) where one counts and none is.

    A parameter of another strategy is named by its flag.
    """
    from apdcli.load.profile import check_strategy
    from apdcli.load.settings import Setting, Settings, chosen_profile

    profile = chosen_profile(job.flags.get("profile"), context.environ)
    try:
        profile, settings = job.settle(profile, context.environ)
    except UnknownParameterError as error:
        own = [name for name in error.known if name in options.OWN_FIELDS]
        takes = f"which takes {options.flags_of(own)}" if own else "which has none of its own"
        raise UsageError(
            f"{options.flag_of(error.field)} does not go with strategy {error.strategy}, {takes}"
        ) from error
    check_strategy(profile, settings.strategy)  # before gigabytes are loaded in vain
    if settings["seed"].origin == "default" and (settings.draws or seed is not None):
        fresh = Setting(secrets.randbelow(2**32) if seed is None else seed, "default")
        settings = Settings({**settings.table, "seed": fresh})
    return profile, settings


def check_settings(settings: Settings) -> None:
    """Find out before torch is loaded whether values that are right alone are so together.

    Raises:
        UsageError: they are not; it says by which flag each is given, and where it came from.
    """
    from apdcli.load.settings import check_together

    try:
        check_together(settings)
        make_params(settings.strategy, **settings.decode_values())
    except ParameterError as error:
        origin = settings[error.field].origin
        raise UsageError(
            f"{options.flag_of(error.field)} {error.value} ({origin}): it must be {error.allowed}"
        ) from error


def _load(profile: Profile, settings: Settings, text: str, job: Job, context: Context) -> _Going:
    """Load the models and check the request against them."""
    began = time.perf_counter()
    from apdcli.cli.loading import loading, tell_loaded

    with loading(context, quiet=job.quiet):
        from apdcli.cli.models import load_models

        pair = load_models(profile, settings)
        request, layout = job.prepare(pair, text, settings)
    tell_loaded(context, pair, settings, began, quiet=job.quiet, verbose=job.verbose)
    state = view_state(request, layout, settings)
    return _Going(job, context, settings, request, layout, state)


def view_state(request: Request, layout: Layout, settings: Settings) -> ViewState:
    """How the answer to a request looks while it is made."""
    from apdcli.cli.report import SYMBOLS
    from apdcli.render import Settings as Shown
    from apdcli.render import ViewState
    from apdcli.render.given import with_given

    tokenizer = request.pair.tokenizer
    token_bytes, given = with_given(tokenizer.token_bytes, layout.given)
    shown = tuple((s, str(settings[n].value)) for n, s in SYMBOLS.items() if n in settings)
    return ViewState(
        token_bytes,
        layout.start,
        settings=Shown(request.strategy, shown),
        stop_ids=request.shared.stop_ids,
        skip=tokenizer.special_ids,
        stop=request.stop,
        given=given,
        length=layout.length,
    )


def open_trace(path: str, request: Request, layout: Layout, settings: Settings) -> TraceWriter:
    """A trace of the answer to a request, begun; raises OutputError."""
    from apdcli.cli.report import versions
    from apdcli.render import TraceWriter

    return TraceWriter(
        path,
        token_bytes=request.pair.tokenizer.token_bytes,
        prompt_len=layout.start,
        settings=settings.as_json(),
        versions=versions(settings),
        stop_ids=sorted(request.shared.stop_ids),
        stop=list(request.stop),
        skip_ids=sorted(request.pair.tokenizer.special_ids),
        given=layout.given,
        length=layout.length,
    )


def decoded(
    request: Request | TurnRequest,
    consumers: Sequence[View],
    open_view: Callable[[], AbstractContextManager[View]],
    signals: Signals,
) -> Generation:
    """Run it to its end or until Ctrl-C, and let everyone see each event.

    The first Ctrl-C ends it after a step, the second in the middle of one; later ones, and those
    that come while an event is shown, wait until the answer is put away. `signals` are held.
    """
    from apdcli.decode.types import Finished

    steps: list[StepEvent] = []
    last: Finished | None = None
    events = request.events(lambda: signals.interrupted)
    closing = contextlib.closing(events)  # type: ignore[type-var]  # a generator
    with closing, open_view() as view:
        everyone = (*consumers, view)
        try:
            for event in signals.each(events):
                if isinstance(event, Finished):
                    last = event
                else:
                    steps.append(event)
                for consume in everyone:
                    consume(event)
        except KeyboardInterrupt:  # the second Ctrl-C, in the middle of a step
            last = _cut_short(steps)
            for consume in everyone:
                consume(last)
    return request.summarize(steps, last or _cut_short(steps))


def _cut_short(steps: Sequence[StepEvent]) -> Finished:
    from apdcli.decode.types import Finished

    if not steps:
        return Finished("interrupted", 0, 0, 0, 0, 0.0)
    end = steps[-1]
    forwards = (end.denoiser_forwards, end.verifier_forwards, end.tokens_forwarded)
    return Finished("interrupted", end.step, *forwards, end.elapsed_s)


def _view(going: _Going) -> AbstractContextManager[View]:
    """What shows the answer on the way, or only counts it."""
    return _open_view(going) if going.job.streams else contextlib.nullcontext(going.state.apply)


def _open_view(going: _Going) -> LiveView | PlainWriter:
    from apdcli.render import open_view

    job, context = going.job, going.context
    return open_view(
        going.state,
        live=not (job.no_live or job.quiet),
        quiet=job.quiet,
        verbose=job.verbose,
        out=context.out,
        err=context.stderr,
        keyboard=context.stdin,
        environ=context.environ,
    )


def _deliver(generation: Generation, going: _Going, target: OutputFile | None) -> None:
    """Hand over what was not streamed, and the summary where the live view has not given it."""
    job, context = going.job, going.context
    if job.json:
        from apdcli.cli.report import envelope

        text = json.dumps(envelope(generation, going.settings, going.request.pair))
    else:
        text = generation.text
    if target is not None:
        target.write(text if text.endswith("\n") else text + "\n")
    elif not job.streams:
        context.print(text.removesuffix("\n"))
    if _wants_summary(job, context):
        from apdcli.render import summary_line

        context.remark(summary_line(going.state))


def _wants_summary(job: Job, context: Context) -> bool:
    from apdcli.render.terminal import can_draw

    drawn = job.streams and not (job.no_live or job.quiet)
    if drawn and can_draw(context.out, context.environ):
        return False
    people = is_terminal(context.stdout) and is_terminal(context.stderr)
    return job.verbose or (people and not (job.quiet or job.json or job.output))
