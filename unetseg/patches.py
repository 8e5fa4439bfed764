"""What a network is trained on: preprocessed cases on the local disk, and batches of patches."""

import contextlib
import hashlib
import json
import tempfile
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import keras
import numpy as np

from unetseg import __version__
from unetseg._base import describe_bytes, explain_full
from unetseg.annotation import IGNORED
from unetseg.augmentation import random_patch
from unetseg.grids import Place
from unetseg.prepared import Prepared
from unetseg.run.inputs import describe_inputs, list_hashes, refuse_changed_meanwhile
from unetseg.run.machine import SPARE, TEMPORARY, free_bytes, require_room

PARTS = ("x", "y", "centres", "inside", "place")  # files of a case
FAR = 3  # of two looks every third batch is of the first one, at whole scans
CENTRES = 1000  # foreground voxels kept per class, to centre patches on


class CachedCases:
    """Preprocessed cases on the local disk, opened by memory map each time one is asked for.

    So memory does not grow with their number. An item is a tuple of ``x`` and ``y`` as
    `Preprocessor.transform` returns them, and ``centres``, an (n, 3) int array of foreground
    voxels, equally many of every class that the case holds; of a mask that is partly drawn also of
    the background.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    cases : sequence of Case
        With masks.
    folder : str or Path
        What is there already of the same files and preprocessing is not computed again: names
        hold a hash of both.

    Raises
    ------
    ValueError
        If a file is changed while it is read.
    """

    def __init__(self, preprocessor, cases, folder):
        self.preprocessor, self.files = preprocessor, []
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for case in cases:
            inputs = describe_inputs([case])
            paths = _list_paths(preprocessor, case, inputs, folder)
            if not all(path.exists() for path in paths.values()):
                prepared = preprocessor.prepare(case, with_mask=True)
                refuse_changed_meanwhile(inputs, [case])
                for part, path in paths.items():
                    _save(path, _pack(prepared, part))
            self.files.append(paths)

    def __len__(self):
        """Return the number of cases."""
        return len(self.files)

    def __getitem__(self, index):
        """Open a case."""
        return tuple(self._open(index, part) for part in ("x", "y", "centres"))

    def prepared(self, index):
        """Open a case as `Preprocessor.prepare` returns it, for its prediction."""
        x, y = self._open(index, "x"), self._open(index, "y")
        bits = np.unpackbits(self._open(index, "inside"), count=y.size)
        inside = bits.reshape(y.shape).astype(bool)
        place = Place.from_array(self._open(index, "place"))
        return Prepared(x, y, place, inside, self.preprocessor)

    def _open(self, index, part):
        return np.load(self.files[index][part], mmap_mode="r")


def _list_paths(preprocessor, case, inputs, folder):
    stem = f"{case.id}.{_hash_key(preprocessor, inputs)}"
    return {part: folder / f"{stem}.{part}.npy" for part in PARTS}


def _pack(prepared, part):
    if part == "centres":
        return _choose_centres(prepared.y)
    if part == "inside":
        return np.packbits(prepared.inside)
    if part == "place":
        return prepared.place.to_array()
    return getattr(prepared, part)


def _save(path, array):
    part = path.with_suffix(f".{uuid.uuid4().hex}.npy")  # of this process alone
    with explain_full(path.parent, "preprocessed cases", TEMPORARY):
        np.save(part, array)
    try:
        part.replace(path)
    except PermissionError:  # Windows, where another fold has made and opened the same
        if not path.exists():
            raise
        part.unlink()


def _hash_key(preprocessor, inputs):
    content = [__version__, PARTS, asdict(preprocessor), list_hashes(inputs)]
    return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()[:16]


def _choose_centres(y):
    rng = np.random.default_rng(0)
    partly = (y == IGNORED).any()  # then drawn background is rare too
    classes = [value for value in np.unique(y) if value != IGNORED and (value or partly)]
    draws = [np.empty((0, 3), int)]
    for value in classes:
        places = np.flatnonzero(y == value)
        drawn = places[rng.integers(len(places), size=CENTRES)]
        draws.append(np.stack(np.unravel_index(drawn, y.shape), axis=1))
    return np.concatenate(draws)


