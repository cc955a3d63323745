from __future__ import annotations

import json
import mmap
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import TWO, make_dataset

from medseg.case import Case
from medseg.dataset import CaseFiles, Dataset, Labels
from medseg.device import memory_per_array
from medseg.errors import DatasetError
from medseg.fingerprint import QUANTILES, CaseStats, ClassStats, Fingerprint, Intensities
from medseg.io.images import read_case
from medseg.planning.fingerprinting import ARRAYS, Gathered, make_fingerprint, merge_intensities
from medseg.scratch import Scratch


def case_of(values: np.ndarray, foreground: int = 10) -> CaseStats:
    quantiles = np.quantile(values, np.linspace(0, 1, QUANTILES))
    channel = Intensities(count=values.size, mean=float(values.mean()), std=float(values.std()), quantiles=tuple(map(float, quantiles)))
    return CaseStats(
        id="c",
        digest="d",
        shape=(4, 4, 4),
        spacing=(1.0, 1.0, 1.0),
        cropped=(4, 4, 4),
        zeros=0.0,
        channels=(channel,),
        classes=(ClassStats(voxels=foreground, volume=foreground, components=1),),
    )


def test_one_case_is_its_own_merge() -> None:
    case = case_of(np.random.default_rng(0).normal(50, 9, 5000))
    merged = merge_intensities([case])[0]
    np.testing.assert_allclose(merged.quantiles, case.channels[0].quantiles, rtol=1e-6)
    assert merged.mean == pytest.approx(case.channels[0].mean)
    assert merged.std == pytest.approx(case.channels[0].std)


@given(seed=st.integers(0, 10**6), cases=st.integers(2, 12))
def test_merge_is_the_pooled_distribution(seed: int, cases: int) -> None:
    """Cases of equal size: the merge equals statistics of all voxels together, within the resolution of the stored quantiles."""
    rng = np.random.default_rng(seed)
    parts = [rng.normal(rng.uniform(-100, 100), rng.uniform(1, 50), 2000) for _ in range(cases)]
    merged = merge_intensities([case_of(p) for p in parts])[0]
    pooled = np.concatenate(parts)
    assert merged.count == pooled.size
    assert merged.mean == pytest.approx(pooled.mean(), abs=1e-4)
    assert merged.std == pytest.approx(pooled.std(), rel=1e-6)
    assert list(merged.quantiles) == sorted(merged.quantiles)
    assert (merged.quantiles[0], merged.quantiles[-1]) == pytest.approx((pooled.min(), pooled.max()), rel=1e-6)
    for q in (0.5, 5, 50, 95, 99.5):
        low, high = np.quantile(pooled, [max(0, q / 100 - 0.006), min(1, q / 100 + 0.006)])
        assert low - 1e-6 <= merged.percentile(q) <= high + 1e-6


def test_every_case_weighs_the_same_and_empty_ones_nothing() -> None:
    small, large = case_of(np.full(10, 1.0)), case_of(np.full(10_000, 3.0))
    assert merge_intensities([small, large])[0].mean == 2.0
    background = case_of(np.full(10, 99.0), foreground=0)
    assert merge_intensities([small, background])[0].mean == 1.0
    assert merge_intensities([background])[0].mean == 99.0


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    rng = np.random.default_rng(0)
    cases = []
    for i in range(3):
        image, label = tmp_path / f"i{i}.nii.gz", tmp_path / f"l{i}.nii.gz"
        mask = np.zeros((8, 9, 10 + i), np.uint8)
        mask[2:4, 2:4, 2:4], mask[5:7, 5:7, 5:7] = 1, 2
        nibabel.save(nibabel.Nifti1Image(rng.normal(100, 10, mask.shape).astype(np.float32), np.eye(4)), image)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), label)
        cases.append(CaseFiles(id=f"secret_{i}", images=(image,), label=label, group=str(i)))
    return make_dataset(TWO).model_copy(update={"cases": tuple(cases)})


