"""Stray pieces of labels: whether only the largest one counts, as cross-validation decides it."""

import numpy as np
import pandas as pd

from unetseg._base import write_json
from unetseg.metrics import dice, hausdorff
from unetseg.pieces import count_structures
from unetseg.run.layout import Run
from unetseg.scores import read_pairs

EQUAL = 5e-5  # Dice that differs by less is the same in four digits
OFTEN = 0.1  # share of the masks with a label in which it has several pieces: then that is the rule


def decide(results_dir, cases, folds, labels):
    """Decide for each label whether only its largest piece counts, and write it down.

    For the cases of a fold that is decided on the other folds alone; for new scans on all of
    them. See `choose` for the rule.

    Parameters
    ----------
    results_dir : str or Path
        The experiment. Gets ``components.json``, by which `unetseg.scores.score_predictions`,
        the pictures of notebook 3 and `unetseg.inference.predict_scans` go from then on. The files
        in ``predictions`` stay as the networks drew them.
    cases, folds, labels
        As for `unetseg.scores.score_predictions`.

    Returns
    -------
    pandas.DataFrame
        A row per label: ``label``, ``name``; over all cases the mean ``dice`` and Hausdorff
        distance ``mm`` of everything that was drawn, and those of the ``largest`` pieces alone;
        for how many ``folds`` these count alone; and whether they do for ``new_scans``.
    """
    run = Run(results_dir)
    table = compare_pieces(cases, run.predictions, folds, labels)
    by_fold = [choose(table[table["fold"] != number]) for number in range(len(folds))]
    chosen = choose(table)
    of_case = {i: by_fold[number] for number, fold in enumerate(folds) for i in fold["val"]}
    write_json(run.components, {"cases": of_case, "new_scans": chosen})
    finite = table.replace(np.inf, np.nan)
    means = finite.groupby("label")[["dice", "mm", "largest_dice", "largest_mm"]].mean()
    means.insert(0, "name", pd.Series(labels))
    means["folds"] = [sum(label in of_fold for of_fold in by_fold) for label in means.index]
    means["new_scans"] = [label in chosen for label in means.index]
    return means.reset_index()


def compare_pieces(cases, predictions_dir, folds, labels):
    """Score every predicted label twice: all that was drawn, and its largest piece alone.

    Parameters
    ----------
    cases, predictions_dir, folds, labels
        As for `unetseg.scores.score_predictions`.

    Returns
    -------
    pandas.DataFrame
        A row per case and label: ``fold``, ``label``, ``pieces`` of the truth
        (`unetseg.pieces.count_structures`), ``dice`` and Hausdorff distance ``mm``, and
        ``largest_dice`` and ``largest_mm``.
    """
    rows, every = [], {case.id: [*labels] for case in cases}
    where = cases, predictions_dir, folds
    both = zip(read_pairs(*where, largest={}), read_pairs(*where, largest=every), strict=True)
    for (_, fold, true, pred, spacing_mm), (*_, largest, _) in both:
        for label in labels:
            truth, drawn, piece = (array == label for array in (true, pred, largest))
            row = {"fold": fold, "label": label, "pieces": count_structures(truth)}
            row["dice"] = row["largest_dice"] = dice(truth, drawn)
            row["mm"] = row["largest_mm"] = hausdorff(truth, drawn, spacing_mm)
            if not np.array_equal(drawn, piece):
                row["largest_dice"] = dice(truth, piece)
                row["largest_mm"] = hausdorff(truth, piece, spacing_mm)
            rows.append(row)
    return pd.DataFrame(rows)


def choose(table):
    """Choose the labels of which the largest piece alone scores better than all that was drawn.

    That is so if it has the better mean Dice, or, where this is the same, the shorter mean
    Hausdorff distance, as in nnU-Net (Isensee et al. 2021). A label that has several pieces in
    more than a tenth of the masks that hold it keeps all of them, as does one that none holds.

    Parameters
    ----------
    table : pandas.DataFrame
        As `compare_pieces` returns it.

    Returns
    -------
    list of int
        None if there are no cases. Distances that are not finite are left out.
    """
    chosen = []
    for label, part in table.groupby("label"):
        pieces = part.loc[part["pieces"] > 0, "pieces"]
        if pieces.empty or (pieces > 1).mean() > OFTEN:
            continue
        gain = part["largest_dice"].mean() - part["dice"].mean()
        finite = part[np.isfinite(part[["mm", "largest_mm"]]).all(axis=1)]
        nearer = finite["largest_mm"].mean() < finite["mm"].mean()
        if gain > EQUAL or (abs(gain) <= EQUAL and nearer):
            chosen.append(int(label))
    return chosen


def describe(scores):
    """Say of which labels only the largest piece counts in scores.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `unetseg.scores.score_predictions` returns it.

    Returns
    -------
    str
        A sentence; empty if it is so of no label, or not known.
    """
    if "largest" not in scores:  # of an earlier version
        return ""
    counts = scores[scores["largest"] == 1].groupby("name", sort=False)["case"].nunique()
    if counts.empty:
        return ""
    names = ", ".join(f"{name} (in {count} of the cases)" for name, count in counts.items())
    return f"Only the largest piece counts of {names}, as the other folds decided."
