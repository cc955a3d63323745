"""The model through MLflow: models from code, paths or arrays in, labels out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_predictor import save_run
from thresholding import blobs, write_nifti

import medseg.inference
from medseg.errors import UsageError
from medseg.inference.predictor import Predictor
from medseg.io.images import read_image


@pytest.mark.filterwarnings("ignore")
def test_saved_and_loaded(plan3d, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import mlflow.pyfunc

    from medseg.training.tracking import model_signature

    run = save_run(tmp_path / "run", plan3d)
    script = Path(medseg.inference.__file__).parent / "pyfunc.py"
    mlflow.pyfunc.save_model(
        tmp_path / "saved",
        python_model=str(script),
        artifacts={"model": str(run)},
        pip_requirements=["medseg"],
        signature=model_signature(plan3d),
    )
    assert not list((tmp_path / "saved").rglob("*.pkl"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "saved"))
    image = np.where(blobs((9, 8, 7)), 70, 10).astype(np.int16)
    path = write_nifti(tmp_path / "scan.nii.gz", image)
    expected = Predictor.load(run, "cpu").predict_file(path).labels
    for given in (
        str(path),
        [str(path)],
        np.array([str(path)]),
        np.array(str(path)),
        {"image": str(path)},
        {"image": [str(path)]},
        {"image": [[str(path)]]},
        pd.DataFrame({"image": [str(path)]}),
        pd.DataFrame({"image": [[str(path)]]}),
    ):
        (labels,) = model.predict(given)
        assert labels.dtype.kind in "iu"
        assert np.array_equal(labels, expected), given
    array = read_image(path).array
    expected = Predictor.load(run, "cpu").predict_array(array).labels
    for given in (array, [array], {"image": array}, {"image": [array]}, pd.DataFrame({"image": [array]})):
        (labels,) = model.predict(given)
        assert np.array_equal(labels, expected)
    other = np.random.default_rng(0).normal(size=(1, 6, 8, 7)).astype(np.float32)
    for given in ([array, other], {"image": [array, other]}, pd.DataFrame({"image": [array, other]})):
        first, second = model.predict(given)
        assert np.array_equal(first, expected)
        assert second.shape == (6, 8, 7)
    assert len(model.predict([str(path), str(path)])) == 2  # two images, not two channels
    with pytest.raises(UsageError, match="column 'image'"):
        model.predict(pd.DataFrame({"path": [str(path)]}))
    with pytest.raises(UsageError, match="not an image"):
        model.predict([{"a": 1}])
