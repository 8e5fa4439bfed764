"""Inference: the trained models of an experiment, and new scans by all of them together."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from unetseg import cases, memory, nifti
from unetseg._base import refuse_any, require, sha256, write_json
from unetseg.cases import check_headers, check_scan
from unetseg.digits import significant
from unetseg.model import build_unet
from unetseg.pieces import keep_largest
from unetseg.prediction import combine, predict_case, prepare_case, settle_settings
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import recall_plan
from unetseg.reliability import describe_votes
from unetseg.run import batches, drive, machine, processes
from unetseg.run.layout import Batch, Run, list_hashes, read_json
from unetseg.run.state import load_weights

MAPS = ("uncertainty", "disagreement")
COLUMNS = ["case", "label", "name", "volume_ml", "volume_mean_ml", "volume_sd_ml"]
COLUMNS += ["volume_min_ml", "volume_max_ml", "agreement", "uncertainty", "seconds", "problem"]
CHECKED = [name for name in cases.COLUMNS if name not in ("group", "labels", "volume_ml")]


def load_models(results_dir, *, build_model=build_unet, folds=None):
    """Load the trained models of an experiment.

    Parameters
    ----------
    results_dir : str or Path
        Holds ``experiment.json`` and the folders of the folds.
    build_model : callable, default build_unet
        The builder that the models were trained with.
    folds : iterable of int or str, optional
        By default every fold that is finished. ``["final"]`` is the model on all cases.

    Returns
    -------
    list of keras.Model

    Raises
    ------
    FileNotFoundError
        If no fold is finished, or one that was asked for is not.
    ValueError
        If the weights are damaged or do not fit.
    """
    finished = Run(results_dir).read_finished(folds)
    plan = recall_plan(results_dir, build_model)
    models = []
    for fold, done in finished.items():
        model = plan.build()
        load_weights(model, fold.weights, done["weights_sha256"])
        models.append(model)
    return models


def load_temperature(results_dir):
    """Temperature that makes the probabilities of an experiment honest.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    float
        Geometric mean over the finished folds, each fitted on the cases that the fold validated
        (`unetseg.reliability.fit_temperature`); 1 for experiments that have none.
    """
    run = Run(results_dir)
    members = run.list_members()  # one alone, if it was chosen instead of the average
    run = members[0] if len(members) == 1 else run
    finished = run.read_finished().values()
    return float(np.exp(np.mean([np.log(done.get("temperature", 1)) for done in finished])))


def predict_scans(
    scans,
    results_dir,
    folder,
    *,
    build_model=build_unet,
    folds=None,
    n_jobs=None,
    maps=MAPS,
    backup_dir=None,
    memory_bytes=None,
    overlap=None,
    mirror_axes=None,
    temperature=None,
):
    """Segment new scans with all folds of an experiment, each scan on its own.

    Every scan is checked first. One that cannot be read or segmented is reported and does not
    stop the others, nor does one that takes more memory than there is, even if its process is
    killed: scans are segmented in processes of their own. One that is finished with the same
    models and settings is not done again. Of labels that `unetseg.components.decide` chose only
    the largest piece is kept, in what all folds say together and in what each says alone.

    Parameters
    ----------
    scans : sequence of Case
        As `unetseg.cases.find_scans` returns them.
    results_dir : str or Path
        The experiment, as for `load_models`.
    folder : str or Path
        Gets ``labels/<id>.nii.gz``, a folder like it for each of `maps`, ``done`` (what was
        predicted, scan by scan) and ``predictions.csv``, in which the rows of scans of earlier
        calls stay, after those of this one. Labels that were changed since, or are not of this
        function, are never replaced.
    build_model : callable, default build_unet
        The builder that the models were trained with.
    folds : sequence of int or str, optional
        As for `load_models`.
    n_jobs : int, optional
        Processes, as joblib understands it: by default 1, or what `joblib.parallel_config` says,
        which may also send the scans to a cluster.
    maps : iterable of {"uncertainty", "disagreement", "probabilities"}
        What else to write, as float32 on the grid of each scan. By default the first two.
    backup_dir : str or Path, optional
        Folder on Google Drive that gets a copy of `folder` every quarter of an hour, and at the
        end, also if this is stopped or fails.
    memory_bytes : int, optional
        That a scan may take; by default what is free when its turn comes.
    overlap, mirror_axes, temperature : optional
        As for `predict_case`, whose defaults they have; but the temperature is by default that of
        `load_temperature`.

    Returns
    -------
    pandas.DataFrame
        A row per scan and label: ``case``, ``label``, ``name``, ``volume_ml``, the columns of
        `unetseg.reliability.describe_votes`, ``uncertainty`` (its mean where the label is),
        ``seconds`` and ``problem``. A scan that failed has one row, with its ``problem``.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_models` does, or if two scans have one id, the folder holds predictions of other
        scans with the same ids, or a setting is not possible.
    """
    maps = tuple(maps)
    allowed = ("uncertainty", "disagreement", "probabilities")
    require("maps", maps, all(name in allowed for name in maps), f"among {allowed}")
    ids = [scan.id for scan in scans]
    twice = sorted({case_id for case_id in ids if ids.count(case_id) > 1})
    refuse_any(twice, "scans:", "ids stand twice", "Rename.")
    run = Run(results_dir)
    folds = None if folds is None else tuple(folds)
    if temperature is None:
        temperature = load_temperature(run.folder)
    settings = {"temperature": float(temperature)}
    if overlap is not None:
        settings["overlap"] = float(overlap)
    if mirror_axes is not None:
        settings["mirror_axes"] = [int(axis) for axis in mirror_axes]
    order = Order(
        run=run,
        batch=Batch(Path(folder)),
        preprocessor=Preprocessor.load(run.preprocessor),
        members=tuple(run.list_members()),
        build_model=build_model,
        folds=folds,
        models=tuple(list_hashes(run.list_members(), folds)),
        maps=maps,
        settings=settings,
        memory_bytes=memory_bytes,
        largest=_recall_largest(run),
    )
    try:
        # What is wrong with them is said at once, not scan by scan.
        processes.call_apart(_check_ensemble, order)
        batches.refuse_other_scans(order.batch.folder, scans)
        _say_need(scans, order)
        with drive.Keeper(order.batch.folder, backup_dir):
            return _predict_all(scans, order, n_jobs)
    finally:
        processes.end_calls()


def _recall_largest(run):
    labels = Preprocessor.load(run.preprocessor).labels
    largest = [value for value in run.read_components()["new_scans"] if value in labels]
    if largest:
        names = ", ".join(labels[value] for value in largest)
        print(f"Only the largest piece is kept of {names}, as cross-validation decided.")
    return tuple(largest)


class Order(NamedTuple):
    """What is asked for of every scan of a batch."""

    run: Run
    batch: Batch
    preprocessor: Preprocessor
    members: tuple
    build_model: Callable
    folds: tuple | None
    models: tuple
    maps: tuple
    settings: dict
    memory_bytes: int | None
    largest: tuple

    @property
    def windows(self):
        """Settings that a first look takes too."""
        chosen = "overlap", "mirror_axes"
        return {key: value for key, value in self.settings.items() if key in chosen}

    def foretell(self, scan):
        """Memory that a scan takes, in bytes."""
        known = {"n_models": len(self.models), "maps": self.list_maps()}
        preprocessors = [Preprocessor.load(member.preprocessor) for member in self.members]
        return sum(memory.foretell(scan, one, **known) for one in preprocessors)

    def list_maps(self):
        """List the maps that are kept: of several ensembles the probabilities too."""
        return self.maps if len(self.members) == 1 else (*self.maps, "probabilities")

    def free_bytes(self):
        """Memory that a scan may take."""
        return self.memory_bytes or machine.available_bytes()

    def describe(self, scan):
        """Tell what the prediction of a scan depends on, in JSON's types."""
        about = {
            "models": [*self.models],
            "maps": [*self.maps],
            "settings": self.settings,
            "scan": [sha256(path) for path in scan.files],
        }
        # Notes of an earlier version do not tell of pieces.
        return {**about, "largest": [*self.largest]} if self.largest else about


def _predict_all(scans, order, n_jobs):
    job = joblib.delayed(_predict_apart)
    jobs = (job(scan, order) for scan in scans)
    rows, checks = [], []
    try:
        one_by_one = {"return_as": "generator_unordered", "prefer": "threads"}
        parallel = joblib.Parallel(processes.limit_jobs(n_jobs), **one_by_one)
        bar = {"total": len(scans), "unit": "scan", "file": sys.stdout, "mininterval": 1}
        for of_scan, check in tqdm(parallel(jobs), **bar):
            rows += of_scan
            checks.append(check)
    finally:  # also of a batch that is stopped
        table = _tabulate(rows)
        batches.update_table(order.batch.predictions, table)
        checked = pd.DataFrame(checks, columns=CHECKED).sort_values("case", kind="stable")
        batches.update_table(order.batch.scans, checked)
    return table


def _tabulate(rows):
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.astype({"label": "Int64", **dict.fromkeys(COLUMNS[3:-1], float)})
    return table.sort_values("case", kind="stable", ignore_index=True)


_ENSEMBLE = {}  # the last one that was loaded


def _load_ensembles(order):  # the hashes tell one training from another
    # Of each experiment that is averaged its models and its preprocessor.
    # By the name of the builder: one from a notebook is another object in each call.
    builder = order.build_model
    name = builder.__module__, getattr(builder, "__qualname__", "")
    key = order.run, name, order.models
    if key not in _ENSEMBLE:
        _ENSEMBLE.clear()
        _ENSEMBLE[key] = [_load_member(member, order) for member in order.members]
    return _ENSEMBLE[key]


def _load_member(member, order):
    models = load_models(member.folder, build_model=order.build_model, folds=order.folds)
    return models, recall_plan(member.folder, order.build_model).seen


def _check_ensemble(order):
    for _, preprocessor in _load_ensembles(order):
        settle_settings(preprocessor, **order.settings)


def _say_need(scans, order):
    if needs := [order.foretell(scan) for scan in scans]:
        print(memory.SAID.format(max(needs) / 1e9, order.free_bytes() / 1e9))


def _predict_apart(scan, order):
    try:
        return processes.call_apart(_predict_scan, scan, order)
    except processes.ProcessDiedError as error:
        need = order.foretell(scan) / 1e9
        problem = f"{scan.files[0]}: {error}; it takes about {need:.1f} GB. {memory.REMEDY}."
        return _report(scan, problem)


def _report(scan, problem, check=None):
    # The rows of a scan that is not segmented, and what is known of its file.
    return [{"case": scan.id, "problem": problem}], check or {"case": scan.id, "problem": problem}


def _predict_scan(scan, order):
    check = None
    try:
        about = order.describe(scan)
        note, earlier = _find_finished(scan, order, about)
        if note:
            return note["rows"], _recall_check(scan, note)
        ensembles, maps = _load_ensembles(order), order.list_maps()
        need = sum(memory.foretell(scan, own, models, maps=maps) for models, own in ensembles)
        if lack := memory.describe_lack(need, order.free_bytes()):
            raise ValueError(f"{scan.files[0]}: {lack}")
        started = time.monotonic()
        check, image, affine = _open_scan(scan, order)
        if check["problem"]:
            return _report(scan, check["problem"], check)
        # Measured: labels and two maps take a byte a voxel.
        needed = math.prod(check["shape"])
        machine.require_room(order.batch.folder, needed, f"labels and maps of {scan.id}")
        looks = [
            prepare_case(models, scan, own, loaded=(image, affine), **order.windows)
            for models, own in ensembles
        ]
        del image  # memory for the maps
        prediction = _predict_prepared(scan, order, ensembles, looks)
        _write_maps(scan, order, prediction)
        labels = order.preprocessor.labels
        rows = _describe(scan, prediction, labels, time.monotonic() - started)
        noted = {name: _plain(value) for name, value in check.items()}
        _finish(scan, order, {"about": about, "rows": rows, "check": noted}, earlier)
    except Exception as error:  # whatever it is, the other scans go on
        return _report(scan, str(error) or repr(error), check)
    return rows, check


def _open_scan(scan, order):
    # As of `check_scan`; one of another number of channels is not read whole.
    channels = order.preprocessor.channels
    (problem,) = check_headers([scan], expected=channels)["problem"]
    return ({"case": scan.id, "problem": problem}, None, None) if problem else check_scan(scan)


def _predict_prepared(scan, order, ensembles, looks):
    settings = {"probabilities": "probabilities" in order.list_maps(), **order.settings}
    several = len(ensembles) > 1
    temperature = settings.pop("temperature") if several else None  # of their average
    predictions = [
        predict_case(models, scan, own, prepared=prepared, **settings)
        for (models, own), prepared in zip(ensembles, looks, strict=True)
    ]
    prediction = predictions[0]
    if several:
        prediction = combine(predictions, order.preprocessor, temperature)
    return _take_pieces_away(prediction, order) if order.largest else prediction


def _take_pieces_away(prediction, order):
    # Of the labels, and of each model's, so that both tell of the same; probabilities stay.
    values = [0, *order.preprocessor.labels]
    numbers = [values.index(value) for value in order.largest]
    labels = keep_largest(prediction.labels, order.largest)
    for votes in prediction.votes:
        votes[:] = keep_largest(votes, numbers)
    differ = prediction.votes != np.searchsorted(values, labels)
    disagreement = differ.mean(axis=0, dtype=np.float32)
    return prediction._replace(labels=labels, disagreement=disagreement)


def _write_maps(scan, order, prediction):
    batch = order.batch
    nifti.save_mask(batch.draft(scan.id), prediction.labels, scan.files[0])
    # So that nowhere two runs are mixed, wherever one stops.
    batch.label(scan.id).unlink(missing_ok=True)
    for kind in order.maps:
        nifti.save_map(batch.map(kind, scan.id), getattr(prediction, kind), scan.files[0])


def _finish(scan, order, note, earlier):
    batch = order.batch
    draft, path = batch.draft(scan.id), batch.label(scan.id)
    digest = sha256(draft)
    hashes = {"labels_sha256": digest, "earlier_sha256": [one for one in earlier if one != digest]}
    write_json(batch.note(scan.id), {**note, "source": drive.origin(scan.files[0]), **hashes})
    path.parent.mkdir(exist_ok=True)
    draft.replace(path)  # last: labels that are there have their note


def _find_finished(scan, order, about):
    # The note on a scan that is finished, or None; and the hashes of all that was predicted of it.
    path, note = order.batch.label(scan.id), order.batch.note(scan.id)
    before = read_json(note, "prediction") if note.exists() else {}
    made = drive.list_made(before)
    if not path.exists():
        return None, made
    there = sha256(path)
    late = there in made[1:]  # Drive had got the note, not yet the labels
    whole = all(order.batch.map(kind, scan.id).exists() for kind in order.maps)
    if before.get("about") == about and not late and (whole or there not in made):
        return before, made
    if there not in made:
        advice = "Move it elsewhere, or predict into another folder."
        raise ValueError(f"{path}: not replaced, as it is not what was predicted. {advice}")
    return None, made


def _recall_check(scan, note):
    if "check" not in note:  # of an earlier version
        return check_scan(scan)[0]
    listed = {name: value for name, value in note["check"].items() if isinstance(value, list)}
    return {**note["check"], **{name: tuple(value) for name, value in listed.items()}}


def _describe(scan, prediction, labels, seconds):
    affine = nifti.affine_mm(nifti.read(scan.files[0], voxels=False))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    rows = []
    for row in describe_votes(prediction.votes, labels, voxel_ml):
        inside = prediction.labels == row["label"]
        row["volume_ml"] = np.count_nonzero(inside) * voxel_ml
        row["uncertainty"] = prediction.uncertainty[inside].mean() if inside.any() else np.nan
        rows.append({name: _plain(value) for name, value in row.items()})
        rows[-1].update(case=scan.id, problem="", seconds=round(seconds, 2))
    return rows


def _plain(value):
    # In JSON's types; it knows no NaN.
    if not isinstance(value, np.floating | float):
        return value
    return None if np.isnan(value) else significant(value)
