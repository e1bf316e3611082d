"""What ``tl inspect`` looks at: a network on its device, and the images that are shown to it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tl_cli.choices import DeviceName
from tl_cli.compute.device import Machine, choose_device, default_workers, eval_batch
from tl_cli.contract import DataSpec, Preprocessing
from tl_cli.data import photographs, splits
from tl_cli.data.batches import Loader
from tl_cli.data.dataset import LabelledData, open_data
from tl_cli.data.images import Images
from tl_cli.data.preprocess import Picture, decoded_side, normalise, open_picture, prepare
from tl_cli.errors import DataError
from tl_cli.evaluation.measure import Evaluator, Part
from tl_cli.io.download import Progress, silent
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.registry import Classifier

# Of photographs that come with pip, where nobody has given images.
_CUTS, _CUT_SIDE = 32, 256


@dataclass(frozen=True, slots=True)
class Shown:
    """Images for a network to look at.

    Attributes:
        source: where they are, for people.
        classes: names of their classes; empty where they have no labels.
        is_judged: whether the labels are those that the network was trained to give, so that it can be right or wrong.
        open: batches of them: at most so many images, in batches of so many.
        open_known: the same of training images, to look up what others are like; None where there are none.
    """

    source: str
    classes: tuple[str, ...]
    is_judged: bool
    open: Callable[[int, int | None], Loader]
    open_known: Callable[[int], Loader] | None = None

    def batches(self, most: int, batch: int | None = None) -> Loader:
        """Return batches of the images with the truth about the network's answers, where there is one."""
        loader = self.open(most, batch)
        if self.is_judged:
            return loader
        unknown = np.full(len(loader.images), photographs.UNKNOWN, dtype=np.int64)
        return replace(loader, images=replace(loader.images, labels=unknown))


@dataclass(frozen=True, slots=True)
class Subject:
    """A network that is looked into.

    Attributes:
        classifier: in eval mode, in fp32, on its device.
        machine: where it computes.
        names: of its outputs; empty where they have none.
        show: opens the images that it is shown; not needed for pictures that a person gives.
        max_pixels: how many may be decoded of a picture; None is the usual limit.
    """

    classifier: Classifier
    machine: Machine
    names: tuple[str, ...]
    show: Callable[[], Shown]
    max_pixels: int | None = None

    def prepared(self, picture: Picture) -> Tensor:
        """Return what the network sees of a picture: (3, S, S) uint8."""
        return prepare(picture, self.classifier.preprocessing)

    def inputs(self, seen: Tensor) -> Tensor:
        """Return prepared pictures as the network takes them: (B, 3, S, S) float32, normalised, on its device.

        Args:
            seen: (B, 3, S, S) uint8.
        """
        images = normalise(seen.to(self.machine.device), self.classifier.preprocessing)
        return images.contiguous(memory_format=self.machine.memory_format)

    def name_of(self, output: int) -> str:
        """Return the name of an output, or its number."""
        return self.names[output] if output < len(self.names) else f"class {output}"


def decoded_picture(path: Path, how: Preprocessing, max_pixels: int | None = None) -> Picture:
    """Return a picture file, no larger than a network needs it.

    Raises:
        DataError: it is none, or is not there.
    """
    if not path.is_file():
        what = "is a folder; give a picture" if path.is_dir() else "there is no such file"
        raise DataError(f"{path}: {what}")
    return open_picture(path, short_side=decoded_side(how), pixel_range=how.pixel_range, max_pixels=max_pixels)


