"""Normalizes the typed arguments, and suggests the probable command when they are refused."""

import os
import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import typer
from typer.completion import install_callback, show_callback
from typer.core import TyperOption

from tl_cli import habits
from tl_cli.cli.groups import COMMANDS, LazyGroup, ListsByDefault, load
from tl_cli.errors import UsageError, without_secrets
from tl_cli.io.file_uris import local_path
from tl_cli.models.list.completion import is_architecture

_TYPED = "tl_cli.typed"
_COMPLETION: dict[str, Any] = {"--install-completion": install_callback, "--show-completion": show_callback}
_YES, _NO = ("true", "yes", "on"), ("false", "no", "off")
# Click's usage error, or that of Typer's own copy of Click.
_RefusedError: type[Any] = typer.BadParameter.__mro__[1]
# Commands that also accept the options of tl train.
_TAKE_TRAIN_OPTIONS = ("compare", "inspect")


class TopLevel(LazyGroup):
    """The group ``tl``; if it refuses arguments of other tools, it suggests the equivalent command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``help`` and ``version`` as the options of these names, and ``file:`` URIs as paths."""
        args = [word if _is_store(args, index) else _with_path(word) for index, word in enumerate(args)]
        option, equals, shell = (args[:1] or [""])[0].partition("=")
        if option in _COMPLETION and (equals or len(args) == 2):
            # Typer detects the shell and accepts no other name.
            _COMPLETION[option](ctx, None, shell if equals else args[1])
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        elif args == ["version"]:
            args = ["--version"]
        ctx.meta[_TYPED] = list(args)
        try:
            return super().parse_args(ctx, args)
        except _RefusedError as error:
            self._suggest(ctx, error)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (_RefusedError, UsageError) as error:
            self._suggest(ctx, error)
            raise

    def _suggest(self, ctx: Any, error: Any) -> None:
        """Raise the error again with the probable command, if there is one."""
        typed = ctx.meta[_TYPED]
        message = str(error) if isinstance(error, UsageError) else str(getattr(error, "message", ""))
        if not typed or not message or ": tl " in message or "\ntl " in message:  # help, or a command already
            return
        message = message.partition(" Did you mean")[0]
        if typed[0] in habits.SCREENS:
            suggestion = _web_interface(typed[1:])
        else:
            corrected = _corrected(typed)
            if corrected is None or not _is_valid(corrected, ctx):
                return
            suggestion = shlex.join(["tl", *corrected])
        kind = type(error) if isinstance(error, UsageError) else UsageError
        raise kind(
            f"{message[0].lower()}{message[1:].rstrip('.')}\ndid you mean: {without_secrets(suggestion)}"
        ) from error


def _is_store(words: Sequence[str], index: int) -> bool:
    """Whether a word is the address of an MLflow store, which stays a URI."""
    return words[index].startswith("--tracking-uri=") or "--tracking-uri" in words[max(0, index - 1) : index]


def _with_path(word: str) -> str:
    option, equals, value = word.partition("=")
    return f"{option}={local_path(value)}" if equals and option.startswith("--") else local_path(word)


