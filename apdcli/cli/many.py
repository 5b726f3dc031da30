"""`apd generate --input`: many prompts by one loaded pair, an answer a line, in order.

A line that cannot be answered costs only itself: its place holds an error. Torch is imported when
the first line is to be answered. Knows neither how lines are read nor where answers go.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from apdcli.cli import generate
from apdcli.cli.answers import Answers, AnswersFile, StreamedAnswers
from apdcli.cli.context import Context
from apdcli.cli.lines import Asked, Line, Source, id_of, open_source, read_line
from apdcli.cli.loading import tell_loaded
from apdcli.cli.main import INTERRUPTED
from apdcli.cli.progress import Progress
from apdcli.cli.raw import RAW_IS_ALL, brings_system, told
from apdcli.errors import ApdError, InputError, ParameterError, UsageError
from apdcli.render.terminal import is_terminal
from apdcli.words import plural

if TYPE_CHECKING:
    from apdcli.engine.pair import LoadedPair
    from apdcli.engine.session import Generation, Request
    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings

_SEEDS = 2**32
_TOGETHER = 1024  # lines of a file that are checked before the first of them is decoded


def run(job: generate.Job, context: Context) -> int:
    """Answer every line; returns the exit status.

    Raises:
        InputError: at the end, when lines could not be answered.
    """
    profile, settings = generate.resolve(job, context)
    assert job.input is not None
    with ExitStack() as stack:
        file = stack.enter_context(AnswersFile(job.output)) if job.output else None
        answers = StreamedAnswers(context) if file is None else file
        source = stack.enter_context(open_source(job.input, job.jsonl, context))
        progress = stack.enter_context(Progress(context, source.total, quiet=job.quiet))
        many = _Many(job, context, (profile, settings), source, answers, progress)
        many.seed = _run_seed(file)
        many.answer(_following(many, file))
    return many.conclude()


def decode_all(
    requests: Sequence[Request | ApdError],
    batch_size: int | Literal["auto"],
    interrupted: Callable[[], bool],
) -> Iterator[Generation | ApdError]:
    """Results in the order of the requests, `batch_size` of them decoded at a time.

    An error in place of a request comes back as its result, and so does one that decoding meets.
    Ends after the results that were interrupted: finished ones all come before them.
    """
    from apdcli.engine.batch import run_batch

    for row in run_batch(requests, batch_size, interrupted):
        result = row.error or row.generation
        assert result is not None
        yield result


@dataclass(frozen=True)
class _Checked:
    """A line that was read.

    Attributes:
        asked: what it asks, or what is wrong with it.
        settings: its own and the run's; None where it is wrong.
    """

    line: Line
    asked: Asked | ApdError
    settings: Settings | None


class _Many:
    """One run over all lines."""

    def __init__(
        self,
        job: generate.Job,
        context: Context,
        resolved: tuple[Profile, Settings],
        source: Source,
        answers: Answers,
        progress: Progress,
    ) -> None:
        self.job, self.context, (self.profile, self.settings) = job, context, resolved
        self.source, self.answers, self.progress = source, answers, progress
        self.seed = 0
        self.done = self.failed = self.tokens = 0
        self.began = time.perf_counter()
        self._first_failure = ""
        self._pair: LoadedPair | None = None

    def check(self, line: Line) -> _Checked:
        """Read a line and settle everything that it asks, without a model."""
        try:
            asked = read_line(line, self.source.json_lines)
            settings = self._settings(asked, line.number)
            return _Checked(line, asked, self._told(asked, settings))
        except ApdError as error:
            return _Checked(line, error, None)

    def count(self, line: Line, error: str | None) -> None:
        """An answer stands in its place, from this run or an earlier one."""
        self.done += 1
        if error is not None:
            self.failed += 1
            self._first_failure = self._first_failure or f"line {line.number}: {error}"

    def answer(self, lines: Iterable[Line]) -> None:
        """Answer the lines, a group at a time, until they end or Ctrl-C is pressed."""
        signals = self.context.signals
        # whoever writes lines as they go waits for each answer
        size = 1 if self.source.live else _TOGETHER
        rest = iter(lines)
        while not signals.interrupted and (first := next(rest, None)) is not None:
            group = [self.check(line) for line in chain([first], islice(rest, size - 1))]
            pair = self._load()
            requests = [self._request(pair, checked) for checked in group]
            with signals.patient():
                results = decode_all(requests, self.job.batch_size, lambda: signals.interrupted)
                for checked, result in zip(group, results, strict=False):
                    if getattr(result, "finish_reason", "") == "interrupted":
                        break
                    self._write(checked, result, pair)

    def conclude(self) -> int:
        """The exit status, with a word to whoever watches."""
        job, context = self.job, self.context
        watched = job.verbose or (is_terminal(context.stderr) and not job.quiet)
        if context.signals.interrupted:
            if watched and isinstance(self.answers, AnswersFile) and not self.answers.streams:
                context.say(
                    f"stopped after {plural(self.done, 'line')}; the same command goes on there"
                )
            return INTERRUPTED
        if watched:
            seconds = time.perf_counter() - self.began
            context.say(
                f"{plural(self.done, 'line')} · {plural(self.tokens, 'token')} · "
                f"{self.tokens / seconds:.1f} tokens/s · {seconds:.1f} s"
            )
        if self.failed:
            raise InputError(
                f"{self.failed} of {plural(self.done, 'line')} of {self.source.name} could not "
                f"be answered; {self._first_failure}"
            )
        return 0

    def _raw(self, asked: Asked) -> bool:
        return self.job.raw if asked.raw is None else asked.raw

    def _told(self, asked: Asked, settings: Settings) -> Settings:
        """The settings as the answer tells them; what the line itself says must be used."""
        raw = self._raw(asked)
        if asked.settings.get("system"):
            if raw:
                raise InputError(f"raw and system exclude each other: {RAW_IS_ALL}")
            if brings_system(asked.prompt):
                raise InputError("both system and a system message in messages: give one")
        return told(settings, raw=raw, prompt=asked.prompt)

    def _brought(self, asked: Asked) -> set[str]:
        """Names of the settings that are as the line says."""
        own = set(asked.settings)
        own |= {"raw"} if asked.raw is not None else set()
        unused = self.settings.system and (asked.raw or brings_system(asked.prompt))
        return own | ({"system"} if unused else set())

    def _settings(self, asked: Asked, number: int) -> Settings:
        """The run's settings with those of the line in their place."""
        from apdcli.load.profile import check_strategy
        from apdcli.load.settings import Setting, Settings, given_over

        settings = self.settings
        if asked.settings:
            job = replace(self.job, flags=given_over(self.job.flags, asked.settings))
            try:
                _, settings = job.settle(self.profile, self.context.environ)
            except UsageError as error:
                if isinstance(error.__cause__, ParameterError):  # a line has no flags to name
                    raise error.__cause__ from None
                raise
            check_strategy(self.profile, settings.strategy)
        if settings["seed"].origin == "default" and settings.draws:
            seed = (self.seed + number) % _SEEDS  # equal prompts are answered differently
            settings = Settings({**settings.table, "seed": Setting(seed, "default")})
        return settings

    def _load(self) -> LoadedPair:
        if self._pair is None:
            began = time.perf_counter()
            from apdcli.cli.models import load_models

            self._pair = load_models(self.profile, self.settings)
            told = {"quiet": self.job.quiet, "verbose": self.job.verbose}
            tell_loaded(self.context, self._pair, self.settings, began, **told)
            self.progress.start()
            self.began = time.perf_counter()
        return self._pair

    def _request(self, pair: LoadedPair, checked: _Checked) -> Request | ApdError:
        from apdcli.engine.session import prepare

        asked = checked.asked
        if isinstance(asked, ApdError) or checked.settings is None:
            assert isinstance(asked, ApdError)
            return asked
        try:
            return prepare(pair, asked.prompt, checked.settings, raw=self._raw(asked))
        except ApdError as error:
            return error

    def _write(self, checked: _Checked, result: Generation | ApdError, pair: LoadedPair) -> None:
        from apdcli.cli.report import envelope

        asked, line = checked.asked, checked.line
        record: dict[str, Any] = dict(line.head)
        record |= id_of(line, self.source.json_lines)
        if isinstance(result, ApdError):
            record["error"] = " ".join(str(result).split())
            tokens = 0
        else:
            assert checked.settings is not None
            assert isinstance(asked, Asked)
            record |= envelope(result, checked.settings, pair, self._brought(asked))
            tokens = len(result.token_ids)
        with self.progress.aside():
            self.answers.write(record)
        self.tokens += tokens
        self.count(line, record.get("error"))
        self.progress.step(tokens)


