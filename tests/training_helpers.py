"""What the tests of training share: cases, settings, a tiny network, comparisons."""

import time

import h5py
import keras
import nibabel as nib
import numpy as np

from unetseg._base import write_file, write_json
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe
from unetseg.run import inputs, state
from unetseg.run.layout import Fold, Run
from unetseg.training import train_fold

SHAPE = (10, 18, 9)


PATCH = (8, 16, 8)


SETTINGS = {
    "model_args": {"filters": 4, "depth": 1},
    "preprocessor": Preprocessor(patch=PATCH, coarse_mm=()),
    "n_splits": 2,
    "epochs": 2,
    "steps": 2,
    "batch_size": 2,
    "precision": "float32",
}


def build_tiny(input_shape, num_classes, *, filters=4, dropout=0.0):
    convolution = getattr(keras.layers, f"Conv{len(input_shape) - 1}D")
    inputs = keras.Input(input_shape)
    x = convolution(filters, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, convolution(num_classes, 1, activation="softmax")(x))


TINY = {**SETTINGS, "build_model": build_tiny, "model_args": {"filters": 3}}


def arrays(seed, channels=1):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 4:9, 2:6], mask[5:8, 4:9, 2:6] = 1, 4
    noise = np.random.default_rng(seed).integers(1, 100, (*SHAPE, channels))
    return np.squeeze(noise + 100 * mask[..., None]).astype(np.int16), mask


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    return found


EDITED = [
    {"train": ["c0", "c1"], "val": ["c2", "c3"]},
    {"train": ["c3"], "val": ["c0"]},
]


def redraw(path):
    """Correct a mask: its first label loses a voxel."""
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[tuple(np.argwhere(mask == 1)[0])] = 0
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def content(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def train_one(cases, folder, build_model=build_tiny, seed=12345, **recipe):
    train_fold(
        cases[:2],
        cases[2:],
        folder / "fold_0",
        preprocessor=Preprocessor(patch=PATCH, coarse_mm=()).fit(cases),
        build_model=build_model,
        recipe=Recipe(**{"epochs": 2, "steps": 2, "precision": "float32", **recipe}),
        seed=seed,
    )
    return weights(folder / "fold_0" / "model.weights.h5")


class StopAt(keras.callbacks.Callback):
    """Stops as the stop button of a notebook does, in a batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.stop, self.epoch = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.stop:
            raise KeyboardInterrupt


def assert_same_fold(fold, expected):
    assert (fold / "history.csv").read_text() == (expected / "history.csv").read_text()
    found, right = (weights(folder / "model.weights.h5") for folder in (fold, expected))
    assert found.keys() == right.keys()
    for key, array in right.items():
        np.testing.assert_array_equal(found[key], array)


def assert_same_run(results, expected):
    for fold in ("fold_0", "fold_1"):
        assert_same_fold(results / fold, expected / fold)
    assert files(results) == files(expected)
    for path in (expected / "predictions").iterdir():
        assert (results / "predictions" / path.name).read_bytes() == path.read_bytes()


def pretend(plan, train_cases, val_cases, fold_dir, seed, cache, callbacks, start=None):
    """Stand in for a training: its states, history and results, by a network of one layer.

    Each epoch adds the seed and the epoch to the weights; predictions are a few bytes.
    """
    fold, run, ids = Fold(fold_dir), Run(fold_dir.parent), [case.id for case in val_cases]
    fold.folder.mkdir(parents=True, exist_ok=True)
    net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    net.compile("sgd", "mse")
    net.optimizer.build(net.trainable_variables)
    progress = state.load_state(net, fold.folder, {"seed": seed, "val": ids})
    saver = state.SaveState(fold.folder, progress, time.monotonic())
    saver.set_model(net)
    saver.on_train_begin()
    for epoch in range(len(progress["history"]), plan.recipe.epochs):
        saver.on_epoch_begin(epoch)
        saver.on_train_batch_end(0)
        net.set_weights([array + seed + epoch for array in net.get_weights()])
        names = [f"{part}{name}" for part in ("", "val_") for name in ("loss", "accuracy", "dice")]
        saver.on_epoch_end(epoch, {name: float(seed + epoch) for name in names})
    done = {"train": [case.id for case in train_cases], "val": ids, "minutes": 0.0, "seed": seed}
    done["weights_sha256"] = state.save_weights(net, fold.weights)
    for case_id in ids:
        for path in (run.prediction(case_id), run.mask(case_id)):
            write_file(path, f"{path.parent.name} {case_id} {seed}".encode())
    write_file(fold.calibration, b"stage\n")
    inputs_seen = inputs.describe_inputs([*train_cases, *val_cases], fresh=True)
    write_json(fold.done, {**done, "inputs": inputs_seen, **state.hash_masks(run, ids)})
    for path in fold.list_states():
        path.unlink()
