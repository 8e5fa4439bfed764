"""Splits: folds by patient, and what would leak from their training to their validation part."""

import hashlib
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from sklearn.model_selection import KFold

from unetseg import nifti
from unetseg._base import refuse_any, require
from unetseg.digits import significant
from unetseg.reading.tables import read_results
from unetseg.run.inputs import Trained, list_used
from unetseg.run.layout import Run, read_json

COLUMNS = ["kind", "case", "other", "fold", "detail"]
PATIENT = "one patient"
TRAINED = "trained on before"  # by the model that a fold started from
DUPLICATE = 0.99  # correlation of two scans above which they count as the same
ATTEMPTS = 20  # at spreading rare labels
SAMPLED = 32_768  # voxels a scan; the standard error of a correlation of 0.99 is then 0.0001


def make_folds(cases, n_splits=5, seed=12345, *, labels_of=None):
    """Split cases into folds, the cases of one patient always together.

    Where these folds lack a label in some validation part, patients are exchanged between folds
    so that every training part has each label, and as many validation parts as can. A patient who
    alone has some label stays in the training part of every fold and is never validated: a fold
    could not learn that label without him, and his score would say only that.

    Parameters
    ----------
    cases : sequence of Case
    n_splits : int, default 5
    seed : int, default 12345
        With this seed and no groups these are nnU-Net's own folds, if they have each label in
        each part or `labels_of` is not given.
    labels_of : mapping of str to iterable of int, optional
        The label values in the mask of each case, as `unetseg.cases.read_labels` gives them.

    Returns
    -------
    list of dict
        Per fold ``train`` and ``val``, sorted lists of case ids.

    Raises
    ------
    ValueError
        If there are fewer patients than folds, those not counted who alone have a label.

    See Also
    --------
    count_labels : tells what could not be had.
    """
    patient = tell_patients(cases)
    labels = collect_labels(patient, labels_of or {})
    kept = find_only_patients(labels)
    patients = np.array(sorted(set(patient.values()) - set(kept)))
    count = f"{len(patients)}{_describe_kept(kept)}"
    if len(patients) < 2:
        advice = "Add cases of other patients, with these labels."
        raise ValueError(f"Two patients at least make folds. Received: {count}. {advice}")
    allowed = f"at least 2 and at most the number of patients, {count}"
    require("n_splits", n_splits, 2 <= n_splits <= len(patients), allowed)
    folds = []
    for chosen in _divide(patients, labels, n_splits, seed):
        parts = {"train": [], "val": []}
        for case_id in sorted(patient):
            parts["val" if patient[case_id] in chosen else "train"].append(case_id)
        folds.append(parts)
    return folds


