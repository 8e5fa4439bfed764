"""Random patches: image and mask are moved together, the image's intensities changed."""

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from unetseg.interpolation import sample_affine
from unetseg.orientation import USUAL_DEG

# All at a strength of 1, to which they are in proportion.
SCALING = 0.3  # of the logarithm of the size, to both sides: from 0.74 to 1.35
STRETCHING = 0.1  # the same, of each axis by itself
MOVED = 0.8  # probability of a rotation with scaling
CHANGED = 0.3  # probability of each change of intensity


@dataclass(frozen=True)
class Sampling:
    """What patches of a data set are like; `Preprocessor.sampling` gives it.

    Parameters
    ----------
    patch : tuple of 3 int
        Shape of a patch; 1 for a slice across that axis.
    spacing_mm : tuple of 3 float
        Size of a voxel: patches are turned in mm.
    flat_axis : {0, 1, 2}, optional
        Axis that is neither turned nor scaled; for slices the one across them.
    mirror_axes : tuple of {0, 1, 2}
        Along each of these every other patch is mirrored.
    neighbours : int, default 0
        Slices on each side that come as further channels, for a patch of one slice.
    planes : tuple of {0, 1, 2}
        If there are two, every other patch is cut after these axes were swapped.
    rotation_deg : tuple of 3 float
        How far patches are turned about x, y and z, to both sides; of slices in two planes the
        number of the first plane's axis counts for both.
    strength : float, default 1
        In [0, 1]: how often and how much patches are turned, scaled and changed in intensity.
    unit : float, default 1
        About the standard deviation of intensities, in which brightness and noise are drawn.
    """

    patch: tuple
    spacing_mm: tuple = (1, 1, 1)
    flat_axis: int | None = None
    mirror_axes: tuple = ()
    neighbours: int = 0
    planes: tuple = ()
    rotation_deg: tuple = USUAL_DEG
    strength: float = 1.0
    unit: float = 1.0

    @property
    def across(self):
        """Axis that is neither turned nor scaled, or None."""
        return self.patch.index(1) if 1 in self.patch else self.flat_axis

    def swap(self):
        """For a volume whose axes were swapped, of two planes."""
        axes = self.swapped_axes
        return replace(
            self,
            spacing_mm=tuple(self.spacing_mm[axis] for axis in axes),
            mirror_axes=tuple(axes[axis] for axis in self.mirror_axes),
        )

    @property
    def swapped_axes(self):
        """Axes in their order after the two planes were swapped."""
        first, second = self.planes
        axes = [0, 1, 2]
        axes[first], axes[second] = second, first
        return axes


def random_patch(x, y, sampling, rng, *, centres=None, foreground=0.0, augment=True):
    """Cut a random patch, moved and changed at random.

    Parameters
    ----------
    x : (x, y, z, channel) ndarray of float32
        At least as large as the patch.
    y : (x, y, z) ndarray of uint8
        Class numbers.
    sampling : Sampling
    rng : numpy.random.Generator
        The only source of chance.
    centres : (n, 3) ndarray of int, optional
        Voxels to centre patches on. By default those of the foreground.
    foreground : float, default 0
        In [0, 1]: the probability that the patch is centred on one of `centres`, as far as it
        then stays inside the image.
    augment : bool, default True
        Whether to rotate and scale (in the plane of a slice), to mirror, and to change
        intensities (`change_intensity`).

    Returns
    -------
    x : (*patch, channel * (2 * neighbours + 1)) ndarray of float32
    y : patch-shaped ndarray of uint8
    """
    if len(sampling.planes) == 2 and rng.random() < 0.5:
        x, y = x.swapaxes(*sampling.planes), y.swapaxes(*sampling.planes)
        centres = None if centres is None else centres[:, sampling.swapped_axes]
        sampling = sampling.swap()
    start = _choose_start(y, sampling.patch, rng, centres, foreground)
    if 1 in sampling.patch:
        x, y, start = _cut_slice(x, y, sampling, start)
    if not augment:
        return _cut(x, y, sampling.patch, start)
    if rng.random() < MOVED * sampling.strength:
        turn = random_turn(rng, sampling)
        x, y = _cut_turned(x, y, sampling.patch, start, turn)
    else:
        x, y = _cut(x, y, sampling.patch, start)
    flips = [axis for axis in sampling.mirror_axes if rng.random() < 0.5]
    x, y = np.flip(x, flips), np.flip(y, flips)
    return change_intensity(x, rng, sampling), y