def _web_interface(options: Sequence[str]) -> str:
    """Return the command that starts MLflow's web interface, or the address of a server."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri and uri.startswith(("http://", "https://")):
        return f"{uri} in a browser"
    return shlex.join(["mlflow", "ui", *(["--backend-store-uri", uri] if uri else []), *options])


def _is_valid(words: Sequence[str], ctx: Any) -> bool:
    """Whether a command accepts the words; it is not run."""
    if {"--help", "-h", "--version"} & set(words):
        return True
    command, rest = _split_command(words)
    try:
        command.make_context(command.name, list(rest), parent=ctx)
    except (_RefusedError, UsageError):
        return False
    return True


def _split_command(words: Sequence[str]) -> tuple[Any, Sequence[str]]:
    """Return the command that words begin with, and its arguments."""
    command, rest = load(words[0]), words[1:]
    if not isinstance(command, ListsByDefault):
        return command, rest
    is_typed = bool(rest) and rest[0] in command.commands
    return command.commands[rest[0] if is_typed else "list"], rest[is_typed:]


def _corrected(typed: Sequence[str]) -> list[str] | None:
    """Return the probable words; None if nothing would change or an option is unknown."""
    words = list(typed)
    seen: list[list[str]] = []
    while words and words not in seen and words[0] not in COMMANDS:
        seen.append(list(words))
        words = _corrected_once(words)
    if not words or words[0] not in COMMANDS:
        return words if words and words[0] == "--version" else None
    group = load(words[0])
    if isinstance(group, ListsByDefault) and len(words) > 1 and words[1] not in group.commands:
        meaning = habits.commands().get(words[1], "").split()
        if meaning[:1] == words[:1] and len(meaning) > 1:
            words = [*meaning, *words[2:]]
    command, rest = _split_command(words)
    lead = words[: len(words) - len(rest)]
    options = _options(command)
    if command.name in _TAKE_TRAIN_OPTIONS:
        options = {**_options(load("train")), **options}
    arguments = [each for each in command.params if not isinstance(each, TyperOption)]
    takes_any = command.name in _TAKE_TRAIN_OPTIONS or any(each.nargs == -1 for each in arguments)
    slots = 0 if takes_any else len(arguments)
    translated = _translate(options, rest, slots, is_run=command.name != "train")
    corrected = None if translated is None else [*lead, *translated]
    # Another order alone is not a change.
    return corrected if corrected is not None and sorted(corrected) != sorted(typed) else None


def _corrected_once(words: Sequence[str]) -> list[str]:
    """Return the words after one step towards a command of ``tl``; empty if there is none."""
    word, rest = words[0], list(words[1:])
    key, _, value = word.partition("=")
    if key == "mode" and value:  # of Ultralytics: task=classify mode=train
        return [value, *rest]
    if word.startswith("-"):
        bare = word.lstrip("-").partition("=")[0]
        if habits.options().get(bare.lower()) == "--version":
            return ["--version"]
        is_own = _own_name(_options(load("train")), bare.replace("_", "-")) is not None
        return ["train", *words] if is_own else []
    if rest and (rest[0] in COMMANDS or rest[0].startswith("mode=")):
        return rest  # classify train
    if word in habits.commands():
        return [*habits.commands()[word].split(), *rest]
    if is_architecture(word) or (value and _own_name(_options(load("train")), key)):
        return ["train", *words]
    for name in COMMANDS:
        if word in getattr(load(name), "commands", ()):
            return [name, *words]
    near = get_close_matches(word.lower().replace("_", "-"), [*COMMANDS, *habits.commands()], n=1, cutoff=0.7)
    return [near[0], *rest] if near else []


def _options(command: Any) -> dict[str, TyperOption]:
    """Return the options of a command by each of their spellings."""
    options = [each for each in command.params if isinstance(each, TyperOption)]
    return {name: each for each in options for name in (*each.opts, *each.secondary_opts)}


def _own_name(options: Mapping[str, TyperOption], bare: str) -> str | None:
    """Return the name in ``tl`` of an option that is given without dashes, or None."""
    meaning = habits.options().get(bare.lower())
    if meaning == habits.FIRST and "--model" in options:
        meaning = "--model"
    for own in (f"--{bare}", f"--{bare.lower()}"):
        if own in options:
            return own
    if meaning is not None and (not meaning.startswith("--") or meaning.split()[0] in options):
        return meaning
    near = get_close_matches(f"--{bare.lower()}", options, n=1, cutoff=0.8)
    return near[0] if near else None


def _translate(
    options: Mapping[str, TyperOption], words: Sequence[str], slots: int, *, is_run: bool
) -> list[str] | None:
    """Return options and arguments in the form of ``tl``; None if one of them is unknown.

    Args:
        options: options of the command by name.
        words: arguments of the command, as typed.
        slots: number of positional arguments; 0: any number.
        is_run: whether the first argument is a run rather than an architecture.
    """
    queue, first, arguments, flags = list(words), list[str](), list[str](), list[str]()
    while queue:
        word = queue.pop(0)
        name, equals, value = word.partition("=")
        bare = name.lstrip("-").replace("_", "-")
        is_option = word.startswith("-") and bare != ""
        if word == "--":
            return None
        if is_option and name in options:
            takes = 0 if options[name].is_flag else options[name].nargs - bool(equals)
            flags += [word, *queue[:takes]]
            del queue[:takes]
            continue
        meaning = _own_name(options, bare) if is_option or (equals and not _is_file(word)) else None
        if meaning is None and is_option:
            return None
        if meaning is None:
            arguments.append((habits.kept_run(word) or word) if is_run and not _is_file(word) else word)
            continue
        has_value = meaning in (habits.FIRST, habits.LATER, habits.UNUSED) or (
            meaning in options and not options[meaning].is_flag
        )
        values = [value] if equals else []
        if has_value or (queue and queue[0].lower() in (*_YES, *_NO)):
            takes = (options[meaning].nargs if meaning in options and has_value else 1) - len(values)
            values += queue[:takes]
            del queue[:takes]
        if not has_value and values and values[0].lower() in _NO:
            meaning = _own_name(options, f"no-{bare}") or habits.DEFAULT
        if meaning == habits.FIRST:
            first += [(habits.kept_run(each) or each) if is_run else each for each in values]
        elif meaning == habits.LATER:
            arguments += values
        elif has_value and meaning != habits.UNUSED:
            flags += [meaning, *values]
        elif not has_value:
            flags += meaning.split()
    arguments = [*first, *arguments]
    if slots and len(arguments) == slots + 1 and "--data" in options and "--data" not in flags:
        flags += ["--data", arguments.pop()]
    return [*arguments, *flags]


def _is_file(word: str) -> bool:
    return os.path.exists(word)  # noqa: PTH110 (accepts words of any length)
