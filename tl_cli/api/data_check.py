"""Examines a data set: balance, sizes, files that do not decode, duplicates, doubtful labels. Changes nothing."""

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tl_cli.api.observer import Observer
from tl_cli.choices import DeviceName
from tl_cli.compute.device import worker_count
from tl_cli.contract import USUAL_COLUMNS, Columns, SplitName
from tl_cli.data.balance import UNEVEN, imbalance
from tl_cli.data.checks import Findings, Look, Twins, examine
from tl_cli.data.dataset import open_source, training_labels
from tl_cli.data.images import FileImages
from tl_cli.data.pixel_range import with_measured_range
from tl_cli.data.sizes import Sizes
from tl_cli.data.threads import Threads
from tl_cli.errors import DataError
from tl_cli.inspection.label_check import find_suspect_labels
from tl_cli.inspection.suspect_labels import Suspect
from tl_cli.io.download import Progress
from tl_cli.models.zoo import registry

_BUNDLED = "efficientnet_lite0"


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """What is examined, and how.

    Attributes:
        source: a folder, a CSV, an archive or the name of a published set.
        columns: of a CSV.
        labels: whether to compare labels with the features of a pretrained network.
        model: that network; None is the bundled one.
        most: maximum number of images whose labels are compared.
        max_pixels: maximum decoded pixels per image; None is the usual limit.
        data_dir: where downloaded sets are kept; None is the user's cache folder.
        device: on which the network runs.
        workers: decoding threads; None is as many as the machine's.
    """

    source: str
    columns: Columns = USUAL_COLUMNS
    labels: bool = True
    model: str | None = None
    most: int = 20_000
    max_pixels: int | None = None
    data_dir: Path | None = None
    device: DeviceName = "auto"
    workers: int | None = None


@dataclass(frozen=True, slots=True)
class Doubts:
    """Doubtful labels of training images.

    Attributes:
        compared: number of images whose labels were compared.
        why_not: why none were compared; otherwise empty.
        model: the network that was used.
        left_out: classes that were not compared, as they have only one image.
    """

    suspects: tuple[Suspect, ...]
    compared: int
    why_not: str = ""
    model: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DataReport:
    """The findings in a data set; ``doubts`` is None if comparing labels was not requested."""

    findings: Findings
    doubts: Doubts | None

    @property
    def is_clean(self) -> bool:
        """Whether all files decode, no split or class shares an image with another, and training accepts the data."""
        findings = self.findings
        shared = any(group.exact for group in (*findings.across(), *findings.conflicting()))
        return not (findings.found.faults or findings.bad() or shared)

    def to_dict(self) -> dict[str, object]:
        """Return plain JSON types."""
        findings, doubts = self.findings, self.doubts
        found, counts, ratio = findings.found, class_counts(findings), class_ratio(findings)
        return {
            "classes": dict(zip(found.classes, counts, strict=True)),
            "images": {part: len(images) for part, images in found.parts.items()},
            "imbalance": ratio,
            "balanced_by_default": ratio is not None and ratio >= UNEVEN,
            **_files_as_data(findings),
            "notes": [*found.notes, *crop_notes(findings)],
            "faults": list(found.faults),
            "bad": [{"part": part, "file": bad.name, "reason": bad.reason} for part, bad in findings.bad()],
            "duplicates": [_twins_as_data(findings, group) for group in findings.twins],
            "shared": _shared_as_data(findings),
            "not_compared_by_looks": findings.not_compared,
            "too_plain_for_looks": findings.plain(),
            "doubted_labels": None if doubts is None else _doubts_as_data(findings, doubts),
        }


def check_data(request: CheckRequest, observer: Observer | None = None) -> DataReport:
    """Return everything that was found in a data set.

    Args:
        observer: gets the progress.

    Raises:
        DataError: the source cannot be used.
        UnknownModelError: there is no such network.
        DownloadError: the data or the weights cannot be downloaded.
    """
    observer = observer or Observer()
    progress, workers = observer.progress, worker_count(request.workers)
    folder = str(request.data_dir) if request.data_dir else None
    found = open_source(request.source, folder, progress, columns=request.columns, max_pixels=request.max_pixels)
    threads = Threads(workers, progress)
    found, _ = with_measured_range(found, found.parts, threads)
    findings = examine(found, threads)
    if not request.labels:
        return DataReport(findings, None)
    return DataReport(findings, _doubts(findings, request, workers, progress))


