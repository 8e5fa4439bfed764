"""Which way structures lie: whether patches may be mirrored, and how far they are turned."""

import numpy as np
from scipy import ndimage

from unetseg.body import find_box

SIDED = 0.02  # of the foreground's width: further to one side, on average, is no chance
ASIDE = 0.05  # the same of all structures together, of the body's width, in most of the scans
TOGETHER = 0.9  # most of the scans
PAIRED = 6  # cases, of which that is no chance
RARE = 0.1  # share of the cases up to which a label may be in them by a slip of the hand
USUAL_DEG = (15, 15, 30)  # to both sides, about x, y and z: how patients lie in a scanner
ENOUGH = 10  # cases with the same labels, to tell how they are turned
FURTHER = 1.5  # times the angle that most cases do not exceed: how far patches are turned
TINY = 1e-12
ANY = 90  # degrees: cases that differ by more have no direction
STEADY = 3.0  # times as much as in distance labels differ in direction, if they are turned
NOWHERE = {"sides": {}, "aside": 0.0, "centres": {}, "radii": (0.0, 0.0, 0.0)}


def describe_position(mask, body):
    """Find where labels lie, in the body and to one another.

    Parameters
    ----------
    mask : (x, y, z) ndarray of integers
        With a label.
    body : (x, y, z) ndarray of bool

    Returns
    -------
    dict
        ``sides``, by label, how far it lies from the middle of the foreground along x, in widths
        of the foreground; ``aside``, how far the foreground lies from the middle of the body's
        box, in widths of that; ``centres``, by label, in voxels from the mean of all labels'
        centres; ``radii``, the standard deviation of the foreground's voxels along each axis.
    """
    foreground, across = mask != 0, find_box(body)[0]
    values = np.unique(mask[foreground]).tolist()
    middles, radii = zip(*(_measure_along(foreground, axis) for axis in range(3)), strict=True)
    middle = middles[0]
    width = np.ptp(foreground.any(axis=(1, 2)).nonzero()) + 1
    centres = np.array(ndimage.center_of_mass(foreground, mask, values))
    aside = (middle - (across.start + across.stop - 1) / 2) / (across.stop - across.start)
    return {
        "sides": dict(zip(values, (centres[:, 0] - middle) / width, strict=True)),
        "aside": aside,
        "centres": dict(zip(values, centres - centres.mean(axis=0), strict=True)),
        "radii": radii,
    }


def _measure_along(foreground, axis):
    # Mean and standard deviation of the places of its voxels.
    others = tuple(other for other in range(3) if other != axis)
    counts = np.count_nonzero(foreground, axis=others)
    places = np.arange(len(counts))
    middle = np.average(places, weights=counts)
    return middle, float(np.sqrt(np.average((places - middle) ** 2, weights=counts)))


def choose_mirror_axes(facts, labels, patch):
    """Axes along which patches are mirrored.

    Parameters
    ----------
    facts : list of dict
        As `unetseg.planning.describe_case` returns them.
    labels : iterable of int
    patch : tuple of 3 int

    Returns
    -------
    tuple of int
        x, left to right, unless a label lies to one side of the whole foreground, on average by
        more than 2 % of its width and by more than chance (twice its standard error; labels of a
        tenth of the cases or less are left out, and cases with that label alone); or unless all
        structures together, or a label where it is alone, lie off the middle of the body, as one
        of a pair does: by more than 5 % of its width on average, to the same side in nine of ten
        cases, of which 6 are needed to tell. None without masks, or for slices across x.
    """
    labelled = [fact for fact in facts if fact["sides"]]
    asides = [fact["aside"] for fact in labelled]
    alone = [[f["aside"] for f in labelled if {*f["sides"]} == {label}] for label in labels]
    sides = [_list_sides(labelled, label) for label in labels]
    sided = any(map(_lie_aside, (asides, *alone))) or any(map(_lie_to_one_side, sides))
    return (0,) if labelled and patch[0] > 1 and not sided else ()


