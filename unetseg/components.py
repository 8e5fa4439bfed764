"""Stray pieces of labels: whether only the largest one counts, as cross-validation decides it."""

import numpy as np
import pandas as pd

from unetseg import nifti
from unetseg._base import write_json
from unetseg.body import count_structures
from unetseg.run.layout import Run
from unetseg.scores import score_predictions

EQUAL = 5e-5  # Dice that differs by less is the same in four digits
OFTEN = 0.1  # share of the masks in which a label has several pieces: then that is the rule


def decide(results_dir, cases, folds, labels):
    """Decide for each label whether only its largest piece counts, and write it down.

    For the cases of a fold it is decided on the predictions of the other folds, so never on what
    it is applied to; for new scans on all of them. It is done if that raises the mean Dice, or,
    where this stays the same, shortens the mean Hausdorff distance (as nnU-Net does; Isensee et
    al. 2021). A label that has several pieces in more than a tenth of the masks is left alone.

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
        A row per label: ``label``, ``name``; the mean ``dice`` and Hausdorff distance ``mm`` over
        all cases of everything that was drawn, then those of the ``largest`` pieces alone;
        ``folds`` in which these count alone; and whether they do in ``new_scans``.
    """
    run = Run(results_dir)
    drawn, largest = _score_both(run, cases, folds, labels)
    single = [label for label in labels if label not in _find_several(cases, folds, labels)]
    by_fold = []
    for number in range(len(folds)):
        others = (table[table["fold"] != number] for table in (drawn, largest))
        by_fold.append(choose(*others, single))
    chosen = choose(drawn, largest, single)
    of_case = {i: by_fold[number] for number, fold in enumerate(folds) for i in fold["val"]}
    write_json(run.components, {"cases": of_case, "new_scans": chosen})
    rows = []
    for label, name in labels.items():
        row = {"label": label, "name": name}
        for prefix, table in (("", drawn), ("largest_", largest)):
            part = table[table["label"] == label]
            row[f"{prefix}dice"] = part["dice"].mean()
            row[f"{prefix}mm"] = part["hausdorff_mm"].replace(np.inf, np.nan).mean()
        applied = sum(label in of_fold for of_fold in by_fold)
        rows.append({**row, "folds": applied, "new_scans": label in chosen})
    return pd.DataFrame(rows)


def describe(results_dir, labels):
    """Say of which labels only the largest piece counts in the scores.

    Parameters
    ----------
    results_dir : str or Path
        The experiment.
    labels : dict of int to str

    Returns
    -------
    str
        A sentence; empty if that was not decided of any label.
    """
    of_case = Run(results_dir).read_components()["cases"].values()
    names = []
    for label, name in labels.items():
        if count := sum(label in of_one for of_one in of_case):
            names.append(f"{name} (in {count} cases)")
    if not names:
        return ""
    return f"Only the largest piece counts of {', '.join(names)}, as the other folds decided."


def _score_both(run, cases, folds, labels):
    # Everything that was drawn, and the largest piece of each label alone.
    pieces = {case_id: [*labels] for fold in folds for case_id in fold["val"]}
    settings = cases, run.predictions, folds, labels
    return [score_predictions(*settings, largest=largest) for largest in ({}, pieces)]


def _find_several(cases, folds, labels):
    # Labels that often have several pieces in truth.
    validated = {case_id for fold in folds for case_id in fold["val"]}
    counts = []
    for case in cases:
        if case.id in validated:
            mask, _ = nifti.load_mask(case.mask)
            counts.append([count_structures(mask == label) for label in labels])
    often = (np.array(counts) > 1).mean(axis=0) > OFTEN
    return [label for label, several in zip(labels, often, strict=True) if several]


def choose(drawn, largest, labels):
    """Choose the labels of which the largest piece alone scores better than all that was drawn.

    Parameters
    ----------
    drawn, largest : pandas.DataFrame
        As `unetseg.scores.score_predictions` returns them, of the same cases in the same order.
    labels : iterable of int
        Among which to choose.

    Returns
    -------
    list of int
        None if there are no cases. Distances that are not finite in both are left out.
    """
    chosen = []
    for label in labels:
        before, after = (table[table["label"] == label] for table in (drawn, largest))
        gain = after["dice"].mean() - before["dice"].mean()
        distances = np.array([before["hausdorff_mm"], after["hausdorff_mm"]], float)
        before_mm, after_mm = distances[:, np.isfinite(distances).all(axis=0)]
        same = abs(gain) <= EQUAL
        if gain > EQUAL or (same and after_mm.sum() < before_mm.sum()):
            chosen.append(label)
    return chosen
