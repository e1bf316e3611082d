"""A saved model as a function from pictures to class probabilities. What is served runs exactly this.

Models in a store import this module by its name, those of earlier versions too.
"""

import base64
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import torch
from torch import Tensor

from tl_cli.data.decode import picture_size
from tl_cli.data.preprocess import normalise, read_input
from tl_cli.errors import DataError, UsageError
from tl_cli.evaluation.task import TASKS
from tl_cli.models.zoo import registry
from tl_cli.models.zoo.registry import Classifier

_BATCH = 64
_EXPECTED = "expected an image file as base64, as a data URL or as bytes"
NOT_FINITE = "the model returned NaN or infinity for this picture; its weights may be damaged"


@dataclass(frozen=True, slots=True)
class Predictor:
    """A classifier that is ready for pictures.

    Attributes:
        classifier: in eval mode.
        classes: names, in the order of the logits.
        max_pixels: how many may be decoded of a picture; None is the usual limit.
    """

    classifier: Classifier
    classes: tuple[str, ...]
    max_pixels: int | None = None

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Return the predictor of a saved-model folder.

        Raises:
            WeightsError: it is none.
        """
        classifier, card = registry.restore(folder)
        return cls(classifier, card.classes, card.data.max_pixels)

    def predict(self, pictures: Sequence[object]) -> tuple[Tensor, list[str]]:
        """Return probabilities, (N, num_classes) float32, and why a picture has none: an empty text where it has.

        One bad picture does not stop the others; its row is NaN, and its error begins with its number from 1.

        Args:
            pictures: encoded images: bytes, their base64 (URL-safe too) with or without line breaks, or data URLs.
        """
        rows = torch.full((len(pictures), len(self.classes)), math.nan)
        errors = [""] * len(pictures)
        for start in range(0, len(pictures), _BATCH):
            images: dict[int, Tensor] = {}
            for place in range(start, min(start + _BATCH, len(pictures))):
                try:
                    picture = encoded(pictures[place])
                    images[place] = read_input(picture, self.classifier.preprocessing, self.max_pixels)
                except DataError as error:
                    errors[place] = str(error)
            if images:
                rows[list(images)] = self._probabilities(torch.stack(list(images.values())))
        for place in torch.nonzero(rows.isnan().any(1)).flatten().tolist():
            errors[place] = f"row {place + 1} of {len(pictures)}: {errors[place] or NOT_FINITE}"
        return rows, errors

    def _probabilities(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.classifier.model(normalise(images, self.classifier.preprocessing))
        return TASKS[self.classifier.task].probabilities(logits.float(), self.classifier.temperature)


def encoded(picture: object) -> bytes:
    """Return the bytes of an image file that are given as such, as base64 or as a data URL.

    Raises:
        DataError: they are none of these.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if picture is None:
        raise DataError(f"{_EXPECTED}, found null")
    if not isinstance(picture, str):
        raise DataError(f"{_EXPECTED}, found {type(picture).__name__} {str(picture)[:40]!r}")
    text = picture.strip()
    if not text:
        raise DataError(f"{_EXPECTED}, found an empty text")
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise DataError("a data URL has a comma before its contents: data:image/png;base64,...")
        contents = unquote_to_bytes(text)
        if not header.rstrip().lower().endswith(";base64"):
            return contents
        text = contents.decode("ascii", "replace")
    # In the URL-safe alphabet - and _ stand for + and /, and the padding is often left out.
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text if "=" in text else text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        odd = re.search("[^A-Za-z0-9+/=]", text)
        reason = f"it has the character {odd[0]!r}" if odd else "its length or its padding is wrong; is it complete?"
        raise DataError(f"{_EXPECTED}; this is not base64: {reason}") from error


def limit_pixels(pictures: Sequence[object], limit: int) -> None:
    """Refuse pictures that have more pixels than ``limit`` together; only their headers are read.

    Args:
        pictures: as ``Predictor.predict`` takes them; those that it cannot decode have no pixels.

    Raises:
        UsageError: they have more.
    """
    total = 0
    for picture in pictures:
        with suppress(DataError):
            total += math.prod(picture_size(encoded(picture)))
    if total > limit:
        raise UsageError(f"the {len(pictures)} images of this request have {total:,} pixels, the limit is {limit:,}")
