"""What looks wrong in a data set and is named, by cases that were made so."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from unetseg.cases import find_cases
from unetseg.oddities import describe_checked
from unetseg.preprocessing import Preprocessor
from unetseg.survey import look_through

IDS = [f"c{k}" for k in range(10)]
PLAIN = {"shape": (40, 40, 40), "spacing_mm": (1.0, 1.0, 1.0), "labels": (1, 2), "group": None}
FACT = {"most_in_void": 0.0, "voxels": {1: 9, 2: 9}, "sides": {1: -0.4, 2: 0.4}}


def survey(rows=None, facts=None):
    """Ten cases without anything odd, but for what is given of some."""
    table = pd.DataFrame([{"case": i, **PLAIN, **(rows or {}).get(i, {})} for i in IDS])
    told = [{**FACT, **(facts or {}).get(i, {})} for i in IDS]
    samples = {i: SimpleNamespace(digest=f"scan {i}") for i in IDS}
    masks = {i: f"mask {i}" for i in IDS}
    return SimpleNamespace(table=table, facts=told, samples=samples, masks=masks)


def warn(*args):
    said, *warnings = describe_checked(*args)
    assert said.startswith("No problem found in 10 cases.")
    assert all(line.startswith("WARNING: ") for line in warnings)
    return [line.removeprefix("WARNING: ") for line in warnings]


def test_of_usual_cases_nothing_is_said():
    assert warn(survey()) == []
    assert warn(survey(), {1: "liver", 2: "spleen"}) == []


def test_empty_masks_are_named():
    said, *warnings = describe_checked(survey({"c4": {"labels": ()}}))
    assert said.endswith("1 masks are empty, taken for those of controls: c4.")
    assert warnings == []


def test_a_label_that_is_declared_and_in_no_mask_is_named():
    declared = {1: "liver", 2: "spleen", 3: "tumour", 4: "ignore"}
    (line,) = warn(survey(), declared)
    assert line.startswith("no mask holds tumour (3)")


@pytest.mark.parametrize("declared", [{}, {1: "left", 255: "right"}])
def test_one_structure_under_two_values_is_asked_about_unless_they_are_declared(declared):
    rows = {i: {"labels": (255,) if k % 2 else (1,)} for k, i in enumerate(IDS)}
    told = warn(survey(rows), declared)
    assert len(told) == (not declared)
    assert all("1 (in 5) or 255 (in 5)" in line for line in told)


@pytest.mark.parametrize(
    ("row", "size"),
    [
        ({"spacing_mm": (20.0, 20.0, 20.0)}, "voxels of 20 x 20 x 20 mm make it 800 x 800 x 800"),
        ({"spacing_mm": (0.1, 0.1, 0.1)}, "voxels of 0.1 x 0.1 x 0.1 mm make it 4 x 4 x 4 mm"),
        (
            {"spacing_mm": (1e3, 1e3, 1e3)},
            "voxels of 1,000 x 1,000 x 1,000 mm make it 40,000 x 40,000 x 40,000 mm, 1,000 times",
        ),
    ],
)
def test_a_scan_of_quite_another_size_is_asked_for_its_unit(row, size):
    (line,) = warn(survey({"c3": row}))
    assert line.startswith(f"c3: {size}")
    assert "unit" in line


def test_a_slice_or_a_scan_of_twice_the_size_is_usual():
    assert warn(survey({"c3": {"shape": (80, 80, 80)}, "c4": {"shape": (40, 40, 1)}})) == []


def test_slices_across_another_axis_are_named():
    thick, other = {"spacing_mm": (1.0, 1.0, 6.0)}, {"spacing_mm": (6.0, 1.0, 1.0)}
    rows = dict.fromkeys(IDS, thick) | {"c2": other, "c7": other}
    (line,) = warn(survey(rows))
    assert line.startswith("thick slices lie across z in most scans, across another axis in c2, c7")
    assert warn(survey(dict.fromkeys(IDS, thick))) == []
    assert warn(survey(dict.fromkeys(IDS[:4], thick))) == []  # the others have none
    assert warn(survey({"c2": thick, "c7": other})) == []


def test_a_mask_in_the_air_is_named_unless_many_lie_there():
    (line,) = warn(survey(facts={"c5": {"most_in_void": 0.97}}))
    assert line.startswith("c5: 97% of a label lies where the scan has no signal")
    assert warn(survey(facts={"c5": {"most_in_void": 0.3}})) == []
    lungs, control = {"most_in_void": 0.9}, {"voxels": {}, "sides": {}}
    assert warn(survey(facts=dict.fromkeys(IDS, lungs))) == []
    of_few = dict.fromkeys(IDS, control) | dict.fromkeys(IDS[:4], lungs)
    assert warn(survey(facts=of_few)) == []


def test_left_and_right_exchanged_in_one_case_are_named_once():
    swapped = {"sides": {1: 0.4, 2: -0.4}}
    (line,) = warn(survey(facts={"c6": swapped}))
    assert line.startswith("c6: labels 1, 2 lie on the other side than in the others")
    assert warn(survey(facts=dict.fromkeys(IDS[:4], swapped))) == []  # no side is the usual one
    assert warn(survey(facts={"c6": {"sides": {1: 0.01, 2: -0.01}}})) == []  # about the middle
    assert warn(survey(facts={"c6": {"sides": {1: 0.4}}})) == []  # alone it has no side
    controls = {"voxels": {}, "sides": {}}
    assert warn(survey(facts=dict.fromkeys(IDS, controls))) == []


def test_one_label_of_several_on_another_side_is_no_exchange():
    facts = {i: {"sides": {1: -0.4, 2: 0.4, 3: 0.3}} for i in IDS}
    facts["c6"] = {"sides": {1: -0.4, 2: 0.4, 3: -0.3}}
    assert warn(survey(facts=facts)) == []


def test_one_mask_on_two_scans_is_named_and_one_scan_under_two_names_is_not():
    rows = {"c1": {"group": "p"}, "c8": {"group": "p"}}
    seen, of_one_patient = survey(), survey(rows)
    for one in (seen, of_one_patient):
        one.masks["c8"] = one.masks["c1"]
    assert warn(seen) == ["c1, c8 have the same mask on different scans. Is one of them a copy?"]
    assert warn(of_one_patient) == []
    seen.samples["c8"] = seen.samples["c1"]
    assert warn(seen) == []


def test_of_two_cases_none_is_odd():
    seen = survey({"c1": {"spacing_mm": (50.0, 50.0, 50.0)}})
    seen.table, seen.facts = seen.table.iloc[:2], seen.facts[:2]
    seen.masks = {case_id: seen.masks[case_id] for case_id in IDS[:2]}
    assert len(describe_checked(seen)) == 1


def test_a_survey_of_files_tells_which_masks_are_copies_and_which_lie_in_the_air(make_data):
    folder = make_data(5, shape=(12, 30, 12))
    found = find_cases(folder)
    for number, case in enumerate(found):
        image, mask = nib.load(case.image), nib.load(case.mask)
        body = np.zeros(image.shape, np.int16)
        body[1:-1, 2:12, 1:-1] = np.random.default_rng(number).integers(50, 90, (10, 10, 10))
        drawn = np.zeros(mask.shape, np.uint8)
        drawn[3:6, 4 : 6 + number % 3, 3:5] = 1
        if number == 4:
            drawn = np.roll(drawn, 15, axis=1)
        nib.save(nib.Nifti1Image((body + number) * (body > 0), image.affine), case.image)
        nib.save(nib.Nifti1Image(drawn, mask.affine), case.mask)
    seen = look_through(found, preprocessor=Preprocessor())
    told = describe_checked(seen)[1:]
    assert "WARNING: case_00, case_03 have the same mask on different scans." in told[0]
    assert "case_04: 100% of a label lies where the scan has no signal" in told[1]
    assert len(told) == 2
    assert describe_checked(replace(seen, facts=None))[1:] == told[:1]
