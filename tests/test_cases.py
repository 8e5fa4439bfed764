import json

import numpy as np
import pandas as pd
import pytest

from unetseg.cases import Case, check_cases, find_cases, read_label_names, refuse_problems

COLUMNS = {
    *("case", "group", "shape", "spacing_mm", "orientation", "channels", "labels", "volume_ml"),
    *("intensity_p1", "intensity_median", "intensity_p99", "problem"),
}


@pytest.fixture
def touch(tmp_path):
    """Return a function that makes empty files; finding cases opens none."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def describe(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def names_of(cases, folder):
    """Image and mask of every case by id, relative to the folder."""

    def name(path):
        if isinstance(path, tuple):
            return tuple(map(name, path))
        return path and path.relative_to(folder).as_posix()

    return {case.id: (name(case.image), name(case.mask)) for case in cases}


def test_decathlon_pairs_are_those_that_the_description_lists(touch):
    folder = touch(
        *("imagesTr/b.nii.gz", "labelsTr/b.nii.gz", "imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
        *("imagesTr/unlisted.nii.gz", "imagesTr/c.nii.gz"),
    )
    listed = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in "bca"]
    describe(folder, training=listed)
    found = find_cases(folder)
    assert names_of(found, folder) == {
        "a": ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz"),
        "b": ("imagesTr/b.nii.gz", "labelsTr/b.nii.gz"),
        "c": ("imagesTr/c.nii.gz", None),
    }
    assert [case.id for case in found] == ["a", "b", "c"]


def test_a_listed_scan_that_is_missing_is_named(touch):
    folder = touch("imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    listed = [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in "abc"]
    describe(folder, training=listed)
    with pytest.raises(FileNotFoundError, match=r"imagesTr/b\.nii\.gz"):
        find_cases(folder)


def test_nnunet_scans_with_one_channel_lose_the_number(touch):
    folder = touch("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    listed = [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}]
    describe(folder, channel_names={"0": "T1"}, labels={"background": 0}, training=listed)
    expected = {"a": (("imagesTr/a_0000.nii.gz",), "labelsTr/a.nii.gz")}
    assert names_of(find_cases(folder), folder) == expected


def test_nnunet_channels_are_joined_in_order(touch):
    names = [f"imagesTr/{i}_000{k}.nii.gz" for k in (1, 0) for i in ("brain_0012", "a")]
    folder = touch(*names, "labelsTr/brain_0012.nii.gz")
    assert names_of(find_cases(folder), folder) == {
        "a": (("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"), None),
        "brain_0012": (
            ("imagesTr/brain_0012_0000.nii.gz", "imagesTr/brain_0012_0001.nii.gz"),
            "labelsTr/brain_0012.nii.gz",
        ),
    }


@pytest.mark.parametrize("folders", [("images", "labels"), ("imagesTr", "labelsTr")])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ", ".Nii"])
def test_scans_are_paired_with_masks_of_the_same_name(folders, suffix, touch):
    images, labels = folders
    folder = touch(
        *(f"{images}/b{suffix}", f"{labels}/b.nii.gz", f"{images}/a{suffix}"),
        *(f"{images}/._b.nii.gz", f"{labels}/._a.nii.gz", f"{images}/.DS_Store"),
        *(f"{images}/notes.txt", f"{labels}/Thumbs.db", "README.md"),
    )
    assert names_of(find_cases(folder), folder) == {
        "a": (f"{images}/a{suffix}", None),
        "b": (f"{images}/b{suffix}", f"{labels}/b.nii.gz"),
    }


def test_four_digits_that_are_part_of_the_id_are_no_channel(touch):
    folder = touch(
        *("images/case_0000.nii.gz", "images/case_0001.nii.gz", "images/case_0002.nii.gz"),
        *("labels/case_0000.nii.gz", "labels/case_0001.nii.gz"),
    )
    assert names_of(find_cases(folder), folder) == {
        "case_0000": ("images/case_0000.nii.gz", "labels/case_0000.nii.gz"),
        "case_0001": ("images/case_0001.nii.gz", "labels/case_0001.nii.gz"),
        "case_0002": ("images/case_0002.nii.gz", None),
    }


def test_scans_without_masks_that_are_numbered_from_one_are_not_joined_as_channels(touch):
    folder = touch("images/case_0001.nii.gz", "images/case_0002.nii.gz")
    assert [case.id for case in find_cases(folder)] == ["case_0001", "case_0002"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["images/a.nii", "labels/a.nii", "labels/b.nii", "labels/c.nii"], "2 masks.*b, c"),
        (["images/a_0000.nii", "labels/a_0000x.nii"], "1 masks.*a_0000x"),
    ],
)
def test_a_mask_without_a_scan_is_refused(names, words, touch):
    with pytest.raises(ValueError, match=words):
        find_cases(touch(*names))


def test_two_files_of_one_id_are_refused(touch):
    folder = touch("images/scan7.nii", "images/scan7.nii.gz", "labels/scan7.nii.gz")
    with pytest.raises(ValueError, match="scan7"):
        find_cases(folder)


def test_two_listed_scans_of_one_id_are_refused(touch):
    folder = touch("one/scan7.nii.gz", "two/scan7.nii.gz")
    listed = [{"image": f"{f}/scan7.nii.gz", "label": f"{f}/mask.nii.gz"} for f in ("one", "two")]
    describe(folder, training=listed)
    with pytest.raises(ValueError, match="scan7"):
        find_cases(folder)


@pytest.mark.parametrize("names", [[], ["images/notes.txt"], ["labels/.DS_Store"], ["a.nii.gz"]])
def test_a_folder_without_cases_is_refused_and_the_layout_told(names, touch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no case found.*imagesTr and labelsTr") as error:
        find_cases(touch(*names))
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_cases(tmp_path / "nowhere")


def test_a_broken_description_is_named(touch):
    folder = touch("images/a.nii.gz")
    (folder / "dataset.json").write_text("{'labels': ", encoding="utf-8")
    for reader in (find_cases, read_label_names):
        with pytest.raises(ValueError, match=r"dataset\.json: not valid JSON"):
            reader(folder)


@pytest.fixture
def visits(touch):
    """Three scans of two patients, with tables of who is who."""
    folder = touch("images/p1_v1.nii.gz", "images/p1_v2.nii.gz", "images/p2_v1.nii.gz")
    rows = [("p1_v1", "60", "anna"), ("p2_v1", "71", "ben"), ("p1_v2", "61", "anna")]
    for name, mark in (("patients.csv", ","), ("patients.tsv", "\t"), ("semicolon.csv", ";")):
        lines = [mark.join(row) for row in (("id", "age", "who"), *rows)]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        (None, [None, None, None]),
        ("", [None, None, None]),
        (r"^(p\d)_", ["p1", "p1", "p2"]),
        (r"v(\d)", ["1", "2", "1"]),
        ("patients.csv:who", ["anna", "anna", "ben"]),
        ("patients.tsv:who", ["anna", "anna", "ben"]),
        ("semicolon.csv:age", ["60", "61", "71"]),
        (lambda case_id: case_id[:2].upper(), ["P1", "P1", "P2"]),
        (lambda case_id: None, [None, None, None]),
        ({"p1_v1": 0, "p1_v2": 0, "p2_v1": 1}, ["0", "0", "1"]),
        (pd.Series({"p1_v1": "x", "p1_v2": "x", "p2_v1": "y"}), ["x", "x", "y"]),
    ],
)
def test_cases_are_grouped_as_asked(group_by, expected, visits):
    assert [case.group for case in find_cases(visits, group_by=group_by)] == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["sub-01_ses-1", "sub-01_ses-2", "sub-02"], ["sub-01", "sub-01", "sub-02"]),
        (["sub-01_ses-1", "sub-01_ses-2", "pilot"], [None, None, None]),
        (["my_sub-01_a", "my_sub-01_b"], [None, None]),
    ],
)
def test_bids_subjects_are_groups_if_all_ids_are_of_that_form(ids, expected, touch):
    found = find_cases(touch(*(f"images/{i}.nii.gz" for i in ids)))
    assert {case.id: case.group for case in found} == dict(zip(ids, expected, strict=True))


@pytest.mark.parametrize("ids", [("007", "010"), ("100307", "100408")])
def test_ids_of_digits_are_found_in_a_table(ids, touch):
    folder = touch(*(f"images/{i}.nii.gz" for i in ids))
    (folder / "who.csv").write_text(f"scan,who\n{ids[1]},02\n{ids[0]},01\n", encoding="utf-8")
    found = find_cases(folder, group_by="who.csv:who")
    assert [(case.id, case.group) for case in found] == [(ids[0], "01"), (ids[1], "02")]


@pytest.mark.parametrize(
    "group_by",
    [
        r"^(p1)_",
        {"p1_v1": "a", "p1_v2": "a"},
        pd.Series({"p1_v1": "a", "p1_v2": "a"}),
        {"p1_v1": "a", "p1_v2": "a", "p2_v1": float("nan")},
        "blank.csv:who",
    ],
    ids=["regex", "mapping", "series", "nan in mapping", "blank in table"],
)
def test_a_case_without_a_patient_is_refused(group_by, visits):
    (visits / "blank.csv").write_text("id,who\np1_v1,a\np1_v2,a\np2_v1,\n", encoding="utf-8")
    with pytest.raises(ValueError, match="p2_v1"):
        find_cases(visits, group_by=group_by)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"0": "background", "1": "Anterior", "4": "Posterior"}, {1: "Anterior", 4: "Posterior"}),
        ({"background": 0, "Anterior": 1, "Posterior": 4}, {1: "Anterior", 4: "Posterior"}),
        ({}, {}),
    ],
)
def test_label_names_are_read_in_both_dialects(labels, expected, tmp_path):
    describe(tmp_path, labels=labels)
    assert read_label_names(tmp_path) == expected


def test_without_a_description_no_label_has_a_name(tmp_path):
    assert read_label_names(tmp_path) == {}


def test_the_table_of_a_sound_case_holds_what_was_written(make_arrays, write_nifti, tmp_path):
    # Stored from right to left and from front to back; voxels of 1 x 2 x 3 = 6 mm3.
    image, mask = make_arrays(labels=(1, 4))
    affine = np.array([[-1, 0, 0, 10], [0, -2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]], float)
    case = Case(
        "a",
        write_nifti(tmp_path / "images" / "a.nii.gz", image, affine),
        write_nifti(tmp_path / "labels" / "a.nii.gz", mask, affine),
        "anna",
    )
    table = check_cases([case], labels={1: "one", 4: "four", 9: "absent"})
    assert set(table.columns) == COLUMNS
    row = table.iloc[0]
    assert row["problem"] == ""
    assert (row["case"], row["group"], row["orientation"]) == ("a", "anna", "LPS")
    assert row["shape"] == (8, 10, 6)
    assert row["spacing_mm"] == (1.0, 2.0, 3.0)
    assert row["channels"] == 1
    assert row["labels"] == (1, 4)
    assert row["volume_ml"] == pytest.approx((36 + 24) * 6 / 1000)
    # 60 of 480 voxels are labelled, the rest is noise in [0, 100): the median is noise, the
    # 99th percentile lies among the 24 voxels in [400, 500).
    assert 0 <= row["intensity_p1"] < row["intensity_median"] < 100
    assert 400 <= row["intensity_p99"] < 500
    refuse_problems(table)


def test_intensities_are_percentiles_and_channels_are_counted(write_nifti, affine, tmp_path):
    # 0, 1, ... 200 in any order: percentile p is 2 p.
    ramp = np.random.default_rng(0).permutation(201).reshape(3, 67, 1).astype(np.int16)
    mask = write_nifti(tmp_path / "mask.nii.gz", np.ones((3, 67, 1), np.uint8), affine)
    first = write_nifti(tmp_path / "a_0000.nii.gz", ramp, affine)
    second = write_nifti(tmp_path / "a_0001.nii.gz", ramp, affine)
    table = check_cases([Case("one", first, mask), Case("two", (first, second), mask)])
    columns = ["intensity_p1", "intensity_median", "intensity_p99"]
    np.testing.assert_allclose(table.loc[0, columns].astype(float), [2, 100, 198])
    assert table["channels"].tolist() == [1, 2]
    assert table["problem"].tolist() == ["", "not 1 channels, as most cases have."]


def shifted(affine):
    moved = affine.copy()
    moved[1, 3] += 1.5
    return moved


PROBLEMS = {
    "other shape": (
        lambda i, m, a: (i, m[:-1], a, a),
        r"mask\.nii\.gz.*\(7, 10, 6\).*\(8, 10, 6\)",
    ),
    "other place": (lambda i, m, a: (i, m, a, shifted(a)), r"mask\.nii\.gz.*1\.5 mm"),
    "undeclared label": (lambda i, m, a: (i, m + (m == 2), a, a), r"mask\.nii\.gz holds label 3;"),
    "empty mask": (lambda i, m, a: (i, 0 * m, a, a), r"mask\.nii\.gz is empty"),
    "fractions": (lambda i, m, a: (i, m / np.float32(2), a, a), r"mask\.nii\.gz.*0\.5"),
    "constant": (lambda i, m, a: (0 * i + 7, m, a, a), r"scan\.nii\.gz has the same value"),
    "nan": (lambda i, m, a: (np.where(m, np.nan, i), m, a, a), r"scan\.nii\.gz holds NaN"),
    "nan only": (lambda i, m, a: (i * np.nan, m, a, a), r"scan\.nii\.gz holds NaN"),
    "infinite": (lambda i, m, a: (np.where(m, np.inf, i), m, a, a), r"scan\.nii\.gz holds NaN or"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_found_and_names_the_file(problem, make_arrays, write_nifti, affine, tmp_path):
    change, words = PROBLEMS[problem]
    image, mask, image_affine, mask_affine = change(*make_arrays(), affine)
    case = Case(
        "a",
        write_nifti(tmp_path / "scan.nii.gz", image, image_affine),
        write_nifti(tmp_path / "mask.nii.gz", mask, mask_affine),
    )
    table = check_cases([case], labels=(1, 2))
    assert table["problem"].str.contains(words, regex=True).all(), table.loc[0, "problem"]
    with pytest.raises(ValueError, match=words):
        refuse_problems(table)


def test_a_negative_label_is_a_problem_also_if_none_is_declared(
    make_arrays, write_nifti, affine, tmp_path
):
    image, mask = make_arrays()
    scan = write_nifti(tmp_path / "scan.nii.gz", image, affine)
    mask = write_nifti(tmp_path / "mask.nii.gz", mask.astype(np.int16) - 1, affine)
    (problem,) = check_cases([Case("a", scan, mask)])["problem"]
    assert "holds label -1" in problem


def test_every_case_has_its_row_and_every_problem_is_told_at_once(make_data):
    folder = make_data(7)
    names = [f"case_{k:02d}" for k in range(7)]
    (folder / "labelsTr" / "case_00.nii.gz").unlink()
    cut = folder / "imagesTr" / "case_01.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-30])
    (folder / "imagesTr" / "case_02.nii.gz").write_bytes(b"")
    cut = folder / "labelsTr" / "case_03.nii.gz"
    cut.write_bytes(cut.read_bytes()[:60])
    found = find_cases(folder)
    gone = found[4].mask
    gone.unlink()
    table = check_cases([*found, found[5]])
    assert table["case"].tolist() == [*names, "case_05"]
    problems = table["problem"]
    expected = (
        "no mask for case_00.nii.gz",
        "imagesTr/case_01.nii.gz: cannot be read",
        "imagesTr/case_02.nii.gz: cannot be read",
        "labelsTr/case_03.nii.gz: cannot be read",
        f"{gone}: no such file",
        "this id stands for more than one case",
        "",
        "this id stands for more than one case",
    )
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem
        assert bool(words) == bool(problem)
    assert table["shape"].isna().tolist() == [k in (1, 2) for k in range(8)]
    with pytest.raises(ValueError, match=r"^7 of 8 cases have a problem") as error:
        refuse_problems(table)
    for case_id, words in zip(table["case"], expected, strict=True):
        assert (f"{case_id}: " in str(error.value)) == bool(words)
        assert words in str(error.value)


@pytest.mark.parametrize("lost", ["imagesTr", "labelsTr"])
def test_the_table_has_all_its_columns_also_if_no_image_or_no_mask_can_be_read(lost, make_data):
    folder = make_data(1)
    (folder / lost / "case_00.nii.gz").write_bytes(b"<html>" * 100)
    assert set(check_cases(find_cases(folder)).columns) == COLUMNS


def test_a_pattern_without_a_bracket_and_an_unknown_column_are_refused(make_data):
    folder = make_data(2)
    with pytest.raises(ValueError, match=r"group_by needs a bracket.*Received: 'case'"):
        find_cases(folder, group_by="case")
    (folder / "patients.csv").write_text("id,patient\n")
    with pytest.raises(ValueError, match=r"patients.csv: no column 'person'; it has .*'patient'"):
        find_cases(folder, group_by="patients.csv:person")
