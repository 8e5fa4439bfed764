"""How a network is fitted: steps, learning rate, averages, several devices."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from training_helpers import (
    PATCH,
    assert_same_fold,
    build_tiny,
    train_one,
    weights,
)

from unetseg import fitting
from unetseg.cases import check_cases
from unetseg.losses import dice_cross_entropy
from unetseg.model import build_unet
from unetseg.patches import Looks
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Plan, Recipe


class Watched(keras.Model):
    """Runs step by step and notes the learning rate before each step, the kernel after it."""

    def compile(self, *args, **kwargs):
        super().compile(*args, run_eagerly=True, **kwargs)
        self.rates, self.kernels = [], []

    def train_step(self, data):
        self.rates.append(float(self.optimizer.learning_rate))
        logs = super().train_step(data)
        self.kernels.append(np.array(self.weights[0].numpy()))
        return logs


@pytest.fixture
def train_watched(cases, tmp_path):
    """Return a function that trains in 4 epochs of 3 steps; it returns the model and its file."""

    def train(**recipe):
        built = []

        def build(input_shape, num_classes):
            model = build_tiny(input_shape, num_classes)
            built.append(Watched(model.input, model.output))
            return built[-1]

        kept = train_one(cases, tmp_path, build, epochs=4, steps=3, batch_size=1, **recipe)
        assert len(built[0].rates) == 12
        return built[0], kept

    return train


@pytest.mark.parametrize(("averaging", "momentum"), [(0, 0), (0.5, 5 / 6), (0.1, 1 / 2)])
def test_averaging_tells_whether_the_last_weights_or_their_average_are_kept(
    train_watched, averaging, momentum
):
    # half of 12 steps is a window of 6, a tenth of them one of 2, the shortest
    model, kept = train_watched(averaging=averaging)
    (kernel,) = (array for array in kept.values() if array.shape == model.kernels[0].shape)
    average = model.kernels[0]
    for step in model.kernels[1:]:
        average = momentum * average + (1 - momentum) * step
    np.testing.assert_allclose(kernel, average, atol=1e-6)
    assert np.allclose(kernel, model.kernels[-1], atol=1e-6) == (averaging == 0)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_over_the_warmup_and_falls_as_a_cosine(train_watched, warmup):
    model, _ = train_watched(warmup=warmup, learning_rate=0.01)
    rise = int(12 * warmup)
    rising = [0.01 * k / 3 for k in range(rise)]
    falling = [0.005 * (1 + np.cos(np.pi * k / (12 - rise))) for k in range(12 - rise)]
    assert model.rates == pytest.approx(rising + falling, abs=1e-6)


def test_the_automatic_precision_gives_the_gradients_of_float32_on_few_planes(cases, tmp_path):
    class Compiled(Exception):  # noqa: N818
        pass

    class Stopped(keras.Model):
        def compile(self, *args, **kwargs):
            raise Compiled(self)

    def build(input_shape, num_classes):
        model = build_unet(input_shape, num_classes, filters=4, depth=2)
        return Stopped(model.input, model.output)

    # 8 planes, halved twice: oneDNN's bfloat16 gradient of a convolution over 2 planes is wrong
    with pytest.raises(Compiled) as compiled:
        train_one(cases, tmp_path, build, precision="auto")
    (model,) = compiled.value.args
    exact = build_unet((*PATCH, 1), 3, filters=4, depth=2)
    exact.set_weights(model.get_weights())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *PATCH, 1)).astype(np.float32)
    y = rng.integers(0, 3, (2, *PATCH, 1)).astype(np.uint8)
    gradients = []
    for net in (model, exact):
        with tf.GradientTape() as tape:
            loss = dice_cross_entropy(y, net(x, training=True))
        kernels = [v for v in net.trainable_variables if v.path.endswith("kernel")]
        found = tape.gradient(loss, [v.value for v in kernels])
        gradients.append([gradient.numpy().astype(float) for gradient in found])
    for found, right in zip(*gradients, strict=True):
        error = np.linalg.norm(found - right) / np.linalg.norm(right)
        assert error < 0.3  # more than bfloat16 makes


@pytest.mark.parametrize(
    ("voxels", "batch_size", "steps"),
    [
        (100 * 1024, 1, 200),  # twice; patches of 8 x 16 x 8 = 1024 voxels
        (100 * 1024 + 1, 1, 201),
        (200 * 1024, 2, 200),
        (74 * 1024, 1, 150),  # no less than 150
        (201 * 1024, 1, 400),  # no more than 400
    ],
)
def test_an_epoch_covers_the_training_cases_twice_within_limits(voxels, batch_size, steps):
    preprocessor = Preprocessor((1, 2, 3), PATCH, {1: "a"}, 1)
    plan = Plan(preprocessor, build_tiny, {}, Recipe(), batch_size)
    parts = [(None, np.zeros(size, bool), None) for size in (1000, voxels - 1000)]
    assert fitting.count_steps(seen(parts), plan) == steps


def seen(near, far=None):
    return SimpleNamespace(near=near, far=far)


@pytest.mark.parametrize("voxels", [1024, 1024**2])
def test_of_two_looks_an_epoch_has_300_batches(voxels):
    preprocessor = Preprocessor((1, 2, 3), PATCH, {1: "a"}, 1)
    part = [(None, np.zeros(voxels, bool), None)]
    plan = Plan(preprocessor, build_tiny, {}, Recipe(), 1)
    assert fitting.count_steps(seen(part, part), plan) == 300


def test_slices_are_counted_once_per_plane_and_as_neighbours():
    preprocessor = Preprocessor((1, 1, 1), (16, 16, 1), {1: "a"}, 1, neighbours=1, planes=(2, 0))
    plan = Plan(preprocessor, build_tiny, {}, Recipe(), 1)
    part = None, np.zeros(300 * 256, bool), None
    assert fitting.count_steps(seen([part]), plan) == 200  # slices: 300 a plane, seen in three


SHARED = """
import sys
from pathlib import Path
import keras
import tensorflow as tf
from unetseg import cases, losses, recipe, training
from unetseg.preprocessing import Preprocessor
from unetseg.run import devices

