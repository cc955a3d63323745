from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slabs import Slabs
from synthetic import REGIONS, TWO, make_dataset, make_fingerprint_of, make_plan

from medseg.case import Batch
from medseg.dataset import LabelClass, Labels
from medseg.fingerprint import ClassStats
from medseg.losses.blobs import number_blobs
from medseg.losses.dice import IGNORED
from medseg.planning.memory import training_memory
from medseg.plans import Plan
from medseg.prediction import Prediction
from medseg.scratch import Scratch
from medseg.tasks import semantic
from medseg.tasks.semantic import HEAD, Semantic, SemanticSettings

SPARSE = Labels(classes=(LabelClass(name="liver", values=(7,)), LabelClass(name="tumour", values=(300,))), ignore=255)
PARTIAL = Labels(classes=REGIONS.classes, order=REGIONS.order, ignore=9)
ONE = Labels(classes=(LabelClass(name="polyp", values=(1, 2, 3)),), order=(1,))
MERGED = Labels(classes=(LabelClass(name="polyp", values=(1, 2, 3)), LabelClass(name="tool", values=(5,))))
ALL = {"merged": MERGED, "two": TWO, "regions": REGIONS, "sparse": SPARSE, "partial": PARTIAL, "one": ONE}

VARIANTS_OF_LOSS: list[dict[str, str]] = [
    {"target.missed": "0.7"},
    {"target.focal": "2"},
    {"target.hardest": "0.1"},
    {"target.blob": "1"},
    {"target.blob": "2", "target.missed": "0.8", "target.focal": "1", "target.hardest": "0.3"},
]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Semantic]:
    return {name: Semantic(make_plan(labels, ndim=2, shape=(1, 64, 64))) for name, labels in ALL.items()}


def batch_of(label: NDArray[np.int16]) -> Batch:
    return Batch(torch.zeros(1, 1, *label.shape), torch.from_numpy(label)[None])


@pytest.mark.parametrize("name", ALL)
@given(data=st.data())
@settings(max_examples=15)
def test_oracle_law(name: str, data: st.DataObject, tasks: dict[str, Semantic]) -> None:
    task, labels = tasks[name], ALL[name]
    seed = data.draw(st.integers(0, 10**6))
    values = [0, *labels.values, *([labels.ignore] if labels.ignore is not None else [])]
    label = np.random.default_rng(seed).choice(np.array(values, np.int16), size=(5, 9))
    outputs = task.oracle(task.targets(batch_of(label)))
    assert outputs[HEAD].shape == (1, task.heads[0].channels, 5, 9)
    prediction = task.decode({HEAD: Slabs(outputs[HEAD][0].numpy())}, "case")
    for scores in task.score(prediction.labels, label, (1.0, 1.0), ("dice", "iou")).values():
        assert all(v == 1.0 or math.isnan(v) for v in scores.values())
    for variant in (task, Semantic(task.plan.edited(data.draw(st.sampled_from(VARIANTS_OF_LOSS))))):
        terms = variant.loss({HEAD: [outputs[HEAD]]}, variant.targets(batch_of(label)))
        assert sum(float(t) for t in terms.values()) < 1e-3


def test_targets_of_exclusive_classes(tasks: dict[str, Semantic]) -> None:
    label = np.array([[0, 7, 300, 255]], np.int16)
    assert tasks["sparse"].targets(batch_of(label))["classes"].tolist() == [[[0, 1, 2, IGNORED]]]


def test_targets_of_regions(tasks: dict[str, Semantic]) -> None:
    label = np.array([[0, 1, 2, 4, 9]], np.int16)
    found = tasks["partial"].targets(batch_of(label))
    assert found["regions"][0, :, 0].tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 0]]
    assert found["valid"].tolist() == [[[True, True, True, True, False]]]


def test_regions_are_written_in_order(tasks: dict[str, Semantic]) -> None:
    logits = np.array([[[-1, 1, 1, 1]], [[-1, -1, 1, 1]], [[-1, -1, -1, 1]]], np.float32)
    assert tasks["regions"].decode({HEAD: Slabs(logits)}, "case").labels.tolist() == [[0, 1, 2, 4]]


