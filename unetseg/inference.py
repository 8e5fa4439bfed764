"""Prediction of whole cases, by one model or several, back on the native grid."""

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
from tqdm import tqdm

from unetseg import ensemble, memory, nifti
from unetseg._base import refuse_any, require, sha256, write_json
from unetseg.cases import check_cases
from unetseg.digits import significant
from unetseg.ensemble import along, map_bytes, predict_blocks
from unetseg.model import bears_bfloat16, build_for, build_unet, usual_settings
from unetseg.preprocessing import Preprocessor
from unetseg.reliability import describe_votes, soften
from unetseg.run import batches, machine, processes
from unetseg.run.devices import choose_precision
from unetseg.run.drive import origin
from unetseg.run.layout import Batch, Run, read_json
from unetseg.run.state import load_weights

MAPS = ("uncertainty", "disagreement")
COLUMNS = ["case", "label", "name", "volume_ml", "volume_mean_ml", "volume_sd_ml"]
COLUMNS += ["volume_min_ml", "volume_max_ml", "agreement", "uncertainty", "seconds", "problem"]


class Prediction(NamedTuple):
    """What the models say about one case, in RAS+ on its native grid.

    ``labels``: (x, y, z) int32, the user's own values. ``probabilities``: (x, y, z, class)
    float32, the mean over the models; None if they were not asked for. ``uncertainty``: (x, y, z)
    float32, the entropy of the probabilities in [0, 1], 1 where all classes are equally likely.
    ``votes``: (model, x, y, z) uint8, class numbers by each model alone. ``disagreement``:
    (x, y, z) float32, the share of the models that vote for another label, in [0, 1].
    """

    labels: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray
    votes: np.ndarray
    disagreement: np.ndarray


