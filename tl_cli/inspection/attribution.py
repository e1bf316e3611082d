"""Where a network looked: Grad-CAM, by captum, for convolutions and for Transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tl_cli.errors import UsageError
from tl_cli.inspection.maps import Places, places_of
from tl_cli.models.layers import layers_of
from tl_cli.models.zoo.registry import Classifier


@dataclass(frozen=True, slots=True)
class Looked:
    """What spoke for a class, place by place.

    Attributes:
        heat: (B, S, S) float32 on the CPU, S the input's side; 0 to 1, each image by its own largest. All zero where
            nothing spoke for the class.
        layer: name of the module that was looked at.
        grid: rows and columns of its places.
    """

    heat: Tensor
    layer: str
    grid: tuple[int, int]


def where_it_looked(classifier: Classifier, images: Tensor, targets: Sequence[int]) -> Looked:
    """Return Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391) for one class an image.

    The last layer is looked at whose places all have a say in the answer: in a CNN the last maps; in a Transformer that
    reads its class token, the tokens that go into the last block. The model is left in eval mode.

    Args:
        images: (B, 3, S, S), normalised, on the model's device.
        targets: an index of a class for each.

    Raises:
        UsageError: captum is not installed, or no layer keeps the places of the image.
    """
    try:
        from captum.attr import LayerAttribution, LayerGradCam
    except ModuleNotFoundError as error:
        raise UsageError("Grad-CAM needs captum: pip install 'tl-train[explain]'") from error
    classifier.model.eval()
    images = images.detach().clone().requires_grad_()
    name, places = _where_to_look(classifier, images, targets)
    probe = _Probe()
    with torch.enable_grad(), _seen_as_maps(classifier.model.get_submodule(name), places, probe):
        cam = LayerGradCam(classifier.model, probe).attribute(images, target=list(targets), relu_attributions=True)
    grown = LayerAttribution.interpolate(cam, tuple(images.shape[-2:]), "bilinear").detach().float()[:, 0].cpu()
    largest = grown.amax((1, 2), keepdim=True)
    return Looked(torch.where(largest > 0, grown / largest, 0.0), name, (places.height, places.width))


class _Probe(nn.Module):
    """Stands where captum looks. A copy: what follows may write into its input."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.clone()


@contextmanager
def _seen_as_maps(module: nn.Module, places: Places, probe: nn.Module) -> Iterator[None]:
    """Lead a module's output through the probe, there laid out as maps (B, C, H, W)."""
    handle = module.register_forward_hook(lambda m, i, output: places.back(probe(places.maps(output)), output).clone())
    try:
        yield
    finally:
        handle.remove()


def _where_to_look(classifier: Classifier, images: Tensor, targets: Sequence[int]) -> tuple[str, Places]:
    """Return the name of the module to look at, and how its output lies on the image."""
    names = {id(module): name for name, module in classifier.model.named_modules()}
    layers = [layer for layer in layers_of(classifier, images[:1].detach()) if not layer.is_head]
    modules = [module for layer in layers for module in layer.modules]
    seen: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            seen[module] = output

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        with torch.enable_grad():
            logits = classifier.model(images)
            chosen = logits.gather(1, torch.tensor(targets, device=logits.device)[:, None]).sum()
            slopes = torch.autograd.grad(chosen, list(seen.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for (module, output), slope in reversed(list(zip(seen.items(), slopes, strict=True))):
        places = places_of(tuple(output.shape), len(images))
        if places is not None and slope is not None and _all_have_a_say(places.maps(slope)):
            return names[id(module)], places
    raise UsageError(f"{classifier.name} has no layer that keeps the places of the image, so nothing can be shown")


def _all_have_a_say(slopes: Tensor) -> bool:
    """Whether most places of a map change the answer; of a dead channel here and there one may not."""
    return bool((slopes.abs().amax(1) > 0).float().mean() > 0.5)
