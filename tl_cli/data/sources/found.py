"""The contents of a source of any form: classes, and images by part. Nothing is opened or split here."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tl_cli.contract import SplitName
from tl_cli.data.images import Images
from tl_cli.errors import DataError

Layout = Literal["train/test", "train/val", "train/val/test", "classes"]
LAYOUTS: dict[frozenset[SplitName], Layout] = {
    frozenset({"train"}): "classes",
    frozenset({"train", "test"}): "train/test",
    frozenset({"train", "val"}): "train/val",
    frozenset({"train", "val", "test"}): "train/val/test",
}


@dataclass(frozen=True, slots=True)
class Found:
    """Labelled images of a source.

    Attributes:
        classes: a label is an index into them.
        parts: images by part; a source of classes only has just ``train``.
        notes: notes for the user (ignored files, classes without test images).
        faults: reasons to refuse a training, where they are collected.
    """

    classes: tuple[str, ...]
    parts: Mapping[SplitName, Images]
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """Which parts the source has."""
        return LAYOUTS[frozenset(self.parts)]


@dataclass(frozen=True, slots=True)
class Faults:
    """Reasons to refuse a training: raised, or collected if lenient."""

    lenient: bool
    named: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Raise or collect a fault.

        Raises:
            DataError: unless lenient.
        """
        if not self.lenient:
            raise DataError(fault)
        self.named.append(fault)
