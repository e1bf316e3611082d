"""What a source brings, whatever its form: classes, and images by part. Nothing here opens or splits anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tl_cli.contract import SplitName
from tl_cli.data.images import Images

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
