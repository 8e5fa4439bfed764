"""Folders of scans: which files belong together. What users see of it is in test_cases."""

import pytest

from unetseg.reading.folders import (
    find_first,
    find_listed_pairs,
    find_named_pairs,
    join_channels,
    list_files,
)


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def test_files_are_listed_by_their_names_without_the_suffix(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "notes.txt", ".hidden.nii")
    problems = []
    assert list_files(tmp_path, problems) == {
        "a": tmp_path / "a.nii",
        "b": tmp_path / "b.nii.gz",
    }
    assert problems == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scan.mgz", "convert it to .nii.gz"),
        ("scan.nii.gz.crdownload", "its download never ended"),
        ("scans.zip", "an archive; unpack it here"),
        ("scan.hdr", "a header alone: copy its scan.img"),
    ],
)
def test_what_should_be_a_scan_and_is_none_is_a_problem(name, words, tmp_path):
    touch(tmp_path, name)
    problems = []
    assert list_files(tmp_path, problems) == {}
    assert len(problems) == 1
    assert words in problems[0]


def test_the_first_folder_that_holds_files_counts(tmp_path):
    touch(tmp_path / "empty")
    touch(tmp_path / "second", "a.nii")
    touch(tmp_path / "third", "b.nii")
    folders = [tmp_path / name for name in ("missing", "empty", "second", "third")]
    assert [*find_first(folders, [])] == ["a"]
    assert find_first(folders[:2], []) == {}


@pytest.mark.parametrize(
    ("names", "joined"),
    [
        (["a_0000", "a_0001", "b_0000", "b_0001"], {"a": 2, "b": 2}),
        (["a_0001", "a_0002"], None),  # 0000 is not there
        (["a_0000", "a_0002"], None),  # a gap
        (["a_0000", "b"], None),  # not all are numbered
        (["a_0000"], {"a": 1}),
        ([], None),
    ],
)
def test_channels_are_joined_if_all_files_are_numbered_without_a_gap(names, joined):
    scans = {name: f"{name}.nii" for name in names}
    found = join_channels(scans)
    if joined is None:
        assert found is scans
    else:
        assert {name: len(files) for name, files in found.items()} == joined


def test_scans_and_masks_of_one_name_are_pairs_and_orphans_are_named(tmp_path):
    touch(tmp_path / "images", "a.nii", "b.nii")
    touch(tmp_path / "labels", "a.nii", "c.nii")
    problems = []
    pairs = find_named_pairs(tmp_path, problems)
    assert pairs["a"] == (tmp_path / "images" / "a.nii", tmp_path / "labels" / "a.nii")
    assert pairs["b"] == (tmp_path / "images" / "b.nii", None)
    assert [problem.split(": ")[1] for problem in problems] == [
        "no scan is named c; rename or remove one",
        "this scan has no mask; rename or remove one",
    ]


def test_listed_pairs_stay_inside_the_folder(tmp_path):
    touch(tmp_path, "a.nii")
    (tmp_path / "dataset.json").write_text(
        '{"training": [{"image": "a.nii", "label": "m.nii"}, {"image": "../b.nii", "label": "x"}]}'
    )
    problems = []
    assert find_listed_pairs(tmp_path, problems) == {"a": (tmp_path / "a.nii", None)}
    assert len(problems) == 1
    assert "is no pair of files in the folder" in problems[0]
