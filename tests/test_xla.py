"""What accelerators do, on the processor: networks compiled by XLA, float16 with a scaled loss."""

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from training_helpers import PATCH, StopAt, assert_same_fold, weights

from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe
from unetseg.run import devices
from unetseg.training import train_fold

pytestmark = pytest.mark.long


class Watch(keras.callbacks.Callback):
    """Notes how the network was compiled, and by how much its loss was scaled at the end."""

    def on_train_end(self, logs=None):
        self.compiled = self.model.jit_compile
        self.scale = float(getattr(self.model.optimizer, "dynamic_scale", 1))


@pytest.fixture
def compiled(monkeypatch):
    """Compile each network by XLA, as Keras chooses it where there is a GPU."""
    monkeypatch.setattr(keras.Model, "_resolve_auto_jit_compile", lambda model: True)


@pytest.fixture
def train(cases, tmp_path):
    """Return a function that trains three cases into a folder of that name, and watches it."""

    def run(name, precision, *callbacks, coarse_mm=(2.0, 3.0, 4.0)):
        fold, watch = tmp_path / name / "fold_0", Watch()
        train_fold(
            cases[:3],
            cases[3:],
            fold,
            preprocessor=Preprocessor(patch=PATCH, coarse_mm=coarse_mm).fit(cases),
            model_args={"filters": 4, "depth": 1},
            recipe=Recipe(epochs=4, steps=4, batch_size=2, averaging=0.5, precision=precision),
            seed=3,
            callbacks=[watch, *callbacks],
        )
        return fold, watch

    return run


def read_label(fold):
    (path,) = (fold.parent / "predictions").iterdir()
    return np.asarray(nib.load(path).dataobj)


@pytest.mark.parametrize("coarse_mm", [(), (2.0, 3.0, 4.0)], ids=["one look", "two looks"])
def test_xla_trains_and_predicts_what_is_trained_and_predicted_without(train, coarse_mm, request):
    plain, _ = train("plain", "float32", coarse_mm=coarse_mm)
    request.getfixturevalue("compiled")
    fold, watch = train("compiled", "float32", coarse_mm=coarse_mm)
    assert watch.compiled
    histories = [pd.read_csv(folder / "history.csv") for folder in (fold, plain)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-3)
    found, right = (weights(folder / "model.weights.h5") for folder in (fold, plain))
    for key, array in right.items():
        np.testing.assert_allclose(found[key], array, atol=1e-3)
    assert np.mean(read_label(fold) == read_label(plain)) > 0.99


def test_float16_with_a_scaled_loss_learns_what_float32_learns(train, compiled):
    exact, plain = train("float32", "float32")
    half, watch = train("float16", "mixed_float16")
    assert (plain.scale, watch.compiled) == (1, True)
    assert watch.scale > 1
    for name in ("loss", "val_loss"):
        curves = [pd.read_csv(fold / "history.csv")[name] for fold in (half, exact)]
        np.testing.assert_allclose(*curves, rtol=0.02)


def test_a_stopped_training_ends_as_if_it_had_not_been_its_scaled_loss_too(
    train, compiled, monkeypatch
):
    precision = "mixed_float16"
    whole, watch = train("whole", precision)
    monkeypatch.setattr(devices, "count_makers", lambda: 2)  # batches are the same
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            train("stopped", precision, StopAt(epoch))
    fold, again = train("stopped", precision)
    assert_same_fold(fold, whole)
    assert again.scale == watch.scale