def settle_folds(path, cases, n_splits=5, seed=12345, *, labels_of=None):
    """Take the folds that are written down, else make them.

    Parameters
    ----------
    path : str or Path
        ``splits.json``, perhaps not there. If it holds other folds than would be made, that is
        said.
    cases, n_splits, seed, labels_of
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
        return make_folds(cases, n_splits, seed, labels_of=labels_of)
    folds = read_json(path)
    try:
        made = make_folds(cases, n_splits, seed, labels_of=labels_of)
    except ValueError:
        made = None
    if folds != made:
        settings = f"FOLDS={n_splits}, SEED={seed} and GROUPS would make others, and are not used"
        if Run(path.parent).start.exists():
            advice = "Cases stay in the folds of START_FROM, whose models saw the others."
        else:
            advice = "For those remove it before a fold is trained, or take another EXPERIMENT."
        print(f"{path}: its {len(folds)} folds are used; {settings}. {advice}")
    return folds


def collect_labels(patient, labels_of):
    """Collect the labels that each patient has.

    Parameters
    ----------
    patient : dict of str to str
        Of each case.
    labels_of
        As for `make_folds`.

    Returns
    -------
    dict of str to set of int
        By patient.
    """
    labels = {who: set() for who in patient.values()}
    for case_id, who in patient.items():
        labels[who] |= set(labels_of.get(case_id, ()))
    return labels


def find_only_patients(labels):
    """Find who alone has some label.

    Parameters
    ----------
    labels : dict of str to set of int
        As `collect_labels` returns it.

    Returns
    -------
    dict of str to list of int
        These labels, by patient.
    """
    kept = {}
    for label in sorted(set().union(*labels.values())):
        owners = [who for who, values in labels.items() if label in values]
        if len(owners) == 1:
            kept.setdefault(owners[0], []).append(label)
    return kept


def _describe_kept(kept):
    named = [f"{who} with label {' and '.join(map(str, v))}" for who, v in kept.items()]
    words = f" not counted who alone have a label and are always trained on: {'; '.join(named)}"
    return f",{words}," if kept else ""


def _divide(patients, labels, n_splits, seed):
    # Sets of patients to be validated. The first attempt starts from nnU-Net's folds and changes
    # nothing where each has all labels; an exchange may end where no single one helps any more.
    shared = sorted(set().union(*(labels[who] for who in patients)))
    has = np.array([[label in labels[who] for label in shared] for who in patients], int)
    has = has.reshape(len(patients), len(shared))
    best, most = None, -1
    for attempt in range(ATTEMPTS):
        split = KFold(n_splits, shuffle=True, random_state=(seed + attempt) % 2**32).split(patients)
        fold_of = np.empty(len(patients), int)
        for fold, (_, val) in enumerate(split):
            fold_of[val] = fold
        counts = np.array([has[fold_of == fold].sum(axis=0) for fold in range(n_splits)])
        while _exchange(fold_of, counts, has):
            pass
        if (value := _value((counts > 0).sum(axis=0))) > most:
            best, most = fold_of, value
        if most == _value(np.minimum(has.sum(axis=0), n_splits)):
            break
    return [set(patients[best == fold]) for fold in range(n_splits)]


def _value(parts):
    # Of labels in so many validation parts. Two parts are worth more than anything, as then
    # every training part has the label.
    return parts.sum(axis=-1) + 10**6 * np.minimum(parts, 2).sum(axis=-1)


def _exchange(fold_of, counts, has):
    # Make the one exchange of two patients that helps most, in place; False if none does.
    there = counts > 0
    parts = there.sum(axis=0)
    best, most = None, _value(parts)
    lacking = parts < np.minimum(counts.sum(axis=0), len(counts))
    for fold, label in np.argwhere(~there & lacking):
        partners = np.flatnonzero(fold_of == fold)
        for one in np.flatnonzero(has[:, label]):
            other = fold_of[one]
            given, taken = has[one], has[partners]  # (label,) and (partner, label)
            left = counts[other] - given + taken > 0
            right = counts[fold] + given - taken > 0
            values = _value(parts - there[other] - there[fold] + left + right)
            if values.max() > most:
                best, most = (one, partners[values.argmax()]), values.max()
    if best is None:
        return False
    one, other = best
    difference = has[one] - has[other]
    counts[fold_of[one]] -= difference
    counts[fold_of[other]] += difference
    fold_of[[one, other]] = fold_of[[other, one]]
    return True


def count_labels(folds, labels_of):
    """Count in how many cases and folds every label is.

    Parameters
    ----------
    folds : list of dict
        As `make_folds` returns it.
    labels_of : mapping of str to iterable of int
        The label values in the mask of each case.

    Returns
    -------
    pandas.DataFrame
        A row per label: ``label``, ``cases`` that have it, ``validated cases`` among them, and
        the number of folds with it in the ``training parts`` and in the ``validation parts``.
    """
    rows = []
    for label in sorted(set().union(*labels_of.values())):
        owners = {case_id for case_id, values in labels_of.items() if label in values}
        validated = owners & {case_id for fold in folds for case_id in fold["val"]}
        parts = [sum(1 for fold in folds if owners & set(fold[p])) for p in ("train", "val")]
        rows.append((label, len(owners), len(validated), *parts))
    columns = ["label", "cases", "validated cases", "training parts", "validation parts"]
    return pd.DataFrame(rows, columns=columns)


def count_cases(folds, cases):
    """Count the cases and the patients of every fold.

    Parameters
    ----------
    folds : list of dict
        As `make_folds` returns it.
    cases : sequence of Case

    Returns
    -------
    pandas.DataFrame
        A row per fold: ``train cases``, ``validation cases`` and ``validation patients``.
    """
    patient = tell_patients(cases)
    rows = []
    for parts in folds:
        validated = {patient[case_id] for case_id in parts["val"]}
        rows.append((len(parts["train"]), len(parts["val"]), len(validated)))
    return pd.DataFrame(rows, columns=["train cases", "validation cases", "validation patients"])


def describe_rare_labels(folds, labels_of):
    """Say which labels are not in the validation part of every fold.

    Parameters
    ----------
    folds, labels_of
        As for `count_labels`.

    Returns
    -------
    list of str
        A sentence per such label.
    """
    sentences = []
    for label, cases, validated, _, parts in count_labels(folds, labels_of).itertuples(index=False):
        where = f"Label {label} is in {cases} case{'s' * (cases != 1)}"
        if not validated:
            which = _name_owners(label, labels_of)
            sentences.append(
                f"{where} ({which}), always trained on: no case that has it is scored."
            )
        elif parts < len(folds):
            some = f"{validated} validated, in {parts} of {len(folds)} folds"
            sentences.append(f"{where}, {some}: its scores are of these alone.")
    return sentences


def _name_owners(label, labels_of):
    owners = sorted(case_id for case_id, values in labels_of.items() if label in values)
    return ", ".join(owners[:3]) + ", and more" * (len(owners) > 3)


def check_folds(folds, cases, labels_of):
    """Stop if the folds cannot be trained, or would give a score that means nothing.

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
        If a fold names an unknown case, has one in both parts, has an empty part, or lacks a
        label in its training part, or if two folds validate the same case.

    See Also
    --------
    count_labels : tells of labels that are not in every validation part.
    find_leaks : tells of patients in both parts.
    """
    known, validated = {case.id for case in cases}, set()
    for number, fold in enumerate(folds):
        ids = {part: set(fold[part]) for part in ("train", "val")}
        subject = f"Fold {number} of splits.json:"
        unknown = (ids["train"] | ids["val"]) - known
        refuse_any(sorted(unknown), subject, "cases are not in the data", "Remove them.")
        both = sorted(ids["train"] & ids["val"])
        refuse_any(both, subject, "cases are in both parts", "Remove them from one.")
        empty = [part for part in ids if not ids[part]]
        refuse_any(empty, subject, "parts have no case", "Put some there.")
        _refuse_unlearnt(ids["train"], subject, labels_of)
        twice = sorted(validated & ids["val"])
        refuse_any(twice, subject, "cases are validated again", "A case is scored once.")
        validated |= ids["val"]


def _refuse_unlearnt(train, subject, labels_of):
    missing = set().union(*labels_of.values()).difference(*(labels_of[i] for i in train))
    lines = [f"{label} (it is in {_name_owners(label, labels_of)})" for label in sorted(missing)]
    advice = "Move such a case from its val to its train part, or remove splits.json: folds are "
    advice += "then made with each label in each training part."
    refuse_any(lines, subject, "labels are in no case of its train part", advice)


class ScanSample(NamedTuple):
    """What of a scan tells whether another one is the same: some kilobytes.

    ``digest``: of its voxels in RAS+. ``grid``: shape and spacing. ``values``: some of its voxels,
    of mean 0 and length 1.
    """

    digest: str
    grid: tuple
    values: np.ndarray


def sample_scan(image, affine):
    """Take of a scan what `find_leaks` compares.

    Parameters
    ----------
    image : (x, y, z) or (x, y, z, channel) ndarray of float32
        In RAS+.
    affine : (4, 4) ndarray

    Returns
    -------
    ScanSample
    """
    if image.shape[3:] == (1,):  # one file for the only channel, or a plain one: the same scan
        image = image[..., 0]
    digest = hashlib.sha256(f"{image.shape}".encode())
    digest.update(np.ascontiguousarray(image))
    grid = (image.shape, tuple(significant(voxel_sizes(affine), 3)))
    return ScanSample(digest.hexdigest(), grid, _sample(image))


def find_leaks(cases, folds=None, *, samples=None):
    """Find what would let a network see in training what it is scored on.

    Parameters
    ----------
    cases : sequence of Case
        With scans.
    folds : list of dict, optional
        As in ``splits.json``. By default pairs of cases are reported that some split could part:
        those that are not known to be of one patient.
    samples : dict of str to ScanSample, optional
        By case id, if the scans were read before; else they are read.

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
    if samples is None:
        samples = {case.id: sample_scan(*nifti.load_image(case.image)) for case in cases}
    patient = tell_patients(cases)
    rows = _find_parted_patients(patient, folds or [])
    for kind, one, other, detail in _find_same_scans(samples):
        if folds is None and patient[one] != patient[other]:
            rows.append((kind, one, other, None, detail))
        for fold, parts in enumerate(folds or []):
            for case_id, seen in ((one, other), (other, one)):
                if case_id in parts["val"] and seen in parts["train"]:
                    rows.append((kind, case_id, seen, fold, detail))
    return _tabulate(rows)