def _run_seed(file: AnswersFile | None) -> int:
    """What the seeds of lines that sample count from: as in the answers there are, else anew."""
    for record in [] if file is None else file.finished:
        seed = record.get("settings", {}).get("seed", {})
        if seed.get("from") == "default" and _samples(record["settings"]):
            return (int(seed["value"]) - int(record["line"])) % _SEEDS
    return secrets.randbelow(_SEEDS)


def _samples(table: Mapping[str, Any]) -> bool:
    from apdcli.load.settings import draws

    return draws({name: entry.get("value") for name, entry in table.items()})


def _following(many: _Many, file: AnswersFile | None) -> Iterator[Line]:
    """The lines that are not answered yet, the others found to be those that are.

    Raises:
        UsageError: the file answers another input, or was made with other settings.
    """
    lines = many.source.lines()
    finished = [] if file is None else file.finished
    for place, record in enumerate(finished):
        line = next(lines, None)
        if line is None:
            raise UsageError(
                f"{many.job.output} holds {plural(len(finished), 'answer')} and "
                f"{many.source.name} only {plural(place, 'line')}; name another --output"
            )
        assert file is not None
        settings = many.check(line).settings
        file.check(place, line, None if settings is None else settings.as_json())
        many.count(line, record.get("error"))
    many.progress.skip(len(finished))
    first = next(lines, None)
    if file is not None:
        file.begin(first)
    if first is not None:
        yield from chain([first], lines)
