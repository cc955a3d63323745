"""nnU-Net's own planners on given records; run by `nnunet_planner.py` in an environment in which nnU-Net is installed.

One JSON object per line on standard input, `{"name", "dataset", "fingerprint", "presets"}`; for each preset one on standard output,
`{"plans"}` (the text of the file) or `{"error"}`. The first line of output holds versions. nnU-Net is not changed; its networks, which
it builds only to count their feature maps, are built on PyTorch's meta device, so that they take no memory and no time.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("nnunetv2", "dynamic-network-architectures", "torch", "numpy")


def image(path: Path, natural: bool) -> None:
    """A tiny image or volume, because nnU-Net chooses its reader by trying."""
    import numpy as np
    import SimpleITK
    import tifffile
    from skimage import io

    pixels = np.arange(512).astype(np.uint8).reshape(8, 8, 8)
    if path.name.endswith((".png", ".bmp")):
        io.imsave(path, pixels[0], check_contrast=False)
    elif path.name.endswith((".tif", ".tiff")):
        tifffile.imwrite(path, pixels[0] if natural else pixels)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), str(path))


def planned(root: Path, job: dict[str, Any], preset: str) -> dict[str, str]:
    import torch
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as default
    from nnunetv2.experiment_planning.experiment_planners.residual_unets import residual_encoder_unet_planners as residual

    planners = {
        "nnunet": default.ExperimentPlanner,
        "nnunet-resenc-m": residual.nnUNetPlannerResEncM,
        "nnunet-resenc-l": residual.nnUNetPlannerResEncL,
        "nnunet-resenc-xl": residual.nnUNetPlannerResEncXL,
    }
    raw, prepared = root / "raw" / job["name"], root / "preprocessed" / job["name"]
    (raw / "imagesTr").mkdir(parents=True, exist_ok=True)
    prepared.mkdir(parents=True, exist_ok=True)
    example = raw / "imagesTr" / f"case_0000{job['dataset']['file_ending']}"
    image(example, all(spacing == [999, 1, 1] for spacing in job["fingerprint"]["spacings"]))
    cases = {"case": {"images": [str(example)], "label": str(example)}}
    (raw / "dataset.json").write_text(json.dumps({**job["dataset"], "dataset": cases}))
    (prepared / "dataset_fingerprint.json").write_text(json.dumps(job["fingerprint"], sort_keys=True))
    planner = planners[preset](job["name"])
    try:
        with torch.device("meta"):
            planner.plan_experiment()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"plans": (prepared / f"{planner.plans_identifier}.json").read_text()}


def main() -> None:
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for part in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{part}"] = str(root / part)
        os.environ["nnUNet_n_proc_DA"] = "1"  # noqa: SIM112  (nnU-Net's own name)
        print(json.dumps({name: version(name) for name in PACKAGES}), flush=True)
        for line in sys.stdin:
            job = json.loads(line)
            for preset in job["presets"]:
                with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                    result = planned(root, job, preset)
                print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
