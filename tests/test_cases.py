import json
import re
from unicodedata import normalize

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from unetseg.cases import (
    Case,
    check_cases,
    check_headers,
    find_cases,
    find_scans,
    find_scored,
    read_channel_names,
    read_label_names,
    read_labels,
    refuse_problems,
)

COLUMNS = {
    *("case", "group", "shape", "spacing_mm", "orientation", "channels", "labels", "volume_ml"),
    *("intensity_p1", "intensity_median", "intensity_p99", "intensities", "smoothness", "problem"),
}


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


ZOE = "Zo\u00eb"
FOLDERS = ("images", "labels")
REFUSED_NAMES = {
    "orphan masks": (
        ["images/a.nii", "labels/a.nii", "labels/b.nii", "labels/c.nii"],
        ["labels/b.nii: no scan is named b; rename", "labels/c.nii: no scan is named c; rename"],
    ),
    "as many masks as scans, of other names": (
        ["images/a_T1.nii", "images/b_T1.nii", "labels/a_seg.nii", "labels/b_seg.nii"],
        [
            *(f"labels/{i}_seg.nii: no scan is named {i}_seg; rename or remove one" for i in "ab"),
            *(f"{i}_T1: this scan has no mask; rename or remove one" for i in "ab"),
        ],
    ),
    "mask numbered like a channel": (
        ["images/a_0000.nii", "labels/a_0000x.nii"],
        ["labels/a_0000x.nii: no scan is named a_0000x", "a: this scan has no mask"],
    ),
    "some scans numbered, some not": (
        ["images/a_0000.nii", "images/b.nii", "labels/a.nii", "labels/b.nii"],
        ["labels/a.nii: no scan is named a", "a_0000: this scan has no mask"],
    ),
    "channel numbers with a gap": (
        ["images/a_0000.nii", "images/a_0002.nii", "labels/a.nii"],
        ["labels/a.nii: no scan is named a", "a_0000: this scan", "a_0002: this scan"],
    ),
    "two suffixes": (
        ["images/s.nii", "images/s.nii.gz", "labels/s.nii.gz", "labels/s.NII"],
        [
            "images/s.nii.gz: of the same id as s.nii; rename",
            "labels/s.nii.gz: of the same id as s",
        ],
    ),
    "two cases of letters": (
        ["images/Scan.nii", "images/scan.nii"],
        ["images/scan.nii: of the same id as Scan.nii; rename or remove one"],
    ),
    "two spellings of letters": (
        [f"images/{normalize(form, ZOE)}.nii" for form in ("NFC", "NFD")],
        [f"of the same id as {ZOE}.nii; rename or remove one"],
    ),
    "copies by Drive": (
        [f"{f}/a{n}.nii.gz" for f in FOLDERS for n in ("", " (1)", "(2)")],
        [f"{f}/a{n}.nii.gz: of the same id as a" for f in FOLDERS for n in (" (1)", "(2)")],
    ),
    "other formats": (
        ["images/a.nii", "images/b.hdr", "images/b.img", "images/c.NRRD", "labels/a.nii.zip"],
        [f"{n}: convert it to .nii.gz" for n in ("b.hdr", "b.img", "c.NRRD", "labels/a.nii.zip")],
    ),
    "header alone": (
        ["images/b.hdr", "images/c.hdr.gz", "images/c.img.gz"],
        [
            "b.hdr: convert it to .nii.gz; it is a header alone: copy its b.img to it before",
            "c.hdr.gz: convert it to .nii.gz",
            "c.img.gz: convert it to .nii.gz",
        ],
    ),
    "archives and downloads": (
        ["images/scans.zip", "images/b.nii.gz.crdownload", "labels/labels.tar.gz"],
        [
            "scans.zip: an archive; unpack it here",
            "b.nii.gz.crdownload: its download never ended; download it again",
            "labels.tar.gz: an archive; unpack it here",
        ],
    ),
    "pairs of files alone": (
        ["imagesTr/b.hdr", "imagesTr/b.img.gz"],
        ["b.hdr: c", "b.img.gz: con"],
    ),
}


def problems_of(error, folder):
    lines = str(error.value).removesuffix(".").split("\n  ")
    assert lines[0] == f"{folder}: {len(lines) - 1} problems: "
    assert "Expected imagesTr and labelsTr, or images" in lines[-1]
    return lines[1:]


@pytest.mark.parametrize("case", REFUSED_NAMES)
def test_names_that_leave_a_doubt_are_refused_together(case, touch):
    names, expected = REFUSED_NAMES[case]
    folder = touch(*names)
    with pytest.raises(ValueError) as error:
        find_cases(folder)
    found = problems_of(error, folder)
    assert len(found) == len(expected)
    for words in expected:
        assert sum(words in line for line in found) == 1, (words, found)


