"""The table of commands, and groups of commands. Imports no command: each is imported when it is used."""

from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# A line in ``tl --help`` for the command in the module of that name; its own help is longer.
COMMANDS = {
    "train": "Fine-tune a pretrained classifier and record it.",
    "eval": "Evaluate a model on images that it was not trained on.",
    "predict": "Classify images.",
    "compare": "Compare models on the same images.",
    "soup": "Average the weights of several runs into one model.",
    "inspect": "Look inside a model: layers, freezing, residuals, heatmaps.",
    "plot": "Draw the curves of runs.",
    "export": "Write a model as a file for other programs.",
    "runs": "List, compare, close, send, remove and relocate runs.",
    "models": "List architectures; download weights.",
    "data": "List the published data sets; examine a data set.",
    "cache": "Show and clear what is kept between runs.",
    "env": "Print versions, device and paths for a bug report.",
}


@cache
def load(name: str) -> Any:
    """Import a command of ``tl`` and return it.

    Args:
        name: one of ``COMMANDS``.
    """
    command = typer.main.get_command(import_module(f"tl_cli.cli.{name}").app)
    command.name = name
    return command


class LazyGroup(TyperGroup):
    """The group ``tl``, which lists its commands without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=summary) for name, summary in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the typed command, the imported command, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and load(name), rest


class ListsByDefault(TyperGroup):
    """A group whose default command is ``list``: ``tl models convnext`` is ``tl models list convnext``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert ``list`` before arguments that are neither a command nor a help option."""
        if ctx.resilient_parsing and not args:
            return super().parse_args(ctx, args)  # the shell completes the first word
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands and the arguments of ``list``."""
        arguments = [each for each in self.commands["list"].params if each.param_type_name == "argument"]
        listed = [] if incomplete.startswith("-") else [
            item for each in arguments for item in each.shell_complete(ctx, incomplete)
        ]  # fmt: skip
        return [*super().shell_complete(ctx, incomplete), *listed]
