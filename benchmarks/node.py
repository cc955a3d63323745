"""100 studies sent in parallel to `medseg node`: all answered, none lost, memory flat.

    python benchmarks/node.py MODEL [--studies 100] [--associations 10] [--images datasets/hippocampus/imagesTr]

The node runs in a process of its own, with the model that is given; studies are volumes of the shipped sample as MR series with UIDs of their own,
in random order of slices. Results go to a receiver in this process, which remembers what came for which study. Memory is that of the node's
metrics, twice a second.
"""

from __future__ import annotations

import argparse
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hardware import write
from pydicom import Dataset, FileMetaDataset, dcmread
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, build_context, evt

from medseg.io.images import read_image
from medseg.serving.addresses import Peer
from medseg.serving.archive import UnreachableError
from medseg.serving.dimse import Caller, associate

MR = UID("1.2.840.10008.5.1.4.1.1.4")
GIB = 2**30


def uid(study: int, *rest: int) -> str:
    """A UID that tells the number of its study."""
    return ".".join(["2.25.4711", str(study), *map(str, rest)])


def slices(study: int, path: Path) -> list[Dataset]:
    """A volume as a series of MR images."""
    image = read_image(path)
    array, grid = image.array[0], image.grid
    scaled = np.clip(array * (4000.0 / max(1.0, float(array.max()))), 0, 4095).astype(np.uint16)
    made = []
    for z in range(len(scaled)):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = MR
        data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID(uid(study, 1, z))
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = uid(study), uid(study, 1), uid(study, 2)
        data.PatientName, data.PatientID, data.PatientBirthDate, data.PatientSex = f"Test^{study}", f"T{study}", "", "O"
        data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "20240101", "120000", "1", "", ""
        data.Modality, data.Manufacturer, data.SeriesNumber, data.InstanceNumber, data.ImageType = (
            "MR",
            "",
            1,
            z + 1,
            ["ORIGINAL", "PRIMARY"],
        )
        data.ScanningSequence, data.SequenceVariant, data.PositionReferenceIndicator = "GR", "NONE", ""
        data.ImagePositionPatient = [f"{v:.9g}" for v in grid.world((z, 0, 0))]
        data.ImageOrientationPatient = [f"{v:.9g}" for v in (*grid.direction[:, 2], *grid.direction[:, 1])]
        data.PixelSpacing, data.SliceThickness = [f"{v:.9g}" for v in grid.spacing[1:]], f"{grid.spacing[0]:.9g}"
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *scaled.shape[1:], 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
        data.PixelData = np.ascontiguousarray(scaled[z]).tobytes()
        made.append(data)
    random.Random(study).shuffle(made)
    return made


class Results:
    """A receiver that counts results per study."""

    def __init__(self) -> None:
        self.objects: dict[str, set[str]] = {}
        self.times: dict[str, float] = {}
        self.copies = 0
        self._lock = threading.Lock()
        self._entity = AE("RESULTS")
        self._entity.supported_contexts = AllStoragePresentationContexts
        self._server = self._entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._stored)])
        self.port = self._server.server_address[1]

    def _stored(self, event: Any) -> int:
        data = dcmread(event.dataset_path, stop_before_pixels=True)
        with self._lock:
            known = self.objects.setdefault(str(data.StudyInstanceUID), set())
            self.copies += str(data.SOPInstanceUID) in known
            known.add(str(data.SOPInstanceUID))
            self.times.setdefault(str(data.StudyInstanceUID), time.monotonic())
        return 0x0000

    def stop(self) -> None:
        self._entity.shutdown()


def send(port: int, images: list[Path], study: int) -> tuple[int, float, float, int]:
    """Send one study over an association of its own, and again where that breaks, as senders do.

    Returns:
        how many images were accepted, seconds, when it ended, and how many associations broke.
    """
    began, broken = time.monotonic(), 0
    made = slices(study, images[study % len(images)])
    while True:
        accepted = send_once(port, made)
        if accepted is not None or broken == 5:
            return accepted or 0, time.monotonic() - began, time.monotonic(), broken
        broken += 1


