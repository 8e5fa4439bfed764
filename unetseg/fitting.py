"""The network of one fold: built, fitted to patches, and how that ended."""

import math
import os
import time
from dataclasses import replace
from typing import NamedTuple

import keras
import numpy as np
from keras.callbacks import SwapEMAWeights, TerminateOnNaN

from unetseg import model
from unetseg._base import require
from unetseg.losses import Accuracy, ForegroundDice
from unetseg.optimizers import Muon
from unetseg.patches import FAR, Looks, count_voxels, make_ahead
from unetseg.planning import choose_patch
from unetseg.run import devices, state

# Of an epoch (results/recipe.md: with half of 300 prostates have 0.015 less Dice).
MIN_STEPS, MAX_STEPS, STEPS_OF_TWO_LOOKS = 150, 400, 300
TIMES = 2  # that an epoch covers the training cases (of hippocampi 2.4 were better than once)
MAX_VAL_STEPS = 20  # enough for curves that choose nothing: whole cases are scored
TIMED_STEPS = 20  # of an epoch, to measure how long one takes
TIMED_CASES = 3


def count_steps(train, plan):
    """Count the batches of an epoch.

    Parameters
    ----------
    train : unetseg.patches.Looks
    plan : unetseg.recipe.Plan

    Returns
    -------
    int
        Of two looks 300; else as many as cover the training cases twice (once in 2-D), from 150
        to 400.
    """
    if train.far:
        return STEPS_OF_TWO_LOOKS
    return _cover(plan, sum(y.size for _, y, _ in train.near))


def _cover(plan, voxels):
    sampling = plan.preprocessor.sampling
    cover = voxels / math.prod(sampling.patch) / plan.batch_size
    if 1 in sampling.patch:  # a slice is seen across each axis, and as a neighbour too
        cover *= max(1, len(sampling.planes)) / (2 * sampling.neighbours + 1)
    else:
        cover *= TIMES
    return min(MAX_STEPS, max(MIN_STEPS, math.ceil(cover)))


class Pace(NamedTuple):
    """Seconds that a training takes on this machine: to start, a step, to validate an epoch."""

    start: float
    step: float
    validation: float


@model.usual_settings()
def measure_pace(plan, cases, folder, validated):
    """Measure how long a fold takes on this machine, by two short epochs.

    The first tells how long the network takes to start, the second how long it takes from then on.

    Parameters
    ----------
    plan : unetseg.recipe.Plan
    cases : sequence of Case
        Of which a few are looked at.
    folder : str or Path
        As for `unetseg.patches.CachedCases`.
    validated : int
        Cases that a fold validates.

    Returns
    -------
    Pace
    """
    # Batches that were made before the second epoch began must not tell its time.
    steps = max(TIMED_STEPS, 8 * devices.count_makers())
    recipe = replace(plan.recipe, steps=steps, epochs=2)
    looks = Looks(plan.preprocessor, cases[:TIMED_CASES], folder)
    clock, val_steps = _Clock(), _count_val_steps(looks, validated, plan)
    with devices.explain_memory(describe_smaller(plan)):
        net = build(plan, recipe, seed=0)
        _fit(net, looks, looks, plan, recipe, 0, val_steps, epochs=2, callbacks=[clock])
    first, second, validation = clock.seconds
    return Pace(first - second, (second - validation) / steps, validation)


def plan_steps(plan, cases, folder, validated):
    """Plan how many batches an epoch has if a fold is to train for the minutes of its recipe.

    Parameters
    ----------
    plan, cases, folder, validated
        As for `measure_pace`.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If starting and validating take all of the time.
    """
    pace, epochs = measure_pace(plan, cases, folder, validated), plan.recipe.epochs
    needed = pace.start + epochs * (pace.validation + pace.step)
    minutes = plan.recipe.minutes
    allowed = f"at least {needed / 60:.2g} on this machine, for one step an epoch"
    require("minutes", minutes, 60 * minutes >= needed, allowed)
    return 1 + int((60 * minutes - needed) / epochs / pace.step)


