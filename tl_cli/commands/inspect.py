"""``tl inspect``: what is inside a model."""

from pathlib import Path
from typing import Annotated

import typer

from tl_cli.commands.options import TrackingUri, complete_model

EXAMPLES = """Examples:

tl inspect efficientnet_b0

tl inspect resnet18 --depth 3 --num-classes 37 --input-size 128

tl inspect latest"""


def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN", help="Architecture, run, or saved-model folder.", autocompletion=complete_model
        ),
    ],
    depth: Annotated[int, typer.Option(help="Levels of the tree.", min=0)] = 2,
    num_classes: Annotated[int | None, typer.Option(help="Classes of the head; 10 for an architecture.", min=1)] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1)] = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Show a model as a tree: types, output shapes, parameters, and what is frozen at first."""
    from tl_cli.inspection.summary import summarize
    from tl_cli.models import bundle, zoo
    from tl_cli.ui.console import make_console, plain
    from tl_cli.ui.tables import model_tree

    console = make_console()
    if zoo.has(model):
        name, classes, options = model, num_classes or 10, {}
        preprocessing = zoo.default_preprocessing(name)
        lines: list[str] = []
    else:
        card = bundle.read_card(_folder(model, tracking_uri))
        name, classes, options = card.architecture, num_classes or len(card.classes), dict(card.build_options)
        preprocessing = card.preprocessing
        lines = [
            f"classes {', '.join(card.classes[:10])}{', ...' if len(card.classes) > 10 else ''}",
            f"weights {card.weights.name}, recipe {card.recipe}, epoch {card.epoch}",
        ]
        if card.val_accuracy is not None:
            lines.append(f"validation accuracy {card.val_accuracy:.2%}")
    size = input_size or preprocessing.crop
    root = summarize(name, classes, size, options | zoo.options_for(name, size))
    console.print(plain(f"{name}, {classes} classes, input {size} x {size}", "bold"))
    for line in lines:
        console.print(plain(line))
    console.print(model_tree(root, depth))
    head = ", ".join(zoo.find_head(name))
    console.print(plain(f"{root.parameters:,} parameters; with the backbone frozen {root.trainable:,} train: {head}"))


def _folder(name: str, tracking_uri: str | None) -> Path:
    """Return the saved model of a run or folder; a name that is neither is probably a mistyped architecture."""
    from tl_cli.commands.resolve import find_model
    from tl_cli.errors import RunNotFoundError, UnknownModelError
    from tl_cli.models import zoo

    try:
        return find_model(name, tracking_uri).folder
    except RunNotFoundError as error:
        message = f"no model, run or saved-model folder is called {name!r}.{zoo.nearest(name)}"
        raise UnknownModelError(message) from error
