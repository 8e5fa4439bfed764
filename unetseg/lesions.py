"""Lesions: how many were found, missed and made up, beside how well they were drawn."""

import numpy as np
import pandas as pd
from scipy import ndimage

from unetseg._base import require, write_table
from unetseg.digits import short
from unetseg.reading.tables import read_results
from unetseg.scores import read_pairs

COLUMNS = ["case", "group", "fold", "label", "name", "lesion", "volume_ml", "iou"]
RULE = ["overlap", "least_ml"]
NOT_COUNTED = "Lesions are not counted: LESIONS is not set."


def match_lesions(mask_true, mask_pred, *, overlap=0.0, least_voxels=1):
    """Tell which lesions of a mask are found, and which predicted ones are none.

    A lesion is a group of voxels that share a face, an edge or a corner (26 neighbours).

    Parameters
    ----------
    mask_true, mask_pred : (x, y, z) ndarray of bool
    overlap : float, default 0
        In [0, 1). With 0 a lesion is found if a voxel of it is predicted, and a predicted one is
        false if no voxel of it is true, as in ISLES'22 (Hernandez Petzsche et al. 2022). Above 0
        true and predicted ones are paired, each with one at most, best first, if their
        intersection over union is at least this: 0.5 is the rule of panoptic quality (Kirillov et
        al. 2019), as panoptica has it.
    least_voxels : int, default 1
        True lesions of less count neither as found nor as missed, predicted ones of less not as
        false; but both can be what another one is found by.

    Returns
    -------
    list of dict
        ``lesion`` ("found", "missed", "false"), its ``voxels`` (of the true one, of false ones
        those predicted) and the largest ``iou`` with a lesion of the other mask, in [0, 1].

    Raises
    ------
    ValueError
        If the shapes differ or `overlap` is not in [0, 1).
    """
    require("mask_pred", mask_pred.shape, mask_pred.shape == mask_true.shape, "of one shape")
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    (true, n_true), (pred, n_pred) = (_number(mask) for mask in (mask_true, mask_pred))
    size_true = np.bincount(true.ravel(), minlength=n_true + 1)[1:]
    size_pred = np.bincount(pred.ravel(), minlength=n_pred + 1)[1:]
    both = (true > 0) & (pred > 0)
    pairs, common = np.unique([true[both], pred[both]], axis=1, return_counts=True)
    one, other = pairs - 1
    iou = common / (size_true[one] + size_pred[other] - common)
    paired = np.ones(len(iou), bool) if overlap == 0 else _pair(one, other, iou, overlap)
    rows = _tell(one, size_true, iou, paired, ("found", "missed"))
    rows += [row for row in _tell(other, size_pred, iou, paired, ("", "false")) if row["lesion"]]
    return [row for row in rows if row["voxels"] >= least_voxels]


def _tell(numbers, sizes, iou, paired, names):
    # Of the lesions of a mask, by the numbers that they have in the pairs that overlap.
    best, found = np.zeros(len(sizes)), np.zeros(len(sizes), bool)
    np.maximum.at(best, numbers, iou)
    found[numbers[paired]] = True
    rows = zip(np.where(found, *names).tolist(), sizes.tolist(), best.tolist(), strict=True)
    return [dict(zip(("lesion", "voxels", "iou"), row, strict=True)) for row in rows]


def _number(mask):
    return ndimage.label(mask, np.ones((3,) * mask.ndim))


def _pair(one, other, iou, overlap):
    # Each with one at most, the best pair first.
    paired, taken = np.zeros(len(iou), bool), (set(), set())
    for place in np.argsort(-iou, kind="stable"):
        free = one[place] not in taken[0] and other[place] not in taken[1]
        if iou[place] >= overlap and free:
            paired[place] = True
            taken[0].add(one[place])
            taken[1].add(other[place])
    return paired


def find_lesions(cases, predictions_dir, folds, labels, *, overlap=0.0, least_ml=0.0, ignore=None):
    """Find and match the lesions of every case and label.

    Parameters
    ----------
    cases, predictions_dir, folds, labels, ignore
        As for `unetseg.scores.score_predictions`.
    overlap : float, default 0
        As for `match_lesions`.
    least_ml : float, default 0
        Lesions that are smaller do not count.

    Returns
    -------
    pandas.DataFrame
        A row per lesion: ``case``, ``group``, ``fold``, ``label``, ``name``, ``lesion``
        ("found", "missed", "false"), ``volume_ml`` and ``iou``; and `overlap` and `least_ml`, the
        rule. A case and label without any has a row with an empty ``lesion``, so that all are
        counted.
    """
    rows, pairs = [], read_pairs(cases, predictions_dir, folds, ignore=ignore)
    for case, fold, true, pred, spacing_mm in pairs:
        for label, name in labels.items():
            found = _match_ml(true == label, pred == label, spacing_mm, overlap, least_ml)
            about = case.id, case.group, fold, label, name
            rows += [(*about, *row) for row in found or [("", 0.0, 0.0)]]
    return pd.DataFrame(rows, columns=COLUMNS).assign(overlap=overlap, least_ml=least_ml)


