"""How fast a model predicts: what is measured leaves no memory behind."""

from __future__ import annotations

import numpy as np
import pytest
from thresholding import Threshold, blobs, thresholding, write_nifti

from medseg.dataset import CaseFiles
from medseg.inference import pace
from medseg.progress import Silent


@pytest.mark.parametrize("fails", [False, True])
def test_memory_is_given_back(plan3d, tmp_path, monkeypatch, fails):
    scan = write_nifti(tmp_path / "scan.nii.gz", np.where(blobs((12, 14, 10)), 70, 10).astype(np.int16))
    files, given = CaseFiles(id="scan", images=(scan,), group="scan"), []
    monkeypatch.setattr(pace, "given_back", lambda: given.append(True))
    if fails:
        monkeypatch.setattr(Threshold, "forward", lambda *_: (_ for _ in ()).throw(ValueError("broken")))
        with pytest.raises(ValueError, match="broken"):
            pace.prediction_pace(thresholding(plan3d, 4.0), files, 0.1, Silent())
    else:
        assert pace.prediction_pace(thresholding(plan3d, 4.0), files, 0.1, Silent()).windows_per_second > 0
    assert given == [True]
