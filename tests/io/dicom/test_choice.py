"""Which series serves as which channel, and what is said where that is not clear."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.dataset import Channel, Modality
from medseg.errors import PlanError, Problem, UsageError
from medseg.geometry import Grid
from medseg.io.dicom.choice import choose, rate
from medseg.io.dicom.rules import rules_of, settings_of, with_series
from medseg.io.dicom.settings import NOTHING_CHOSEN, DicomSettings, SeriesRule
from medseg.io.dicom.volume import Frame, Series, Source, Volume

FRAME = Frame(Source(Path("/d/1.dcm")), "class", "uid")


def volume(description, modality="MR", number=1, world="w", study="s", kind="ORIGINAL\\PRIMARY", **more):
    fields = {"ndim": 3, "times": 1, "errors": (), "sequence": "", "protocol": "", "samples": 1, "weights": ()} | more
    series = Series(f"{study}{number}", study, world, modality, number, description, fields["protocol"], fields["sequence"], "", kind)
    return Volume(
        key=f"{number or 9:016x}",
        folder=Path("/d"),
        series=series,
        grid=Grid.plain((4,) * fields["ndim"]),
        spaced=True,
        frames=((FRAME,),) * fields["times"],
        samples=fields["samples"],
        errors=fields["errors"],
        weights=fields["weights"],
    )


def channels(*names, modality=Modality.mr):
    return tuple(Channel(name=name, modality=modality) for name in names)


def chosen(volumes, wanted, settings=NOTHING_CHOSEN, ndim=3):
    (study,) = choose(volumes, wanted, rules_of(wanted, settings), ndim)
    return study


MR = (
    "t1_mprage_sag", "AX T1 POST GD", "AXT1 +C", "t2_tse_tra", "T2 FLAIR axial", "AX T1 FLAIR", "ep2d_diff_tra_ADC", "ep2d_diff_tra_CALC_BVAL",
    "ep2d_diff_tra", "DWI b1000", "t2*_gre", "SWI_Images", "localizer", "PD_tse", "t2_trufi_survey",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("T1", {"t1_mprage_sag", "AX T1 FLAIR"}),
        ("MR_T1w", {"t1_mprage_sag", "AX T1 FLAIR"}),
        ("T1ce", {"AX T1 POST GD", "AXT1 +C"}),
        ("t1gd", {"AX T1 POST GD", "AXT1 +C"}),
        ("T1 post contrast", {"AX T1 POST GD", "AXT1 +C"}),
        ("T2", {"t2_tse_tra"}),
        ("T2W", {"t2_tse_tra"}),
        ("FLAIR", {"T2 FLAIR axial"}),
        ("t2-flair", {"T2 FLAIR axial"}),
        ("ADC", {"ep2d_diff_tra_ADC"}),
        ("HBV", {"ep2d_diff_tra_CALC_BVAL", "DWI b1000"}),
        ("DWI", {"ep2d_diff_tra_CALC_BVAL", "ep2d_diff_tra", "DWI b1000"}),
        ("SWI", {"t2*_gre", "SWI_Images"}),
        ("PD", {"PD_tse"}),
        ("MRI", set(MR) - {"localizer", "t2_trufi_survey"}),
    ],
)
def test_names_of_channels_find_series(name, expected):
    wanted = channels(name)
    rules = rules_of(wanted, NOTHING_CHOSEN)
    volumes = [volume(text, number=i) for i, text in enumerate(MR)]
    assert {v.series.description for v in volumes if rate(v, name, rules[name]).score} == expected
    assert not rate(volume(MR[0], modality="CT"), name, rules[name]).score


def test_contrast_agent_in_the_header():
    pre, post = volume("t1_tse", number=1), volume("t1_tse", number=2, sequence="SE Gadovist")
    assert chosen([pre, post], channels("T1", "T1ce")).cases == ((pre, post),)


def test_modalities_of_names_where_the_dataset_does_not_say():
    wanted = channels("CT", "PET", "MR_T1", modality=Modality.other)
    rules = rules_of(wanted, NOTHING_CHOSEN)
    assert [rules[c.name].modality for c in wanted] == [("CT",), ("PT",), ("MR",)]
    ct, pet, nac, mr = volume("abdomen", "CT", 1), volume("WB AC", "PT", 2), volume("WB NAC", "PT", 3), volume("t1_vibe", number=4)
    study = chosen([ct, nac, pet, mr], wanted)
    assert study.cases == ((ct, pet, mr),)
    assert study.told(pet) == "serves as PET"
    assert study.told(nac) == "CT: is PT, not CT; PET: its texts hold 'NAC'; MR_T1: is PT, not MR"


def test_one_channel_takes_every_volume_that_serves():
    volumes = [volume("thorax", "CT", 1), volume("abdomen", "CT", 2), volume("Topogram", "CT", 3), volume("x", "MR", 4)]
    study = chosen(volumes, channels("CT", modality=Modality.ct))
    assert study.cases == ((volumes[0],), (volumes[1],))
    assert study.told(volumes[2]) == "its texts hold 'Topogram'"
    assert study.told(volumes[3]) == "is MR, not CT"
    assert not study.problems


def test_as_acquired_before_derived():
    derived, acquired = volume("t2_tse MPR", number=1, kind="DERIVED\\SECONDARY\\MPR"), volume("t2_tse", number=2)
    adc = volume("ADC", number=3, kind="DERIVED\\PRIMARY")
    assert chosen([derived, acquired, adc], channels("T2", "ADC")).cases == ((acquired, adc),)


def test_ambiguity_is_an_error_that_says_what_to_write():
    volumes = [volume("t2_tse_tra", number=4), volume("t2_tse_sag", number=5), volume("ADC", number=7)]
    wanted = channels("T2", "ADC")
    study = chosen(volumes, wanted)
    assert not study.cases
    (problem,) = study.problems
    assert str(problem) == (
        "/d: several series could serve as channel 'T2'; found series 4 't2_tse_tra' (MR, 4 x 4 x 4, 0000000000000004), series 5 't2_tse_sag' "
        "(MR, 4 x 4 x 4, 0000000000000005), expected one. Say which one with a rule in dicom.json of the model (`medseg dicom`), or for one "
        "call of `medseg predict` with --series 'T2=4' (number of the series), 'T2=0000000000000004' (one volume) or 'T2=PATTERN' (a regular "
        "expression for its description)."
    )
    (problem,) = chosen([volume("t2_a", number=None), volume("t2_b", number=5), volumes[2]], wanted).problems
    assert "--series 'T2=0000000000000009' (one volume)" in problem.fix
    for said in ("T2=5", "T2=sag", "T2=0000000000000005"):
        assert chosen(volumes, wanted, with_series(NOTHING_CHOSEN, [said], wanted)).cases == ((volumes[1], volumes[2]),)
    rule = DicomSettings(series={"T2": SeriesRule(modality=("MR",), include=("t2", "tra|ax"))})
    assert chosen(volumes, wanted, rule).cases == ((volumes[0], volumes[2]),)


def test_a_channel_that_is_missing():
    study = chosen([volume("t2_tse", number=1), volume("loc", number=2, times=3)], channels("T2", "ADC"))
    (problem,) = study.problems
    assert problem.what == "no series serves as channel 'ADC'"
    assert "(MR, 4 x 4 x 4, 0000000000000001): its texts do not say 'adc(?![a-z])|apparent.?diff'" not in problem.found
    assert "its texts do not say that it is ADC" in problem.found
    assert "is a time series of 3 volumes, and a channel is one" in problem.found


def test_frames_of_reference_are_kept_apart():
    t2, adc, other = volume("t2", number=1, world="a"), volume("adc", number=2, world="b"), volume("t2 again", number=3, world="b")
    (problem,) = chosen([t2, adc], channels("T2", "ADC")).problems
    assert problem.what == "the series that serve lie in different frames of reference, so where one lies in the other is not known"
    assert chosen([t2, adc, other], channels("T2", "ADC")).cases == ((other, adc),)


def test_studies_are_kept_apart():
    volumes = [volume(text, number=i, study=study) for study in "ab" for i, text in enumerate(("t2", "adc"))]
    wanted = channels("T2", "ADC")
    studies = choose(volumes, wanted, rules_of(wanted, NOTHING_CHOSEN))
    assert [study.cases for study in studies] == [((volumes[0], volumes[1]),), ((volumes[2], volumes[3]),)]


def test_what_does_not_serve_and_why():
    rule = SeriesRule(modality=("CT",), number=3)
    broken = volume("x", "CT", 3, errors=(Problem("a slice is missing"),))
    assert rate(broken, "CT", rule).reason == "cannot be used: a slice is missing"
    assert rate(volume("x", "CT", 3, ndim=2), "CT", rule, 3).reason == "is 2D, and the model takes 3D"
    assert rate(volume("x", "CT", 3, samples=3), "CT", rule).reason == "has 3 values per voxel"
    assert rate(volume("x", "CT", 2), "CT", rule).reason == "is series 2, not 3"
    assert rate(volume("x", "", 3), "CT", rule).reason == "is of no modality, not CT"
    assert rate(volume("x", "CT", 3), "CT", rule).reason == "as acquired"


def test_a_diffusion_weighting_is_chosen_by_its_b_value():
    """Of a series with several, by number, pattern or alone; never one that several volumes share, and never for another b."""
    wanted = channels("HBV")
    series = volume("ep2d_diff", number=5, times=4, weights=(0.0, 50.0, 800.0, 800.0))
    single = volume("ep2d_diff b50", number=6, weights=(50.0,))

    def taken(text):
        study = chosen([series, single], wanted, with_series(NOTHING_CHOSEN, [text], wanted))
        return [case[0].key for case in study.cases], {v.key: study.told(v) for v in study.volumes}

    part = f"{series.key}_b50"
    assert taken("HBV=5@b50")[0] == [part]
    assert taken("HBV=ep2d@b50")[0] == taken("@b50")[0] == [part, single.key]
    assert taken(f"HBV={series.key}@b50")[0] == [part]
    keys, told = taken("HBV=@b800")
    assert keys == []
    assert told[series.key] == "is a time series of 4 volumes, 2 of them with b = 800, and a channel is one"
    assert told[single.key] == "has b = 50, not b = 800"
    assert taken("HBV=@b1000")[1][series.key] == "is a time series of 4 volumes, none of them with b = 1000, and a channel is one"
    assert taken("HBV=5")[0] == []
    plain = volume("t2_tse", number=7)
    assert chosen([plain], wanted, with_series(NOTHING_CHOSEN, ["@b50"], wanted)).told(plain) == "has no b value, not b = 50"


def test_what_is_damaged_and_would_serve_is_a_case_that_fails():
    wanted, broken = channels("T2"), (Problem("misses slices"),)
    good, bad, other = (volume("t2_tse", number=n, errors=e) for n, e in ((1, ()), (2, broken), (3, broken)))
    study = chosen([good, bad, volume("t1_mprage", number=4, errors=broken)], wanted)
    assert (study.cases, study.damaged) == (((good,),), ((bad,),))
    both = channels("T2", "ADC")
    adc = volume("ep2d_ADC", number=5)
    assert chosen([bad, adc], both).damaged == ((bad, adc),)
    assert chosen([bad, adc], both).problems[0].what == "no series serves as channel 'T2'"
    assert chosen([good, other, adc], both).damaged == ()


def test_an_image_in_colour_holds_all_channels():
    wanted = tuple(Channel(name=name, modality=Modality.rgb) for name in ("red", "green", "blue"))
    photo, gray = volume("", "XC", 1, ndim=2, samples=3), volume("", "XC", 2, ndim=2)
    study = chosen([photo, gray], wanted, ndim=2)
    assert study.cases == ((photo,),)
    assert study.told(photo) == "serves as red, green, blue"


def test_channels_without_a_known_name_are_told_apart_by_their_words():
    a, b = volume("in phase dixon", number=1), volume("opp phase dixon", number=2)
    assert chosen([a, b], channels("in", "opp")).cases == ((a, b),)
    study = chosen([a, b], channels("channel_0", "channel_1"))
    assert len(study.problems) == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["T3=1"], "--series: the model has no channel 'T3'; found 'T3=1', expected CHANNEL=SERIES with one of T1, T2."),
        (["T1"], "--series: no channel of the model; found 'T1', expected CHANNEL=SERIES with one of T1, T2"),
        (["T1=1", "T1=2"], "--series: a channel is given twice; found 'T1=2', expected each channel once"),
        (["T1=("], "--series: not a regular expression; found 'T1=('. Mend it: missing ), unterminated subpattern at position 0."),
    ],
)
def test_series_on_the_command_line(texts, message):
    with pytest.raises(UsageError) as caught:
        with_series(NOTHING_CHOSEN, texts, channels("T1", "T2"))
    assert str(caught.value).startswith(message)


def test_a_model_of_one_channel_needs_no_name():
    wanted = channels("T2")
    assert with_series(NOTHING_CHOSEN, ["3"], wanted).series == {"T2": SeriesRule(number=3)}
    with pytest.raises(UsageError, match="the model has no channel 'XX'; found 'XX=1', expected CHANNEL=SERIES with one of T2"):
        with_series(NOTHING_CHOSEN, ["XX=1"], wanted)
    assert with_series(NOTHING_CHOSEN, ["b=1000"], wanted).series == {"T2": SeriesRule(include=("b=1000",))}
    assert with_series(NOTHING_CHOSEN, ["T2=tse"], wanted).series == {"T2": SeriesRule(include=("tse",))}


def test_names_that_the_model_does_not_have(tmp_path):
    file = tmp_path / "dicom.json"
    assert settings_of(file, channels("T1"), ("liver",)) is NOTHING_CHOSEN
    file.write_text(
        '{"series": {"T11": {}}, "classes": {"lever": {"category": {"value": "1", "meaning": "x"}, "type": {"value": "1", "meaning": "x"}}}}'
    )
    with pytest.raises(PlanError) as caught:
        settings_of(file, channels("T1"), ("liver",))
    assert [(p.what, p.found, p.fix) for p in caught.value.problems] == [
        ("the model has no such channel", "'T11'", "Did you mean 'T1'?"),
        ("the model has no such class", "'lever'", "Did you mean 'liver'?"),
    ]
    file.write_text('{"series": {"T1": {"include": ["("]}}}')
    with pytest.raises(PlanError, match="is no regular expression"):
        settings_of(file, channels("T1"), ("liver",))
