"""Training: of one fold, of all folds."""

import contextlib
import json
import tempfile
import time
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import joblib

from unetseg import earlier, fitting, memory, model, transfer
from unetseg._base import require, write_json, write_table
from unetseg.cases import refuse_problems
from unetseg.losses import dice_cross_entropy
from unetseg.oddities import list_oddities
from unetseg.patches import Looks, require_cache
from unetseg.preprocessing import Preprocessor
from unetseg.reading.description import read_declared
from unetseg.recipe import Recipe, make_plan, record_settings
from unetseg.run import devices, inputs, machine, processes, state
from unetseg.run.layout import FINAL, Fold, Run
from unetseg.run.lock import only_run
from unetseg.splits import (
    check_folds,
    describe_rare_labels,
    find_leaks,
    join_leaks,
    refuse_leaks,
    settle_folds,
)
from unetseg.survey import look_through
from unetseg.validation import predict_validated

START_RATE = 1 / 3  # of the learning rate, for a training that starts from another one's weights


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
    **loss,
):
    """Train one fold, predict its validation cases, and mark it as done.

    Its state is saved after each epoch: called again after an interruption, the fold goes on from
    there and ends with the weights that it would have had: to the last bit on a processor, up to
    rounding on a GPU, which adds in another order each time. What callbacks of the user remember,
    such as the patience of keras.callbacks.EarlyStopping, begins anew.

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
        weights so far, averaged as ever; ``done.json`` then says when and by which class. Its
        ``restore_best_weights`` is refused.
    **loss
        ``loss`` and ``class_weights`` as for `cross_validate`.

    Raises
    ------
    ValueError
        If the loss becomes NaN or infinite, or if files of the cases are changed meanwhile; the
        fold is not marked as done.
    """
    plan = make_plan(preprocessor, build_model, model_args, recipe, **loss)
    with _open_cache(cache_dir) as cache:
        _train_fold(plan, train_cases, val_cases, Path(fold_dir), seed, Path(cache), callbacks)


def _open_cache(folder):
    if not folder:
        return tempfile.TemporaryDirectory()
    Path(folder).mkdir(parents=True, exist_ok=True)
    return contextlib.nullcontext(folder)


def _train_fold(plan, train_cases, val_cases, fold_dir, seed, cache, callbacks, start=None):
    known = plan.recipe.steps is not None or plan.recipe.minutes is None
    require("minutes", plan.recipe.minutes, known, "left to cross_validate: give steps")
    started, fold, cases = time.monotonic(), Fold(fold_dir), [*train_cases, *val_cases]
    fold.folder.mkdir(parents=True, exist_ok=True)
    files = inputs.describe_inputs(cases, fresh=True)
    train, val = (Looks(plan.preprocessor, part, cache) for part in (train_cases, val_cases))
    recipe = replace(plan.recipe, steps=plan.recipe.steps or fitting.count_steps(train, plan))
    about = _describe_fold(plan, recipe, seed, train_cases, val_cases)
    with devices.explain_memory(fitting.describe_smaller(plan)):
        net = fitting.build(plan, recipe, seed)
        if start:
            about["start"] = transfer.apply_start(net, plan, start)
        progress = state.load_state(net, fold.folder, _describe_state(about, plan, files))
        saver = state.SaveState(fold.folder, progress, started)
        fitting.fit(net, train, val, plan, recipe, seed, saver, callbacks)
    fitted = time.monotonic()
    done = {**about, **fitting.describe_end(progress, recipe, fold.folder), "inputs": files}
    done["weights_sha256"] = state.save_weights(net, fold.weights)
    if val_cases:
        done["temperature"] = predict_validated(plan, fold, val, done["weights_sha256"])
    done["minutes"] = round(progress["minutes"] + (time.monotonic() - fitted) / 60, 2)
    inputs.refuse_changed_meanwhile(files, cases)
    done.update(state.hash_masks(Run(fold.folder.parent), about["val"]))
    write_json(fold.done, done)
    for path in fold.list_states():
        path.unlink()


def _describe_fold(plan, recipe, seed, train_cases, val_cases):
    return {
        "recipe": asdict(replace(recipe, batch_size=plan.batch_size)),
        "batch_size": plan.batch_size,
        "seed": seed,
        "precision": plan.precision,
        "train": [case.id for case in train_cases],
        "val": [case.id for case in val_cases],
    }


