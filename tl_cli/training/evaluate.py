"""Measuring a saved model on labelled images: those that its card names, split as they were, or others."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from tl_cli.contract import USUAL_COLUMNS, Columns, ModelCard, Split, SplitName
from tl_cli.data import spelling, splits
from tl_cli.data.images import Images
from tl_cli.data.loaders import Loader
from tl_cli.data.sources import LabelledData, changed_parts, check_still_there, decoded, open_to_judge
from tl_cli.errors import DataError, some
from tl_cli.evaluation.logits import Answers, answer, check_finite
from tl_cli.fetch import Progress, silent
from tl_cli.models.zoo import Classifier
from tl_cli.training.config import DeviceName
from tl_cli.training.machine import Autocasting, Machine, choose_device, default_workers
from tl_cli.training.setup import eval_batch

Part = SplitName | Literal["all"]


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model answered to one part of a data set.

    Attributes:
        answers: logits and labels; a label is an index into the model's classes.
        images: in the order of the answers.
        source: where they are.
        part: which of the source's images; ``all`` where it is not split.
        split: their number and digest.
        is_own: whether they are of the data that the model was trained on.
        is_changed: whether they are of those data, but no longer what they were.
        trained_on: of others, how many of them were among the training images all the same; None where nothing says so.
        missing: classes of the model without images here.
        notes: things a person should know of the source.
    """

    answers: Answers
    images: Images
    source: str
    part: Part
    split: Split
    is_own: bool
    is_changed: bool
    trained_on: int | None
    missing: tuple[str, ...]
    notes: tuple[str, ...]


class Judge:
    """A saved model, ready to answer in fp32, and the data on which it is judged.

    Args:
        source: where the images are; None is where those of its training were.
        columns: of a CSV, where they are not those that were named for the training.
        batch_size: images in memory at once; None chooses.
        workers: threads that decode; None chooses.
        progress: told as images are opened and answered.

    Raises:
        DataError: the images are not there, or have classes that the model does not know.
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
        workers: int | None = None,
        progress: Progress = silent,
    ) -> None:
        self._card = card
        self._progress = progress
        self._workers = default_workers() if workers is None else workers
        if source is None:
            check_still_there(card.data.source)
        judged = open_to_judge(
            card.data,
            source or card.data.source,
            data_dir=data_dir,
            columns=columns,
            pixel_range=card.preprocessing.pixel_range,
            progress=progress,
        )
        self._data, self.is_own, self._trained_on = judged.data, judged.is_own, judged.trained_on
        self._places = _places(self._data, card)
        # Channels-last: on a CPU faster for every network that was tried, and what a GPU's tensor cores want.
        self.machine = Machine(choose_device(device), memory_format=torch.channels_last)
        self.machine.place(classifier.model)
        self._network = Autocasting(classifier.model, self.machine)
        self._batch = eval_batch(self.machine.device, card.preprocessing.crop)
        if batch_size is not None:
            # What a person gives is what may be in memory at once.
            self._batch = max(1, batch_size // self.machine.at_once)

    @property
    def preferred(self) -> Part:
        """The images that say most: the test images; where a foreign source has none, its validation or all of them."""
        if self.is_own or "test" in self._data.parts:
            return "test"
        return "val" if "val" in self._data.parts else "all"

    def measure(self, part: Part | None = None) -> Measured:
        """Return what the model answers to a part of the data; ``None`` is the preferred one.

        Raises:
            DataError: there is no such part, or an image cannot be decoded.
        """
        part = part or self.preferred
        images = self._images(part)
        name: SplitName = "train" if part == "all" else part
        loader = self._loader(images)
        total = len(images)
        answers = answer(
            self._network,
            loader.clean(),
            lambda done: self._progress("evaluating", done, total),
            at_once=self.machine.at_once,
        )
        check_finite(answers.logits, images.ids)
        seen = np.bincount(answers.labels.numpy(), minlength=len(self._card.classes))
        return Measured(
            answers=answers,
            images=loader.images,
            source=self._data.spec.source,
            part=part,
            split=self._data.spec.splits[name],
            is_own=self.is_own,
            is_changed=part in self._changed,
            trained_on=self._trained_on.get(name) if self._trained_on is not None else None,
            missing=tuple(name for name, count in zip(self._card.classes, seen, strict=True) if not count),
            notes=self._data.notes,
        )

    def loader(self, part: Part | None = None, *, most: int | None = None) -> Loader:
        """Return batches of a part of the data for this model; ``None`` is the preferred part.

        Args:
            most: at most so many images, each class by its share as far as they go; the same ones every time.

        Raises:
            DataError: there is no such part, or an image cannot be decoded.
        """
        images = self._images(part or self.preferred)
        if most is not None and most < len(images):
            images = images.subset(splits.beginning(images.labels, most, seed=0))
        return self._loader(images)

    def _loader(self, images: Images) -> Loader:
        images = decoded(images, workers=self._workers, progress=self._progress)
        return Loader(
            replace(images, labels=self._places[images.labels]),
            self._card.preprocessing,
            self._batch,
            self.machine.device,
            self._workers,
            memory_format=self.machine.memory_format,
        )

    @property
    def _changed(self) -> list[SplitName]:
        return changed_parts(self._card.data, self._data) if self.is_own else []

    def _images(self, part: Part) -> Images:
        parts = self._data.parts
        source = self._data.spec.source
        if part == "all":
            if self.is_own:
                raise DataError(
                    f"{source} holds the images that the model was trained on, which say nothing of it; "
                    "give --split test, val or train"
                )
            if len(parts) > 1:
                raise DataError(f"{source} has the parts {', '.join(parts)}; name one of them with --split")
            return parts["train"]
        if part not in parts or (part == "train" and not self.is_own and len(parts) == 1):
            there = ", ".join(parts) if self.is_own or len(parts) > 1 else "all"
            raise DataError(f"{source} has no {part} images; there are: {there} (--split)")
        if part in self._changed and part not in self._data.spec.layout.split("/"):
            raise DataError(
                f"the images in {source} have changed since the training, so that its {part} images, which were held "
                "out of them by lot, would be others now, and some of them trained on. Put images that are new in a "
                "folder of their own and give it with --data"
            )
        return parts[part]


def _places(data: LabelledData, card: ModelCard) -> np.ndarray:
    """Return for each class of the data its place among the model's, (num_classes,) int64: names decide.

    Raises:
        DataError: the model does not know one of them.
    """
    known = {name: place for place, name in enumerate(card.classes)}
    # Another spelling of the same name is found too, unless the model has both.
    keys = spelling.keys([*card.classes, *data.classes])
    spellings = Counter(keys[name] for name in card.classes)
    by_key = {keys[name]: place for name, place in known.items() if spellings[keys[name]] == 1}
    known.update((name, by_key[keys[name]]) for name in data.classes if name not in known and keys[name] in by_key)
    unknown = [name for name in data.classes if name not in known]
    if unknown:
        raise DataError(
            f"{data.spec.source} has classes that the model does not know: {some(unknown, 8)}; "
            f"it knows {some(card.classes, 8)}. Rename the folders, or leave those images out"
        )
    return np.array([known[name] for name in data.classes], dtype=np.int64)
