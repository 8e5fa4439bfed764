"""Prediction of one case, by one network or several, back on its native grid."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unetseg import ensemble
from unetseg._base import require
from unetseg.body import find_box, widen
from unetseg.ensemble import along, map_bytes, predict_blocks, predict_maps
from unetseg.model import usual_settings
from unetseg.pieces import CORNERS, find_far, find_structures
from unetseg.prepared import FirstLook
from unetseg.reliability import soften

OVERLAP = 0.5  # of neighbouring windows
SURE = 0.75  # probability of the background, under which something might be there
SLACK = 1.5  # of these voxels that a second look goes beyond, at least, on each side


class Prediction(NamedTuple):
    """What the models say about one case, in RAS+ on its native grid.

    ``labels``: (x, y, z) int32, the user's own values. ``probabilities``: (x, y, z, class)
    float32, the mean over the models; None if they were not asked for. ``uncertainty``: (x, y, z)
    float32, the entropy of the probabilities in [0, 1], 1 where all classes are equally likely.
    ``votes``: (model, x, y, z) uint8, class numbers by each model alone. ``disagreement``:
    (x, y, z) float32, the share of the models that vote for another label, in [0, 1].
    """

    labels: np.ndarray
    probabilities: np.ndarray
    uncertainty: np.ndarray
    votes: np.ndarray
    disagreement: np.ndarray

    def look_at(self, index):
        """Part of every map, to be written to; three slices tell which."""
        probabilities = self.probabilities
        return Prediction(
            labels=self.labels[index],
            probabilities=None if probabilities is None else probabilities[index],
            uncertainty=self.uncertainty[index],
            votes=self.votes[(slice(None), *index)],
            disagreement=self.disagreement[index],
        )


@usual_settings()
def predict_case(
    models,
    case,
    preprocessor,
    *,
    overlap=OVERLAP,
    mirror_axes=None,
    temperature=1.0,
    probabilities=True,
    prepared=None,
):
    """Segment one case.

    Parameters
    ----------
    models : keras.Model or sequence of them
        Their probabilities are averaged.
    case : Case
        Its mask is not looked at.
    preprocessor : Preprocessor
        The one that the models were trained with.
    overlap : float, default 0.5
        Of neighbouring windows, in [0, 1).
    mirror_axes : iterable of {0, 1, 2}, optional
        Axes along which mirrored copies are predicted too, all combinations averaged. By default
        those of the preprocessor, along which patches were mirrored in training; no others.
    temperature : float, default 1
        By which the logits of the mean probabilities are divided, such as
        `unetseg.inference.load_temperature` gives it. Changes how sure the prediction is, not its
        labels.
    probabilities : bool, default True
        Whether to return them. Without them many classes take no more memory than
        `unetseg.ensemble.BLOCK_BYTES` allows, and the small maps of a first look.
    prepared : unetseg.prepared.Prepared, optional
        What `prepare_case` returns for the same models, if it is at hand; else the scan is read.

    Returns
    -------
    Prediction
    """
    mirror_axes = settle_settings(preprocessor, overlap, mirror_axes, temperature)
    models = _list(models)
    require("models", models, len(models), "at least one")
    if prepared is None:
        prepared = prepare_case(
            models, case, preprocessor, overlap=overlap, mirror_axes=mirror_axes
        )
    _check_prepared(prepared, models)
    place = prepared.place
    drawn = _draw_background(preprocessor, place.shape, len(models), temperature, probabilities)
    inside = drawn.look_at(place.box)
    blocks = predict_blocks(models, prepared, prepared.preprocessor, overlap, mirror_axes)
    for block, mean, votes in blocks:
        part = inside.look_at(along(block.axis, *block.native))
        part.votes[:] = votes
        for plane in range(mean.shape[block.axis]):  # one at a time, so that copies are small
            index = along(block.axis, plane, plane + 1)
            _draw(part.look_at(index), mean[index], preprocessor, temperature)
        del mean  # before the next one is made
    return drawn


def combine(predictions, preprocessor, temperature=1.0):
    """Average what several ensembles say of one case, each counting alike.

    Parameters
    ----------
    predictions : sequence of Prediction
        With probabilities, of a temperature of 1; the first one's are changed.
    preprocessor : Preprocessor
        Of any of them: their labels are the same.
    temperature : float, default 1
        As for `predict_case`.

    Returns
    -------
    Prediction
        ``votes`` of all models, in the order of the ensembles.
    """
    mean = predictions[0].probabilities
    for prediction in predictions[1:]:
        mean += prediction.probabilities
    mean /= len(predictions)
    votes = np.concatenate([prediction.votes for prediction in predictions])
    together = Prediction(
        labels=np.zeros(mean.shape[:3], np.int32),
        probabilities=mean,
        uncertainty=np.zeros(mean.shape[:3], np.float32),
        votes=votes,
        disagreement=np.zeros(mean.shape[:3], np.float32),
    )
    for plane in range(mean.shape[0]):  # one at a time, so that copies are small
        index = along(0, plane, plane + 1)
        _draw(together.look_at(index), mean[index], preprocessor, temperature)
    return together


def _list(models):
    return list(models) if isinstance(models, list | tuple) else [models]


def _check_prepared(prepared, models):
    first, needed = prepared.first, prepared.preprocessor.coarse
    fits = first is None if needed is None else first and len(first.maps) == len(models)
    require("prepared", type(prepared), fits, "what prepare_case returned for the same models")


@usual_settings()
def prepare_case(models, case, preprocessor, *, loaded=None, overlap=OVERLAP, mirror_axes=None):
    """Bring a case to the network's grid; of two looks, to the region that the first one finds.

    Parameters
    ----------
    models : keras.Model or sequence of them
    case, preprocessor, overlap, mirror_axes
        As for `predict_case`.
    loaded : tuple of image and affine, optional
        As for ``preprocessor.prepare``.

    Returns
    -------
    unetseg.prepared.Prepared
        Of the whole scan; of two looks of the region that `find_region` returns, with what the
        models saw at the first one. If that was nothing at all, the first look is all.
    """
    if not preprocessor.coarse:
        return preprocessor.prepare(case, loaded=loaded)
    mirror_axes = settle_settings(preprocessor, overlap, mirror_axes)
    models = _list(models)
    first = preprocessor.coarse.prepare(case, loaded=loaded)
    maps = predict_maps(models, first, first.preprocessor, overlap, mirror_axes)
    leave_out(maps, first)
    mean = maps.mean(axis=0)
    region = find_region(mean.argmax(axis=-1), first)
    if region is None:  # then around what might be something
        region = find_region(mean[..., 0] < SURE, first)
    if region is None:
        return first
    closer = preprocessor.prepare(case, loaded=loaded, region=region)
    return replace(closer, first=FirstLook(first.place, maps))


def leave_out(maps, first):
    """Make background of what is seen at a first look too far from the rest.

    Parameters
    ----------
    maps : (model, x, y, z, class) ndarray of float32
        Probabilities; changed in place, where pieces lie further from the others than the
        preprocessor's ``reach_mm`` (`unetseg.pieces.find_far`), and a voxel around them.
    first : unetseg.prepared.Prepared
        What the networks saw.
    """
    settings = first.preprocessor
    if not settings.reach_mm:
        return
    inside = maps[(slice(None), *first.place.inner)]  # a view
    limits = settings.reach_mm, settings.spacing_mm, settings.flat_axis
    far = find_far(inside.mean(axis=0), *limits)
    inside[:, ndimage.binary_dilation(far, CORNERS)] = np.eye(maps.shape[-1])[0]


def find_region(classes, first):
    """Find where to look closer.

    Parameters
    ----------
    classes : (x, y, z) ndarray of integers or bool
        That the network sees at its first look.
    first : unetseg.prepared.Prepared
        What it saw.

    Returns
    -------
    tuple of 3 slice, or None
        Part of the native grid: the box of what was found, stray pieces left out
        (`unetseg.pieces.find_structures`), with the margin of the preprocessor, which is at least
        one and a half of the voxels that the network saw. None if nothing was found.
    """
    place = first.place
    found = find_structures(classes[place.inner])
    if not found.any():
        return None
    step = np.divide(place.box_shape, place.inner_shape)
    return widen(
        place.to_native(find_box(found)), first.preprocessor.margin, place.shape, SLACK * step
    )


@usual_settings()
def predict_and_sample(model, prepared, preprocessor, choose, *, mirror_axes=None):
    """Segment one case, and give the probabilities of some of its voxels.

    Parameters
    ----------
    model : keras.Model
    prepared : unetseg.prepared.Prepared
        The case.
    preprocessor : Preprocessor
    choose : callable
        Is given the predicted labels, and returns flat indices of the voxels.
    mirror_axes
        As for `predict_case`.

    Returns
    -------
    labels : (x, y, z) ndarray of int32
    chosen : (n,) ndarray of integers
        What `choose` returned.
    sampled : (n, class) ndarray of float32
        If the probabilities of all voxels would not fit into `unetseg.ensemble.BLOCK_BYTES`, the
        case is predicted twice instead.
    """
    num_classes = preprocessor.num_classes
    fits = map_bytes(prepared.place.shape, num_classes) <= ensemble.BLOCK_BYTES
    settings = {"mirror_axes": mirror_axes, "probabilities": fits, "prepared": prepared}
    prediction = predict_case(model, None, preprocessor, **settings)
    chosen = choose(prediction.labels)
    if fits:
        listed = prediction.probabilities.reshape(-1, num_classes)
        return prediction.labels, chosen, listed[chosen]
    mirror_axes = settle_settings(preprocessor, mirror_axes=mirror_axes)
    sampled = _predict_voxels(model, prepared, preprocessor, chosen, mirror_axes)
    return prediction.labels, chosen, sampled


def _predict_voxels(model, prepared, preprocessor, chosen, mirror_axes):
    place = prepared.place
    voxels = np.transpose(np.unravel_index(chosen, place.shape))
    voxels -= [part.start for part in place.box]
    inside = ((voxels >= 0) & (voxels < place.box_shape)).all(axis=1)
    sampled = preprocessor.encode(np.zeros(len(voxels), int))  # certain where it was cropped
    blocks = predict_blocks([model], prepared, prepared.preprocessor, OVERLAP, mirror_axes)
    for block, mean, _ in blocks:
        first, last = block.native
        across = voxels[:, block.axis]
        here = inside & (first <= across) & (across < last)
        index = voxels[here]
        index[:, block.axis] -= first
        sampled[here] = mean[tuple(index.T)]
        del mean  # before the next one is made
    return sampled


def _draw_background(preprocessor, shape, n_models, temperature, probabilities):
    # Where the scan was cropped the background is certain.
    num_classes = preprocessor.num_classes
    whole = Prediction(
        labels=np.zeros(shape, np.int32),
        probabilities=np.zeros((*shape, num_classes), np.float32) if probabilities else None,
        uncertainty=np.zeros(shape, np.float32),
        votes=np.zeros((n_models, *shape), np.uint8),
        disagreement=np.zeros(shape, np.float32),
    )
    certain = np.eye(num_classes, dtype=np.float32)[:1]
    certain = soften(certain, temperature) if temperature != 1 else certain
    whole.uncertainty[:] = normalised_entropy(certain)
    if probabilities:
        whole.probabilities[:] = certain
    return whole


def _draw(part, mean, preprocessor, temperature):
    classes = mean.argmax(axis=-1)  # before rounding may make two classes equal
    part.labels[:] = preprocessor.decode(mean)
    part.disagreement[:] = (part.votes != classes).mean(axis=0, dtype=np.float32)
    mean = soften(mean, temperature) if temperature != 1 else mean
    part.uncertainty[:] = normalised_entropy(mean)
    if part.probabilities is not None:
        part.probabilities[:] = mean


def settle_settings(preprocessor, overlap=OVERLAP, mirror_axes=None, temperature=1.0):
    """Check the settings of `predict_case`, and tell the axes along which it mirrors."""
    trained = preprocessor.sampling.mirror_axes
    mirror_axes = trained if mirror_axes is None else tuple(mirror_axes)
    allowed = f"among {trained}, along which the models saw mirrored patches"
    fits = all(axis in trained for axis in mirror_axes)
    require("mirror_axes", mirror_axes, fits, allowed)
    require("overlap", overlap, 0 <= overlap < 1, "in [0, 1)")
    require("temperature", temperature, temperature > 0, "above 0")
    return mirror_axes


def normalised_entropy(probabilities):
    """Entropy of class probabilities, in units of its largest possible value.

    Parameters
    ----------
    probabilities : (..., class) ndarray of float
        Sum to 1.

    Returns
    -------
    (...) ndarray of float32
        In [0, 1].
    """
    safe = np.clip(probabilities, 1e-12, 1)
    entropy = -(probabilities * np.log(safe)).sum(axis=-1) / np.log(probabilities.shape[-1])
    return np.clip(entropy, 0, 1).astype(np.float32)
