"""A volume in overlapping windows, as large as what the network sees at once."""

import itertools
from typing import NamedTuple

import numpy as np

from unetseg._base import require
from unetseg.run import devices

BATCH_VOXELS = 2**18  # of one step: little memory, and no faster with more on a CPU


def slide(models, x, patch, *, overlap=0.5, span=None, out=None, part=1.0, void=None):
    """Average the models' probabilities over overlapping windows, weighted towards their centres.

    Parameters
    ----------
    models : sequence of keras.Model
    x : (x, y, z, channel) or (x, y, z, channel, neighbour) ndarray of float32
        At least as large as the patch. With neighbours the network sees a channel for each.
    patch : tuple of 3 int
        Shape of a window; across an axis of 1 the windows are slices for a 2-D network.
    overlap : float, default 0.5
        In [0, 1).
    span : tuple of 3 int, optional
        An axis, and the first and behind the last of the planes across it that are wanted; other
        windows are not predicted. By default all.
    out : (x, y, z, class) ndarray of float32, optional
        The wanted planes; the probabilities are added to it. By default a new one.
    part : float, default 1
        By which the probabilities are multiplied.
    void : (x, y, z) ndarray of bool, optional
        Where there is background for certain. Windows without anything else are not predicted.

    Returns
    -------
    (x, y, z, class) ndarray of float32
    """
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    axis, low, high = span or (0, 0, x.shape[0])
    shape = list(x.shape[:3])
    shape[axis] = high - low
    if void is None:
        void = np.zeros(x.shape[:3], bool)
    windows = _list_windows(x.shape, patch, overlap, (axis, low, high))
    windows = _leave_out_void(windows, void)
    void = void[(slice(None),) * axis + (slice(low, high),)]
    shares = _Shares(windows, patch, shape, void, part)
    flat = (*(n for n in patch if n > 1), int(np.prod(x.shape[3:])))
    size = max(1, BATCH_VOXELS // int(np.prod(patch)))
    for first in range(0, len(windows), size):
        chosen = windows[first : first + size]
        batch = np.stack([x[window.box].reshape(flat) for window in chosen])
        predicted = _predict_batch(models, batch, size)
        if out is None:
            out = np.zeros((*shape, predicted.shape[-1]), np.float32)
        for window, probabilities in zip(chosen, predicted, strict=True):
            wanted = probabilities.reshape(*patch, -1)[window.source]
            wanted *= shares.of(window)[..., None]  # in place: of many classes it is large
            out[window.target] += wanted
    out[..., 0][void] += part
    return out


def _leave_out_void(windows, void):
    kept = [window for window in windows if not void[window.box].all()]
    return kept or windows[:1]  # one tells the number of classes


class _Shares:
    """By how much each voxel of each window counts: together `part`, and nothing in the void."""

    def __init__(self, windows, patch, shape, void, part):
        self.weight, self.void, self.part = _window_weight(patch), void, part
        self.total = np.zeros(shape, np.float32)
        for window in windows:
            self.total[window.target] += self.weight[window.source]

    def of(self, window):
        share = self.part * self.weight[window.source] / self.total[window.target]
        share[self.void[window.target]] = 0
        return share


def widest(patch, flat, planes):
    """Voxels that windows span along each axis, whatever plane of several they lie in.

    Parameters
    ----------
    patch : tuple of 3 int
    flat : {0, 1, 2}
        Axis across the slices of the patch.
    planes : iterable of {0, 1, 2}
        Axes with which it is swapped.

    Returns
    -------
    list of int
    """
    sides = list(patch)
    for plane in planes:
        turned = list(patch)
        turned[plane], turned[flat] = patch[flat], patch[plane]
        sides = [max(pair) for pair in zip(sides, turned, strict=True)]
    return sides


class _Window(NamedTuple):
    box: tuple  # of the volume
    source: tuple  # what of the window is wanted
    target: tuple  # where that lies among the wanted planes


def _list_windows(shape, patch, overlap, span):
    axis, low, high = span
    steps = [_starts(n, p, overlap) for n, p in zip(shape, patch, strict=False)]
    windows = []
    for start in itertools.product(*steps):
        box = [slice(a, a + p) for a, p in zip(start, patch, strict=True)]
        first = max(low, box[axis].start)
        last = min(high, box[axis].stop)
        if first >= last:
            continue
        source, target = [slice(0, p) for p in patch], [*box]
        source[axis] = slice(first - box[axis].start, last - box[axis].start)
        target[axis] = slice(first - low, last - low)
        windows.append(_Window(tuple(box), tuple(source), tuple(target)))
    return windows


def _predict_batch(models, batch, size):
    # Filled up with zeros where a batch of another size would be compiled anew, which takes longer.
    wanted = len(batch)
    if devices.compiles_each_size():
        room = min(size, 1 << (wanted - 1).bit_length())
        batch = np.pad(batch, [(0, room - wanted), *[(0, 0)] * (batch.ndim - 1)])
    return _average(models, batch)[:wanted]


def _average(models, batch):
    total = np.array(models[0].predict_on_batch(batch), np.float32)  # a copy, to work in
    for model in models[1:]:
        total += np.asarray(model.predict_on_batch(batch))
    return total / np.float32(len(models)) if len(models) > 1 else total


def _starts(length, window, overlap):
    # The fewest evenly spread windows that overlap at least as asked.
    count = int(np.ceil((length - window) / max(1, window * (1 - overlap)))) + 1
    return np.linspace(0, length - window, count).round().astype(int).tolist()


def _window_weight(patch):
    # A Gaussian of an eighth of the patch, as in nnU-Net, never so small that it is lost.
    axes = [np.exp(-0.5 * ((np.arange(p) - (p - 1) / 2) / (p / 8)) ** 2) for p in patch]
    weight = np.einsum("i,j,k->ijk", *axes)
    return np.maximum(weight, 1e-3).astype(np.float32)
