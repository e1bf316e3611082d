"""A saved model as a function from pictures to class probabilities. What is served runs exactly this."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tl_cli.data.decoding import normalise, read_input
from tl_cli.models import zoo
from tl_cli.models.zoo import Classifier

_BATCH = 64


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

    def probabilities(self, pictures: Sequence[Path | bytes]) -> Tensor:
        """Return (N, num_classes) float32, rows that sum to one.

        Raises:
            DataError: a picture cannot be decoded.
        """
        if not pictures:
            return torch.empty(0, len(self.classes))
        logits = [self._logits(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
        return self.classifier.probabilities(torch.cat(logits))

    def _logits(self, pictures: Sequence[Path | bytes]) -> Tensor:
        how = self.classifier.preprocessing
        images = torch.stack([read_input(picture, how) for picture in pictures])
        with torch.inference_mode():
            logits: Tensor = self.classifier.model(normalise(images, how))
        return logits
