"""Tables of scores: a row per case and label, their summary, and the comparison of two runs."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from scipy.stats import bootstrap, wilcoxon

from unetseg import nifti
from unetseg.metrics import score_case
from unetseg.tables import read_results
from unetseg.workspace import refuse_any, require

METRICS = ("dice", "surface_dice", "hausdorff_mm", "hd95_mm", "assd_mm", "sensitivity")
METRICS += ("precision", "volume_true_ml", "volume_pred_ml", "volume_difference_ml")
RESAMPLES = 9999


def read_pairs(cases, predictions_dir, folds):
    """Read the true and the predicted mask of every case that a fold validates.

    Parameters
    ----------
    cases : iterable of Case
        With masks; those that no fold validates are left out.
    predictions_dir : str or Path
        Holds ``<case>.nii.gz``.
    folds : list of dict
        As in ``splits.json``.

    Yields
    ------
    case : Case
    fold : int
    labels_true, labels_pred : (x, y, z) ndarray of int32
        In RAS+.
    spacing_mm : (3,) ndarray

    Raises
    ------
    FileNotFoundError
        If a case or a prediction is missing; lists all of them.
    ValueError
        If a prediction is not on the grid of the mask.
    """
    by_id = {case.id: case for case in cases}
    fold_of = {case_id: number for number, fold in enumerate(folds) for case_id in fold["val"]}
    missing = sorted(i for i in fold_of if i not in by_id or by_id[i].mask is None)
    subject, advice = "No mask for", "Point DATA to the folder they were trained from."
    refuse_any(missing, subject, "cases of the folds", advice, FileNotFoundError)
    paths = {i: Path(predictions_dir) / f"{i}.nii.gz" for i in fold_of}
    missing = sorted(i for i, path in paths.items() if not path.is_file())
    subject = f"{predictions_dir}: no prediction for"
    advice = "Run 02_train_kfold until every fold is finished."
    refuse_any(missing, subject, "cases", advice, FileNotFoundError)
    for case_id, fold in sorted(fold_of.items()):
        true, affine = nifti.load_mask(by_id[case_id].mask)
        pred, pred_affine = nifti.load_mask(paths[case_id])
        if mismatch := nifti.describe_grid_mismatch(true.shape, affine, pred.shape, pred_affine):
            problem = f"its {mismatch} of the mask {by_id[case_id].mask}"
            raise ValueError(f"{paths[case_id]}: {problem}. Predict the case again.")
        yield by_id[case_id], fold, true, pred, voxel_sizes(affine)


def score_predictions(cases, predictions_dir, folds, labels, *, tolerance_mm=1.0):
    """Score every case of every fold on its native grid.

    Parameters
    ----------
    cases, predictions_dir, folds
        As for `read_pairs`, whose errors it raises.
    labels : dict of int to str
        Value and name of every label.
    tolerance_mm : float, default 1
        Of the surface Dice.

    Returns
    -------
    pandas.DataFrame
        A row per case and label: ``case``, ``group``, ``fold``, ``label``, ``name`` and the
        columns of `unetseg.metrics.score_case`.
    """
    rows = []
    for case, fold, true, pred, spacing in read_pairs(cases, predictions_dir, folds):
        about = {"case": case.id, "group": case.group, "fold": fold}
        scored = score_case(true, pred, spacing, labels, tolerance_mm=tolerance_mm)
        rows += [{**about, "name": labels[row["label"]], **row} for row in scored]
    return pd.DataFrame(rows)


def load_scores(path):
    """Read scores back as they were written: ids stay text, and missing groups missing.

    Parameters
    ----------
    path : str or Path
        ``scores.csv`` of an experiment.

    Returns
    -------
    pandas.DataFrame
        As `score_predictions` returns it.

    Raises
    ------
    ValueError
        If columns are missing, such as in scores of an earlier version.
    """
    scores = read_results(path)
    missing = [name for name in ("group", *METRICS, "tolerance_mm") if name not in scores]
    refuse_any(missing, f"{path}:", "columns are missing", "Run 03_evaluate on it again.")
    return scores.replace({"group": {"": np.nan}})


def count_confusion(cases, predictions_dir, folds, labels):
    """Count the voxels of every true label by what was predicted there.

    Parameters
    ----------
    cases, predictions_dir, folds, labels
        As for `score_predictions`.

    Returns
    -------
    pandas.DataFrame
        Voxels of all cases together: a row per true and a column per predicted label, named,
        "background" first. Values that are in `labels` nowhere count as background.
    """
    names = ["background", *labels.values()]
    counts = np.zeros((len(names), len(names)), int)
    for _, _, true, pred, _ in read_pairs(cases, predictions_dir, folds):
        pair = np.zeros(true.shape, int)
        for place, label in enumerate(labels, start=1):
            pair += place * (len(names) * (true == label) + (pred == label))
        counts += np.bincount(pair.ravel(), minlength=counts.size).reshape(counts.shape)
    true_names, pred_names = (pd.Index(names, name=name) for name in ("true", "predicted"))
    return pd.DataFrame(counts, true_names, pred_names)


def summarise(scores):
    """Summarise scores per label, and count what has no number.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.

    Returns
    -------
    pandas.DataFrame
        A row per label and metric: ``label``, ``name``, ``metric``, ``n`` cases; over the finite
        values ``mean``, ``sd`` (n - 1), ``ci_low`` and ``ci_high`` of the mean, ``median``,
        ``q1``, ``q3``; how many of the ``n`` were ``nan`` (not defined: such as a label in
        neither mask) or ``inf`` (a label in one mask only); and ``failures``, the ids of the
        cases whose Dice is 0: the label missed, invented, or nowhere overlapping.

    Notes
    -----
    The interval holds the mean with 95 % confidence: percentiles of 9,999 bootstrap means, in
    which patients, not cases, are drawn (Efron and Tibshirani 1993). NaN for a single patient.
    """
    failed = scores[scores["dice"] == 0].astype({"case": str})
    failed = failed.groupby("label")["case"].agg("; ".join)
    rows = []
    for (label, name), part in scores.groupby(["label", "name"], sort=False, dropna=False):
        for metric in METRICS:
            values = part[metric].astype(float)
            finite = values[np.isfinite(values)]
            low, high = _interval(finite, _patients(part)[finite.index])
            row = {"label": label, "name": name, "metric": metric, "n": len(values)}
            row |= {"mean": finite.mean(), "sd": finite.std(), "ci_low": low, "ci_high": high}
            row |= dict(
                zip(("q1", "median", "q3"), finite.quantile((0.25, 0.5, 0.75)), strict=True)
            )
            row |= {"nan": np.isnan(values).sum(), "inf": np.isinf(values).sum()}
            rows.append(row | {"failures": failed.get(label, "")})
    return pd.DataFrame(rows)


def _patients(scores):
    return scores["group"].where(scores["group"].notna(), scores["case"]).astype(str)


def _interval(values, patients):
    sums = values.groupby(patients).agg(["sum", "size"])
    if len(sums) < 2:
        return np.nan, np.nan

    def mean(total, size, axis):
        return total.sum(axis) / size.sum(axis)

    settings = {"n_resamples": RESAMPLES, "method": "percentile", "paired": True, "batch": 1000}
    drawn = bootstrap((sums["sum"], sums["size"]), mean, **settings, rng=np.random.default_rng(0))
    return tuple(drawn.confidence_interval)


def compare(first, second):
    """Compare two experiments on the same cases, case by case.

    Parameters
    ----------
    first, second : pandas.DataFrame
        As `score_predictions` returns them.

    Returns
    -------
    pandas.DataFrame
        A row per label and metric: ``label``, ``name``, ``metric``, ``n`` cases; over the cases
        that are finite in both the means ``first`` and ``second``, their ``difference`` (second -
        first) with ``ci_low`` and ``ci_high`` as in `summarise`, and ``p`` of Wilcoxon's signed
        rank test on the mean differences of the patients (two-sided; 1 if none differs, NaN if
        there is none); and how many cases were ``left_out``.

    Raises
    ------
    ValueError
        If the cases, the labels or the tolerance of the surface Dice differ, or the true volumes
        do: the masks were not the same.
    """
    keys = ["case", "label"]
    first, second = (scores.astype({"case": str}) for scores in (first, second))
    both = first.merge(second, on=keys, how="outer", suffixes=("", "_2"), indicator=True)
    alone = sorted(set(both.loc[both["_merge"] != "both", "case"]))
    advice = "Compare experiments on the same cases and labels."
    refuse_any(alone, "The experiments do not share", "cases", advice)
    tolerances = {*first["tolerance_mm"], *second["tolerance_mm"]}
    require("tolerance_mm", sorted(tolerances), len(tolerances) < 2, "the same in both experiments")
    moved = ~np.isclose(both["volume_true_ml"], both["volume_true_ml_2"], rtol=1e-4)
    moved = sorted(set(both.loc[moved, "case"]))
    refuse_any(moved, "The true masks changed in", "cases", "Run 03_evaluate again for both.")
    rows = []
    parts = both.groupby(["label", "name"], sort=False, dropna=False)
    compared = [metric for metric in METRICS if metric != "volume_true_ml"]
    for ((label, name), part), metric in product(parts, compared):
        pairs = part[[metric, f"{metric}_2"]].astype(float).to_numpy()
        finite = np.isfinite(pairs).all(axis=1)
        patients = _patients(part)[finite]
        difference = pd.Series(np.diff(pairs[finite]).ravel(), patients.index)
        row = {"label": label, "name": name, "metric": metric, "n": len(part)}
        row |= pd.DataFrame(pairs[finite], columns=["first", "second"]).mean().to_dict()
        low, high = _interval(difference, patients)
        row |= {"difference": difference.mean(), "ci_low": low, "ci_high": high}
        means = difference.groupby(patients).mean().round(12)
        row["p"] = wilcoxon(means).pvalue if means.any() else 1.0 if len(means) else np.nan
        rows.append(row | {"left_out": int((~finite).sum())})
    return pd.DataFrame(rows)


def rank_cases(scores):
    """Order cases by their mean Dice over the labels.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.

    Returns
    -------
    pandas.Series
        Mean Dice by case id, the best first. A label in neither mask does not count; cases
        without any label come last, with NaN.
    """
    return scores.groupby("case")["dice"].mean().sort_values(ascending=False, kind="stable")
