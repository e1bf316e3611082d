"""The model that ``tl inspect`` examines, on its device, and the images that it is run on."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.models import ResNet18_Weights

from tl_cli.choices import DeviceName
from tl_cli.compute.device import Machine, inference_machine, worker_count
from tl_cli.contract import DataSpec, ModelCard
from tl_cli.data import photographs, splits
from tl_cli.data.batches import Loader
from tl_cli.data.dataset import open_data
from tl_cli.data.decode import Picture
from tl_cli.data.images import Images
from tl_cli.data.preprocess import normalise, open_picture, prepare
from tl_cli.errors import DataError
from tl_cli.evaluation.logits import inference_loader
from tl_cli.evaluation.measure import Evaluator, Part
from tl_cli.io.download import Progress, silent
from tl_cli.models.classifier import Classifier
from tl_cli.models.zoo import registry

# Squares cut from the photographs in scikit-learn: how many, and their side in pixels.
_CUTS, _CUT_SIDE = 32, 256


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where a model runs, and which images it is run on.

    Attributes:
        source: folder, CSV, archive or name of a published set; None is the saved model's own data, and for an
            architecture a few photographs.
        split: None is the validation images of a saved model's own data, else the test images where there are any.
        data_dir: where downloaded sets are kept; None is the cache folder.
        device: where to compute.
        workers: image-loading threads; None is one per core, at most 8.
        progress: called while weights are downloaded and images are opened.
    """

    source: str | None = None
    split: Part | None = None
    data_dir: str | None = None
    device: DeviceName = "auto"
    workers: int | None = None
    progress: Progress = silent


@dataclass(frozen=True, slots=True)
class SampleImages:
    """Images that a model is run on.

    Attributes:
        source: where they come from, for people.
        classes: names of their classes; empty where they have no labels.
        labels_fit: whether the labels are the model's own classes, so that its predictions can be right or wrong.
        open: returns a loader of at most (images, images per batch); a batch size of None chooses.
        open_training: returns a loader of at most so many training images; None where there are none.
    """

    source: str
    classes: tuple[str, ...]
    labels_fit: bool
    open: Callable[[int, int | None], Loader]
    open_training: Callable[[int], Loader] | None = None

    def batches(self, most: int, batch_size: int | None = None) -> Loader:
        """Return a loader of at most ``most`` images; labels are -1 where they are not the model's own classes."""
        loader = self.open(most, batch_size)
        if self.labels_fit:
            return loader
        unknown = np.full(len(loader.images), photographs.UNKNOWN, dtype=np.int64)
        return replace(loader, images=replace(loader.images, labels=unknown))


@dataclass(frozen=True, slots=True)
class InspectedModel:
    """A model to inspect.

    Attributes:
        classifier: in eval mode, in fp32, on its device.
        machine: where it computes.
        class_names: of its outputs; empty where they have none.
        open_images: opens the images that it is run on; not needed for picture files.
        max_pixels: limit of decoded pixels per picture; None is the default.
    """

    classifier: Classifier
    machine: Machine
    class_names: tuple[str, ...]
    open_images: Callable[[], SampleImages]
    max_pixels: int | None = None

    def prepared(self, picture: Picture) -> Tensor:
        """Return a picture resized and cut to the model's input, (3, S, S) uint8."""
        return prepare(picture, self.classifier.preprocessing)

    def inputs(self, images: Tensor) -> Tensor:
        """Return normalised inputs (B, 3, S, S) float32 on the model's device.

        Args:
            images: (B, 3, S, S) uint8, from ``prepared``.
        """
        inputs = normalise(images.to(self.machine.device), self.classifier.preprocessing)
        return inputs.contiguous(memory_format=self.machine.memory_format)

    def class_name(self, output: int) -> str:
        """Return the class name of an output, or its number where it has none."""
        return self.class_names[output] if output < len(self.class_names) else f"class {output}"

    def read(self, path: Path) -> Picture:
        """Return a decoded picture file, no larger than the model needs it.

        Raises:
            DataError: the file does not exist or cannot be decoded.
        """
        if not path.is_file():
            problem = "is a folder; give a picture" if path.is_dir() else "there is no such file"
            raise DataError(f"{path}: {problem}")
        return open_picture(path, self.classifier.preprocessing, self.max_pixels)