def test_problems_of_every_kind_are_told_at_once(touch):
    folder = touch("imagesTr/a.nii", "imagesTr/A.nii", "imagesTr/c.mha", "labelsTr/b.nii")
    with pytest.raises(ValueError) as error:
        find_cases(folder, group_by={"a": "anna"})
    found = "".join(f"\n  {line}" for line in problems_of(error, folder))
    words = (
        "c.mha: con",
        "imagesTr/a.nii: of the",
        "b.nii: no scan",
        "a: this scan",
        "A: this scan",
    )
    for line in (*words, "A: no patient by group_by; add it"):
        assert line in found
    assert "  a: no patient" not in found


LISTED = {
    "missing": ({"image": "imagesTr/b.nii", "label": "labelsTr/b.nii"}, "imagesTr/b.nii: listed"),
    "twice": ({"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}, "a.nii: of the same id as a"),
    "above": ({"image": "../x.nii", "label": "labelsTr/a.nii"}, "'../x.nii'.*no pair of files in"),
    "above, later": (
        {"image": "imagesTr/a.nii", "label": "labelsTr/../../x.nii"},
        "no pair of files",
    ),
    "absolute": ({"image": "/etc/passwd", "label": "labelsTr/a.nii"}, "no pair of files.*correct"),
    "on a drive": ({"image": "C:\\x.nii", "label": "labelsTr/a.nii"}, "no pair of files.*correct"),
    "upwards in Windows": ({"image": "i\\..\\..\\x.nii", "label": "a.nii"}, "no pair of files"),
    "no mask": ({"image": "imagesTr/a.nii"}, "no pair of files in the folder; correct"),
    "a name": ("imagesTr/a.nii", "imagesTr/a.nii is no pair of files"),
    "a number": (7, "7 is no pair of files"),
    "channels": ({"image": ["a.nii", "b.nii"], "label": "a.nii"}, "no pair of files"),
}


@pytest.mark.parametrize("case", LISTED)
def test_a_listed_pair_that_is_not_there_or_outside_is_refused(case, touch):
    folder = touch("imagesTr/a.nii", "labelsTr/a.nii", "imagesTr/c.nii")
    entry, words = LISTED[case]
    sound = {"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"}
    describe(folder, training=[sound, entry, {"image": "imagesTr/gone.nii", "label": "x.nii"}])
    with pytest.raises(ValueError) as error:
        find_cases(folder)
    found = problems_of(error, folder)
    assert len(found) == 2
    assert re.search(words, "\n".join(found))
    assert "imagesTr/gone.nii: listed in dataset.json, not there; copy it" in "\n".join(found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "not in braces"),
        ({"training": 5}, "'training' is no list"),
        ({"training": {"a": 1}}, "'training' is no list"),
        ({"labels": {"a": "b"}}, "one whole number"),
        ({"labels": [0, "b"]}, "one whole number"),
        ({"labels": 3}, "one whole number"),
    ],
)
def test_a_description_of_another_form_is_named(content, words, touch):
    folder = touch("images/a.nii")
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{words}"):
        read_label_names(folder)


