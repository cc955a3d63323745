"""Fingerprints measured on real public datasets, for golden plans; cases are numbered, and neither images nor their names are kept.

`python tests/golden/measured.py FOLDER` measures the datasets that lie in FOLDER and writes `plans/fingerprints/measured`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from published import FOLDER, Published

from medseg.dataset import Modality
from medseg.io.layouts.base import LayoutOptions, open_dataset
from medseg.planning.fingerprinting import make_fingerprint

MEASURED = FOLDER / "measured"
DATASETS = {
    "hippocampus_200": ("msd_task04_hippocampus", LayoutOptions(), "Medical Segmentation Decathlon, Task04, 200 cases; CC BY-SA 4.0."),
    "ms_lesions": ("ms_lesions_mni", LayoutOptions(), "Lesjak et al. 2017, two patients with four MR contrasts; CC BY."),
    "sarcoma": (
        "sts_ct_pet_mr",
        LayoutOptions(),
        "Soft-tissue sarcoma, CT, PET and MR of seven patients on grids of their own; CC BY 3.0.",
    ),
    "polyps": (
        "kvasir_polyps_referring",
        LayoutOptions(classes={"polyp": tuple(range(1, 21))}, modality=Modality.rgb),
        "Kvasir polyps, colour photographs of many sizes; measurements only.",
    ),
    "vessels": ("chase_db1_vessels", LayoutOptions(labels="labels_1stHO"), "CHASE DB1, colour photographs of the retina; CC BY 4.0."),
}


def main() -> None:
    for name, (folder, options, note) in DATASETS.items():
        dataset = open_dataset(Path(sys.argv[1]) / folder, options)
        seen = make_fingerprint(dataset, "grid", cache=None)
        cases = tuple(case.model_copy(update={"id": str(i), "digest": f"{i:016x}"}) for i, case in enumerate(seen.cases))
        Published(note=note, cases=len(cases), fingerprint=seen.model_copy(update={"cases": cases})).save(MEASURED / f"{name}.json")


if __name__ == "__main__":
    main()
