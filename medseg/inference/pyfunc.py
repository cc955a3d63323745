"""The model as an MLflow pyfunc, by models-from-code: MLflow keeps this file and the model folder, and no pickle.

In, any of:

- a path, or a list of paths: one image each;
- an array `(C, Z, Y, X)` or `(C, Y, X)`, or a list of such arrays;
- a data frame with a column `image`, one row per image: a path, a list of one path per channel, or an array;
- `{"image": any of these}`.

Out: a list of label maps, one per image, each an integer array on the grid of its image.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np

from medseg.errors import UsageError
from medseg.inference.predictor import Predictor

ARTIFACT = "model"

with warnings.catch_warnings(record=True):
    # MLflow asks for annotations of `predict`, but would take them for a schema, and a path or an array is none that it knows.

    class MedsegModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """Loads the artifact `model`, a model folder, and predicts on the best device at hand."""

        def load_context(self, context: Any) -> None:
            """Read the model folder."""
            self.predictor = Predictor.load(Path(context.artifacts[ARTIFACT]))

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
            """Label maps, one per image."""
            return [self._one(item) for item in images(model_input)]

        def _one(self, item: Any) -> np.ndarray:
            if _is_path(item):
                return self.predictor.predict_file(Path(item)).labels
            if isinstance(item, (list, tuple)) and item and all(map(_is_path, item)):
                return self.predictor.predict_file([Path(path) for path in item]).labels
            array = np.asarray(item)
            if array.dtype.kind not in "buif":
                raise UsageError.of(
                    "is not an image", where="image", found=type(item).__name__, expected="a path, a list of paths, or an array of numbers"
                )
            return self.predictor.predict_array(array).labels


def images(model_input: Any) -> list[Any]:
    """The images of an input of any documented form, one by one."""
    if hasattr(model_input, "columns") or isinstance(model_input, dict):
        names = list(model_input)
        if "image" not in names:
            raise UsageError.of("holds no image", where="the model's input", found=", ".join(map(str, names)), expected="a column 'image'")
        column = model_input["image"]
        return images(column) if isinstance(model_input, dict) else list(column)
    if _is_path(model_input):
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.dtype.kind in "buif":
        return [model_input]
    if isinstance(model_input, np.ndarray) and model_input.ndim == 0:  # a single path that came over HTTP
        return [model_input.item()]
    return list(model_input)


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, Path))


mlflow.models.set_model(MedsegModel())
