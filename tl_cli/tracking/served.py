"""What a logged model runs when MLflow loads or serves it.

MLflow keeps this file and the package beside the weights, so it works where ``tl`` is not installed; it imports
nothing but what the model's requirements name.
"""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd

# Columns of an answer, and what precedes the names of classes that could be taken for one of them.
LABEL, PROBABILITY, ERROR = "label", "probability", "error"
_PREFIX = "class:"


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Takes a column ``image`` of encoded pictures (bytes, base64 or data URLs), returns names and probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the saved model that was logged as the artifact ``model``."""
        from tl_cli.evaluation.predicting import Predictor

        self.predictor = Predictor.load(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return a row for each picture: ``label``, its ``probability``, and one column for each class.

        If some pictures have no prediction there is a column ``error`` too: the reason there, null elsewhere, where
        it is the other columns that are null.
        """
        images, index = model_input["image"], model_input.index
        # {"inputs": {"image": [...]}} and {"inputs": [...]} arrive as one row that holds all pictures.
        pictures = [picture for cell in images for picture in (cell if isinstance(cell, list | np.ndarray) else [cell])]
        rows, errors = self.predictor.predict(pictures)
        classes = self.predictor.classes
        answers = pd.DataFrame(
            rows.numpy(),
            columns=[column_of(name) for name in classes],
            index=index if len(index) == len(rows) else None,
        )
        answers.insert(0, PROBABILITY, rows.max(1).values.numpy())
        answers.insert(0, LABEL, [classes[place] for place in rows.argmax(1).tolist()])
        if any(errors):
            # JSON has null, and no NaN.
            answers = answers.astype(object)
            answers.loc[[bool(error) for error in errors]] = None
            # From a bare array pandas would infer text, and NaN for None.
            answers[ERROR] = pd.Series([error or None for error in errors], answers.index, dtype=object)
        return answers


def column_of(name: str) -> str:
    """Return the column of a class: its name, after ``class:`` where it could be taken for another column."""
    return f"{_PREFIX}{name}" if name in (LABEL, PROBABILITY, ERROR) or name.startswith(_PREFIX) else name


mlflow.models.set_model(ImageClassifier())