class Patches(keras.utils.PyDataset):
    """Endless batches of random patches; their number and the seed alone decide what is in one.

    Parameters
    ----------
    cases : sequence of (x, y) or (x, y, centres)
        Preprocessed cases, as for `random_patch`; such as `CachedCases`.
    sampling : unetseg.augmentation.Sampling
    batch_size : int
    seed : int
    foreground : float, default 0
        In [0, 1]: of any number of patches in a row this share, rounded, is centred on the
        foreground.
    augment : bool, default True
        As for `random_patch`.
    start : int, default 0
        Number of batches to leave out, which an interrupted training has had.
    repeat_after : int, optional
        Number of batches after which the same ones come again.
    """

    num_batches = None

    def __init__(
        self,
        cases,
        sampling,
        batch_size,
        seed,
        *,
        foreground=0.0,
        augment=True,
        start=0,
        repeat_after=None,
    ):
        super().__init__()
        self.cases, self.sampling, self.batch_size, self.seed = cases, sampling, batch_size, seed
        self.foreground, self.augment = foreground, augment
        self.start, self.repeat_after = start, repeat_after

    def __getitem__(self, index):
        """Batch ``index``: x (batch, ..., channel) float32 and y (batch, ..., 1) uint8.

        Every case comes once before any comes again.
        """
        index += self.start
        index = index % self.repeat_after if self.repeat_after else index
        rng = np.random.default_rng([self.seed, index])
        sides = [n for n in self.sampling.patch if n > 1]
        batch_x, batch_y = [], []
        for place in range(index * self.batch_size, (index + 1) * self.batch_size):
            x, y = self._cut(place, rng)
            batch_x.append(x.reshape(*sides, -1))
            batch_y.append(y.reshape(*sides, 1))
        return np.stack(batch_x), np.stack(batch_y)

    def _cut(self, place, rng):
        turn, position = divmod(place, len(self.cases))
        order = np.random.default_rng([self.seed, turn, 1]).permutation(len(self.cases))
        x, y, *centres = self.cases[order[position]]
        # The share is kept exactly, from one patch to the next.
        centred = int((place + 1) * self.foreground) > int(place * self.foreground)
        settings = {"foreground": float(centred), "augment": self.augment}
        centres = centres[0] if centres else None
        return random_patch(x, y, self.sampling, rng, centres=centres, **settings)


class Looks:
    """Preprocessed cases as a network sees them: once, or first coarsely and then closer.

    Parameters
    ----------
    preprocessor, cases, folder
        As for `CachedCases`.

    Attributes
    ----------
    near : CachedCases
        Regions of two looks, or whole scans.
    far : CachedCases, or None
        Whole scans at a first look.
    """

    def __init__(self, preprocessor, cases, folder):
        self.preprocessor, self.cases = preprocessor, cases
        self.near, self.far = CachedCases(preprocessor, cases, folder), None
        if preprocessor.coarse:
            self.far = CachedCases(preprocessor.coarse, cases, folder)

    def draw(self, batch_size, seed, *, start=0, repeat_after=None, **settings):
        """Draw batches of patches; arguments as for `Patches`."""
        where = {"start": start, "repeat_after": repeat_after}
        sampling = self.preprocessor.sampling
        if self.far is None:
            return Patches(self.near, sampling, batch_size, seed, **where, **settings)
        coarse = self.preprocessor.coarse.sampling
        near = Patches(self.near, sampling, batch_size, seed, **settings)
        far = Patches(self.far, coarse, batch_size, seed + 1, **settings)
        return InTurn(near, far, **where)


class InTurn(keras.utils.PyDataset):
    """Batches of two kinds: every third one is of the second kind.

    Parameters
    ----------
    near, far : Patches
    start, repeat_after
        As for `Patches`.
    """

    num_batches = None

    def __init__(self, near, far, *, start=0, repeat_after=None):
        super().__init__()
        self.near, self.far, self.start, self.repeat_after = near, far, start, repeat_after

    def __getitem__(self, index):
        """Batch ``index``, as of `Patches`."""
        index += self.start
        index = index % self.repeat_after if self.repeat_after else index
        number, turn = divmod(index, FAR)
        last = turn == FAR - 1
        return self.far[number] if last else self.near[number * (FAR - 1) + turn]


class Ahead(keras.utils.PyDataset):
    """Batches that threads make before their turn: the same ones, in the same order.

    Parameters
    ----------
    batches : Patches or InTurn
    pool : concurrent.futures.Executor
    count : int
        Batches that are made, or wait, beside the one that is asked for.
    """

    num_batches = None

    def __init__(self, batches, pool, count):
        super().__init__()
        self.batches, self.pool, self.count = batches, pool, count
        self.coming = {}

    def __getitem__(self, index):
        """Batch ``index``, as of `batches`."""
        for number in range(index, index + 1 + self.count):
            if number not in self.coming:
                self.coming[number] = self.pool.submit(self.batches.__getitem__, number)
        return self.coming.pop(index).result()


