"""Measure speed and memory: prints a table and writes results/benchmark.json.

python -m tests.tools.benchmark
    everything, minutes
python -m tests.tools.benchmark memory N X,Y,Z STEPS
    peak memory of training on N cases of 128 x 128 x 128; called by the first, as a process each
python -m tests.tools.benchmark folds apart|inside
    memory of a process after 1 and after 5 tiny folds, each in a process of its own or all inside
    it, and seconds per fold; called by the first likewise

Every time is the median of repeats. Times that are compared come from one run, in which the
alternatives took turns. Training is as in a fold: the optimiser, the weight averaging and the
metrics included.
"""

import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import nibabel as nib
import numpy as np
import pandas as pd
from keras import layers, ops
from scipy import ndimage

from unetseg import _base, fitting, model, prediction, training
from unetseg.augmentation import Sampling
from unetseg.cases import Case
from unetseg.grids import Place
from unetseg.patches import CachedCases, Patches, make_ahead
from unetseg.prepared import Prepared
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe, make_plan
from unetseg.run import devices, machine, processes

TARGET = Path(__file__).parents[2] / "results" / "benchmark.json"
CROP = (35, 50, 36)  # as of the hippocampus data, at 1 mm
HEAD = (182, 218, 182)
REPEATS = 7
STEPS = 5  # per repeat
RECIPE = Recipe(epochs=1, steps=1000)


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder) / "scans", 24)
        volume = Preprocessor(labels={1: "a", 2: "b"}).fit(cases)
        slices = Preprocessor(labels={1: "a", 2: "b"}, dimensions=2).fit(cases)
        rows += preprocessing_speed(volume, cases, Path(folder))
        rows += training_speed(volume, slices)
        rows += waiting("3-D", volume, CachedCases(volume, cases, Path(folder) / "cache"))
        rows += waiting("2-D", slices, CachedCases(slices, cases, Path(folder) / "cache2"))
        rows += prediction_speed(volume, cases)
    rows += waiting_of_a_fast_device()
    rows += memory()
    rows += memory_of_folds()
    rows += peers()
    table = pd.DataFrame(rows, columns=["what", "setting", "value", "unit", "repeats"])
    content = {**machine.describe_machine(), "rows": table.to_dict("records")}
    _base.write_json(TARGET, content)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


def make_cases(folder, n_cases):
    """Write scans of smooth noise with two touching labels, of the hippocampus crops' size."""
    folder.mkdir()
    cases = []
    for number in range(n_cases):
        field = ndimage.gaussian_filter(np.random.default_rng(number).normal(size=CROP), 4)
        mask = ((field > 0.02) + (field > 0.04)).astype(np.uint8)
        paths = [folder / f"{number}_{name}.nii.gz" for name in ("scan", "mask")]
        for path, array in zip(paths, ((1000 + 5000 * field).astype(np.int16), mask), strict=True):
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
        cases.append(Case(str(number), *paths))
    return cases


def take_turns(functions, repeats=REPEATS):
    """Median seconds of each function, called in turns after a call to warm up."""
    seconds = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def preprocessing_speed(preprocessor, cases, folder):
    caches = itertools.count()
    functions = {"": lambda: CachedCases(preprocessor, cases, folder / f"speed{next(caches)}")}
    seconds = take_turns(functions)[""]
    setting = f"{len(cases)} crops of {CROP}, read, normalised, cached"
    return [("preprocessing", setting, len(cases) / seconds, "cases/s", REPEATS)]


def trainer(preprocessor, precision, build=model.build_unet):
    """Return a function that takes STEPS steps on one batch, its size, and what a step computes."""
    recipe = replace(RECIPE, precision=precision)
    plan = make_plan(preprocessor, build, model.plan_unet(preprocessor), recipe)
    net, batch = fitting.build(plan, recipe, seed=0), plan.batch_size
    rng = np.random.default_rng(0)
    x = rng.normal(size=(batch, *preprocessor.input_shape)).astype(np.float32)
    y = rng.integers(0, preprocessor.num_classes, (*x.shape[:-1], 1)).astype(np.uint8)

    def run():
        for _ in range(STEPS):
            net.train_on_batch(x, y)

    return run, batch, 3 * batch * operations(net)  # forward, and backward to x and to kernels


def operations(net):
    """Floating point operations of all convolutions in one forward pass of one patch."""
    kinds = (layers.Conv2D, layers.Conv3D, layers.Conv2DTranspose, layers.Conv3DTranspose)
    total = 0
    for layer in net.layers:
        if isinstance(layer, kinds):
            transposed = "Transpose" in type(layer).__name__
            voxels = (layer.input if transposed else layer.output).shape[1:-1]
            total += 2 * int(np.prod(layer.kernel.shape)) * int(np.prod(voxels))
    return total


