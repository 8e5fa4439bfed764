"""An earlier run that training goes on from: its cases, its folds, and which of its models."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from unetseg.preprocessing import Preprocessor
from unetseg.reading.tables import read_results
from unetseg.run.fingerprints import fingerprint
from unetseg.run.inputs import Trained, list_used
from unetseg.run.layout import FINAL, Run, read_json
from unetseg.splits import (
    COLUMNS,
    PATIENT,
    TRAINED,
    collect_labels,
    find_only_patients,
    tell_patients,
)

GRID = ("spacing_mm", "patch", "normalisation", "dimensions", "neighbours", "planes")
GRID += ("empty_space", "coarse_mm", "margin", "assumed_mm")


def adopt_settings(wanted, results_dir):
    """Take over how an earlier run saw its scans, where nothing else is wanted.

    Parameters
    ----------
    wanted : Preprocessor
        Its settings that are not None stay.
    results_dir : str or Path
        The earlier run.

    Returns
    -------
    Preprocessor
        Labels, channels, and what follows from the masks are left to ``fit``.
    """
    earlier = Preprocessor.load(Run(results_dir).preprocessor)
    given = {name: getattr(wanted, name) for name in wanted.__dataclass_fields__}
    free = [name for name in GRID if given[name] is None]
    return Preprocessor(**{**given, **{name: getattr(earlier, name) for name in free}})


def match_cases(results_dir, cases, samples):
    """Tell which cases an earlier run knows, by the values of their voxels or by a file.

    Parameters
    ----------
    results_dir : str or Path
        The earlier run. One of an earlier version knows files alone.
    cases : sequence of Case
    samples : dict of str to unetseg.splits.ScanSample
        Of the cases of now, by id.

    Returns
    -------
    dict of str to str
        Their ids there, by their ids now.
    """
    table = read_results(Run(results_dir).cases).reindex(columns=["case", "digest"])
    by_digest = dict(zip(table["digest"], table["case"], strict=True))
    by_file = {file: i for i, files in _list_own_files(results_dir).items() for file in files}
    known = {}
    for case in cases:
        files = [by_file.get(fingerprint(path)["sha256"]) for path in case.files]
        before = [by_digest.get(samples[case.id].digest), *files]
        if any(before):
            known[case.id] = next(filter(None, before))
    return known


def _list_own_files(results_dir):
    # SHA-256 of the files of each scan, but for those that several have, such as empty channels.
    files_of = Trained(results_dir).list_scans()
    count = Counter(file for files in files_of.values() for file in files)
    return {i: {file for file in files if count[file] == 1} for i, files in files_of.items()}


def describe_doubts(results_dir, cases, known):
    """Say what of an earlier run could leak without being known.

    Parameters
    ----------
    results_dir, cases, known
        As for `extend_folds`.

    Returns
    -------
    str
        Empty if there is nothing to say.
    """
    run, said = Run(results_dir), ""
    folds = read_json(run.splits)
    used = list_used(folds)
    if named := sorted({case.id for case in cases if case.id in used} - known.keys()):
        said += f" It has cases named {', '.join(named)} too, with other voxels: if these are the "
        said += "same scans, only processed anew, START_FROM lets what was trained on be validated."
    if unfinished := len(folds) - len(run.list_finished()):
        said += f" {unfinished} of its folds are not finished: finish them first, or the cases "
        said += "that they validate have no model that did not see them."
    return said


def extend_folds(results_dir, cases, known, *, seed=12345, labels_of=None):
    """Divide cases as an earlier run did, and the new ones among its folds.

    Parameters
    ----------
    results_dir : str or Path
        The earlier run.
    cases : sequence of Case
    known : dict of str to str
        As `match_cases` returns it.
    seed : int, default 12345
    labels_of
        As for `unetseg.splits.make_folds`.

    Returns
    -------
    list of dict, or None
        As `unetseg.splits.make_folds`: what the earlier run validated in a fold, and new cases of
        the same patients, stay there; other new patients go where the fewest cases are, in an
        order by the seed. Who was always trained on is so again, and who alone has some label.
        None if no case is known, or a fold would validate none.
    """
    if not known:
        return None
    before = read_json(Run(results_dir).splits)
    patient = tell_patients(cases)
    labels = collect_labels(patient, labels_of or {})
    place = _place_patients(patient, known, before, seed)
    for who in find_only_patients(labels):
        place[who] = None
    _part_rare_patients(place, labels, {patient[i] for i in known}, len(before))
    folds = [{"train": [], "val": []} for _ in before]
    for case_id in sorted(patient):
        for number, parts in enumerate(folds):
            side = "val" if place[patient[case_id]] == number else "train"
            parts[side].append(case_id)
    return folds if all(parts["val"] for parts in folds) else None


def _place_patients(patient, known, before, seed):
    # The fold that validates each patient; None for one who is always trained on.
    fold_of = {i: number for number, parts in enumerate(before) for i in parts["val"]}
    place, scans = {}, Counter(patient.values())
    for case_id, id_before in known.items():
        place.setdefault(patient[case_id], fold_of.get(id_before))
    counts = [0] * len(before)
    for who, number in place.items():
        if number is not None:
            counts[number] += scans[who]
    for who in np.random.default_rng(seed).permutation(sorted({*scans} - {*place})).tolist():
        place[who] = int(np.argmin(counts))
        counts[place[who]] += scans[who]
    return place


def _part_rare_patients(place, labels, fixed, n_folds):
    # Where one fold validates all who have some label, a new one of them goes to the next fold.
    for label in sorted(set().union(*labels.values())):
        several = {who for who, values in labels.items() if label in values}
        numbers, free = {place[who] for who in several}, several - fixed
        if len(numbers) == 1 < len(several) and free and numbers != {None}:
            place[max(free)] = (numbers.pop() + 1) % n_folds


class Start(NamedTuple):
    """The model that a fold starts from: that of a fold, or ``final``, of an earlier run.

    ``digests`` and ``patients``: of all scans that it was trained on, and that it started from in
    its turn. The digests are of voxels and of files; where an earlier version noted neither, the
    name of the case stands for them.
    """

    results_dir: Path
    key: int | str
    weights_sha256: str
    digests: tuple
    patients: tuple


def list_starts(results_dir):
    """List the models of a run, with all that they have seen.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    dict of int or str to Start
        By number of the fold, or ``final``.
    """
    run = Run(results_dir)
    table = read_results(run.cases).reindex(columns=["case", "group", "digest"]).set_index("case")
    files_of, digest_of = _list_own_files(results_dir), table["digest"].dropna().to_dict()
    starts = {}
    for fold, done in run.read_models().items():
        groups = table["group"].reindex(done["train"]).dropna()
        before = done.get("start", {})
        digests = {*before.get("digests", [])}
        for i in done["train"]:
            known = {digest_of.get(i), *files_of.get(i, ())} - {None}
            digests |= known or {_name(i)}
        patients = {*groups, *before.get("patients", [])} - {""}
        about = done["weights_sha256"], tuple(sorted(digests)), tuple(sorted(patients))
        starts[fold.key] = Start(run.folder.absolute(), fold.key, *about)
    return starts


def _name(case_id):
    return f"named {case_id}"


def find_seen(start, cases, samples, *, by_patient=True):
    """Find which cases a model has seen, or another scan of the same patient.

    Parameters
    ----------
    start : Start
    cases, samples
        As for `match_cases`.
    by_patient : bool, default True
        Whether patients of one name are the same.

    Returns
    -------
    dict of str to str
        By id: ``trained on before``, or ``one patient``.
    """
    seen = {}
    for case in cases:
        files = [fingerprint(path)["sha256"] for path in case.files]
        if not {samples[case.id].digest, *files, _name(case.id)}.isdisjoint(start.digests):
            seen[case.id] = TRAINED
        elif by_patient and case.group is not None and case.group in start.patients:
            seen[case.id] = PATIENT
    return seen


def choose_starts(results_dir, folds, cases, samples):
    """Choose for every fold a model of an earlier run that saw none of what the fold validates.

    Parameters
    ----------
    results_dir : str or Path, or None
        The earlier run.
    folds : list of dict
        Of now, as in ``splits.json``.
    cases, samples
        As for `match_cases`.

    Returns
    -------
    starts : dict of int or str to Start
        For each fold its own number of the earlier run if that is possible, else ``final``, the
        model on all cases, else the first that is possible; its own if none is. For ``final``
        that of ``final``, or else of the first. Empty without an earlier run.
    leaks : pandas.DataFrame
        As `unetseg.splits.find_leaks`: the cases that a fold validates although its start was
        trained on them or, if the runs share cases, on their patients, itself or what it started
        from.
    """
    starts, rows = {}, []
    if results_dir is not None:
        models, by_id = list_starts(results_dir), {case.id: case for case in cases}
        # Elsewhere another patient may have the same name.
        by_patient = {"by_patient": bool(match_cases(results_dir, cases, samples))}
        for number, parts in [*enumerate(folds), (FINAL, {"val": []})]:
            val = [by_id[i] for i in parts["val"]]
            order = [key for key in (number, FINAL, *models) if key in models]
            seen = {key: find_seen(models[key], val, samples, **by_patient) for key in order}
            key = ([key for key in order if not seen[key]] or order)[0]
            starts[number] = models[key]
            detail = f"by {Path(results_dir).name}, from which this fold starts"
            rows += [(kind, i, i, number, detail) for i, kind in sorted(seen[key].items())]
    return starts, pd.DataFrame(rows, columns=COLUMNS).astype({"fold": "Int64"})
