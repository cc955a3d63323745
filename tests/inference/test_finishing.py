"""What was learned of predictions, applied to those that are written already."""

from __future__ import annotations

import numpy as np
import torch
from thresholding import Threshold, write_nifti

from medseg.inference.finishing import finish_written
from medseg.inference.inputs import find_cases
from medseg.inference.predictor import Predictor
from medseg.io.images import read_label
from medseg.tasks.cleaning import Cleaning


def test_written_predictions_become_what_would_be_predicted_anew(plan3d, tmp_path):
    for i in range(3):
        mask = np.zeros((8, 9, 10), bool)
        mask[1:5, 1:5, 1:5] = True
        mask[6, 6, 6 + i] = True  # a stray voxel
        write_nifti(tmp_path / "in" / f"scan{i}.nii.gz", np.where(mask, 70, 10).astype(np.int16))
    target = plan3d.target.model_copy(update={"cleaning": (Cleaning(cls="", largest=True),)})
    before = Predictor(plan3d, (Threshold(),), torch.device("cpu"), key="weights")
    after = Predictor(plan3d.model_copy(update={"target": target}), (Threshold(),), torch.device("cpu"), key="weights")
    cases = find_cases([tmp_path / "in"], plan3d.data.channels)
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    first = before.predict(list(cases[:2]), out)
    finish_written(before, cases, out)  # has learned nothing
    assert before.predict(list(cases[:2]), out).skipped == 2
    damaged = out / "scan1.nii.gz"
    damaged.write_bytes(b"damaged")
    finish_written(after, cases, out)
    assert damaged.read_bytes() == b"damaged"
    result = after.predict(tmp_path / "in", out)
    assert (result.skipped, len(result.cases)) == (1, 3)  # the damaged one and the one that was not there are predicted
    expected = after.predict(tmp_path / "in", fresh)
    assert [(case.source, case.content) for case in result.cases] == [(case.source, case.content) for case in expected.cases]
    assert result.cases[0].seconds >= first.cases[0].seconds
    assert np.count_nonzero(read_label(out / "scan0.nii.gz").array) == 4**3
    # Those of other weights are no business of this model.
    content = (out / "scan0.nii.gz").read_bytes()
    finish_written(Predictor(after.plan, (Threshold(),), torch.device("cpu"), key="others"), cases, out)
    assert (out / "scan0.nii.gz").read_bytes() == content