data, folder, count, loss, stop = sys.argv[1:]
[cpu] = tf.config.list_physical_devices("CPU")
parts = [tf.config.LogicalDeviceConfiguration()] * int(count)
tf.config.set_logical_device_configuration(cpu, parts)
if count == "2":
    devices.list_gpus = lambda: keras.distribution.list_devices("cpu")
    assert recipe.plan_batch((128, 128, 128)) == 2
if loss == "cross-entropy":
    error = keras.losses.sparse_categorical_crossentropy
    losses.dice_cross_entropy = lambda *pair: keras.ops.mean(error(*pair))

class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        assert replicas == int(count)
        if epoch == int(stop):
            raise KeyboardInterrupt

found = cases.find_cases(data)
settings = {"preprocessor": Preprocessor(patch=(8, 8, 4)).fit(found)}
settings["model_args"] = {"filters": 8, "depth": 1}
chosen = {"epochs": 4, "steps": 4, "batch_size": 4, "averaging": 0.3, "precision": "float32"}
settings["recipe"] = training.Recipe(**chosen)
try:
    training.train_fold(found[:3], found[3:], folder, callbacks=[Stop()], **settings)
except KeyboardInterrupt:
    stop = -1
    training.train_fold(found[:3], found[3:], folder, callbacks=[Stop()], **settings)
