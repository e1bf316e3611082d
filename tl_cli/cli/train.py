"""``tl train``: fine-tune a model and record it."""

import time
from pathlib import Path
from typing import Annotated

import typer

from tl_cli.cli import params
from tl_cli.cli.params import in_record
from tl_cli.cli.settings import with_settings
from tl_cli.training.config import Settings

EXAMPLES = """Examples:

tl train efficientnet_lite0 --data digits --freeze-epochs 5

tl train efficientnet_b0 --freeze-epochs 5 --epochs 10

tl train resnet18 --data ~/photos --limit 2000 --dry-run

tl train --resume 3f2a91c0"""

_CONFIG_HELP = "Settings by name; flags have precedence."
_RESUME_HELP = "Resume a run from its last checkpoint."
_DRY_HELP = "Print the settings with their reasons and a forecast; train nothing."
Config = Annotated[Path | None, typer.Option(metavar="FILE.toml", help=_CONFIG_HELP, rich_help_panel="Training")]
Experiment = Annotated[str | None, in_record(help=params.EXPERIMENT_HELP)]
RunName = Annotated[str | None, in_record(help="Name of the run. Default: from model and data.")]
Tags = Annotated[list[str] | None, in_record(metavar="K=V", help="Tag of the run; may be repeated.")]
Register = Annotated[str | None, in_record(metavar="NAME", help="Register the model under this name.")]
Resume = Annotated[str | None, in_record(metavar="RUN", help=_RESUME_HELP, autocompletion=params.complete_stopped_run)]
DryRun = Annotated[bool, typer.Option("--dry-run", help=_DRY_HELP)]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES)
@with_settings({"model": params.complete_model, "data": params.complete_data, "weights": params.complete_weights})
def train(
    settings: Settings,
    config: Config = None,
    experiment: Experiment = None,
    run_name: RunName = None,
    tag: Tags = None,
    tracking_uri: params.TrackingUri = None,
    register: Register = None,
    resume: Resume = None,
    dry_run: DryRun = False,
    as_json: params.AsJson = False,
    plain: params.Plain = False,
    quiet: params.Quiet = False,
) -> None:
    """Fine-tune a pretrained classifier: first its new head, then the whole model."""
    started = time.monotonic()
    tags = _tags(tag or [])
    params.refuse_silence(quiet and dry_run and not as_json)
    if resume is not None:
        others = {"--dry-run": dry_run, "--run-name": run_name, "--register": register, "--config": config,
                  "--experiment": experiment}  # fmt: skip
        for flag in (flag for flag, value in others.items() if value):
            raise typer.BadParameter("cannot be combined with --resume; leave it out", param_hint=flag)
    _check_names(run_name, register)
    if "data" in settings.model_fields_set:
        params.check_source_exists(settings.data)
    from tl_cli.ui.terminal.console import make_console
    from tl_cli.ui.terminal.screen import loading

    console = make_console(quiet=quiet, plain=plain, stderr=as_json)
    with loading(console, "torch"):
        from tl_cli.api import training_run as api
        from tl_cli.ui.terminal import training_observer as shown

    request = api.TrainRequest(
        settings, config=config, resume=resume, run_name=run_name, experiment=experiment, tags=tags,
        register=register, tracking_uri=tracking_uri, command=params.command_line(), started=started,
    )  # fmt: skip
    screen = shown.TrainingScreen(console)
    result = api.dry_run(request, screen) if dry_run else api.train(request, screen)
    if as_json:
        params.print_json(result.to_dict(), indent=None)
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
