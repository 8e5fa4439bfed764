"""What several networks say of a scan, put together block by block."""

import itertools

import numpy as np

from unetseg.augmentation import view_neighbours
from unetseg.blocks import make_blocks, restore_plane_block
from unetseg.windows import slide, widest


def predict_blocks(models, case, preprocessor, place, overlap, mirror_axes):
    """Predict a scan, a block of its native grid after the other.

    Parameters
    ----------
    models : sequence of keras.Model
    case : Case
    preprocessor : Preprocessor
    place : unetseg.blocks.Place
        As ``preprocessor.place(case)`` gives it.
    overlap : float
    mirror_axes : tuple of {0, 1, 2}
        As for `unetseg.inference.predict_case`.

    Yields
    ------
    block : unetseg.blocks.Block
    mean : (x, y, z, class) ndarray of float32
        Probabilities, averaged over the models, in the planes of the block.
    votes : (model, x, y, z) ndarray of uint8
        Class numbers by each model alone.
    """
    x, void = preprocessor.transform_scan(case)
    for block in _cut(preprocessor, x.shape, place):
        settings = preprocessor, overlap, mirror_axes
        yield block, *_predict_block(models, x, void, place, block, *settings)


def _cut(preprocessor, shape, place):
    # Windows that reach into two blocks are predicted twice: cut where they are short.
    reach = widest(preprocessor.patch, _flat_axis(preprocessor), preprocessor.planes or ())
    shares = [part / n for part, n in zip(reach, shape, strict=False)]
    return make_blocks(place, int(np.argmin(shares)), preprocessor.num_classes)


def _flat_axis(preprocessor):
    return preprocessor.patch.index(1) if 1 in preprocessor.patch else 0


def _predict_block(models, x, void, place, block, preprocessor, overlap, mirror_axes):
    # The mean of the models' probabilities and their votes, in the block of the native box.
    low, high = block.network
    found = [*x.shape[:3], preprocessor.num_classes]
    found[block.axis] = high - low
    shape = list(place.box_shape)
    shape[block.axis] = block.native[1] - block.native[0]
    mean = np.zeros((*shape, preprocessor.num_classes), np.float32)
    votes = np.zeros((len(models), *shape), np.uint8)
    for number, model in enumerate(models):
        network = np.zeros(found, np.float32)
        span = block.axis, low, high
        _predict(network, model, x, void, preprocessor, overlap, mirror_axes, span)
        _add_native(mean, votes[number], network, place, block)
    mean /= np.float32(len(models))
    return mean, votes


def _add_native(total, vote, network, place, block):
    # Class by class, so that no other map of all of them is needed.
    best = np.full(vote.shape, -np.inf, np.float32)
    for k in range(network.shape[-1]):
        native = restore_plane_block(network[..., k], place, block)
        total[..., k] += native
        vote[native > best] = k
        np.maximum(best, native, out=best)


def _predict(out, model, x, void, preprocessor, overlap, mirror_axes, span):
    # Adds to `out`, of which views are turned and mirrored as the volume is.
    flat = _flat_axis(preprocessor)
    planes = preprocessor.planes or (flat,)
    part = 1 / (len(planes) * 2 ** len(mirror_axes))
    axis, low, high = span
    for plane in planes:
        turned = {plane: flat, flat: plane}
        empty = void.swapaxes(plane, flat)
        view = view_neighbours(x.swapaxes(plane, flat), flat, preprocessor.neighbours or 0)
        for n in range(len(mirror_axes) + 1):
            for axes in itertools.combinations(mirror_axes, n):
                ends = (x.shape[axis] - high, x.shape[axis] - low) if axis in axes else (low, high)
                axes = [turned.get(one, one) for one in axes]
                into = np.flip(out.swapaxes(plane, flat), axes)
                settings = {"overlap": overlap, "out": into, "part": part}
                settings["void"] = np.flip(empty, axes)
                settings["span"] = (turned.get(axis, axis), *ends)
                slide([model], np.flip(view, axes), preprocessor.patch, **settings)
