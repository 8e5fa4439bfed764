"""Tables of scores: a row per case and label, their summary, and the comparison of two runs."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from scipy import ndimage
from scipy.stats import bootstrap, wilcoxon

from unetseg import nifti
from unetseg._base import refuse_any, require
from unetseg.annotation import hash_labels
from unetseg.digits import decimals_for, short
from unetseg.metrics import METRICS, score_case
from unetseg.pieces import keep_largest
from unetseg.preprocessing import Preprocessor
from unetseg.reading.tables import read_results, read_table
from unetseg.run.fingerprints import fingerprint
from unetseg.run.inputs import Trained
from unetseg.run.layout import Run

RESAMPLES = 9999
FORGIVING = 5  # voxels of tolerance; more forgives whole structures that are small
FAILED_DICE, FAILED_MM = 0.5, 30  # under and over which a segmentation is of no use
MOST_SHOWN = 4  # failures among the examples
OF_SURFACES = ("surface_dice", "hausdorff_mm", "hd95_mm", "assd_mm")


def read_pairs(cases, predictions_dir, folds, *, largest=None, ignore=None):
    """Read the true and the predicted mask of every case that a fold validates.

    Parameters
    ----------
    cases : iterable of Case
        With masks; those that no fold validates are left out.
    predictions_dir : str or Path
        Holds ``<case>.nii.gz``.
    folds : list of dict
        As in ``splits.json``.
    largest : dict of str to list of int, optional
        By case, the labels of which only the largest predicted piece counts. By default, for the
        predictions of an experiment, those in its ``components.json``, which
        `unetseg.components.decide` writes; else none.
    ignore : int, optional
        Value in the masks of voxels that nobody drew, which then have it in the prediction too. By
        default, for the predictions of an experiment, that of its preprocessor; else none.

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
        If a prediction is not on the grid of the mask, or not what the fold of an experiment made.
    """
    by_id = {case.id: case for case in cases}
    largest = _recall_largest(predictions_dir) if largest is None else largest
    fold_of = {case_id: number for number, fold in enumerate(folds) for case_id in fold["val"]}
    missing = sorted(i for i in fold_of if i not in by_id or by_id[i].mask is None)
    subject, advice = "No mask for", "Point DATA to the folder they were trained from."
    refuse_any(missing, subject, "cases of the folds", advice, FileNotFoundError)
    paths = {i: Path(predictions_dir) / f"{i}.nii.gz" for i in fold_of}
    missing = sorted(i for i, path in paths.items() if not path.is_file())
    subject = f"{predictions_dir}: no prediction for"
    advice = "Run 02_train_kfold until every fold is finished."
    refuse_any(missing, subject, "cases", advice, FileNotFoundError)
    Trained(Path(predictions_dir).parent).refuse_foreign(predictions_dir, fold_of)
    ignore = _recall(predictions_dir).ignore if ignore is None else ignore
    for case_id, fold in sorted(fold_of.items()):
        true, affine = nifti.load_mask(by_id[case_id].mask)
        pred, pred_affine = nifti.load_mask(paths[case_id])
        if mismatch := nifti.describe_grid_mismatch(true.shape, affine, pred.shape, pred_affine):
            problem = f"its {mismatch} of the mask {by_id[case_id].mask}"
            raise ValueError(f"{paths[case_id]}: {problem}. Predict the case again.")
        pred = keep_largest(pred, largest.get(case_id, []))
        if ignore:
            pred[true == ignore] = ignore
        yield by_id[case_id], fold, true, pred, voxel_sizes(affine)


def _recall(predictions_dir):
    path = Run(Path(predictions_dir).parent).preprocessor
    return Preprocessor.load(path) if path.exists() else Preprocessor(labels={1: ""}, ignore=0)


def _recall_largest(predictions_dir):
    run = Run(Path(predictions_dir).parent)
    own = Path(predictions_dir) == run.predictions
    return run.read_components()["cases"] if own else {}


def score_predictions(
    cases,
    predictions_dir,
    folds,
    labels,
    *,
    tolerance_mm=1.0,
    largest=None,
    unions=None,
    ignore=None,
):
    """Score every case of every fold on its native grid.

    Cases whose mask was corrected, or whose scan was changed, since training are named.

    Parameters
    ----------
    cases, predictions_dir, folds
        As for `read_pairs`, whose errors it raises.
    labels : dict of int to str
        Value and name of every label.
    tolerance_mm : float or dict, default 1
        Of the surface Dice: one, or one for each label by its value or name.
    largest, ignore
        As for `read_pairs`; ``largest={}`` scores everything that was drawn.
    unions : dict of int to (str, tuple of int), optional
        Names of regions and the labels that make them up, by a number that stands for a label. By
        default, for the predictions of an experiment, those of its preprocessor.

    Returns
    -------
    pandas.DataFrame
        A row per case and label: ``case``, ``group``, ``fold``, ``label``, ``name``, the columns
        of `unetseg.metrics.score_case`, and what was scored: ``mask``, which tells whether the
        mask is the one of training, the ``mask_sha256`` of its labels, the
        ``prediction_sha256`` of the file, and ``largest``, 1 if only the largest piece of the
        label counted, else 0. Voxels that nobody drew are background in both. Where they touch a
        label, in either mask, nobody knows its surface: then distances and surface Dice are NaN.
    """
    validated = {case_id for fold in folds for case_id in fold["val"]}
    scored = [case for case in cases if case.id in validated and case.mask]
    masks = Trained(Path(predictions_dir).parent).describe_scored(scored)
    largest = _recall_largest(predictions_dir) if largest is None else largest
    unions = _recall(predictions_dir).unions if unions is None else unions
    ignore = _recall(predictions_dir).ignore if ignore is None else ignore
    rows = []
    pairs = read_pairs(cases, predictions_dir, folds, largest=largest, ignore=ignore)
    for case, fold, true, pred, spacing in pairs:
        about = {"case": case.id, "group": case.group, "fold": fold}
        prediction = fingerprint(Path(predictions_dir) / f"{case.id}.nii.gz")
        what = {"mask": masks[case.id], "mask_sha256": hash_labels(true)}
        what["prediction_sha256"] = prediction["sha256"]
        near = _find_near(true == ignore) if ignore else None
        for number, (name, values) in _list_targets(labels, unions).items():
            sets = [np.isin(labelled, values) for labelled in (true, pred)]
            tolerance = _find_tolerance(tolerance_mm, number, name)
            row = _score_drawn(sets, near, spacing, tolerance)
            what["largest"] = int(number in largest.get(case.id, []))
            rows.append({**about, "name": name, **row, "label": number, **what})
            _warn_of_tolerance(tolerance, spacing)
    return pd.DataFrame(rows)


def _warn_of_tolerance(tolerance_mm, spacing_mm):
    if tolerance_mm > FORGIVING * min(spacing_mm):  # said once, as the words are the same
        size = f"a tolerance of {tolerance_mm:g} mm is more than {FORGIVING} voxels"
        warnings.warn(f"{size}: surface Dice forgives nearly all. Set TOLERANCE_MM.", stacklevel=3)


def _find_near(undrawn):
    return ndimage.binary_dilation(undrawn, np.ones((3,) * undrawn.ndim))


def _score_drawn(sets, near, spacing_mm, tolerance_mm):
    # Scores of one label; where undrawn voxels touch it nobody knows its surface.
    (row,) = score_case(*sets, spacing_mm, [True], tolerance_mm=tolerance_mm)
    if near is not None and any((one & near).any() for one in sets):
        row |= {metric: np.nan for metric in OF_SURFACES if np.isfinite(row[metric])}
    return row


def _list_targets(labels, unions):
    return {value: (name, (value,)) for value, name in labels.items()} | unions


def _find_tolerance(tolerance_mm, number, name):
    if not isinstance(tolerance_mm, dict):
        return tolerance_mm
    known = [key for key in (number, name) if key in tolerance_mm]
    allowed = f"one number, or one for each label; {number} ({name}) has none"
    require("tolerance_mm", tolerance_mm, known, allowed)
    return tolerance_mm[known[0]]


def load_scores(path):
    """Read scores back as they were written: ids stay text, and missing groups missing.

    Parameters
    ----------
    path : str or Path
        ``scores.csv`` of an experiment. If it is not of the predictions beside it, that is said.

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
    if stale := find_stale(Path(path).parent):
        names = ", ".join(stale)
        print(f"{path}: of other predictions of {names} than there are; run 03_evaluate again.")
    scores["group"] = scores["group"].where(scores["group"] != "")
    return scores