def _doubts(findings: Findings, request: CheckRequest, workers: int, progress: Progress) -> Doubts:
    """Return doubtful labels of training images, or why they were not compared."""
    found, model = findings.found, request.model or _BUNDLED
    if request.model is None and not registry.about(model).on_disk:
        return Doubts((), 0, f"labels were not compared: give --model, or pip install 'tl-train[demo]' for {model}")
    looks = findings.looks["train"]
    good = np.array([index for index, look in enumerate(looks) if not look.bad], dtype=np.int64)
    if not len(good):
        return Doubts((), 0, "labels were not compared: no training image can be decoded")
    images, most, device = found.parts["train"].subset(good), request.most, request.device
    suspects, compared = find_suspect_labels(
        images, model, most=most, device=device, workers=workers, progress=progress
    )
    if not len(compared):
        return Doubts((), 0, "labels were not compared: that takes two classes with two images each")
    seen = set(compared.tolist())
    left_out = tuple(name for index, name in enumerate(found.classes) if index not in seen)
    suspects = [replace(suspect, index=int(good[suspect.index])) for suspect in suspects]
    return Doubts(tuple(suspects), len(compared), model=model, left_out=left_out)


def _files_as_data(findings: Findings) -> dict[str, object]:
    looks, train = readable_files(findings), findings.found.parts["train"]
    pixel_range = train.pixel_range if isinstance(train, FileImages) else None
    return {
        "sizes": sizes_of(findings),
        "formats": dict(Counter(look.header.kind for look in looks)),
        "modes": dict(Counter(look.header.mode for look in looks)),
        "turned_by_exif": sum(look.header.turned for look in looks),
        "animated": sum(look.header.frames > 1 for look in looks),
        "torn_after_first_frame": sum(not look.header.frames for look in looks),
        # The numbers of deep pictures that become black and white.
        "pixel_range": list(pixel_range) if pixel_range else None,
        "few_levels": [
            {"file": findings.name(place), "levels": look.levels, "darkest": look.darkest, "brightest": look.brightest}
            for place, look in findings.flat()
        ],
    }


def _shared_as_data(findings: Findings) -> list[dict[str, object]]:
    return [
        {"part": part, "earlier": earlier, "exact": exact, "images": number}
        for exact in (True, False)
        for (part, earlier), number in findings.shared(exact=exact).items()
    ]


def _doubts_as_data(findings: Findings, doubts: Doubts) -> dict[str, object]:
    classes = findings.found.classes
    return {
        "compared": doubts.compared,
        "model": doubts.model,
        "why_not": doubts.why_not,
        "left_out": list(doubts.left_out),
        "images": [
            {
                "file": findings.name(("train", suspect.index)),
                "label": classes[suspect.given],
                "likely": classes[suspect.likely],
                "confidence": suspect.confidence,
                "doubt": suspect.doubt,
            }
            for suspect in doubts.suspects
        ],
    }


def class_counts(findings: Findings) -> list[dict[SplitName, int]]:
    """Return the number of images of each class by split."""
    found = findings.found
    counts = [np.bincount(images.labels, minlength=len(found.classes)).tolist() for images in found.parts.values()]
    return [dict(zip(found.parts, row, strict=True)) for row in zip(*counts, strict=True)]


def class_ratio(findings: Findings) -> float | None:
    """Return the class ratio of the images that ``tl train`` would use; None if it would refuse them."""
    with suppress(DataError):
        labels, classes = training_labels(findings.found), len(findings.found.classes)
        if len(np.unique(labels)) == classes:
            return imbalance(labels, classes)
    return None


def readable_files(findings: Findings) -> list[Look]:
    """Return the files that decode."""
    return [look for looks in findings.looks.values() for look in looks if not look.bad]


def sizes_of(findings: Findings) -> dict[str, Any] | None:
    """Return the shortest sides (smallest, median, largest) and whether all sizes are equal; None without images."""
    sizes = [look.header.size for look in readable_files(findings)]
    sides = sorted(map(min, sizes))
    if not sides:
        return None
    return {"shortest_side": [sides[0], sides[len(sides) // 2], sides[-1]], "one_size": len(set(sizes)) == 1}


def crop_notes(findings: Findings) -> list[str]:
    """Return a warning where a center crop would lose much of the images."""
    sizes = Sizes.of([look.header.size[::-1] for look in readable_files(findings)])
    note = None if sizes is None else sizes.crop_note()
    return [] if note is None else [note]


def _twins_as_data(findings: Findings, group: Twins) -> dict[str, object]:
    return {
        "exact": group.exact,
        "images": [
            {"part": place[0], "file": findings.name(place), "label": findings.label(place)} for place in group.places
        ],
    }