def _describe_state(about, plan, files):
    whole = {
        **about,
        "preprocessor": asdict(plan.preprocessor),
        "model_args": plan.model_args,
        "inputs": inputs.list_hashes(files),  # the same on another machine
    }
    return json.loads(json.dumps(whole))


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
    allow_empty=False,
    backup_dir=None,
    n_jobs=None,
    cache_dir=None,
    callbacks=None,
    loss=dice_cross_entropy,
    class_weights=None,
    final=False,
    start_from=None,
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
        Whether finished folds are trained again, also on scans or masks that changed since. If
        that was stopped, so that some are not finished, those and the ones that were trained on
        other files or splits.
    allow_leaks : bool, default False
        Whether to train although `unetseg.splits.find_leaks` found something; ``leaks.csv`` tells.
    allow_empty : bool, default False
        Whether masks without any label are those of healthy people, and are trained on.
    backup_dir : str or Path, optional
        Folder on Google Drive that gets a copy of all files after every fold.
    n_jobs : int, optional
        Folds that are trained at once, -1 for as many as there are processor cores. By default 1,
        or what `joblib.parallel_config` says. On one GPU, or on few cores, more than 1 saves
        little time and costs memory.
    cache_dir : str or Path, optional
        As for `train_fold`.
    callbacks : callable, optional
        Is given the folder of a fold, and returns its callbacks, as for `train_fold`: such as
        ``lambda folder: [keras.callbacks.TensorBoard(folder / "logs")]``.
    loss : callable, optional
        Of ``y_true``, (batch, ..., 1) class numbers with 255 where nobody drew, and ``y_pred``,
        (batch, ..., class) probabilities; returns one number, in ``keras.ops``. By default
        `unetseg.losses.dice_cross_entropy`.
    class_weights : dict of int to float, optional
        By label value, 0 for the background: how much a voxel counts in the cross-entropy of the
        usual loss. 1 for those that are not named.
    final : bool, default False
        Whether a model is trained on the cases of all folds too, after them and in the same way:
        in the folder ``final``. It predicts new scans in the time of one; how well, the folds
        tell.
    start_from : str or Path, optional
        Results of an earlier experiment. Each fold starts from the weights of one of its models
        that saw none of the cases that the fold validates (`unetseg.earlier.choose_starts`), with
        a third of the usual learning rate if none is given. By default from nothing.
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
    if start_from and "learning_rate" not in recipe:
        recipe["learning_rate"] = Recipe().learning_rate * START_RATE
    run, recipe = Run(Path(results_dir).absolute()), Recipe(**recipe)
    _check_settings(recipe, seed, n_jobs)
    _refuse_own_files(run, cases)
    seed, cases = int(seed), sorted(cases, key=lambda case: case.id)
    if not retrain:
        inputs.Trained(run.folder).refuse_stale(cases)
    preprocessor = _choose_preprocessor(run, preprocessor, cases)
    labels = preprocessor.labels
    seen = look_through(cases, labels=labels, preprocessor=preprocessor, allow_empty=allow_empty)
    refuse_problems(seen.table)
    if seen.facts is not None:  # else notebook 1 has said it
        for warning in list_oddities(seen, preprocessor.labels):
            print(warning)
    preprocessor = preprocessor.fit(cases, facts=seen.facts)
    plan = make_plan(
        preprocessor, build_model, model_args, recipe, loss=loss, class_weights=class_weights
    )
    folds = _divide(run, cases, seen.table, n_splits, seed)
    starts, leaks = _find_leaks(start_from, folds, cases, seen.samples)
    if not allow_leaks:
        refuse_leaks(leaks)
    _warn_of_lack(cases, preprocessor)
    with only_run(run.folder, backup_dir):
        plan = _record(
            run, plan, seed, starts, folds, leaks, _measure(run, plan, cases, folds, cache_dir)
        )
        parts = _list_parts(folds, final)
        pending = _find_pending(run, parts, retrain, cases)
        if pending and not final:
            _drop_final(run, backup_dir)
        _say_what_is_done(folds, pending, cases, seen.table)
        if pending or not run.cases.exists():  # else it tells of what is trained
            _write_used(run.cases, seen, folds)
        if pending:
            require_cache(cases, seen.table, preprocessor, cache_dir)
        # With none pending it still completes a copy on Drive that was cut short.
        more = {number: (callbacks, starts.get(number)) for number in parts}
        where = {"backup_dir": backup_dir, "cache_dir": cache_dir}
        _run_folds(plan, run, parts, pending, cases, seed, more, n_jobs=n_jobs, **where)
    return folds


