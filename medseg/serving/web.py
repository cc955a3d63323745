"""DICOMweb: QIDO-RS, WADO-RS and STOW-RS. Errors never name a UID or a person."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import requests
from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread
from pydicom.errors import InvalidDicomError
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from medseg.errors import Problem, UsageError
from medseg.progress import Progress
from medseg.record import write_atomic
from medseg.serving.archive import Archive, Place, RejectedError, UnreachableError, instance_file

TIMEOUT = (10.0, 120.0)  # seconds for a connection, and for each piece of an answer
AGAIN = Retry(3, status_forcelist=(429, 502, 503, 504), backoff_factor=0.2, allowed_methods=None, raise_on_status=False)
SERIES, INSTANCE = "0020000E", "00080018"


class Web(Archive):
    """An archive behind a DICOMweb address."""

    def __init__(self, base: str, place: Place, authorization: str = "") -> None:
        """An archive at `base`, for example `https://pacs/dicom-web`; nothing is asked yet.

        Args:
            base: address of the services.
            place: study or series.
            authorization: value of the header of that name; empty leaves it to a `.netrc` file.

        Raises:
            UsageError: no such address can be.
        """
        address = urlsplit(base)
        if address.username or address.password:
            raise UsageError.of(
                "names and passwords do not belong on the command line",
                where="dicomweb+http address",
                fix="Use a .netrc file, or --authorization-from with the name of an environment variable.",
            )
        self.place = place
        self.name = f"{address.scheme}://{address.netloc}{address.path}"
        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=AGAIN))
        if authorization:
            session.auth = _Header(authorization)
        try:
            self._client = DICOMwebClient(base, session=session, timeout=TIMEOUT, permissive_uid=True)
        except ValueError:
            raise UsageError.of(
                "not an address of DICOMweb services", where=self.name, expected="dicomweb+http(s)://host[:port]/path"
            ) from None
        # The session tries again; the client would log addresses, with UIDs, whenever it does.
        self._client.set_http_retry_params(retry=False)

    def fetch(self, folder: Path, progress: Progress) -> tuple[Path, ...]:
        """See `Archive.fetch`."""
        with self._asking("QIDO-RS"):
            found = self._client.search_for_instances(self.place.study, self.place.series or None, get_remaining=True)
        instances = [(_value(one, SERIES) or self.place.series, _value(one, INSTANCE)) for one in found]
        if not instances:
            raise self.nothing()
        files = []
        for series, instance in progress.track(instances, len(instances), "download"):
            file = instance_file(folder, instance)
            if not file.is_file():
                with self._asking("WADO-RS"):
                    data = self._client.retrieve_instance(self.place.study, series, instance)
                write_atomic(file, partial(data.save_as, enforce_file_format=True))
            files.append(file)
        return tuple(files)

    def send(self, files: Sequence[Path], progress: Progress) -> None:
        """See `Archive.send`. One request per object, so that each is answered for itself."""
        refused: dict[str, int] = defaultdict(int)
        for file in progress.track(files, len(files), "store"):
            data = dcmread(file)
            try:
                with self._asking("STOW-RS"):
                    answer = self._client.store_instances([data], study_instance_uid=data.StudyInstanceUID)
            except RejectedError as error:
                refused[error.problems[0].found] += 1
                continue
            for item in answer.get("FailedSOPSequence", []):
                refused[f"failure reason 0x{int(item.get('FailureReason', 0)):04X}"] += 1
        if refused:
            raise RejectedError(
                Problem(f"{count} of {len(files)} objects were refused", self.name, why, fix="See the log of that system.")
                for why, count in refused.items()
            )

    @contextmanager
    def _asking(self, service: str) -> Iterator[None]:
        """Errors of HTTP as errors of ours."""
        try:
            yield
        except requests.HTTPError as error:
            response = cast(requests.Response, error.response)
            status = response.status_code
            if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                fix = "Check the .netrc file or --authorization-from."
            else:
                fix = "Check the address; see the log of that system."
            raise RejectedError.of(f"{service} was refused", where=self.name, found=_status(status, response), fix=fix) from None
        except requests.RequestException as error:
            raise UnreachableError.of(f"{service} does not answer", where=self.name, found=type(error).__name__) from None
        except (ValueError, KeyError, IndexError, InvalidDicomError) as error:
            raise RejectedError.of(f"the answer of {service} cannot be understood", where=self.name, found=type(error).__name__) from None


class _Header(requests.auth.AuthBase):
    """A given header, also where a `.netrc` file knows the host."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request


def _status(status: int, response: requests.Response) -> str:
    """The status of an answer in words; STOW-RS says more in a data set."""
    try:
        items = Dataset.from_json(response.json()).get("FailedSOPSequence", [])
        reasons = {f"failure reason 0x{int(item.FailureReason):04X}" for item in items}
    except (ValueError, AttributeError, TypeError, KeyError):
        reasons = set()
    words = f"HTTP {status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else f"HTTP {status}"
    return ", ".join([words, *sorted(reasons)])


def _value(found: dict, tag: str) -> str:
    values = found.get(tag, {}).get("Value", [""])
    return str(values[0])