def foretell_minutes(plan, cases, folder, sizes, n_splits):
    """Foretell how long a fold will train on this machine.

    Parameters
    ----------
    plan : unetseg.recipe.Plan
        With a recipe without minutes.
    cases : sequence of Case
    folder : str or Path
        As for `unetseg.patches.CachedCases`.
    sizes : list of (shape, spacing_mm)
        Of each, on its own grid.
    n_splits : int
        Folds.

    Returns
    -------
    float
        Prediction is not included.
    """
    pace = measure_pace(plan, cases, folder, -(-len(cases) // n_splits))
    steps = plan.recipe.steps or _foretell_steps(plan, sizes, 1 - 1 / n_splits)
    return (pace.start + plan.recipe.epochs * (steps * pace.step + pace.validation)) / 60


def _foretell_steps(plan, sizes, share):
    preprocessor = plan.preprocessor
    if preprocessor.coarse:
        return STEPS_OF_TWO_LOOKS
    taken = [(shape, preprocessor.take_spacing(spacing_mm)) for shape, spacing_mm in sizes]
    voxels = count_voxels(taken, preprocessor.spacing_mm, preprocessor.patch)
    return _cover(plan, share * voxels)


def _count_val_steps(looks, validated, plan):
    seen = validated * FAR / (FAR - 1) if looks.far else validated
    return min(MAX_VAL_STEPS, math.ceil(seen / plan.batch_size))


class _Clock(keras.callbacks.Callback):
    """Seconds of two epochs, and of the validation of the second one."""

    def on_train_begin(self, logs=None):
        self.times = [time.monotonic()]

    def on_test_begin(self, logs=None):
        self.validating = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self.times.append(time.monotonic())

    @property
    def seconds(self):
        first, *later = np.diff(self.times)  # KERAS_MAX_EPOCHS may have left but one
        return first, later[0] if later else first, self.times[-1] - self.validating


def build(plan, recipe, seed):
    """Build and compile the network of a fold, with the weights that the seed gives.

    Parameters
    ----------
    plan : unetseg.recipe.Plan
    recipe : unetseg.recipe.Recipe
        With its steps.
    seed : int

    Returns
    -------
    keras.Model
        Its optimizer is built.
    """
    keras.utils.set_random_seed(seed)
    with devices.share_gpus(plan.batch_size):
        net = plan.build()
        _compile(net, plan, recipe)
        net.optimizer.build(net.trainable_variables)
    return net


def _compile(net, plan, recipe):
    steps = recipe.steps * recipe.epochs
    warmup, peak = int(recipe.warmup * steps), recipe.learning_rate
    rise = {"warmup_target": peak, "warmup_steps": warmup} if warmup else {}
    decay = keras.optimizers.schedules.CosineDecay
    schedule = decay(0.0 if warmup else peak, steps - warmup, **rise)
    average = {"use_ema": recipe.averaging > 0}
    average["ema_momentum"] = 1 - 1 / max(2.0, recipe.averaging * steps)
    optimizer = Muon(schedule, weight_decay=recipe.weight_decay, **average)
    metrics = [Accuracy(), ForegroundDice(plan.preprocessor.num_classes)]
    net.compile(optimizer, plan.make_loss(), metrics=metrics)


def fit(net, train, val, plan, recipe, seed, saver, callbacks=()):
    """Fit the network of a fold, from where its saved state stands.

    Parameters
    ----------
    net : keras.Model
    train, val : unetseg.patches.Looks
    plan, recipe, seed
        As for `build`.
    saver : unetseg.run.state.SaveState
    callbacks : sequence of keras.callbacks.Callback
        Of the user.
    """
    past = len(saver.about["history"])
    _fit(
        net,
        train,
        val,
        plan,
        recipe,
        seed,
        _count_val_steps(val, len(val.cases), plan),
        past=past,
        epochs=past if "stopped" in saver.about else recipe.epochs,
        callbacks=_follow(saver, recipe, callbacks),
    )


def describe_smaller(plan):
    """Say what to train on where memory is too small for a plan: half as much at a time.

    Parameters
    ----------
    plan : unetseg.recipe.Plan

    Returns
    -------
    str
    """
    given, count = plan.preprocessor, plan.batch_size
    sides = " x ".join(map(str, given.patch))
    finding = f"a batch of {count} patches of {sides} voxels finds no room in it"
    if count > 1:
        advice = f"BATCH_SIZE = {count // 2} in 02_train_kfold"
    else:
        cut = given.spacing_mm, given.dimensions, given.planes, math.prod(given.patch) // 2
        advice = f"PATCH = {[*choose_patch(given.patch, *cut)]} in 01_load_data"
    return f"{finding}. Set {advice}, under another EXPERIMENT."


def _fit(net, train, val, plan, recipe, seed, val_steps, *, past=0, epochs, callbacks):
    changed = {"foreground": recipe.foreground, "augment": recipe.augment}
    unchanged = {"foreground": 1.0, "augment": False}
    validated = {}
    if val_steps:  # not of a model on all cases
        validated["validation_data"] = val.draw(
            plan.batch_size, seed, repeat_after=val_steps, **unchanged
        )
        validated["validation_steps"] = val_steps
    drawn = train.draw(plan.batch_size, seed, start=past * recipe.steps, **changed)
    with make_ahead(drawn, devices.count_makers()) as batches:
        net.fit(
            batches,
            initial_epoch=past,
            epochs=epochs,
            steps_per_epoch=recipe.steps,
            **validated,
            callbacks=callbacks,
            shuffle=False,
            verbose=0,
        )


def _refuse_best(callbacks):
    best = [type(one).__name__ for one in callbacks if getattr(one, "restore_best_weights", False)]
    if best:
        problem = "restore_best_weights would put back an epoch's weights, which are not averaged"
        advice = "and are often chosen by the cases that are scored. Leave it out"
        raise ValueError(f"{best[0]}: {problem} {advice}: the weights at the end are kept.")


def _follow(saver, recipe, callbacks):
    # Each is watched by one that notes if it stops the training.
    _refuse_best(callbacks)
    followed = [saver]
    for callback in (TerminateOnNaN(), *callbacks):
        followed += [callback, state.NoteStop(saver, callback)]
    # Averages are swapped in before each validation, so first in the list.
    return [SwapEMAWeights(), *followed] if recipe.averaging else followed


def describe_end(progress, recipe, fold_dir):
    """Tell what ``done.json`` holds of the end of a training: after the last step or before.

    Parameters
    ----------
    progress : dict
        As `unetseg.run.state.load_state` returned it, and the training went on with it.
    recipe : unetseg.recipe.Recipe
    fold_dir : Path

    Returns
    -------
    dict

    Raises
    ------
    ValueError
        If the loss became NaN or infinite.
    """
    done, stopped = len(progress["history"]), progress.get("stopped")
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
