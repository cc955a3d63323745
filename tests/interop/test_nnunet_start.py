"""Fine-tuning a model of nnU-Net, from its folder to the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from safetensors.torch import load_file
from test_nnunet_folder import model_folder, record_of

from medseg import workflow
from medseg.domains.grid.settings import Orientation
from medseg.evaluation.records import Evaluation
from medseg.interop.nnunet.folder import export_model, import_model
from medseg.interop.nnunet.planning import Presets
from medseg.plans import Plan
from medseg.training.module import Learner
from medseg.training.past import Past
from medseg.workspace import Workspace


class Talk:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def track(self, items: Any, total: int, what: str) -> Any:
        yield from items

    def update(self, what: str, done: float, total: float, note: str = "", seconds: bool = False) -> None:
        pass

    def say(self, message: str) -> None:
        self.lines.append(message)


def own_dataset(root: Path, record: dict[str, Any], cases: int) -> Path:
    """A raw dataset of nnU-Net like that of a recorded model, without its number in the name, of the recorded image and noise."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(path: Path, array: np.ndarray) -> None:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([float(s) for s in record["spacing"][::-1]])
        sitk.WriteImage(image, str(path))

    for number in range(cases):
        for index, channel in enumerate(record["image"].numpy()):
            noise = rng.normal(0, 0.1, channel.shape)
            write(root / "imagesTr" / f"case{number}_{index:04}.nii.gz", (channel + noise).astype(np.float32))
        write(root / "labelsTr" / f"case{number}.nii.gz", record["segmentation"].numpy().astype(np.uint8))
    (root / "dataset.json").write_text(json.dumps({**record["dataset"], "numTraining": cases, "file_ending": ".nii.gz"}))
    return root


def test_a_model_of_a_preset_can_be_exported(tmp_path: Path) -> None:
    """nnU-Net's plan, one step of training, nnU-Net's model folder: no option says that it is to be exported."""
    torch.set_num_threads(1)
    record = record_of("thick")
    named = {"background": 0, "a": 1, "b": 2}
    data = own_dataset(tmp_path / "data", {**record, "dataset": {**record["dataset"], "labels": named}}, 4)
    edits = {"training.steps": "1", "training.folds": "2", "training.batch_size": "1", "window": "[32, 32, 32]"}
    plans = workflow.plan(data, tmp_path / "plans", rules=Presets("nnunet"), memory=4.0, device="cpu", workers=1)
    chosen = next(plan for plan in plans if plan.recommended)
    assert chosen.space.orientation is Orientation.ras
    file = Workspace(tmp_path / "plans").plan_file(chosen.name)
    workflow.train(file, tmp_path / "run", epochs=1, edits=edits, device="cpu", workers=1)
    (stage,) = export_model(tmp_path / "run", tmp_path / "exported")
    theirs = json.loads((stage.folder / "plans.json").read_text())
    assert theirs["image_reader_writer"] == "SimpleITKIOWithReorient"
    assert (stage.folder / "fold_0" / "checkpoint_final.pth").is_file()


def test_an_imported_model_is_where_a_training_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    plan, _ = import_model(model_folder(tmp_path / "nnUNetTrainer__nnUNetPlans__x", (0, 1)), tmp_path / "imported")
    data = own_dataset(tmp_path / "data", record_of("thick"), 4)
    beginnings: list[dict[str, torch.Tensor]] = []
    real = Learner._new

    def new(self: Learner, number: int) -> torch.nn.Module:
        network = real(self, number)
        beginnings.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return network

    monkeypatch.setattr(Learner, "_new", new)
    talk = Talk()
    edits = {"training.steps": "2", "training.folds": "2", "training.networks": "1", "training.batch_size": "2"}
    run = tmp_path / "run"
    result = workflow.run(
        data, run, folds=(1,), epochs=1, init=tmp_path / "imported", edits=edits, device="cpu", memory=4.0, workers=1, progress=talk
    )
    planned = Plan.load(run / "plan.json")
    assert (planned.network, planned.window, planned.space.spacing) == (plan.network, plan.window, plan.space.spacing)
    source = f"{plan.data.name} {plan.name}"
    assert any(line.startswith(f"begins with {source}, fold_1 (one network): 100 % of the parameters") for line in talk.lines)
    unknown = f"warning: '{source}' does not say which cases it was trained on; if cases left out here were among them, their scores are optimistic"
    assert talk.lines.count(unknown) == 1
    before = load_file(tmp_path / "imported" / "fold_1" / "network_0.safetensors")
    (beginning,) = beginnings
    assert set(before) == set(beginning)
    assert (plan.data.labels.names, planned.data.labels.names) == (("a", "b"), ("b", "a"))
    for name, tensor in before.items():
        assert torch.equal(beginning[name], tensor[[0, 2, 1]] if name.startswith("heads.") else tensor), name
    own, other = Past.load(run / "fold_1" / "past.json").trainings
    assert len(own.cases or ()) == 2
    assert (other.model, other.cases) == (source, None)
    assert result.evaluation is not None
    assert result.evaluation.before.unknown == (source,)
    assert Evaluation.open(run / "report").before == result.evaluation.before
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    assert "<b>Not unseen</b>: it is unknown which cases" in page
