import inspect

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from unetseg import sample
from unetseg.cases import check_cases, find_cases, read_label_names
from unetseg.sample import make_sample

IDS = ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample") / "new" / "folder", n_cases=3, seed=0)


@pytest.fixture(scope="module")
def scans(folder):
    """Image and mask of every case, as stored."""
    return {
        i: [nib.load(folder / f / f"{i}.nii.gz") for f in ("imagesTr", "labelsTr")] for i in IDS
    }


def state_of(folder, stamp=False):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), stamp and path.stat().st_mtime_ns)
        for path in files
    }


def test_the_same_seed_gives_the_same_bytes(folder, tmp_path):
    again = make_sample(str(tmp_path), n_cases=3, seed=0)
    assert again == tmp_path
    names = {f"{f}/{i}.nii.gz" for f in ("imagesTr", "labelsTr") for i in IDS} | {"dataset.json"}
    assert state_of(again) == state_of(folder)
    assert state_of(again).keys() == names


def test_another_seed_gives_other_people_with_other_ids(folder, tmp_path):
    other, first = state_of(make_sample(tmp_path, n_cases=1, seed=1)), state_of(folder)
    for part in ("imagesTr", "labelsTr"):
        new = other[f"{part}/sub-101_ses-1.nii.gz"]
        assert new != first[f"{part}/sub-01_ses-1.nii.gz"]
    assert {case.group for case in find_cases(tmp_path)} == {"sub-101"}


def test_the_cohort_is_found_grouped_and_sound(folder):
    found = find_cases(folder)
    assert [case.id for case in found] == IDS
    assert [case.group for case in found] == ["sub-01", "sub-01", "sub-02"]
    names = read_label_names(folder)
    assert names == {1: "grey matter", 2: "white matter"}
    table = check_cases(found, labels=names)
    assert table["problem"].tolist() == [""] * 3
    assert table["labels"].tolist() == [(1, 2)] * 3
    assert table["spacing_mm"].tolist() == [(3, 3, 3)] * 3
    # The template's brain has about 1.8 litres, and every axis is scaled by at most 7 %.
    assert table["volume_ml"].between(1800 * 0.93**3, 1800 * 1.07**3).all()


def test_scans_lie_obliquely_on_a_grid_of_3_mm_from_right_to_left(scans):
    for image, mask in scans.values():
        np.testing.assert_array_equal(image.affine, mask.affine)
        assert image.shape == mask.shape
        np.testing.assert_allclose(nib.affines.voxel_sizes(image.affine), 3, rtol=1e-6)
        assert "".join(nib.aff2axcodes(image.affine)) == "LAS"
        tilt = np.degrees(nib.affines.obliquity(image.affine))
        assert 0.1 < tilt.max() < 15
        assert image.get_data_dtype() == np.int16
        assert mask.get_data_dtype() == np.uint8


def brain_on(grid, mask):
    """Whether the voxels of a grid, by their places in mm, are brain in a mask."""
    places = np.moveaxis(np.indices(grid.shape), 0, -1)
    to_index = np.linalg.inv(mask.affine) @ grid.affine
    index = np.moveaxis(nib.affines.apply_affine(to_index, places), -1, 0)
    return ndimage.map_coordinates(np.asarray(mask.dataobj), index, order=0) > 0


def overlap(first, second):
    a, b = np.asarray(first.dataobj) > 0, brain_on(first, second)
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_two_visits_of_a_patient_share_the_anatomy_and_not_the_image(scans):
    (image_1, mask_1), (image_2, mask_2), (_, mask_other) = (scans[i] for i in IDS)
    for label in (1, 2):
        voxels = [np.count_nonzero(np.asarray(m.dataobj) == label) for m in (mask_1, mask_2)]
        assert voxels[0] == pytest.approx(voxels[1], rel=0.05)
    assert overlap(mask_1, mask_2) > 0.9 > overlap(mask_1, mask_other)
    assert not np.allclose(image_1.affine, image_2.affine, atol=0.1)
    inside = [
        np.asarray(i.dataobj)[np.asarray(m.dataobj) == 2]
        for i, m in ((image_1, mask_1), (image_2, mask_2))
    ]
    quartiles = [np.percentile(values, (25, 50, 75)) for values in inside]
    assert not np.allclose(*quartiles, rtol=0.01)


def test_white_matter_is_brighter_than_grey_and_grey_than_air_as_in_t1(scans):
    for image, mask in scans.values():
        values, labels = np.asarray(image.dataobj), np.asarray(mask.dataobj)
        grey, white = (np.median(values[labels == label]) for label in (1, 2))
        assert white > 1.1 * grey
        assert grey > 5 * np.median(values[:3])  # at the image's edge


def test_a_complete_sample_is_left_as_it_is(folder):
    before = state_of(folder, stamp=True)
    assert make_sample(folder, n_cases=3, seed=0) == folder
    assert state_of(folder, stamp=True) == before


@pytest.mark.parametrize("wanted", [{"n_cases": 3, "seed": 1}, {"n_cases": 2, "seed": 0}, {}])
def test_a_folder_with_another_sample_is_refused(wanted, folder):
    before = state_of(folder, stamp=True)
    with pytest.raises(ValueError, match=r"folder: holds something other than this sample"):
        make_sample(folder, **wanted)
    assert state_of(folder, stamp=True) == before


@pytest.mark.parametrize("name", ["imagesTr/mine.nii.gz", "notes.txt", "dataset.json"])
def test_a_folder_with_something_else_is_refused_and_kept(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{}")
    with pytest.raises(ValueError, match="holds something other than this sample"):
        make_sample(tmp_path, n_cases=1)
    assert state_of(tmp_path) == {name: (b"{}", False)}


def test_an_interrupted_sample_is_completed_by_the_next_call(folder, tmp_path, monkeypatch):
    write = sample.write

    def interrupted(path, image):
        if path.parent.name == "labelsTr":
            raise KeyboardInterrupt
        write(path, image)

    with monkeypatch.context() as patch:
        patch.setattr(sample, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_sample(tmp_path, n_cases=1)
    assert state_of(tmp_path).keys() == {"imagesTr/sub-01_ses-1.nii.gz"}
    make_sample(tmp_path, n_cases=1)
    scans = {name: state for name, state in state_of(tmp_path).items() if name != "dataset.json"}
    assert scans.items() <= state_of(folder).items()
    assert len(find_cases(tmp_path)) == 1


def test_by_default_12_patients_have_16_scans():
    n_cases = inspect.signature(make_sample).parameters["n_cases"].default
    visits = list(sample._visits(n_cases, seed=0))
    ids = [case_id for case_id, *_ in visits]
    assert len(set(ids)) == len(ids) == 16
    patients = [case_id.split("_")[0] for case_id in ids]
    assert sorted(set(patients)) == [f"sub-{k:02d}" for k in range(1, 13)]
    # Every third patient comes twice: 12 + 4 scans.
    twice = {patient for patient in patients if patients.count(patient) == 2}
    assert twice == {"sub-01", "sub-04", "sub-07", "sub-10"}
