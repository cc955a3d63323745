"""Every case once: resumed, collected failures, nothing half-written, no surprise on the disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.dataset import file_digest
from medseg.device import Machine
from medseg.domains.grid.prepare import prepare_case
from medseg.errors import DatasetError, PlanError, ResourceError
from medseg.io.images import read_case
from medseg.io.layouts.base import open_dataset
from medseg.planning.fingerprinting import make_fingerprint
from medseg.planning.planner import make_plans
from medseg.plans import Plan
from medseg.preprocessing.prepare import prepare, prepare_all

CASES = 6


def write_dataset(root: Path) -> Path:
    for i in range(CASES):
        rng = np.random.default_rng(i)
        image = rng.normal(100, 20, (14, 12, 10)).astype(np.float32)
        label = np.zeros((14, 12, 10), np.uint8)
        label[4:9, 3:8, 2:7] = 1
        for folder, array in (("images", image), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.5, 1.0])), root / folder / f"case{i}.nii.gz")
    return root


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> tuple[Path, Plan]:
    root = write_dataset(tmp_path_factory.mktemp("prepare") / "data")
    dataset = open_dataset(root)
    fingerprint = make_fingerprint(dataset, "grid", cache=None, workers=1)
    plans = make_plans(dataset, fingerprint, task="semantic", domain="grid", network="unet", machine=Machine("cpu", 2))
    return root, next(plan for plan in plans if plan.name == "3d")


@pytest.fixture
def data(planned, tmp_path) -> Path:
    return Path(shutil.copytree(planned[0], tmp_path / "data"))


def stamps(folder: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/image.npy")}


def test_once_and_again(planned, data, tmp_path):
    plan, out = planned[1], tmp_path / "prepared"
    store = prepare(open_dataset(data), plan, out, workers=1)
    assert store.ids() == tuple(f"case{i}" for i in range(CASES))
    case = store.read("case3")
    assert case.label is not None
    assert set(np.unique(case.label)) == {0, 1}
    assert len(case.locations) == 1
    assert case.native.spacing == (1.5, 1.0, 1.0)
    before = stamps(out)
    shutil.copyfile(data / "images" / "case0.nii.gz", data / "images" / "case2.nii.gz")
    prepare(open_dataset(data), plan, out, workers=1)
    after = stamps(out)
    assert {name for name in after if after[name] != before[name]} == {"case2"}
    prepare(open_dataset(data), plan.edited({"space.spacing": "[2.0, 2.0, 2.0]"}), out, workers=1)
    assert all(stamps(out)[name] != after[name] for name in after)


def test_a_second_call_reads_no_file_again(planned, data, tmp_path, monkeypatch):
    """Unless it changed, even to the same size and time of modification."""
    plan, out, cache = planned[1], tmp_path / "prepared", tmp_path / "cache"
    monkeypatch.setattr("medseg.io.digests.FRESH", -(10**18))
    prepare(open_dataset(data), plan, out, workers=1, cache=cache)
    before = stamps(out)
    read = []
    monkeypatch.setattr("medseg.io.digests.file_digest", lambda path: read.append(path.name) or file_digest(path))
    prepare(open_dataset(data), plan, out, workers=1, cache=cache)
    assert read == []
    assert stamps(out) == before
    changed = data / "labels" / "case2.nii.gz"
    time.sleep(0.02)
    times = changed.stat()
    image = nib.load(changed)
    label = np.asarray(image.dataobj).copy()
    label[4, 3, 2] = 0
    nib.save(nib.Nifti1Image(label, image.affine), changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    store = prepare(open_dataset(data), plan, out, workers=1, cache=cache)
    assert read == ["case2.nii.gz"]
    assert {name for name in before if stamps(out)[name] != before[name]} == {"case2"}
    assert np.count_nonzero(store.read("case2").label) < np.count_nonzero(store.read("case1").label)


def test_processes_give_the_same_bytes(planned, data, tmp_path):
    one = prepare(open_dataset(data), planned[1], tmp_path / "one", workers=1)
    two = prepare(open_dataset(data), planned[1], tmp_path / "two", workers=2)
    for path in one.folder.glob("*/*"):
        assert path.read_bytes() == (two.folder / path.relative_to(one.folder)).read_bytes()


def test_several_plans_at_a_time(planned, data, tmp_path, monkeypatch):
    """The arrays are those of one plan after another, and no file is read twice; what one folder has already is not prepared again."""
    dataset, plan = open_dataset(data), planned[1]
    coarse = plan.edited({"space.spacing": "[2.0, 2.0, 2.0]"})
    apart = [prepare(dataset, one, tmp_path / f"apart{i}", workers=1) for i, one in enumerate((plan, coarse))]
    first = tmp_path / "first"
    shutil.copytree(apart[0].folder, first, ignore=lambda _, names: {"case2"} & set(names))
    before = stamps(first)
    reads: list[str] = []

    def counted(files, **how):
        reads.append(files.id)
        return read_case(files, **how)

    monkeypatch.setattr("medseg.preprocessing.prepare.read_case", counted)
    together = prepare_all(dataset, {first: plan, tmp_path / "second": coarse}, workers=1)
    assert sorted(reads) == [f"case{i}" for i in range(CASES)]
    assert {name: stamp for name, stamp in stamps(first).items() if name != "case2"} == before
    assert [store.folder for store in together] == [first, tmp_path / "second"]
    for one, other in zip(apart, together, strict=True):
        files = sorted(path.relative_to(one.folder) for path in one.folder.rglob("*") if path.is_file())
        assert files == sorted(path.relative_to(other.folder) for path in other.folder.rglob("*") if path.is_file())
        assert all((one.folder / path).read_bytes() == (other.folder / path).read_bytes() for path in files)


def test_what_is_prepared_alike_is_prepared_once(planned, data, tmp_path, monkeypatch):
    """An axis that one plan leaves as it is, and that has another's target spacing already."""
    dataset, plan = open_dataset(data), planned[1]
    slices = plan.edited({"space.spacing": "[null, 1.0, 1.0]"})
    coarser = plan.edited({"space.spacing": "[null, 2.0, 1.0]"})
    apart = [prepare(dataset, one, tmp_path / f"apart{i}", workers=1) for i, one in enumerate((plan, slices, coarser))]
    made: list[tuple[float | None, ...]] = []

    def counted(case, settings, scratch):
        made.append(settings.spacing)
        return prepare_case(case, settings, scratch)

    monkeypatch.setattr("medseg.domains.grid.domain.prepare_case", counted)
    together = prepare_all(dataset, {tmp_path / f"together{i}": one for i, one in enumerate((plan, slices, coarser))}, workers=1)
    assert made == [plan.space.spacing, coarser.space.spacing] * CASES
    for one, other in zip(apart, together, strict=True):
        for path in one.folder.glob("*/*"):
            assert path.read_bytes() == (other.folder / path.relative_to(one.folder)).read_bytes()


