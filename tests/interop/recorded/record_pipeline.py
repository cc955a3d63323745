"""Record what nnU-Net makes of small images: `PYTHON_WITH_NNUNET tests/interop/recorded/record_pipeline.py` writes `recorded/pipeline_*.pt`.

Written with nnU-Net 2.8.1. Each file holds plans and dataset, an image with its spacing, the prepared case, a label map as an earlier stage might
predict it and the channels that a cascade makes of it, the weights of a tiny network, its stitched logits, and the segmentation on the image's
grid.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).parent
Z, CT, NONE, RANGE, RGB = (f"{name}Normalization" for name in ("ZScore", "CT", "No", "RescaleTo01", "RGBTo01"))
FOLDS = 2  # the second one's weights are 1 % larger
CASES = {
    # configuration, transpose, schemes, masked, target spacing, window, image shape and spacing in the order of the file
    "isotropic": ("3d_fullres", (0, 1, 2), (Z,), (False,), (1.0, 1.0, 1.0), (8, 12, 8), (11, 17, 13), (1.3, 1.0, 0.8)),
    "thick": ("3d_fullres", (2, 0, 1), (Z, CT), (True, False), (3.5, 1.0, 1.0), (4, 8, 12), (15, 16, 6), (0.9, 1.2, 4.1)),
    "middle": ("3d_lowres", (0, 1, 2), (RANGE, NONE), (False, False), (3.0, 1.5, 1.5), (4, 8, 8), (7, 11, 15), (4.0, 2.0, 1.0)),
    "slices": ("2d", (1, 0, 2), (RGB,), (False,), (0.8, 1.1), (12, 8), (10, 5, 14), (1.0, 5.0, 1.0)),
    "two_thick": ("3d_fullres", (0, 1, 2), (Z,), (True,), (1.25, 1.25, 1.25), (8, 8, 8), (20, 9, 9), (0.3, 1.25, 1.25)),
    "regions": ("3d_fullres", (0, 1, 2), (Z,), (False,), (1.0, 1.0, 1.0), (8, 8, 8), (9, 9, 9), (1.0, 1.1, 1.0)),
}


def arguments(axes: int) -> dict[str, object]:
    return {
        "n_stages": 2,
        "features_per_stage": [4, 6],
        "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
        "kernel_sizes": [[3] * axes] * 2,
        "strides": [[1] * axes, [2] * axes],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def make_plans(case: tuple) -> dict[str, object]:
    name, forward, schemes, masked, spacing, window, _, native = case
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    function = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(window),
        "median_image_size_in_voxels": [float(n) for n in window],
        "spacing": list(spacing),
        "normalization_schemes": list(schemes),
        "use_mask_for_norm": list(masked),
        "resampling_fn_data": function,
        "resampling_fn_seg": function,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": function,
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": arguments(len(window)),
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    seen = {"max": 300.0, "mean": 90.0, "median": 90.0, "min": -100.0, "percentile_00_5": 20.0, "percentile_99_5": 160.0, "std": 30.0}
    return {
        "dataset_name": "Dataset999_Recorded",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [float(native[a]) for a in forward],
        "original_median_shape_after_transp": [10, 10, 10],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": list(forward),
        "transpose_backward": [forward.index(a) for a in range(3)],
        "configurations": {name: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(i): seen for i in range(len(schemes))},
    }


def make_image(channels: int, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = np.stack([gaussian_filter(rng.normal(0, 1, shape), 1.0) for _ in range(channels)])
    image = np.rint(100 + 120 * image).clip(1, 255)
    image[:, :2] = 0  # an empty border to crop, and a hole within the body that is no background
    image[:, :, -1:] = 0
    image[:, 4, 4, 4] = 0
    image[:, -5:, -4:, :5] = 0  # a corner within the box of the body
    return image.astype(np.float32)


def make_prior(shape: tuple[int, ...]) -> np.ndarray:
    """Labels 0 to 2 that meet within the image and beyond its empty border."""
    rng = np.random.default_rng(1)
    return np.argmax([gaussian_filter(rng.normal(0, 1, shape), 1.2) for _ in range(3)], axis=0).astype(np.uint8)


def main() -> None:
    torch.set_num_threads(1)
    for number, (key, case) in enumerate(CASES.items()):
        name, schemes, shape, spacing = case[0], case[2], case[6], case[7]
        plans, regions = make_plans(case), key == "regions"
        labels = {"background": 0, "whole": [1, 2], "core": 2} if regions else {"background": 0, "b": 2, "a": 1, "ignore": 3}
        dataset = {"channel_names": {str(i): f"c{i}" for i in range(len(schemes))}, "labels": labels}
        dataset |= {"numTraining": 3, "file_ending": ".nii.gz"} | ({"regions_class_order": [1, 2]} if regions else {})
        manager = PlansManager(plans)
        configuration = manager.get_configuration(name)
        image = make_image(len(schemes), shape)
        preparation = DefaultPreprocessor(verbose=False)
        prepared, _, properties = preparation.run_case_npy(image, None, {"spacing": list(spacing)}, manager, configuration, dataset)

        prior = make_prior(shape)
        _, staged, _ = preparation.run_case_npy(
            image, prior[None].astype(np.float32), {"spacing": list(spacing)}, manager, configuration, dataset
        )
        staged = convert_labelmap_to_one_hot(staged[0], manager.get_label_manager(dataset).foreground_labels, np.uint8)

        torch.manual_seed(number)
        heads = manager.get_label_manager(dataset).num_segmentation_heads
        made = configuration.configuration["architecture"]
        network = get_network_from_plans(
            made["network_class_name"], made["arch_kwargs"], made["_kw_requires_import"], len(schemes), heads, deep_supervision=False
        )
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        mirror = tuple(range(len(case[5])))[:2]
        folds = [{name: weight * (1 + 0.01 * fold) for name, weight in network.state_dict().items()} for fold in range(FOLDS)]
        predictor.manual_initialization(network, manager, configuration, folds, dataset, "nnUNetTrainer", mirror)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(prepared))
        segmentation = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits, manager, configuration, manager.get_label_manager(dataset), properties, num_threads_torch=1
        )
        weights = {k: v for k, v in folds[0].items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
        record = {
            "plans": plans,
            "dataset": dataset,
            "configuration": name,
            "mirror": mirror,
            "image": torch.from_numpy(image),
            "spacing": spacing,
            "prepared": torch.from_numpy(prepared.astype(np.float32)),
            "prior": torch.from_numpy(prior),
            "staged": torch.from_numpy(staged),
            "weights": weights,
            "logits": logits,
            "segmentation": torch.from_numpy(segmentation),
        }
        torch.save(record, FOLDER / f"pipeline_{key}.pt")
        print(key, prepared.shape, {int(v): int((segmentation == v).sum()) for v in np.unique(segmentation)})


if __name__ == "__main__":
    main()