def test_decode_dtype_holds_every_value(tasks: dict[str, Semantic]) -> None:
    assert tasks["two"].decode({HEAD: Slabs(np.zeros((3, 4, 4), np.float32))}, "case").labels.dtype == np.uint8
    assert tasks["sparse"].decode({HEAD: Slabs(np.zeros((3, 4, 4), np.float32))}, "case").labels.dtype == np.uint16


def test_probabilities_and_uncertainty(tasks: dict[str, Semantic]) -> None:
    logits = np.log(np.array([[[0.2, 0.9]], [[0.7, 0.05]], [[0.1, 0.05]]], np.float32))
    found = tasks["two"].decode({HEAD: Slabs(logits)}, "case", probabilities=True, uncertainty=True)
    assert found.probabilities is not None
    assert found.probabilities.dtype == np.float16
    np.testing.assert_allclose(found.probabilities[:, 0, 0], [0.2, 0.7, 0.1], atol=1e-3)
    assert found.labels.tolist() == [[1, 0]]
    entropy = -sum(p * math.log(p) for p in (0.2, 0.7, 0.1)) / math.log(3)
    assert found.uncertainty == pytest.approx(entropy, abs=1e-5)  # of the only foreground voxel
    assert tasks["two"].decode({HEAD: Slabs(logits[..., 1:])}, "case", uncertainty=True).uncertainty is None
    alone = tasks["two"].decode({HEAD: Slabs(logits)}, "case")
    assert (alone.probabilities, alone.uncertainty, alone.labels.tolist()) == (None, None, found.labels.tolist())


def test_uncertainty_spans_zero_to_one(tasks: dict[str, Semantic]) -> None:
    sure = np.full((3, 2, 2), -50, np.float32)
    sure[1] = 50
    assert tasks["regions"].decode({HEAD: Slabs(sure)}, "case", uncertainty=True).uncertainty == pytest.approx(0, abs=1e-4)
    undecided = np.full((3, 2, 2), 1e-3, np.float32)
    assert tasks["regions"].decode({HEAD: Slabs(undecided)}, "case", uncertainty=True).uncertainty == pytest.approx(1, abs=1e-4)


def test_large_results_live_in_files(tasks: dict[str, Semantic]) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 8, 8)).astype(np.float32)
    plain = tasks["two"].decode({HEAD: Slabs(logits)}, "case", True)
    filed = tasks["two"].decode({HEAD: Slabs(logits)}, "case", True, Scratch(limit=16))
    assert isinstance(filed.labels, np.memmap)
    assert np.array_equal(plain.labels, filed.labels)
    assert plain.probabilities is not None
    assert filed.probabilities is not None
    assert np.array_equal(plain.probabilities, filed.probabilities)


def test_deep_supervision_weighs_levels_by_halves(tasks: dict[str, Semantic]) -> None:
    task = tasks["two"]
    label = np.zeros((8, 8), np.int16)
    label[2:6, 2:6] = 1
    targets = task.targets(batch_of(label))
    perfect = task.oracle(targets)[HEAD]
    wrong = -perfect
    coarse, bad_coarse = perfect[..., ::2, ::2], wrong[..., ::2, ::2]
    assert float(task.loss({HEAD: [perfect, coarse]}, targets)["dice"]) == pytest.approx(0, abs=1e-4)
    both = float(task.loss({HEAD: [wrong, bad_coarse]}, targets)["cross_entropy"])
    fine = float(task.loss({HEAD: [wrong, coarse]}, targets)["cross_entropy"])
    assert fine / both == pytest.approx(2 / 3, rel=0.05)


