"""torchvision's classifiers: building them, and their published weights."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import regnet
from torchvision.models._api import WeightsEnum
from torchvision.models.vision_transformer import interpolate_embeddings
from torchvision.ops import StochasticDepth

from tl_cli.contract import Interpolation, Preprocessing, WeightsTag
from tl_cli.errors import UsageError, WeightsError, suggest
from tl_cli.io.download import Missing, Progress
from tl_cli.models.list.published import Architecture
from tl_cli.models.zoo.source import Source
from tl_cli.models.zoo.weights import Pretrained, fetch_file, missing_file, read, url_path

# Auxiliary heads of GoogLeNet and Inception, used only in training.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# As in torchvision's densenet._load_state_dict.
_OLD_DENSENET = re.compile(
    r"^(.*denselayer\d+\.(?:norm|relu|conv))\.((?:[12])\.(?:weight|bias|running_mean|running_var))$"
)


class TorchvisionSource(Source):
    """Every classification model of torchvision."""

    def names(self) -> list[str]:
        """Return torchvision's classification models."""
        listed: list[str] = torchvision.models.list_models(module=torchvision.models)
        return listed

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        """Return the architecture with random weights and without auxiliary heads."""
        builder = torchvision.models.get_model_builder(name)
        extra: dict[str, object] = dict(options)
        if name in ("googlenet", "inception_v3"):
            # Without auxiliary heads, which would train too; init_weights only silences a warning.
            extra |= {"aux_logits": False, "init_weights": True}
        with _regnet_on_meta():
            model: nn.Module = builder(weights=None, num_classes=num_classes, **extra)
        if drop_path is not None:
            _set_drop_path(name, model, drop_path)
        return model

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return torchvision's weights, downloaded into TORCH_HOME on first use and checked by hash.

        Args:
            spec: their name in torchvision's enum; ``default`` is the best.

        Raises:
            WeightsError: no weights of that name; the message lists those that exist.
            DownloadError: they are not on this machine and cannot be downloaded.
        """
        entry = _entry(name, spec)
        path, sha256 = fetch_file(entry.url, progress)
        return Pretrained(
            state=read(path),
            tag=WeightsTag(name=f"torchvision:{entry}", sha256=sha256),
            preprocessing=_preprocessing(name, entry),
        )

    def missing(self, name: str, spec: str) -> Missing | None:
        """Return the file, unless it is in TORCH_HOME."""
        return missing_file(_entry(name, spec).url)

    def fetch(self, name: str, progress: Progress) -> None:
        """Download the best weights into TORCH_HOME."""
        fetch_file(_entry(name, "default").url, progress)

    def adapt(self, name: str, model: nn.Module, weights: Pretrained, options: dict[str, int]) -> Mapping[str, Tensor]:
        """Return tensors with current names, without auxiliary heads, and position embeddings resized to the input."""
        state = _modernised(weights.state, model.state_dict())
        if "image_size" in options and "encoder.pos_embedding" in state:
            # Resize from the published number of patches.
            state = dict(interpolate_embeddings(options["image_size"], model.patch_size, OrderedDict(state)))
        return state

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        """Return the preprocessing in the weights' metadata."""
        return _preprocessing(name, _entry(name, spec))

    def published(self, name: str) -> list[str]:
        """Return the members of torchvision's enum."""
        return [*torchvision.models.get_model_weights(name).__members__]

    def about(self, name: str) -> Architecture:
        """Return the facts in the best weights' metadata."""
        entry = _entry(name, "default")
        measured = entry.meta["_metrics"].get("ImageNet-1K", {})
        return Architecture(
            name,
            plain_name=name,
            module=torchvision.models.get_model_builder(name).__module__.rpartition(".")[2],
            input_size=self.size_limits(name, "default")[1],
            top1=measured["acc@1"] / 100 if "acc@1" in measured else None,
            on_disk=url_path(entry.url).exists(),
        )

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        """Return the smallest and the usual input size in the weights' metadata."""
        entry = _entry(name, spec)
        own = max(entry.transforms().crop_size)
        return min(max(entry.meta["min_size"]), own), own

    def options_for(self, name: str, input_size: int) -> dict[str, int]:
        """Return ViT's image_size: its position embeddings are made for one number of patches."""
        return {"image_size": input_size} if name.startswith("vit_") else {}


def _entry(name: str, spec: str) -> WeightsEnum:
    entries = torchvision.models.get_model_weights(name).__members__
    requested = spec.rpartition(".")[2].upper()
    if requested not in entries:
        advice = suggest(requested, [*entries])
        raise WeightsError(f"{name} has no weights called {spec!r}.{advice} Or use --weights none, or a file.")
    entry: WeightsEnum = entries[requested]
    return entry


def _preprocessing(name: str, entry: WeightsEnum) -> Preprocessing:
    transforms = entry.transforms()
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    if name in ("googlenet", "inception_v3"):
        # These normalise twice (transform_input); together that is a normalisation to -1..1.
        mean = std = (0.5, 0.5, 0.5)
    interpolation: Interpolation = transforms.interpolation.value
    return Preprocessing(
        resize=transforms.resize_size[0], crop=transforms.crop_size[0], interpolation=interpolation, mean=mean, std=std
    )


def _set_drop_path(name: str, model: nn.Module, rate: float) -> None:
    """Set drop-path rates that rise from 0 at the first block to ``rate`` at the last (Huang et al. 2016)."""
    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if not layers:
        raise UsageError(f"{name} has no stochastic depth: --drop-path has no effect")
    for index, layer in enumerate(layers):
        layer.p = rate * index / max(1, len(layers) - 1)


def _modernised(state: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with current names, without auxiliary heads, with the counters that old files lack."""
    # Names in DenseNet's published files have one more dot.
    renamed = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    current = {key: value for key, value in renamed.items() if not key.startswith(_AUXILIARY) or key in target}
    counters = {key: value for key, value in target.items() if key.endswith("num_batches_tracked")}
    return counters | current


@contextmanager
def _regnet_on_meta() -> Iterator[None]:
    """Make RegNets work under ``torch.device("meta")``: they compute their widths with ``.tolist()``."""
    original = regnet.BlockParams.__dict__["from_init_params"]
    computed = original.__func__

    def on_cpu(cls: type[regnet.BlockParams], /, *args: object, **kwargs: object) -> regnet.BlockParams:
        with torch.device("cpu"):
            params: regnet.BlockParams = computed(cls, *args, **kwargs)
        return params

    if torch.get_default_device().type != "meta":
        yield
        return
    regnet.BlockParams.from_init_params = classmethod(on_cpu)
    try:
        yield
    finally:
        regnet.BlockParams.from_init_params = original
