"""Training: of one fold, of all folds."""

import contextlib
import functools
import json
import math
import os
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import joblib
import keras
import numpy as np
import pandas as pd
from keras.callbacks import SwapEMAWeights, TerminateOnNaN

from unetseg import (
    checkpoint,
    disk,
    memory,
    model,
    nifti,
    parallel,
    provenance,
    reliability,
    workspace,
)
from unetseg.augmentation import CachedCases, Patches
from unetseg.cases import check_cases, refuse_problems
from unetseg.inference import predict_and_sample
from unetseg.preprocessing import Preprocessor, patch_budget
from unetseg.recipe import Recipe
from unetseg.splits import (
    check_folds,
    describe_rare_labels,
    find_leaks,
    refuse_leaks,
    settle_folds,
)
from unetseg.splits import make_folds as make_folds  # for those who call it from here
from unetseg.workspace import DONE, write_file, write_json

# Per epoch; as in nnU-Net, and enough for curves that choose nothing: whole cases are scored.
MIN_STEPS, MAX_STEPS, MAX_VAL_STEPS = 50, 250, 20
MAX_SAMPLED = 1_000_000  # voxels of a fold, to look at its calibration
VALIDATION = {"foreground": 1.0, "augment": False}


def plan_batch(patch):
    """Choose how many patches make a batch.

    One, as more steps learn more in the same time; as many as hold 50,000 voxels if they are
    small, such as slices, and the memory bears it; a multiple of the GPUs.

    Parameters
    ----------
    patch : tuple of int

    Returns
    -------
    int
    """
    count = max(1, min(50_000, patch_budget()) // math.prod(patch))
    gpus = max(1, len(model.list_gpus()))
    return -(-count // gpus) * gpus


def plan_model(build_model, preprocessor, model_args):
    """Complete the arguments of `build_unet` by `plan_unet`; those of other builders stay."""
    given = model_args or {}
    return model.plan_unet(preprocessor, **given) if build_model is model.build_unet else given


@model.usual_settings()
def train_fold(
    train_cases,
    val_cases,
    fold_dir,
    *,
    preprocessor,
    build_model=model.build_unet,
    model_args=None,
    recipe=None,
    seed=12345,
    cache_dir=None,
    callbacks=(),
):
    """Train one fold, predict its validation cases, and mark it as done.

    Its state is saved after each epoch: called again after an interruption, the fold goes on from
    there and ends with the weights that it would have had.

    The validation cases choose nothing: their loss and Dice are written down, and the weights
    after the last epoch, averaged over the last steps, are kept.

    Parameters
    ----------
    train_cases, val_cases : sequence of Case
    fold_dir : str or Path
        Gets ``history.csv`` and ``*.state`` while training, then ``model.weights.h5``,
        ``calibration.csv`` and ``done.json`` in the place of the states. The
        predictions and the masks go to the folders ``predictions`` and ``masks`` beside it.
    preprocessor : Preprocessor
        Fitted.
    build_model : callable, default build_unet
        ``build_model(input_shape, num_classes, **model_args)`` returns a keras.Model that gives
        class probabilities.
    model_args : dict, optional
    recipe : Recipe, optional
    seed : int, default 12345
        Of the initial weights, the patches and their changes.
    cache_dir : str or Path, optional
        Keeps the preprocessed cases on a local disk; by default a temporary folder.
    callbacks : sequence of keras.callbacks.Callback, optional
        Called while training. One that stops it, such as EarlyStopping, ends the fold with the
        weights so far, averaged as ever; ``done.json`` then says when and by which class.

    Raises
    ------
    ValueError
        If the loss becomes NaN or infinite, or if files of the cases are changed meanwhile; the
        fold is not marked as done.
    """
    fold_dir, recipe, started = Path(fold_dir), recipe or Recipe(), time.monotonic()
    fold_dir.mkdir(parents=True, exist_ok=True)
    cases = [*train_cases, *val_cases]
    inputs = provenance.describe_inputs(cases, fresh=True)
    batch_size = recipe.batch_size or plan_batch(preprocessor.patch)
    model_args = plan_model(build_model, preprocessor, model_args)
    keep = contextlib.nullcontext(cache_dir) if cache_dir else tempfile.TemporaryDirectory()
    with keep as cache:
        train, val = (CachedCases(preprocessor, c, Path(cache)) for c in (train_cases, val_cases))
        sampling = {"patch": preprocessor.patch, "batch_size": batch_size, "seed": seed}
        neighbours, planes = preprocessor.neighbours or 0, preprocessor.planes or ()
        sampling |= {"neighbours": neighbours, "planes": planes}
        changes = {"spacing_mm": preprocessor.spacing_mm, "flat_axis": preprocessor.flat_axis}
        changes |= {"mirror_axes": preprocessor.mirror_axes, "augment": recipe.augment}
        val_steps = min(MAX_VAL_STEPS, math.ceil(len(val) / batch_size))
        cover = sum(y.size for _, y, _ in train) / math.prod(preprocessor.patch) / batch_size
        cover *= max(1, len(planes)) / (2 * neighbours + 1)  # a slice is seen as a neighbour too
        steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(cover)))
        recipe = replace(recipe, steps=recipe.steps or steps)
        build = functools.partial(
            model.build_for, preprocessor, build_model, model_args, recipe.precision
        )
        keras.utils.set_random_seed(seed)
        with model.mirrored(batch_size):
            net = build()
            _compile(net, preprocessor.num_classes, recipe)
            net.optimizer.build(net.trainable_variables)
            about = {"recipe": asdict(recipe), "batch_size": batch_size, "seed": seed}
            about |= {"precision": net.dtype_policy.name}
            about |= {"train": [c.id for c in train_cases], "val": [c.id for c in val_cases]}
            whole = about | {"preprocessor": asdict(preprocessor), "model_args": model_args}
            whole["inputs"] = provenance.list_hashes(inputs)  # the same on another machine
            state = checkpoint.load_state(net, fold_dir, json.loads(json.dumps(whole)))
        past = len(state["history"])
        followed = _follow_callbacks(checkpoint.SaveState(fold_dir, state, started), callbacks)
        if recipe.averaging:  # swapped in before each validation, so first in the list
            followed.insert(0, SwapEMAWeights())
        sampling_now = {"start": past * recipe.steps, "foreground": recipe.foreground}
        net.fit(
            Patches(train, **sampling, **sampling_now, **changes),
            initial_epoch=past,
            epochs=past if "stopped" in state else recipe.epochs,
            steps_per_epoch=recipe.steps,
            validation_data=Patches(val, **sampling, **VALIDATION, repeat_after=val_steps),
            validation_steps=val_steps,
            callbacks=followed,
            shuffle=False,
            verbose=0,
        )
    ended = _describe_end(state, recipe, fold_dir)
    trained = time.monotonic()
    digest = checkpoint.save_weights(net, fold_dir / "model.weights.h5")
    net = build()  # on one device, and with what is in the file
    checkpoint.load_weights(net, fold_dir / "model.weights.h5", digest)
    axes = None if recipe.augment else ()  # mirrored copies only if it has seen some
    temperature = _predict_fold(net, val_cases, preprocessor, fold_dir, axes)
    minutes = round(state["minutes"] + (time.monotonic() - trained) / 60, 2)
    done = {"weights_sha256": digest, "minutes": minutes, **ended, **about}
    done |= {"temperature": temperature, "inputs": inputs}
    done |= checkpoint.digest_masks(fold_dir.parent, about["val"])
    provenance.refuse_changed_meanwhile(inputs, cases)
    write_json(fold_dir / DONE, done)
    for file in fold_dir.glob("?.state*"):
        file.unlink()