def _choose_start(y, patch, rng, centres, foreground):
    room = np.array(y.shape) - patch
    start = rng.integers(0, room + 1)
    if rng.random() >= foreground:
        return start
    centres = np.argwhere(y) if centres is None else centres
    if not len(centres):
        return start
    centre = centres[rng.integers(len(centres))]
    return np.clip(centre - np.array(patch) // 2, 0, room)


def _cut_slice(x, y, sampling, start):
    # The one slice that is wanted, its neighbours as channels; where the patch starts in it.
    axis, at = sampling.patch.index(1), start[sampling.patch.index(1)]
    low = max(0, at - sampling.neighbours)
    high = min(x.shape[axis], at + sampling.neighbours + 1)
    slab = add_neighbours(x.take(range(low, high), axis), axis, sampling.neighbours)
    start = np.where(np.arange(3) == axis, 0, start)
    return slab.take([at - low], axis), y.take([at], axis), start


def _cut(x, y, patch, start):
    box = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
    return np.array(x[box]), np.array(y[box])


def add_neighbours(x, axis, neighbours):
    """Give every slice the slices around it as further channels.

    Parameters
    ----------
    x : (x, y, z, channel) ndarray
    axis : {0, 1, 2}
        Across the slices.
    neighbours : int
        On each side; beyond the ends they are zero.

    Returns
    -------
    (x, y, z, channel * (2 * neighbours + 1)) ndarray
        Of each channel the slices from below to above.
    """
    return view_neighbours(x, axis, neighbours).reshape(*x.shape[:3], -1)


def view_neighbours(x, axis, neighbours):
    """Do as `add_neighbours` without copies of slices: (x, y, z, channel, 2 * neighbours + 1)."""
    room = [(neighbours * (n == axis),) * 2 for n in range(x.ndim)]
    padded = np.pad(x, room) if neighbours else x
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * neighbours + 1, axis)


def _cut_turned(x, y, patch, start, matrix):
    half = (np.array(patch) - 1) / 2
    offset = start + half - matrix @ half
    return sample_affine(x, y, patch, matrix, offset)


def random_turn(rng, sampling):
    """Draw a rotation with scaling, a little more along one axis than along another.

    Parameters
    ----------
    rng : numpy.random.Generator
    sampling : Sampling

    Returns
    -------
    (3, 3) ndarray of float64
        From offsets in the patch to offsets in the image, in voxels.
    """
    strength, across = sampling.strength, sampling.across
    angles = rng.uniform(-strength, strength, 3) * sampling.rotation_deg
    size = rng.uniform(-SCALING, SCALING)
    scales = np.exp(strength * (size + rng.uniform(-STRETCHING, STRETCHING, 3)))
    if across is not None:
        angles[np.arange(3) != across] = 0
        scales[across] = 1
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * scales
    spacing = np.array(sampling.spacing_mm)
    turn = turn * spacing / spacing[:, None]
    return turn.round(12)  # -4e-16 would lie outside the image


def change_intensity(x, rng, sampling):
    """Change intensities as scanners and coils differ: each change is drawn for itself.

    Blur, a smooth bias field, contrast, brightness, gamma (sometimes of the inverted image, its
    mean and standard deviation kept) and noise, about as in nnU-Net (Isensee et al. 2021).

    Parameters
    ----------
    x : (x, y, z, channel) ndarray of float32
        Normalised to about mean 0 and standard deviation 1.
    rng : numpy.random.Generator
    sampling : Sampling

    Returns
    -------
    ndarray of float32
        Of the same shape.
    """
    for change in (_blur, _shade, _change_contrast, _change_brightness, _change_gamma, _add_noise):
        if rng.random() < CHANGED * sampling.strength:
            x = change(x, rng, sampling)
    return x.astype(np.float32, copy=False)


def _blur(x, rng, sampling):
    spacing = np.array(sampling.spacing_mm)
    sigma = rng.uniform(0.5, 1.2) * sampling.strength * spacing.min() / spacing
    return ndimage.gaussian_filter(x, (*sigma, 0))


def _shade(x, rng, sampling):
    # A factor that is the exponential of a random polynomial of second degree.
    lines = [np.linspace(-1, 1, n, dtype=np.float32) for n in x.shape[:3]]
    places = np.meshgrid(*lines, sparse=True, indexing="ij")
    terms = [*places, *(a * b for a, b in combinations_with_replacement(places, 2))]
    weights = rng.normal(0, 0.25 * sampling.strength, len(terms)).astype(np.float32)
    field = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    low = x.min()
    return (x - low) * np.exp(field)[..., None] + low


def _change_contrast(x, rng, sampling):
    return x * _draw_factor(rng, 0.65, 1.5, sampling)


def _draw_factor(rng, least, most, sampling):
    return np.float32(rng.uniform(least, most) ** sampling.strength)


def _change_brightness(x, rng, sampling):
    return x + np.float32(rng.normal(0, 0.3 * sampling.strength * sampling.unit))


def _change_gamma(x, rng, sampling):
    sign = np.float32(-1 if rng.random() < 0.3 else 1)
    low, span = (sign * x).min(), max(np.ptp(x), 1e-6)
    changed = ((sign * x - low) / span) ** _draw_factor(rng, 0.6, 1.6, sampling)
    spread = max(changed.std(), 1e-6)
    return sign * (changed - changed.mean()) / spread * x.std() + x.mean()


def _add_noise(x, rng, sampling):
    most = np.float32(rng.uniform(0, 0.25 * sampling.strength * sampling.unit))
    return x + rng.standard_normal(x.shape, np.float32) * most
