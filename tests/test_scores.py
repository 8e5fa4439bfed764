import numpy as np
import pandas as pd
import pytest

from unetseg.cases import Case
from unetseg.scores import METRICS, rank_cases, score_predictions, summarise

LABELS = {1: "front", 4: "back"}
SHAPE = (6, 5, 4)
NAN, INF = float("nan"), float("inf")


def box(label, x, y, z):
    array = np.zeros(SHAPE, np.uint8)
    array[slice(*x), slice(*y), slice(*z)] = label
    return array


def flipped(array, affine):
    """The same voxels at the same places, stored from right to left."""
    turned = affine.copy()
    turned[:, 3] += (array.shape[0] - 1) * affine[:, 0]
    turned[:, 0] *= -1
    return array[::-1], turned


@pytest.fixture
def cohort(tmp_path, write_nifti, affine):
    """Three cases with masks and predictions, and their folds.

    a: label 1 has 2 x 2 x 2 voxels, the prediction lies one voxel (1 mm) further along x; label
    4 is in neither mask. b: label 1 is missed; label 4 is predicted exactly. c: label 1 has one
    voxel, predicted (2, 6, 3) mm away, that is 7 mm; label 4 is predicted where there is none.
    """
    true = {
        "a": box(1, (1, 3), (1, 3), (1, 3)),
        "b": box(1, (0, 2), (0, 1), (0, 3)) + box(4, (3, 6), (2, 4), (0, 4)),
        "c": box(1, (1, 2), (1, 2), (1, 2)),
    }
    pred = {
        "a": box(1, (2, 4), (1, 3), (1, 3)),
        "b": box(4, (3, 6), (2, 4), (0, 4)),
        "c": box(1, (3, 4), (4, 5), (2, 3)) + box(4, (0, 1), (0, 1), (0, 1)),
    }
    found = []
    for case_id in "abc":
        mask = write_nifti(tmp_path / "labels" / f"{case_id}.nii.gz", true[case_id], affine)
        stored = flipped(pred[case_id], affine) if case_id == "c" else (pred[case_id], affine)
        write_nifti(tmp_path / "predictions" / f"{case_id}.nii.gz", *stored)
        group = None if case_id == "c" else f"patient {case_id}"
        found.append(Case(case_id, tmp_path / "no scan is read", mask, group))
    folds = [{"train": ["a"], "val": ["c", "b"]}, {"train": ["b", "c"], "val": ["a"]}]
    return found, tmp_path / "predictions", folds


def test_scores_are_those_worked_out_by_hand(cohort):
    scores = score_predictions(*cohort, LABELS)
    # Voxels of 1 x 2 x 3 mm = 0.006 ml. In a, half of 8 voxels overlap; of either box, the layer
    # that the other one lacks lies 1 mm away.
    expected = [
        ("a", "patient a", 1, 1, "front", 0.5, 1, 1, 0.048, 0.048),
        ("a", "patient a", 1, 4, "back", NAN, NAN, NAN, 0, 0),
        ("b", "patient b", 0, 1, "front", 0, INF, INF, 0.036, 0),
        ("b", "patient b", 0, 4, "back", 1, 0, 0, 0.144, 0.144),
        ("c", None, 0, 1, "front", 0, 7, 7, 0.006, 0.006),
        ("c", None, 0, 4, "back", 0, INF, INF, 0, 0.006),
    ]
    columns = ["case", "group", "fold", "label", "name", *METRICS]
    expected = pd.DataFrame(expected, columns=columns)
    pd.testing.assert_frame_equal(scores[columns], expected, check_dtype=False)
    assert set(scores.columns) == set(columns)


def test_a_case_that_no_fold_validates_is_left_out(cohort):
    found, predictions, _ = cohort
    (predictions / "b.nii.gz").unlink()
    scores = score_predictions(found, predictions, [{"train": ["b"], "val": ["a", "c"]}], LABELS)
    assert scores["case"].unique().tolist() == ["a", "c"]


def test_all_missing_predictions_are_listed(cohort):
    found, predictions, folds = cohort
    (predictions / "a.nii.gz").unlink()
    (predictions / "c.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions: no prediction for 2 cases: a, c\."):
        score_predictions(found, predictions, folds, LABELS)


