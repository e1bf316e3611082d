"""``tl inspect``: what is inside a model."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tl_cli.cli import params
from tl_cli.cli.params import complete_data, complete_model_or_run, in_output
from tl_cli.cli.settings import parse_train_options
from tl_cli.errors import UsageError

EXAMPLES = """Examples:

tl inspect efficientnet_b0 --depth 3 --num-classes 37

tl inspect efficientnet_b0 --freeze-plan --freeze-epochs 5 --unfreeze-stages 3

tl inspect resnet18 --residual

tl inspect latest --residual --against pretrained --image photo.jpg --block blocks.3.1

tl inspect best --drift

tl inspect latest --cam photo.jpg --output figures

tl inspect latest --worst 9 --log"""

_in_views = partial(typer.Option, rich_help_panel="What to show (default: the tree)", show_default=False)
_in_tree = partial(typer.Option, rich_help_panel="Tree")
_in_images = partial(typer.Option, rich_help_panel="Images")
_MODEL_HELP = "Architecture, run, or saved-model folder."
_FREEZE_HELP = "Show what trains in each phase (accepts tl train options)."
_RESIDUAL_HELP = "Residual blocks: x beside F(x), and predictions without F."
_FEATURES_HELP = "Features before the head: nearest neighbours, a map."
_WORST_HELP = "Heatmaps (Grad-CAM) of a run's N most confident mistakes."
_CLASSES_HELP = "Classes of the head; default: the run's own, 10 for an architecture."
_IMAGE_HELP = "With --residual: show x, F(x) and x + F(x) of a picture, or of image N of the data."
_BLOCK_HELP = "With --image: of which block; default: the first."
_ABLATE_HELP = "With --residual: measure predictions without F and with half of it."
_AGAINST_HELP = "With --residual or --drift: compare with this state; --drift: pretrained."
_DATA_HELP = "Images to run the model on; default: a run's own, for an architecture a few photographs."
_OUTPUT_HELP = "Also write figures and JSON to this folder."
Model = Annotated[str, typer.Argument(metavar="MODEL|RUN", help=_MODEL_HELP, autocompletion=complete_model_or_run)]
FreezePlan = Annotated[bool, _in_views("--freeze-plan", help=_FREEZE_HELP)]
Residual = Annotated[bool, _in_views("--residual", help=_RESIDUAL_HELP)]
Drift = Annotated[bool, _in_views("--drift", help="How far training moved each layer of a run.")]
Features = Annotated[bool, _in_views("--features", help=_FEATURES_HELP)]
Cam = Annotated[list[Path] | None, _in_views(metavar="IMAGE", help="Heatmap (Grad-CAM) of a picture; may be repeated.")]
Worst = Annotated[int | None, _in_views(metavar="N", help=_WORST_HELP, min=1, max=64)]
Depth = Annotated[int, _in_tree(help="Levels of the tree.", min=0)]
NumClasses = Annotated[int | None, _in_tree(help=_CLASSES_HELP, min=1)]
InputSize = Annotated[int | None, _in_tree(help="Side of the input in pixels.", min=1)]
Image = Annotated[str | None, _in_images(metavar="FILE|N", help=_IMAGE_HELP)]
Block = Annotated[str | None, _in_images(metavar="NAME", help=_BLOCK_HELP)]
Ablate = Annotated[bool, _in_images("--ablate/--no-ablate", help=_ABLATE_HELP)]
Against = Annotated[str | None, _in_images(metavar="pretrained|RUN", help=_AGAINST_HELP)]
Weights = Annotated[str | None, _in_images(metavar="NAME|FILE", help="Weights of an architecture, or none.")]
Data = Annotated[str | None, _in_images(metavar="NAME|PATH", help=_DATA_HELP, autocompletion=complete_data)]
Part = Annotated[
    Literal["test", "val", "train", "all"] | None, _in_images("--split", help="Which part of the images; default: val.")
]
Count = Annotated[int | None, _in_images("--images", help="Maximum number of images.", min=2)]
Output = Annotated[Path | None, in_output(metavar="DIR", help=_OUTPUT_HELP)]
Log = Annotated[bool, in_output("--log", help="Also log figures and JSON with the run.")]

app = typer.Typer(add_completion=False)


@app.command(epilog=EXAMPLES, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def inspect(
    context: typer.Context,
    model: Model = "latest",
    freeze_plan: FreezePlan = False,
    residual: Residual = False,
    drift: Drift = False,
    features: Features = False,
    cam: Cam = None,
    worst: Worst = None,
    depth: Depth = 2,
    num_classes: NumClasses = None,
    input_size: InputSize = None,
    image: Image = None,
    block: Block = None,
    ablate: Ablate = True,
    against: Against = None,
    weights: Weights = None,
    data: Data = None,
    split: Part = None,
    images: Count = None,
    data_dir: params.DataDir = None,
    as_json: params.AsJsonOutput = False,
    output: Output = None,
    log: Log = False,
    device: params.Device = None,
    workers: params.Workers = None,
    tracking_uri: params.TrackingUri = None,
    quiet: params.Quiet = False,
) -> None:
    """Inspect a model: its tree, freezing, residual blocks, what training changed, heatmaps."""
    chosen = _chosen_view(context.params, context.args)
    params.refuse_silence(quiet and not (as_json or output or log), "--output DIR")
    from tl_cli.api import inspection_results, inspection_view
    from tl_cli.ui.figures.anatomy_figures import write_inspection
    from tl_cli.ui.terminal.console import make_console, try_to_show
    from tl_cli.ui.terminal.observer import TerminalObserver

    request = inspection_results.InspectionRequest(
        model, _view(chosen, context.params, context.args), weights=weights, data=data, split=split,
        data_dir=str(data_dir) if data_dir else None, images=images, input_size=input_size,
        device=device or "auto", workers=workers, tracking_uri=tracking_uri, needs_run=log,
    )  # fmt: skip
    console = make_console(quiet=quiet)
    with TerminalObserver(make_console(quiet=quiet, stderr=as_json)) as observer:
        result = inspection_view.inspect(request, observer)
    reader_is_gone = try_to_show(partial(_show, result, console, depth=depth, as_json=as_json))
    written = write_inspection(result, output) if output is not None else []
    if log:
        inspection_view.log_files(result, lambda folder: write_inspection(result, folder))
    if reader_is_gone:
        raise reader_is_gone
    for path in [] if as_json else written:
        console.print(str(path), markup=False, soft_wrap=True, style="dim")


def _show(result: Any, console: Any, *, depth: int, as_json: bool) -> None:
    from tl_cli.ui.terminal.anatomy import print_inspection

    if as_json:
        params.print_json(result.to_dict(), indent=None)
    else:
        print_inspection(console, result, depth=depth)


def _chosen_view(given: Mapping[str, Any], others: Sequence[str]) -> str:
    """Return the flag of the requested view, ``--tree`` by default.

    Raises:
        UsageError: options do not go together.
    """
    flags = ("--freeze-plan", "--residual", "--drift", "--features", "--cam", "--worst")
    views = [flag for flag in flags if given[flag[2:].replace("-", "_")]]
    if len(views) > 1:
        raise UsageError(f"{' and '.join(views)} are different views; give one at a time")
    view = views[0] if views else "--tree"
    if others and view != "--freeze-plan":
        what = "option" if others[0].startswith("-") else "argument"
        raise UsageError(f"no such {what}: {others[0]}; options of tl train go with --freeze-plan, after the model")
    on_images = ("--residual", "--drift", "--features", "--worst")
    for flag, is_given, suits in (
        ("--image", given["image"] is not None, ("--residual",)),
        ("--block", given["block"] is not None, ("--residual",)),
        ("--no-ablate", not given["ablate"], ("--residual",)),
        ("--against", given["against"] is not None, ("--residual", "--drift")),
        ("--images", given["images"] is not None, on_images),
        ("--split", given["split"] is not None, on_images),
        ("--num-classes", given["num_classes"] is not None, ("--tree", "--freeze-plan")),
    ):
        if is_given and view not in suits:
            named = " and ".join(each for each in suits if each != "--tree")
            raise UsageError(f"{flag} has no effect here; it goes with {named}")
    return view


def _view(chosen: str, given: Mapping[str, Any], others: Sequence[str]) -> Any:
    """Return the view of the API that the options ask for."""
    from tl_cli.api import inspection_results as api

    match chosen:
        case "--freeze-plan":
            # The model is that of tl inspect; a second one is an unexpected argument.
            settings, options = parse_train_options(["MODEL", *others])
            del settings["model"]
            return api.FreezePlanView(settings, options["config"], given["num_classes"])
        case "--residual":
            return api.ResidualsView(given["ablate"], given["against"], given["image"], given["block"])
        case "--drift":
            return api.DriftView(given["against"] or "pretrained")
        case "--features":
            return api.FeaturesView()
        case "--cam":
            return api.CamView(tuple(map(Path, given["cam"])))
        case "--worst":
            return api.WorstView(given["worst"])
    return api.TreeView(given["num_classes"])
