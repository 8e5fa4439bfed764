"""What the finished folds of an experiment were trained on, and what has changed since."""

from collections import Counter
from pathlib import Path

import numpy as np

from unetseg import nifti
from unetseg._base import refuse_any, write_json
from unetseg.run.fingerprints import fingerprint, matches
from unetseg.run.layout import Run, read_json

AS_TRAINED, CORRECTED, UNKNOWN = "as in training", "corrected since", "not known"


def describe_inputs(cases, *, fresh=False):
    """Tell what the files of cases hold.

    Parameters
    ----------
    cases : sequence of Case
    fresh : bool, default False
        Whether to read every file; otherwise those that are known are not read again.

    Returns
    -------
    dict
        By case id: ``scan``, a list with what `unetseg.run.fingerprints.fingerprint` returns for
        each file, and ``mask``, the same for the mask, or None.
    """
    inputs = {}
    for case in cases:
        scan = [fingerprint(path, fresh=fresh) for path in case.files if path]
        mask = fingerprint(case.mask, fresh=fresh) if case.mask else None
        inputs[case.id] = {"scan": scan, "mask": mask}
    return inputs


def list_hashes(inputs):
    """Keep of what `describe_inputs` returns the content alone, which is the same anywhere."""
    hashes = {}
    for case_id, files in inputs.items():
        mask = files["mask"] and files["mask"]["sha256"]
        hashes[case_id] = {"scan": [file["sha256"] for file in files["scan"]], "mask": mask}
    return hashes


def name_differences(before, now):
    """Name the cases that hold something else than before.

    Parameters
    ----------
    before, now : dict
        As `list_hashes` returns them; cases that are in one of them alone are left out.

    Returns
    -------
    list of str
        Such as ``"mask of case_01"``.
    """
    names = []
    for case_id in sorted(before.keys() & now.keys()):
        for part in ("scan", "mask"):
            if before[case_id][part] != now[case_id][part]:
                names.append(f"{part} of {case_id}")
    return names


def refuse_changed_meanwhile(inputs, cases):
    """Stop if files are not any more what they were when they were first read.

    Parameters
    ----------
    inputs : dict
        As `describe_inputs` returned it then.
    cases : sequence of Case

    Raises
    ------
    ValueError
        Names the files.
    """
    names = name_differences(list_hashes(inputs), list_hashes(describe_inputs(cases)))
    advice = "Leave them alone while this runs, and run it again."
    refuse_any(names, "DATA:", "files were changed while they were in use", advice)


def note_inputs(path, cases):
    """Write down what the files of cases hold, such as those that the preprocessing is chosen from.

    Parameters
    ----------
    path : str or Path
        ``fitted_on.json``, for `say_if_fitted_on_others`.
    cases : sequence of Case
    """
    write_json(path, list_hashes(describe_inputs(cases)))


def say_if_fitted_on_others(path, cases):
    """Say if the preprocessing was chosen from other files than those that it will be used on.

    Parameters
    ----------
    path : str or Path
        ``fitted_on.json``, as `note_inputs` wrote it in ``01_load_data``; without it nothing is
        known, and nothing said.
    cases : sequence of Case

    Returns
    -------
    bool
        Whether it was.
    """
    if not Path(path).is_file():
        return False
    before, now = read_json(path), list_hashes(describe_inputs(cases))
    changes = [f"another {name}" for name in name_differences(before, now)]
    changes += [f"{name} is gone" for name in sorted(before.keys() - now.keys())]
    changes += [f"{name} is new" for name in sorted(now.keys() - before.keys())]
    if changes:
        advice = "Run 01_load_data again if spacing, patch or labels should follow them."
        print(f"preprocessor.json was chosen from other data: {', '.join(changes)}. {advice}")
    return bool(changes)