def foretell(preprocessor, cases, table, facts=None, *, n_splits=5, cache_dir=None):
    """Say how long a fold will train on this machine, with the usual network and recipe.

    Takes some steps to measure them, in a process of its own.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    cases : sequence of Case
    table : pandas.DataFrame
        What `unetseg.cases.check_cases` says of them.
    facts : list of dict, optional
        What ``preprocessor.describe`` tells of each: without them the empty space around a body
        counts as scan.
    n_splits : int
    cache_dir : str or Path, optional
        As for `train_fold`.

    Returns
    -------
    str
        A sentence; if it could not be measured, the reason, which the training will meet too.
    """
    shapes = table["shape"] if facts is None else [fact["shape"] for fact in facts]
    sizes = [*zip(shapes, table["spacing_mm"], strict=True)]
    try:
        asked = make_plan(preprocessor), cases, cache_dir, sizes, n_splits
        minutes = _call_once(fitting.foretell_minutes, *asked)
    except Exception as error:  # whatever it is, of Keras' backend too
        return f"How long a fold will train could not be measured: {error}"
    return f"With the usual settings a fold will train for about {minutes:.2g} minutes here."


def _call_once(function, plan, cases, cache_dir, *more):
    # In a process of its own, which ends with it; the function gets the folder of the cache.
    with _open_cache(cache_dir) as cache:
        try:
            return processes.call_apart(function, plan, cases, cache, *more)
        finally:
            processes.end_calls()


def _check_settings(recipe, seed, n_jobs):
    once = recipe.minutes is None or recipe.steps is None
    require("steps", recipe.steps, once, "left out if minutes say how long a fold trains")
    require("seed", seed, seed == int(seed) and 0 <= seed < 2**32, "a whole number, 0 or more")
    require("n_jobs", n_jobs, n_jobs != 0, "1 or more, or -1 for all cores")


def _refuse_own_files(run, cases):
    # Results of these names would replace them.
    folders = run.folder, run.masks, run.predictions
    files = [path.absolute() for case in cases for path in (*case.files, case.mask) if path]
    inside = [path for path in files if path.parent in folders]
    if inside:
        problem = f"holds the data themselves, such as {inside[0]}, which results would replace"
        raise ValueError(f"{run.folder}: {problem}. Choose another folder for the results.")


def _choose_preprocessor(run, preprocessor, cases):
    if preprocessor is None and run.preprocessor.exists():
        return Preprocessor.load(run.preprocessor)
    chosen = preprocessor or Preprocessor()
    return replace(chosen, **read_declared(cases)) if chosen.labels is None else chosen


def _divide(run, cases, table, n_splits, seed):
    inputs.say_if_fitted_on_others(run.fitted_on, cases)
    labels_of = _labels_of(table)
    folds = settle_folds(run.splits, cases, n_splits, seed, labels_of=labels_of)
    check_folds(folds, cases, labels_of)
    inputs.say_unused(folds, cases)
    return folds


def _find_leaks(start_from, folds, cases, samples):
    # With the models that the folds start from, and the cases that these were trained on.
    leaks = find_leaks(cases, folds, samples=samples)
    starts, known = earlier.choose_starts(start_from, folds, cases, samples)
    return starts, join_leaks(leaks, known)


def _labels_of(table):
    return dict(zip(table["case"], table["labels"], strict=True))


def _warn_of_lack(cases, preprocessor):
    # A warning, as it is about predicting after the training, when more may be free.
    need = max(memory.foretell(case, preprocessor) for case in cases)
    if lack := memory.describe_lack(need, machine.available_bytes()):
        warnings.warn(f"Of the largest case: {lack}", stacklevel=3)


def _measure(run, plan, cases, folds, cache_dir):
    # Once, so that a run that goes on later, elsewhere, does so with as many steps.
    if plan.recipe.minutes is None or run.experiment.exists():
        return {}
    validated = max(len(fold["val"]) for fold in folds)
    steps = _call_once(fitting.plan_steps, plan, cases, cache_dir, validated)
    minutes, epochs = plan.recipe.minutes, plan.recipe.epochs
    print(f"{minutes:g} minutes a fold: on this machine {epochs} epochs of {steps} steps.")
    return {"steps": steps}