def load_models(results_dir, *, build_model=build_unet, folds=None):
    """Load the trained models of an experiment.

    Parameters
    ----------
    results_dir : str or Path
        Holds ``experiment.json`` and the folders of the folds.
    build_model : callable, default build_unet
        The builder that the models were trained with.
    folds : iterable of int, optional
        By default every fold that is finished.

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
    run = Run(results_dir)
    finished = run.read_finished(folds)
    settings = read_json(run.experiment)["settings"]
    preprocessor, model_args = Preprocessor.load(run.preprocessor), settings["model_args"]
    bfloat16 = bears_bfloat16(build_model, preprocessor.input_shape, model_args)
    precision = choose_precision(settings["recipe"]["precision"], bfloat16=bfloat16)
    models = []
    for fold, done in finished.items():
        model = build_for(preprocessor, build_model, model_args, precision)
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
    finished = Run(results_dir).read_finished().values()
    return float(np.exp(np.mean([np.log(done.get("temperature", 1)) for done in finished])))


@usual_settings()
def predict_case(
    models,
    case,
    preprocessor,
    *,
    overlap=0.5,
    mirror_axes=None,
    temperature=1.0,
    probabilities=True,
):
    """Segment one case.

    Parameters
    ----------
    models : keras.Model or sequence of them
        Their probabilities are averaged.
    case : Case
        Its mask is not looked at.
    preprocessor : Preprocessor
        The one that the models were trained with.
    overlap : float, default 0.5
        Of neighbouring windows, in [0, 1).
    mirror_axes : iterable of {0, 1, 2}, optional
        Axes along which mirrored copies are predicted too, all combinations averaged. By default
        those of the preprocessor, along which patches were mirrored in training; no others.
    temperature : float, default 1
        By which the logits of the mean probabilities are divided, such as `load_temperature`
        gives it. Changes how sure the prediction is, not its labels.
    probabilities : bool, default True
        Whether to return them. Without them many classes take no more memory than
        `unetseg.ensemble.BLOCK_BYTES` allows.

    Returns
    -------
    Prediction
    """
    mirror_axes = _settle(preprocessor, overlap, mirror_axes, temperature)
    models = list(models) if isinstance(models, list | tuple) else [models]
    place = preprocessor.place(case)
    drawn = _draw_background(preprocessor, place.shape, len(models), temperature, probabilities)
    inside = _look_at(drawn, place.box)
    parts = predict_blocks(models, case, preprocessor, place, overlap, mirror_axes)
    for block, mean, votes in parts:
        part = _look_at(inside, along(block.axis, *block.native))
        part.votes[:] = votes
        for plane in range(mean.shape[block.axis]):  # one at a time, so that copies are small
            index = along(block.axis, plane, plane + 1)
            _draw(_look_at(part, index), mean[index], preprocessor, temperature)
        del mean  # before the next one is made
    return drawn


@usual_settings()
def predict_and_sample(model, case, preprocessor, choose, *, overlap=0.5, mirror_axes=None):
    """Segment one case, and give the probabilities of some of its voxels.

    Parameters
    ----------
    model : keras.Model
    case : Case
    preprocessor : Preprocessor
    choose : callable
        Is given the predicted labels, and returns flat indices of the voxels.
    overlap, mirror_axes
        As for `predict_case`.

    Returns
    -------
    labels : (x, y, z) ndarray of int32
    chosen : (n,) ndarray of integers
        What `choose` returned.
    sampled : (n, class) ndarray of float32
        If the probabilities of all voxels would not fit into `unetseg.ensemble.BLOCK_BYTES`, the
        case is predicted twice instead.
    """
    settings = {"overlap": overlap, "mirror_axes": mirror_axes}
    shape = nifti.read(case.files[0], voxels=False).get_data_shape()[:3]
    fits = map_bytes(shape, preprocessor.num_classes) <= ensemble.BLOCK_BYTES
    found = predict_case(model, case, preprocessor, probabilities=fits, **settings)
    chosen = choose(found.labels)
    if fits:
        listed = found.probabilities.reshape(-1, preprocessor.num_classes)
        return found.labels, chosen, listed[chosen]
    mirror_axes = _settle(preprocessor, **settings)
    sampled = _predict_voxels(model, case, preprocessor, chosen, overlap, mirror_axes)
    return found.labels, chosen, sampled


def _predict_voxels(model, case, preprocessor, chosen, overlap, mirror_axes):
    place = preprocessor.place(case)
    places = np.transpose(np.unravel_index(chosen, place.shape))
    places -= [part.start for part in place.box]
    inside = ((places >= 0) & (places < place.box_shape)).all(axis=1)
    sampled = preprocessor.encode(np.zeros(len(places), int))  # certain where it was cropped
    parts = predict_blocks([model], case, preprocessor, place, overlap, mirror_axes)
    for block, mean, _ in parts:
        first, last = block.native
        across = places[:, block.axis]
        here = inside & (first <= across) & (across < last)
        index = places[here]
        index[:, block.axis] -= first
        sampled[here] = mean[tuple(index.T)]
        del mean  # before the next one is made
    return sampled


def _draw_background(preprocessor, shape, n_models, temperature, probabilities):
    # Where the scan was cropped the background is certain.
    num_classes = preprocessor.num_classes
    whole = Prediction(
        labels=np.zeros(shape, np.int32),
        probabilities=np.zeros((*shape, num_classes), np.float32) if probabilities else None,
        uncertainty=np.zeros(shape, np.float32),
        votes=np.zeros((n_models, *shape), np.uint8),
        disagreement=np.zeros(shape, np.float32),
    )
    certain = np.eye(num_classes, dtype=np.float32)[:1]
    certain = soften(certain, temperature) if temperature != 1 else certain
    whole.uncertainty[:] = normalised_entropy(certain)
    if probabilities:
        whole.probabilities[:] = certain
    return whole


def _look_at(drawn, index):
    # A part of every map, to be written to.
    probabilities = drawn.probabilities
    return Prediction(
        labels=drawn.labels[index],
        probabilities=None if probabilities is None else probabilities[index],
        uncertainty=drawn.uncertainty[index],
        votes=drawn.votes[(slice(None), *index)],
        disagreement=drawn.disagreement[index],
    )


def _draw(part, mean, preprocessor, temperature):
    classes = mean.argmax(axis=-1)  # before rounding may make two classes equal
    part.labels[:] = preprocessor.decode(mean)
    part.disagreement[:] = (part.votes != classes).mean(axis=0, dtype=np.float32)
    mean = soften(mean, temperature) if temperature != 1 else mean
    part.uncertainty[:] = normalised_entropy(mean)
    if part.probabilities is not None:
        part.probabilities[:] = mean


def _settle(preprocessor, overlap=0.5, mirror_axes=None, temperature=1.0):
    trained = preprocessor.mirror_axes or ()
    mirror_axes = trained if mirror_axes is None else tuple(mirror_axes)
    allowed = f"among {trained}, along which the models saw mirrored patches"
    require("mirror_axes", mirror_axes, {*trained}.issuperset(mirror_axes), allowed)
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    require("temperature", temperature, temperature > 0, "above 0")
    return mirror_axes


def predict_scans(
    scans,
    results_dir,
    folder,
    *,
    build_model=build_unet,
    n_jobs=None,
    maps=MAPS,
    backup_dir=None,
    memory_bytes=None,
    **kwargs,
):
    """Segment new scans with all folds of an experiment, each scan on its own.

    Every scan is checked first. One that cannot be read or segmented is reported and does not
    stop the others, nor does one that takes more memory than there is, even if its process is
    killed: scans are segmented in processes of their own. One that is finished with the same
    models and settings is not done again.

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
    **kwargs
        As for `predict_case`; the temperature is by default that of `load_temperature`.

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
    results_dir, folder, maps = Path(results_dir), Path(folder), tuple(maps)
    allowed = ("uncertainty", "disagreement", "probabilities")
    require("maps", maps, {*maps} <= {*allowed}, f"among {allowed}")
    ids = [scan.id for scan in scans]
    refuse_any(sorted({i for i in ids if ids.count(i) > 1}), "scans:", "ids stand twice", "Rename.")
    finished = Run(results_dir).read_finished().values()
    models = tuple(done["weights_sha256"] for done in finished)
    kwargs = {"temperature": load_temperature(results_dir), **kwargs}
    about = {"models": [*models], "maps": [*maps], "settings": json.loads(json.dumps(kwargs))}
    job = joblib.delayed(_predict_apart)
    jobs = (job(scan, results_dir, folder, build_model, about, memory_bytes) for scan in scans)
    try:
        # What is wrong with them is said at once, not scan by scan.
        processes.call_apart(_check_ensemble, results_dir, build_model, about)
        batches.refuse_other_scans(folder, scans)
        _say_need(scans, results_dir, about, memory_bytes)
        with processes.Keeper(folder, backup_dir):
            return _collect(jobs, n_jobs, len(ids), folder)
    finally:
        processes.end_calls()


