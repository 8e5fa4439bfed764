"""Folds: how cases are split, how one fold is trained, how all are."""

import math
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import keras
import numpy as np
from keras.callbacks import CSVLogger, SwapEMAWeights, TerminateOnNaN
from sklearn.model_selection import KFold

from unetseg import checkpoint, model, workspace
from unetseg.augmentation import Patches
from unetseg.cases import check_cases, refuse_problems
from unetseg.inference import predict_cases
from unetseg.preprocessing import CachedCases, Preprocessor, patch_budget
from unetseg.workspace import DONE, read_json, refuse_any, require, write_json

# Per epoch; as in nnU-Net, and enough for curves that choose nothing: whole cases are scored.
MIN_STEPS, MAX_STEPS, MAX_VAL_STEPS = 50, 250, 20
VALIDATION = {"foreground": 1.0, "augment": False}


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained. The defaults are meant to be left alone.

    Parameters
    ----------
    epochs : int
        Validated and written to the history after each.
    steps : int, optional
        Batches per epoch. By default as many as cover the training cases once, from 50 to 250.
    batch_size : int, optional
        Patches per step. By default as `plan_batch` says.
    learning_rate : float
        At its peak, for `unetseg.model.Muon`.
    weight_decay : float
    warmup : float
        Share of the steps in which the learning rate rises; after it, it falls as a cosine.
    averaging : float
        Share of the steps that the average of the weights looks back on; 0 for none.
    foreground : float
        Share of patches centred on the foreground.
    augment : bool
        Whether patches are turned, scaled, mirrored and changed in intensity.
    precision : {"auto", "float32", "mixed_bfloat16", "mixed_float16"}
        ``auto`` takes float16 on a GPU that computes in it, bfloat16 on a processor that does,
        else float32.
    """

    epochs: int = 12
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float = 6e-3  # of 2e-3, 6e-3 and 12e-3 the best in an inner split
    weight_decay: float = 1e-4
    warmup: float = 0.05
    averaging: float = 0.1  # scores steadier than the last weights alone
    foreground: float = 0.5
    augment: bool = True
    precision: str = "auto"

    def __post_init__(self):
        """Check the fields."""
        for name, fits, allowed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("averaging", 0 <= self.averaging <= 1, "in [0, 1]"),
            ("foreground", 0 <= self.foreground <= 1, "in [0, 1]"),
            ("precision", self.precision in model.PRECISIONS, f"one of {model.PRECISIONS}"),
        ):
            require(name, getattr(self, name), fits, allowed)


def plan_batch(patch):
    """Choose how many patches make a batch.

    One, as more steps learn more in the same time; as many as hold 50,000 voxels if they are
    small, such as slices, and the memory bears it.

    Parameters
    ----------
    patch : tuple of int

    Returns
    -------
    int
    """
    return max(1, min(50_000, patch_budget()) // math.prod(patch))


def plan_model(build_model, preprocessor, model_args):
    """Complete the arguments of `build_unet` by `plan_unet`; those of other builders stay."""
    given = model_args or {}
    return model.plan_unet(preprocessor, **given) if build_model is model.build_unet else given


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
        If a fold names an unknown case, has a patient in both parts or lacks a label in one of
        them, or if two folds validate the same case.
    """
    patient = {case.id: case.group or case.id for case in cases}
    every_label, validated = set().union(*labels_of.values()), set()
    for number, fold in enumerate(folds):
        ids = {part: set(fold[part]) for part in ("train", "val")}
        subject = f"Fold {number} of splits.json:"
        unknown = (ids["train"] | ids["val"]) - set(patient)
        refuse_any(sorted(unknown), subject, "cases are not in the data", "Remove them.")
        both = {patient[i] for i in ids["train"]} & {patient[i] for i in ids["val"]}
        advice = "Move all scans of a patient to one of them."
        refuse_any(sorted(both), subject, "patients are in both parts", advice)
        for part, chosen in ids.items():
            missing = every_label.difference(*(labels_of[i] for i in chosen))
            problem = f"labels are in no case of its {part} part"
            advice = "Use fewer folds, another seed, or edit splits.json."
            refuse_any([str(v) for v in sorted(missing)], subject, problem, advice)
        twice = sorted(validated & ids["val"])
        refuse_any(twice, subject, "cases are validated again", "A case is scored once.")
        validated |= ids["val"]