def test_all_missing_cases_are_listed(cohort):
    found, predictions, folds = cohort
    without_mask = Case("a", found[0].image, None)
    with pytest.raises(FileNotFoundError, match=r"2 cases of the folds: a, b\."):
        score_predictions([without_mask, found[2]], predictions, folds, LABELS)


@pytest.mark.parametrize(
    ("shape", "shift_mm", "words"), [((5, 5, 4), 0, r"\(5, 5, 4\)"), (SHAPE, 3, "3 mm")]
)
def test_a_prediction_on_another_grid_is_refused_by_name(
    shape, shift_mm, words, cohort, write_nifti, affine
):
    found, predictions, folds = cohort
    moved = affine.copy()
    moved[2, 3] += shift_mm
    write_nifti(predictions / "b.nii.gz", np.ones(shape, np.uint8), moved)
    with pytest.raises(ValueError, match=rf"predictions/b\.nii\.gz.*{words}.*labels/b\.nii\.gz"):
        score_predictions(found, predictions, folds, LABELS)


def table_of(**columns):
    """Scores of one label and case per number; metrics that are not given are 1."""
    n = len(next(iter(columns.values())))
    table = {"case": [f"case {k}" for k in range(n)], "label": 1, "name": "front"}
    return pd.DataFrame({**table, **dict.fromkeys(METRICS, 1.0), **columns})


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # 0.5, 0.7, 0.9: squares of the deviations 0.04 + 0 + 0.04 over 2 is 0.2 squared.
        ([0.9, NAN, 0.5, 0.7], (4, 0.7, 0.2, 0.7, 0.6, 0.8, 1, 0)),
        ([INF, 2.0, NAN, INF], (4, 2, NAN, 2, 2, 2, 1, 2)),
        # Quartiles of 4 numbers stand at 0.75 and 2.25; the deviations are -3, -2, 0, 5.
        ([1, 2, 4, 9], (4, 4, (38 / 3) ** 0.5, 3, 1.75, 5.25, 0, 0)),
        ([NAN, NAN], (2, NAN, NAN, NAN, NAN, NAN, 2, 0)),
        ([INF], (1, NAN, NAN, NAN, NAN, NAN, 0, 1)),
    ],
)
@pytest.mark.parametrize("metric", ["dice", "hausdorff_mm"])
def test_a_summary_counts_what_has_no_number(metric, values, expected):
    scores = table_of(**{metric: values})
    before = scores.copy()
    summary = summarise(scores).set_index("metric")
    statistics = ["n", "mean", "sd", "median", "q1", "q3", "nan", "inf"]
    np.testing.assert_allclose(summary.loc[metric, statistics].astype(float), expected)
    others = summary.drop(metric)
    assert set(others.index) == set(METRICS) - {metric}
    assert (others[["mean", "median"]] == 1).all(axis=None)
    assert (others[["nan", "inf"]] == 0).all(axis=None)
    pd.testing.assert_frame_equal(scores, before)


def test_a_summary_keeps_the_labels_apart(cohort):
    summary = summarise(score_predictions(*cohort, LABELS)).set_index(["metric", "label"])
    assert len(summary) == 2 * len(METRICS)
    assert summary.loc["dice", "name"].to_dict() == LABELS
    columns = ["n", "mean", "nan", "inf"]
    # Dice of label 1: 0.5, 0 and 0; of label 4: NaN, 1 and 0. Distances: 1, inf, 7; NaN, 0, inf.
    expected = {
        ("dice", 1): (3, 1 / 6, 0, 0),
        ("dice", 4): (3, 0.5, 1, 0),
        ("hausdorff_mm", 1): (3, 4, 0, 1),
        ("hd95_mm", 4): (3, 0, 1, 1),
        ("volume_true_ml", 1): (3, 0.03, 0, 0),
    }
    for row, numbers in expected.items():
        np.testing.assert_allclose(summary.loc[row, columns].astype(float), numbers)


def test_cases_are_ranked_by_their_mean_dice_with_ties_in_order_and_nan_last():
    dice = {"x": (NAN, NAN), "a": (0.9, 0.5), "d": (0.6, 0.8), "b": (NAN, 0.8), "c": (0.0, 0.1)}
    rows = [{"case": case, "dice": d} for case, pair in dice.items() for d in pair]
    ranked = rank_cases(pd.DataFrame(rows))
    assert ranked.index.tolist() == ["b", "a", "d", "c", "x"]
    np.testing.assert_allclose(ranked, [0.8, 0.7, 0.7, 0.05, NAN])