@contextlib.contextmanager
def make_ahead(batches, threads):
    """Make batches while the one before them is trained on, as long as the context is open.

    Parameters
    ----------
    batches : Patches or InTurn
    threads : int
        With 0 the batches are given as they are: each is made when it is asked for.

    Yields
    ------
    keras.utils.PyDataset
    """
    if not threads:
        yield batches
        return
    pool = ThreadPoolExecutor(threads)
    try:
        yield Ahead(batches, pool, threads)
    finally:
        pool.shutdown(cancel_futures=True)


def as_rows(batch, preprocessor):
    """Prepare a batch of patches for `unetseg.plots.show_cases`.

    Parameters
    ----------
    batch : pair of ndarray
        An item of `Patches`.
    preprocessor : Preprocessor

    Returns
    -------
    list of (title, image, masks)
        Of several channels the first, of neighbouring slices the middle one; masks hold the
        user's own label values.
    """
    values = np.zeros(256, int)
    values[: preprocessor.num_classes] = [0, *preprocessor.labels]
    rows = []
    for number, (x, y) in enumerate(zip(*batch, strict=True)):
        image = x[..., preprocessor.neighbours].reshape(preprocessor.patch)
        rows.append((f"patch {number}", image, [values[y].reshape(preprocessor.patch)]))
    return rows


def _is_cached(preprocessor, case, folder):
    inputs = describe_inputs([case])
    looks = [look for look in (preprocessor, preprocessor.coarse) if look]
    paths = [_list_paths(look, case, inputs, folder) for look in looks]
    return all(path.exists() for each in paths for path in each.values())


def count_voxels(sizes, spacing_mm, patch):
    """Count the voxels of cases on the network's grid, without reading them.

    Parameters
    ----------
    sizes : iterable of (shape, spacing_mm)
        Of each, on its own grid.
    spacing_mm : tuple of 3 float
        Of the network's grid.
    patch : tuple of 3 int
        No case is smaller.

    Returns
    -------
    int
    """
    voxels = 0
    for shape, spacing in sizes:
        resampled = np.array(shape) * spacing / np.array(spacing_mm)
        sides = np.maximum(np.round(resampled), patch)
        voxels += int(np.prod(sides))
    return voxels


def cache_bytes(table, spacing_mm, patch, channels):
    """Foretell what preprocessed cases take on the disk.

    Parameters
    ----------
    table : pandas.DataFrame
        As `unetseg.cases.check_cases` returns it.
    spacing_mm : tuple of 3 float
        Of the network's grid.
    patch : tuple of 3 int
        No case is smaller.
    channels : int

    Returns
    -------
    int
        Bytes, at most: what is cropped is counted too. Per voxel a float32 for each channel, a
        byte for the class and a bit for the body.
    """
    sizes = zip(table["shape"], table["spacing_mm"], strict=True)
    voxels = count_voxels(sizes, spacing_mm, patch)
    return voxels * (4 * channels + 1) + voxels // 8


def _transform(case, preprocessor):
    try:
        return preprocessor.transform(case)[0]
    except MemoryError:
        finding = "in voxels as the network has them it finds no room in memory"
        advice = "Is the unit of its voxels right? Correct it, or take a larger SPACING_MM"
        raise MemoryError(f"{case.files[0]}: {finding}. {advice}.") from None


def require_cache(cases, table, preprocessor, cache_dir=None):
    """Stop before a training whose preprocessed cases find no room in the temporary folder.

    Parameters
    ----------
    cases : sequence of Case
        Read only if it is not sure from their shapes that they find room.
    table : pandas.DataFrame
        What `unetseg.cases.check_cases` says of them.
    preprocessor : Preprocessor
        Fitted.
    cache_dir : str or Path, optional
        Where they will be; what is there already takes no more room. By default the temporary
        folder.

    Raises
    ------
    OSError
        As `require_room`.
    """
    place, channels = cache_dir or tempfile.gettempdir(), preprocessor.channels
    if cache_dir:
        cases = [case for case in cases if not _is_cached(preprocessor, case, Path(cache_dir))]
        table = table[table["case"].isin([case.id for case in cases])]
    taken = table.assign(spacing_mm=table["spacing_mm"].map(preprocessor.take_spacing))
    looks = [look for look in (preprocessor, preprocessor.coarse) if look]
    most = sum(cache_bytes(taken, look.spacing_mm, look.patch, channels) for look in looks)
    if most * SPARE <= free_bytes(place):
        return
    need = 0
    for case in cases:  # how much of each is cropped only its voxels tell, and where its region is
        for look in looks:
            x = _transform(case if look.coarse else replace(case, mask=None), look)
            voxels = x.size // channels
            need += x.nbytes + voxels + voxels // 8
        purpose = f"preprocessed cases (of {len(table)} at most {describe_bytes(most)})"
        require_room(place, need, purpose, TEMPORARY)