def join_leaks(leaks, more):
    """Put two tables of leaks, as `find_leaks` returns them, below each other."""
    rows = [*leaks[COLUMNS].to_numpy().tolist(), *more[COLUMNS].to_numpy().tolist()]
    return _tabulate(rows)


def recall_leaks(results_dir, cases, folds):
    """Tell the leaks of a finished experiment without reading scans that have not changed.

    Parameters
    ----------
    results_dir : str or Path
    cases : sequence of Case
        Some perhaps without scans: then what ``leaks.csv`` tells is all that is known.
    folds : list of dict

    Returns
    -------
    pandas.DataFrame
        As `find_leaks`.
    """
    run, trained = Run(results_dir), Trained(results_dir)
    there = all(case.image for case in cases)
    noted = read_results(run.leaks) if run.leaks.exists() or not there else _tabulate([])
    if not there:
        return noted
    by_start = noted["case"] == noted["other"]  # by the model that a fold started from
    if not (run.leaks.exists() and _are_as_trained(trained, cases, folds)):
        return join_leaks(find_leaks(cases, folds), noted[by_start])
    scans = noted[by_start | (noted["kind"] != PATIENT)]
    rows = _find_parted_patients(tell_patients(cases), folds)
    return _tabulate([*rows, *scans[COLUMNS].itertuples(index=False, name=None)])


