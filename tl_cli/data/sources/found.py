"""What a source brings, whatever its form: classes, and images by part. Nothing here opens or splits anything."""

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
    """Labelled images as their source has them.

    Attributes:
        classes: a label is an index into them.
        parts: images by part; a source of classes only has just ``train``.
        notes: things a person should know (files passed over, classes without test images).
        faults: for which a training would be refused, where that was asked for.
    """

    classes: tuple[str, ...]
    parts: Mapping[SplitName, Images]
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """Which parts the source brings itself."""
        return LAYOUTS[frozenset(self.parts)]


@dataclass(frozen=True, slots=True)
class Faults:
    """What no training would take: refused, or named where all is to be named."""

    lenient: bool
    named: list[str] = field(default_factory=list)

    def add(self, fault: str) -> None:
        """Name a fault.

        Raises:
            DataError: it is refused.
        """
        if not self.lenient:
            raise DataError(fault)
        self.named.append(fault)
