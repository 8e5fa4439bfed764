"""Random patches: image and mask are moved together, the image's intensities changed."""

import hashlib
import json
import uuid
from dataclasses import asdict

import keras
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from unetseg import __version__, disk
from unetseg.provenance import describe_inputs, list_hashes, refuse_changed_meanwhile

ROTATION_DEG = 15  # heads and hippocampi lie within this of each other in a scanner
CENTRES = 1000  # foreground voxels kept per class, to centre patches on
SCALING = 0.15  # linear size, plus or minus
# Of a rotation with scaling, and of each change of intensity; slices, which are many and alike,
# are learnt by heart sooner than volumes.
PROBABILITY = {2: 0.8, 3: 0.3}


def random_patch(
    x,
    y,
    patch,
    rng,
    *,
    centres=None,
    spacing_mm=(1, 1, 1),
    flat_axis=None,
    mirror_axes=(),
    foreground=0.0,
    neighbours=0,
    planes=(),
    augment=True,
):
    """Cut a random patch, moved and changed at random.

    Parameters
    ----------
    x : (x, y, z, channel) ndarray of float32
        At least as large as the patch.
    y : (x, y, z) ndarray of uint8
        Class numbers.
    patch : tuple of 3 int
        Shape of the patch; 1 for a slice across that axis.
    rng : numpy.random.Generator
        The only source of chance.
    centres : (n, 3) ndarray of int, optional
        Voxels to centre patches on. By default those of the foreground.
    spacing_mm : tuple of 3 float
        Size of a voxel: patches are turned in mm.
    flat_axis : {0, 1, 2}, optional
        Axis that is neither turned nor scaled; for slices the one across them.
    mirror_axes : iterable of {0, 1, 2}
        Along each of these every other patch is mirrored.
    foreground : float, default 0
        In [0, 1]: the probability that the patch is centred on one of `centres`, as far as it
        then stays inside the image.
    neighbours : int, default 0
        Slices on each side that come as further channels, for a patch of one slice.
    planes : tuple of {0, 1, 2}
        If there are two, every other patch is cut after these axes were swapped.
    augment : bool, default True
        Whether to rotate and scale (in the plane of a slice), to mirror, and to change
        brightness, contrast, gamma and noise.

    Returns
    -------
    x : (*patch, channel * (2 * neighbours + 1)) ndarray of float32
    y : patch-shaped ndarray of uint8
    """
    if len(planes) == 2 and rng.random() < 0.5:
        swapped = [dict(zip(planes, planes[::-1], strict=True)).get(n, n) for n in range(3)]
        x, y = x.swapaxes(*planes), y.swapaxes(*planes)
        centres = None if centres is None else centres[:, swapped]
        mirror_axes = [swapped[axis] for axis in mirror_axes]
        spacing_mm = [spacing_mm[axis] for axis in swapped]
    room = np.array(y.shape) - patch
    start = rng.integers(0, room + 1)
    if rng.random() < foreground:
        centres = np.argwhere(y) if centres is None else centres
        if len(centres):
            centre = centres[rng.integers(len(centres))]
            start = np.clip(centre - np.array(patch) // 2, 0, room)
    if neighbours:
        axis = patch.index(1)
        low = max(0, start[axis] - neighbours)
        slab = x.take(range(low, min(x.shape[axis], start[axis] + neighbours + 1)), axis)
        x = add_neighbours(slab, axis, neighbours).take([start[axis] - low], axis)
        y = y.take([start[axis]], axis)
        start[axis] = 0
    probability = PROBABILITY[2 if 1 in patch else 3]
    if augment and rng.random() < probability:
        across = patch.index(1) if 1 in patch else flat_axis
        x, y = _cut_turned(x, y, patch, start, random_turn(rng, spacing_mm, across=across))
    else:
        box = tuple(slice(a, a + n) for a, n in zip(start, patch, strict=True))
        x, y = np.array(x[box]), np.array(y[box])
    if not augment:
        return x, y
    flips = [axis for axis in mirror_axes if rng.random() < 0.5]
    return change_intensity(np.flip(x, flips), rng, probability), np.flip(y, flips)


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
    kwargs = {"matrix": matrix, "offset": offset, "output_shape": tuple(patch)}
    channels = [ndimage.affine_transform(x[..., c], order=1, **kwargs) for c in range(x.shape[-1])]
    return np.stack(channels, axis=-1), ndimage.affine_transform(y, order=0, **kwargs)


def random_turn(rng, spacing_mm=(1, 1, 1), *, across=None):
    """Draw a rotation with scaling.

    Parameters
    ----------
    rng : numpy.random.Generator
    spacing_mm : tuple of 3 float
        Size of a voxel.
    across : {0, 1, 2}, optional
        The axis that stays as it is, for slices across it.

    Returns
    -------
    (3, 3) ndarray of float64
        From offsets in the patch to offsets in the image, in voxels.
    """
    angles = rng.uniform(-ROTATION_DEG, ROTATION_DEG, 3)
    scales = np.full(3, 1 + rng.uniform(-SCALING, SCALING))
    if across is not None:
        angles[np.arange(3) != across] = 0
        scales[across] = 1
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() * scales
    turn = turn * np.array(spacing_mm) / np.array(spacing_mm)[:, None]
    return turn.round(12)  # -4e-16 would lie outside the image


def change_intensity(x, rng, probability):
    """Change brightness, contrast, gamma and noise, each with some probability.

    Parameters
    ----------
    x : (..., channel) ndarray of float32
        Normalised to about mean 0 and standard deviation 1.
    rng : numpy.random.Generator
    probability : float
        Of each of the changes.

    Returns
    -------
    ndarray of float32
        Of the same shape.
    """
    if rng.random() < probability:
        x = x * np.float32(rng.uniform(0.75, 1.25)) + np.float32(rng.normal(0, 0.1))
    if rng.random() < probability:
        low, span = x.min(), max(np.ptp(x), 1e-6)
        x = ((x - low) / span) ** np.float32(rng.uniform(0.7, 1.5)) * span + low
    if rng.random() < probability:
        x = x + rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(0, 0.15))
    return x.astype(np.float32, copy=False)


