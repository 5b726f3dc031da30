"""What `apd` understands: its commands and options. Parsing only; nothing is run and no torch.

A command returns what is to be done, as a function of the context: so no parser stands between
the work and the one place that handles its failures.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Container
from typing import Annotated, Any

import typer
from typer.main import get_command

from apdcli import __version__
from apdcli.cli import bench, chat_options, eval_options, options, profiles, tune_options
from apdcli.cli.context import Context
from apdcli.cli.helptext import fitting, help_width
from apdcli.cli.usage import complaint
from apdcli.errors import UsageError

Todo = Callable[[Context], int]

_EPILOG = """Settings that are not given come from APD_* variables (APD_TEMPERATURE=0.7), then
from the profile, then from the defaults shown.

Many prompts: --input FILE answers each line of a text, or of JSON Lines with "prompt" or
"messages" (and "id", "temperature", ... for that line alone), as JSON Lines in the same order.
Run again with the same --output, it goes on where it stopped. A line that is wrong gets
{"error": ...} and the status is 1. Without a seed each line draws with its own, which its
settings tell; --seed N is that of every line.

\b
Examples:
  apd generate "Write a haiku about the sea"
  apd generate -p dream -n 512 "Explain how tides work" -o tides.txt
  cat notes.txt | apd generate "Summarize this" --json | jq .usage
  apd generate --input prompts.jsonl -o answers.jsonl
"""
_FILL_EPILOG = """\b
Examples:
  apd fill "The capital of France is ___."
  apd fill --gap 24 - < notes.txt > filled.txt
"""


def build() -> typer.Typer:
    """The application: `apd` with all its commands."""
    app = typer.Typer(
        name="apd",
        add_completion=False,  # our own knows more, and loads less
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_root)
    command = app.command(
        "generate",
        cls=options.GroupedCommand,
        epilog=_EPILOG,
        options_metavar="[OPTIONS]",
    )
    command(options.with_flags(_generate))
    chat_options.add_to(app)
    command = app.command(
        "fill", cls=options.FillCommand, epilog=_FILL_EPILOG, options_metavar="[OPTIONS]"
    )
    command(options.with_flags(_fill, options.FILL_FLAGS))
    app.command("replay")(_replay)
    eval_options.add_to(app)
    tune_options.add_to(app)
    bench.add_to(app)
    app.add_typer(profiles.build(), name="profiles")
    app.command("man")(_man)
    return app


def parse(args: list[str], context: Context) -> Todo | int:
    """What `args` ask for, or the exit status where the parser has done it itself (--help).

    Raises:
        UsageError: the command line is wrong.
    """
    command = fitting(get_command(build()))
    commands = getattr(command, "commands", {})
    try:
        result = command.main(
            _as_meant(args, commands),
            prog_name="apd",
            standalone_mode=False,
            obj=context,
            terminal_width=help_width(),
        )
    except Exception as error:
        if not hasattr(error, "format_message"):  # what Click's and Typer's errors have in common
            raise
        known = args[:1] if args and args[0] in commands else []
        raise UsageError(complaint(error, " ".join(["apd", *known]))) from error
    return result if callable(result) else int(result or 0)


def _as_meant(args: list[str], commands: Container[str]) -> list[str]:
    """The same in full, where other tools let something be left out."""
    first, *rest = args or [""]
    if args in (["--install-completion"], ["--show-completion"]):
        return [first, "auto"]
    if first == "help":
        return [*rest, "--help"]
    # apd "Write a haiku": no command has a space in its name
    is_prompt = first not in commands and not first.startswith("-") and " " in first.strip()
    return ["generate", *args] if is_prompt else args


def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --version: versions of what matters.")
    ] = False,
    install_completion: Annotated[
        str | None,
        typer.Option(
            metavar="[SHELL]",
            show_default=False,
            help="Complete with Tab from now on: in bash, zsh, fish or powershell.",
        ),
    ] = None,
    show_completion: Annotated[
        str | None,
        typer.Option(metavar="[SHELL]", show_default=False, help="Print the script that does it."),
    ] = None,
) -> Any:
    """Diffusion language models on the command line, several tokens at a time."""
    context: Context = ctx.obj
    context.debug = debug
    if ctx.invoked_subcommand is not None:
        if as_json:
            raise UsageError(f"--json goes after the command: apd {ctx.invoked_subcommand} --json")
        if version or install_completion or show_completion:
            given = "--version" if version else "completion"
            raise UsageError(f"{given} is asked for without a command; see 'apd --help'")
        return None
    if install_completion or show_completion:
        return _completion(install_completion or "", show_completion or "")
    if as_json and not version:
        raise UsageError("--json goes with --version here; see 'apd --help'")
    if not version:
        typer.echo(ctx.get_help())
        return 0
    if not as_json:
        return _printer(f"apd {__version__}")
    from apdcli.cli.version import versions_of_all

    return _printer(json.dumps(versions_of_all()))


def _completion(install: str, show: str) -> Todo:
    def run(context: Context) -> int:
        from apdcli.cli import shells

        wanted = install or show
        shell = shells.current_shell(context.environ) if wanted == "auto" else wanted
        if show:
            context.print(shells.script(shell).removesuffix("\n"))
            return 0
        written = shells.install(shell, context.environ)
        for path in written:
            context.print(f"written: {path}")
        context.print(
            f"{shell} completes apd: start a new one to see it"
            if written
            else f"{shell} completes apd already"
        )
        return 0

    return run


def _man() -> Todo:
    """Print the manual page, made from the help: apd man | man -l -"""

    def run(context: Context) -> int:
        from apdcli.cli.man import manual

        context.print(manual().removesuffix("\n"))
        return 0

    return run


def _printer(text: str) -> Todo:
    def run(context: Context) -> int:
        context.print(text)
        return 0

    return run


def _generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="The message, or text to continue with --raw. Piped standard input goes before "
            "it, with a blank line between; '-' or nothing: standard input alone.",
        ),
    ] = None,
    **values: Any,
) -> Todo:
    """Generate text: several tokens a step, shown as they are accepted.

    Standard output gets the answer and nothing else.
    """
    from apdcli.cli import generate

    job = generate.Job.of(prompt, values)
    return lambda context: generate.run(job, context)


def _fill(
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            show_default=False,
            help="The text, with ___ for each gap. '-' or nothing: standard input.",
        ),
    ] = None,
    **values: Any,
) -> Todo:
    """Fill the gaps in a text, from both sides; the rest of it stays as it is.

    Standard output gets the filled text and nothing else.
    """
    from apdcli.cli import fill, generate

    job = fill.Job.of(text, values)
    return lambda context: generate.run(job, context)


def _replay(
    trace: Annotated[
        str | None,
        typer.Argument(
            metavar="TRACE",
            show_default=False,
            help="A file that --trace wrote. '-' or nothing: standard input.",
        ),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            "--speed",
            metavar="X",
            show_default=False,
            help="How many times faster than it was; 0 or max: no waiting "
            "[default 1 on a terminal, else max].",
        ),
    ] = None,
    export: Annotated[
        str | None,
        typer.Option(
            "--export",
            metavar="FILE",
            show_default=False,
            help="Save the view as a picture, .svg or .html.",
        ),
    ] = None,
    no_live: Annotated[
        bool, typer.Option("--no-live", help="Plain text on a terminal too.")
    ] = False,
) -> Todo:
    """Play a recorded generation again, without its models.

    Standard output gets the text that was generated and nothing else.
    """
    from apdcli.cli import replay

    job = replay.Job.of(trace, speed, export, no_live)
    return lambda context: replay.run(job, context)
