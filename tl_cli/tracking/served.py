"""What a logged model runs when MLflow loads or serves it.

MLflow keeps this file and the package beside the weights, so it works where ``tl`` is not installed; it imports
nothing but what the model's requirements name.
"""

import base64
import binascii
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Takes a column ``image`` of encoded pictures (bytes, or their base64), gives names and probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the saved model that was logged as the artifact ``model``."""
        from tl_cli.evaluation.predicting import Predictor

        self.predictor = Predictor.load(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row for each picture: ``label``, its ``probability``, and one column for each class."""
        rows = self.predictor.probabilities([_picture(value) for value in model_input["image"]])
        answers = pd.DataFrame(rows.numpy(), columns=list(self.predictor.classes), index=model_input.index)
        names = [self.predictor.classes[place] for place in rows.argmax(1).tolist()]
        answers.insert(0, "probability", rows.max(1).values.numpy(), allow_duplicates=True)
        answers.insert(0, "label", names, allow_duplicates=True)
        return answers


def _picture(value: object) -> bytes:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError("the column 'image' holds a string that is not base64") from error
    raise ValueError(f"the column 'image' must hold bytes or base64 strings, got {type(value).__name__}")


mlflow.models.set_model(ImageClassifier())
