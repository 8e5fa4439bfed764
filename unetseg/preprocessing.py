"""From a case on its native grid to the network's grid, and back."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from nibabel.affines import voxel_sizes

from unetseg import nifti, planning
from unetseg._base import refuse_any, require
from unetseg.annotation import IGNORED, drop_ignored, split_ignored
from unetseg.augmentation import Sampling
from unetseg.body import find_body, find_box, find_void, meet, widen
from unetseg.grids import Place, zoom, zoom_labels
from unetseg.orientation import USUAL_DEG
from unetseg.pieces import has_far_structures
from unetseg.planning import coarse_axis
from unetseg.prepared import Prepared
from unetseg.rules import check_settings
from unetseg.run.layout import Run, read_json, write_checked
from unetseg.run.machine import describe_hardware

TRIED = 20  # cases at which a limit is tried
FURTHER = 1.5  # times as far as in training pieces may lie apart
PRECISION = 1e-6  # of float32: what varies by less varies by rounding alone
# What files of version 0.1 do not tell.
OLDER = {
    "neighbours": 0,
    "planes": (),
    "empty_space": "zero",
    "least_contrast": 0.0,
    "coarse_mm": (),
    "margin": 0.0,
    "gap_mm": 0.0,
    "rotation_deg": USUAL_DEG,
    "assumed_mm": (),
    "strength": 0.5,
    "ignore": 0,
    "regions": {},
}


@dataclass(frozen=True)
class Preprocessor:
    """What is done to every case before the network, and undone after it.

    It does not change: every setting that is left at None is chosen by `fit`, which returns another
    one. The steps of `transform`: RAS+
    orientation, cropping to the box of the body, or of two looks to the region of the structures,
    resampling to the common spacing, normalisation, padding to at least the patch with 0, the mean.

    Parameters
    ----------
    spacing_mm : tuple of 3 float, optional
        Common voxel size along x, y, z. Chosen: the median over the cases; along an axis of low
        resolution (3 times coarser than the others, with 3 times fewer voxels) the 10th
        percentile, so that few scans lose slices (Isensee et al. 2021).
    patch : tuple of 3 int, optional
        Voxels that the network sees at once. A 1 makes a 2-D network whose slices lie across
        that axis. Chosen: the median shape, rounded up to what can be halved three times (short
        axes less often), cut along its longest side in mm to 100,000 voxels, or fewer where the
        memory of what computes bears no more.
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
        `Prepared.void`): a window without signal tells it nothing. Chosen: ``background``, but
        ``outside`` if a mask labels such space (more than 0.1 % of a label's voxels).
    least_contrast : float, optional
        With ``background``, the contrast (`unetseg.body.measure_contrast`) under which a voxel
        is background too, such as in the noise of air, which a network would amplify. Chosen:
        half of the least that a label had in training (of 99.9 % of its voxels); 0 without masks.
    coarse_mm : tuple of 3 float, optional
        Voxel size of a first look: the network sees the whole scan coarsely, and then the region
        of what it found there at `spacing_mm`; it is trained on patches of both kinds, and what
        it says is averaged (`unetseg.ensemble.count_first`). Empty for one look. Chosen: such that
        a patch holds 90 % of the scans, if without it a patch held less than 75 % of a scan and the
        box of some structure, with its margin, takes at most half of it
        (`unetseg.planning.choose_coarse_spacing` tells the exceptions); else one look.
    margin : float, optional
        Of the region around the structures, on each side, in sizes of their box. Chosen: 0.3.
    assumed_mm : tuple of 3 float, optional
        Voxel size that every scan is taken to have, along x, y, z; empty for its own. Chosen: the
        median, if `spacing_mm` is not given and structures are clearly more alike in voxels than
        in mm (`unetseg.planning.choose_assumed_spacing`); else its own.
    strength : float, optional
        Of the random changes of patches in training, in [0, 1]. Chosen: 1 in 2-D, and for up to
        60 cases with structures of various sizes; from 0.5 for others
        (`unetseg.planning.choose_strength`).
    ignore : int, optional
        Value in the masks of voxels that nobody drew, which are neither learnt nor scored; 0 for
        none. Chosen: that of the entry of `labels` that is named ``ignore``, which is then taken
        out of them.
    regions : dict of str to tuple of int, optional
        Names of sets of label values, nested or overlapping, such as ``{"whole tumour": (1, 2, 3),
        "core": (2, 3)}``: Dice in the loss is then of these, and they are scored beside the
        labels. Chosen: none.
    gap_mm : float, optional
        Between pieces of the structures, at most: what lies further from the rest at a first look
        is left out (`unetseg.pieces.find_far`); 0 for no such limit. Chosen: what nine of ten
        cases do not exceed, at least a voxel, but no limit for one look, less than 10 masks or
        scattered pieces (`unetseg.planning.choose_gap`), or if of more than a tenth of the masks,
        as coarse as at a first look, it would take more than stray pieces.
    rotation_deg : tuple of 3 float, optional
        By which patches are turned in training about x, y and z at a strength of 1, to both sides.
        Chosen: 15, 15 and 30, but more about an axis about which the labels lie turned further
        from case to case (`unetseg.orientation.choose_rotation`).
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
    coarse_mm: tuple | None = None
    margin: float | None = None
    assumed_mm: tuple | None = None
    strength: float | None = None
    ignore: int | None = None
    regions: dict | None = None
    gap_mm: float | None = None
    rotation_deg: tuple | None = None

    def __post_init__(self):
        """Check the settings."""
        for name, value in vars(self).items():
            if np.iterable(value) and not isinstance(value, str | dict):
                object.__setattr__(self, name, tuple(value))
        if self.regions:
            regions = {name: tuple(values) for name, values in self.regions.items()}
            object.__setattr__(self, "regions", regions)
        check_settings(self)
        if self.labels:
            labels, ignore = split_ignored(self.labels)
            object.__setattr__(self, "labels", dict(sorted(labels.items())) or None)
            object.__setattr__(self, "ignore", ignore or self.ignore)

    @property
    def is_complete(self):
        """Whether every setting is given or chosen."""
        return None not in [getattr(self, field.name) for field in fields(self)]

    @property
    def num_classes(self):
        """Number of classes, the background included."""
        return len(self.labels) + 1

    @property
    def unions(self):
        """Regions of several labels, numbered after the labels: name and values by number."""
        several = [item for item in (self.regions or {}).items() if len(item[1]) > 1]
        return dict(enumerate(several, max(self.labels) + 1))

    @property
    def targets(self):
        """What is scored: labels by value, and `unions` by number, with their names."""
        return {**self.labels, **{number: name for number, (name, _) in self.unions.items()}}

    @property
    def members(self):
        """Which classes make up which region: (class, region) ndarray of float32, or None."""
        if not self.regions:
            return None
        values = [0, *self.labels]
        sets = [np.isin(values, of_region) for of_region in self.regions.values()]
        return np.transpose(sets).astype(np.float32)

    @property
    def input_shape(self):
        """Shape of one input of the network, channels last; three numbers if it is 2-D."""
        channels = self.channels * (2 * self.sampling.neighbours + 1)
        return (*(n for n in self.patch if n > 1), channels)

    @property
    def coarse(self):
        """What is done to a case before the first look at it, or None if there is one look."""
        if not self.coarse_mm:
            return None
        plane = self.planes and self.planes[:1]  # voxels need not be alike in another one
        return replace(self, spacing_mm=self.coarse_mm, coarse_mm=(), planes=plane)

    @property
    def reach_mm(self):
        """How far what was found at a first look may lie from the rest, 0 for no limit.

        Half as far again as `gap_mm`, and one of its voxels, as it sees no finer.
        """
        if not self.gap_mm:
            return 0.0
        return FURTHER * self.gap_mm + float(np.median(self.coarse_mm or self.spacing_mm))

    @property
    def flat_axis(self):
        """Axis in which patches are not turned: across slices, or of low resolution, or None."""
        if 1 in self.patch:
            return self.patch.index(1)
        return coarse_axis(self.spacing_mm)

    @property
    def sampling(self):
        """What patches need; mirroring, neighbours and planes that nobody chose count as none."""
        return Sampling(
            patch=self.patch,
            spacing_mm=self.spacing_mm,
            flat_axis=self.flat_axis,
            mirror_axes=self.mirror_axes or (),
            neighbours=self.neighbours or 0,
            planes=self.planes or (),
            strength=1.0 if self.strength is None else self.strength,
            rotation_deg=self.rotation_deg or USUAL_DEG,
            unit=0.25 if self.normalisation == "percentile" else 1.0,
        )

    def fit(self, cases, *, facts=None, patch_voxels=None):
        """Choose what is not set.

        Parameters
        ----------
        cases : sequence of Case
            Read only if something is to be chosen, one in memory at a time.
        facts : list of dict, optional
            What `describe` told of each case, if they were read before; else they are read.
        patch_voxels : int, optional
            That a patch may have; by default what this machine bears (`patch_budget`).

        Returns
        -------
        Preprocessor
            With every setting filled in.
        """
        if self.is_complete:
            return self
        require("cases", cases, len(cases), "at least one")
        facts = facts or [self._read_facts(case) for case in cases]
        chosen = Preprocessor(**planning.plan(self, facts, patch_voxels or patch_budget()))
        return chosen._try_gap(cases) if self.gap_mm is None else chosen

    def take_spacing(self, spacing_mm):
        """Tell the voxel size that a scan is taken to have: its own, unless one is assumed."""
        return self.assumed_mm or tuple(spacing_mm)

    def describe(self, image, affine, mask=None):
        """Tell the facts of a case that settings are chosen from.

        Parameters
        ----------
        image : (x, y, z) or (x, y, z, channel) ndarray
        affine : (4, 4) ndarray
        mask : (x, y, z) ndarray of int32, optional

        Returns
        -------
        dict
            As `unetseg.planning.describe_case`.
        """
        image = _with_channels(image)
        body, _ = self._find_body(image, affine)
        margin = planning.MARGIN if self.margin is None else self.margin
        mask = None if mask is None else drop_ignored(mask, self.ignore)
        return planning.describe_case(image, mask, body, voxel_sizes(affine), margin)

    def _try_gap(self, cases):
        # No limit if it would take structures from the masks of more than a tenth of the cases.
        drawn = [case for case in cases if case.mask]
        if not self.gap_mm or not drawn:
            return self
        first, few = self.coarse, drawn[:: math.ceil(len(drawn) / TRIED)]
        tried = (first.prepare(case, with_mask=True) for case in few)
        limits = first.reach_mm, first.spacing_mm, first.flat_axis
        taken = [has_far_structures(one.y[one.place.inner], *limits) for one in tried]
        return replace(self, gap_mm=0.0) if np.mean(taken) > planning.RARE else self

    def _read_facts(self, case):
        mask = nifti.load_mask(case.mask)[0] if case.mask else None
        return self.describe(*nifti.load_image(case.image), mask)

    def transform(self, case):
        """Bring a case to the network's grid; of two looks to that of training's second one.

        So only where its mask is, if it has one: for predictions see
        `unetseg.prediction.prepare_case`, which does not look at the mask.

        Parameters
        ----------
        case : Case

        Returns
        -------
        x : (x, y, z, channel) ndarray of float32
            At least as large as the patch.
        y : (x, y, z) ndarray of uint8, or None without a mask
            Class numbers: 0 is the background, k the k-th label, 255 what nobody drew.

        Raises
        ------
        ValueError
            If a file cannot be read, the number of channels is another, or the mask holds a
            value that is not among the labels.
        """
        prepared = self.prepare(case, with_mask=True)
        return prepared.x, prepared.y

    def prepare(self, case, *, with_mask=False, loaded=None, region=None):
        """Bring a case to the network's grid, with all that its prediction needs.

        Parameters
        ----------
        case : Case
        with_mask : bool, default False
            Whether to bring its mask too.
        loaded : tuple of image and affine, optional
            What `unetseg.nifti.load_image` returned, if it is at hand; else the scan is read.
        region : tuple of 3 slice, optional
            Part of the native grid beyond which is background for certain. By default the scan is
            taken whole; of two looks with `with_mask` the region of what the mask labels.

        Returns
        -------
        Prepared

        Raises
        ------
        ValueError
            As for `transform`.
        """
        image, affine = self._load(case, loaded)
        body, backgrounds = self._find_body(image, affine)
        mask = nifti.load_mask(case.mask)[0] if with_mask and case.mask else None
        if region is None:
            region = self._region_of(mask)
        box, shape, padding = geometry = self._geometry(body, affine, region)
        inside = zoom(body[box].astype(np.float32), shape) > 0
        channels = []
        for channel in np.moveaxis(image[box], -1, 0):
            normalised = self._normalise(zoom(channel, shape), inside)
            channels.append(np.pad(normalised, padding))
        # Where some channel has no background what lies beyond the scan counts as body.
        inside = np.pad(inside, padding, constant_values=None in backgrounds)
        y = None
        if mask is not None:
            y = self._transform_mask(mask, case.mask, *geometry)
        place = _find_place(image.shape[:3], *geometry)
        return Prepared(np.stack(channels, axis=-1), y, place, inside, self)

    def _region_of(self, mask):
        # Of a second look: the box of the structures with its margin.
        if mask is None or not self.coarse_mm:
            return None
        drawn = drop_ignored(mask, self.ignore) != 0
        return widen(find_box(drawn), self.margin, mask.shape) if drawn.any() else None

    def _transform_mask(self, mask, path, box, shape, padding):
        unknown = set(np.unique(mask).tolist()) - {0, self.ignore, *self.labels}
        if unknown:
            problem = f"holds label {sorted(unknown)}; declared: {list(self.labels)}"
            raise ValueError(f"{path}: {problem}. Correct the mask or declare the label.")
        ignored = [self.ignore] if self.ignore else []
        classes = zoom_labels(mask[box], shape, [*self.labels, *ignored])
        classes[classes > len(self.labels)] = IGNORED
        return np.pad(classes, padding)

    def place(self, case):
        """Find where the network's grid of `transform` lies on the native one; reads the files.

        Parameters
        ----------
        case : Case

        Returns
        -------
        unetseg.grids.Place
        """
        image, affine = self._load(case)
        body, _ = self._find_body(image, affine)
        looked = case.mask and self.coarse_mm  # else the mask tells nothing
        region = self._region_of(nifti.load_mask(case.mask)[0]) if looked else None
        return _find_place(image.shape[:3], *self._geometry(body, affine, region))

    def restore(self, probabilities, case, *, place=None):
        """Bring class probabilities back to the case's native grid.

        Parameters
        ----------
        probabilities : (x, y, z, class) ndarray of float
            On the grid of `transform`.
        case : Case
        place : unetseg.grids.Place, optional
            Of the case, if it is at hand; else the scan is read.

        Returns
        -------
        (x, y, z, class) ndarray of float32
            In RAS+ on the native grid; certain background where `transform` cropped.
        """
        place = place or self.place(case)
        native = np.zeros((*place.shape, probabilities.shape[-1]), np.float32)
        native[..., 0] = 1
        for k in range(probabilities.shape[-1]):
            native[(*place.box, k)] = zoom(probabilities[(*place.inner, k)], place.box_shape)
        return native

    def inverse_transform(self, probabilities, case, *, place=None):
        """Bring class probabilities back to the native grid as labels.

        One class after the other, so that no second map of all classes is made.

        Parameters
        ----------
        probabilities, case, place
            As for `restore`.

        Returns
        -------
        (x, y, z) ndarray of int32
            In RAS+ on the native grid, the user's own label values.
        """
        maps = (probabilities[..., k] for k in range(probabilities.shape[-1]))
        return self._restore_labels(maps, place or self.place(case))

    def restore_labels(self, classes, case, *, place=None):
        """Bring class numbers back to the native grid as labels.

        Parameters
        ----------
        classes : (x, y, z) ndarray of integers
            On the grid of `transform`, as it returns them.
        case, place
            As for `restore`.

        Returns
        -------
        (x, y, z) ndarray of int32
            As of `inverse_transform` with certain probabilities, without the memory for them.
        """
        maps = ((classes == k).astype(np.float32) for k in range(self.num_classes))
        return self._restore_labels(maps, place or self.place(case))

    def _restore_labels(self, maps, place):
        labels = np.zeros(place.shape, np.int32)
        inside = labels[place.box]
        best = np.full(place.box_shape, -np.inf, np.float32)
        for value, class_map in zip((0, *self.labels), maps, strict=True):
            native = zoom(class_map[place.inner], place.box_shape)
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
        path = Path(path)
        trained = Run(path.parent).experiment.exists() and path.exists()
        if trained and (there := Preprocessor.load(path)) != self:
            problem = f"trained with other preprocessing:\n  {there} there,\n  {self} now"
            advice = "Set these, rename EXPERIMENT, or go on with notebook 02, which takes what is "
            advice += "there."
            raise ValueError(f"{path}: the models in this folder were {problem}. {advice}")
        write_checked(path, asdict(self))

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
        settings = {**OLDER, **read_json(path, Run("").preprocessor.name)}
        if settings["labels"]:
            settings["labels"] = {int(value): name for value, name in settings["labels"].items()}
        return cls(**settings)

    def _load(self, case, loaded=None):
        self._refuse_incomplete()
        image, affine = loaded or nifti.load_image(case.image)
        image = _with_channels(image)
        if image.shape[3] != self.channels:
            problem = f"{image.shape[3]} channels, the network has {self.channels}"
            raise ValueError(f"{case.image}: {problem}. Give every scan the same channels.")
        return image, affine

    def _refuse_incomplete(self):
        needed = ("spacing_mm", "patch", "labels", "channels", "normalisation")
        needed += ("margin",) if self.coarse_mm else ()
        missing = [name for name in needed if getattr(self, name) is None]
        advice = "Use what fit(cases) returns."
        refuse_any(missing, "Preprocessor:", "settings are not chosen yet", advice)

    def _find_body(self, image, affine):
        if self.empty_space == "zero":
            return image.any(axis=-1), [None] * image.shape[3]
        body, backgrounds = find_body(image)
        if self.empty_space == "background":  # then single voxels in the air are nothing either
            body &= ~find_void(body, voxel_sizes(affine))
        return body, backgrounds

    def _geometry(self, body, affine, region=None):
        # The box of the body, its shape at the common spacing, and the padding around it.
        box = find_box(body)
        if region:
            box = meet(box, region)
        extent = np.multiply(body[box].shape, self.take_spacing(voxel_sizes(affine)))
        shape = np.maximum(1, np.round(extent / self.spacing_mm)).astype(int)
        least = np.array(self.patch)
        for axis in self.sampling.planes[1:]:
            least[self.flat_axis] = least[axis]  # or a slice across the other would be too small
        missing = np.maximum(0, least - shape)
        return box, tuple(shape), [(m // 2, m - m // 2) for m in missing.tolist()]

    def _normalise(self, channel, inside):
        low, scale = self._measure(channel, inside)
        return ((channel - low) / scale).astype(np.float32)

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


def _with_channels(image):
    return image if image.ndim == 4 else image[..., None]


def _find_place(native_shape, box, shape, padding):
    native = [part.indices(n)[:2] for part, n in zip(box, native_shape, strict=True)]
    inner = [(before, before + n) for (before, _), n in zip(padding, shape, strict=True)]
    grids = ([slice(*ends) for ends in grid] for grid in (native, inner))
    return Place(native_shape, *map(tuple, grids))


def patch_budget():
    """Voxels that a patch may have on this machine.

    Returns
    -------
    int
        By `unetseg.planning.limit_patch`: of the memory of the GPU, if Keras computes on one.
    """
    machine = describe_hardware()
    if machine["gpu"]:
        from unetseg.run.devices import computes_on_gpu  # here, as Keras takes seconds

        if computes_on_gpu():
            return planning.limit_patch(machine["gpu_memory_gb"])
    return planning.limit_patch(machine["memory_gb"])
