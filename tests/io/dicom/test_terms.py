"""Every code of the table is one of the standard's, or one of those listed here; names of the field's classes find what they mean."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest
from pydicom.sr._concepts_dict import concepts

from medseg.dataset import LabelClass, Labels
from medseg.io.dicom.settings import DicomSettings, SegmentTerms, Term
from medseg.io.dicom.terms import BILATERAL, CATEGORIES, LEFT, PARTS, RIGHT, UNKNOWN, _words, class_terms, terms_of, unknown_classes

# Not in the dictionary of DICOM's own context groups; as TotalSegmentator's published table of SNOMED CT codes has them, and the last
# three as FHIR value sets do.
ELSEWHERE = {
    **{code: f"{name} rib" for code, name in zip(
        ["48535007", "78247007", "25888004", "25523003", "15339008", "59558009", "24915002", "5953002", "22565002", "77644006", "58830002", "43993008"],
        ["First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth", "Eleventh", "Twelfth"], strict=True)},
    "65985001": "S1 vertebra", "244849004": "Deep muscle of back", "181674001": "Gluteus maximus muscle",
    "78333006": "Gluteus medius muscle", "75297007": "Gluteus minimus muscle", "68455001": "Iliopsoas muscle",
    "110765007": "Portal vein and splenic vein", "3572006": "Vertebral body", "28641004": "Phalanx structure",
    "68786006": "Auricular appendage", "74281007": "Myocardium", "67769002": "Subcutaneous fatty tissue", "47351003": "Infiltrate",
    "360499006": "Intervertebral disc", "55641003": "Infarct",
}  # fmt: skip
TOTAL_NAMES = """
spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left lung_upper_lobe_left
lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel
duodenum colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum heart aorta pulmonary_vein brachiocephalic_trunk
subclavian_artery_right subclavian_artery_left common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left
brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein iliac_artery_left
iliac_artery_right iliac_vena_left iliac_vena_right humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right
femur_left femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right
gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left iliopsoas_right brain skull sternum
costal_cartilages lung_left lung_right vertebrae intervertebral_discs fibula tibia quadriceps_femoris_left thigh_medial_compartment_right
sartorius_left
"""
TOTAL = TOTAL_NAMES.split()
TOTAL += [
    f"vertebrae_{v}" for v in ["S1", *(f"L{n}" for n in range(1, 6)), *(f"T{n}" for n in range(1, 13)), *(f"C{n}" for n in range(1, 8))]
]
TOTAL += [f"rib_{side}_{n}" for side in ("left", "right") for n in range(1, 13)]


def _rows() -> list[dict[str, str]]:
    return list(csv.DictReader((files("medseg.io.dicom") / "terms.csv").read_text(encoding="utf-8").splitlines()))


def _meanings(scheme: str, code: str) -> set[str]:
    return {items[code][0] for items in concepts[scheme].values() if code in items}


def test_every_code_means_what_the_table_says() -> None:
    wrong = []
    for row in _rows():
        known = _meanings(row["scheme"], row["code"]) or {ELSEWHERE.get(row["code"], "")}
        if row["meaning"] not in known:
            wrong.append((row, known))
    assert not wrong
    for term in (*CATEGORIES.values(), UNKNOWN.type, LEFT, RIGHT, BILATERAL, *PARTS.values()):
        assert term.meaning in _meanings("SCT", term.value), term


def test_no_name_stands_for_two_things() -> None:
    found: dict[frozenset[str], str] = {}
    for row in _rows():
        for name in row["names"].split(","):
            assert found.setdefault(_words(name), row["code"]) == row["code"], name


@pytest.mark.parametrize("name", TOTAL)
def test_classes_of_totalsegmentator_are_known_with_their_side(name: str) -> None:
    terms = terms_of(name)
    assert terms is not None
    side = None if terms.modifier is None else terms.modifier.meaning.lower()
    told = next((word for word in ("left", "right") if word in name), None)
    in_meaning = told is not None and told in terms.type.meaning.lower()
    assert in_meaning or side == told


@pytest.mark.parametrize(
    ("name", "code", "region", "side"),
    [
        ("Left Kidney", "64033007", None, "Left"),
        ("kidneys_r", "64033007", None, "Right"),
        ("Lt. Kidney", "64033007", None, "Left"),
        ("KidneyRight", "64033007", None, "Right"),
        ("left and right kidney", "64033007", None, "Bilateral"),
        ("rib_right_12", "43993008", None, "Right"),
        ("vertebrae_T10", "7610001", None, None),
        ("lung_middle_lobe_right", "72481006", None, None),
        ("LV", "87878005", None, None),
        ("RV cavity", "53085002", None, None),
        ("left atrium", "82471001", None, None),
        ("oesophagus", "32849002", None, None),
        ("postcava", "64131007", None, None),
        ("hippocampus anterior", "5366008", None, "Anterior"),
        ("TZ", "399384005", None, None),
        ("Liver tumours", "108369006", "10200004", None),
        ("renal tumor", "108369006", "64033007", None),
        ("kidney_cyst_left", "367643001", "64033007", "Left"),
        ("colon cancer primaries", "372087000", "71854001", None),
        ("hepatic vessels", "59820001", "10200004", None),
        ("hepatic vein", "8993003", None, None),
        ("left lung nodule", "27925004", "39607008", "Left"),
        ("enhancing tumour", "C113842", None, None),
        ("non-enhancing tumor", "C81175", None, None),
        ("edema", "79654002", None, None),
        ("whole tumor", "108369006", None, None),
        ("hip_implant", "40388003", "29836001", None),
    ],
)
def test_names_of_the_field(name: str, code: str, region: str | None, side: str | None) -> None:
    terms = terms_of(name)
    assert terms is not None
    assert (terms.type.value, terms.region and terms.region.value, terms.modifier and terms.modifier.meaning) == (code, region, side)


def test_what_the_model_is_about_helps() -> None:
    assert terms_of("Anterior") is None
    found = terms_of("Anterior", context="Task04_Hippocampus")
    assert found is not None
    assert (found.type.meaning, found.modifier) == ("Hippocampus", PARTS["anterior"])
    tumour = terms_of("cancer", context="Pancreas")
    assert tumour is not None
    assert tumour.region == Term(value="15776009", meaning="Pancreas")
    assert terms_of("liver", context="Pancreas") == terms_of("liver")


def test_unknown_classes_are_some_tissue_and_told() -> None:
    labels = Labels(
        classes=(LabelClass(name="liver", values=(1,)), LabelClass(name="blob", values=(2,)), LabelClass(name="x", values=(3,)))
    )
    terms = class_terms(labels, DicomSettings())
    assert terms["blob"].type == UNKNOWN.type
    assert len({one.color for one in terms.values()}) == 3
    (problem,) = unknown_classes(labels, DicomSettings())
    assert problem.where == "'blob', 'x'"
    assert "2 classes" in problem.what
    assert "dicom.json" in problem.fix
    chosen = DicomSettings(
        classes={"blob": SegmentTerms(category=CATEGORIES["object"], type=Term(value="65818007", meaning="Stent"), color=(1, 2, 3))}
    )
    assert class_terms(labels, chosen)["blob"] == chosen.classes["blob"]
    (problem,) = unknown_classes(labels, chosen)
    assert problem.where == "'x'"


def test_the_example_of_the_warning_is_valid() -> None:
    labels = Labels(classes=(LabelClass(name='odd "name"', values=(1,)),))
    (problem,) = unknown_classes(labels, DicomSettings())
    text = problem.fix[problem.fix.index("{") :].removesuffix(".")
    settings = DicomSettings.model_validate_json(text)
    assert list(settings.classes) == ['odd "name"']


def test_colours_are_distinct_for_any_number_of_classes() -> None:
    labels = Labels(classes=tuple(LabelClass(name=name, values=(k + 1,)) for k, name in enumerate(TOTAL)))
    terms = class_terms(labels, DicomSettings())
    assert len({one.color for one in terms.values()}) == len(TOTAL)
    assert terms["liver"].color == (221, 130, 101)


def test_unknown_classes_are_told_though_their_defaults_are_written_out():
    labels = Labels(classes=(LabelClass(name="liver", values=(1,)), LabelClass(name="zork", values=(2,))))
    written = DicomSettings(classes=class_terms(labels, DicomSettings()))
    assert [problem.where for problem in unknown_classes(labels, written)] == ["'zork'"]
    assert unknown_classes(labels, written) == unknown_classes(labels, DicomSettings())
