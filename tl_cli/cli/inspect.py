"""``tl inspect``: what is inside a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tl_cli.cli.params import (
    DataDir,
    Device,
    Quiet,
    TrackingUri,
    Workers,
    complete_data,
    complete_model_or_run,
    refuse_silence,
)

EXAMPLES = """Examples:

tl inspect efficientnet_b0 --depth 3 --num-classes 37

tl inspect efficientnet_b0 --freeze-plan --freeze-epochs 5 --unfreeze-stages 3

tl inspect resnet18 --residual

tl inspect latest --residual --against pretrained --image photo.jpg --block blocks.3.1

tl inspect best --drift

tl inspect latest --cam photo.jpg --output figures

tl inspect latest --worst 9 --log"""

_VIEW, _TREE, _IMAGES, _OUTPUT = "What to show (default: the tree)", "Tree", "Images", "Output"


def _flag(name: str, text: str, panel: str) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel)


_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL|RUN", help="Architecture, run, or saved-model folder.", autocompletion=complete_model_or_run
    ),
]
_FreezePlan = Annotated[
    bool, _flag("--freeze-plan", "Show what trains in each phase (accepts tl train options).", _VIEW)
]
_Residual = Annotated[bool, _flag("--residual", "Residual blocks: x beside F(x), and predictions without F.", _VIEW)]
_Drift = Annotated[bool, _flag("--drift", "How far training moved each layer of a run.", _VIEW)]
_Features = Annotated[bool, _flag("--features", "Features before the head: nearest neighbours, a map.", _VIEW)]
_Cam = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="IMAGE",
        help="Heatmap (Grad-CAM) of a picture; may be repeated.",
        show_default=False,
        rich_help_panel=_VIEW,
    ),
]
_Worst = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Heatmaps (Grad-CAM) of a run's N most confident mistakes.",
        min=1,
        max=64,
        rich_help_panel=_VIEW,
    ),
]
_Depth = Annotated[int, typer.Option(help="Levels of the tree.", min=0, rich_help_panel=_TREE)]
_NumClasses = Annotated[
    int | None,
    typer.Option(
        help="Classes of the head; default: the run's own, 10 for an architecture.", min=1, rich_help_panel=_TREE
    ),
]
_InputSize = Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1, rich_help_panel=_TREE)]
_Image = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|N",
        help="With --residual: show x, F(x) and x + F(x) of a picture, or of image N of the data.",
        rich_help_panel=_IMAGES,
    ),
]
_Block = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --image: of which block; default: the first.", rich_help_panel=_IMAGES),
]
_Ablate = Annotated[
    bool, _flag("--ablate/--no-ablate", "With --residual: measure predictions without F and with half of it.", _IMAGES)
]
_Against = Annotated[
    str | None,
    typer.Option(
        metavar="pretrained|RUN",
        help="With --residual or --drift: compare with this state; --drift: pretrained.",
        rich_help_panel=_IMAGES,
    ),
]
_Weights = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="Weights of an architecture, or none.", rich_help_panel=_IMAGES),
]
_Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PATH",
        autocompletion=complete_data,
        help="Images to run the model on; default: a run's own, for an architecture a few photographs.",
        rich_help_panel=_IMAGES,
    ),
]
_Split = Annotated[
    Literal["test", "val", "train", "all"] | None,
    typer.Option(help="Which part of the images; default: val.", show_default=False, rich_help_panel=_IMAGES),
]
_Count = Annotated[int | None, typer.Option(help="Maximum number of images.", min=2, rich_help_panel=_IMAGES)]
_Json = Annotated[bool, _flag("--json", "Print the result as JSON.", _OUTPUT)]
_Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Also write figures and JSON to this folder.", rich_help_panel=_OUTPUT),
]
_Log = Annotated[bool, _flag("--log", "Also log figures and JSON with the run.", _OUTPUT)]


def inspect(
    context: typer.Context,
    model: _Model = "latest",
    freeze_plan: _FreezePlan = False,
    residual: _Residual = False,
    drift: _Drift = False,
    features: _Features = False,
    cam: _Cam = None,
    worst: _Worst = None,
    depth: _Depth = 2,
    num_classes: _NumClasses = None,
    input_size: _InputSize = None,
    image: _Image = None,
    block: _Block = None,
    ablate: _Ablate = True,
    against: _Against = None,
    weights: _Weights = None,
    data: _Data = None,
    split: _Split = None,
    images: _Count = None,
    data_dir: DataDir = None,
    as_json: _Json = False,
    output: _Output = None,
    log: _Log = False,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Inspect a model: its tree, freezing, residual blocks, what training changed, heatmaps."""
    chosen = _chosen_view(context.params, context.args)
    refuse_silence(quiet and not (as_json or output or log), "--output DIR")
    from tl_cli.api.inspection_results import InspectionRequest
    from tl_cli.api.inspection_view import inspect, log_files
    from tl_cli.text import json_text
    from tl_cli.ui.figures.anatomy_figures import write_inspection
    from tl_cli.ui.terminal.anatomy import print_inspection
    from tl_cli.ui.terminal.console import make_console, try_to_show
    from tl_cli.ui.terminal.observer import TerminalObserver

    request = InspectionRequest(
        model, _view(chosen, context.params, context.args), weights=weights, data=data, split=split,
        data_dir=str(data_dir) if data_dir else None, images=images, input_size=input_size,
        device=device or "auto", workers=workers, tracking_uri=tracking_uri, needs_run=log,
    )  # fmt: skip
    console = make_console(quiet=quiet)
    with TerminalObserver(make_console(quiet=quiet, stderr=as_json)) as observer:
        result = inspect(request, observer)
    reader_is_gone = try_to_show(
        lambda: typer.echo(json_text(result.to_dict())) if as_json else print_inspection(console, result, depth=depth)
    )
    written = write_inspection(result, output) if output is not None else []
    if log:
        log_files(result, lambda folder: write_inspection(result, folder))
    if reader_is_gone:
        raise reader_is_gone
    for path in [] if as_json else written:
        console.print(str(path), markup=False, soft_wrap=True, style="dim")


def _chosen_view(given: Mapping[str, Any], others: Sequence[str]) -> str:
    """Return the flag of the requested view, ``--tree`` by default.

    Raises:
        UsageError: options do not go together.
    """
    from tl_cli.errors import UsageError

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
            return api.FreezePlanView(*_train_settings(others), given["num_classes"])
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


def _train_settings(options: Sequence[str]) -> tuple[dict[str, object], Path | None]:
    """Return what options of ``tl train`` set, by field of the config, and the config file."""
    from tl_cli.cli.settings import parse_train_options

    # The model is that of tl inspect; a second one is an unexpected argument.
    parsed = parse_train_options(["MODEL", *options])
    config = parsed.others["config"]
    assert config is None or isinstance(config, Path)
    return {name: value for name, value in parsed.flags.items() if name != "model"}, config
