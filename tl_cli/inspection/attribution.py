"""Which parts of an image speak for a class: Grad-CAM with captum, for CNNs and Transformers."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.errors import UsageError
from tl_cli.inspection.maps import MapLayout, layout_of
from tl_cli.models.classifier import Classifier
from tl_cli.models.layers import layers_of


@dataclass(frozen=True, slots=True)
class Heatmaps:
    """Positive evidence for a class at each position of an image.

    Attributes:
        heat: (B, S, S) float32 on the CPU, S the input's side; 0 to 1, each image divided by its maximum. All zero
            where there is no positive evidence.
        layer: qualified name of the module whose output is weighted.
        grid: rows and columns of that output.
    """

    heat: Tensor
    layer: str
    grid: tuple[int, int]


def grad_cam(classifier: Classifier, images: Tensor, targets: Sequence[int]) -> Heatmaps:
    """Return Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) for one class per image.

    It uses the last layer all of whose positions influence the logits: in a CNN the last maps; in a Transformer with a
    class token, the input of the last block. The model is left in eval mode.

    Args:
        images: (B, 3, S, S), normalised, on the model's device.
        targets: one class index per image.

    Raises:
        UsageError: captum is not installed, or no layer keeps positions.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam  # an optional extra
    except ModuleNotFoundError as error:
        raise UsageError("Grad-CAM needs captum: pip install 'tl-train[explain]'") from error
    classifier.model.eval()
    images = images.detach().clone().requires_grad_()
    name, layout = _target_layer(classifier, images, targets)
    probe = _Probe()

    def through_probe(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return layout.restore(probe(layout.maps(output)), output).clone()

    layer = classifier.model.get_submodule(name)
    with torch.enable_grad(), layer.register_forward_hook(through_probe):
        cam = LayerGradCam(classifier.model, probe).attribute(images, target=list(targets), relu_attributions=True)
    enlarged = LayerAttribution.interpolate(cam, tuple(images.shape[-2:]), "bilinear").detach().float()[:, 0].cpu()
    largest = enlarged.amax((1, 2), keepdim=True)
    return Heatmaps(torch.where(largest > 0, enlarged / largest, 0.0), name, (layout.height, layout.width))


class _Probe(nn.Module):
    """The layer given to captum: the maps (B, C, H, W), copied, because later layers may write into their input."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.clone()


def _target_layer(classifier: Classifier, images: Tensor, targets: Sequence[int]) -> tuple[str, MapLayout]:
    """Return the name of the module for Grad-CAM and the layout of its output."""
    names = {module: name for name, module in classifier.model.named_modules()}
    layers = layers_of(classifier, images[:1].detach())
    modules = [module for layer in layers if not layer.is_head for module in layer.modules]
    outputs: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            outputs[module] = output

    with ExitStack() as hooks, torch.enable_grad():
        for module in modules:
            hooks.enter_context(module.register_forward_hook(keep))
        logits = classifier.model(images)
        chosen = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None]).sum()
        gradients = torch.autograd.grad(chosen, list(outputs.values()), allow_unused=True)
    for module, gradient in reversed(list(zip(outputs, gradients, strict=True))):
        layout = layout_of(tuple(outputs[module].shape), len(images))
        if layout is not None and gradient is not None and _most_matter(layout.maps(gradient)):
            return names[module], layout
    raise UsageError(f"{classifier.name} has no layer that keeps image positions, so there is no heatmap")


def _most_matter(gradients: Tensor) -> bool:
    """Whether most positions influence the logits; where a channel is dead a few may not."""
    return bool((gradients.abs().amax(1) > 0).float().mean() > 0.5)
