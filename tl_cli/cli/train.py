"""``tl train``: fine-tune a model and record it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from tl_cli.cli.params import (
    Plain,
    Quiet,
    TrackingUri,
    command_line,
    complete_data,
    complete_model,
    complete_stopped_run,
    complete_weights,
    refuse_silence,
)
from tl_cli.cli.settings import with_settings
from tl_cli.training.config import Settings

EXAMPLES = """Examples:

tl train efficientnet_lite0 --data digits --freeze-epochs 5

tl train efficientnet_b0 --freeze-epochs 5 --epochs 10

tl train resnet18 --data ~/photos --limit 2000 --dry-run

tl train --resume 3f2a91c0"""

_RECORD = "Record"
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE.toml", help="Settings by name; flags have precedence.", rich_help_panel="Training"
    ),
]
Experiment = Annotated[
    str | None,
    typer.Option(help="MLflow experiment. Default: MLFLOW_EXPERIMENT_NAME or _ID, else tl.", rich_help_panel=_RECORD),
]
RunName = Annotated[
    str | None, typer.Option(help="Name of the run. Default: from model and data.", rich_help_panel=_RECORD)
]
Tags = Annotated[
    list[str] | None, typer.Option(metavar="K=V", help="Tag of the run; may be repeated.", rich_help_panel=_RECORD)
]
Register = Annotated[
    str | None, typer.Option(metavar="NAME", help="Register the model under this name.", rich_help_panel=_RECORD)
]
Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RUN",
        help="Resume a run from its last checkpoint.",
        autocompletion=complete_stopped_run,
        rich_help_panel=_RECORD,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the settings with their reasons and a forecast; train nothing.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@with_settings({"model": complete_model, "data": complete_data, "weights": complete_weights})
def train(
    settings: Settings,
    config: ConfigFile = None,
    experiment: Experiment = None,
    run_name: RunName = None,
    tag: Tags = None,
    tracking_uri: TrackingUri = None,
    register: Register = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    plain: Plain = False,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a pretrained classifier: first its new head, then the whole model."""
    started = time.monotonic()
    tags = _tags(tag or [])
    refuse_silence(quiet and dry_run and not as_json)
    if resume is not None:
        _refuse_beside_resume({"--dry-run": dry_run, "--run-name": run_name, "--register": register, "--config": config,
                               "--experiment": experiment})  # fmt: skip
    _check_names(run_name, register)
    from tl_cli.api import training_run
    from tl_cli.text import json_text
    from tl_cli.ui.terminal import training_observer as shown
    from tl_cli.ui.terminal.console import make_console

    console = make_console(quiet=quiet, plain=plain, stderr=as_json)
    request = training_run.TrainRequest(
        settings,
        config=config,
        resume=resume,
        run_name=run_name,
        experiment=experiment,
        tags=tags,
        register=register,
        tracking_uri=tracking_uri,
        command=command_line(),
        started=started,
    )
    screen = shown.TrainingScreen(console)
    result = training_run.dry_run(request, screen) if dry_run else training_run.train(request, screen)
    if as_json:
        typer.echo(json_text(result.to_dict()))
    else:
        shown.print_result(console, result)


def _check_names(run_name: str | None, register: str | None) -> None:
    if run_name is not None and not (run_name.strip() and run_name.isprintable()):
        raise typer.BadParameter(f"{run_name!r} is not a line of printable text", param_hint="--run-name")
    if register is not None and (not register.strip() or set(register) & set("/:")):
        raise typer.BadParameter(f"{register!r}: a registered name has no / and no :", param_hint="--register")


def _tags(pairs: list[str]) -> dict[str, str]:
    tags = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--tag")
        tags[key] = value
    return tags


def _refuse_beside_resume(given: Mapping[str, object]) -> None:
    for flag, value in given.items():
        if value:
            raise typer.BadParameter("cannot be combined with --resume; leave it out", param_hint=flag)
