"""The settings of a training as options of the command line, made from the fields of `Settings`, and as a table."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from tl_cli.cli.groups import load
from tl_cli.training.config import FIELDS, Completion, Settings, describe, setting_row

Command: TypeAlias = Callable[..., None]
Completer: TypeAlias = Callable[..., Sequence[object]]


def option(name: str, completer: Completer | None = None) -> Any:
    """Return the option of a setting, for a parameter's ``Annotated``; its default is None: not given."""
    row = setting_row(name)
    flag = "--" + name.replace("_", "-")
    bounds = row.bounds if row.setting.shows_range else {}
    return typer.Option(
        f"{flag}/--no-{flag[2:]}" if row.annotation is bool else flag,
        help=describe(row),
        metavar=row.setting.metavar,
        rich_help_panel=row.setting.panel,
        autocompletion=completer,
        case_sensitive=False,
        envvar=row.setting.env,
        min=bounds.get("ge"),
        max=bounds.get("le"),
        show_default=False,
    )


def with_settings(completers: Mapping[Completion, Completer]) -> Callable[[Command], Command]:
    """Return a decorator that gives a command an option for each setting; its first parameter gets the `Settings`.

    Args:
        completers: the functions that complete values in the shell.
    """

    def decorate(command: Command) -> Command:
        @wraps(command)
        def run(**options: Any) -> None:
            command(Settings.checked(_given(options)), **{k: v for k, v in options.items() if k not in FIELDS})

        _, *own = inspect.signature(command).parameters.values()
        parameters = [_parameter(name, completers) for name in FIELDS]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*parameters, *own)]
        )
        return run

    return decorate


def parse_train_options(arguments: Sequence[str]) -> tuple[dict[str, object], dict[str, Any]]:
    """Parse the arguments of ``tl train``, as other commands take them.

    Returns:
        The given settings by name, and the other options by name; None or False: not given.

    Raises:
        typer.BadParameter: an option does not exist or has no valid value.
    """
    options = load("train").make_context("tl train", list(arguments), help_option_names=[]).params
    return _given(options), {name: value for name, value in options.items() if name not in FIELDS}


def settings_table() -> str:
    """Return the settings as a table in Markdown, for the README."""
    lines = ["| setting | values | default | what |", "|---|---|---|---|"]
    for row in map(setting_row, FIELDS):
        values = ", ".join(row.choices) or row.setting.metavar or str(row.annotation.__name__)
        cells = [f"`{row.name}`", values, row.default, row.help]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _given(options: Mapping[str, Any]) -> dict[str, object]:
    given = {name: options[name] for name in FIELDS if options[name] is not None}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def _parameter(name: str, completers: Mapping[Completion, Completer]) -> inspect.Parameter:
    row = setting_row(name)
    offered = row.setting.completion
    completer = (lambda: list(offered)) if isinstance(offered, tuple) else completers[offered] if offered else None
    if name == "model":
        info = typer.Argument(metavar=row.setting.metavar, help=row.help, autocompletion=completer, show_default=False)
    else:
        info = option(name, completer)
    kind = Path if row.setting.is_path else row.annotation
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )
