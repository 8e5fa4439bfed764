"""Prediction of whole cases, by one model or several, back on the native grid."""

import functools
import itertools
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

from unetseg import batches, checkpoint, disk, nifti, parallel, workspace
from unetseg.augmentation import add_neighbours
from unetseg.cases import check_cases
from unetseg.digits import significant
from unetseg.model import build_for, build_unet
from unetseg.preprocessing import Preprocessor
from unetseg.reliability import describe_votes, soften
from unetseg.workspace import read_json, refuse_any, require, sha256, write_json

MAPS = ("uncertainty", "disagreement")
COLUMNS = ["case", "label", "name", "volume_ml", "volume_mean_ml", "volume_sd_ml"]
COLUMNS += ["volume_min_ml", "volume_max_ml", "agreement", "uncertainty", "seconds", "problem"]
BATCH_VOXELS = 2**18  # of one step: little memory, and no faster with more on a CPU


class Prediction(NamedTuple):
    """What the models say about one case, in RAS+ on its native grid.

    ``labels``: (x, y, z) int32, the user's own values. ``probabilities``: (x, y, z, class)
    float32, the mean over the models. ``uncertainty``: (x, y, z) float32, the entropy of the
    probabilities in [0, 1], 1 where all classes are equally likely. ``votes``: (model, x, y, z)
    uint8, class numbers by each model alone. ``disagreement``: (x, y, z) float32, the share of the
    models that vote for another label, in [0, 1].
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
    results_dir, models = Path(results_dir), []
    done = workspace.read_folds(results_dir, folds)
    settings = read_json(results_dir / "experiment.json")["settings"]
    preprocessor = Preprocessor.load(results_dir / "preprocessor.json")
    for folder, about in done.items():
        precision = settings["recipe"]["precision"]
        model = build_for(preprocessor, build_model, settings["model_args"], precision)
        checkpoint.load_weights(model, folder / "model.weights.h5", about["weights_sha256"])
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
    done = workspace.read_folds(results_dir).values()
    return float(np.exp(np.mean([np.log(one.get("temperature", 1)) for one in done])))


def predict_case(models, case, preprocessor, *, overlap=0.5, mirror_axes=None, temperature=1.0):
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

    Returns
    -------
    Prediction
    """
    mirror_axes = _settle(preprocessor, overlap, mirror_axes, temperature)
    models = list(models) if isinstance(models, list | tuple) else [models]
    x, void = preprocessor.transform_scan(case)
    found = (_predict(model, x, preprocessor, overlap, mirror_axes, void) for model in models)
    total, votes = 0, []
    for native in preprocessor.restore_each(found, case):  # one at a time in memory
        votes.append(native.argmax(axis=-1).astype(np.uint8))
        total += native
    probabilities, votes = total / np.float32(len(models)), np.stack(votes)
    labels = preprocessor.decode(probabilities)  # before rounding may make two classes equal
    disagreement = (votes != probabilities.argmax(axis=-1)).mean(axis=0, dtype=np.float32)
    if temperature != 1:
        probabilities = soften(probabilities, temperature)
    uncertainty = normalised_entropy(probabilities)
    return Prediction(labels, probabilities, uncertainty, votes, disagreement)


def _settle(preprocessor, overlap=0.5, mirror_axes=None, temperature=1.0):
    trained = preprocessor.mirror_axes or ()
    mirror_axes = trained if mirror_axes is None else tuple(mirror_axes)
    allowed = f"among {trained}, along which the models saw mirrored patches"
    require("mirror_axes", mirror_axes, {*trained}.issuperset(mirror_axes), allowed)
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    require("temperature", temperature, temperature > 0, "above 0")
    return mirror_axes


def _predict(model, x, preprocessor, overlap, mirror_axes, void):
    total, patch = 0, preprocessor.patch
    flat = patch.index(1) if 1 in patch else 0
    planes = preprocessor.planes or (flat,)
    for plane in planes:
        view, empty = x.swapaxes(plane, flat), void.swapaxes(plane, flat)
        if preprocessor.neighbours:
            view = add_neighbours(view, flat, preprocessor.neighbours)
        for n in range(len(mirror_axes) + 1):
            for axes in itertools.combinations(mirror_axes, n):  # one map in memory at a time
                axes = [{plane: flat, flat: plane}.get(axis, axis) for axis in axes]
                flipped = np.flip(view, axes), patch
                found = slide([model], *flipped, overlap=overlap, void=np.flip(empty, axes))
                found = np.flip(found, axes)
                total += found.swapaxes(plane, flat)
    return total / (len(planes) * 2 ** len(mirror_axes))


