"""Folders of scans: which files belong together. What users see of it is in test_cases."""

import pytest

from unetseg.cases import Case, find_cases
from unetseg.reading.folders import (
    add_cases,
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


def corrected(folder, name="a", channels=1):
    """A scan with its mask, as files of a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}_{k}.nii.gz" for k in range(channels)]
    for path in (*paths, mask := folder / f"{name}_drawn.NII.GZ"):
        path.write_bytes(path.name.encode())
    return Case(name, tuple(paths) if channels > 1 else paths[0], mask)


@pytest.mark.parametrize(
    ("there", "channels", "names"),
    [
        ((), 1, {"images/a.nii.gz", "labels/a.nii.gz"}),
        (("imagesTr", "labelsTr"), 1, {"imagesTr/a.nii.gz", "labelsTr/a.nii.gz"}),
        ((), 2, {"images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz"}),
    ],
)
def test_cases_are_added_in_the_layout_of_the_data_set(there, channels, names, tmp_path):
    for folder in there:
        (tmp_path / "data" / folder).mkdir(parents=True)
    case = corrected(tmp_path / "new", channels=channels)
    assert add_cases(tmp_path / "data", [case]) == 1
    files = {p.relative_to(tmp_path / "data").as_posix() for p in (tmp_path / "data").rglob("*.gz")}
    assert files == names
    assert [found.id for found in find_cases(tmp_path / "data")] == ["a"]
    assert add_cases(tmp_path / "data", [case]) == 0  # they are there


def test_no_case_is_replaced(tmp_path):
    touch(tmp_path / "data/images", "a.nii.gz")
    cases = [corrected(tmp_path / "new", name) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"1 other files have these names: a\.nii\.gz\. Rename"):
        add_cases(tmp_path / "data", cases)
    assert [path.name for path in (tmp_path / "data").rglob("*.gz")] == ["a.nii.gz"]


def test_a_data_set_that_lists_its_cases_is_left_alone(tmp_path):
    touch(tmp_path, "dataset.json")
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "a", "label": "b"}]}')
    with pytest.raises(ValueError, match=r"dataset\.json lists the cases one by one"):
        add_cases(tmp_path, [corrected(tmp_path / "new")])


def test_a_scan_is_numbered_where_scans_are(tmp_path):
    touch(tmp_path / "data/imagesTr", "c_0000.nii.gz")
    touch(tmp_path / "data/labelsTr", "c.nii.gz")
    assert add_cases(tmp_path / "data", [corrected(tmp_path / "new")]) == 1
    assert (tmp_path / "data/imagesTr/a_0000.nii.gz").exists()
    assert [case.id for case in find_cases(tmp_path / "data")] == ["a", "c"]


def test_a_copy_that_was_cut_off_goes_on_as_it_began(tmp_path):
    for place in ("images", "labels"):
        touch(tmp_path / "data" / place, "case_0001.nii.gz", "case_0002.nii.gz")
    case = corrected(tmp_path / "new", "case_0003")
    assert add_cases(tmp_path / "data", [case]) == 1
    whole = sorted((tmp_path / "data").rglob("*.gz"))
    (tmp_path / "data/labels/case_0003.nii.gz").unlink()
    assert add_cases(tmp_path / "data", [case]) == 1
    assert sorted((tmp_path / "data").rglob("*.gz")) == whole


def test_cases_go_where_the_others_are_and_hide_none(tmp_path):
    touch(tmp_path / "data/images", "c.nii.gz")
    touch(tmp_path / "data/labels", "c.nii.gz")
    (tmp_path / "data/imagesTr").mkdir()
    add_cases(tmp_path / "data", [corrected(tmp_path / "new")])
    assert [case.id for case in find_cases(tmp_path / "data")] == ["a", "c"]
    touch(tmp_path / "flat", "c.nii.gz")
    with pytest.raises(ValueError, match=r"would not be found any more\. Move"):
        add_cases(tmp_path / "flat", [corrected(tmp_path / "new")])
    assert [path.name for path in (tmp_path / "flat").rglob("*")] == ["c.nii.gz"]


@pytest.mark.parametrize("name", ["a.nii", "A.nii.gz"])
def test_an_id_that_is_there_in_another_form_is_refused(name, tmp_path):
    touch(tmp_path / "data/images", name)
    with pytest.raises(ValueError, match="other files have these names"):
        add_cases(tmp_path / "data", [corrected(tmp_path / "new")])


def test_several_files_are_not_put_beside_single_ones(tmp_path):
    touch(tmp_path / "data/images", "c.nii.gz")
    with pytest.raises(
        ValueError, match="cases must be one file each, as the scans that are there"
    ):
        add_cases(tmp_path / "data", [corrected(tmp_path / "new", channels=2)])
