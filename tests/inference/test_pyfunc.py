"""The model through MLflow: models from code, paths or arrays in, labels out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_predictor import save_run
from thresholding import blobs, write_nifti

import medseg.inference
from medseg.inference.predictor import Predictor


@pytest.mark.filterwarnings("ignore")
def test_saved_and_loaded(plan3d, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema
    from mlflow.types.schema import AnyType, ColSpec

    run = save_run(tmp_path / "run", plan3d)
    script = Path(medseg.inference.__file__).parent / "pyfunc.py"
    signature = ModelSignature(inputs=Schema([ColSpec(AnyType(), "image")]))
    mlflow.pyfunc.save_model(
        tmp_path / "saved", python_model=str(script), artifacts={"model": str(run)}, pip_requirements=["medseg"], signature=signature
    )
    assert not list((tmp_path / "saved").rglob("*.pkl"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    image = np.where(blobs((9, 8, 7)), 70, 10).astype(np.int16)
    path = write_nifti(tmp_path / "scan.nii.gz", image)
    expected = Predictor.load(run, "cpu").predict_file(path).labels
    for given in (pd.DataFrame({"image": [str(path)]}), {"image": [str(path)]}, pd.DataFrame({"image": [[str(path)]]})):
        (labels,) = model.predict(given)
        assert np.array_equal(labels, expected)
    array = np.random.default_rng(0).normal(size=(1, 9, 8, 7)).astype(np.float32)
    first, second = model.predict(pd.DataFrame({"image": [array, array]}))
    assert first.shape == (9, 8, 7)
    assert np.array_equal(first, second)