def _follow_callbacks(saver, callbacks):
    followed = [saver]
    for callback in (TerminateOnNaN(), *callbacks):
        followed += [callback, checkpoint.NoteStop(saver, callback)]
    return followed


def _describe_end(state, recipe, fold_dir):
    # What done.json tells of the end of a training: after the last step or before.
    done, stopped = len(state["history"]), state.get("stopped")
    steps = stopped["steps"] if stopped else done * recipe.steps
    if done == recipe.epochs and steps == recipe.epochs * recipe.steps:
        return {"steps": steps}
    if done == 0 or (stopped and stopped["by"] == TerminateOnNaN.__name__):
        remedy = "Lower learning_rate, or set precision='float32'."
        raise ValueError(f"{fold_dir}: the loss became NaN or infinite. {remedy}")
    epoch, by = (stopped["epoch"], stopped["by"]) if stopped else (done - 1, "the network")
    if not stopped and "KERAS_MAX_EPOCHS" in os.environ:
        by = "KERAS_MAX_EPOCHS"
    print(f"{fold_dir}: stopped in epoch {epoch + 1} of {recipe.epochs} by {by}.")
    return {"steps": steps, "stopped": {"epoch": epoch, "by": by}}


def _predict_fold(net, cases, preprocessor, fold_dir, mirror_axes):
    rng, sampled = np.random.default_rng(0), []
    most = MAX_SAMPLED // len(cases)
    for case in cases:
        truth, _ = nifti.load_mask(case.mask)
        nifti.save_mask(fold_dir.parent / "masks" / f"{case.id}.nii.gz", truth, case.mask)
        choose = functools.partial(reliability.choose_voxels, truth, rng=rng, most=most)
        labels, chosen, probabilities = predict_and_sample(
            net, case, preprocessor, choose, mirror_axes=mirror_axes
        )
        path = fold_dir.parent / "predictions" / f"{case.id}.nii.gz"
        nifti.save_mask(path, labels, case.files[0])
        near = truth.ravel()[chosen]
        classes = sum(k * (near == label) for k, label in enumerate(preprocessor.labels, 1))
        sampled.append((probabilities, classes))
    return _calibrate(sampled, fold_dir)


