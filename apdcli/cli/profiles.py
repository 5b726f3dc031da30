"""`apd profiles`: what there is, what it says, where it lies; a new one, a change, a check. Prints.

Loads no torch but for `check`. Knows nothing of decoding.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from apdcli.cli.context import Context
from apdcli.cli.variables import note_unknown
from apdcli.errors import ParameterError, ProfileError, UsageError
from apdcli.render.terminal import is_terminal

if TYPE_CHECKING:
    from pathlib import Path

    from apdcli.load.profile import Profile
    from apdcli.load.settings import Settings

Todo = Callable[[Context], int]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A name, or a path to a .toml file.")]
Effective = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        show_default=False,
        help="A name, or a path to a .toml file [default: APD_PROFILE, else demo].",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


_NO_BREAK = "\N{NO-BREAK SPACE}"  # textwrap does not break there


def build() -> typer.Typer:
    """The group of commands."""
    app = typer.Typer(help="See, check, make and change profiles.", rich_markup_mode=None)
    app.callback(invoke_without_command=True)(_group)
    app.command("list")(_list)
    app.command("show")(_show)
    app.command("path")(_path)
    app.command("new")(_new)
    app.command("edit")(_edit)
    app.command("check")(_check)
    return app


def _group(ctx: typer.Context) -> Any:
    """See, check, make and change profiles."""
    return _list() if ctx.invoked_subcommand is None else None


def _list(as_json: Json = False) -> Todo:
    """List the profiles that can be named, yours and the shipped ones."""

    def run(context: Context) -> int:
        note_unknown(context)
        from apdcli.load.profile import list_profiles

        entries = list_profiles()
        if as_json:
            context.print(_dump([asdict(entry) for entry in entries]))
            return 0
        wide = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            what = entry.description if entry.problem is None else f"unusable: {entry.problem}"
            what += " (hides the shipped one)" if entry.hides else ""
            context.print(_fitted(f"{entry.name:{wide}}  {entry.source:7}  ", what, context))
        return 0

    return run


def _show(name: Effective = None, as_json: Json = False) -> Todo:
    """Show a profile: its file, and every setting with where it comes from."""

    def run(context: Context) -> int:
        note_unknown(context)
        from apdcli.cli.report import NEW_SEED, before_a_run
        from apdcli.load.settings import chosen_profile, resolve_settings

        profile = chosen_profile(name, context.environ)
        text = profile.path.read_text(encoding="utf-8-sig")
        settings = before_a_run(resolve_settings(profile, {"profile": name}, context.environ))
        if as_json:
            shown = {"name": profile.name, "path": str(profile.path), "source": profile.source}
            context.print(_dump({**shown, "text": text, "settings": settings.as_json()}))
            return 0
        context.print(f"# {profile.path} ({profile.source})\n{text.rstrip()}\n\n# in effect")
        for key, setting in settings.items():
            if key != "profile":
                unseeded = key == "seed" and setting.value is None
                value = NEW_SEED if unseeded else json.dumps(setting.value)
                context.print(f"# {key} = {value}  ({_origin(setting.origin, settings)})")
        return 0

    return run


def _origin(origin: str, settings: Settings) -> str:
    """Where a setting comes from, with the device that tuned ones are for."""
    if origin != "tuned":
        return origin
    from apdcli.load.device_name import device_name

    return f"tuned for {device_name(settings['denoiser_device'].value)}"


def _path(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Print this profile's file.")
    ] = None,
    as_json: Json = False,
) -> Todo:
    """Print the folders that profiles lie in: yours first, then the shipped ones."""

    def run(context: Context) -> int:
        note_unknown(context)
        from apdcli.load.profile import profile_path, shipped_profiles_dir, user_profiles_dir

        if name is not None:
            found = {"file": str(profile_path(name))}
        else:
            found = {"user": str(user_profiles_dir()), "shipped": str(shipped_profiles_dir())}
        context.print(_dump(found) if as_json else "\n".join(found.values()))
        return 0

    return run


def _new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, '.', '_', '-'.")],
) -> Todo:
    """Make a commented profile for you to edit, and print where it is."""

    def run(context: Context) -> int:
        from apdcli.load.new_profile import new_profile
        from apdcli.load.profile import shipped_path

        context.print(str(new_profile(name)))
        if shipped_path(name):
            _note(_hides(name), context)
        return 0

    return run


def _edit(name: Name) -> Todo:
    """Change a profile of your own in $VISUAL or $EDITOR, then check what it says.

    A shipped profile stays as it is: a copy of it becomes your own, and wins over it.
    """

    def run(context: Context) -> int:
        from apdcli.cli.editor import chosen_editor, run_editor
        from apdcli.load.new_profile import editable_profile
        from apdcli.load.profile import find_profile

        if not chosen_editor(context.environ) and not is_terminal(context.stdin):
            raise UsageError("no terminal to edit on: set $EDITOR, or see 'apd profiles path NAME'")
        path, copied = editable_profile(name)
        before = path.read_bytes()
        try:
            run_editor(path, context)
        except UsageError as error:
            if path.is_file() and path.read_bytes() == before:
                raise
            raise UsageError(f"{error}; {path} is as it left it") from error
        finally:
            unchanged = copied and path.is_file() and path.read_bytes() == before
            if unchanged:
                path.unlink()
        if unchanged:
            _note("unchanged; the shipped profile stays in effect", context)
            return 0
        if copied:
            _note(_hides(name), context)
        try:
            _check_alone(find_profile(path))
        except ProfileError as error:
            raise ProfileError(f"{error}; {_kept(name, path)}") from error
        context.print(str(path))
        return 0

    return run


def _check_alone(profile: Profile) -> None:
    """Raise ProfileError where the profile's own values do not go together."""
    from apdcli.decode.params import make_params
    from apdcli.load.settings import check_together, resolve_settings

    settings = resolve_settings(replace(profile, tuned={}), {}, {})
    try:
        check_together(settings)
        make_params(settings.strategy, **settings.decode_values())
    except ParameterError as error:
        raise ProfileError(f"{profile.path}: decode.{error}") from error