def _collect(jobs, n_jobs, count, folder):
    rows = []
    try:
        found = joblib.Parallel(n_jobs, return_as="generator_unordered", prefer="threads")(jobs)
        for of_scan in tqdm(found, total=count, unit="scan", file=sys.stdout, mininterval=1):
            rows += of_scan
    finally:  # also of a batch that is stopped
        table = _tabulate(rows)
        batches.update_table(Batch(folder).predictions, table)
    return table


def _tabulate(rows):
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.astype({"label": "Int64", **dict.fromkeys(COLUMNS[3:-1], float)})
    return table.sort_values("case", kind="stable", ignore_index=True)


_ENSEMBLE = {}  # the last one that was loaded


def _load_ensemble(results_dir, build_model, models):  # the hashes tell one training from another
    # By the name of the builder: one from a notebook is another object in each call.
    key = results_dir, build_model.__module__, getattr(build_model, "__qualname__", ""), models
    if key not in _ENSEMBLE:
        _ENSEMBLE.clear()
        loaded = load_models(results_dir, build_model=build_model)
        _ENSEMBLE[key] = loaded, Preprocessor.load(Run(results_dir).preprocessor)
    return _ENSEMBLE[key]


def _check_ensemble(results_dir, build_model, about):
    _, preprocessor = _load_ensemble(results_dir, build_model, tuple(about["models"]))
    _settle(preprocessor, **about["settings"])


def _say_need(scans, results_dir, about, memory_bytes):
    preprocessor = Preprocessor.load(Run(results_dir).preprocessor)
    known = {"n_models": len(about["models"]), "maps": about["maps"]}
    if needs := [memory.foretell(scan, preprocessor, **known) for scan in scans]:
        free = memory_bytes or machine.available_bytes()
        print(memory.SAID.format(max(needs) / 1e9, free / 1e9))


def _predict_apart(scan, results_dir, folder, build_model, about, memory_bytes):
    arguments = scan, results_dir, folder, build_model, about, memory_bytes
    try:
        return processes.call_apart(_predict_scan, *arguments)
    except processes.ProcessDiedError as error:
        preprocessor = Preprocessor.load(Run(results_dir).preprocessor)
        known = {"n_models": len(about["models"]), "maps": about["maps"]}
        need = memory.foretell(scan, preprocessor, **known) / 1e9
        problem = f"{scan.files[0]}: {error}; it takes about {need:.1f} GB. {memory.REMEDY}."
        return [{"case": scan.id, "problem": problem}]