class Trained:
    """What the finished folds of an experiment say that they were trained on.

    Parameters
    ----------
    results_dir : str or Path

    Attributes
    ----------
    folds : dict of int to dict
        The ``done.json`` of every finished fold; damaged ones are left out.
    unknown : list of int
        The folds that were finished by an earlier version, which noted no content.
    """

    def __init__(self, results_dir):
        self.run, self.folds, self.unknown = Run(results_dir), {}, []
        self._inputs, self._copies, self._stamps = {}, {}, Counter()
        for fold in self.run.list_finished():
            try:
                done = read_json(fold.done)
            except ValueError:
                continue
            self._add(fold.number, done)

    def _add(self, number, done):
        self.folds[number] = done
        if "inputs" not in done:
            self.unknown.append(number)
        digests = done.get("masks_sha256", {})
        for case_id in done["val"]:
            self._copies[case_id] = digests.get(f"{case_id}.nii.gz")
        for case_id, files in done.get("inputs", {}).items():
            noted = self._inputs.setdefault(case_id, [])
            if files not in noted:
                noted.append(files)
                self._stamps.update(_stamp_in(file) for file in (*files["scan"], files["mask"]))

    def knows_scan(self, case):
        """Whether the scan of a case is the one that was trained on; None if not known."""
        noted = [files["scan"] for files in self._inputs.get(case.id, [])]
        if not noted or case.image is None:
            return None
        return all(self._fit(case.files, files) for files in noted)

    def compare_mask(self, case):
        """Compare the mask of a case with the one that was trained on.

        Parameters
        ----------
        case : Case
            With a mask.

        Returns
        -------
        str
            ``AS_TRAINED`` if its bytes are the same, or its labels are those of the copy in the
            folder ``masks``; else ``CORRECTED``, or ``UNKNOWN`` if neither is at hand.
        """
        noted = [files["mask"] for files in self._inputs.get(case.id, []) if files["mask"]]
        if noted and all(self._fit([case.mask], [mask]) for mask in noted):
            return AS_TRAINED
        if copy := self._find_copy(case.id):
            return AS_TRAINED if _have_same_labels(case.mask, copy) else CORRECTED
        return CORRECTED if noted else UNKNOWN

    def _fit(self, files, noted):
        if len(files) != len(noted):
            return False
        return all(self._fits(path, file) for path, file in zip(files, noted, strict=True))

    def _fits(self, path, noted):
        # Files that were unpacked together may share size and time: then these tell nothing.
        if self._stamps[_stamp_in(noted)] > 1:
            return fingerprint(path, fresh=True)["sha256"] == noted["sha256"]
        return matches(path, noted)

    def _find_copy(self, case_id):
        path = self.run.mask(case_id)
        if case_id not in self._copies or not path.is_file():
            return None
        digest = self._copies[case_id]
        if digest and fingerprint(path)["sha256"] != digest:
            return None  # it was changed itself
        return path

    def refuse_stale(self, cases):
        """Stop if finished folds were trained on other files than the cases now have.

        Parameters
        ----------
        cases : sequence of Case

        Raises
        ------
        ValueError
            Names the cases, what changed of each, and what can be done.
        """
        by_id, changed = {case.id: case for case in cases}, []
        trained = {i for done in self.folds.values() for i in (*done["train"], *done["val"])}
        for case_id in sorted(trained):
            case = by_id.get(case_id)
            if case is None:
                changed.append(f"{case_id} is not in the data any more")
                continue
            if self.knows_scan(case) is False:
                changed.append(f"the scan of {case_id} changed")
            if case.mask is None or self.compare_mask(case) == CORRECTED:
                changed.append(f"the mask of {case_id} changed")
        advice = "RETRAIN (retrain=True) trains these folds again on what is there now; another "
        advice += "EXPERIMENT keeps both; or put the files back. 03_evaluate scores the folds as "
        advice += "they are against corrected masks. A case that is gone for good has to leave "
        advice += "splits.json too."
        subject = f"{self.run.folder}: since {len(self.folds)} folds were finished"
        refuse_any(changed, subject, "files of their data changed", advice)
        if self.unknown:
            folds = ", ".join(map(str, self.unknown))
            print(f"Fold {folds}: of an earlier version; not known whether its scans changed.")

    def list_scans(self):
        """SHA-256 of the files of the scan of each case, as a set by id, as far as noted."""
        return {
            case_id: {file["sha256"] for files in listed for file in files["scan"]}
            for case_id, listed in self._inputs.items()
        }

    def list_predictions(self):
        """SHA-256 of the predictions of the finished folds, by case id, as far as noted."""
        digests = {}
        for done in self.folds.values():
            digests |= done.get("predictions_sha256", {})
        return {name.removesuffix(".nii.gz"): digest for name, digest in digests.items()}

    def refuse_foreign(self, predictions_dir, fold_of):
        """Stop if predictions are not those that the folds made.

        Parameters
        ----------
        predictions_dir : Path
        fold_of : dict of str to int
            The fold that validates each case, by its id.

        Raises
        ------
        ValueError
            Names the cases. Nothing is known of folds of an earlier version, nor of predictions
            that lie in no experiment.
        """
        foreign = []
        for case_id, fold in sorted(fold_of.items()):
            path = Path(predictions_dir) / f"{case_id}.nii.gz"
            if self.folds and self._is_foreign(path, self.folds.get(fold)):
                foreign.append(f"{case_id} (fold {fold})")
        problem = "predictions are not what the finished fold left"
        advice = "Changed by hand, of another run, or of a fold that is not finished: put them "
        advice += "elsewhere, and run 02_train_kfold, which makes them anew."
        refuse_any(foreign, f"{predictions_dir}:", problem, advice)

    def _is_foreign(self, path, done):
        if done is None:
            return True
        noted = done.get("predictions_sha256")
        return noted is not None and noted.get(path.name) != fingerprint(path)["sha256"]

    def describe_scored(self, cases):
        """Say which cases are scored on other files than those that were trained on.

        Parameters
        ----------
        cases : sequence of Case
            With masks.

        Returns
        -------
        dict of str to str
            What `compare_mask` says of each.

        Raises
        ------
        ValueError
            If scan and mask of a case changed: it may be another patient, whom nobody predicted.
        """
        masks = {case.id: self.compare_mask(case) for case in cases}
        corrected = [case_id for case_id, state in masks.items() if state == CORRECTED]
        scans = [case.id for case in cases if self.knows_scan(case) is False]
        exchanged = sorted({*corrected} & {*scans})
        advice = "Their predictions are of the scans of before. Put the files back, or train on "
        advice += "these: RETRAIN in 02_train_kfold, or another EXPERIMENT."
        refuse_any(exchanged, "DATA:", "cases have another scan and another mask", advice)
        if corrected:
            names = ", ".join(corrected)
            print(f"{len(corrected)} masks were corrected since training, and are scored: {names}.")
        if scans:
            names = ", ".join(scans)
            print(f"{len(scans)} scans changed since they were predicted: {names}.")
        return masks


def list_used(folds):
    """Ids of the cases that stand in a fold, as in ``splits.json``."""
    return {case_id for fold in folds for case_id in (*fold["train"], *fold["val"])}


def say_unused(folds, cases):
    """Name the cases that stand in no fold.

    Parameters
    ----------
    folds : list of dict
        As in ``splits.json``.
    cases : sequence of Case
    """
    unused = sorted({case.id for case in cases} - list_used(folds))
    if unused:
        names = ", ".join(unused)
        print(f"{len(unused)} cases are in no fold of splits.json, so they are not used: {names}.")


def _stamp_in(file):
    return file and (file["bytes"], file["mtime_ns"])


def _have_same_labels(path, other):
    labels, affine = nifti.load_mask(path)
    other_labels, other_affine = nifti.load_mask(other)
    if nifti.describe_grid_mismatch(labels.shape, affine, other_labels.shape, other_affine):
        return False
    return np.array_equal(labels, other_labels)
