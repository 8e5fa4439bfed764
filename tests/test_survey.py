"""One look at every file: the same as each would see alone."""

from unetseg import nifti
from unetseg.cases import check_cases, find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.splits import find_leaks
from unetseg.survey import look_through


def test_a_survey_holds_what_each_would_see_alone_from_one_reading(make_data, monkeypatch):
    found = find_cases(make_data(4))
    table, leaks = check_cases(found, labels=[1, 2]), find_leaks(found)
    fitted = Preprocessor().fit(found)
    read, opened = nifti.read, []

    def count(path, *, voxels=True):
        if voxels:
            opened.append(path)
        return read(path, voxels=voxels)

    monkeypatch.setattr(nifti, "read", count)
    seen = look_through(found, labels=[1, 2], preprocessor=Preprocessor())
    files = [file for case in found for file in (case.image, case.mask)]
    assert sorted(opened) == sorted(files)
    assert seen.table.equals(table)
    assert find_leaks(found, samples=seen.samples).equals(leaks)
    assert Preprocessor().fit(found, facts=seen.facts) == fitted
    assert len(opened) == len(files)


def test_a_scan_that_cannot_be_read_is_a_problem_of_its_own(make_data):
    folder = make_data(3)
    (folder / "imagesTr" / "case_01.nii.gz").write_bytes(b"<html>")
    seen = look_through(find_cases(folder), preprocessor=Preprocessor())
    assert (seen.table["problem"] != "").tolist() == [False, True, False]
    assert sorted(seen.samples) == ["case_00", "case_02"]
    assert len(seen.facts) == 2


def test_without_a_preprocessor_to_fit_no_facts_are_taken(make_data):
    assert look_through(find_cases(make_data(2))).facts is None
