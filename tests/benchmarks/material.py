"""The inputs of every side: 32 x 32 JPEG images in train/ and val/, and a file of weights."""

import colorsys
import os
import shutil
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision
from PIL import Image
from torch import nn

NATIVE = 32
_CLASSES = 10
# CIFAR-10's 10,000 of 50,000.
_VAL_SHARE = 5
_STATISTICS_IMAGES = 30
# The number of hard links to a file is limited: 65,000 on ext4.
_LISTED_CLASSES = 100


class PicturesError(Exception):
    """The user's image folder cannot be used."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The image folder that every side reads.

    Attributes:
        root: holds train/CLASS/*.jpg and val/CLASS/*.jpg.
        classes: number of classes.
        train: images in train/.
        val: images in val/.
    """

    root: Path
    classes: int
    train: int
    val: int


@dataclass(frozen=True, slots=True)
class Material:
    """Images and weights, made when they are first used.

    Attributes:
        folder: where they are written.
        images: the user's image folder to copy from; None generates images.
    """

    folder: Path
    images: Path | None = None
    _pictures: dict[int, Pictures] = field(default_factory=dict)

    def pictures(self, count: int) -> Pictures:
        """Return ``count`` training images, rounded to whole classes, and a fifth as many for validation.

        Raises:
            PicturesError: the user's folder has no class folders, or its images have another size.
        """
        if count not in self._pictures:
            root = self.folder / f"pictures-{count}"
            parts = {"train": count, "val": max(1, count // _VAL_SHARE)}
            found = _copy(self.images, root, parts) if self.images else write_pictures(root, parts)
            self._pictures[count] = Pictures(root, _CLASSES if self.images is None else found[0], *found[1:])
        return self._pictures[count]

    def weights(self, model: str, size: int) -> Path:
        """Return a file of torchvision's 1,000-class network with random weights and fitting BatchNorm statistics.

        Given a file, ``tl`` resolves its recipe as for trained weights; their values do not affect speed.

        Args:
            size: input size for the statistics, in pixels: at another size, activations would grow from
                layer to layer beyond the range of half precision.
        """
        path = self.folder / f"{model}-{size}.safetensors"
        if not path.exists():
            torch.manual_seed(0)
            network = torchvision.models.get_model(model)
            files = sorted((self.pictures(_STATISTICS_IMAGES).root / "train").glob("*/*"))
            _fit_statistics(network, _enlarged(files[:_STATISTICS_IMAGES], size))
            safetensors.torch.save_file(network.state_dict(), path)
        return path

    def listing(self, count: int) -> Path:
        """Return a folder of ``count`` hard links to 800 x 600 JPEGs, one image per class."""
        root = self.folder / f"listing-{count}"
        per_class = max(10, count // _LISTED_CLASSES)
        for label in range(0 if root.exists() else count // per_class):
            folder = root / f"class-{label:03d}"
            folder.mkdir(parents=True)
            Image.new("RGB", (800, 600), (label, label, label)).save(folder / "000000.jpg")
            for index in range(1, per_class):
                os.link(folder / "000000.jpg", folder / f"{index:06d}.jpg")
        return root


def write_pictures(root: Path, parts: dict[str, int]) -> tuple[int, int, int]:
    """Fill ROOT/PART/CLASS/ with noisy JPEGs of ten colours, learned in a few steps.

    Args:
        parts: number of images per split, over all classes.

    Returns:
        The number of classes, then of images in each split.
    """
    noise = np.random.default_rng(0)
    written = []
    for part, count in parts.items():
        per_class = max(1, count // _CLASSES)
        for label in range(_CLASSES):
            folder = root / part / f"class-{label}"
            folder.mkdir(parents=True)
            colour = 255 * np.array(colorsys.hsv_to_rgb(label / _CLASSES, 0.7, 0.7))
            for index in range(per_class):
                pixels = colour + noise.normal(0, 40, (NATIVE, NATIVE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:05d}.jpg", quality=90)
        written.append(per_class * _CLASSES)
    return _CLASSES, written[0], written[1]


def _copy(images: Path, root: Path, parts: dict[str, int]) -> tuple[int, int, int]:
    """Copy images evenly from the classes of the user's folder: from this split if it exists, else from the next."""
    train = images / "train" if (images / "train").is_dir() else images
    val = next((images / name for name in ("test", "val") if (images / name).is_dir()), train)
    classes = sorted(path for path in train.iterdir() if path.is_dir())
    if len(classes) < 2:
        raise PicturesError(f"{images} has no class folders, neither in itself nor in its train/")
    sizes = dict.fromkeys(parts, 0)
    for source in classes:
        waiting = {train: iter(sorted(source.glob("*.jp*g"))), val: iter(sorted((val / source.name).glob("*.jp*g")))}
        for part, folder in (("train", train), ("val", val)):
            target = root / part / source.name
            target.mkdir(parents=True)
            for path in islice(waiting[folder], max(1, parts[part] // len(classes))):
                shutil.copy(path, target)
                sizes[part] += 1
        if not sizes["train"] or not sizes["val"]:
            raise PicturesError(f"{source} has too few JPEGs to train and to validate on")
        _check_size(next((root / "train" / source.name).iterdir()))
    return len(classes), sizes["train"], sizes["val"]


def _check_size(path: Path) -> None:
    with Image.open(path) as image:
        if image.size != (NATIVE, NATIVE):
            raise PicturesError(
                f"{path.name} is {image.width} x {image.height}; the blog's crop needs {NATIVE} x {NATIVE}"
            )


def _enlarged(files: list[Path], size: int) -> torch.Tensor:
    """Return images (N, 3, size, size) float32, standardised over the whole batch."""
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1) for file in files]
    )
    images = F.interpolate(pixels.float(), (size, size), mode="bilinear", antialias=True)
    return (images - images.mean()) / images.std()


def _fit_statistics(network: nn.Module, images: torch.Tensor) -> None:
    """Fit the BatchNorm statistics to images; otherwise activations vanish or grow from layer to layer."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        network.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
