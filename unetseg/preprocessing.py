"""From a case on its native grid to the network's grid, and back."""

import itertools
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from unetseg import nifti
from unetseg._base import require, write_json
from unetseg.augmentation import Sampling
from unetseg.body import find_body, find_box, find_void, measure_contrast
from unetseg.grids import Place, zoom, zoom_labels
from unetseg.planning import (
    choose_empty_space,
    choose_least_contrast,
    choose_normalisation,
    choose_spacing,
    coarse_axis,
    describe_case,
)
from unetseg.reading.description import refuse_ignored
from unetseg.run.layout import read_json
from unetseg.run.machine import describe_hardware

CPU_PATCH_VOXELS = 100_000  # a step on one patch then takes a fraction of a second on two cores
GPU_PATCH_VOXELS = 128**3  # nnU-Net's patches for 8 GB and more are not larger
BYTES_PER_VOXEL = 3000  # of a patch in training: twice what `make benchmark` measures
NORMALISATIONS = ("zscore", "percentile", "none")
EMPTY_SPACE = ("background", "outside", "zero")
FEW_SLICES = 8  # low-resolution slices; fewer cannot be halved into something useful
PRECISION = 1e-6  # of float32: what varies by less varies by rounding alone
SIDED = 0.02  # of the foreground's width: further to one side, on average, is no chance
# What files of version 0.1 do not tell.
OLDER = {"neighbours": 0, "planes": (), "empty_space": "zero", "least_contrast": 0.0}
MIRRORINGS = [axes for n in range(4) for axes in itertools.combinations(range(3), n)]
LIKE = 1.2  # ratio of the voxel's sides up to which slices across both are of one kind
PLANES = [(), *itertools.permutations(range(3), 1), *itertools.permutations(range(3), 2)]