"""


@pytest.fixture
def train_shared(make_data, tmp_path):
    """Return a function that trains in a process of its own, on so many logical devices."""
    data = make_data(4)

    def train(devices, loss, stop=-1):
        fold = tmp_path / f"{devices} {loss} {stop}" / "fold_0"
        arguments = [str(data), str(fold), str(devices), loss, str(stop)]
        subprocess.run([sys.executable, "-c", SHARED, *arguments], check=True, capture_output=True)
        return fold

    return train


@pytest.mark.long
def test_two_devices_train_as_one_with_the_same_batch(train_shared):
    one, two = train_shared(1, "cross-entropy"), train_shared(2, "cross-entropy")
    histories = [pd.read_csv(fold / "history.csv") for fold in (one, two)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5)  # measured: 2e-7
    found, right = (weights(fold / "model.weights.h5") for fold in (two, one))
    for key, array in right.items():
        np.testing.assert_allclose(found[key], array, atol=1e-5)  # measured: 3e-7
    first = pd.read_csv(one / "history.csv")["loss"]
    assert first.iloc[-1] < 0.8 * first[0]  # so that there is something to compare


@pytest.mark.long
def test_dice_pooled_on_each_device_changes_the_curve_by_less_than_a_hundredth(train_shared):
    one, two = (
        pd.read_csv(train_shared(n, "Dice and cross-entropy") / "history.csv") for n in (1, 2)
    )
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=0.01)  # measured: 0.0014


@pytest.mark.long
def test_a_training_on_two_devices_that_was_stopped_ends_as_if_it_had_not_been(train_shared):
    whole = train_shared(2, "Dice and cross-entropy")
    assert_same_fold(train_shared(2, "Dice and cross-entropy", stop=2), whole)


def test_nan_in_the_very_last_step_is_said(tmp_path):
    stopped = {"epoch": 2, "by": "TerminateOnNaN", "steps": 6}
    state = {"history": [{"epoch": 0}, {"epoch": 1}], "stopped": stopped}
    with pytest.raises(ValueError, match="NaN or infinite"):
        fitting.describe_end(state, Recipe(epochs=3, steps=2), tmp_path)


def test_steps_are_planned_from_the_seconds_of_two_short_epochs(cases, tmp_path, monkeypatch):
    # The first epoch took 14 s, the second 6 s, of which 2 s to validate: 0.2 s a step, 8 s to
    # start, and so (120.01 - 8 - 4 * 2) / 4 = 26 s of steps in each of 4 epochs.
    monkeypatch.setattr(fitting._Clock, "seconds", (14.0, 6.0, 2.0))
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)
    recipe = Recipe(epochs=4, minutes=120.01 / 60, batch_size=1, precision="float32")
    plan = Plan(preprocessor, build_tiny, {"filters": 3}, recipe, 1)
    assert fitting.plan_steps(plan, cases, tmp_path, validated=2) == 26 / 0.2
    hardly = replace(plan, recipe=replace(recipe, minutes=16.9 / 60))
    assert fitting.plan_steps(hardly, cases, tmp_path, validated=2) == 1
    least = replace(plan, recipe=replace(recipe, minutes=16.7 / 60))
    with pytest.raises(ValueError, match=r"minutes must be at least 0.28 on this machine"):
        fitting.plan_steps(least, cases, tmp_path, validated=2)


def test_minutes_are_foretold_from_the_steps_that_will_be_taken(cases, tmp_path, monkeypatch):
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)
    table = check_cases(cases)
    sizes = [*zip(table["shape"], table["spacing_mm"], strict=True)]
    plan = Plan(preprocessor, build_tiny, {"filters": 3}, Recipe(precision="float32"), 1)
    asked = plan, cases, tmp_path, sizes, 2
    # 8 s to start, in each of 12 epochs 2 s to validate and 0.2 s a step: cases are small.
    monkeypatch.setattr(fitting._Clock, "seconds", (14.0, 6.0, 2.0))
    assert fitting.foretell_minutes(*asked) == pytest.approx((8 + 12 * (150 * 0.2 + 2)) / 60)
    monkeypatch.setattr(fitting, "MIN_STEPS", 1)
    # Twice half of the cases, each as large as its body, a patch at least.
    seen = Looks(preprocessor, cases, tmp_path).near
    steps = -(-sum(y.size for _, y, _ in seen) // np.prod(PATCH))
    assert fitting.foretell_minutes(*asked) == pytest.approx((8 + 12 * (steps * 0.2 + 2)) / 60)
    twice = replace(plan, preprocessor=replace(preprocessor, coarse_mm=(4.0, 4.0, 4.0), margin=0.3))
    minutes = fitting.foretell_minutes(twice, *asked[1:])
    assert minutes == pytest.approx((8 + 12 * (300 * 0.2 + 2)) / 60)


def test_the_clock_tells_epochs_from_the_time_before_them(cases, tmp_path):
    clock = fitting._Clock()
    clock.on_train_begin()
    for epoch in range(2):
        clock.on_test_begin()
        clock.on_epoch_end(epoch)
    first, second, validated = clock.seconds
    assert first >= 0
    assert 0 <= validated <= second


def test_a_single_fold_has_no_minutes_to_share_out(cases, tmp_path):
    with pytest.raises(ValueError, match="minutes must be left to cross_validate: give steps"):
        train_one(cases, tmp_path, build_tiny, steps=None, batch_size=1, minutes=1)
