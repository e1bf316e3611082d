"""A saved model as a function from pictures to class probabilities. What is served runs exactly this."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

import torch
from torch import Tensor

from tl_cli.data.decoding import normalise, read_input
from tl_cli.errors import DataError
from tl_cli.models import zoo
from tl_cli.models.zoo import Classifier

_BATCH = 64
NOT_FINITE = "the model returned NaN or infinity for this picture; its weights may be damaged"


@dataclass(frozen=True, slots=True)
class Predictor:
    """A classifier that is ready for pictures.

    Attributes:
        classifier: in eval mode.
        classes: names, in the order of the logits.
    """

    classifier: Classifier
    classes: tuple[str, ...]

    @classmethod
    def load(cls, folder: Path) -> "Predictor":
        """Return the predictor of a saved-model folder.

        Raises:
            WeightsError: it is none.
        """
        classifier, card = zoo.restore(folder)
        return cls(classifier, card.classes)

    def predict(self, pictures: Sequence[object]) -> tuple[Tensor, list[str]]:
        """Return probabilities, (N, num_classes) float32, and why a picture has none: an empty text where it has.

        One bad picture does not stop the others; its row is NaN.

        Args:
            pictures: encoded images: bytes, their base64 (URL-safe too) with or without line breaks, or data URLs.
        """
        rows = torch.full((len(pictures), len(self.classes)), math.nan)
        errors = [""] * len(pictures)
        for start in range(0, len(pictures), _BATCH):
            images: dict[int, Tensor] = {}
            for place in range(start, min(start + _BATCH, len(pictures))):
                try:
                    images[place] = self._image(pictures[place])
                except DataError as error:
                    errors[place] = str(error)
            if images:
                rows[list(images)] = self._probabilities(torch.stack(list(images.values())))
        for place in torch.nonzero(rows.isnan().any(1)).flatten().tolist():
            errors[place] = errors[place] or NOT_FINITE
        return rows, errors

    def _image(self, picture: object) -> Tensor:
        how = self.classifier.preprocessing
        return read_input(encoded(picture), how)

    def _probabilities(self, images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits = self.classifier.model(normalise(images, self.classifier.preprocessing))
        return self.classifier.probabilities(logits)


def encoded(picture: object) -> bytes:
    """Return the bytes of an image file that are given as such, as base64 or as a data URL.

    Raises:
        DataError: they are none of these.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if not isinstance(picture, str):
        raise DataError(f"an image is bytes, base64 or a data URL, not {type(picture).__name__}")
    text = picture.strip()
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma:
            raise DataError("a data URL has a comma before its contents: data:image/png;base64,...")
        contents = unquote_to_bytes(text)
        if not header.rstrip().lower().endswith(";base64"):
            return contents
        text = contents.decode("ascii", "replace")
    try:
        # In the URL-safe alphabet - and _ stand for + and /, and the padding is often left out.
        text = "".join(text.split()).replace("-", "+").replace("_", "/")
        return base64.b64decode(text if "=" in text else text + "=" * (-len(text) % 4), validate=True)
    except ValueError as error:
        raise DataError(f"it is not base64: {error}") from error
