"""A real Orthanc on loopback ports, with its DICOMweb plugin."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import requests

PLUGIN = "libOrthancDicomWeb.so"
PLUGIN_FOLDERS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc", "/usr/local/share/orthanc/plugins")


def free_port() -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def find_plugin() -> Path | None:
    """The DICOMweb plugin."""
    return next((Path(folder, PLUGIN) for folder in PLUGIN_FOLDERS if Path(folder, PLUGIN).exists()), None)


class Orthanc:
    """An Orthanc from `start` to `stop`; everybody may store, modalities that are registered may do the rest."""

    aet = "ORTHANC"

    def __init__(self, program: Path, plugin: Path, folder: Path, **settings: Any) -> None:
        self.http, self.dicom = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http}"
        self.web = f"dicomweb+{self.url}/dicom-web"
        self.session = requests.Session()
        self.session.trust_env = False
        configuration = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": self.aet,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowMove": True,
            "Plugins": [str(plugin)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "OverwriteInstances": False,
            "StableAge": 1,
            **settings,
        }
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "orthanc.json"
        self._file.write_text(json.dumps(configuration))
        self._log = folder / "orthanc.log"
        self._program = program
        self._process: subprocess.Popen | None = None

    def start(self) -> Orthanc:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen([str(self._program), str(self._file)], stdout=log, stderr=log)
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                if self.session.get(f"{self.url}/system", timeout=1).ok:
                    return self
            except requests.ConnectionError:
                pass
            if self._process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"Orthanc has not started: {self._log.read_text()[-2000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()  # its ordinary end takes seconds
            self._process.wait(20)
            self._process = None

    def get(self, path: str) -> Any:
        answer = self.session.get(self.url + path, timeout=20)
        answer.raise_for_status()
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = self.session.post(self.url + path, data=body if isinstance(body, bytes) else json.dumps(body), timeout=60)
        answer.raise_for_status()
        return answer.json()

    def upload(self, files: list[Path]) -> None:
        for file in files:
            self.post("/instances", file.read_bytes())

    def know(self, aet: str, port: int) -> None:
        """Register another application entity."""
        self.session.put(
            f"{self.url}/modalities/{aet}", json={"AET": aet, "Host": "127.0.0.1", "Port": port}, timeout=20
        ).raise_for_status()

    def study(self, uid: str) -> str:
        """Orthanc's own id of a study."""
        (found,) = self.post("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": uid}})
        return str(found)

    def send_study(self, uid: str, aet: str) -> None:
        """Let Orthanc send a study to a modality by C-STORE."""
        self.post(f"/modalities/{aet}/store", {"Resources": [self.study(uid)], "Synchronous": True})

    def headers(self, uid: str) -> list[dict[str, Any]]:
        """The tags of all instances of a study; empty where there is none."""
        if not self.post("/tools/find", {"Level": "Study", "Query": {"StudyInstanceUID": uid}}):
            return []
        found = self.get(f"/studies/{self.study(uid)}/instances")
        return [self.get(f"/instances/{one['ID']}/simplified-tags") for one in found]

    def clear(self) -> None:
        for one in self.get("/studies"):
            self.session.delete(f"{self.url}/studies/{one}", timeout=20).raise_for_status()
        for one in self.get("/modalities"):
            self.session.delete(f"{self.url}/modalities/{one}", timeout=20).raise_for_status()