def _record(run, plan, seed, starts, folds, leaks, measured):
    settings = {"precision": plan.precision, "batch_size": plan.batch_size, **measured}
    here = {**settings, **devices.describe(), **machine.describe_machine()}
    about = plan.describe(seed)
    if starts:
        of_folds = [start for number, start in starts.items() if number != FINAL]
        about["starts"] = [start.weights_sha256 for start in of_folds]
    recorded = record_settings(run.experiment, about, here)
    plan.preprocessor.save(run.preprocessor)
    write_json(run.splits, folds)
    write_table(run.leaks, leaks)
    # Of the first run, wherever it was.
    steps = recorded.get("steps", plan.recipe.steps)
    recipe = replace(plan.recipe, steps=steps)
    return replace(plan, batch_size=recorded["batch_size"], recipe=recipe)


def _list_parts(folds, final):
    # What is trained, by number; the model on all cases comes last and validates none.
    parts = dict(enumerate(folds))
    if final:
        parts[FINAL] = {"train": sorted(inputs.list_used(folds)), "val": []}
    return parts


def _drop_final(run, backup_dir):
    # What it was trained on would not be what the folds are.
    if run.fold(FINAL).done.exists():
        print("The model on all cases was of before, and is not used any more: see FINAL.")
        state.clear(run, FINAL, [], backup_dir)


def _find_pending(run, parts, retrain, cases):
    if retrain:
        now = inputs.list_hashes(inputs.describe_inputs(cases))
        current = {number: state.is_current(run, number, ids, now) for number, ids in parts.items()}
        waiting = [number for number, done in current.items() if not done]
        # Those of a retraining that was stopped; a final model alone may only be asked for now.
        begun = waiting != [FINAL] or run.fold(FINAL).folder.exists()
        return waiting if waiting and begun else [*parts]
    finished = {number: state.is_finished(run, number, ids) for number, ids in parts.items()}
    for number, whole in finished.items():
        state.repair(run, number, whole)
    return [number for number, whole in finished.items() if not whole]


def _say_what_is_done(folds, pending, cases, table):
    validated = sum(len(fold["val"]) for fold in folds)
    waiting = len([number for number in pending if number != FINAL])
    print(f"{len(folds) - waiting} of {len(folds)} folds are finished.")
    print(f"{validated} of {len(cases)} cases are validated by one of them.")
    for sentence in describe_rare_labels(folds, _labels_of(table)):
        print(sentence)


def _write_used(path, seen, folds):
    digests = {case_id: sample.digest for case_id, sample in seen.samples.items()}
    table = seen.table.assign(digest=seen.table["case"].map(digests))
    write_table(path, table[table["case"].isin(inputs.list_used(folds))])


def _run_folds(plan, run, parts, pending, cases, seed, more, *, n_jobs, backup_dir, cache_dir):
    by_id = {case.id: case for case in cases}
    for number in pending:
        state.clear(run, number, parts[number]["val"], backup_dir)
    call, jobs = joblib.delayed(processes.run_apart), []
    try:
        with _open_cache(cache_dir) as cache:
            for place, number in enumerate(parts):
                if number in pending:
                    sides = [[by_id[i] for i in parts[number][part]] for part in ("train", "val")]
                    folder = run.fold(number).folder
                    own_seed = (seed + place) % 2**32
                    about = plan, *sides, folder, own_seed, cache
                    jobs.append(call(folder, _run_fold, *about, *more[number]))
            with processes.Follower(run.folder, pending, plan.recipe.epochs, backup_dir):
                processes.run_all(jobs, n_jobs, run.folder)
    except KeyboardInterrupt:
        _say_where_it_stopped(run, pending)
        raise


def _say_where_it_stopped(run, pending):
    files = {number: run.fold(number) for number in pending}
    begun = [n for n, fold in files.items() if fold.folder.exists() and not fold.done.exists()]
    stopped = ", ".join(map(str, begun or pending[:1]))
    print(f"Stopped in fold {stopped}. Run this again: it goes on from the last full epoch.")


@model.usual_settings()
def _run_fold(plan, train, val, fold_dir, seed, cache, make_callbacks=None, start=None):
    if Fold(fold_dir).done.exists():  # by a worker that was then lost
        return
    callbacks = [state.StopWithRun(fold_dir.parent)]
    callbacks += make_callbacks(fold_dir) if make_callbacks else []
    with _open_cache(cache if Path(cache).is_dir() else None) as cache:  # or on another machine
        _train_fold(plan, train, val, fold_dir, seed, Path(cache), callbacks, start)