def subject_of_model(
    folder: Path,
    *,
    source: str | None = None,
    part: Part | None = None,
    data_dir: str | None = None,
    device: DeviceName = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> Subject:
    """Return a saved model with images of its own data, or of others that are matched by the names of their classes.

    Args:
        folder: of the saved model.
        source: other images; None is its own.
        part: of the data; None is the validation images, of others what says most.

    Raises:
        WeightsError: the folder is no saved model.
    """
    classifier, card = registry.restore(folder)
    machine = Machine(choose_device(device), memory_format=torch.channels_last)
    machine.place(classifier.model)

    def show() -> Shown:
        evaluator = Evaluator(
            classifier, card, source=source, data_dir=data_dir, device=device, workers=workers, progress=progress
        )
        # Held out of training; the test images are for the evaluation alone.
        chosen = part or ("val" if evaluator.is_own and "val" in card.data.splits else evaluator.preferred)
        return Shown(
            f"{source or card.data.source}, {chosen if chosen != 'all' else 'all images'}",
            card.classes,
            is_judged=True,
            open=lambda most, batch: _in_batches(evaluator.loader(chosen, most=most), batch),
            open_known=(lambda most: evaluator.loader("train", most=most)) if evaluator.is_own else None,
        )

    return Subject(classifier, machine, card.classes, show, card.data.max_pixels)


def subject_of_architecture(
    name: str,
    *,
    weights: str = "default",
    source: str | None = None,
    part: Part | None = None,
    data_dir: str | None = None,
    input_size: int | None = None,
    device: DeviceName = "auto",
    workers: int | None = None,
    progress: Progress = silent,
) -> Subject:
    """Return an architecture with published weights under their own head, and images that it was not trained for.

    Args:
        source: where the images are; None is photographs that come with pip.
        input_size: side of the input in pixels; None is the weights' own.

    Raises:
        UsageError: the weights or the size cannot be used.
        DownloadError: the weights must be fetched and cannot be.
    """
    machine = Machine(choose_device(device), memory_format=torch.channels_last)
    classifier = registry.create(name, None, weights=weights, input_size=input_size, progress=progress)
    if input_size is not None:
        sized = classifier.preprocessing.at(input_size, whole=False)
        classifier = replace(classifier, preprocessing=sized)
    machine.place(classifier.model)
    classifier.model.eval()
    threads = default_workers() if workers is None else workers

    def loader(images: Images, batch: int | None = None) -> Loader:
        size = batch or eval_batch(machine.device, classifier.preprocessing.crop)
        return Loader(
            images, classifier.preprocessing, size, machine.device, threads, memory_format=machine.memory_format
        )

    def show() -> Shown:
        if source is None:
            cuts = photographs.photographs(_CUTS, _CUT_SIDE)
            return Shown(
                photographs.ABOUT,
                (),
                is_judged=False,
                open=lambda most, batch: loader(cuts.subset(np.arange(min(most, _CUTS))), batch),
            )
        data = _labelled(source, data_dir, threads, progress)
        chosen = part or ("test" if "test" in data.parts else "val")
        if chosen == "all" or chosen not in data.parts:
            raise DataError(f"{source} has no {chosen} images; there are: {', '.join(data.parts)} (--split)")
        return Shown(
            f"{data.spec.source}, {chosen}",
            data.classes,
            is_judged=False,
            open=lambda most, batch: loader(_most(data.parts[chosen], most), batch),
            open_known=lambda most: loader(_most(data.parts["train"], most)),
        )

    return Subject(classifier, machine, _names(classifier), show)


def _labelled(source: str, data_dir: str | None, workers: int, progress: Progress) -> LabelledData:
    return open_data(DataSpec(source=source, data_dir=data_dir, layout="classes"), workers=workers, progress=progress)


def _most(images: Images, most: int) -> Images:
    return images if most >= len(images) else images.subset(splits.beginning(images.labels, most, seed=0))


def _in_batches(loader: Loader, batch: int | None) -> Loader:
    return loader if batch is None else replace(loader, batch_size=batch)


def _names(classifier: Classifier) -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes where that is what the weights have."""
    from torchvision.models import ResNet18_Weights

    names = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    outputs = next(p.shape[0] for p in classifier.head_modules[0].parameters())
    return names if outputs == len(names) else ()