def test_all_failures_at_once(planned, data, tmp_path):
    whole = (data / "images" / "case1.nii.gz").read_bytes()
    (data / "images" / "case1.nii.gz").write_bytes(whole[:200])
    (data / "labels" / "case4.nii.gz").unlink()
    dataset = open_dataset(planned[0])
    moved = dataset.model_copy(
        update={
            "cases": tuple(
                c.model_copy(update={"images": (data / "images" / c.images[0].name,), "label": data / "labels" / c.label.name})
                for c in dataset.cases
            )
        }
    )
    with pytest.raises(DatasetError) as caught:
        prepare(moved, planned[1], tmp_path / "out", workers=1)
    text = str(caught.value)
    assert text.startswith("2 problems:")
    assert "case1.nii.gz" in text
    assert "truncated or damaged" in text
    assert "case4.nii.gz: the file does not exist" in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["case0", "case2", "case3", "case5"]
    shutil.copytree(planned[0], data, dirs_exist_ok=True)
    assert len(prepare(moved, planned[1], tmp_path / "out", workers=1).ids()) == CASES


def test_a_small_disk_is_found_out_after_one_case(planned, data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("medseg.preprocessing.prepare.shutil.disk_usage", lambda path: usage(2**40, 2**40, 2**28 + 1000))
    with pytest.raises(ResourceError, match=r"the disk is too small .* 0\.25 GiB free, expected about 0\.25 GiB for 5 more cases"):
        prepare(open_dataset(data), planned[1], tmp_path / "out", workers=1)
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_plan_of_another_dataset(planned, data, tmp_path):
    dataset = open_dataset(data)
    other = dataset.model_copy(update={"channels": (*dataset.channels, dataset.channels[0].model_copy(update={"name": "flair"}))})
    with pytest.raises(PlanError, match=r"plan '3d', field 'data.channels': does not fit the dataset.*Plan this dataset"):
        prepare(other, planned[1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


SCRIPT = """
import sys, time
from pathlib import Path
from medseg.io.layouts.base import open_dataset
from medseg.io.store import Store
from medseg.plans import Plan
from medseg.preprocessing import prepare as module
write = Store.write
def slow(self, *arguments):
    time.sleep(0.2)
    write(self, *arguments)
Store.write = slow
module.prepare(open_dataset(Path(sys.argv[1])), Plan.load(Path(sys.argv[2])), Path(sys.argv[3]), workers=1)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is POSIX")
def test_killed_and_continued(planned, data, tmp_path):
    out = tmp_path / "out"
    planned[1].save(tmp_path / "plan.json")
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(data), str(tmp_path / "plan.json"), str(out)])
    for _ in range(600):
        if len(stamps(out)) > 1:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = stamps(out)
    assert 1 < len(before) < CASES
    store = prepare(open_dataset(data), planned[1], out, workers=1)
    assert len(store.ids()) == CASES
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    whole = [name for name in before if not name.startswith(".")]
    assert all(stamps(out)[name] == before[name] for name in whole)
    expected = prepare(open_dataset(data), planned[1], tmp_path / "expected", workers=1)
    for path in expected.folder.glob("*/*"):
        assert path.read_bytes() == (out / path.relative_to(expected.folder)).read_bytes()