def _list_sides(facts, label):
    there = [fact["sides"] for fact in facts if label in fact["sides"]]
    if len(there) <= RARE * len(facts):
        return []
    return [sides[label] for sides in there if len(sides) > 1]  # alone it is all the foreground


def _lie_to_one_side(offsets):
    if not offsets:
        return False
    far, count = abs(np.mean(offsets)), len(offsets)
    chance = 2 * np.std(offsets, ddof=1) / np.sqrt(count) if count > 1 else 0
    return far >= SIDED and far > chance


def _lie_aside(asides):
    if len(asides) < PAIRED:
        return False
    same = max(np.mean(np.sign(asides) == side) for side in (-1, 1))
    return abs(np.mean(asides)) > ASIDE and same >= TOGETHER


def choose_rotation(facts):
    """How far patches are turned in training.

    Parameters
    ----------
    facts : list of dict
        As `unetseg.planning.describe_case` returns them.

    Returns
    -------
    tuple of 3 float
        Degrees to both sides, about x, y and z: 15, 15 and 30; about an axis about which labels
        lie turned further in more than a tenth of the cases one and a half times the angle that
        the others do not exceed (`measure_turns`). For that 10 cases must have the same labels,
        two or more; and their places must differ by a turn rather than by a shift of one of them,
        which makes distances differ as much as directions, and not lie anywhere, as those of
        lesions do, with more than a tenth of the angles above 90 degrees.
    """
    places, radii = _list_places(facts)
    if min(places.shape[:2]) < 2 or len(places) < ENOUGH:
        return USUAL_DEG
    chosen = []
    for axis, usual in enumerate(USUAL_DEG):
        plane = [other for other in range(3) if other != axis]
        scale = np.linalg.norm(radii[:, plane], axis=1)[:, None, None]
        turns = measure_turns(places[..., plane] / np.maximum(scale, TINY))
        angles, sizes = np.abs(np.angle(turns)), np.log(np.maximum(np.abs(turns), TINY))
        far = _reach_most(angles)
        shifted = far < STEADY * _reach_most(np.abs(sizes - np.median(sizes)))
        further = usual < np.degrees(far) <= ANY and not shifted
        chosen.append(round(FURTHER * float(np.degrees(far)), 1) if further else usual)
    return tuple(chosen)


def _list_places(facts):
    # Centres in mm (case, label, axis) of the labels that most cases with several have, and the
    # radii of their foreground (case, axis).
    several = [fact for fact in facts if len(fact["centres"]) > 1]
    labels = {label for fact in several for label in fact["centres"]}
    usual = [
        label
        for label in sorted(labels)
        if np.mean([label in fact["centres"] for fact in several]) >= TOGETHER
    ]
    alike = [fact for fact in several if all(label in fact["centres"] for label in usual)]
    places = [
        [np.multiply(fact["centres"][label], fact["spacing_mm"]) for label in usual]
        for fact in alike
    ]
    radii = [np.multiply(fact["radii"], fact["spacing_mm"]) for fact in alike]
    return np.reshape(places, (len(alike), len(usual), 3)), np.reshape(radii, (len(alike), 3))


def _reach_most(values):
    return float(np.quantile(values, TOGETHER, method="lower"))


def measure_turns(places):
    """How each case is turned and scaled against the mean of the others.

    Parameters
    ----------
    places : (case, label, 2) ndarray of float
        Where labels lie in a plane.

    Returns
    -------
    (case,) ndarray of complex
        Of each the angle and the size of the similarity that brings the mean of the others closest
        to the case, both centred (Procrustes; Gower 1975).
    """
    points = places[..., 0] + 1j * places[..., 1]
    points = points - points.mean(axis=1, keepdims=True)
    means = (points.sum(axis=0) - points) / (len(points) - 1)
    sizes = (np.abs(means) ** 2).sum(axis=1)
    turned = (points * means.conj()).sum(axis=1)
    return turned / np.maximum(sizes, TINY)
