"""Computes the logits of a saved model for labelled images: those of its training, split as they were, or others."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tl_cli.choices import DeviceName, Precision, TtaName
from tl_cli.compute.device import Autocasting, inference_machine, worker_count
from tl_cli.contract import USUAL_COLUMNS, Columns, ModelCard, Split, SplitName
from tl_cli.data import checks, splits
from tl_cli.data.batches import Loader
from tl_cli.data.dataset import LabelledData, changed_parts, check_exists, decoded, open_for_evaluation
from tl_cli.data.images import FileImages, Images, describe
from tl_cli.data.sources import class_names
from tl_cli.data.sources.found import Found
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError, some
from tl_cli.evaluation.logits import LabelledLogits, check_finite, compute_logits, inference_loader, with_views
from tl_cli.evaluation.scores import Results
from tl_cli.io.download import Progress, silent
from tl_cli.models.classifier import Classifier

Part = SplitName | Literal["all"]
OnBadImage = Literal["error", "skip"]


@dataclass(frozen=True, slots=True)
class OwnAccuracy:
    """The accuracy of a model on its own data.

    Attributes:
        part: test, or val if it was not evaluated on test images.
        value: a fraction.
        images: number of images; None if that was not recorded.
    """

    part: SplitName
    value: float
    images: int | None

    @classmethod
    def of(cls, card: ModelCard, recorded: Mapping[str, float]) -> "OwnAccuracy | None":
        """Return the accuracy from the metrics of a run, or from the model card; None if there is none.

        Args:
            recorded: the run's metrics by name; empty for a model without a run.
        """
        results = Results.of(recorded)
        test = results.test_accuracy
        validation = card.val_accuracy if results.val_accuracy is None else results.val_accuracy
        part: SplitName = "val" if test is None else "test"
        value = validation if test is None else test
        split = card.data.splits.get(part)
        return None if value is None else cls(part, value, split.count if split else None)


@dataclass(frozen=True, slots=True)
class Measured:
    """The logits of a model for one split of a data set.

    Attributes:
        labelled: logits and labels; a label is an index of the model's classes.
        images: in the order of the logits.
        source: name or path of the data.
        part: the split; ``all`` if the data have no splits.
        split: number of images and their digest.
        is_own: whether the model was trained on these data.
        is_changed: whether they are its own data and have changed since the training.
        trained_on: for other data, how many of the images were training images nevertheless; None if unknown.
        missing: classes of the model without images in the split.
        otherwise: what differs from how the model was tested: ``flip``, ``none``, ``bf16``; "" if nothing does.
        notes: about the data, for people.
    """

    labelled: LabelledLogits
    images: Images
    source: str
    part: Part
    split: Split
    is_own: bool
    is_changed: bool
    trained_on: int | None
    missing: tuple[str, ...]
    otherwise: str
    notes: tuple[str, ...]


class Evaluator:
    """A saved model, and the data on which it is evaluated.

    Args:
        source: name or path of the data; None: those of the training.
        columns: of a CSV, if they differ from those of the training.
        batch_size: images in memory at a time; None chooses.
        tta: ``flip`` averages the logits of each image and its mirror image; None: as in training.
        precision: of the computation; models are tested in fp32.
        workers: number of threads that decode images; None chooses.
        on_bad_image: whether files that cannot be decoded are skipped; None: as in training.
        max_pixels: maximum number of pixels decoded per image; None: as in training.
        progress: called while images are opened and evaluated.

    Raises:
        DataError: the images do not exist.
    """

    def __init__(
        self,
        classifier: Classifier,
        card: ModelCard,
        *,
        source: str | None = None,
        data_dir: str | None = None,
        columns: Columns = USUAL_COLUMNS,
        device: DeviceName = "auto",
        batch_size: int | None = None,
        tta: TtaName | None = None,
        precision: Precision = "fp32",
        workers: int | None = None,
        on_bad_image: OnBadImage | None = None,
        max_pixels: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self._card = card
        self._skips = (on_bad_image or card.data.on_bad_image) == "skip"
        self._has_option = on_bad_image is not None
        self._progress = progress
        self._tta = tta or card.tta
        self._loaders: dict[Part, Loader] = {}
        self._threads = Threads(worker_count(workers), progress)
        if source is None:
            check_exists(card.data.source)
        judged = open_for_evaluation(
            card.data if max_pixels is None else card.data.model_copy(update={"max_pixels": max_pixels}),
            source or card.data.source,
            data_dir=data_dir,
            columns=columns,
            pixel_range=card.preprocessing.pixel_range,
            progress=progress,
        )
        self._data, self.is_own, self._trained_on = judged.data, judged.is_own, judged.trained_on
        self._parts: Mapping[SplitName, Images] = {**judged.data.parts, **judged.unread}
        self._unread = judged.unread
        self._changed = changed_parts(card.data, judged.data) if judged.is_own else []
        self._class_indices = _class_indices(self._data, card)
        # Channels-last: faster on a CPU for every network tried, and the layout of a GPU's tensor cores.
        self.machine = inference_machine(device, precision)
        self.machine.place(classifier.model)
        self._network = Autocasting(classifier.model, self.machine)
        # All batches that are computed concurrently are in memory together.
        self._batch_size = None if batch_size is None else max(1, batch_size // self.machine.at_once)

    @property
    def preferred(self) -> Part:
        """The split to evaluate by default: test; if the data never had one, val, or all images."""
        if "test" in self._parts or (self.is_own and "test" in self._card.data.splits):
            return "test"
        return "val" if self.is_own or "val" in self._parts else "all"

    def measure(self, part: Part | None = None) -> Measured:
        """Return the logits for a split of the data; ``None`` is the preferred one.

        Raises:
            DataError: there is no such split, it has classes that the model does not have, or images cannot be decoded
                (all of them are named).
        """
        part = part or self.preferred
        images, left_out = self._readable(part)
        name = _name_of(part)
        total = len(images)
        with self._all_named(images):
            # Images that are measured again, with other weights, are decoded once.
            loader = self._loaders[part] = self._loaders.get(part) or self._loader(images)
            labelled = compute_logits(
                self._network,
                with_views(loader.clean(), self._tta),
                lambda done: self._progress("evaluating", done, total),
                at_once=self.machine.at_once,
                tta=self._tta,
            )
        check_finite(labelled.logits, images.ids)
        seen = np.bincount(labelled.labels.numpy(), minlength=len(self._card.classes))
        return Measured(
            labelled=labelled,
            images=loader.images,
            source=self._data.spec.source,
            part=part,
            split=describe(images, self._data.classes) if left_out else self._data.spec.splits[name],
            is_own=self.is_own,
            is_changed=self.is_own and (part in self._changed or bool(left_out)),
            trained_on=self._trained_on.get(name) if self._trained_on is not None else None,
            missing=tuple(name for name, count in zip(self._card.classes, seen, strict=True) if not count),
            otherwise=self._otherwise(),
            notes=(*self._data.notes, *left_out),
        )

    def _otherwise(self) -> str:
        tta = [self._tta] if self._tta != self._card.tta else []
        precision = [self.machine.precision] if self.machine.precision != "fp32" else []
        return "-".join([*tta, *precision])

    def loader(self, part: Part | None = None, *, most: int | None = None) -> Loader:
        """Return batches of a split of the data for this model; ``None`` is the preferred split.

        Args:
            most: maximum number of images, stratified; always the same ones.

        Raises:
            DataError: there is no such split, or an image cannot be decoded.
        """
        images, _ = self._readable(part or self.preferred)
        if most is not None and most < len(images):
            images = images.subset(splits.beginning(images.labels, most, seed=0))
        with self._all_named(images):
            return self._loader(images)

    def _readable(self, part: Part) -> tuple[Images, tuple[str, ...]]:
        """Return the images of a split, and notes about those that are skipped."""
        images, name = self._images(part), _name_of(part)
        if not self._skips:
            return images, ()
        data = Found(self._data.classes, {name: images})
        readable = checks.without_unreadable(data, self._threads, strict=False)
        return readable.parts[name], readable.notes

    @contextmanager
    def _all_named(self, images: Images) -> Iterator[None]:
        """Replace the error of one image that cannot be decoded by one that names all such images."""
        try:
            yield
        except DataError:
            if isinstance(images, FileImages):
                self._check(images)
            raise

    def _check(self, images: FileImages) -> None:
        checks.check_all({"test": images}, self._threads, may_skip=self._has_option)

    def _loader(self, images: Images) -> Loader:
        present = np.unique(images.labels)
        unknown = [self._data.classes[label] for label in present if self._class_indices[label] < 0]
        if unknown:
            raise DataError(
                f"{self._data.spec.source} has classes that the model does not have: {some(unknown, 8)}; "
                f"its classes are {some(self._card.classes, 8)}. Rename the folders, or leave those images out"
            )
        images = decoded(images, self._threads)
        images = replace(images, labels=self._class_indices[images.labels])
        return inference_loader(images, self._card.preprocessing, self.machine, self._threads.workers, self._batch_size)

    def _images(self, part: Part) -> Images:
        parts = self._parts
        source = self._data.spec.source
        if part == "all":
            if self.is_own:
                raise DataError(
                    f"{source} contains the training images, so evaluating all images would be misleading; "
                    "give --split test, val or train"
                )
            if set(parts) != {"train"}:
                raise DataError(f"{source} has the splits {', '.join(parts)}; choose one with --split")
            part = "train"
        elif self.is_own and part not in parts and part in self._card.data.splits:
            there = f"; with --split there are: {', '.join(parts)}" if parts else ""
            count = self._card.data.splits[part].count
            raise DataError(
                f"the {count:,} {part} images of this model are no longer in {source}; put them back, or give their "
                f"new location with --data{there}"
            )
        elif part not in parts or (part == "train" and not self.is_own and len(parts) == 1):
            there = ", ".join(parts) if self.is_own or len(parts) > 1 else "all"
            raise DataError(f"{source} has no {part} images; there are: {there} (--split)")
        if part in self._unread and not self._skips:
            self._check(self._unread[part])
            raise DataError(f"{part} images in {source} cannot be read")
        if self._may_have_training_images(part):
            raise DataError(
                f"the images in {source} have changed since the training, and its {part} images were held out at "
                "random: a new split would have other images, and training images among them. Put new images in their "
                "own folder and give it with --data"
            )
        return parts[part]

    def _may_have_training_images(self, part: SplitName) -> bool:
        """Whether a split that was held out at random may now contain training images."""
        # If the training images are unchanged, none has moved from them to another split.
        return {part, "train"} <= {*self._changed} and part not in self._card.data.layout.split("/")


def _name_of(part: Part) -> SplitName:
    """Return the name under which the images are stored: those of data without splits are in ``train``."""
    return "train" if part == "all" else part


def _class_indices(data: LabelledData, card: ModelCard) -> np.ndarray:
    """Return the index of each class of the data among the model's classes, (num_classes,) int64, matched by name.

    It is -1 for a class that the model does not have.
    """
    known = {name: index for index, name in enumerate(card.classes)}
    # Another spelling of a name matches too, unless the model has both.
    keys = class_names.keys([*card.classes, *data.classes])
    spellings = Counter(keys[name] for name in card.classes)
    by_key = {keys[name]: index for name, index in known.items() if spellings[keys[name]] == 1}
    known.update((name, by_key[keys[name]]) for name in data.classes if name not in known and keys[name] in by_key)
    return np.array([known.get(name, -1) for name in data.classes], dtype=np.int64)