def load_saved_model(folder: Path, options: LoadOptions) -> InspectedModel:
    """Return a saved model with images of its own data, or of other data whose classes are matched by name.

    Raises:
        WeightsError: the folder is no saved model.
    """
    classifier, card = registry.restore(folder)
    machine = inference_machine(options.device)
    machine.place(classifier.model)
    return InspectedModel(
        classifier, machine, card.classes, lambda: _own_images(classifier, card, options), card.data.max_pixels
    )


def _own_images(classifier: Classifier, card: ModelCard, options: LoadOptions) -> SampleImages:
    evaluator = Evaluator(
        classifier,
        card,
        source=options.source,
        data_dir=options.data_dir,
        device=options.device,
        workers=options.workers,
        progress=options.progress,
    )
    # Validation images were not trained on; the test images are evaluated once, at the end.
    split = options.split or ("val" if evaluator.is_own and "val" in card.data.splits else evaluator.preferred)

    def open_split(most: int, batch_size: int | None) -> Loader:
        loader = evaluator.loader(split, most=most)
        return loader if batch_size is None else replace(loader, batch_size=batch_size)

    return SampleImages(
        f"{options.source or card.data.source}, {split if split != 'all' else 'all images'}",
        card.classes,
        labels_fit=True,
        open=open_split,
        open_training=(lambda most: evaluator.loader("train", most=most)) if evaluator.is_own else None,
    )


def load_architecture(
    name: str, options: LoadOptions, *, weights: str = "default", input_size: int | None = None
) -> InspectedModel:
    """Return an architecture with published weights and their own head, and images that it was not trained on.

    Args:
        weights: name of published weights, a file, or ``none`` for random ones.
        input_size: side of the input in pixels; None is the weights' own.

    Raises:
        UsageError: the weights or the size cannot be used.
        DownloadError: the weights cannot be downloaded.
    """
    machine = inference_machine(options.device)
    classifier = registry.create(name, None, weights=weights, input_size=input_size, progress=options.progress)
    if input_size is not None:
        sized = classifier.preprocessing.at(input_size, whole=False)
        classifier = replace(classifier, preprocessing=sized)
    machine.place(classifier.model)
    classifier.model.eval()
    threads = worker_count(options.workers)

    def loader(images: Images, most: int, batch_size: int | None = None) -> Loader:
        if most < len(images):
            images = images.subset(splits.beginning(images.labels, most, seed=0))
        return inference_loader(images, classifier.preprocessing, machine, threads, batch_size)

    def open_images() -> SampleImages:
        if options.source is not None:
            return _other_images(options.source, options, threads, loader)

        def open_first(most: int, batch_size: int | None) -> Loader:
            return loader(photographs.photographs(min(most, _CUTS), _CUT_SIDE), _CUTS, batch_size)

        return SampleImages(photographs.ABOUT, (), labels_fit=False, open=open_first)

    return InspectedModel(classifier, machine, _imagenet_names(classifier), open_images)


def _other_images(
    source: str, options: LoadOptions, workers: int, loader: Callable[[Images, int, int | None], Loader]
) -> SampleImages:
    spec = DataSpec(source=source, data_dir=options.data_dir, layout="classes")
    data = open_data(spec, workers=workers, progress=options.progress)
    split = options.split or ("test" if "test" in data.parts else "val")
    if split == "all" or split not in data.parts:
        raise DataError(f"{source} has no {split} images; there are: {', '.join(data.parts)} (--split)")
    images = data.parts[split]
    return SampleImages(
        f"{data.spec.source}, {split}",
        data.classes,
        labels_fit=False,
        open=partial(loader, images),
        open_training=lambda most: loader(data.parts["train"], most, None),
    )


def _imagenet_names(classifier: Classifier) -> tuple[str, ...]:
    """Return the names of ImageNet's 1,000 classes where the head has that many outputs."""
    names = tuple(ResNet18_Weights.DEFAULT.meta["categories"])
    outputs = next(p.shape[0] for p in classifier.head_modules[0].parameters())
    return names if outputs == len(names) else ()
