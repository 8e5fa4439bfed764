"""Splits: folds by patient, and what would leak from their training to their validation part."""

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from sklearn.model_selection import KFold

from unetseg import nifti
from unetseg.digits import significant
from unetseg.workspace import read_json, refuse_any, require

COLUMNS = ["kind", "case", "other", "fold", "detail"]
DUPLICATE = 0.99  # correlation of two scans above which they count as the same
SAMPLED = 32_768  # voxels a scan; the standard error of a correlation of 0.99 is then 0.0001


def make_folds(cases, n_splits=5, seed=12345):
    """Split cases into folds, the cases of one patient always together.

    Parameters
    ----------
    cases : sequence of Case
    n_splits : int, default 5
    seed : int, default 12345
        With this seed and no groups these are nnU-Net's own folds.

    Returns
    -------
    list of dict
        Per fold ``train`` and ``val``, sorted lists of case ids.

    Raises
    ------
    ValueError
        If there are fewer patients than folds.
    """
    patient = {case.id: case.group or case.id for case in cases}
    patients = np.array(sorted(set(patient.values())))
    allowed = f"at least 2 and at most the number of patients, {len(patients)}"
    require("n_splits", n_splits, 2 <= n_splits <= len(patients), allowed)
    folds = []
    for train, _ in KFold(n_splits, shuffle=True, random_state=seed).split(patients):
        chosen = set(patients[train])
        parts = {"train": [], "val": []}
        for case_id in sorted(patient):
            parts["train" if patient[case_id] in chosen else "val"].append(case_id)
        folds.append(parts)
    return folds