def _calibrate(sampled, fold_dir):
    probabilities, classes = (np.concatenate(parts) for parts in zip(*sampled, strict=True))
    temperature = reliability.fit_temperature(probabilities, classes)
    after = reliability.soften(probabilities, temperature)
    tables = {"as trained": probabilities, "calibrated": after}
    tables = {k: reliability.calibration_table(v, classes) for k, v in tables.items()}
    table = pd.concat(tables, names=["stage"]).reset_index("stage")
    write_file(fold_dir / "calibration.csv", table.to_csv(index=False).encode())
    return round(temperature, 4)


def _compile(net, num_classes, recipe):
    steps = recipe.steps * recipe.epochs
    warmup, peak = int(recipe.warmup * steps), recipe.learning_rate
    rise = {"warmup_target": peak, "warmup_steps": warmup} if warmup else {}
    decay = keras.optimizers.schedules.CosineDecay
    schedule = decay(0.0 if warmup else peak, steps - warmup, **rise)
    average = {"use_ema": recipe.averaging > 0}
    average["ema_momentum"] = 1 - 1 / max(2.0, recipe.averaging * steps)
    optimizer = model.Muon(schedule, weight_decay=recipe.weight_decay, **average)
    accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    metrics = [accuracy, model.ForegroundDice(num_classes)]
    net.compile(optimizer, model.patch_loss, metrics=metrics)