def test_measures_and_caches(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.io.digests.FRESH", -(10**18))
    cache = tmp_path / "cache"
    found = make_fingerprint(dataset, "grid", cache, workers=1)
    assert [c.id for c in found.cases] == ["secret_0", "secret_1", "secret_2"]
    assert [c.voxels for c in found.cases[0].classes] == [8, 8]
    assert found.cases[2].shape == (12, 9, 8)
    assert len(list(cache.glob("*.json"))) == 3
    assert len(list((cache / "files").rglob("*.json"))) == 6
    assert "secret" not in "".join(p.read_text() + p.name for p in cache.rglob("*.json"))
    monkeypatch.setattr("medseg.planning.fingerprinting.read_case", None)  # a second run reads no voxel
    monkeypatch.setattr("medseg.io.digests.file_digest", None)  # and no byte of any image
    assert make_fingerprint(dataset, "grid", cache, workers=1).to_json() == found.to_json()


def test_large_images_are_measured_from_files(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is shared out among the workers; an image beyond its share is measured where it lies, with the same result."""
    scratches: list[Scratch] = []

    def read(files: CaseFiles, scratch: Scratch, labels: Labels) -> Case:
        scratches.append(scratch)
        case = read_case(files, scratch=scratch, labels=labels)
        owner = case.image
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap) == (scratch.limit < case.image.nbytes)
        return case

    monkeypatch.setattr("medseg.planning.fingerprinting.read_case", read)
    whole = make_fingerprint(dataset, "grid", None, workers=1)
    assert scratches[0].limit == memory_per_array(1, ARRAYS)
    monkeypatch.setattr("medseg.planning.fingerprinting.memory_per_array", lambda workers, arrays: 100.0)
    assert make_fingerprint(dataset, "grid", None, workers=1).to_json() == whole.to_json()
    assert scratches[-1].limit == 100


def test_damaged_cache_entry_is_measured_again(dataset: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = make_fingerprint(dataset, "grid", cache, workers=1)
    entry = sorted(cache.glob("*.json"))[0]
    entry.write_text(json.dumps({"old": 1}))
    assert make_fingerprint(dataset, "grid", cache, workers=1) == found
    CaseStats.load(entry)


def test_digest_changes_with_any_byte_and_any_label_definition(dataset: Dataset) -> None:
    digests = {make_fingerprint(dataset, "grid", None, workers=1).digest}
    swapped = TWO.model_copy(update={"classes": TWO.classes[::-1]})
    digests.add(make_fingerprint(dataset.model_copy(update={"labels": swapped}), "grid", None, workers=1).digest)
    label = dataset.cases[0].label
    assert label is not None
    image = nibabel.load(label)
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(values, image.affine), label)
    digests.add(make_fingerprint(dataset, "grid", None, workers=1).digest)
    assert len(digests) == 3


def test_order_of_cases_does_not_matter(dataset: Dataset) -> None:
    shuffled = dataset.model_copy(update={"cases": dataset.cases[::-1]})
    assert make_fingerprint(dataset, "grid", None, workers=1).to_json() == make_fingerprint(shuffled, "grid", None, workers=1).to_json()


def test_all_unreadable_cases_are_reported_at_once(dataset: Dataset) -> None:
    for case in dataset.cases[:2]:
        case.images[0].write_bytes(b"no image")
    with pytest.raises(DatasetError) as error:
        make_fingerprint(dataset, "grid", None, workers=1)
    text = str(error.value)
    assert "i0.nii.gz" in text
    assert "i1.nii.gz" in text
    assert "i2.nii.gz" not in text


def test_a_fingerprint_has_a_line_per_case_and_pooled_intensities_only(dataset: Dataset, tmp_path: Path) -> None:
    found = make_fingerprint(dataset, "grid", None, workers=1)
    assert [c.channels for c in found.cases] == [()] * 3
    found.save(tmp_path / "fingerprint.json")
    assert Fingerprint.load(tmp_path / "fingerprint.json") == found
    lines = (tmp_path / "fingerprint.json").read_text(encoding="utf-8").splitlines()
    start = lines.index('  "cases": [')
    assert [json.loads(line.rstrip(","))["id"] for line in lines[start + 1 : start + 4]] == ["secret_0", "secret_1", "secret_2"]
    assert lines[start + 4 :] == ["  ]", "}"]


def test_cases_may_be_gathered_in_any_order(dataset: Dataset) -> None:
    cases = [case_of(np.random.default_rng(i).normal(50 * i, 9, 500)).model_copy(update={"id": f"{i}"}) for i in range(4)]
    found = []
    for order in (cases, cases[::-1]):
        gathered = Gathered()
        for case in order:
            gathered.add(case)
        found.append(gathered.fingerprint(dataset))
    assert found[0] == found[1]
    assert found[0].intensities == merge_intensities(cases)