def build_group_normalised(input_shape, num_classes, **arguments):
    """Build the U-Net with Keras' GroupNormalization in place of our InstanceNormalization."""
    ours = model.InstanceNormalization
    model.InstanceNormalization = lambda: layers.GroupNormalization(groups=-1, epsilon=1e-5)
    try:
        return model.build_unet(input_shape, num_classes, **arguments)
    finally:
        model.InstanceNormalization = ours


def training_speed(volume, slices):
    chosen = devices.choose_precision()
    settings = {
        f"3-D, {chosen}": (volume, chosen),
        "3-D, float32": (volume, "float32"),
        f"2-D, {chosen}": (slices, chosen),
        "2-D, float32": (slices, "float32"),
        f"3-D, {chosen}, GroupNormalization": (volume, chosen, build_group_normalised),
    }
    made = {name: trainer(*arguments) for name, arguments in settings.items()}
    functions = {name: run for name, (run, *_) in made.items()}
    peaks = {name: peak(name.removeprefix("mixed_")) for name in ("float32", chosen)}
    functions |= {f"peak {name}": run for name, run in peaks.items()}
    seconds = take_turns(functions)
    rows = []
    for name, (_, batch, work) in made.items():
        step = seconds[name] / STEPS
        rows.append(("training", f"{name}, batch {batch}", batch / step, "patches/s", REPEATS))
        best = PEAK_WORK / seconds[f"peak {'float32' if 'float32' in name else chosen}"]
        rows.append(("share of peak", name, work / step / best, "", REPEATS))
    for name in peaks:
        rate = PEAK_WORK / seconds[f"peak {name}"] / 1e9
        rows.append(("matrix product", f"{name}, 2048 x 2048", rate, "GFLOP/s", REPEATS))
    return rows


PEAK_WORK = 2 * 2048**3 * STEPS


def peak(dtype):
    matrix = ops.cast(np.random.default_rng(0).normal(size=(2048, 2048)), dtype)

    def run():
        for _ in range(STEPS):
            product = ops.matmul(matrix, matrix)
        ops.convert_to_numpy(product)

    return run


class Same(keras.utils.PyDataset):
    """The same batch again and again: a loader that costs nothing."""

    num_batches = None

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def __getitem__(self, index):
        return self.batch


def waiting(name, preprocessor, cached):
    """Share of a step of `fit` that goes away when batches cost nothing."""
    plan = make_plan(preprocessor, recipe=RECIPE)
    net = fitting.build(plan, RECIPE, seed=0)
    chance = {"foreground": RECIPE.foreground, "augment": RECIPE.augment}
    patches = Patches(cached, preprocessor.sampling, plan.batch_size, 0, **chance)
    steps = {"steps_per_epoch": 50, "verbose": 0, "shuffle": False}
    sources = {"patches": patches, "same": Same(patches[0])}
    functions = {name: lambda s=source: net.fit(s, **steps) for name, source in sources.items()}
    seconds = take_turns(functions, 3)
    share = max(0, 1 - seconds["same"] / seconds["patches"])
    alone = take_turns({"": lambda: [patches[index] for index in range(30)]})[""] / 30
    return [
        ("waiting for data", f"{name}, patch {preprocessor.patch}", share, "of a step", 3),
        ("making a batch", f"{name}, patch {preprocessor.patch}", alone, "s", REPEATS),
    ]