def cross_validate(
    cases,
    results_dir,
    *,
    build_model=model.build_unet,
    model_args=None,
    preprocessor=None,
    n_splits=5,
    seed=12345,
    retrain=False,
    allow_leaks=False,
    backup_dir=None,
    n_jobs=None,
    **recipe,
):
    """Train and predict every fold; a fold that is finished is left as it is.

    Each fold is trained in a process of its own, so memory does not grow from fold to fold.
    Folds meet in the results folder alone. Several run at once with ``n_jobs``, or on a cluster
    of Dask (which ``pip install "unetseg[cluster]"`` brings)::

        client = dask.distributed.Client("tcp://scheduler:8786")
        with joblib.parallel_config(backend="dask"):
            cross_validate(...)

    and likewise of Ray, with ``ray.util.joblib.register_ray()`` and ``backend="ray"``. The
    scans and the results must be in folders that all machines share, under the same absolute
    paths; a worker trains as many folds at once as it has threads. The fold of a worker that dies
    goes to another one, which goes on from its last epoch.

    Parameters
    ----------
    cases : sequence of Case
    results_dir : str or Path
        Gets ``experiment.json``, ``preprocessor.json``, ``cases.csv``, ``splits.json``, the
        folders of the folds, ``leaks.csv``, ``predictions`` and ``masks``. A ``splits.json`` that
        is already there is respected, and said. ``cases.csv`` tells of the cases in a fold.
    build_model, model_args
        As for `train_fold`.
    preprocessor : Preprocessor, optional
        By default one fitted on the cases.
    n_splits, seed : int
        As for `make_folds`.
    retrain : bool, default False
        Whether finished folds are trained again, also on scans or masks that changed since.
    allow_leaks : bool, default False
        Whether to train although `unetseg.splits.find_leaks` found something; ``leaks.csv`` tells.
    backup_dir : str or Path, optional
        Folder on Google Drive that gets a copy of all files after every fold.
    n_jobs : int, optional
        Folds that are trained at once, -1 for as many as there are processor cores. By default 1,
        or what `joblib.parallel_config` says. On one GPU, or on few cores, more than 1 saves
        little time and costs memory.
    **recipe
        Fields of `Recipe`, such as ``epochs=30``.

    Returns
    -------
    list of dict
        The folds, as `make_folds` returns them.

    Raises
    ------
    ValueError
        Before any training: if a case has a problem, the folds are unsound, a leak is found, the
        folder holds an experiment with other settings, or scans or masks that finished folds were
        trained on are not what they were. Later if the loss of a fold becomes NaN or infinite.
    RuntimeError
        If another run uses the folder, or the process of a fold dies.
    OSError
        If the preprocessed cases do not find room in the temporary folder (``TMPDIR``); before
        any training, as far as that can be foretold.
    """
    results_dir, recipe = Path(results_dir).absolute(), Recipe(**recipe)
    by_id = {case.id: case for case in sorted(cases, key=lambda case: case.id)}
    if not retrain:
        provenance.Trained(results_dir).refuse_stale(cases)
    table = check_cases(cases, labels=preprocessor and preprocessor.labels)
    refuse_problems(table)
    if preprocessor is None and (results_dir / "preprocessor.json").exists():
        preprocessor = Preprocessor.load(results_dir / "preprocessor.json")
    # A copy: what is given may be used again, on other cases.
    preprocessor = replace(preprocessor or Preprocessor()).fit(list(by_id.values()))
    labels_of = dict(zip(table["case"], table["labels"], strict=True))
    model_args = plan_model(build_model, preprocessor, model_args)
    folds = _settle_folds(results_dir, cases, n_splits, seed, labels_of)
    leaks = find_leaks(list(by_id.values()), folds)
    if not allow_leaks:
        refuse_leaks(leaks)
    name = getattr(build_model, "__qualname__", type(build_model).__qualname__)
    settings = {"builder": f"{build_model.__module__}.{name}", "model_args": model_args}
    settings |= {"preprocessor": asdict(preprocessor), "recipe": asdict(recipe), "seed": seed}
    net = model.build_for(preprocessor, build_model, model_args, recipe.precision)
    batch_size = recipe.batch_size or plan_batch(preprocessor.patch)
    run = {"precision": net.dtype_policy.name, "batch_size": batch_size}
    run |= workspace.describe_machine()
    _warn_of_lack(cases, preprocessor)
    with workspace.only_run(results_dir, backup_dir):
        run = checkpoint.record_settings(results_dir / "experiment.json", settings, run)
        recipe = replace(recipe, batch_size=run["batch_size"])  # of the first run, wherever it was
        _write_plan(results_dir, preprocessor, folds, leaks)
        shared = {"preprocessor": preprocessor, "build_model": build_model}
        shared |= {"model_args": model_args, "recipe": recipe}
        pending = [
            n
            for n, f in enumerate(folds)
            if retrain or not checkpoint.is_finished(results_dir, n, f)
        ]
        if pending or not (results_dir / "cases.csv").exists():  # else it tells of what is trained
            _write_used(results_dir / "cases.csv", table, folds)
        print(f"{len(folds) - len(pending)} of {len(folds)} folds are finished.")
        _say_what_is_validated(folds, cases, labels_of)
        if pending:
            disk.require_cache(by_id.values(), table, preprocessor)
        parts = {n: [[by_id[i] for i in folds[n][k]] for k in ("train", "val")] for n in pending}
        _run_folds(parts, results_dir, shared, seed, n_jobs, backup_dir)
    return folds