class Progress(keras.callbacks.Callback):
    """One line of text per epoch, with the time that is left for all folds.

    Parameters
    ----------
    title : str
        Opens every line.
    folds_left : int
        Folds still to train after this one.
    """

    def __init__(self, title, folds_left):
        super().__init__()
        self.title, self.folds_left = title, folds_left

    def on_train_begin(self, logs=None):
        """Start the clock."""
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        """Print the line."""
        epochs, done = self.params["epochs"], epoch + 1
        left = (epochs - done + self.folds_left * epochs) / done
        minutes, seconds = divmod(round(left * (time.monotonic() - self.started)), 60)
        names = {"loss": "loss", "accuracy": "accuracy", "Dice": "dice"}
        values = [f"{n} {logs[k]:.3f} (val {logs[f'val_{k}']:.3f})" for n, k in names.items()]
        title = f"{self.title} epoch {done}/{epochs}"
        print(title, *values, f"{minutes}:{seconds:02d} min left", sep="  ", flush=True)


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

    The validation cases choose nothing: their loss and Dice are written down, and the weights
    after the last epoch, averaged over the last steps, are kept.

    Parameters
    ----------
    train_cases, val_cases : sequence of Case
    fold_dir : str or Path
        Gets ``history.csv`` while training, then ``model.weights.h5`` and ``done.json``. The
        predictions go to the folder ``predictions`` beside it.
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
        Called while training, such as `Progress`.

    Raises
    ------
    ValueError
        If the loss becomes NaN or infinite; the fold is not marked as done.
    """
    fold_dir, recipe, started = Path(fold_dir), recipe or Recipe(), time.monotonic()
    fold_dir.mkdir(parents=True, exist_ok=True)
    batch_size = recipe.batch_size or plan_batch(preprocessor.patch)
    model_args = plan_model(build_model, preprocessor, model_args)
    with tempfile.TemporaryDirectory() as temporary:
        cache_dir = Path(cache_dir or temporary)
        train, val = (CachedCases(preprocessor, c, cache_dir) for c in (train_cases, val_cases))
        keras.utils.set_random_seed(seed)
        net = model.build_for(preprocessor, build_model, model_args, recipe.precision)
        sampling = {"patch": preprocessor.patch, "batch_size": batch_size, "seed": seed}
        changes = {"spacing_mm": preprocessor.spacing_mm, "flat_axis": preprocessor.flat_axis}
        changes |= {"mirror_axes": preprocessor.mirror_axes, "augment": recipe.augment}
        val_steps = min(MAX_VAL_STEPS, math.ceil(len(val) / batch_size))
        cover = sum(y.size for _, y, _ in train) / math.prod(preprocessor.patch) / batch_size
        steps = min(MAX_STEPS, max(MIN_STEPS, math.ceil(cover)))
        recipe = replace(recipe, steps=recipe.steps or steps)
        _compile(net, preprocessor.num_classes, recipe)
        own = [CSVLogger(fold_dir / "history.csv"), TerminateOnNaN()]
        if recipe.averaging:  # swapped in before each validation, so first in the list
            own.insert(0, SwapEMAWeights())
        history = net.fit(
            Patches(train, **sampling, foreground=recipe.foreground, **changes),
            epochs=recipe.epochs,
            steps_per_epoch=recipe.steps,
            validation_data=Patches(val, **sampling, **VALIDATION, repeat_after=val_steps),
            validation_steps=val_steps,
            callbacks=[*own, *callbacks],
            shuffle=False,
            verbose=0,
        )
    if not np.isfinite(history.history["loss"]).all():
        remedy = "Lower learning_rate, or set precision='float32'."
        raise ValueError(f"{fold_dir}: the loss became NaN or infinite. {remedy}")
    digest = checkpoint.save_weights(net, fold_dir / "model.weights.h5")
    axes = None if recipe.augment else ()  # mirrored copies only if it has seen some
    predict_cases(net, val_cases, preprocessor, fold_dir.parent / "predictions", mirror_axes=axes)
    done = {"weights_sha256": digest, "steps": recipe.steps * recipe.epochs}
    done |= {"batch_size": batch_size, "precision": net.dtype_policy.name}
    done["minutes"] = round((time.monotonic() - started) / 60, 2)
    done |= {"train": [c.id for c in train_cases], "val": [c.id for c in val_cases]}
    write_json(fold_dir / DONE, done)


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
    net.compile(optimizer, model.dice_cross_entropy, metrics=metrics)


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
    backup_dir=None,
    **recipe,
):
    """Train and predict every fold; a fold that is finished is left as it is.

    Parameters
    ----------
    cases : sequence of Case
    results_dir : str or Path
        Gets ``experiment.json``, ``preprocessor.json``, ``cases.csv``, ``splits.json``, the
        folders of the folds and ``predictions``. A ``splits.json`` that is already there is
        respected.
    build_model, model_args
        As for `train_fold`.
    preprocessor : Preprocessor, optional
        By default one fitted on the cases.
    n_splits, seed : int
        As for `make_folds`.
    retrain : bool, default False
        Whether finished folds are trained again.
    backup_dir : str or Path, optional
        Folder on Google Drive that gets a copy of all files after every fold.
    **recipe
        Fields of `Recipe`, such as ``epochs=30``.

    Returns
    -------
    list of dict
        The folds, as `make_folds` returns them.

    Raises
    ------
    ValueError
        Before any training: if a case has a problem, the folds are unsound, or the folder holds
        an experiment with other settings.
    """
    results_dir, recipe = Path(results_dir), Recipe(**recipe)
    by_id = {case.id: case for case in sorted(cases, key=lambda case: case.id)}
    table = check_cases(cases, labels=preprocessor and preprocessor.labels)
    refuse_problems(table)
    if preprocessor is None and (results_dir / "preprocessor.json").exists():
        preprocessor = Preprocessor.load(results_dir / "preprocessor.json")
    preprocessor = (preprocessor or Preprocessor()).fit(list(by_id.values()))
    labels_of = dict(zip(table["case"], table["labels"], strict=True))
    model_args = plan_model(build_model, preprocessor, model_args)
    splits = results_dir / "splits.json"
    folds = read_json(splits) if splits.exists() else make_folds(cases, n_splits, seed)
    check_folds(folds, cases, labels_of)
    name = getattr(build_model, "__qualname__", type(build_model).__qualname__)
    settings = {"builder": f"{build_model.__module__}.{name}", "model_args": model_args}
    settings |= {"preprocessor": asdict(preprocessor), "recipe": asdict(recipe), "seed": seed}
    net = model.build_for(preprocessor, build_model, model_args, recipe.precision)
    batch_size = recipe.batch_size or plan_batch(preprocessor.patch)
    run = {"precision": net.dtype_policy.name, "batch_size": batch_size}
    run |= workspace.describe_machine()
    run = checkpoint.record_settings(results_dir / "experiment.json", settings, run)
    recipe = replace(recipe, batch_size=run["batch_size"])  # of the first run, wherever that was
    preprocessor.save(results_dir / "preprocessor.json")
    write_json(splits, folds)
    workspace.write_file(results_dir / "cases.csv", table.to_csv(index=False).encode())
    pending = [n for n, fold in enumerate(folds) if retrain or not _is_done(results_dir, n, fold)]
    print(f"{len(folds) - len(pending)} of {len(folds)} folds are finished.")
    validated = sum(len(fold["val"]) for fold in folds)
    print(f"{validated} of {len(cases)} cases are validated by one of them.")
    shared = {"preprocessor": preprocessor, "build_model": build_model}
    shared |= {"model_args": model_args, "recipe": recipe}
    with tempfile.TemporaryDirectory() as temporary:
        for left, number in zip(range(len(pending) - 1, -1, -1), pending, strict=True):
            marker = results_dir / f"fold_{number}" / DONE
            for file in (marker, *_predictions(results_dir, folds[number])):
                file.unlink(missing_ok=True)  # or a mixture might be scored
            parts = ([by_id[i] for i in folds[number][part]] for part in ("train", "val"))
            one = {"seed": seed + number, "callbacks": [Progress(f"fold {number}", left)]}
            train_fold(*parts, marker.parent, **one, **shared, cache_dir=temporary)
            _note_minutes(results_dir)
            if backup_dir:
                workspace.mirror(results_dir, backup_dir)
    if backup_dir:
        workspace.mirror(results_dir, backup_dir)  # what an interrupted run did not get there
    return folds


def _is_done(results_dir, number, fold):
    path = results_dir / f"fold_{number}" / DONE
    done = read_json(path) if path.exists() else fold
    for part in ("train", "val"):
        if sorted(done[part]) != sorted(fold[part]):
            problem = f"{path}: this fold was trained on another split than splits.json now says."
            raise ValueError(f"{problem} Restore it, or set RETRAIN to train every fold again.")
    left = [path, path.with_name("model.weights.h5"), *_predictions(results_dir, fold)]
    return all(file.exists() for file in left)


def _predictions(results_dir, fold):
    return [results_dir / "predictions" / f"{case_id}.nii.gz" for case_id in fold["val"]]


def _note_minutes(results_dir):
    path = results_dir / "experiment.json"
    minutes = sum(read_json(done)["minutes"] for done in results_dir.glob(f"fold_*/{DONE}"))
    write_json(path, read_json(path) | {"minutes": round(minutes, 1)})