def count_confusion(cases, predictions_dir, folds, labels, *, ignore=None):
    """Count the voxels of every true label by what was predicted there.

    Parameters
    ----------
    cases, predictions_dir, folds, labels, ignore
        As for `score_predictions`.

    Returns
    -------
    pandas.DataFrame
        Voxels of all cases together: a row per true and a column per predicted label, named,
        "background" first. Values that are in `labels` nowhere count as background; voxels that
        nobody drew do not count.
    """
    ignore = _recall(predictions_dir).ignore if ignore is None else ignore
    names = ["background", *labels.values()]
    counts = np.zeros((len(names), len(names)), int)
    for _, _, true, pred, _ in read_pairs(cases, predictions_dir, folds, ignore=ignore):
        pair = np.zeros(true.shape, int)
        for place, label in enumerate(labels, start=1):
            pair += place * (len(names) * (true == label) + (pred == label))
        drawn = pair[true != ignore] if ignore else pair.ravel()
        counts += np.bincount(drawn, minlength=counts.size).reshape(counts.shape)
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
        cases that `find_failures` finds.

    Notes
    -----
    The interval holds the mean with 95 % confidence: percentiles of 9,999 bootstrap means, in
    which patients, not cases, are drawn (Efron and Tibshirani 1993). NaN for a single patient.
    """
    failed = find_failures(scores).astype({"case": str})
    failed = failed.groupby("label")["case"].agg("; ".join)
    rows = []
    for (label, name), part in scores.groupby(["label", "name"], sort=False, dropna=False):
        for metric in METRICS:
            about = {"label": label, "name": name, "metric": metric, "n": len(part)}
            numbers = _summarise_metric(part, metric)
            rows.append({**about, **numbers, "failures": failed.get(label, "")})
    return pd.DataFrame(rows)


def _summarise_metric(part, metric):
    values = part[metric].astype(float)
    finite = values[np.isfinite(values)]
    low, high = _interval(finite, list_patients(part)[finite.index])
    q1, median, q3 = finite.quantile((0.25, 0.5, 0.75))
    return {
        "mean": finite.mean(),
        "sd": finite.std(),
        "ci_low": low,
        "ci_high": high,
        "q1": q1,
        "median": median,
        "q3": q3,
        "nan": np.isnan(values).sum(),
        "inf": np.isinf(values).sum(),
    }


def list_patients(scores):
    """Tell the patient of each row; a case whose patient is not known is one of its own."""
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


def compare(first, second, *, only_shared=False):
    """Compare two experiments on the same cases, case by case.

    Parameters
    ----------
    first, second : pandas.DataFrame
        As `score_predictions` returns them.
    only_shared : bool, default False
        Whether cases and labels that one of them lacks are left out, if they share any.

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
        If the cases or the labels differ, the tolerance of the surface Dice does, or the masks that
        were scored: by their hash, or, in scores of an earlier version, by their volume.
    """
    both = _match(first, second, only_shared)
    compared = [metric for metric in METRICS if metric != "volume_true_ml"]
    rows = []
    for (label, name), part in both.groupby(["label", "name"], sort=False, dropna=False):
        for metric in compared:
            about = {"label": label, "name": name, "metric": metric, "n": len(part)}
            rows.append({**about, **_compare_metric(part, metric)})
    return pd.DataFrame(rows)


def _match(first, second, only_shared):
    # A row per case and label, columns of the second with "_2".
    first, second = (scores.astype({"case": str}) for scores in (first, second))
    keys, suffixes = ["case", "label"], ("", "_2")
    both = first.merge(second, on=keys, how="outer", suffixes=suffixes, indicator=True)
    alone = sorted(set(both.loc[both["_merge"] != "both", "case"]))
    advice = "Compare experiments on the same cases and labels."
    shared = both[both["_merge"] == "both"]
    if only_shared and len(shared):
        both, alone = shared, []
    refuse_any(alone, "The experiments do not share", "cases", advice)
    other = both[both["tolerance_mm"] != both["tolerance_mm_2"]]
    tolerances = sorted({*other["tolerance_mm"], *other["tolerance_mm_2"]})
    require("tolerance_mm", tolerances, other.empty, "the same in both experiments")
    moved = sorted(set(both.loc[_have_other_masks(both), "case"]))
    refuse_any(moved, "The true masks changed in", "cases", "Run 03_evaluate again for both.")
    return both


def _compare_metric(part, metric):
    pairs = part[[metric, f"{metric}_2"]].astype(float).to_numpy()
    finite = np.isfinite(pairs).all(axis=1)
    pairs, patients = pairs[finite], list_patients(part)[finite]
    difference = pd.Series(pairs[:, 1] - pairs[:, 0], patients.index)
    low, high = _interval(difference, patients)
    # Else what is equal but for the last digits of its sums would count as a difference.
    means = difference.groupby(patients).mean().round(decimals_for(pairs, 12))
    first, second = pd.DataFrame(pairs).mean() if len(pairs) else (np.nan, np.nan)
    return {
        "first": first,
        "second": second,
        "difference": difference.mean(),
        "ci_low": low,
        "ci_high": high,
        "p": _signed_rank(means),
        "left_out": int((~finite).sum()),
    }


def _signed_rank(differences):
    if not len(differences):
        return np.nan
    return wilcoxon(differences).pvalue if differences.any() else 1.0


def _have_other_masks(both):
    other = ~np.isclose(both["volume_true_ml"], both["volume_true_ml_2"], rtol=1e-4, atol=0)
    if "mask_sha256_2" in both:
        first, second = both["mask_sha256"], both["mask_sha256_2"]
        known = first.notna() & second.notna()
        other = other | (known & (first != second))
    return other


def load_summary(results_dir):
    """Read the summary of an experiment, if it is one of the models that are there.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    pandas.DataFrame
        ``summary.csv`` as `summarise` made it; without a row if it was not scored yet, or if a
        fold was trained again since, which is said.
    """
    path = Run(results_dir).summary
    if not path.exists():
        return pd.DataFrame(columns=["label", "name", "metric", "n", "mean"])
    summary = read_results(path)
    if stale := find_stale(results_dir):
        names = ", ".join(stale)
        print(f"The scores are of other predictions of {names}: run 03_evaluate again.")
        return summary.iloc[:0]
    return summary


def list_means(summary, metric="dice"):
    """List the means of a metric in a summary, as a dict by label."""
    rows = summary[summary["metric"] == metric]
    return dict(zip(rows["label"], rows["mean"], strict=True))


def show_summary(summary, metrics=("dice", "hd95_mm")):
    """Take from a summary what tells how good models are.

    Parameters
    ----------
    summary : pandas.DataFrame
        As `load_summary` returns it.
    metrics : sequence of str

    Returns
    -------
    pandas.DataFrame or str
        Words if nothing was scored.
    """
    if summary.empty:
        return "Not scored yet: run notebook 3."
    columns = ["name", "metric", "n", "mean", "sd", "median", "nan", "inf"]
    return summary.loc[summary["metric"].isin(metrics), columns].reset_index(drop=True)


def find_stale(results_dir):
    """Name the cases whose scores are not of the predictions that the finished folds made.

    Or of other pieces of them than `unetseg.components.decide` has decided since.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    list of str
        Ids; none if there is no ``scores.csv``, or if an earlier version wrote it or the folds.
    """
    path = Run(results_dir).scores
    table = read_table(path) if path.exists() else {}
    if "prediction_sha256" not in table:
        return []
    made = Trained(results_dir).list_predictions()
    decided = Run(results_dir).read_components()["cases"]
    stale = set()
    for row in table.itertuples():
        largest = int(int(row.label) in decided.get(row.case, []))
        other_pieces = getattr(row, "largest", "0") != str(largest)
        if other_pieces or made.get(row.case, row.prediction_sha256) != row.prediction_sha256:
            stale.add(row.case)
    return sorted(stale)


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


def choose_examples(scores, also=""):
    """Choose the cases to look at first.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.
    also : str
        Id of one more case, such as the setting ``LOOK_AT``; empty for none.

    Returns
    -------
    pandas.DataFrame
        A row each: ``which`` ("failure", of which up to four; "worst", "median", "best", "also"),
        ``case`` and ``mean_dice``. What is a failure is not shown again; of less than three
        others some stand for more than one.
    """
    ranked = rank_cases(scores)
    known = ranked.dropna().index
    failed = {row.case for row in find_failures(scores).itertuples()}
    rows = [("failure", case) for case in reversed(ranked.index) if case in failed][:MOST_SHOWN]
    if len(known):
        usual = [("worst", known[-1]), ("median", known[len(known) // 2]), ("best", known[0])]
        shown = [case for _, case in rows]
        rows += [(which, case) for which, case in usual if case not in shown]
    if also and also not in [case for _, case in rows]:
        rows.append(("also", also))
    table = pd.DataFrame(rows, columns=["which", "case"])
    return table.assign(mean_dice=table["case"].map(ranked))


def find_failures(scores):
    """Find segmentations that are of no use.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.

    Returns
    -------
    pandas.DataFrame
        Its rows with a Dice under 0.5, so all of labels that were missed altogether, or an HD95
        over 30 mm.
    """
    return scores[(scores["dice"] < FAILED_DICE) | (scores["hd95_mm"] > FAILED_MM)]


def describe_failures(scores):
    """Say how many segmentations failed, and of which cases.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.

    Returns
    -------
    str
        Such as ``"1 failure (Dice under 0.5 or HD95 over 30 mm): case_01 (liver)."``
    """
    failed = find_failures(scores)
    names = [f"{row.case} ({row.name})" for row in failed.itertuples(index=False)]
    count = "1 failure" if len(names) == 1 else f"{len(names)} failures"
    count += f" (Dice under {FAILED_DICE} or HD95 over {FAILED_MM} mm)"
    return f"{count}: {', '.join(names)}." if names else f"{count}."


def describe_controls(scores, labels=None):
    """Say what was drawn in cases whose mask has no label, such as of healthy people.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `score_predictions` returns it.
    labels : iterable of int, optional
        Those that count. Regions, which hold some of them again, are to be left out; by default
        all that the scores have.

    Returns
    -------
    str
        Such as ``"3 controls: in 1 something is drawn (0.4 ml): case_07."``; empty without any.
    """
    scores = scores if labels is None else scores[scores["label"].isin([*labels])]
    volumes = scores.groupby("case")[["volume_true_ml", "volume_pred_ml"]].sum()
    controls = volumes.loc[volumes["volume_true_ml"] == 0, "volume_pred_ml"]
    wrong = controls[controls > 0]
    if controls.empty:
        return ""
    named = f" ({short(wrong.sum())} ml): {', '.join(map(str, wrong.index))}" if len(wrong) else ""
    return f"{len(controls)} controls: in {len(wrong)} something is drawn{named}."


def compare_with(other, scores, names=("first", "second")):
    """Compare with another experiment, if there is one.

    Parameters
    ----------
    other : pandas.DataFrame or None
        Scores of the other.
    scores : pandas.DataFrame
        As `score_predictions` returns it.
    names : pair of str
        Of the experiments, the other one first.

    Returns
    -------
    pandas.DataFrame or str
        As `compare` returns it, the means by these names; or words.
    """
    if other is None:
        return "Nothing to compare with."
    ids = ({*one["case"].astype(str)} for one in (other, scores))
    if alone := set.symmetric_difference(*ids):
        print(f"Only cases that both have are compared; {len(alone)} are in one of them alone.")
    compared = compare(other, scores, only_shared=True)
    return compared.rename(columns=dict(zip(("first", "second"), names, strict=True)))