def test_loss_factors_and_class_weights(tasks: dict[str, Semantic]) -> None:
    plan = tasks["two"].plan
    edited = plan.edited({"target.dice": "2", "target.cross_entropy": "0", "target.class_weights": "[1, 1, 4]"})
    label = np.random.default_rng(0).integers(0, 3, (8, 8)).astype(np.int16)
    targets = tasks["two"].targets(batch_of(label))
    outputs = {HEAD: [torch.randn(1, 3, 8, 8)]}
    plain, changed = tasks["two"].loss(outputs, targets), Semantic(edited).loss(outputs, targets)
    torch.testing.assert_close(changed["dice"], 2 * plain["dice"])
    assert float(changed["cross_entropy"]) == 0


@pytest.mark.parametrize("edits", VARIANTS_OF_LOSS)
@pytest.mark.parametrize("name", ["sparse", "partial"])
def test_variants_of_the_loss_learn_at_every_resolution(name: str, edits: dict[str, str], tasks: dict[str, Semantic]) -> None:
    """Softmax and regions, with ignored voxels and deep supervision: finite, and down to nothing by gradient descent alone."""
    plain = tasks[name]
    task = Semantic(plain.plan.edited(edits))
    label = np.zeros((16, 16), np.int16)
    label[2:9, 2:9], label[4:6, 4:6], label[12, 12] = ALL[name].classes[0].values[0], ALL[name].classes[-1].values[0], ALL[name].values[-1]
    label[:, 14:] = ALL[name].ignore
    targets = task.targets(batch_of(label))
    torch.manual_seed(0)
    maps = [torch.zeros(1, task.heads[0].channels, n, n, requires_grad=True) for n in (16, 8)]
    optimizer = torch.optim.Adam(maps, lr=0.5)
    history = []
    for _ in range(60):
        terms = task.loss({HEAD: maps}, targets)
        total = torch.stack(list(terms.values())).sum()
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(total.item())
    assert list(terms) == ["dice", "cross_entropy", *(["blob"] if task.settings.blob else [])]
    assert all(math.isfinite(value) for value in history)
    assert history[-1] < 0.05 * history[0]
    assert all((m.grad[..., -1] == 0).all() for m in maps if m.grad is not None)  # ignored
    prediction = task.decode({HEAD: Slabs(maps[0][0].detach().numpy())}, "case")
    assert all(scores["dice"] == 1 for scores in task.score(prediction.labels, label, (1.0, 1.0), ("dice",)).values())


