"""Tables of scores: a row per case and label, and their summary."""

from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from unetseg import nifti
from unetseg.metrics import score_case
from unetseg.workspace import refuse_any

METRICS = ("dice", "hausdorff_mm", "hd95_mm", "volume_true_ml", "volume_pred_ml")


def score_predictions(cases, predictions_dir, folds, labels):
    """Score every case of every fold on its native grid.

    Parameters
    ----------
    cases : iterable of Case
        With masks; those that no fold validates are left out.
    predictions_dir : str or Path
        Holds ``<case>.nii.gz``.
    folds : list of dict
        As in ``splits.json``.
    labels : dict of int to str
        Value and name of every label.

    Returns
    -------
    pandas.DataFrame
        A row per case and label: ``case``, ``group``, ``fold``, ``label``, ``name`` and the
        columns of `unetseg.metrics.score_case`.

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
    subject, advice = "No scan with a mask for", "Point DATA to the folder they were trained from."
    refuse_any(missing, subject, "cases of the folds", advice, FileNotFoundError)
    paths = {i: Path(predictions_dir) / f"{i}.nii.gz" for i in fold_of}
    missing = sorted(i for i, path in paths.items() if not path.is_file())
    subject = f"{predictions_dir}: no prediction for"
    advice = "Run 02_train_kfold until every fold is finished."
    refuse_any(missing, subject, "cases", advice, FileNotFoundError)
    rows = []
    for case_id, fold in sorted(fold_of.items()):
        true, affine = nifti.load_mask(by_id[case_id].mask)
        pred, pred_affine = nifti.load_mask(paths[case_id])
        if mismatch := nifti.describe_grid_mismatch(true.shape, affine, pred.shape, pred_affine):
            problem = f"its {mismatch} of the mask {by_id[case_id].mask}"
            raise ValueError(f"{paths[case_id]}: {problem}. Predict the case again.")
        about = {"case": case_id, "group": by_id[case_id].group, "fold": fold}
        scored = score_case(true, pred, voxel_sizes(affine), labels)
        rows += [{**about, "name": labels[row["label"]], **row} for row in scored]
    return pd.DataFrame(rows)


def summarise(scores):
    """Summarise scores per label, and count what has no number.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.

    Returns
    -------
    pandas.DataFrame
        A row per label and metric: ``label``, ``name``, ``metric``, ``n`` cases, ``mean``,
        ``sd`` (n - 1), ``median``, ``q1``, ``q3`` over the finite values, and how many of the
        ``n`` were ``nan`` (label in neither mask) or ``inf`` (label in one mask only).
    """
    table = scores.melt(["label", "name"], METRICS, var_name="metric").astype({"value": float})
    table["nan"], table["inf"] = np.isnan(table["value"]), np.isinf(table["value"])
    table["finite"] = table["value"].where(np.isfinite(table["value"]))
    groups = table.groupby(["label", "name", "metric"], sort=False)
    summary = groups["finite"].agg(n="size", mean="mean", sd="std", median="median")
    summary["q1"], summary["q3"] = groups["finite"].quantile(0.25), groups["finite"].quantile(0.75)
    return summary.join(groups[["nan", "inf"]].sum()).reset_index()


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
