"""``tl inspect``: what is inside a model. The views themselves are in ``views.py``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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

if TYPE_CHECKING:
    from tl_cli.api.model_lookup import Target
    from tl_cli.cli.views import View, Wanted

EXAMPLES = """Examples:

tl inspect efficientnet_b0 --depth 3 --num-classes 37

tl inspect efficientnet_b0 --freeze-plan --freeze-epochs 5 --unfreeze-stages 3

tl inspect resnet18 --residual

tl inspect latest --residual --against pretrained --image photo.jpg --block blocks.3.1

tl inspect best --drift

tl inspect latest --cam photo.jpg --output looked

tl inspect latest --worst 9 --log"""

_VIEW, _TREE, _IMAGES, _OUTPUT = "What to see (default: the tree)", "Tree", "Images", "Output"


def inspect(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="Architecture, run, or saved-model folder.", autocompletion=complete_model_or_run
        ),
    ] = "latest",
    freeze_plan: Annotated[
        bool,
        typer.Option(
            "--freeze-plan", help="What would train in which phase; options of tl train follow.", rich_help_panel=_VIEW
        ),
    ] = False,
    residual: Annotated[
        bool,
        typer.Option(
            "--residual", help="Residual blocks: x beside F(x), and the network without F.", rich_help_panel=_VIEW
        ),
    ] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="How far training moved each layer.", rich_help_panel=_VIEW)
    ] = False,
    features: Annotated[
        bool,
        typer.Option("--features", help="What reaches the head: nearest neighbours, a map.", rich_help_panel=_VIEW),
    ] = False,
    cam: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="IMAGE",
            help="Where the model looked in a picture (Grad-CAM); may be repeated.",
            show_default=False,
            rich_help_panel=_VIEW,
        ),
    ] = None,
    worst: Annotated[
        int | None,
        typer.Option(metavar="N", help="The same for a run's worst mistakes.", min=1, max=64, rich_help_panel=_VIEW),
    ] = None,
    depth: Annotated[int, typer.Option(help="Levels of the tree.", min=0, rich_help_panel=_TREE)] = 2,
    num_classes: Annotated[
        int | None,
        typer.Option(help="Classes of the head; 10 for an architecture.", min=1, rich_help_panel=_TREE),
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels.", min=1, rich_help_panel=_TREE)
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|N",
            help="With --residual: a picture, or image N of the data, to show x, F(x) and x + F(x) of.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --image: of which block; default is the first.", rich_help_panel=_IMAGES
        ),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate/--no-ablate", help="With --residual: leave out each F, and halve it.", rich_help_panel=_IMAGES
        ),
    ] = True,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="pretrained|RUN", help="With --residual or --drift: the state before.", rich_help_panel=_IMAGES
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Weights of an architecture, or none.", rich_help_panel=_IMAGES),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH",
            autocompletion=complete_data,
            help="Images to look at; default is a run's own, and for an architecture a few photographs.",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    split: Annotated[
        Literal["test", "val", "train", "all"] | None,
        typer.Option(help="Which of them; default is val.", show_default=False, rich_help_panel=_IMAGES),
    ] = None,
    images: Annotated[
        int | None, typer.Option(help="At most so many; more take longer.", min=2, rich_help_panel=_IMAGES)
    ] = None,
    data_dir: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.", rich_help_panel=_OUTPUT)] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write figures and pictures there too.", rich_help_panel=_OUTPUT),
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Keep them with the run.", rich_help_panel=_OUTPUT)] = False,
    device: Device = None,
    workers: Workers = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
) -> None:
    """Look into a model: its tree, what freezing does, its residuals, what training changed, where it looks."""
    chosen = {
        "--freeze-plan": freeze_plan,
        "--residual": residual,
        "--drift": drift,
        "--features": features,
        "--cam": bool(cam),
        "--worst": worst is not None,
    }
    views = [flag for flag, is_wanted in chosen.items() if is_wanted]
    _check(
        views,
        context.args,
        {
            "--image": (image is not None, ("--residual",)),
            "--block": (block is not None, ("--residual",)),
            "--no-ablate": (not ablate, ("--residual",)),
            "--against": (against is not None, ("--residual", "--drift")),
            "--images": (images is not None, ("--residual", "--drift", "--features", "--worst")),
            "--split": (split is not None, ("--residual", "--drift", "--features", "--worst")),
            "--num-classes": (num_classes is not None, ("--tree", "--freeze-plan")),
            "--log": (log, ("--residual", "--drift", "--features", "--cam", "--worst", "--tree", "--freeze-plan")),
        },
    )
    refuse_silence(quiet and not (as_json or output or log), "--output DIR")
    from tl_cli.cli import views as seen
    from tl_cli.text import json_text
    from tl_cli.ui.terminal.console import make_console, try_to_show
    from tl_cli.ui.terminal.progress import FileProgress

    console = make_console(quiet=quiet)
    with FileProgress(make_console(quiet=quiet, stderr=as_json)) as progress:
        wanted = seen.Wanted(
            _find(model, tracking_uri),
            weights=weights,
            data=data,
            split=split,
            data_dir=str(data_dir) if data_dir else None,
            images=images,
            input_size=input_size,
            device=device or "auto",
            workers=workers,
            tracking_uri=tracking_uri,
            progress=progress,
        )
        if log and wanted.target is None:
            raise typer.BadParameter("only a recorded run can keep results; --output writes files", param_hint="--log")
        if views == ["--freeze-plan"]:
            view = seen.freeze_plan(wanted, context.args, num_classes)
        elif views == ["--residual"]:
            view = seen.residuals(wanted, ablate=ablate, against=against, image=image, block=block)
        elif views == ["--drift"]:
            view = seen.drift(wanted, against=against)
        elif views == ["--features"]:
            view = seen.features(wanted)
        elif views == ["--cam"]:
            view = seen.cam(wanted, cam or [])
        elif views == ["--worst"]:
            view = seen.worst(wanted, worst or 1)
        else:
            view = seen.tree(wanted, num_classes, depth)
    reader_is_gone = try_to_show(lambda: typer.echo(json_text(view.data)) if as_json else view.show(console))
    written = _keep(view, wanted, output=output, log=log)
    if reader_is_gone:
        raise reader_is_gone
    for path in written:
        if not as_json:
            console.print(str(path), markup=False, soft_wrap=True, style="dim")


def _check(views: list[str], others: list[str], given: dict[str, tuple[bool, tuple[str, ...]]]) -> None:
    """Refuse what does not go together, before anything is opened."""
    from tl_cli.errors import UsageError

    if len(views) > 1:
        raise UsageError(f"{' and '.join(views)} are different views; give one at a time")
    view = views[0] if views else "--tree"
    if others and view != "--freeze-plan":
        what = "option" if others[0].startswith("-") else "argument"
        raise UsageError(f"no such {what}: {others[0]}; options of tl train go with --freeze-plan, after the model")
    for flag, (is_given, goes_with) in given.items():
        if is_given and view not in goes_with:
            named = " and ".join(each for each in goes_with if each != "--tree") or "the tree alone"
            raise UsageError(f"{flag} has no use here; it goes with {named}")


def _find(name: str, tracking_uri: str | None) -> "str | Target":
    """Return the architecture of that name, or the run or saved model; what is neither may be a mistyped one."""
    from tl_cli.api.model_lookup import find_model
    from tl_cli.errors import RunNotFoundError, UnknownModelError
    from tl_cli.models.zoo import registry
    from tl_cli.ui.terminal.console import print_warning

    if registry.has(name):
        return name
    try:
        return find_model(name, tracking_uri, print_warning)
    except RunNotFoundError as error:
        message = f"no model, run or saved-model folder is called {name!r}.{registry.nearest(name)}"
        raise UnknownModelError(message) from error


def _keep(view: "View", wanted: "Wanted", *, output: Path | None, log: bool) -> list[Path]:
    """Write what was seen where it is wanted; return the files that a person asked for."""
    from tl_cli.tracking.evaluations import log_inspection

    written = _write(view, output) if output is not None else []
    target = wanted.target
    if log and target is not None:
        if target.store is None or target.run is None:
            raise typer.BadParameter("a bare folder has no run to keep them", param_hint="--log")
        files = _write(view, target.store.state_folder(target.run) / "inspect" / view.name)
        log_inspection(target.store, target.run, view.name, files)
    return written


def _write(view: "View", folder: Path) -> list[Path]:
    from tl_cli.io.download import write_text
    from tl_cli.text import json_text

    path = folder / f"{view.name}.json"
    write_text(path, json_text(view.data) + "\n")
    return [path, *view.save(folder)]