def _say_what_is_validated(folds, cases, labels_of):
    validated = sum(len(fold["val"]) for fold in folds)
    print(f"{validated} of {len(cases)} cases are validated by one of them.")
    for sentence in describe_rare_labels(folds, labels_of):
        print(sentence)


def _settle_folds(results_dir, cases, n_splits, seed, labels_of):
    provenance.say_if_fitted_on_others(results_dir / "fitted_on.json", cases)
    path = results_dir / "splits.json"
    folds = settle_folds(path, cases, n_splits, seed, labels_of=labels_of)
    check_folds(folds, cases, labels_of)
    provenance.say_unused(folds, cases)
    return folds


def _write_plan(results_dir, preprocessor, folds, leaks):
    preprocessor.save(results_dir / "preprocessor.json")
    write_json(results_dir / "splits.json", folds)
    _write_table(results_dir / "leaks.csv", leaks)


def _write_table(path, table):
    write_file(path, table.to_csv(index=False).encode())


def _write_used(path, table, folds):
    used = table["case"].isin(provenance.list_used(folds))
    _write_table(path, table[used])


def _warn_of_lack(cases, preprocessor):
    # A warning, as it is about predicting after the training, when more may be free.
    need = max(memory.foretell(case, preprocessor) for case in cases)
    if lack := memory.describe_lack(need, memory.available_bytes()):
        warnings.warn(f"Of the largest case: {lack}", stacklevel=3)


def _run_folds(parts, results_dir, settings, seed, n_jobs, backup_dir):
    folders = {number: results_dir / f"fold_{number}" for number in parts}
    for number, (_, val_cases) in parts.items():
        ids = [case.id for case in val_cases]
        checkpoint.clear_fold(results_dir, number, ids, backup_dir)
    call = joblib.delayed(parallel.run_apart)
    try:
        with tempfile.TemporaryDirectory() as cache_dir:
            jobs = []
            for number, folder in folders.items():
                own = {"seed": seed + number, **settings}
                jobs.append(call(folder, _run_fold, *parts[number], folder, cache_dir, own))
            epochs = settings["recipe"].epochs
            with parallel.Follower(results_dir, list(parts), epochs, backup_dir):
                parallel.run_all(jobs, n_jobs, results_dir)
    except KeyboardInterrupt:
        begun = [n for n, path in folders.items() if path.exists() and not (path / DONE).exists()]
        stopped = ", ".join(map(str, begun or [*parts][:1]))
        print(f"Stopped in fold {stopped}. Run this again: it goes on from the last full epoch.")
        raise


def _run_fold(train_cases, val_cases, fold_dir, cache_dir, settings):
    if (fold_dir / DONE).exists():  # by a worker that was then lost
        return
    cache_dir = cache_dir if Path(cache_dir).is_dir() else None  # it is on another machine
    callbacks = [checkpoint.StopWithRun(fold_dir.parent)]
    settings = {"cache_dir": cache_dir, "callbacks": callbacks, **settings}
    train_fold(train_cases, val_cases, fold_dir, **settings)