def test_components_are_numbered_once_and_seen_at_every_resolution(tasks: dict[str, Semantic], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(semantic, "number_blobs", lambda classes: calls.append(classes.shape) or number_blobs(classes))
    task = Semantic(tasks["two"].plan.edited({"target.blob": "0.5"}))
    label = np.zeros((8, 8), np.int16)
    label[0:4, 0:4] = label[6:, 6:] = 1
    targets = task.targets(batch_of(label))
    assert calls == [(1, 8, 8)]
    perfect = task.oracle(targets)[HEAD]
    missed = perfect.clone()
    missed[:, :, 6:, 6:] = -missed[:, :, 6:, 6:]  # the smaller of two components, at full resolution only
    found = task.loss({HEAD: [missed, perfect[..., ::2, ::2]]}, targets)
    assert float(found["blob"]) == pytest.approx(0.5 * 2 / 3 * 1 / 2, abs=0.02)
    assert calls == [(1, 8, 8)]


def test_variants_of_the_loss_are_written_where_they_are_chosen(tasks: dict[str, Semantic]) -> None:
    plain = tasks["two"].plan
    assert not {"missed", "blob", "focal", "hardest"} & set(plain.target.model_dump())
    chosen = plain.edited({"target.blob": "1"})
    assert chosen.target.model_dump()["blob"] == 1
    assert "hardest" not in chosen.target.model_dump()
    assert Plan.parse(chosen.model_dump(mode="json"), "here") == chosen
    assert chosen.trained_digest() != plain.trained_digest()
    assert plain.edited({"target.blob": "0"}).trained_digest() == plain.trained_digest()


def test_memory_of_the_blob_loss_is_measured(tasks: dict[str, Semantic]) -> None:
    plan = tasks["regions"].plan
    assert training_memory(plan.edited({"target.blob": "1"})) > training_memory(plan)


@pytest.mark.parametrize(
    ("labels", "voxels", "weights"),
    [
        (TWO, (500, 400), ()),
        (TWO, (500, 20), (1.0, 1.0, 5.0)),
        (TWO, (400, 16), (1.0, 1.0, 5.0)),
        (REGIONS, (2000, 500, 80), (1.0, 2.0, 5.0)),
    ],
)
def test_class_weights_follow_imbalance(labels: Labels, voxels: tuple[int, ...], weights: tuple[float, ...]) -> None:
    dataset = make_dataset(labels)
    needs = Semantic.needs(dataset, make_fingerprint_of(dataset, voxels=voxels))
    assert isinstance(needs.target, SemanticSettings)
    assert needs.target.class_weights == weights
    assert set(needs.reasons) == set(needs.target.model_dump())


def said(*chances: list[float], labels: list[int] | None = None) -> Prediction:
    """A prediction of a row of voxels; one list per channel."""
    shape = (1, len(chances[0]))
    return Prediction("x", np.array(labels or [0] * shape[1]).reshape(shape), np.array(chances, np.float16).reshape(-1, *shape))


def test_combined_classes_are_the_most_probable_on_average(tasks: dict[str, Semantic]) -> None:
    task = tasks["two"]
    first = said([0.75, 0.125, 0.5], [0.25, 0.75, 0.25], [0.0, 0.125, 0.25])
    second = said([0.125, 0.25, 0.5], [0.75, 0.0, 0.0], [0.125, 0.75, 0.5])
    found = task.combine([first, second], "x", probabilities=True)
    assert found.labels.tolist() == [[1, 2, 0]]
    assert found.probabilities is not None
    assert found.probabilities.tolist() == [[[0.4375, 0.1875, 0.5]], [[0.5, 0.375, 0.125]], [[0.0625, 0.4375, 0.375]]]
    assert task.combine([first, second, first], "x").labels.tolist() == [[0, 1, 0]]
    assert task.combine([first, second], "x").probabilities is None


def test_combined_regions_are_each_above_one_half_on_average(tasks: dict[str, Semantic]) -> None:
    whole, core, hot = [0.75, 0.75, 0.25, 0.5], [0.5, 0.75, 0.25, 0.0], [0.25, 0.25, 0.0, 0.75]
    found = tasks["regions"].combine([said(whole, core, hot), said([0.5] * 4, [0.75, 0.5, 0.5, 0.0], [0.5, 1.0, 0.5, 0.5])], "x")
    assert found.labels.tolist() == [[2, 4, 0, 4]]


def test_combining_takes_memory_for_slabs_only(tasks: dict[str, Semantic], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.scratch.CHUNK", 2**12)
    scratch = Scratch(limit=0)
    shape = (3, 400, 300)
    parts = [Prediction("x", np.zeros(shape[1:], np.uint8), scratch.zeros(shape, np.float16)) for _ in range(3)]
    for k, part in enumerate(parts):
        assert part.probabilities is not None
        part.probabilities[k] = 1
    tracemalloc.start()
    found = tasks["two"].combine(parts, "x", probabilities=True, scratch=scratch)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.probabilities is not None
    assert np.array_equal(found.probabilities, np.full(shape, 1 / 3, np.float16))
    assert peak < shape[1] * shape[2] * 4  # one class in float32


def test_combining_needs_probabilities(tasks: dict[str, Semantic]) -> None:
    with pytest.raises(ValueError, match="combined by their probabilities"):
        tasks["two"].combine([said([1.0], [0.0], [0.0]), Prediction("x", np.zeros((1, 1)))], "x")


def test_many_small_components_are_told() -> None:
    """The reason for the loss names classes that are many separate objects; others leave it as it is."""
    dataset = make_dataset(TWO)
    fingerprint = make_fingerprint_of(dataset)
    plain = Semantic.needs(dataset, fingerprint).reasons["dice"]
    assert plain == "Optimises the score itself, whatever the class imbalance."

    def lesions(components: int) -> str:
        stats = ClassStats(voxels=900, volume=900, components=components, sizes=(1, 5, 17, 55, 210), box=((0, 9),) * 3)
        absent = ClassStats(voxels=0, volume=0, components=0)
        cases = [c.model_copy(update={"classes": (c.classes[0], stats if i < 3 else absent)}) for i, c in enumerate(fingerprint.cases)]
        needs = Semantic.needs(dataset, fingerprint.model_copy(update={"cases": tuple(cases)}))
        assert isinstance(needs.target, SemanticSettings)
        assert (needs.target.missed, needs.target.blob, needs.target.focal, needs.target.hardest) == (0.5, 0, 0, 1)
        return needs.reasons["dice"]

    assert lesions(4) == plain
    assert "'posterior' is 5 components in the median case, half of them below 17 voxels: half of the windows are shared evenly" in lesions(
        5
    )


def test_heads_start_at_the_frequencies() -> None:
    dataset = make_dataset(TWO)
    needs = Semantic.needs(dataset, make_fingerprint_of(dataset, shape=(10, 10, 10), voxels=(100, 0)))
    assert needs.heads[0].prior == pytest.approx((math.log(0.9), math.log(0.1), math.log(1e-4)))
    dataset = make_dataset(SPARSE)  # of 1000 voxels 200 are annotated, and what is not is no background
    fingerprint = make_fingerprint_of(dataset, shape=(10, 10, 10), voxels=(100, 20))
    scribbled = tuple(case.model_copy(update={"ignored": 800}) for case in fingerprint.cases)
    needs = Semantic.needs(dataset, fingerprint.model_copy(update={"cases": scribbled}))
    assert needs.heads[0].prior == pytest.approx((math.log(0.4), math.log(0.5), math.log(0.1)))
    dataset = make_dataset(ONE)
    needs = Semantic.needs(dataset, make_fingerprint_of(dataset, shape=(10, 10, 10), voxels=(100,)))
    assert needs.heads[0].channels == 1
    assert needs.heads[0].prior == pytest.approx((math.log(0.1 / 0.9),))


def test_plan_and_needs_agree_on_heads(tasks: dict[str, Semantic]) -> None:
    for name, task in tasks.items():
        dataset = make_dataset(ALL[name], 2)
        assert Semantic.needs(dataset, make_fingerprint_of(dataset, (64, 64), (1.0, 1.0))).heads == task.heads


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"class_weights": (1.0, 2.0)}, "class_weights needs 3 positive values"),
        ({"frequencies": (0.9, 0.1, 0.0)}, "between 0 and 1"),
        ({"dice": 0, "cross_entropy": 0}, "cannot both be 0"),
        ({"missed": 1}, "less than 1"),
        ({"hardest": 0}, "greater than 0"),
        ({"focal": -1}, "greater than or equal to 0"),
        ({"blob": 11}, "less than or equal to 10"),
    ],
)
def test_impossible_settings(changes: dict[str, object], text: str) -> None:
    good = {"frequencies": (0.8, 0.1, 0.1), "class_weights": (), "batch_dice": True, "dice": 1.0, "cross_entropy": 1.0}
    with pytest.raises(ValueError, match=text):
        SemanticSettings.model_validate(good | changes)


@pytest.mark.parametrize("name", ["sparse", "regions", "one"])
def test_constants_are_made_once(name: str, tasks: dict[str, Semantic], monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies to a GPU in every step would make it wait."""
    plan = tasks[name].plan
    count = len(plan.target.frequencies)  # type: ignore[attr-defined]
    task = Semantic(plan.edited({"target.class_weights": str([1.0 + k for k in range(count)])}))
    batch = batch_of(np.zeros((8, 8), np.int16))
    logits = {HEAD: [torch.zeros(1, count, 8, 8)]}
    first = task.loss(logits, task.targets(batch))
    made: list[object] = []
    monkeypatch.setattr(torch, "tensor", lambda *args, **_: made.append(args))
    second = task.loss(logits, task.targets(batch))
    assert made == []
    assert first == second
