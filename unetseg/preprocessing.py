"""From a case on its native grid to the network's grid, and back."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes
from scipy import ndimage

from unetseg import nifti
from unetseg.workspace import read_json, write_json

PATCH_MULTIPLE = 8  # three poolings by two
MAX_PATCH_VOXELS = 100_000  # two of them train in a fraction of a second on two CPU cores
NORMALISATIONS = ("zscore", "percentile", "none")


@dataclass
class Preprocessor:
    """What is done to every case before the network, and undone after it.

    Every setting that is left at None is chosen by `fit`. The steps of `transform`: RAS+
    orientation, cropping to the box of non-zero voxels, resampling to the common spacing,
    normalisation, padding to at least the patch.

    Parameters
    ----------
    spacing_mm : tuple of 3 float, optional
        Common voxel size along x, y, z. Chosen: the median over the cases.
    patch : tuple of 3 int, optional
        Voxels that the network sees at once. A 1 makes a 2-D network whose slices lie across
        that axis. Chosen: the median shape, rounded up to a multiple of 8, cut to at most
        100,000 voxels.
    labels : dict of int to str, optional
        Value and name of every label but the background. Chosen: the values in the masks.
    channels : int, optional
        Number of image channels. Chosen: that of the first case.
    normalisation : {"zscore", "percentile", "none"}, default "zscore"
        Per case and channel, over its non-zero voxels: to mean 0 and standard deviation 1;
        or percentiles 1 and 99 to 0 and 1; or none.
    dimensions : {3, 2}, default 3
        2 makes `fit` choose a patch of one slice, across the axis of the largest spacing (z if
        they are equal).
    """

    spacing_mm: tuple | None = None
    patch: tuple | None = None
    labels: dict | None = None
    channels: int | None = None
    normalisation: str = "zscore"
    dimensions: int = 3

    def __post_init__(self):
        """Check the settings."""
        if self.normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation must be one of {NORMALISATIONS}. Received: {self.normalisation!r}"
            )
        if self.dimensions not in (2, 3):
            raise ValueError(f"dimensions must be 2 or 3. Received: {self.dimensions}")
        if self.labels is not None:
            if any(value == 0 for value in self.labels):
                raise ValueError(f"labels must not name the background 0. Received: {self.labels}")
            self.labels = dict(sorted(self.labels.items()))
        for name in ("spacing_mm", "patch"):
            value = getattr(self, name)
            if value is not None:
                if len(value) != 3 or not all(number > 0 for number in value):
                    raise ValueError(
                        f"{name} needs three positive numbers, along x, y, z. Received: {value}"
                    )
                setattr(self, name, tuple(value))

    @property
    def num_classes(self):
        """Number of classes, the background included."""
        return len(self.labels) + 1

    @property
    def input_shape(self):
        """Shape of one input of the network, channels last; three numbers if it is 2-D."""
        return (*(n for n in self.patch if n > 1), self.channels)

    def fit(self, cases):
        """Choose what is not set.

        Parameters
        ----------
        cases : sequence of Case
            Read only if something is to be chosen; the masks if the labels are.

        Returns
        -------
        Preprocessor
            Itself, with every setting filled in.
        """
        if None not in (self.spacing_mm, self.patch, self.labels, self.channels):
            return self
        loaded = (nifti.load_image(case.image) for case in cases)  # one in memory at a time
        grids = [((*image.shape, 1)[:4], affine) for image, affine in loaded]
        spacings = np.array([voxel_sizes(affine) for _, affine in grids])
        if self.spacing_mm is None:
            self.spacing_mm = tuple(float(s) for s in np.median(spacings, 0).round(4))
        extents = spacings * np.array([shape[:3] for shape, _ in grids])
        if self.patch is None:
            self.patch = self._choose_patch(np.median(extents, axis=0) / self.spacing_mm)
        if self.labels is None:
            masks = (nifti.load_mask(case.mask)[0] for case in cases if case.mask)
            values = set().union(*(np.unique(mask).tolist() for mask in masks))
            self.labels = {value: f"label {value}" for value in sorted(values - {0})}
        if self.channels is None:
            self.channels = grids[0][0][3]
        return self

    def _choose_patch(self, shape):
        multiple = PATCH_MULTIPLE
        patch = np.maximum(1, np.ceil(np.round(shape) / multiple).astype(int)) * multiple
        if self.dimensions == 2 and not (np.round(shape) == 1).any():
            patch[2 - int(np.argmax(self.spacing_mm[::-1]))] = 1
        patch[np.round(shape) == 1] = 1
        while np.prod(patch) > MAX_PATCH_VOXELS:
            patch[np.argmax(patch)] -= multiple
        return tuple(patch.tolist())

    def transform(self, case):
        """Bring a case to the network's grid.

        Parameters
        ----------
        case : Case

        Returns
        -------
        x : (x, y, z, channel) ndarray of float32
            At least as large as the patch.
        y : (x, y, z) ndarray of uint8, or None without a mask
            Class numbers: 0 is the background, k the k-th label.

        Raises
        ------
        ValueError
            If a file cannot be read, the number of channels is another, or the mask holds a
            value that is not among the labels.
        """
        image, affine = self._load(case)
        box, shape, padding = self._geometry(image, affine)
        x = np.stack([_zoom(image[box][..., c], shape) for c in range(self.channels)], axis=-1)
        x = np.pad(self._normalise(x), (*padding, (0, 0)))
        if case.mask is None:
            return x, None
        mask, _ = nifti.load_mask(case.mask)
        unknown = set(np.unique(mask).tolist()) - {0, *self.labels}
        if unknown:
            raise ValueError(
                f"{case.mask}: holds label {sorted(unknown)}; declared: {list(self.labels)}. "
                "Correct the mask or declare the label."
            )
        return x, np.pad(_zoom_labels(mask[box], shape, self.labels), padding)

    def cached(self, case, folder):
        """Transform a case once and read it by memory map from then on.

        Parameters
        ----------
        case : Case
            With a mask.
        folder : Path
            On a local disk; one preprocessor per folder.

        Returns
        -------
        x, y : numpy.memmap
            As `transform` returns them.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / f"{case.id}.x.npy", folder / f"{case.id}.y.npy"
        if not all(path.exists() for path in paths):
            for path, array in zip(paths, self.transform(case), strict=True):
                np.save(path, array)
        return tuple(np.load(path, mmap_mode="r") for path in paths)

    def restore(self, probabilities, case):
        """Bring class probabilities back to the case's native grid.

        Parameters
        ----------
        probabilities : (x, y, z, class) ndarray of float
            On the grid of `transform`.
        case : Case

        Returns
        -------
        (x, y, z, class) ndarray of float32
            In RAS+ on the native grid; certain background where `transform` cropped.
        """
        image, affine = self._load(case)
        box, shape, padding = self._geometry(image, affine)
        inner = tuple(slice(a, a + n) for (a, _), n in zip(padding, shape, strict=True))
        native = np.zeros((*image.shape[:3], probabilities.shape[-1]), np.float32)
        native[..., 0] = 1
        size = native[box].shape[:3]
        for k in range(probabilities.shape[-1]):
            native[(*box, k)] = _zoom(probabilities[(*inner, k)], size)
        return native

    def inverse_transform(self, probabilities, case):
        """Bring class probabilities back to the native grid as labels.

        Parameters
        ----------
        probabilities : (x, y, z, class) ndarray of float
            On the grid of `transform`.
        case : Case

        Returns
        -------
        (x, y, z) ndarray of int32
            In RAS+ on the native grid, the user's own label values.
        """
        return self.decode(self.restore(probabilities, case))

    def encode(self, classes):
        """Turn class numbers into certain probabilities.

        Parameters
        ----------
        classes : (...) ndarray of integers

        Returns
        -------
        (..., class) ndarray of float32
        """
        return np.eye(self.num_classes, dtype=np.float32)[classes]

    def decode(self, probabilities):
        """Turn class probabilities into the most probable label values.

        Parameters
        ----------
        probabilities : (..., class) ndarray of float

        Returns
        -------
        (...) ndarray of int32
        """
        return np.array([0, *self.labels], np.int32)[np.argmax(probabilities, axis=-1)]

    def save(self, path):
        """Save the settings as JSON; those of a trained experiment are not replaced by others."""
        trained = Path(path).with_name("experiment.json").exists() and Path(path).exists()
        if trained and Preprocessor.load(path) != self:
            raise ValueError(
                f"{path}: the models in this folder were trained with other preprocessing. "
                "Go back to those settings, or choose another EXPERIMENT name."
            )
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path):
        """Load the settings that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Run 01_load_data first.")
        settings = read_json(path)
        if settings["labels"]:
            settings["labels"] = {int(value): name for value, name in settings["labels"].items()}
        return cls(**settings)

    def _load(self, case):
        image, affine = nifti.load_image(case.image)
        image = image if image.ndim == 4 else image[..., None]
        if image.shape[3] != self.channels:
            raise ValueError(
                f"{case.image}: {image.shape[3]} channels, the network has {self.channels}. "
                "Give every scan the same channels."
            )
        return image, affine

    def _geometry(self, image, affine):
        # The box of non-zero voxels, its shape at the common spacing, and the padding after it.
        box = ndimage.find_objects(image.any(axis=-1).astype(np.uint8))
        box = box[0] if box else (slice(None),) * 3
        extent = image[box].shape[:3] * voxel_sizes(affine)
        shape = np.maximum(1, np.round(extent / self.spacing_mm)).astype(int)
        missing = np.maximum(0, np.array(self.patch) - shape)
        return box, tuple(shape), [(m // 2, m - m // 2) for m in missing.tolist()]

    def _normalise(self, x):
        inside = x.any(axis=-1)
        voxels = x[inside] if inside.any() else x.reshape(-1, x.shape[-1])
        if self.normalisation == "zscore":
            low, scale = voxels.mean(axis=0), voxels.std(axis=0)
        elif self.normalisation == "percentile":
            low, high = np.percentile(voxels, (1, 99), axis=0)
            scale = high - low
        else:
            return x
        return ((x - low) / np.maximum(scale, 1e-8)).astype(np.float32)


def _zoom(array, shape):
    # Both grids cover the same field of view, edge to edge; linear between voxel centres.
    if array.shape == tuple(shape):
        return array
    factors = np.array(shape) / array.shape
    return ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True)


def _zoom_labels(mask, shape, labels):
    classes = np.zeros(shape, np.uint8)
    best = np.full(shape, 0.0, np.float32)
    for k, value in enumerate((0, *labels)):
        share = _zoom((mask == value).astype(np.float32), shape)
        classes[share > best] = k
        best = np.maximum(best, share)
    return classes