def send_once(port: int, made: list[Dataset]) -> int | None:
    """How many images were accepted; None where the association broke."""
    try:
        with associate(Peer("127.0.0.1", port, "MEDSEG"), [build_context(MR, ExplicitVRLittleEndian)], Caller("SCANNER")) as association:
            statuses = [association.send_c_store(data).get("Status") for data in made]
    except (RuntimeError, UnreachableError):
        return None
    return None if None in statuses else statuses.count(0)


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return {name: float(value) for name, value in re.findall(r"^(medseg_\S+) (\S+)$", answer.read().decode(), re.MULTILINE)}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--associations", type=int, default=10)
    parser.add_argument("--images", type=Path, default=Path(__file__).resolve().parent.parent / "datasets" / "hippocampus" / "imagesTr")
    options = parser.parse_args()
    images = sorted(options.images.glob("*.nii.gz"))
    results, port, monitor = Results(), free_port(), free_port()
    samples: list[tuple[float, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        medseg = Path(sys.executable).with_name("medseg")
        command = [medseg, "node", options.model, "--store", Path(folder, "store"), "--port", port, "--quiet-for", "2s", "--device", "cpu"]
        command += [
            "--keep-for",
            "0",
            "--forward",
            f"127.0.0.1:{results.port}:RESULTS",
            "--monitor",
            monitor,
            "--associations",
            2 * options.associations,
        ]
        log = Path(folder, "log")
        with log.open("wb") as out:
            node = subprocess.Popen(list(map(str, command)), stderr=out)
        try:
            while "listens" not in log.read_text():
                if node.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.2)
            began = time.monotonic()
            with ThreadPoolExecutor(options.associations) as pool:
                sending = [pool.submit(send, port, images, study) for study in range(options.studies)]
                while True:
                    try:
                        now = metrics(monitor)
                    except OSError:  # a machine with much else to do
                        continue
                    samples.append((time.monotonic() - began, now))
                    finished = now['medseg_node_studies{state="done"}'] + now['medseg_node_studies{state="aside"}']
                    if all(one.done() for one in sending) and finished >= options.studies:
                        break
                    if time.monotonic() - began > 3600:
                        break
                    time.sleep(0.5)
                accepted = [one.result() for one in sending]
            seconds = time.monotonic() - began
            left = sum(1 for _ in Path(folder, "store").rglob("*.dcm"))
        finally:
            node.terminate()
            code = node.wait(120)
            results.stop()
    expected = [len(read_image(images[study % len(images)]).array[0]) for study in range(len(images))]
    answered = [results.times[uid(study)] - accepted[study][2] for study in range(options.studies) if uid(study) in results.times]
    memory = {
        process: [now[f'medseg_node_memory_bytes{{process="{process}"}}'] / GIB for _, now in samples] for process in ("node", "worker")
    }
    last = samples[-1][1]
    found = {
        "studies": options.studies,
        "associations": options.associations,
        "images sent": sum(expected[study % len(images)] for study in range(options.studies)),
        "images accepted": sum(one[0] for one in accepted),
        "studies with a result": len(results.objects),
        "objects per study": dict(Counter(len(one) for one in results.objects.values())),
        "objects received twice": results.copies,
        "set aside": last['medseg_node_studies{state="aside"}'],
        "associations that broke": sum(one[3] for one in accepted),
        "images refused": last["medseg_node_images_refused_total"],
        "files left in the store": left,
        "exit code": code,
        "seconds": round(seconds, 1),
        "images per second while sending": round(sum(one[0] for one in accepted) / (max(one[2] for one in accepted) - began), 1),
        "seconds to send a study": round(statistics.median(one[1] for one in accepted), 2),
        "seconds of prediction per study": round(
            last["medseg_node_prediction_seconds_total"] / max(1, last["medseg_node_studies_predicted_total"]), 2
        ),
        "seconds from the last image to the result, median and longest": [round(statistics.median(answered), 1), round(max(answered), 1)],
        "memory in MiB, by fifths of the run": {process: fifths(values) for process, values in memory.items()},
    }
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:<{width}}  {value}")
    print(
        write("node", found, f"medseg node with {options.model.name}; {options.studies} studies over {options.associations} associations")
    )


def fifths(values: list[float]) -> list[int]:
    """Medians of consecutive parts."""
    parts = np.array_split(np.asarray(values) * 1024, 5)
    return [round(float(np.median(part))) for part in parts if len(part)]


if __name__ == "__main__":
    main()
