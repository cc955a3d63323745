"""Record nnU-Net's cascade on a small image: `PYTHON_WITH_NNUNET tests/interop/recorded/record_cascade.py` writes `recorded/cascade.pt`.

Written with nnU-Net 2.8.1. The file holds two stages, each like a file of `record_pipeline.py`; the second one's network sees the segmentation of
the first.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from record_pipeline import CASES, FOLDER, make_image, make_plans

LOW, CASCADE = "3d_lowres", "3d_cascade_fullres"
MIRROR = (0, 1)


def main() -> None:
    torch.set_num_threads(1)
    case = CASES["thick"]
    shape, spacing = (18, 19, 8), case[7]
    plans = make_plans(case)
    full = plans["configurations"]["3d_fullres"]
    low = deepcopy(full) | {
        "data_identifier": f"nnUNetPlans_{LOW}",
        "spacing": [5.0, 1.6, 1.5],
        "patch_size": [4, 8, 8],
        "next_stage": CASCADE,
    }
    plans["configurations"] |= {LOW: low, CASCADE: {"inherits_from": "3d_fullres", "previous_stage": LOW}}
    dataset = {"channel_names": {"0": "a", "1": "b"}, "labels": {"background": 0, "b": 2, "a": 1, "ignore": 3}}
    dataset |= {"numTraining": 3, "file_ending": ".nii.gz"}
    manager = PlansManager(plans)
    labels = manager.get_label_manager(dataset)
    image, earlier, stages = make_image(2, shape), None, {}
    for number, name in enumerate((LOW, CASCADE)):
        configuration = manager.get_configuration(name)
        preparation = DefaultPreprocessor(verbose=False)
        prior = None if earlier is None else earlier[None].astype(np.float32)
        prepared, staged, properties = preparation.run_case_npy(image, prior, {"spacing": list(spacing)}, manager, configuration, dataset)
        if earlier is not None:
            prepared = np.vstack((prepared, convert_labelmap_to_one_hot(staged[0], labels.foreground_labels, prepared.dtype)))
        torch.manual_seed(number * 6)
        made = configuration.configuration["architecture"]
        channels = determine_num_input_channels(manager, configuration, dataset)
        network = get_network_from_plans(
            made["network_class_name"],
            made["arch_kwargs"],
            made["_kw_requires_import"],
            channels,
            labels.num_segmentation_heads,
            deep_supervision=False,
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.manual_initialization(network, manager, configuration, [network.state_dict()], dataset, "nnUNetTrainer", MIRROR)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(prepared))
        earlier = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, manager, configuration, labels, properties, num_threads_torch=1
        )
        print(name, prepared.shape, {int(v): int((earlier == v).sum()) for v in np.unique(earlier)})
        stages[name] = {
            "plans": plans,
            "dataset": dataset,
            "configuration": name,
            "mirror": MIRROR,
            "image": torch.from_numpy(image),
            "spacing": spacing,
            "weights": {k: v for k, v in network.state_dict().items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k},
            "segmentation": torch.from_numpy(earlier),
        }
    torch.save(stages, FOLDER / "cascade.pt")


if __name__ == "__main__":
    main()