def predict_scans(
    scans,
    results_dir,
    folder,
    *,
    build_model=build_unet,
    n_jobs=None,
    maps=MAPS,
    backup_dir=None,
    **kwargs,
):
    """Segment new scans with all folds of an experiment, each scan on its own.

    Every scan is checked first. One that cannot be read or segmented is reported and does not
    stop the others; one that is finished with the same models and settings is not done again.

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
    models = tuple(one["weights_sha256"] for one in workspace.read_folds(results_dir).values())
    kwargs = {"temperature": load_temperature(results_dir), **kwargs}
    about = {"models": [*models], "maps": [*maps], "settings": json.loads(json.dumps(kwargs))}
    job = joblib.delayed(_predict_scan)
    jobs = (job(scan, results_dir, folder, build_model, about) for scan in scans)
    # What is wrong with them is said at once, not scan by scan.
    _, preprocessor = _load_ensemble(results_dir, build_model, models)
    _settle(preprocessor, **kwargs)
    batches.refuse_other_scans(folder, scans)
    rows = []
    with parallel.Keeper(folder, backup_dir):
        try:
            found = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(jobs)
            for about_scan in tqdm(
                found, total=len(ids), unit="scan", file=sys.stdout, mininterval=1
            ):
                rows += about_scan
        finally:  # also of a batch that is stopped
            table = _tabulate(rows)
            batches.update_table(folder / "predictions.csv", table)
    return table


def _tabulate(rows):
    table = pd.DataFrame(rows, columns=COLUMNS)
    table = table.astype({"label": "Int64", **dict.fromkeys(COLUMNS[3:-1], float)})
    return table.sort_values("case", kind="stable", ignore_index=True)


@functools.lru_cache(maxsize=1)
def _load_ensemble(results_dir, build_model, models):  # the hashes tell one training from another
    preprocessor = Preprocessor.load(results_dir / "preprocessor.json")
    return load_models(results_dir, build_model=build_model), preprocessor


def _predict_scan(scan, results_dir, folder, build_model, about):
    models, preprocessor = _load_ensemble(results_dir, build_model, tuple(about["models"]))
    path, marker = folder / "labels" / f"{scan.id}.nii.gz", folder / "done" / f"{scan.id}.json"
    draft = marker.with_name(f".part-{path.name}")  # never copied to Drive
    started = time.monotonic()
    try:
        about = {**about, "scan": [sha256(file) for file in scan.files]}
        rows, replaced = _find_finished(path, marker, about)
        if rows:
            return rows
        _check_scan(scan, folder)
        found = predict_case(models, scan, preprocessor, **about["settings"])
        nifti.save_mask(draft, found.labels, scan.files[0])
        path.unlink(missing_ok=True)  # so that nowhere two runs are mixed, wherever one stops
        for name in about["maps"]:
            nifti.save_map(folder / name / path.name, getattr(found, name), scan.files[0])
        rows = _describe(scan, found, preprocessor.labels)
        for row in rows:
            row["seconds"] = round(time.monotonic() - started, 2)
        done = {"about": about, "source": batches.origin(scan.files[0]), "rows": rows}
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
    disk.require_room(folder, math.prod(checked.shape), f"labels and maps of {scan.id}")


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


def slide(models, x, patch, *, overlap=0.5, void=None):
    """Average the models' probabilities over overlapping windows, weighted towards their centres.

    Parameters
    ----------
    models : sequence of keras.Model
    x : (x, y, z, channel) ndarray of float32
        At least as large as the patch.
    patch : tuple of 3 int
        Shape of a window; across an axis of 1 the windows are slices for a 2-D network.
    overlap : float, default 0.5
        In [0, 1).
    void : (x, y, z) ndarray of bool, optional
        Where there is background for certain. Windows without anything else are not predicted.

    Returns
    -------
    (x, y, z, class) ndarray of float32
    """
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    void = np.zeros(x.shape[:3], bool) if void is None else void
    steps = [_starts(n, p, overlap) for n, p in zip(x.shape, patch, strict=False)]
    boxes = [
        tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
        for start in itertools.product(*steps)
    ]
    boxes = [box for box in boxes if not void[box].all()] or boxes[:1]  # one tells the classes
    weight = _window_weight(patch)
    total, weights = 0, np.zeros((*x.shape[:3], 1), np.float32)
    flat = tuple(n for n in patch if n > 1) + x.shape[3:]
    size = max(1, BATCH_VOXELS // int(np.prod(patch)))
    for first in range(0, len(boxes), size):
        chosen = boxes[first : first + size]
        batch = np.stack([x[box].reshape(flat) for box in chosen])
        found = np.mean([np.asarray(m.predict_on_batch(batch)) for m in models], axis=0)
        if first == 0:
            total = np.zeros((*x.shape[:3], found.shape[-1]), np.float32)
        for box, probabilities in zip(chosen, found, strict=True):
            total[box] += probabilities.reshape(*patch, -1) * weight
            weights[box] += weight
    total /= np.where(void[..., None], 1, weights)
    total[void] = np.arange(total.shape[-1]) == 0
    return total


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


def _starts(length, window, overlap):
    # The fewest evenly spread windows that overlap at least as asked.
    count = int(np.ceil((length - window) / max(1, window * (1 - overlap)))) + 1
    return np.linspace(0, length - window, count).round().astype(int).tolist()


def _window_weight(patch):
    # A Gaussian of an eighth of the patch, as in nnU-Net, never so small that it is lost.
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = np.einsum("i,j,k->ijk", *axes)[..., None]
    return np.maximum(weight, 1e-3).astype(np.float32)
