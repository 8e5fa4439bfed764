"""Callbacks that stop a training."""

import json

import keras
import numpy as np
import pandas as pd
import pytest
from training_helpers import PATCH, assert_same_fold, files, weights

from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe
from unetseg.run import layout, state
from unetseg.training import train_fold


class StopIn(keras.callbacks.Callback):
    """Stops the training, as Keras allows it, at the given event of the given epoch."""

    def __init__(self, event, epoch):
        super().__init__()
        self.event, self.stop, self.epoch = event, epoch, 0

    def look(self, event):
        if event == self.event and self.epoch == self.stop:
            self.model.stop_training = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.look("epoch begin")

    def on_train_batch_end(self, batch, logs=None):
        self.look("batch")

    def on_test_end(self, logs=None):
        self.look("test")

    def on_epoch_end(self, epoch, logs=None):
        self.look("epoch end")


STOPPED = {
    "epoch begin": (1, 3),  # the epoch, and the steps that are done: Keras ends it after a batch
    "batch": (1, 3),
    "test": (1, 4),
    "epoch end": (1, 4),
}


def stoppable(cases, fold, callbacks=(), **recipe):
    settings = {"epochs": 4, "steps": 2, "batch_size": 2, "precision": "float32", **recipe}
    settings = {"recipe": Recipe(**settings), "model_args": {"filters": 4, "depth": 1}}
    settings["preprocessor"] = Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)
    train_fold(cases[:3], cases[3:], fold, callbacks=callbacks, **settings)
    return json.loads((fold / "done.json").read_text())


@pytest.mark.parametrize("event", STOPPED)
def test_a_fold_that_a_callback_stops_is_finished_and_says_when_and_by_what(
    event, cases, tmp_path, capsys
):
    epoch, steps = STOPPED[event]
    patient = keras.callbacks.LambdaCallback()
    fold = tmp_path / "fold_0"
    done = stoppable(cases, fold, [patient, StopIn(event, epoch), patient])
    assert done["stopped"] == {"epoch": epoch, "by": "StopIn"}
    assert done["steps"] == steps
    assert len(pd.read_csv(fold / "history.csv")) == 2
    assert f"{fold}: stopped in epoch 2 of 4 by StopIn." in capsys.readouterr().out
    layout.read_json(fold / "done.json")  # fits the schema
    assert files(fold) == {"model.weights.h5", "history.csv", "calibration.csv", "done.json"}


def test_early_stopping_gives_the_averaged_weights_of_the_steps_so_far(cases, tmp_path):
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            averages = self.model.optimizer._model_variables_moving_average
            kept["average"] = [np.array(value) for value in averages]

    early = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    done = stoppable(cases, tmp_path / "fold_0", [Keep(), early], averaging=0.5)
    assert done["stopped"] == {"epoch": 1, "by": "EarlyStopping"}
    found = weights(tmp_path / "fold_0" / "model.weights.h5").values()
    expected = kept["average"]
    assert len(found) == len(expected)
    for array in found:
        assert any(array.shape == one.shape and np.array_equal(array, one) for one in expected)


def test_weights_of_the_best_epoch_are_not_put_back(cases, tmp_path):
    early = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    with pytest.raises(ValueError, match="EarlyStopping: restore_best_weights would put back"):
        stoppable(cases, tmp_path / "fold_0", [early])
    assert not (tmp_path / "fold_0" / "history.csv").exists()


def test_a_stopped_fold_that_is_interrupted_does_not_train_on(cases, tmp_path, monkeypatch):
    stop = [StopIn("epoch end", 1)]
    whole = stoppable(cases, tmp_path / "whole" / "fold_0", stop)
    fold = tmp_path / "killed" / "fold_0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "save_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stoppable(cases, fold, stop)
    done = stoppable(cases, fold)  # also if the callback is not given any more
    assert_same_fold(fold, tmp_path / "whole" / "fold_0")
    for key in ("stopped", "steps"):
        assert done[key] == whole[key]


def test_nan_is_still_said_where_a_callback_stops_too(cases, tmp_path):
    def build(input_shape, num_classes):
        inputs = keras.Input(input_shape)
        outputs = keras.layers.Conv3D(num_classes, 1, activation="softmax")(inputs)
        return keras.Model(inputs, outputs * np.float32(np.nan))

    fold = tmp_path / "fold_0"
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_fold(
            *(cases[:3], cases[3:], fold),
            preprocessor=Preprocessor(patch=PATCH, coarse_mm=()).fit(cases),
            build_model=build,
            recipe=Recipe(epochs=3, steps=2, precision="float32"),
            callbacks=[StopIn("batch", 0)],
        )
    assert not (fold / "done.json").exists()


@pytest.mark.filterwarnings("ignore:Limiting epochs")
def test_epochs_that_the_environment_limits_are_said(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "2")
    keras.config.set_max_epochs(2)
    try:
        done = stoppable(cases, tmp_path / "fold_0")
    finally:
        keras.config.set_max_epochs(None)
    assert done["stopped"] == {"epoch": 1, "by": "KERAS_MAX_EPOCHS"}
    assert done["steps"] == 4


def test_a_fold_that_is_not_stopped_says_nothing_of_it(run):
    done = json.loads((run.results / "fold_0" / "done.json").read_text())
    assert "stopped" not in done
    assert done["steps"] == 4