def waiting_of_a_fast_device():
    """Share of the time that a device waits which another makes patches for, on two threads."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((*HEAD, 4), np.float32)
    cubes = Patches([(x, (x[..., 0] > 1).astype(np.uint8))], Sampling((128, 128, 128)), 1, 0)
    size = "patch (128, 128, 128), 4 channels"
    alone = take_turns({"": lambda: [cubes[index] for index in range(20)]}, 3)[""] / 20
    rows = [("making a batch", size, alone, "s", 3)]
    for step in (0.05, 0.2, 0.5):

        def train(step=step):
            with make_ahead(cubes, 2) as batches:
                for index in range(20):
                    batches[index]
                    time.sleep(step)  # the device computes, the processor is free

        share = 1 - 20 * step / take_turns({"": train}, 3)[""]
        rows.append(("waiting for data", f"{size}, step of {step} s", share, "of a step", 3))
    return rows


def prediction_speed(preprocessor, cases):
    plan = make_plan(preprocessor)
    nets = [plan.build() for _ in range(5)]
    functions = {
        f"{n} model{'s' * (n > 1)}": lambda n=n: prediction.predict_case(
            nets[:n], cases[0], preprocessor
        )
        for n in (1, 5)
    }
    seconds = take_turns(functions)
    axes = preprocessor.mirror_axes
    return [
        ("prediction", f"crop of {CROP}, {name}, mirrored along {axes}", value, "s", REPEATS)
        for name, value in seconds.items()
    ]


class Large(Preprocessor):
    """Makes cases of 128 x 128 x 128 voxels instead of reading them."""

    def prepare(self, case, **settings):
        shape, whole = (128, 128, 128), (slice(0, 128),) * 3
        x = np.random.default_rng(int(case.id)).standard_normal((*shape, 1), np.float32)
        y = np.zeros(shape, np.uint8)
        y[40:80, 40:90, 50:80] = 1
        return Prepared(x, y, Place(shape, whole, whole), np.ones(shape, bool), self)


def train_large(n_cases, patch, steps):
    preprocessor = Large((1, 1, 1), patch, {1: "a"}, 1, "none", 3, ())
    recipe = replace(RECIPE, batch_size=1, precision="float32")
    with tempfile.TemporaryDirectory() as folder:
        cases = [Case(str(number), None) for number in range(n_cases)]
        cached = CachedCases(preprocessor, cases, Path(folder))
        plan = make_plan(preprocessor, model_args={"depth": 3}, recipe=recipe)
        net = fitting.build(plan, recipe, seed=0)
        patches = Patches(cached, preprocessor.sampling, 1, 0, foreground=0.5)
        net.fit(patches, steps_per_epoch=steps, verbose=0, shuffle=False)
    # Of this process alone: getrusage would count what the one that started it had in memory.
    print(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024)


def memory():
    found = {}
    for n_cases, patch, steps in ((50, SMALL, 250), (500, SMALL, 250), (50, LARGE, 5)):
        arguments = ["memory", str(n_cases), ",".join(map(str, patch)), str(steps)]
        command = [sys.executable, "-m", "tests.tools.benchmark", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[n_cases, patch] = float(done.stdout.split()[-1])
    rows = []
    for (n_cases, patch), peak_bytes in found.items():
        setting = f"training on {n_cases} cases of 128 x 128 x 128, patch {patch}, float32"
        rows.append(("peak memory", setting, peak_bytes / 2**30, "GiB", 1))
    difference = found[50, LARGE] - found[50, SMALL]
    per_voxel = difference / (np.prod(LARGE) - np.prod(SMALL))
    return [*rows, ("memory of a patch", "3-D, float32", per_voxel, "bytes/voxel", 1)]


def train_folds(where):
    """Print the resident memory after one tiny fold, after four more, and seconds per fold."""
    if where == "inside":
        processes.run_apart = lambda folder, function, *args: function(*args)
    resident, seconds = [], []
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        cases = make_cases(Path(folder) / "scans", 5)
        settings = {"epochs": 1, "steps": 2, "model_args": {"filters": 8}}
        settings["preprocessor"] = Preprocessor(patch=(16, 16, 16))
        ids = [case.id for case in cases]
        folds = [{"train": [i for i in ids if i != one], "val": [one]} for one in ids]
        for name, chosen in (("one", folds[:1]), ("more", folds[1:])):
            _base.write_json(Path(folder) / name / "splits.json", chosen)
            start = time.perf_counter()
            training.cross_validate(cases, Path(folder) / name, **settings)
            seconds.append(time.perf_counter() - start)
            status = Path("/proc/self/status").read_text()
            resident.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024)
    print(*resident, (seconds[1] - seconds[0]) / 3)


def memory_of_folds():
    rows = []
    for where, setting in (("apart", "a process per fold"), ("inside", "all folds in one process")):
        command = [sys.executable, "-m", "tests.tools.benchmark", "folds", where]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        one, five, seconds = map(float, done.stdout.split()[-3:])
        for count, value in (("1 fold", one), ("5 folds", five)):
            rows.append(("memory kept", f"after {count}, {setting}", value / 2**20, "MiB", 1))
        rows.append(("a tiny fold", setting, seconds, "s", 1))
    return rows


def peers():
    """Rows of tests.tools.benchmark_metrics, from a process of one thread."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.tools.benchmark_metrics"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


SMALL, LARGE = (40, 48, 48), (96, 96, 96)

if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        train_large(int(sys.argv[2]), tuple(map(int, sys.argv[3].split(","))), int(sys.argv[4]))
    elif sys.argv[1:2] == ["folds"]:
        train_folds(sys.argv[2])
    else:
        main()
