"""Studies fetched from a real Orthanc, and results stored there."""

from __future__ import annotations

from pathlib import Path

import pytest
from nodes import study_of
from orthanc import free_port
from pydicom import dcmread
from pydicom.uid import RLELossless

from medseg.errors import MedsegError, UsageError
from medseg.progress import Silent
from medseg.serving.archive import RejectedError, UnreachableError
from medseg.serving.ledger import digest
from medseg.serving.remote import Remote, authorization_from, is_remote, open_archive
from medseg.serving.retrieval import Entity

pytestmark = pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")  # pynetdicom lets go of one that cannot connect


class Counting(Silent):
    """Counts what is asked for."""

    def __init__(self) -> None:
        self.updates: list[tuple[str, float, float]] = []

    def update(self, what, done, total, note="", seconds=False):
        self.updates.append((what, done, total))

    def track(self, items, total, what):
        for done, item in enumerate(items, 1):
            yield item
            self.update(what, done, total)


def address(kind: str, orthanc, uid: str, port: int | None = None) -> str:
    move = f"?move_port={port}" if port else ""
    return f"{orthanc.web}/studies/{uid}" if kind == "web" else f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom}/{uid}{move}"


def same(files, fetched) -> bool:
    ours = {dcmread(file).SOPInstanceUID: dcmread(file) for file in files}
    theirs = {dcmread(file).SOPInstanceUID: dcmread(file) for file in fetched}
    return ours.keys() == theirs.keys() and all(ours[uid].PixelData == theirs[uid].PixelData for uid in ours)


@pytest.mark.parametrize("kind", ["web", "get"])
def test_a_study_is_fetched_once(kind, orthanc, make_study, tmp_path):
    files = [*make_study("a", series="1"), *make_study("a", slices=2, series="2")]
    orthanc.upload(files)
    archive = open_archive(address(kind, orthanc, study_of(files)))
    progress = Counting()
    fetched = archive.fetch(tmp_path / "cache", progress)
    assert same(files, fetched)
    assert progress.updates[-1] == ("download", 5, 5)
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == sorted(path.name for path in fetched)
    assert not any("2.25" in path.name for path in fetched)

    kept = {path: path.stat().st_mtime_ns for path in fetched}
    fetched[1].unlink()  # as an interrupted download leaves it
    assert sorted(archive.fetch(tmp_path / "cache", Silent())) == sorted(fetched)
    assert [path for path in fetched if path.stat().st_mtime_ns != kept[path]] == [fetched[1]]


@pytest.mark.parametrize("kind", ["web", "get"])
def test_one_series_is_fetched_alone(kind, orthanc, make_study, tmp_path):
    first, second = make_study("b", series="1"), make_study("b", slices=2, series="2")
    orthanc.upload([*first, *second])
    series = dcmread(second[0]).SeriesInstanceUID
    place = f"{study_of(first)}/series/{series}" if kind == "web" else f"{study_of(first)}/{series}"
    assert same(second, open_archive(address(kind, orthanc, place)).fetch(tmp_path / "cache", Silent()))


def test_c_move_where_c_get_is_not_offered(orthanc, make_study, tmp_path, monkeypatch):
    files = make_study("c")
    orthanc.upload(files)
    monkeypatch.setattr(Entity, "_get", lambda self, missing, keep, into: False)
    with pytest.raises(UsageError, match=r"does not offer C-GET.*move_port"):
        open_archive(address("move", orthanc, study_of(files))).fetch(tmp_path / "cache", Silent())
    port = free_port()
    with pytest.raises(RejectedError, match="C-MOVE was refused"):  # Orthanc does not know us
        open_archive(address("move", orthanc, study_of(files), port)).fetch(tmp_path / "cache", Silent())
    orthanc.know("MEDSEG", port)
    assert same(files, open_archive(address("move", orthanc, study_of(files), port)).fetch(tmp_path / "cache", Silent()))


@pytest.mark.parametrize("kind", ["web", "get"])
def test_compressed_images_come_as_they_are_stored(kind, orthanc, make_study, tmp_path):
    files = make_study("d", slices=1)
    data = dcmread(files[0])
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(files[0])
    orthanc.upload(files)
    (fetched,) = open_archive(address(kind, orthanc, study_of(files))).fetch(tmp_path / "cache", Silent())
    assert dcmread(fetched).file_meta.TransferSyntaxUID == RLELossless
    assert dcmread(fetched).PixelData == dcmread(files[0]).PixelData


