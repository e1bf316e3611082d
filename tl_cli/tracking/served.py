"""The code that MLflow runs when it loads or serves a logged model.

MLflow keeps this file and the package with the weights, so it works where ``tl`` is not installed; it imports only
what the model's requirements list. Functions import tl_cli themselves: recording a run loads this file, and need not
load what a prediction needs.
"""

import logging
import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, INTERNAL_ERROR

# Columns of the result, and the prefix of class names that could be mistaken for one of them.
LABEL, PROBABILITY, ERROR = "label", "probability", "error"
_PREFIX = "class:"
# Limit of the encoded pixels of one request to a server; 2 ** 28 take one core a few seconds.
_LIMIT, _DEFAULT_LIMIT = "TL_REQUEST_PIXELS", 1 << 28
# MLflow turns a JSON null in a text column into one of these.
_NULLS = ("None", "nan")

_log = logging.getLogger(__name__)


class RequestError(MlflowException):
    """An error response without the images: MLflow's server would repeat the whole request in the message."""

    def serialize_as_json(self) -> str:
        """Return the body of the response."""
        self.message = str(self.args[0])
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]


class ImageClassifier(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
    """Takes a column ``image`` of encoded images (bytes, base64 or data URLs), returns labels and probabilities."""

    def load_context(self, context: Any) -> None:
        """Load the saved model that was logged as the artifact ``model``."""
        from tl_cli.evaluation.predicting import Predictor
        from tl_cli.evaluation.task import TASKS

        self.predictor = Predictor.load(Path(context.artifacts["model"]))
        self.task = TASKS[self.predictor.classifier.task]
        limit = os.environ.get(_LIMIT, str(_DEFAULT_LIMIT))
        if not limit.isdecimal():
            raise MlflowException(
                f"{_LIMIT}={limit!r} is not a number of pixels, such as {_DEFAULT_LIMIT}", BAD_REQUEST
            )
        self.limit = int(limit)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Return one row per image: ``label``, its ``probability``, and one column per class.

        If some images have no prediction, there is also a column ``error`` with the reasons; the other columns of
        those rows are null.

        Raises:
            RequestError: HTTP status 400 for a request with too many pixels, 500 if the model failed.
        """
        from tl_cli.errors import UsageError, first_line

        try:
            return self._predict(model_input)
        except UsageError as error:
            advice = f"Send fewer or smaller images per request, or start the server with a higher {_LIMIT}."
            raise RequestError(f"{error}. {advice}", BAD_REQUEST) from error
        except Exception as error:
            # MLflow's own message has the cause only in the last line of a stack trace.
            _log.exception("the model failed")
            cause = f"{type(error).__name__}: {first_line(error)}"
            raise RequestError(f"the model failed: {cause}", INTERNAL_ERROR) from error

    def _predict(self, model_input: pd.DataFrame) -> pd.DataFrame:
        from tl_cli.evaluation.predicting import limit_pixels

        images, index = model_input["image"], model_input.index
        # {"inputs": {"image": [...]}} and {"inputs": [...]} arrive as one row with all images.
        cells = [picture for cell in images for picture in (cell if isinstance(cell, list | np.ndarray) else [cell])]
        pictures = [None if _is_null(cell) else cell for cell in cells]
        # Set by MLflow's server; a program that loads the model itself may predict any number of images.
        if os.environ.get("_MLFLOW_IS_IN_SERVING_ENVIRONMENT") == "true":
            limit_pixels(pictures, self.limit)
        rows, errors = self.predictor.predict(pictures)
        classes = self.predictor.classes
        table = pd.DataFrame(
            rows.numpy(),
            columns=[column_of(name) for name in classes],
            index=index if len(index) == len(rows) else None,
        )
        table.insert(0, PROBABILITY, self.task.confidence(rows).numpy())
        table.insert(0, LABEL, self.task.names(rows, classes))
        if any(errors):
            # JSON has null but no NaN.
            table = table.astype(object)
            table.loc[[bool(error) for error in errors]] = None
            # From a bare array pandas would infer text, and NaN for None.
            table[ERROR] = pd.Series([error or None for error in errors], table.index, dtype=object)
        return table


def _is_null(cell: object) -> bool:
    return cell in _NULLS if isinstance(cell, str) else pd.api.types.is_scalar(cell) and bool(pd.isna(cell))


def column_of(name: str) -> str:
    """Return the column of a class: its name, prefixed with ``class:`` if it could be mistaken for another column."""
    return f"{_PREFIX}{name}" if name in (LABEL, PROBABILITY, ERROR) or name.startswith(_PREFIX) else name


mlflow.models.set_model(ImageClassifier())