@dataclass
class Preprocessor:
    """What is done to every case before the network, and undone after it.

    Every setting that is left at None is chosen by `fit`. The steps of `transform`: RAS+
    orientation, cropping to the box of the body, resampling to the common spacing, normalisation,
    padding to at least the patch with 0, the mean.

    Parameters
    ----------
    spacing_mm : tuple of 3 float, optional
        Common voxel size along x, y, z. Chosen: the median over the cases; along an axis of low
        resolution (3 times coarser than the others, with 3 times fewer voxels) the 10th
        percentile, so that few scans lose slices (Isensee et al. 2021).
    patch : tuple of 3 int, optional
        Voxels that the network sees at once. A 1 makes a 2-D network whose slices lie across
        that axis. Chosen: the median shape, rounded up to what can be halved three times (short
        axes less often), cut along its longest side in mm to what the hardware bears: 100,000
        voxels on a processor, up to 128 x 128 x 128 on a GPU, by its memory.
    labels : dict of int to str, optional
        Value and name of every label but the background. Chosen: the values in the masks.
    channels : int, optional
        Number of image channels. Chosen: that of the first case.
    normalisation : {"zscore", "percentile", "none"}, optional
        Per case and channel, over the body: to mean 0 and standard deviation 1; or percentiles 1
        and 99 to 0 and 1 (if they are equal, the extremes); or none. Chosen: z-scores, but
        percentiles if in the median case voxels lie more than 20 standard deviations above the
        mean.
    dimensions : {3, 2}, optional
        2 makes `fit` choose a patch of one slice, across the axis of the largest spacing (z if
        they are equal). Chosen: 3, but 2 for stacks of fewer than 8 slices of low resolution.
    mirror_axes : tuple of {0, 1, 2}, optional
        Axes along which patches are mirrored, at random in training and for an average in
        prediction. Chosen: x, left to right, unless a label lies to one side of the whole
        foreground (on average by more than 2 % of its width) or there are no masks.
    neighbours : int, optional
        Slices on each side that a 2-D network sees as further channels beside the one that it
        segments. Chosen: 2, but 0 in 3-D and for scans of a single slice.
    planes : tuple of {0, 1, 2}, optional
        Axes across which the slices of a 2-D network lie: that of the patch's 1 and perhaps
        another, whose slices the same network sees with both axes swapped; predictions of both
        are averaged. Chosen: two if the voxels are as long along both (up to 1.2 times), the other
        being the one that changes the slices' size least; none in 3-D.
    empty_space : {"background", "outside", "zero"}, optional
        What is not body: the one value that fills the field of view outside of it, whatever it
        is (`unetseg.body.find_background`), so a scan that is shifted by a constant, or scaled,
        gives the same input; or voxels of 0 wherever they are, as version 0.1 had it (``zero``).
        With ``background`` the network is not asked about space that is empty (see
        `transform_scan`): a window without signal tells it nothing. Chosen: ``background``, but
        ``outside`` if a mask labels such space (more than 0.1 % of a label's voxels).
    least_contrast : float, optional
        With ``background``, the contrast (`unetseg.body.measure_contrast`) under which a voxel
        is background too, such as in the noise of air, which a network would amplify. Chosen:
        half of the least that a label had in training (of 99.9 % of its voxels); 0 without masks.
    """

    spacing_mm: tuple | None = None
    patch: tuple | None = None
    labels: dict | None = None
    channels: int | None = None
    normalisation: str | None = None
    dimensions: int | None = None
    mirror_axes: tuple | None = None
    neighbours: int | None = None
    planes: tuple | None = None
    empty_space: str | None = None
    least_contrast: float | None = None

    def __post_init__(self):
        """Check the settings."""
        for name in ("spacing_mm", "patch", "mirror_axes", "planes"):
            if np.iterable(getattr(self, name)):
                setattr(self, name, tuple(getattr(self, name)))
        known = (2, 3) if not np.iterable(self.patch) else (2,) if 1 in self.patch else (3,)
        triple = "three positive numbers, along x, y, z"
        for name, fits, allowed in (
            ("spacing_mm", lambda v: np.shape(v) == (3,) and min(v) > 0, triple),
            ("patch", lambda v: np.shape(v) == (3,) and min(v) > 0, triple),
            ("labels", lambda v: isinstance(v, dict) and 0 not in v, "a dict without background 0"),
            ("channels", lambda v: v >= 1, "at least 1"),
            ("normalisation", lambda v: v in NORMALISATIONS, f"one of {NORMALISATIONS}"),
            ("dimensions", lambda v: v in known, f"one of {known}, 2 for a patch of one slice"),
            ("mirror_axes", lambda v: v in MIRRORINGS, f"one of {MIRRORINGS}"),
            ("planes", lambda v: v in PLANES and (not v or 2 in known), f"in 2-D one of {PLANES}"),
            ("empty_space", lambda v: v in EMPTY_SPACE, f"one of {EMPTY_SPACE}"),
            ("least_contrast", lambda v: v >= 0, "0 or more"),
            ("neighbours", lambda v: v == 0 or (v > 0 and 2 in known), "0, or more in 2-D"),
        ):
            value = getattr(self, name)
            require(name, value, value is None or fits(value), allowed)
        planes, patch, spacing = self.planes or (), self.patch, self.spacing_mm
        across = not (planes and patch) or patch[planes[0]] == 1
        require("planes", planes, across, "first the axis across the patch's slices")
        like = not (planes and spacing) or spacing[planes[0]] / spacing[planes[-1]]
        require("planes", planes, 1 / LIKE <= like <= LIKE, "of axes with like voxels")
        self.labels = self.labels and dict(sorted(self.labels.items()))

    @property
    def num_classes(self):
        """Number of classes, the background included."""
        return len(self.labels) + 1

    @property
    def input_shape(self):
        """Shape of one input of the network, channels last; three numbers if it is 2-D."""
        channels = self.channels * (2 * (self.neighbours or 0) + 1)
        return (*(n for n in self.patch if n > 1), channels)

    @property
    def flat_axis(self):
        """Axis in which patches are not turned: across slices, or of low resolution, or None."""
        if 1 in self.patch:
            return self.patch.index(1)
        return coarse_axis(self.spacing_mm)

    @property
    def sampling(self):
        """What patches need: a `unetseg.augmentation.Sampling`."""
        return Sampling(
            patch=self.patch,
            spacing_mm=self.spacing_mm,
            flat_axis=self.flat_axis,
            mirror_axes=self.mirror_axes,
            neighbours=self.neighbours or 0,
            planes=self.planes or (),
        )

    def fit(self, cases):
        """Choose what is not set.

        Parameters
        ----------
        cases : sequence of Case
            Read only if something is to be chosen, one in memory at a time.

        Returns
        -------
        Preprocessor
            Itself, with every setting filled in.

        Raises
        ------
        ValueError
            If a label is named ``ignore``: such voxels would be learnt as a structure.
        """
        refuse_ignored(self.labels or {}, "Preprocessor(labels=...):")
        if None not in [getattr(self, field.name) for field in fields(self)]:
            return self
        require("cases", cases, len(cases), "at least one")
        facts = [self._describe(case) for case in cases]
        if self.empty_space is None:
            self.empty_space = choose_empty_space(facts)
        if self.least_contrast is None:
            self.least_contrast = choose_least_contrast(facts)
        shapes = np.array([fact["shape"] for fact in facts])
        spacings = np.array([fact["spacing_mm"] for fact in facts])
        if self.spacing_mm is None:
            self.spacing_mm = choose_spacing(np.median(shapes, axis=0), spacings)
        extent = np.median(spacings * shapes, axis=0)
        shape = np.maximum(1, np.round(extent / self.spacing_mm)).astype(int)
        across = self.planes[0] if self.planes else 2 - int(np.argmax(self.spacing_mm[::-1]))
        if self.dimensions is None:
            coarse = coarse_axis(self.spacing_mm)
            few = 1 in shape or (coarse is not None and shape[coarse] < FEW_SLICES)
            flat = 1 in self.patch if self.patch else few or self.planes or self.neighbours
            self.dimensions = 2 if flat else 3
        sizes = shape.copy()
        if self.patch is None:
            if self.dimensions == 2 and 1 not in shape:
                shape[across] = 1
            self.patch = _choose_patch(shape, self.spacing_mm)
        if self.labels is None:
            values = set().union(*(fact["sides"] for fact in facts))
            self.labels = {value: f"label {value}" for value in sorted(values)}
        if self.channels is None:
            self.channels = facts[0]["channels"]
        if self.normalisation is None:
            self.normalisation = choose_normalisation(facts)
        if self.mirror_axes is None:
            self.mirror_axes = self._choose_mirror_axes([fact["sides"] for fact in facts])
        self._fill_in_slices(sizes)
        self.__post_init__()
        return self

    def _fill_in_slices(self, sizes):
        several = self.dimensions == 2 and sizes[self.patch.index(1)] > 1
        if self.neighbours is None:
            self.neighbours = 2 if several else 0
        if self.planes is None:
            self.planes = self._choose_planes(sizes, several)

    def _choose_mirror_axes(self, sides):
        offsets = [[of[label] for of in sides if label in of] for label in self.labels]
        known = [abs(np.mean(each)) for each in offsets if each]
        mirrored = known and max(known) < SIDED and self.patch[0] > 1
        return (0,) if mirrored else ()

    def _choose_planes(self, sizes, several):
        if self.dimensions == 3:
            return ()
        flat, spacing = self.patch.index(1), np.array(self.spacing_mm)
        ratio = np.maximum(spacing, spacing[flat]) / np.minimum(spacing, spacing[flat])
        alike = (ratio <= LIKE) & (np.array(self.patch) > 1)
        change = np.where(alike, abs(np.array(self.patch) - sizes[flat]), np.inf)
        return (flat, int(change.argmin())) if several and alike.any() else (flat,)

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
        x, _, (box, shape, padding) = self._transform_image(case)
        if case.mask is None:
            return x, None
        mask, _ = nifti.load_mask(case.mask)
        unknown = set(np.unique(mask).tolist()) - {0, *self.labels}
        if unknown:
            problem = f"holds label {sorted(unknown)}; declared: {list(self.labels)}"
            raise ValueError(f"{case.mask}: {problem}. Correct the mask or declare the label.")
        return x, np.pad(zoom_labels(mask[box], shape, self.labels), padding)

    def transform_scan(self, case):
        """Bring a scan to the network's grid, and tell where there is nothing to segment.

        Parameters
        ----------
        case : Case
            Its mask is not looked at.

        Returns
        -------
        x : (x, y, z, channel) ndarray of float32
            As `transform` returns it.
        void : (x, y, z) ndarray of bool
            Background for certain: where hardly any voxel around has signal
            (`unetseg.body.find_void`), or where it varies less than ``least_contrast``. Nowhere
            unless ``empty_space`` is ``background``.
        """
        x, inside, _ = self._transform_image(case)
        if self.empty_space != "background":
            return x, np.zeros(inside.shape, bool)
        void = find_void(inside, self.spacing_mm)
        if self.least_contrast:
            void |= measure_contrast(x, inside, self.spacing_mm) < self.least_contrast
        return x, void

    def _transform_image(self, case):
        image, affine = self._load(case)
        body, backgrounds = self._find_body(image, affine)
        box, shape, padding = geometry = self._geometry(body, affine)
        inside = zoom(body[box].astype(np.float32), shape) > 0
        resampled = [zoom(channel, shape) for channel in np.moveaxis(image[box], -1, 0)]
        channels = [self._normalise(channel, inside, padding) for channel in resampled]
        unknown = None in backgrounds  # then what lies beyond the scan is
        inside = np.pad(inside, padding, constant_values=unknown)
        return np.stack(channels, axis=-1), inside, geometry

    def place(self, case):
        """Find where the network's grid lies on the native one; reads the images.

        Parameters
        ----------
        case : Case

        Returns
        -------
        unetseg.grids.Place
        """
        image, affine = self._load(case)
        body, _ = self._find_body(image, affine)
        box, shape, padding = self._geometry(body, affine)
        native = [part.indices(n)[:2] for part, n in zip(box, image.shape, strict=False)]
        inner = [(before, before + n) for (before, _), n in zip(padding, shape, strict=True)]
        grids = ([slice(*ends) for ends in grid] for grid in (native, inner))
        return Place(image.shape[:3], *map(tuple, grids))

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
        place = self.place(case)
        native = np.zeros((*place.shape, probabilities.shape[-1]), np.float32)
        native[..., 0] = 1
        for k in range(probabilities.shape[-1]):
            native[(*place.box, k)] = zoom(probabilities[(*place.inner, k)], place.box_shape)
        return native

    def inverse_transform(self, probabilities, case):
        """Bring class probabilities back to the native grid as labels.

        One class after the other, so that no second map of all classes is made.

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
        maps = (probabilities[..., k] for k in range(probabilities.shape[-1]))
        return self._restore_labels(maps, case)

    def restore_labels(self, classes, case):
        """Bring class numbers back to the native grid as labels.

        Parameters
        ----------
        classes : (x, y, z) ndarray of integers
            On the grid of `transform`, as it returns them.
        case : Case

        Returns
        -------
        (x, y, z) ndarray of int32
            As of `inverse_transform` with certain probabilities, without the memory for them.
        """
        maps = ((classes == k).astype(np.float32) for k in range(self.num_classes))
        return self._restore_labels(maps, case)

    def _restore_labels(self, maps, case):
        place = self.place(case)
        labels = np.zeros(place.shape, np.int32)
        inside = labels[place.box]
        best = np.full(place.box_shape, -np.inf, np.float32)
        for value, one in zip((0, *self.labels), maps, strict=True):
            native = zoom(one[place.inner], place.box_shape)
            inside[native > best] = value
            np.maximum(best, native, out=best)
        return labels

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
        if trained and (there := Preprocessor.load(path)) != self:
            problem = f"trained with other preprocessing:\n  {there} there,\n  {self} now"
            advice = "Set these (PATCH follows the hardware if not set), or rename EXPERIMENT."
            raise ValueError(f"{path}: the models in this folder were {problem}. {advice}")
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path):
        """Load the settings that `save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it does not hold such settings.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. Run 01_load_data first.")
        settings = {**OLDER, **read_json(path, "preprocessor.json")}
        if settings["labels"]:
            settings["labels"] = {int(value): name for value, name in settings["labels"].items()}
        return cls(**settings)

    def _load(self, case):
        image, affine = nifti.load_image(case.image)
        image = image if image.ndim == 4 else image[..., None]
        if image.shape[3] != self.channels:
            problem = f"{image.shape[3]} channels, the network has {self.channels}"
            raise ValueError(f"{case.image}: {problem}. Give every scan the same channels.")
        return image, affine

    def _find_body(self, image, affine):
        if self.empty_space == "zero":
            return image.any(axis=-1), [None] * image.shape[3]
        body, backgrounds = find_body(image)
        if self.empty_space == "background":  # then single voxels in the air are nothing either
            body &= ~find_void(body, voxel_sizes(affine))
        return body, backgrounds

    def _geometry(self, body, affine):
        # The box of the body, its shape at the common spacing, and the padding around it.
        box = find_box(body)
        extent = body[box].shape * voxel_sizes(affine)
        shape = np.maximum(1, np.round(extent / self.spacing_mm)).astype(int)
        least = np.array(self.patch)
        for axis in (self.planes or ())[1:]:
            least[self.flat_axis] = least[axis]  # or a slice across the other would be too small
        missing = np.maximum(0, least - shape)
        return box, tuple(shape), [(m // 2, m - m // 2) for m in missing.tolist()]

    def _normalise(self, channel, inside, padding):
        low, scale = self._measure(channel, inside)
        return np.pad(((channel - low) / scale).astype(np.float32), padding)

    def _measure(self, channel, inside):
        # What is taken away from a channel, and what the rest is divided by: of the body, or of
        # all there is if the body has one value alone. Without any signal all becomes 0.
        if self.normalisation == "none":
            return 0, 1
        for voxels in (channel[inside], channel):
            if not voxels.size:
                continue
            low, scale = self._measure_voxels(voxels)
            if scale > PRECISION * abs(low):
                return low, scale
        return low, np.inf

    def _measure_voxels(self, voxels):
        if self.normalisation == "zscore":
            return voxels.mean(), voxels.std()
        low, high = np.percentile(voxels, (1, 99))
        if low == high:
            low, high = voxels.min(), voxels.max()
        return low, high - low

    def _describe(self, case):
        image, affine = nifti.load_image(case.image)
        image = image if image.ndim == 4 else image[..., None]
        body, _ = self._find_body(image, affine)
        mask = nifti.load_mask(case.mask)[0] if case.mask else None
        return describe_case(image, mask, body, voxel_sizes(affine))


def _choose_patch(shape, spacing_mm):
    multiple = 2 ** np.clip(np.log2(np.maximum(shape, 4) / 4).astype(int), 0, 3)
    patch = -(-shape // multiple) * multiple
    shortest, budget = np.minimum(patch, 8), patch_budget()
    while np.prod(patch) > budget:
        axis = np.argmax(np.where(patch - multiple >= shortest, patch * spacing_mm, 0))
        patch[axis] -= multiple[axis]
    return tuple(patch.tolist())


def patch_budget():
    """Voxels that a patch may have on this hardware: speed limits a processor, memory a GPU."""
    machine = describe_hardware()
    from unetseg.run.devices import computes_on_gpu

    gpu = machine["gpu"] and computes_on_gpu()
    memory, most = ("gpu_memory_gb", GPU_PATCH_VOXELS) if gpu else ("memory_gb", CPU_PATCH_VOXELS)
    return min(int(machine[memory] * 1e9 / 2 / BYTES_PER_VOXEL), most)
