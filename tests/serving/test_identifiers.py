"""What is hidden of a reason, and what is not."""

from __future__ import annotations

from medseg.serving.privacy import without_identifiers


def test_values_of_headers_are_hidden(make_study):
    files = make_study("x", slices=1, SeriesDescription="T2 sag Meier", StudyID="17", BodyPartExamined="BRAIN")
    text = "series 'T2 sag Meier' (MR, 12 x 10) of planted, Zebulon Planted^Zebulon, 2.25.9901 and PLANTED47 on 20200102, 17 slices, BRAIN"
    told = without_identifiers(text, files[0].parent)
    assert told == "series '[...]' (MR, 12 x 10) of [...], [...] [...], 2.25.9901 and PLANTED47 on [...], [...] slices, BRAIN"
    assert without_identifiers("1.2.840.10008.1.2.1 is unknown", files[0].parent) == "1.2.840.10008.1.2.1 is unknown"


def test_files_that_cannot_be_read_hide_nothing(tmp_path):
    (tmp_path / "a.dcm").write_bytes(b"no DICOM")
    assert without_identifiers("a text", tmp_path) == "a text"
