"""``tl compare``: which of several models is better, at what cost, and whether the difference is significant."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import typer

from tl_cli.cli import params
from tl_cli.cli.params import command_line, in_output
from tl_cli.cli.settings import parse_train_options
from tl_cli.errors import UsageError, uri_flag
from tl_cli.models.list.completion import is_architecture
from tl_cli.training.config import Given, read_toml

EXAMPLES = """Examples:

tl compare 3f2a91c0 best

tl compare resnet18-run efficientnet-run --data ~/new-photos --format markdown

tl compare --models resnet18 efficientnet_b0 --data cifar10 --freeze-epochs 5 --seeds 3

tl compare 9c01d2e4     (that comparison again)"""

app = typer.Typer(add_completion=False)

# Options of tl train that the command sets for each training.
_NOT_FOR_TRAINING = {"--seed": "seed", "--resume": "resume", "--dry-run": "dry_run", "--run-name": "run_name",
                     "--register": "register", "--tag": "tag"}  # fmt: skip
_DATA_HELP = "Images for the trainings; for trained models, images to evaluate them on."
_EXPERIMENT_HELP = "MLflow experiment of the trainings. Default: MLFLOW_EXPERIMENT_NAME or _ID, else tl."

_NAMES_HELP = (
    "Runs or folders of saved models, or one comparison recorded by --models; "
    "with --models: architectures, then options of tl train."
)
Names = Annotated[list[str], typer.Argument(metavar="NAME", help=_NAMES_HELP, autocompletion=params.complete_contender)]
Models = Annotated[bool, typer.Option("--models", help="Train each architecture first, on the same split.")]
Seeds = Annotated[int, typer.Option(help="Trainings per model, with seeds 0, 1, ...", min=1, max=100)]
Data = Annotated[str | None, typer.Option(metavar="NAME|PATH", autocompletion=params.complete_data, help=_DATA_HELP)]
Part = Annotated[
    Literal["test", "val"] | None, typer.Option(help="Images to compare on; default is test.", show_default=False)
]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Measure the speed of inference.")]
Format = Annotated[Literal["table", "markdown", "csv", "json"], in_output("--format", help="Form of the result.")]
AsJson = Annotated[bool, in_output("--json", help="Short for --format json.")]
Output = Annotated[
    Path | None, in_output(metavar="DIR", help="Also write tables and image files there.", show_default=False)
]
Experiment = Annotated[str | None, typer.Option(help=_EXPERIMENT_HELP, show_default=False)]


@app.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True})
def compare(
    names: Names,
    models: Models = False,
    seeds: Seeds = 1,
    data: Data = None,
    split: Part = None,
    data_dir: params.DataDir = None,
    speed: Speed = True,
    form: Format = "table",
    as_json: AsJson = False,
    output: Output = None,
    experiment: Experiment = None,
    device: params.Device = None,
    workers: params.Workers = None,
    tracking_uri: params.TrackingUri = None,
    plain: params.Plain = False,
    quiet: params.Quiet = False,
) -> None:
    """Compare models on the same images: accuracy with intervals, paired tests, overfitting, size and speed."""
    given = list(takewhile(lambda name: not name.startswith("-"), names))
    options = names[len(given) :]
    if as_json:
        form = "json"
    _check_usage(given, options, models=models, seeds=seeds, experiment=experiment)
    params.refuse_silence(quiet and form == "table" and output is None and not models, "--output DIR")
    settings = []
    if models:
        shared = {"--data": data, "--data-dir": data_dir, "--device": device, "--workers": workers}
        flags = [part for flag, value in shared.items() if value is not None for part in (flag, str(value))]
        settings = _settings_of_all(given, [*options, *flags])
    from tl_cli.api import comparison_run
    from tl_cli.ui.terminal import comparison_tables
    from tl_cli.ui.terminal.console import make_console

    console = make_console(quiet=quiet, plain=plain)
    aside = make_console(quiet=quiet, stderr=True, plain=plain) if form != "table" else console
    trainings = None
    if models:
        options += ["--quiet"] * quiet + ["--plain"] * (not aside.is_interactive)
        trainings = comparison_run.Trainings(seeds, tuple(options), tuple(settings), experiment, aside.stderr)
    request = comparison_run.CompareRequest(
        tuple(given), trainings, data, split, data_dir, device or "auto", workers, speed, tracking_uri, command_line()
    )
    with comparison_tables.ComparisonReport(console, aside, form, output) as report:
        result = comparison_run.compare(request, report)
    report.finish(result, uri_flag(tracking_uri))
    if result.failed:
        raise typer.Exit(1)


def _check_usage(
    names: Sequence[str], options: Sequence[str], *, models: bool, seeds: int, experiment: str | None
) -> None:
    """Refuse wrong usage before anything is opened or trained."""
    if not names or (models and len(names) < 2):
        first = "; their names come first, then the options" if options else ""
        raise UsageError(f"give two or more to compare{first}")
    if len(set(names)) < len(names):
        raise UsageError("one of them is given twice")
    if models:
        return
    if options and all(map(is_architecture, names)):
        command = command_line().replace(" compare", " compare --models", 1)
        raise UsageError(f"these are architectures, not runs; to train and then compare them: {command}")
    if options:
        raise UsageError(f"no such option: {options[0]}; options of tl train go with --models")
    for flag, is_given in (("--seeds", seeds > 1), ("--experiment", experiment is not None)):
        if is_given:
            raise UsageError(f"{flag} goes with --models: these are trained already")


def _settings_of_all(names: Sequence[str], options: Sequence[str]) -> list[Given]:
    """Return the settings of each training.

    Raises:
        UsageError: ``tl train`` would refuse one of them.
    """
    from tl_cli.models.zoo import registry

    settings = []
    for name in names:
        flags, others = parse_train_options([name, *options])
        for flag, key in _NOT_FOR_TRAINING.items():
            if {**flags, **others}.get(key):
                raise UsageError(f"tl compare sets {flag} itself" + ("; give --seeds" if flag == "--seed" else ""))
        given = Given.of(flags, read_toml(others["config"]) if others["config"] else {})
        registry.size_limits(given.model)
        settings.append(given)
    return settings