@pytest.mark.parametrize("case_id", ["", "a/b", "../a", "/etc/a", "a\\b", "a\n", "a\0"])
def test_an_id_that_leads_elsewhere_is_refused(case_id, tmp_path):
    with pytest.raises(ValueError, match=r"cannot be an id.*Rename"):
        Case(case_id, tmp_path / "a.nii")


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("scan", "mask"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_letters_may_be_spelt_in_both_ways(scan, mask, listed, touch):
    names = {form: normalize(form, f"{ZOE} 1.nii") for form in ("NFC", "NFD")}
    folder = touch(f"imagesTr/{names[scan]}", f"labelsTr/{names[mask]}")
    if listed:
        name = names["NFC" if scan == "NFD" else "NFD"]
        describe(folder, training=[{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}])
    (case,) = find_cases(folder, group_by={names["NFD"][:-4]: "zoe"})
    assert (case.id, case.group) == (names["NFC"][:-4], "zoe")
    assert (case.image, case.mask) == (
        folder / "imagesTr" / names[scan],
        folder / "labelsTr" / names[mask],
    )


def test_ids_with_spaces_brackets_and_dots_are_no_copies(touch):
    names = ("scan (1)", "scan (2)", "scan (10)", "a.b c")
    folder = touch(*(f"{f}/{i}.nii.gz" for f in ("images", "labels") for i in names))
    assert {case.id for case in find_cases(folder)} == set(names)


@pytest.mark.parametrize("names", [[], ["images/notes.txt"], ["labels/.DS_Store"], ["a.nii.gz"]])
def test_a_folder_without_cases_is_refused_and_the_layout_told(names, touch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no case found.*imagesTr and labelsTr") as error:
        find_cases(touch(*names))
    assert str(tmp_path) in str(error.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_cases(tmp_path / "nowhere")


DESCRIBED = {
    "channels": (
        {"channel_names": {"0": "T1", "1": "T2"}},
        "a: has 1 files of channels, dataset.json declares 2 channels .T1, T2.; add",
    ),
    "modality": ({"modality": {"0": "T1", "1": "T2", "2": "PD"}}, "declares 3 channels"),
    "ending": ({"file_ending": ".png"}, "'file_ending' is '.png'; convert the files to .nii.gz"),
}


@pytest.mark.parametrize("case", DESCRIBED)
def test_a_description_that_contradicts_the_files_is_told(case, touch):
    content, words = DESCRIBED[case]
    folder = touch("imagesTr/a_0000.nii", "labelsTr/a.nii")
    describe(folder, **content)
    with pytest.raises(ValueError, match=words):
        find_cases(folder)


def test_a_file_of_other_channels_than_declared_is_a_problem(make_data):
    folder = make_data(2)
    describe(folder, modality={"0": "T1", "1": "T2"})
    declared = read_channel_names(folder)
    table = check_cases(find_cases(folder), channels=declared)
    words = "not 2 channels, as dataset.json declares (T1, T2); correct it, or add the files"
    assert table["problem"].str.startswith(words).all()
    describe(folder, modality={"0": "T1"})
    table = check_cases(find_cases(folder), channels=read_channel_names(folder))
    assert table["problem"].tolist() == ["", ""]


def test_labels_are_read_from_all_masks_or_all_problems_listed(make_data):
    folder = make_data(3, labels=(1, 300 % 256))
    found = find_cases(folder)
    assert read_labels(found) == {f"case_0{k}": (1, 44) for k in range(3)}
    found[0].mask.write_bytes(b"")
    found[2].mask.write_bytes(b"<html>")
    found[1].mask.unlink()
    words = (
        r"3 masks cannot be read.*case_00.*0 bytes.*\n.*case_01: no mask.*\n.*case_02.*HTML page"
    )
    with pytest.raises(ValueError, match=f"(?s){words}"):
        read_labels(find_cases(folder))


def test_files_of_many_kinds_are_told_in_one_list(make_data):
    folder = make_data(5)
    contents = {
        "imagesTr/case_00": (b"", r"empty \(0 bytes\)"),
        "imagesTr/case_01": (b"<!doctype html><title>Quota</title>", "an HTML page titled 'Quota'"),
        "labelsTr/case_02": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        "imagesTr/case_03": (b"PK\x03\x04", "a zip archive. Unpack it"),
    }
    cut = folder / "imagesTr/case_04.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-40])
    for name, (content, _) in contents.items():
        (folder / f"{name}.nii.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"^5 of 5 cases have a problem") as error:
        refuse_problems(check_cases(find_cases(folder)))
    lines = str(error.value).split("\n")[1:6]
    for line, (name, (_, words)) in zip(lines, contents.items(), strict=False):
        assert re.search(rf"{name}\.nii\.gz: cannot be read as NIfTI: .*{words}", line)
    assert re.search(r"case_04.*truncated: \d+ bytes can be unpacked, 1312 are needed", lines[4])


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


EXCEL = "id{s}Name{s}patient{n}p1_v1{s}Müller{s}anna{n}p2_v1{s}Zoë{s}ben{n}p1_v2{s}Ö{s}anna{n}"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["patients.csv", "patients.txt", "Meine Tabelle.TSV"])
def test_patients_are_read_as_excel_writes_them(name, separator, encoding, visits):
    text = EXCEL.format(s=separator, n="\r\n") + "\r\n"
    (visits / name).write_bytes(text.encode(encoding))
    for group_by in (f"{name}:patient", f" {name}: patient "):
        found = find_cases(visits, group_by=group_by)
        assert [case.group for case in found] == ["anna", "anna", "ben"]


@pytest.mark.parametrize(
    "form", ["{}.nii.gz", "images/{}.nii", " {} ", '="{}"', "imagesTr\\\\{}.nii"]
)
def test_patients_are_found_by_ids_as_people_write_them(form, visits):
    rows = [("p1_v1", "anna"), ("p2_v1", "ben"), ("p1_v2", "anna"), ("not here", "eve")]
    lines = [f"{form.format(case_id)};{patient}" for case_id, patient in rows]
    (visits / "who.csv").write_text("\n".join([" id ; who ", *lines, ";", ""]))
    found = find_cases(visits, group_by="who.csv:who")
    assert [case.group for case in found] == ["anna", "anna", "ben"]


def test_ids_and_patients_that_look_like_numbers_or_nothing_stay_as_they_are(touch):
    ids = ["NA", "001", "1e5", "None", "TRUE"]
    folder = touch(*(f"images/{i}.nii.gz" for i in ids))
    patients = ["NA", "1.0", "02", "1e5", "nan"]
    lines = [f"{i},{who}" for i, who in zip(ids, patients, strict=True)]
    (folder / "who.csv").write_text("\n".join(["id,who", *lines]))
    found = find_cases(folder, group_by="who.csv:who")
    assert {case.id: case.group for case in found} == dict(zip(ids, patients, strict=True))


@pytest.mark.parametrize(("one", "other"), [("P1", "p1"), ("01", "1"), ("3.0", "3")])
def test_a_patient_that_is_spelt_in_two_ways_is_a_problem(touch, one, other):
    folder = touch(*(f"images/{i}.nii.gz" for i in "abc"))
    (folder / "who.csv").write_text(f"id,who\na,{one}\nb,{other}\nc,else\n")
    with pytest.raises(ValueError, match=f"patients .*{one}.* are spelt alike; write one") as error:
        find_cases(folder, group_by="who.csv:who")
    assert other in str(error.value)
    groups = {"a": one, "b": other, "c": "else"}
    assert [case.group for case in find_cases(folder, group_by=groups.get)] == [*groups.values()]


@pytest.mark.parametrize(
    "pair",
    [
        ("1_12", "11_2"),
        ("1.1", "1.10"),
        ("20210314120000123", "20210314120000125"),
        ("12e4567", "5e1234"),
        ("0", "00x"),
    ],
)
def test_patients_that_only_a_computer_would_confuse_are_two(touch, pair):
    folder = touch(*(f"images/{i}.nii.gz" for i in "ab"))
    found = find_cases(folder, group_by=dict(zip("ab", pair, strict=True)))
    assert [case.group for case in found] == [*pair]


def test_a_space_before_the_suffix_is_not_of_the_id(touch):
    folder = touch("images/x .nii.gz", "labels/x.nii.gz")
    (case,) = find_cases(folder)
    assert (case.id, case.image.name, case.mask.name) == ("x", "x .nii.gz", "x.nii.gz")


TABLE_PROBLEMS = {
    "number": ("id,who\n1,a\n2,b\n", r"001: no patient by .* who\.csv \(it has '1': Excel made"),
    "two patients": (
        "id,who\n001,a\n001.nii,b\n002,b\n",
        r"001: who\.csv has it of patients a and b; remove one",
    ),
    "blank": ("id,who\n001,n/a\n002,b\n", r"001: no patient by group_by; add it to who\.csv"),
    "other column": (
        "no,file,who\nx,001,a\ny,002,b\n",
        r"who\.csv: its first column 'no' \(x, y \.\.\.\) has no id \(001, 002",
    ),
    "page": (
        "<!doctype html><title>Quota</title>",
        r"who\.csv: no table of text: it is an HTML page titled 'Quota'",
    ),
    "empty": ("", r"who\.csv: no table of text: it is empty"),
    "column": ("id,Who\n001,a\n002,b\n", r"who\.csv: no column 'who'; it has \['id', 'Who'\]"),
}


@pytest.mark.parametrize("case", TABLE_PROBLEMS)
def test_a_table_that_leaves_a_doubt_is_refused_by_name(case, touch):
    content, words = TABLE_PROBLEMS[case]
    folder = touch("images/001.nii", "images/002.nii")
    (folder / "who.csv").write_text(content)
    with pytest.raises(ValueError, match=words):
        find_cases(folder, group_by="who.csv:who")


def test_a_case_that_stands_twice_of_one_patient_is_no_problem(touch):
    folder = touch("images/a_0000.nii", "images/a_0001.nii", "labels/a.nii")
    (folder / "who.csv").write_text("id,who\na_0000.nii,eve\na_0001.nii,eve\n")
    assert [case.group for case in find_cases(folder, group_by="who.csv:who")] == ["eve"]


@pytest.mark.parametrize(
    ("group_by", "words"),
    [
        ("who.csv", r"who\.csv: group_by needs the column .* one of its columns \['id', 'who'\]"),
        ("who.csv:", r"who\.csv: group_by needs the column"),
        ("who.xlsx:who", r"who\.xlsx: only tables of text are read; save the sheet as 'CSV UTF-8'"),
        ("whom.csv:who", r"whom\.csv: no such table; beside it: who\.csv"),
    ],
)
def test_a_table_that_is_not_named_rightly_is_refused(group_by, words, touch):
    folder = touch("images/a.nii", "who.xlsx")
    (folder / "who.csv").write_text("id,who\na,eve\n")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        find_cases(folder, group_by=group_by)


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


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
PROBLEMS = {
    "other shape": (
        lambda i, m, a: (i, m[:-1], a, a),
        r"mask\.nii\.gz.*\(7, 10, 6\).*\(8, 10, 6\)",
    ),
    "other place": (lambda i, m, a: (i, m, a, shifted(a)), r"mask\.nii\.gz.*1\.5 mm"),
    "undeclared label": (lambda i, m, a: (i, m + (m == 2), a, a), r"mask\.nii\.gz holds label 3;"),
    "empty mask": (lambda i, m, a: (i, 0 * m, a, a), r"mask\.nii\.gz is empty.*Draw it, or take"),
    "0 and 255": (
        lambda i, m, a: (i, np.uint8(255) * (m > 0), a, a),
        r"mask\.nii\.gz holds label 255; declared: \[1, 2\]\. Correct or declare",
    ),
    "negative": (lambda i, m, a: (i, m - np.int16(1), a, a), r"mask\.nii\.gz holds label -1; decl"),
    "many labels": (
        lambda i, m, a: (i, np.arange(480, dtype="i2").reshape(8, 10, 6), a, a),
        r"mask\.nii\.gz holds 479 labels, 254 at most\. Is it a scan\?",
    ),
    "labels far apart": (
        lambda i, m, a: (i, m.astype("i4") * 10**6, a, a),
        r"mask\.nii\.gz holds label 1000000, 2000000; declared",
    ),
    "scan as its mask": (
        lambda i, m, a: (i, i, a, a),
        r"mask\.nii\.gz holds the values of the scan; put",
    ),
    "scan as its mask, rounded in float32": (
        lambda i, m, a: (i + np.int32(2**24 + 1), i + np.int32(2**24 + 1), a, a),
        r"mask\.nii\.gz holds the values of the scan; put",
    ),
    "mask as its scan, of 0 and 255": (
        lambda i, m, a: (255 * (m == 1).astype("u1"), (m == 1).astype("u1"), a, a),
        r"mask\.nii\.gz holds the values of the scan; put",
    ),
    "mask with another affine": (
        lambda i, m, a: (i, m, a, np.diag([1, -1, 1, 1]) @ a),
        r"mask\.nii\.gz: its .*If it was drawn on this scan, save it with the scan's affine",
    ),
    "nan in the mask": (lambda i, m, a: (i, np.where(m, np.nan, m), a, a), r"mask.*holds nan\. Is"),
    "rgb": (lambda i, m, a: (i.astype(RGB), m, a, a), r"scan\.nii\.gz: voxels of type.*Convert"),
    "complex": (lambda i, m, a: (i.astype("c8"), m, a, a), r"scan\.nii\.gz: voxels of type"),
    "both": (
        lambda i, m, a: (0 * i, 0 * m, a, shifted(a)),
        r"scan\.nii\.gz has the same value.*mask\.nii\.gz is empty.*mask\.nii\.gz: its affine",
    ),
    "fractions": (lambda i, m, a: (i, m / np.float32(2), a, a), r"mask\.nii\.gz.*0\.5"),
    "constant": (lambda i, m, a: (0 * i + 7, m, a, a), r"scan\.nii\.gz has the same value"),
    "nan": (lambda i, m, a: (np.where(m, np.nan, i), m, a, a), r"scan\.nii\.gz holds NaN"),
    "nan only": (lambda i, m, a: (i * np.nan, m, a, a), r"scan\.nii\.gz holds NaN"),
    "infinite": (
        lambda i, m, a: (np.where(m, np.inf, i), m, a, a),
        r"scan\.nii\.gz holds NaN, inf",
    ),
    "huge": (
        lambda i, m, a: (np.where(m, np.float32([0, -3.4e38, 3.4e38])[m], i), m, a, a),
        r"scan\.nii\.gz holds NaN, infinite or huge voxels; replace",
    ),
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


@pytest.mark.parametrize("dtype", ["u1", "i2", ">i4", "i8", "f4", "f8"])
@pytest.mark.parametrize("labels", [(1, 2), (1, 4), (255, 128), (7, 120), (1, 2 - 5e-10)])
def test_whole_labels_of_any_type_and_with_gaps_are_no_problem(
    labels, dtype, make_arrays, write_nifti, affine, tmp_path
):
    image, shape = make_arrays()
    mask = np.select([shape == 1, shape == 2], labels, 0)
    mask = (mask if dtype[0] == "f" else mask.round()).astype(dtype)
    nib.save(nib.Nifti1Image(mask, affine, dtype=mask.dtype), tmp_path / "mask.nii.gz")
    scan = write_nifti(tmp_path / "scan.nii.gz", image, affine)
    (row,) = check_cases([Case("a", scan, tmp_path / "mask.nii.gz")]).to_dict("records")
    assert row["problem"] == ""
    assert row["labels"] == tuple(sorted(round(label) for label in labels))
    assert row["volume_ml"] == pytest.approx(0.36)  # 60 voxels of 6 mm3


def test_a_mask_of_one_voxel_and_a_scan_of_one_slice_are_no_problem(write_nifti, affine, tmp_path):
    image = np.arange(20, dtype=np.int16).reshape(4, 5, 1)
    scan = write_nifti(tmp_path / "scan.nii", image, affine)
    mask = write_nifti(tmp_path / "mask.nii", (image == 7).astype(np.uint8), affine)
    (row,) = check_cases([Case("a", scan, mask)]).to_dict("records")
    assert (row["problem"], row["volume_ml"], row["shape"]) == ("", 0.006, (4, 5, 1))


@pytest.mark.parametrize("codes", ["LPS", "SAR", "PIL"])
def test_a_mask_stored_in_another_order_than_its_scan_is_no_problem(
    codes, make_arrays, write_case, tmp_path
):
    image, mask = make_arrays()
    scan = write_case(tmp_path, "scan", image).image
    stored = write_case(tmp_path, "stored", image, mask, codes=codes).mask
    (row,) = check_cases([Case("a", scan, stored)]).to_dict("records")
    assert (row["problem"], row["labels"], row["shape"]) == ("", (1, 2), (8, 10, 6))


def test_one_file_as_scan_and_mask_is_found(make_arrays, write_nifti, affine, tmp_path):
    scan = write_nifti(tmp_path / "images" / "a.nii", make_arrays()[1], affine)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.nii").symlink_to(scan)
    (problem,) = check_cases(find_cases(tmp_path))["problem"]
    assert problem == "a.nii holds the values of the scan; put the mask there."


def test_every_channel_is_looked_at(make_arrays, write_nifti, affine, tmp_path):
    image, mask = make_arrays()
    channels = (image, np.where(mask, np.nan, image), 0 * image, image)
    files = [write_nifti(tmp_path / f"a_000{k}.nii", c, affine) for k, c in enumerate(channels)]
    mask = write_nifti(tmp_path / "mask.nii", mask, affine)
    (problem,) = check_cases([Case("a", tuple(files), mask)])["problem"]
    assert problem == (
        "a_0001.nii holds NaN, infinite or huge voxels; replace them. "
        "a_0002.nii has the same value everywhere; export it again."
    )
    for k in (0, 3):
        files[k].write_bytes(files[k].read_bytes()[:-9])
    mask.write_bytes(b"<html>")
    (problem,) = check_cases([Case("a", tuple(files), mask)])["problem"]
    for name in ("a_0000.nii", "a_0003.nii", "mask.nii"):
        assert problem.count(f"{name}: cannot be read as NIfTI") == 1


@pytest.mark.parametrize("size_mm", [0.05, 0.0004, 0.00043])
def test_small_voxels_keep_their_digits_in_the_table(size_mm, make_arrays, write_case, tmp_path):
    case = write_case(tmp_path, "a", *make_arrays(), (size_mm, size_mm, 2 * size_mm))
    table = check_cases([case])
    table.to_csv(tmp_path / "cases.csv", index=False)
    again = pd.read_csv(tmp_path / "cases.csv")
    spacing = (size_mm, size_mm, 2 * size_mm)
    assert table.loc[0, "spacing_mm"] == pytest.approx(spacing, rel=1e-5, abs=0)
    assert again.loc[0, "spacing_mm"] == str(spacing)
    for rows in (table, again):
        expected = 60 * 2 * size_mm**3 / 1000
        assert rows.loc[0, "volume_ml"] == pytest.approx(expected, rel=1e-5, abs=0)


def test_percentiles_of_a_large_scan_are_close(write_nifti, affine, tmp_path):
    values = np.random.default_rng(0).normal(1000, 100, (150, 150, 150)).astype(np.int16)
    scan = write_nifti(tmp_path / "scan.nii", values, affine)
    row = check_cases([Case("a", scan)]).iloc[0]
    expected = np.percentile(values, (1, 50, 99))  # one step is a hundredth of the spread
    found = row[["intensity_p1", "intensity_median", "intensity_p99"]].astype(float)
    np.testing.assert_allclose(found, expected, atol=2)
    assert row["problem"] == "no mask for scan.nii; add it, or take the scan out."


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
    gone.symlink_to(folder / "nowhere.nii.gz")
    table = check_cases([*found, found[5]])
    assert table["case"].tolist() == [*names, "case_05"]
    problems = table["problem"]
    expected = (
        "no mask for case_00.nii.gz",
        "imagesTr/case_01.nii.gz: cannot be read",
        "imagesTr/case_02.nii.gz: cannot be read",
        "labelsTr/case_03.nii.gz: cannot be read",
        f"{gone}: no such file. Fetch what the link leads to, or remove the case.",
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


@pytest.fixture
def results(tmp_path):
    """Folder of an experiment on three cases, whose order and patients its table tells."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "cases.csv").write_text("case,group,shape\nb,01,x\na,,x\nc,NA,x\n")
    return folder


def test_cases_are_scored_with_their_scans_where_there_are_any(touch, results):
    folder = touch("imagesTr/a.nii", "imagesTr/b.nii", "labelsTr/a.nii", "imagesTr/new.nii")
    touch("results/masks/a.nii.gz")
    found = find_scored(folder, results)
    expected = [("a", "labelsTr/a.nii", None), ("b", None, "01"), ("new", None, None)]
    masks = names_of(found, folder)
    assert [(case.id, masks[case.id][1], case.group) for case in found] == expected
    assert [masks[case.id][0] for case in found] == [f"imagesTr/{i}.nii" for i in ("a", "b", "new")]


def test_cases_are_scored_with_the_scans_that_the_description_lists_elsewhere(touch, results):
    folder = touch("t1/a.nii", "t1/b.nii", "truth/a.nii", "truth/b.nii", "t1/unlisted.nii")
    touch(*(f"{place}/{i}.nii.gz" for place in ("labelsTr", "results/masks") for i in "abc"))
    listed = [{"image": f"./t1/{i}.nii", "label": f"./truth/{i}.nii"} for i in "ba"]
    describe(folder, training=listed)
    found = find_scored(folder, results)
    assert names_of(found, folder) == {i: (f"t1/{i}.nii", f"truth/{i}.nii") for i in "ab"}
    assert [(case.id, case.group) for case in found] == [("a", None), ("b", "01")]


@pytest.mark.parametrize("place", ["labelsTr", "labels", "results/masks"])
def test_cases_are_scored_without_scans_by_masks_alone(place, touch, results, tmp_path):
    touch(*(f"{place}/{i}.nii.gz" for i in ("a", "b", "c", "other")))
    folder = tmp_path / "nowhere" if place == "results/masks" else tmp_path
    touch(*(f"results/masks/{i}.nii.gz" for i in "abc"))
    listed = [{"image": f"./t1/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in "abc"]
    describe(tmp_path, training=listed)  # scans that were not copied
    found = find_scored(folder, results)
    expected = {i: (None, f"{place}/{i}.nii.gz") for i in "abc"}
    assert names_of(found, tmp_path) == expected
    assert [(case.id, case.group) for case in found] == [("a", None), ("b", "01"), ("c", "NA")]


def test_masks_that_are_nowhere_are_listed_and_so_is_a_missing_table(touch, results, tmp_path):
    touch("labels/b.nii.gz")
    with pytest.raises(FileNotFoundError, match=r"no mask for 2 cases: a, c\..*results.masks"):
        find_scored(tmp_path, results)
    (results / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"cases\.csv"):
        find_scored(tmp_path, results)


def test_patients_of_new_scans_are_told_as_those_of_cases(touch):
    folder = touch("imagesTs/p1_ed.nii", "imagesTs/p1_es.nii", "imagesTs/p2_ed.nii")
    groups = [case.group for case in find_scans(folder, group_by=r"(p\d)_")]
    assert groups == ["p1", "p1", "p2"]
    with pytest.raises(ValueError, match="p1_es: no patient by group_by"):
        find_scans(folder, group_by="(p.)_ed")


@pytest.mark.parametrize("place", ["imagesTs/", "imagesTr/", "images/", ""])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".NII.GZ"])
def test_new_scans_are_found_in_a_flat_folder_or_where_data_sets_have_them(place, suffix, touch):
    hidden = (f"{place}._a.nii.gz", f"{place}.DS_Store", f"{place}notes.txt", "dataset.txt")
    folder = touch(f"{place}b{suffix}", f"{place}a.b c{suffix}", *hidden)
    found = find_scans(folder)
    assert names_of(found, folder) == {i: (f"{place}{i}{suffix}", None) for i in ("a.b c", "b")}
    assert [case.id for case in found] == ["a.b c", "b"]
    assert [case.group for case in found] == [None, None]


@pytest.mark.parametrize(
    ("scans", "masks", "found"),
    [
        ("imagesTs", "labelsTr", False),
        ("imagesTs", "labelsTs", True),
        ("imagesTr", "labelsTr", True),
        ("images", "labels", True),
        ("images", "labelsTs", False),
    ],
)
def test_scans_have_the_masks_of_the_folder_beside_them(scans, masks, found, touch):
    folder = touch(f"{scans}/a.nii", f"{masks}/a.nii")
    for named in (folder, folder / scans):
        (scan,) = find_scans(named)
        assert scan.mask == (folder / masks / "a.nii" if found else None)


def test_scans_of_another_number_of_channels_are_told(write_case, make_arrays, tmp_path):
    image, _ = make_arrays()
    several = np.stack([image] * 3, axis=-1)
    scans = [write_case(tmp_path, "s1", image), write_case(tmp_path, "s3", several)]
    problems = check_headers(scans, expected=1).set_index("case")["problem"]
    assert problems["s1"] == ""
    assert problems["s3"].startswith("has 3 channels, the network has 1; leave it out")


def test_scans_for_testing_come_before_those_for_training(touch):
    folder = touch("imagesTs/new.nii", "imagesTr/old.nii", "images/other.nii", "flat.nii")
    touch("labelsTr/old.nii")
    assert names_of(find_scans(folder), folder) == {"new": ("imagesTs/new.nii", None)}


@pytest.mark.parametrize("files", [1, 2])
def test_numbered_files_are_the_channels_that_the_network_has(files, touch):
    names = [f"imagesTs/{i}_000{k}.nii.gz" for k in range(files) for i in ("b_0007", "a")]
    folder = touch(*names, "labelsTs/a.nii.gz")
    found = find_scans(folder, channels=files)
    channels = {
        i: tuple(f"imagesTs/{i}_000{k}.nii.gz" for k in range(files)) for i in ("a", "b_0007")
    }
    assert names_of(found, folder) == {
        "a": (channels["a"], "labelsTs/a.nii.gz"),
        "b_0007": (channels["b_0007"], None),
    }


@pytest.mark.parametrize(("n", "channels"), [(3, 1), (2, 1), (3, 2), (2, 4), (1, 2)])
def test_a_numbered_series_of_scans_is_no_scan_of_that_many_channels(n, channels, touch):
    names = [f"case_000{k}" for k in range(n)]
    folder = touch(*(f"{name}.nii" for name in names))
    assert names_of(find_scans(folder, channels), folder) == {i: (f"{i}.nii", None) for i in names}


def test_scans_with_masks_of_their_names_are_no_channels(touch):
    # Two files with as many channels each as the network has: their masks tell.
    names = ["case_0000", "case_0001"]
    folder = touch(*(f"{place}/{i}.nii" for i in names for place in ("images", "labels")))
    expected = {i: (f"images/{i}.nii", f"labels/{i}.nii") for i in names}
    assert names_of(find_scans(folder, channels=2), folder) == expected


def test_one_scan_that_lacks_a_channel_leaves_the_others_whole(touch):
    folder = touch("a_0000.nii", "a_0001.nii", "b_0000.nii")
    expected = {"a": (("a_0000.nii", "a_0001.nii"), None), "b": (("b_0000.nii",), None)}
    assert names_of(find_scans(folder, channels=2), folder) == expected


def test_one_channel_and_files_of_two_numbers_are_all_scans(touch):
    folder = touch("a_0000.nii", "b_0000.nii", "b_0001.nii")
    assert [case.id for case in find_scans(folder)] == ["a_0000", "b_0000", "b_0001"]


def test_a_folder_of_scans_of_another_name_has_no_masks_beside_it(touch):
    folder = touch("scans/a.nii.gz", "labels/a.nii.gz")
    (scan,) = find_scans(folder / "scans")
    assert scan.mask is None


@pytest.mark.parametrize("place", ["labelsTs", "labelsTr", "labels"])
def test_masks_of_new_scans_are_found_beside_them_and_need_not_be_whole(place, touch):
    folder = touch("a.nii", "b.nii.gz", f"{place}/b.nii", f"{place}/of another.nii")
    expected = {"a": ("a.nii", None), "b": ("b.nii.gz", f"{place}/b.nii")}
    assert names_of(find_scans(folder), folder) == expected


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["s.nii", "s.nii.gz"], "s.nii.gz: of the same id as s.nii; rename or remove one"),
        (["Scan.nii", "scan.nii"], "scan.nii: of the same id as Scan.nii"),
        (["a.nii.gz", "a (1).nii.gz"], r"a \(1\).nii.gz: of the same id as a.nii.gz"),
        (["a.nii", "b.mha"], "b.mha: convert it to .nii.gz"),
        (["imagesTs/b.nrrd"], "b.nrrd: convert it to .nii.gz"),
    ],
)
def test_new_scans_whose_names_leave_a_doubt_are_refused(names, words, touch):
    with pytest.raises(ValueError, match=words):
        find_scans(touch(*names))


@pytest.mark.parametrize("names", [[], ["notes.txt"], ["._a.nii"], ["deeper/still/a.nii"]])
def test_a_folder_without_scans_is_refused_by_name(names, touch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no scan found. Expected \.nii or \.nii\.gz") as e:
        find_scans(touch(*names))
    assert str(tmp_path) in str(e.value)


def test_a_missing_folder_of_scans_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        find_scans(tmp_path / "nowhere")


def test_new_scans_need_no_masks_but_those_that_they_have_are_checked(
    make_arrays, write_nifti, affine, tmp_path
):
    image, mask = make_arrays()
    scan = write_nifti(tmp_path / "scan.nii", image, affine)
    masks = {"sound": mask, "shifted": mask[:-1]}
    paths = {i: write_nifti(tmp_path / f"{i}.nii", m, affine) for i, m in masks.items()}
    cases = [Case("none", scan), *(Case(i, scan, path) for i, path in paths.items())]
    table = check_cases(cases, need_masks=False).set_index("case")
    assert table.loc[["none", "sound"], "problem"].tolist() == ["", ""]
    assert "shifted.nii: its shape" in table.loc["shifted", "problem"]
    assert pd.isna(table.loc["none", "volume_ml"])
    assert table.loc["sound", "volume_ml"] == pytest.approx(0.36)
    refuse_problems(table.loc[["none", "sound"]].reset_index())
    cut = write_nifti(tmp_path / "cut.nii", image, affine)
    cut.write_bytes(cut.read_bytes()[:-1])
    (problem,) = check_cases([Case("cut", cut)], need_masks=False)["problem"]
    assert "cut.nii: cannot be read as NIfTI" in problem
    assert "no mask" not in problem
