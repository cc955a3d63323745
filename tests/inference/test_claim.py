"""Two calls never write into one folder at once."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from thresholding import Threshold, blobs, thresholding, write_nifti

from medseg import claim
from medseg.claim import Claim
from medseg.errors import ResourceError, UsageError
from medseg.inference.ledger import Ledger, PredictedCase
from medseg.inference.predictor import Predictor

HOLD = "import sys, pathlib\nfrom medseg.claim import Claim\nheld = Claim(pathlib.Path(sys.argv[1]), 'prediction')\nprint('held', flush=True)\ninput()"


def refusal(folder):
    with pytest.raises(UsageError) as caught:
        Claim(folder, "prediction")
    return str(caught.value)


@pytest.fixture
def scan(tmp_path):
    return write_nifti(tmp_path / "in" / "a.nii.gz", np.where(blobs((8, 9, 10), 0), 70, 10).astype(np.int16))


def test_another_process_is_refused_until_the_first_dies(tmp_path, plan3d, scan):
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(UsageError) as caught:
                thresholding(plan3d).predict(scan, out)
            assert str(caught.value) == (
                f"{out}: another prediction is writing there. Wait until it has ended, or choose another folder with -o."
            )
            assert [p.name for p in out.iterdir()] == [".prediction.lock"]
        finally:
            holder.kill()
    assert len(thresholding(plan3d).predict(scan, out).cases) == 1
    assert sorted(p.name for p in out.iterdir()) == ["a.nii.gz", "predictions.json"]


class Intruding(Threshold):
    """Predicts into a folder while the network runs."""

    def __init__(self, predictor, scan, out):
        super().__init__()
        self.intruder = (predictor, scan, out)

    def forward(self, image):
        predictor, scan, out = self.intruder
        with pytest.raises(UsageError, match="another prediction is writing there"):
            predictor.predict(scan, out, overwrite=True)
        return super().forward(image)


def test_the_folder_is_held_for_the_whole_call(tmp_path, plan3d, scan):
    out = tmp_path / "out"
    network = Intruding(thresholding(plan3d), scan, out)
    assert not Predictor(plan3d, (network,), torch.device("cpu")).predict(scan, out).failures
    assert sorted(p.name for p in out.iterdir()) == ["a.nii.gz", "predictions.json"]


@pytest.mark.parametrize("error", [ResourceError("full"), KeyboardInterrupt()])
def test_the_folder_is_free_after_a_claim_that_failed(tmp_path, monkeypatch, error):
    def fail(ledger):
        raise error

    ledger = Ledger(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "flush", fail)
        with pytest.raises(type(error)):
            ledger.claim([])
        assert not list(tmp_path.iterdir())
    ledger.claim([])
    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "flush", fail)
        with pytest.raises(type(error)):
            ledger.close()
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.json"]


def test_what_another_call_entered_before_the_claim_is_kept(tmp_path):
    first, second = Ledger(tmp_path), Ledger(tmp_path)
    entry = PredictedCase(id="a", files={"labels": ("a.nii.gz",)}, seconds=1, source="s", content="c")
    first.claim([])
    first.add(entry)
    first.close()
    second.claim([])
    second.close()
    assert Ledger(tmp_path)._entries == {"a": entry}


def test_released_twice_takes_nothing_from_the_next(tmp_path):
    first = Claim(tmp_path, "prediction")
    first.release()
    second = Claim(tmp_path, "prediction")
    first.release()
    assert "another prediction" in refusal(tmp_path)
    second.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="a file that is open cannot be removed there")
def test_a_lock_on_a_removed_file_is_worth_nothing(tmp_path, monkeypatch):
    """The holder removes its file after we have opened it: ours is then a lock on a file that nobody else can find."""
    lock, calls = claim._lock, []

    def late(descriptor):
        if not calls:
            (tmp_path / ".prediction.lock").unlink()
        calls.append(descriptor)
        lock(descriptor)

    monkeypatch.setattr(claim, "_lock", late)
    held = Claim(tmp_path, "prediction")
    assert len(calls) == 2
    assert "another prediction" in refusal(tmp_path)
    held.release()


def test_without_locks_a_single_prediction_works(tmp_path, monkeypatch, caplog):
    def unknown(descriptor):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(claim, "_lock", unknown)
    with caplog.at_level(logging.WARNING):
        Claim(tmp_path, "prediction").release()
    assert caplog.messages == [f"{tmp_path}: no locks on this file system (Function not implemented); do not use it twice at once"]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"\.prediction\.lock: cannot be written; found .*\. Choose another folder with -o\."):
        Claim(tmp_path / "file", "prediction")


def test_whether_another_call_holds_a_claim(tmp_path):
    assert not claim.is_claimed(tmp_path / "none", "training")
    assert not (tmp_path / "none").exists()
    with Claim(tmp_path, "training"):
        assert claim.is_claimed(tmp_path, "training")
        assert not claim.is_claimed(tmp_path, "prediction")
    assert not claim.is_claimed(tmp_path, "training")
    assert not list(tmp_path.iterdir())