def _match_ml(mask_true, mask_pred, spacing_mm, overlap, least_ml):
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    least = max(1, int(np.ceil(least_ml / voxel_ml * (1 - 1e-6))))
    found = match_lesions(mask_true, mask_pred, overlap=overlap, least_voxels=least)
    return [(row["lesion"], row["voxels"] * voxel_ml, row["iou"]) for row in found]


def evaluate(
    path, cases, predictions_dir, folds, labels, *, overlap=None, least_ml=0.0, ignore=None
):
    """Find lesions, and write them down.

    Parameters
    ----------
    path : Path
        ``lesions.csv``, a row per lesion; an older one is emptied if none are asked for, so that
        its copy on Drive is too.
    cases, predictions_dir, folds, labels, least_ml, ignore
        As for `find_lesions`.
    overlap : float, optional
        The same; None if lesions are not to be counted, such as of organs.

    Returns
    -------
    pandas.DataFrame, or None
    """
    if overlap is None:
        if path.exists():
            write_table(path, pd.DataFrame(columns=COLUMNS + RULE))
        return None
    rule = {"overlap": overlap, "least_ml": least_ml, "ignore": ignore}
    found = find_lesions(cases, predictions_dir, folds, labels, **rule)
    write_table(path, found)
    return found


def recall_lesions(path):
    """Read what `evaluate` wrote, with its rule.

    Parameters
    ----------
    path : Path
        ``lesions.csv``.

    Returns
    -------
    lesions : pandas.DataFrame or None
        As `find_lesions` returns it; None if none were asked for.
    rule : dict
        ``overlap``, then None, and ``least_ml``.
    """
    lesions = read_results(path, COLUMNS + RULE) if path.exists() else ()
    if not len(lesions):
        return None, {"overlap": None, "least_ml": 0.0}
    return lesions, {name: float(lesions[name].iloc[0]) for name in RULE}


def describe_rule(rule):
    """Say by which rule lesions were counted, as `recall_lesions` returns it."""
    found = "if a voxel of it is predicted"
    if overlap := rule["overlap"]:
        found = f"if it overlaps with a predicted one of its own by {short(overlap)} (IoU) or more"
    least = f", of {short(rule['least_ml'])} ml or more" if rule["least_ml"] else ""
    kind = f"a group of voxels that share a face, an edge or a corner{least}"
    return f"A lesion is {kind}; found {found}."


def count_lesions(lesions):
    """Count the lesions of each label, over all cases and in each.

    Parameters
    ----------
    lesions : pandas.DataFrame or None
        As `find_lesions` returns it.

    Returns
    -------
    pandas.DataFrame or str
        Words without lesions. A row per label with "all" as its ``case``, then one per case and
        label: ``case``, ``name``, number of ``cases``, true ``lesions``, ``found``, ``missed``,
        ``false``; ``sensitivity`` found / lesions, ``precision`` found / (found + false) and
        ``f1``, their harmonic mean, NaN if nothing is there to count; and of the cases without a
        true lesion that counts, ``controls``, how many have a false one,
        ``controls_with_false``, and the volume of these, ``false_ml_in_controls``.
    """
    if lesions is None:
        return NOT_COUNTED
    rows = []
    for name, part in lesions.groupby("name", sort=False):
        rows.append({"case": "all", "name": name, **_count(part)})
    for (case, name), part in lesions.groupby(["case", "name"], sort=False):
        rows.append({"case": case, "name": name, **_count(part)})
    return pd.DataFrame(rows)


def _count(part):
    counts = part["lesion"].value_counts()
    found, missed, false = (int(counts.get(kind, 0)) for kind in ("found", "missed", "false"))
    diseased = part.loc[part["lesion"].isin(["found", "missed"]), "case"]
    healthy = part[~part["case"].isin(diseased)]
    wrong = healthy[healthy["lesion"] == "false"]
    return {
        "cases": part["case"].nunique(),
        "lesions": found + missed,
        "found": found,
        "missed": missed,
        "false": false,
        "sensitivity": _share(found, found + missed),
        "precision": _share(found, found + false),
        "f1": _share(2 * found, 2 * found + missed + false),
        "controls": healthy["case"].nunique(),
        "controls_with_false": wrong["case"].nunique(),
        "false_ml_in_controls": wrong["volume_ml"].sum(),
    }


def _share(part, whole):
    return part / whole if whole else np.nan
