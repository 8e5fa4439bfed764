"""Lesions found, missed and made up: by hand, and against panoptica."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from unetseg import lesions
from unetseg.cases import Case

NAMES = {1: "lesion"}


def blobs(seed):
    rng = np.random.default_rng(seed)
    noise, other = (ndimage.gaussian_filter(rng.normal(size=(40, 36, 20)), 1.6) for _ in range(2))
    return noise > 0.12, 0.8 * noise + 0.45 * other > 0.115


# Found, false and missed by panoptica 2.1.7: connected components, naive matching by IoU.
@pytest.mark.parametrize(
    ("overlap", "seed", "expected"),
    [
        (0.5, 0, (13, 40, 47)),
        (0.5, 1, (8, 41, 36)),
        (0.5, 2, (6, 31, 36)),
        (0.5, 3, (10, 29, 33)),
        (0.25, 0, (23, 30, 37)),
        (0.25, 1, (25, 24, 19)),
        (0.25, 2, (20, 17, 22)),
        (0.25, 3, (18, 21, 25)),
    ],
)
def test_lesions_are_matched_as_panoptica_does(overlap, seed, expected):
    counts = Counter(row["lesion"] for row in lesions.match_lesions(*blobs(seed), overlap=overlap))
    assert tuple(counts[kind] for kind in ("found", "false", "missed")) == expected


def boxes(*starts, side=2):
    mask = np.zeros((20, 8, 8), bool)
    for x in starts:
        mask[x : x + side, 2 : 2 + side, 2 : 2 + side] = True
    return mask


def test_one_voxel_is_enough_unless_an_overlap_is_asked_for():
    true, pred = boxes(2, 10), boxes(3, 15)
    any_voxel = lesions.match_lesions(true, pred)
    assert [(row["lesion"], row["voxels"]) for row in any_voxel] == [
        ("found", 8),
        ("missed", 8),
        ("false", 8),
    ]
    assert any_voxel[0]["iou"] == pytest.approx(4 / 12)
    half = lesions.match_lesions(true, pred, overlap=0.5)
    assert [row["lesion"] for row in half] == ["missed", "missed", "false", "false"]


def test_one_prediction_over_two_lesions_finds_both_or_one():
    true = boxes(2, 6)
    pred = np.zeros_like(true)
    pred[2:8, 2:4, 2:4] = True
    assert [row["lesion"] for row in lesions.match_lesions(true, pred)] == ["found", "found"]
    paired = lesions.match_lesions(true, pred, overlap=0.3)
    assert [row["lesion"] for row in paired] == ["found", "missed"]


def test_corners_connect_and_small_lesions_do_not_count():
    true = np.zeros((6, 6, 6), bool)
    true[1, 1, 1] = true[2, 2, 2] = True
    nothing = np.zeros_like(true)
    assert [row["voxels"] for row in lesions.match_lesions(true, nothing)] == [2]
    assert lesions.match_lesions(true, true, least_voxels=3) == []
    assert lesions.match_lesions(nothing, nothing) == []
    assert lesions.match_lesions(true[1], true[1])[0]["voxels"] == 1  # a slice


def test_what_is_too_small_to_count_can_still_be_what_another_one_is_found_by():
    small, large = boxes(4), boxes(3, side=4)  # 8 voxels within 64
    at_least = {"least_voxels": 10}
    assert lesions.match_lesions(small, large, **at_least) == []
    (row,) = lesions.match_lesions(large, small, **at_least)
    assert (row["lesion"], row["voxels"], row["iou"]) == ("found", 64, 8 / 64)
    assert lesions.match_lesions(small, boxes(12), **at_least) == []
    assert lesions.match_lesions(large, small, overlap=0.5, **at_least)[0]["lesion"] == "missed"


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_that_is_none_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap must be in"):
        lesions.match_lesions(boxes(2), boxes(2), overlap=overlap)


@pytest.fixture
def scored(write_nifti, tmp_path):
    """One patient with two lesions, of which one is found; two controls, one with a false one."""
    affine = np.diag([1.0, 2.0, 5.0, 1])  # 10 mm3: 8 voxels are 0.08 ml
    pairs = {"sick": (boxes(2, 10), boxes(2)), "well": (boxes(), boxes())}
    pairs["wrong"] = (boxes(), boxes(5))
    cases = []
    for name, (true, pred) in pairs.items():
        mask = write_nifti(tmp_path / "labels" / f"{name}.nii.gz", true.astype(np.uint8), affine)
        write_nifti(tmp_path / "run/predictions" / f"{name}.nii.gz", pred.astype(np.uint8), affine)
        cases.append(Case(name, None, mask))
    return cases, tmp_path / "run", [{"train": [], "val": [*pairs]}]


def test_lesions_and_false_positives_of_controls_are_counted(scored):
    cases, folder, folds = scored
    path = folder / "lesions.csv"
    found = lesions.evaluate(path, cases, folder / "predictions", folds, NAMES, overlap=0.0)
    again, rule = lesions.recall_lesions(path)
    pd.testing.assert_frame_equal(again.iloc[:, -4:], found.iloc[:, -4:])
    pd.testing.assert_frame_equal(lesions.count_lesions(again), lesions.count_lesions(found))
    assert rule == {"overlap": 0.0, "least_ml": 0.0}
    assert found["volume_ml"].tolist() == pytest.approx([0.08, 0.08, 0, 0.08])
    table = lesions.count_lesions(found)
    assert table["case"].tolist() == ["all", "sick", "well", "wrong"]
    row = table.iloc[0]
    assert tuple(row[["cases", "lesions", "found", "missed", "false"]]) == (3, 2, 1, 1, 1)
    assert tuple(row[["sensitivity", "precision", "f1"]]) == (0.5, 0.5, 0.5)
    assert tuple(row[["controls", "controls_with_false"]]) == (2, 1)
    assert row["false_ml_in_controls"] == pytest.approx(0.08)
    assert table.iloc[2][["sensitivity", "precision", "f1"]].isna().all()


def test_lesions_under_a_volume_do_not_count(scored):
    cases, folder, folds = scored
    where = cases, folder / "predictions", folds, NAMES
    for least_ml, count in ((0.08, 2), (0.081, 0)):
        found = lesions.find_lesions(*where, least_ml=least_ml)
        assert lesions.count_lesions(found)["lesions"].iloc[0] == count


def test_lesions_that_nobody_asks_for_leave_no_old_table(scored):
    cases, folder, folds = scored
    where = folder / "lesions.csv", cases, folder / "predictions", folds, NAMES
    lesions.evaluate(*where, overlap=0.5)
    assert lesions.evaluate(*where) is None
    assert lesions.recall_lesions(where[0]) == (None, {"overlap": None, "least_ml": 0.0})
    assert "LESIONS is not set" in lesions.count_lesions(None)


def test_the_rule_is_said():
    any_voxel = lesions.describe_rule({"overlap": 0.0, "least_ml": 0.0})
    assert any_voxel.endswith(
        "share a face, an edge or a corner; found if a voxel of it is predicted."
    )
    half = lesions.describe_rule({"overlap": 0.5, "least_ml": 0.003})
    assert "of 0.003 ml or more; found if it overlaps" in half
    assert "by 0.5 (IoU) or more" in half