@pytest.mark.parametrize("kind", ["web", "get"])
def test_results_go_to_the_study_they_belong_to(kind, orthanc, make_study, tmp_path):
    one, other = make_study("e", slices=2), make_study("f", slices=2)
    orthanc.upload([one[0], other[0]])
    remote = Remote([address(kind, orthanc, study_of(one)), "elsewhere", address(kind, orthanc, study_of(other))])
    paths = remote.fetch(tmp_path / "cache", Silent())
    assert [len(list(path.glob("*.dcm"))) for path in paths] == [1, 0, 1]
    assert paths[1] == Path("elsewhere")
    assert [path.name for path in paths[::2]] == [f"pacs_{digest(study_of(files))[:12]}" for files in (one, other)]
    assert remote.send([one[1], other[1]], Silent()) == 2
    assert [len(orthanc.headers(study_of(files))) for files in (one, other)] == [2, 2]
    assert remote.send([one[1], *make_study("g", slices=1)], Silent()) == 1  # again: the same object
    assert len(orthanc.headers(study_of(one))) == 2


def test_stow_tells_of_each_object_that_is_refused(orthanc, make_study):
    good, bad = make_study("g", slices=2)
    data = dcmread(bad)
    del data.SOPInstanceUID
    data.save_as(bad)
    with pytest.raises(RejectedError) as caught:
        open_archive(address("web", orthanc, study_of([good]))).send([bad, good], Silent())
    assert "1 of 2 objects were refused" in str(caught.value)
    assert len(orthanc.headers(study_of([good]))) == 1


@pytest.mark.parametrize("kind", ["web", "get"])
def test_no_such_study(kind, orthanc, tmp_path):
    with pytest.raises(UsageError, match="holds no such study") as caught:
        open_archive(address(kind, orthanc, "1.2.3.4")).fetch(tmp_path, Silent())
    assert "1.2.3.4" not in str(caught.value)


def test_an_archive_that_does_not_answer(tmp_path):
    port = free_port()
    for text in (f"dicomweb+http://127.0.0.1:{port}/dicom-web/studies/1.2.3", f"dimse://PACS@127.0.0.1:{port}/1.2.3"):
        with pytest.raises(MedsegError, match=r"does not answer|no association") as caught:
            Remote([text]).fetch(tmp_path, Silent())
        assert "1.2.3" not in str(caught.value)
        with pytest.raises(UnreachableError):
            open_archive(text).fetch(tmp_path, Silent())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("dicomweb+http://me:secret@pacs/dicom-web/studies/1.2", "do not belong on the command line"),
        ("dicomweb+https://pacs/dicom-web", "not the address of a study"),
        ("dicomweb+https://pacs/dicom-web/studies/..", "does not end in a study"),
        ("dicomweb+https://pacs/dicom-web/studies/1.2/instances/1.3", "does not end in a study"),
        ("dimse://pacs:104/1.2", "not the address of an application entity"),
        ("dimse://PACS@pacs/1.2", "not the address of an application entity"),
        ("dimse://PACS@pacs:104/", "does not end in a study"),
        ("dimse://PACS@pacs:104/1.2?port=3", "unknown options"),
        ("dimse://PACS@pacs:104/1.2?ca=x.pem", "certificates are for encrypted connections"),
        ("dimse+tls://PACS@pacs:104/1.2?ca=missing.pem", "the certificates cannot be used"),
        ("dimse://A_TITLE_THAT_IS_TOO_LONG@pacs:104/1.2", "not an application entity title"),
    ],
)
def test_wrong_addresses(text, problem):
    assert is_remote(text)
    with pytest.raises(MedsegError, match=problem) as caught:
        open_archive(text)
    assert "secret" not in str(caught.value)


def test_what_is_an_address():
    assert not any(map(is_remote, ["folder", "C:\\images", "./dimse", "http://host/x.nii.gz"]))


def test_authorization_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("PACS_TOKEN", "abc")
    assert authorization_from("PACS_TOKEN") == "Bearer abc"
    monkeypatch.setenv("PACS_TOKEN", "Basic dTpw")
    assert authorization_from("PACS_TOKEN") == "Basic dTpw"
    monkeypatch.setenv("PACS_TOKEN", " ")
    with pytest.raises(UsageError, match="is empty"):
        authorization_from("PACS_TOKEN")


def test_a_study_comes_from_one_system():
    with pytest.raises(UsageError, match="a study is given from two systems"):
        Remote(["dicomweb+http://one/dw/studies/1.2", "dimse://TWO@two:104/1.2"])
    Remote(["dicomweb+http://one/dw/studies/1.2/series/1.3", "dicomweb+http://one/dw/studies/1.2/series/1.4", "dimse://TWO@two:104/1.5"])