def _are_as_trained(trained, cases, folds):
    for number, parts in enumerate(folds):
        done = trained.folds.get(number)
        if done is None or any(sorted(done[k]) != sorted(parts[k]) for k in ("train", "val")):
            return False
    used = list_used(folds)
    return all(trained.knows_scan(case) for case in cases if case.id in used)


def tell_patients(cases):
    """Tell the patient of each case, by id; a case whose patient is not known is one of its own."""
    return {case.id: case.id if case.group is None else case.group for case in cases}


def _tabulate(rows):
    table = pd.DataFrame(rows, columns=COLUMNS).astype({"fold": "Int64"})
    return table.drop_duplicates(["kind", "case", "other"], ignore_index=True)


def _find_parted_patients(patient, folds):
    # The first case of each patient who stands in both parts of a fold.
    rows = []
    for fold, parts in enumerate(folds):
        trained = {patient[i]: i for i in reversed(parts["train"]) if i in patient}
        validated = {patient[i]: i for i in reversed(parts["val"]) if i in patient}
        for who in sorted(validated):
            if who in trained:
                rows.append((PATIENT, validated[who], trained[who], fold, f"patient {who}"))
    return rows


def _find_same_scans(samples):
    by_digest, by_grid = {}, {}
    for case_id, sample in samples.items():
        by_digest.setdefault(sample.digest, []).append(case_id)
        by_grid.setdefault(sample.grid, []).append(case_id)
    identical = {pair for ids in by_digest.values() for pair in itertools.combinations(ids, 2)}
    pairs = [("identical scan", *pair, "the same voxel values") for pair in sorted(identical)]
    for ids in by_grid.values():
        matrix = np.stack([samples[case_id].values for case_id in ids])
        correlation = np.triu(matrix @ matrix.T, 1)
        for a, b in np.argwhere(np.abs(correlation) > DUPLICATE):
            if (ids[a], ids[b]) not in identical:
                detail = f"correlation {correlation[a, b]:.4f}"
                pairs.append(("near-duplicate scan", ids[a], ids[b], detail))
    return pairs


def describe_leaks(leaks):
    """Say what a table of leaks means for the scores.

    Parameters
    ----------
    leaks : pandas.DataFrame
        As `find_leaks` returns it.

    Returns
    -------
    str
    """
    return f"{len(leaks)} LEAKS: these scores are too good." if len(leaks) else "No leak found."


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


def _sample(image):
    values = image.reshape(-1, *image.shape[3:])  # (voxel,) or (voxel, channel)
    if len(values) > SAMPLED:
        values = values[np.random.default_rng(0).integers(len(values), size=SAMPLED)]
    values = values - values.mean(axis=0, dtype=float)  # channels differ in offset and unit
    lengths = np.linalg.norm(values, axis=0)
    values = (values / np.where(lengths, lengths, 1)).ravel()
    return (values / (np.linalg.norm(values) or 1)).astype(np.float32)
