"""The model as an MLflow pyfunc, by models-from-code: MLflow keeps this file and the model folder, and no pickle.

In: a data frame with a column `image` (a path per row; with several files per case, one path per channel as a list, or arrays
`(C, Z, Y, X)` or `(C, Y, X)`), or a list of such. Out: a list of label maps, one per row, each on the grid of its image.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from medseg.inference.predictor import Predictor

ARTIFACT = "model"


class MedsegModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """Loads the artifact `model`, a model folder, and predicts on the best device at hand."""

    def load_context(self, context: Any) -> None:
        """Read the model folder."""
        self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

    # Without annotations: MLflow would take them for a schema, and a path or an array is none that it knows.
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        """Label maps, one per input."""
        return [self._one(item) for item in _rows(model_input)]

    def _one(self, item: Any) -> np.ndarray:
        if isinstance(item, (str, Path)):
            return self.predictor.predict_file(Path(item)).labels
        if isinstance(item, (list, tuple)) and item and all(isinstance(path, (str, Path)) for path in item):
            return self.predictor.predict_file([Path(path) for path in item]).labels
        return self.predictor.predict_array(np.asarray(item)).labels


def _rows(model_input: Any) -> Iterable[Any]:
    if hasattr(model_input, "columns"):
        return list(model_input["image"])
    if isinstance(model_input, (str, Path)):
        return [model_input]
    if isinstance(model_input, dict):
        return _rows(model_input["image"])
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        return [model_input]
    return list(model_input)


mlflow.models.set_model(MedsegModel())
