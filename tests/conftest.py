"""Small NIfTI files of known geometry, for all tests."""

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import nibabel as nib
import numpy as np
import pytest

from unetseg import _base, augmentation, workspace
from unetseg.cases import Case
from unetseg.run import drive

matplotlib.use("Agg")


def _write_nifti(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def write_nifti():
    """Return a function that writes an array with its affine to a path and returns the path."""
    return _write_nifti


@pytest.fixture
def affine():
    """RAS+, voxels of 1 x 2 x 3 mm (6 mm3), away from the origin."""
    return np.array([[1, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 5], [0, 0, 0, 1]], float)


@pytest.fixture
def make_arrays():
    """Return a function that makes an image and its mask.

    The mask holds two boxes side by side: labels[0] fills 3 x 4 x 3 = 36 voxels, labels[1]
    2 x 4 x 3 = 24 voxels. The image is noise in [0, 100), 200 and 400 brighter in the boxes.
    """

    def make(seed=0, shape=(8, 10, 6), labels=(1, 2)):
        mask = np.zeros(shape, np.uint8)
        mask[2:5, 3:7, 1:4] = labels[0]
        mask[5:7, 3:7, 1:4] = labels[1]
        image = np.random.default_rng(seed).integers(0, 100, shape).astype(np.int16)
        image[mask == labels[0]] += 200
        image[mask == labels[1]] += 400
        return image, mask

    return make


@pytest.fixture
def touch(tmp_path):
    """Return a function that makes empty files; finding cases opens none."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


@pytest.fixture
def make_data(tmp_path, affine, make_arrays):
    """Return a function that writes a folder of n cases and returns it.

    ``imagesTr`` and ``labelsTr`` hold ``case_00.nii.gz``, ``case_01.nii.gz`` ... as
    `make_arrays` makes them, on the grid of `affine`.
    """

    def make(n_cases, name="data", **kwargs):
        folder = tmp_path / name
        for k in range(n_cases):
            image, mask = make_arrays(seed=k, **kwargs)
            _write_nifti(folder / "imagesTr" / f"case_{k:02d}.nii.gz", image, affine)
            _write_nifti(folder / "labelsTr" / f"case_{k:02d}.nii.gz", mask, affine)
        return folder

    return make


def _store(array, affine, codes):
    # An RAS+ array and its affine in the storage order that three letters name, such as "PSL".
    axes = [next(a for a, pair in enumerate(("LR", "PA", "IS")) if code in pair) for code in codes]
    backward = [code in "LPI" for code in codes]
    corner = np.zeros(3)
    for axis, flipped in zip(axes, backward, strict=True):
        corner[axis] = (array.shape[axis] - 1) * flipped
    stored = np.eye(4)
    stored[:3, :3] = affine[:3, axes] * np.where(backward, -1, 1)
    stored[:3, 3] = affine[:3, :3] @ corner + affine[:3, 3]
    array = array.transpose(*axes, *range(3, array.ndim))
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in backward)], stored


@pytest.fixture(scope="session")
def write_case():
    """Return a function that writes one case from RAS+ arrays and returns it.

    The image may be a list of arrays, one file each. `codes` names the storage order, `turn`
    rotates the axes.
    """

    def write(
        folder,
        case_id,
        image,
        mask=None,
        spacing_mm=(1, 2, 3),
        codes="RAS",
        group=None,
        turn=None,
    ):
        affine = np.diag([*spacing_mm, 1.0])
        affine[:3, :3] = (np.eye(3) if turn is None else turn) @ affine[:3, :3]
        affine[:3, 3] = (-10, 20, 5)

        def save(name, array):
            return _write_nifti(folder / f"{case_id}_{name}.nii.gz", *_store(array, affine, codes))

        if isinstance(image, list):
            image = tuple(save(f"image{k}", array) for k, array in enumerate(image))
        else:
            image = save("image", image)
        return Case(case_id, image, None if mask is None else save("mask", mask), group)

    return write


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A laptop, with the project in a folder of its own."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    for module in (workspace, drive):
        monkeypatch.setattr(module, "project_dir", lambda: tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A Colab runtime: its project folder on Drive, and its local disk."""
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    for module in (workspace, drive):
        monkeypatch.setattr(module, "DRIVE", tmp_path / "MyDrive")
        monkeypatch.setattr(module, "LOCAL", tmp_path / "content")
        monkeypatch.setattr(module, "project_dir", lambda: tmp_path / "content" / "unetseg")
    return tmp_path / "MyDrive" / "unetseg", tmp_path / "content"


class _Drive:
    # Writes to a folder and removals from it fail, for every file or for those of some name; or
    # for every file from the first write of a file of some name on. ``fault`` is an error number,
    # or "truncates"; None mends it.
    def __init__(self, monkeypatch, folder, fault, name="", since=""):
        self.folder, self.fault, self.name = folder, fault, name
        self.since, self.began = since, not since
        self.write, self.unlink = _base.write_file, Path.unlink
        monkeypatch.setattr(drive, "write_file", self.write_file)
        monkeypatch.setattr(Path, "unlink", lambda path, **kwargs: self.remove(path, **kwargs))

    def fails(self, path):
        here = self.folder in Path(path).parents
        return self.fault and here and self.began and self.name in Path(path).name

    def write_file(self, path, data):
        path = Path(path)
        self.began = self.began or (self.folder in path.parents and self.since in path.name)
        if not self.fails(path):
            return self.write(path, data)
        if self.fault == "truncates":
            part = path.with_name(path.name + ".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data[: len(data) // 2])
            raise OSError(f"{part}: reads back differently from what was written.")
        raise OSError(self.fault, os.strerror(self.fault), str(path))

    def remove(self, path, **kwargs):
        if self.fails(path) and self.fault != "truncates" and path.exists():
            raise OSError(self.fault, os.strerror(self.fault), str(path))
        self.unlink(path, **kwargs)


@pytest.fixture
def break_drive(monkeypatch):
    """Return a function that makes a folder fail as Google Drive does; see `_Drive`."""
    return lambda *args, **kwargs: _Drive(monkeypatch, *args, **kwargs)


@pytest.fixture(scope="session")
def make_cases(tmp_path_factory, write_case):
    """Return a function that writes n cases for trainings, stored in different orders."""
    from training_helpers import arrays

    def make(n=4, channels=1, orientations=("RAS", "PSL", "LPS", "IRA")):
        folder = tmp_path_factory.mktemp("cases")
        return [
            write_case(folder, f"c{k}", *arrays(k, channels), codes=orientations[k % 4])
            for k in range(n)
        ]

    return make


@pytest.fixture(scope="session")
def cases(make_cases):
    """Four cases that trainings read and no test changes."""
    return make_cases()


@pytest.fixture(scope="session")
def run(cases, tmp_path_factory):
    """A finished cross-validation that tests look at and never change."""
    from training_helpers import SETTINGS

    from unetseg.training import cross_validate

    folder = tmp_path_factory.mktemp("run")
    folds = cross_validate(cases, folder / "results", backup_dir=folder / "backup", **SETTINGS)
    return SimpleNamespace(results=folder / "results", backup=folder / "backup", folds=folds)


@pytest.fixture
def copy(run, tmp_path):
    """The results of `run`, to be changed."""
    return shutil.copytree(run.results, tmp_path / "results")


@pytest.fixture
def in_process(monkeypatch):
    """Folds are trained in this process, so that a test may replace what they call."""
    from unetseg.run import processes

    monkeypatch.setattr(processes, "run_apart", lambda folder, function, *args: function(*args))


@pytest.fixture
def trained(monkeypatch, in_process):
    """Training only notes which folds it was called for."""
    from unetseg import training

    calls = []

    def note(plan, train_cases, val_cases, fold_dir, *_):
        assert not (fold_dir / "done.json").exists()
        calls.append((fold_dir.name, [c.id for c in train_cases], [c.id for c in val_cases]))

    monkeypatch.setattr(training, "_train_fold", note)
    return calls


@pytest.fixture
def own(cases, tmp_path):
    """The same cases in files that a test may change."""

    def take(path):
        return Path(shutil.copy2(path, tmp_path))

    return [replace(case, image=take(case.image), mask=take(case.mask)) for case in cases]


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that makes TensorFlow list so many GPUs."""
    from unetseg.run import devices

    def pretend(count):
        names = [f"gpu:{number}" for number in range(count)]
        monkeypatch.setattr(devices, "list_gpus", lambda: names)

    return pretend


@pytest.fixture
def patch_budget(monkeypatch):
    """Return a function that lets this machine bear patches of so many voxels."""
    from unetseg import recipe

    return lambda voxels: monkeypatch.setattr(recipe, "patch_budget", lambda: voxels)


@pytest.fixture
def free_memory(monkeypatch):
    """Return a function that leaves so many bytes of memory on this machine."""
    from unetseg.run import machine

    return lambda count: monkeypatch.setattr(machine, "available_bytes", lambda: count)


@pytest.fixture
def small_blocks(monkeypatch):
    """Return a function that limits the bytes of a class map, as if memory were small."""
    from unetseg import ensemble

    return lambda most_bytes: monkeypatch.setattr(ensemble, "BLOCK_BYTES", most_bytes)


@pytest.fixture
def always(monkeypatch):
    """Every random change takes place."""
    for name in ("MOVED", "CHANGED"):
        monkeypatch.setattr(augmentation, name, 1.0)


@pytest.fixture
def geometry_only(always, monkeypatch):
    """Every patch is turned, no intensity is changed."""
    monkeypatch.setattr(augmentation, "change_intensity", lambda x, rng, sampling: x)
