"""nnU-Net's way from logits to a written file; run by `large_ct.py` in an environment in which nnU-Net is installed.

    python large_ct_nnunet.py MODEL_FOLDER LOGITS.npy IMAGE.nii.gz OUT_WITHOUT_SUFFIX

Prints seconds and seconds of CPU of `export_prediction_from_logits`; reading the logits is not counted.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    model, logits, image, out = sys.argv[1:]
    with tempfile.TemporaryDirectory() as nowhere:
        for part in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{part}"] = nowhere
        import numpy as np
        from nnunetv2.inference.export_prediction import export_prediction_from_logits
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        dataset = json.loads((Path(model) / "dataset.json").read_text())
        manager = PlansManager(json.loads((Path(model) / "plans.json").read_text()))
        configuration = manager.get_configuration("3d_fullres")
        _, properties = manager.image_reader_writer_class().read_images([image])
        values = np.load(logits)
        import nibabel as nib

        shape = tuple(reversed(nib.load(image).shape))
        properties |= {
            "shape_before_cropping": shape,
            "shape_after_cropping_and_before_resampling": shape,
            "bbox_used_for_cropping": [[0, n] for n in shape],
        }
        start, cpu = time.monotonic(), time.process_time()
        threads = int(os.environ["nnUNet_def_n_proc"])  # noqa: SIM112  (nnU-Net's own name)
        export_prediction_from_logits(values, properties, configuration, manager, dataset, out, num_threads_torch=threads)
        print(json.dumps({"seconds": time.monotonic() - start, "cpu_seconds": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