def _predict_scan(scan, results_dir, folder, build_model, about, memory_bytes=None):
    models, preprocessor = _load_ensemble(results_dir, build_model, tuple(about["models"]))
    batch = Batch(folder)
    path, marker, draft = batch.label(scan.id), batch.note(scan.id), batch.draft(scan.id)
    started = time.monotonic()
    try:
        about = {**about, "scan": [sha256(file) for file in scan.files]}
        rows, replaced = _find_finished(path, marker, about)
        if rows:
            return rows
        need = memory.foretell(scan, preprocessor, models, maps=about["maps"])
        if lack := memory.describe_lack(need, memory_bytes or machine.available_bytes()):
            raise ValueError(f"{scan.files[0]}: {lack}")
        _check_scan(scan, folder)
        settings = {"probabilities": "probabilities" in about["maps"], **about["settings"]}
        found = predict_case(models, scan, preprocessor, **settings)
        nifti.save_mask(draft, found.labels, scan.files[0])
        path.unlink(missing_ok=True)  # so that nowhere two runs are mixed, wherever one stops
        for name in about["maps"]:
            nifti.save_map(batch.map(name, scan.id), getattr(found, name), scan.files[0])
        rows = _describe(scan, found, preprocessor.labels)
        for row in rows:
            row["seconds"] = round(time.monotonic() - started, 2)
        done = {"about": about, "source": origin(scan.files[0]), "rows": rows}
        done |= {"labels_sha256": sha256(draft), "replaced_sha256": replaced}
        write_json(marker, done)
        path.parent.mkdir(exist_ok=True)
        draft.replace(path)  # last: labels that are there have their marker
    except Exception as error:  # whatever it is, the other scans go on
        return [{"case": scan.id, "problem": str(error) or repr(error)}]
    return rows


def _find_finished(path, marker, about):
    # The rows of a scan that is finished, or None; and the hash of the labels that are replaced.
    before = read_json(marker, "prediction") if marker.exists() else {}
    if not path.exists():
        return None, None
    there = sha256(path)
    newest, older = before.get("labels_sha256"), before.get("replaced_sha256")
    late = there == older != newest  # Drive had got the marker, not yet the labels
    if before.get("about") == about and not late:
        return before["rows"], there
    if there not in (newest, older):
        advice = "Move it elsewhere, or predict into another folder."
        raise ValueError(f"{path}: not replaced, as it is not what was predicted. {advice}")
    return None, there


def _check_scan(scan, folder):
    (checked,) = check_cases([replace(scan, mask=None)], need_masks=False).itertuples()
    if checked.problem:
        raise ValueError(checked.problem)
    # Measured: labels and two maps take a byte a voxel.
    machine.require_room(folder, math.prod(checked.shape), f"labels and maps of {scan.id}")


def _describe(scan, found, labels):
    affine = nifti.affine_mm(nifti.read(scan.files[0], voxels=False))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    rows = describe_votes(found.votes, labels, voxel_ml)
    for row in rows:
        inside = found.labels == row["label"]
        row["volume_ml"] = np.count_nonzero(inside) * voxel_ml
        row["uncertainty"] = found.uncertainty[inside].mean() if inside.any() else np.nan
        row |= {k: None if pd.isna(v) else v for k, v in row.items()}  # JSON knows no NaN
        numbers = {k: v for k, v in row.items() if isinstance(v, np.floating | float)}
        row |= {name: significant(value) for name, value in numbers.items()}
        row |= {"case": scan.id, "problem": ""}
    return rows


def normalised_entropy(probabilities):
    """Entropy of class probabilities, in units of its largest possible value.

    Parameters
    ----------
    probabilities : (..., class) ndarray of float
        Sum to 1.

    Returns
    -------
    (...) ndarray of float32
        In [0, 1].
    """
    safe = np.clip(probabilities, 1e-12, 1)
    entropy = -(probabilities * np.log(safe)).sum(axis=-1) / np.log(probabilities.shape[-1])
    return np.clip(entropy, 0, 1).astype(np.float32)
