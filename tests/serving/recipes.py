"""What a worker does in tests instead of predicting: makes one small object of each study, or misbehaves as the study asks for."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from pydicom import dcmread
from pydicom.uid import UID

from medseg.errors import ImageError
from medseg.serving.ledger import digest
from medseg.serving.model import instance_of
from medseg.serving.worker import Handle, Results

RESULT = "medseg test result"


@dataclass(frozen=True)
class Copying:
    """The first image of a study, made a secondary capture whose UID follows from all images.

    The Study Description says what happens: `raise`, `refuse` (an error that is final), `kill` (the process), `hang`, `gate` (it
    goes on when there is a file `open` beside the folder of images), `half` (a part of it fails).
    """

    seconds: float = 0.0
    broken: bool = False

    def load(self) -> Handle:
        if self.broken:
            raise ImageError.of("cannot be read", where="model")
        if self.seconds < 0:
            os._exit(7)
        return self.handle

    def handle(self, images: Path, out: Path) -> Results:
        files = sorted(images.glob("*.dcm"))
        data = dcmread(files[0])
        time.sleep(self.seconds)
        wish = data.get("StudyDescription", "")
        if wish == "raise":
            raise ValueError(f"a bug near {data.PatientName}")
        if wish == "refuse":
            raise ImageError.of(
                "has no slices that the model can use", found=f"'{data.SeriesDescription}' of {data.PatientName} on {data.StudyDate}"
            )
        if wish == "kill":
            os._exit(9)
        if wish == "gate":
            while not (images.parent / "open").exists():
                time.sleep(0.02)
        if wish == "hang":
            time.sleep(600)
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
        number = int(digest("".join(file.stem for file in files)), 16)
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.{number}")
        data.SeriesInstanceUID = f"2.25.{number}1"
        data.SeriesDescription = f"{RESULT} of {len(files)}"
        data.Modality = "OT"
        target = out / "result.dcm"
        data.save_as(target, enforce_file_format=True)
        return Results((target,), (instance_of(target),), "1 of 2 cases failed" if wish == "half" else "")


def main() -> None:
    """`recipes.py STORE PORT FORWARD MONITOR SECONDS`: a node in a process of its own."""
    from medseg.serving import logs
    from medseg.serving.addresses import parse_peer
    from medseg.serving.node import Node, Settings, run_until_told

    store, port, forward, monitor, seconds = sys.argv[1:]
    logs.begin(False)
    settings = Settings(
        Path(store), port=int(port), forward=(parse_peer(forward, ""),), monitor=("127.0.0.1", int(monitor)), quiet=0.5, grace=0.5
    )
    run_until_told(Node(settings, Copying(float(seconds))))


if __name__ == "__main__":
    main()