def settle_folds(path, cases, n_splits=5, seed=12345):
    """Take the folds that are written down, else make them.

    Parameters
    ----------
    path : str or Path
        ``splits.json``, perhaps not there. If it holds other folds than would be made, that is
        said.
    cases, n_splits, seed
        As for `make_folds`.

    Returns
    -------
    list of dict
        As `make_folds` returns it.

    Raises
    ------
    ValueError
        As `make_folds` does, or if the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        return make_folds(cases, n_splits, seed)
    folds = read_json(path)
    try:
        made = make_folds(cases, n_splits, seed)
    except ValueError:
        made = None
    if folds != made:
        settings = f"FOLDS={n_splits}, SEED={seed} and GROUPS would make others, and are not used"
        advice = "For those remove it before a fold is trained, or take another EXPERIMENT."
        print(f"{path}: its {len(folds)} folds are used; {settings}. {advice}")
    return folds


def check_folds(folds, cases, labels_of):
    """Stop if the folds would give a score that means nothing.

    Parameters
    ----------
    folds : list of dict
        As `make_folds` returns it, perhaps edited by hand.
    cases : sequence of Case
    labels_of : mapping of str to iterable of int
        The label values in the mask of each case.

    Raises
    ------
    ValueError
        If a fold names an unknown case or has one in both parts, lacks a label in one of them, or
        if two folds validate the same case.

    See Also
    --------
    find_leaks : tells of patients in both parts.
    """
    known = {case.id for case in cases}
    every_label, validated = set().union(*labels_of.values()), set()
    for number, fold in enumerate(folds):
        ids = {part: set(fold[part]) for part in ("train", "val")}
        subject = f"Fold {number} of splits.json:"
        unknown = (ids["train"] | ids["val"]) - known
        refuse_any(sorted(unknown), subject, "cases are not in the data", "Remove them.")
        both = sorted(ids["train"] & ids["val"])
        refuse_any(both, subject, "cases are in both parts", "Remove them from one.")
        for part, chosen in ids.items():
            missing = every_label.difference(*(labels_of[i] for i in chosen))
            problem = f"labels are in no case of its {part} part"
            advice = "Use fewer folds, another seed, or edit splits.json."
            refuse_any([str(v) for v in sorted(missing)], subject, problem, advice)
        twice = sorted(validated & ids["val"])
        refuse_any(twice, subject, "cases are validated again", "A case is scored once.")
        validated |= ids["val"]


def find_leaks(cases, folds=None):
    """Find what would let a network see in training what it is scored on.

    Parameters
    ----------
    cases : sequence of Case
        With scans.
    folds : list of dict, optional
        As in ``splits.json``. By default pairs of cases are reported that some split could part:
        those that are not known to be of one patient.

    Returns
    -------
    pandas.DataFrame
        A row per leak, none if all is well: ``kind``, ``case`` in the validation and ``other`` in
        the training part of ``fold`` (the first where it is so), and ``detail``. Kinds are "one
        patient", "identical scan" (the same voxel values in RAS+) and "near-duplicate scan"
        (correlation beyond 0.99 or -0.99 on the same grid, averaged over channels, as after a
        linear change of intensity or a little noise).

    See Also
    --------
    refuse_leaks : turns the leaks into one error.

    Notes
    -----
    Correlations are taken over 32,768 voxels drawn at random, the same of every scan of a shape,
    or over all of smaller scans.
    """
    patient = {case.id: case.group or case.id for case in cases}
    rows = [
        ("one patient", *pair, fold, f"patient {patient[pair[0]]}")
        for fold, parts in enumerate(folds or [])
        for pair in _one_per_patient(parts, patient)
    ]
    for kind, one, other, detail in _same_scans(cases):
        if folds is None and patient[one] != patient[other]:
            rows.append((kind, one, other, None, detail))
        for fold, parts in enumerate(folds or []):
            for pair in ((one, other), (other, one)):
                if pair[0] in parts["val"] and pair[1] in parts["train"]:
                    rows.append((kind, *pair, fold, detail))
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"fold": "Int64"})
    return table.drop_duplicates(["kind", "case", "other"], ignore_index=True)


def _same_scans(cases):
    contents, samples = {}, {}
    for case in cases:
        image, affine = nifti.load_image(case.image)
        digest = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()
        contents.setdefault(digest, []).append(case.id)
        grid = (image.shape, tuple(significant(voxel_sizes(affine), 3)))
        samples.setdefault(grid, {})[case.id] = _sample(image)
    identical = {pair for ids in contents.values() for pair in itertools.combinations(ids, 2)}
    found = [("identical scan", *pair, "the same voxel values") for pair in sorted(identical)]
    for sampled in samples.values():
        ids, matrix = list(sampled), np.stack(list(sampled.values()))
        correlation = np.triu(matrix @ matrix.T, 1)
        for a, b in np.argwhere(np.abs(correlation) > DUPLICATE):
            if (ids[a], ids[b]) not in identical:
                detail = f"correlation {correlation[a, b]:.4f}"
                found.append(("near-duplicate scan", ids[a], ids[b], detail))
    return found


def refuse_leaks(leaks):
    """Stop with one error that lists every leak.

    Parameters
    ----------
    leaks : pandas.DataFrame
        As `find_leaks` returns it.

    Raises
    ------
    ValueError
        If there is any.
    """
    if len(leaks):
        rows = leaks.head(20).itertuples()
        lines = "\n".join(f"  {r.case} and {r.other}: {r.kind}, {r.detail}" for r in rows)
        more = f"\n  and {len(leaks) - 20} more" if len(leaks) > 20 else ""
        advice = "Remove one of them, give them one patient (GROUPS), or edit splits.json; "
        advice += "ALLOW_LEAKS (allow_leaks=True) trains all the same, and the scores say so."
        problem = "leaks: of these cases one would be validated and the other trained on"
        raise ValueError(f"{len(leaks)} {problem}:\n{lines}{more}\n{advice}")


def _one_per_patient(parts, patient):
    first = {patient[i]: i for i in reversed(parts["train"]) if i in patient}
    val = {patient[i]: i for i in reversed(parts["val"]) if i in patient}
    return [(val[one], first[one]) for one in sorted(set(val) & set(first))]


def _sample(image):
    values = image.reshape(-1, *image.shape[3:])  # (voxel,) or (voxel, channel)
    if len(values) > SAMPLED:
        values = values[np.random.default_rng(0).integers(len(values), size=SAMPLED)]
    values = values - values.mean(axis=0, dtype=float)  # channels differ in offset and unit
    lengths = np.linalg.norm(values, axis=0)
    values = (values / np.where(lengths, lengths, 1)).ravel()
    return (values / (np.linalg.norm(values) or 1)).astype(np.float32)