class CachedCases:
    """Preprocessed cases on the local disk, opened by memory map each time one is asked for.

    So memory does not grow with their number. An item is a tuple of ``x`` and ``y`` as
    `Preprocessor.transform` returns them, and ``centres``, an (n, 3) int array of foreground
    voxels, equally many of every class that the case holds.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    cases : sequence of Case
        With masks.
    folder : Path
        What is there already of the same files and preprocessing is not computed again: names
        hold a hash of both.

    Raises
    ------
    ValueError
        If a file is changed while it is read.
    """

    def __init__(self, preprocessor, cases, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.paths = []
        for case in cases:
            inputs = describe_inputs([case])
            key = _hash_key(preprocessor, inputs)
            paths = [folder / f"{case.id}.{key}.{part}.npy" for part in "xyc"]
            if not all(path.exists() for path in paths):
                x, y = preprocessor.transform(case)
                refuse_changed_meanwhile(inputs, [case])
                for path, array in zip(paths, (x, y, _choose_centres(y)), strict=True):
                    part = path.with_suffix(f".{uuid.uuid4().hex}.npy")  # of this process alone
                    with disk.explain_full(folder, "preprocessed cases", disk.TEMPORARY):
                        np.save(part, array)
                    part.replace(path)
            self.paths.append(paths)

    def __len__(self):
        """Return the number of cases."""
        return len(self.paths)

    def __getitem__(self, index):
        """Open a case."""
        return tuple(np.load(path, mmap_mode="r") for path in self.paths[index])


def _hash_key(preprocessor, inputs):
    about = [__version__, asdict(preprocessor), list_hashes(inputs)]
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()[:16]


def _choose_centres(y):
    rng = np.random.default_rng(0)
    places = [np.argwhere(y == value) for value in np.unique(y[y != 0])]
    draws = [place[rng.integers(len(place), size=CENTRES)] for place in places]
    return np.concatenate(draws) if draws else np.empty((0, 3), int)


class Patches(keras.utils.PyDataset):
    """Endless batches of random patches; their number and the seed alone decide what is in one.

    Parameters
    ----------
    cases : sequence of (x, y) or (x, y, centres)
        Preprocessed cases, as for `random_patch`; such as `CachedCases`.
    patch : tuple of 3 int
        Shape of the patches; 1 for slices across that axis.
    batch_size : int
    seed : int
    start : int, default 0
        Number of batches to leave out, which an interrupted training has had.
    repeat_after : int, optional
        Number of batches after which the same ones come again.
    **chance
        As for `random_patch`; of any number of patches in a row the share `foreground`, rounded,
        is centred on the foreground.
    """

    num_batches = None

    def __init__(self, cases, patch, batch_size, seed, *, start=0, repeat_after=None, **chance):
        super().__init__()
        self.cases, self.patch, self.batch_size, self.seed = cases, patch, batch_size, seed
        self.start, self.repeat_after, self.chance = start, repeat_after, chance

    def __getitem__(self, index):
        """Batch ``index``: x (batch, ..., channel) float32 and y (batch, ..., 1) uint8.

        Every case comes once before any comes again.
        """
        index += self.start
        index = index % self.repeat_after if self.repeat_after else index
        rng = np.random.default_rng([self.seed, index])
        flat = [n for n in self.patch if n > 1]
        batch_x, batch_y = [], []
        for place in range(index * self.batch_size, (index + 1) * self.batch_size):
            turn, position = divmod(place, len(self.cases))
            order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.cases))
            x, y, *centres = self.cases[order[position]]
            chance = dict(self.chance, centres=centres[0] if centres else None)
            share = chance.get("foreground", 0.0)  # kept exactly, from one patch to the next
            chance["foreground"] = float(int((place + 1) * share) > int(place * share))
            x, y = random_patch(x, y, self.patch, rng, **chance)
            batch_x.append(x.reshape(*flat, -1))
            batch_y.append(y.reshape(*flat, 1))
        return np.stack(batch_x), np.stack(batch_y)