def _hides(name: str) -> str:
    return f"it hides the shipped profile {name!r} from now on; remove the file to have that back"


def _kept(name: str, path: Path) -> str:
    """What to do about a file that was left with an error."""
    from apdcli.load.profile import shipped_path, user_profiles_dir

    again = f"it is kept: 'apd profiles edit {name}' goes on with it"
    hides = path.parent == user_profiles_dir() and shipped_path(path.stem)
    return f"{again}; deleting it brings the shipped one back" if hides else again


def _note(text: str, context: Context) -> None:
    """What is good to know, for people alone."""
    if is_terminal(context.stderr):
        context.say(text)


def _check(name: Effective = None, as_json: Json = False) -> Todo:
    """Check a profile and its models, and say what would run.

    Every value of the weights is looked at, of models over 1 GiB some rows of each tensor.
    """

    def run(context: Context) -> int:
        note_unknown(context)
        from apdcli.cli.check import check_profile

        report = check_profile(name, context.environ)
        if as_json:
            context.print(_dump(report.as_json()))
            return 0
        for what, text in report.rows():
            text = _kept_together(text) if what == "settings" else text
            context.print(_fitted(f"{what:9} ", text, context, whole_words=True))
        return 0

    return run


def _kept_together(text: str) -> str:
    """A setting and where it comes from stay in one line."""
    return text.replace(" (", f"{_NO_BREAK}(")


def _fitted(head: str, text: str, context: Context, *, whole_words: bool = False) -> str:
    """One line, or on a terminal as many as its width asks for, broken between words.

    Args:
        whole_words: a word that is too wide alone, as a path is, is left to the terminal.
    """
    if not is_terminal(context.stdout):
        return (head + text).replace(_NO_BREAK, " ")
    columns = shutil.get_terminal_size().columns
    indent = " " * (len(head) if columns >= 2 * len(head) else 4)
    lines = textwrap.wrap(
        head + text,
        columns,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=not whole_words,
    )
    return "\n".join(lines).replace(_NO_BREAK, " ")


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, default=str)
