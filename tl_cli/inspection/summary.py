"""The tree of a model: types, output shapes, parameters. Runs on the meta device, so no weights or data are needed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.errors import UsageError, first_line
from tl_cli.models import freezing, zoo


@dataclass(frozen=True, slots=True)
class Node:
    """One module of a model.

    Attributes:
        name: qualified; "" is the model itself.
        type: name of its class.
        output: shape of its output for one image, with the batch; None where it was not called or gives no tensor.
        parameters: with those of its children.
        trainable: of those, the ones that train while the backbone is frozen.
        is_head: whether it produces the classes.
        children: in order.
    """

    name: str
    type: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: int
    is_head: bool
    children: tuple["Node", ...]


def summarize(name: str, num_classes: int, input_size: int, options: dict[str, int] | None = None) -> Node:
    """Return the tree of an architecture with its backbone frozen.

    Args:
        input_size: side of the input in pixels.
        options: what the architecture is built with (ViT's image_size).

    Raises:
        UsageError: no such model, or it cannot take that input.
    """
    with torch.device("meta"):
        model = zoo.build(name, num_classes, options)
        images = torch.empty(1, 3, input_size, input_size)
    head = zoo.find_head(name)
    freezing.freeze_backbone(model, [model.get_submodule(part) for part in head])
    shapes = output_shapes(model, images)
    return _node("", model, head, shapes)


def output_shapes(model: nn.Module, images: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the shape of each module's output, by qualified name, from one forward pass in eval mode."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape)

        return hook

    handles = [module.register_forward_hook(note(name)) for name, module in model.named_modules()]
    try:
        model.eval()
        with torch.inference_mode():
            model(images)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError) as error:
        message = first_line(error)
        raise UsageError(f"this model cannot take images of {tuple(images.shape[-2:])}: {message}") from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _node(name: str, module: nn.Module, head: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> Node:
    prefix = f"{name}." if name else ""
    children = tuple(_node(prefix + child, inner, head, shapes) for child, inner in module.named_children())
    parameters = list(module.parameters())
    return Node(
        name=name,
        type=type(module).__name__,
        output=shapes.get(name),
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        is_head=name in head,
        children=children,
    )
