"""Measuring a saved model on the images that its card names, split as they were for its training."""

from dataclasses import dataclass

import torch

from tl_cli.contract import ModelCard, SplitName
from tl_cli.data.loaders import Loader
from tl_cli.data.sources import changed_parts, check_still_there, open_data
from tl_cli.errors import DataError
from tl_cli.evaluation.logits import answer
from tl_cli.evaluation.metrics import Report, report
from tl_cli.fetch import Progress, silent
from tl_cli.models.zoo import Classifier
from tl_cli.training.config import DeviceName
from tl_cli.training.machine import Autocasting, Machine, choose_device, default_workers
from tl_cli.training.setup import eval_batch


@dataclass(frozen=True, slots=True)
class Measured:
    """A report, and the parts of the data that are no longer what they were."""

    report: Report
    changed: list[SplitName]


def evaluate_model(
    classifier: Classifier,
    card: ModelCard,
    *,
    part: SplitName,
    source: str | None = None,
    data_dir: str | None = None,
    device: DeviceName = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    progress: Progress = silent,
) -> Measured:
    """Return how good a model is on one part of its own data.

    Args:
        source: where the images are now; None is where they were.

    Raises:
        DataError: the images are not there, have other classes, or have no such part.
    """
    spec = card.data.model_copy(
        update={"source": source or card.data.source, "data_dir": data_dir or card.data.data_dir, "splits": {}}
    )
    check_still_there(spec.source)
    threads = default_workers() if workers is None else workers
    data = open_data(spec, workers=threads, progress=progress)
    if data.classes != card.classes:
        here, there = ", ".join(data.classes[:5]), ", ".join(card.classes[:5])
        raise DataError(f"{spec.source} has other classes ({here}, ...) than the model ({there}, ...)")
    if part not in data.parts:
        raise DataError(f"{spec.source} has no {part} images; try --split val")
    # Channels-last: the faster layout on a CPU for every network that was tried, and what a GPU's tensor cores want.
    machine = Machine(choose_device(device), memory_format=torch.channels_last)
    machine.place(classifier.model)
    size = eval_batch(machine.device, card.preprocessing.crop)
    if batch_size is not None:
        # What a person gives is what may be in memory at once.
        size = max(1, batch_size // machine.at_once)
    loader = Loader(
        data.parts[part], card.preprocessing, size, machine.device, threads, memory_format=machine.memory_format
    )
    total = len(loader.images)
    answers = answer(
        Autocasting(classifier.model, machine),
        loader.clean(),
        lambda done: progress("evaluating", done, total),
        at_once=machine.at_once,
    )
    changed = changed_parts(card.data, data.spec)
    return Measured(report(answers), [name for name in changed if name == part])
