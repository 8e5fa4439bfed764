"""What is chosen: facts of the cases in, settings out."""

import numpy as np
from scipy import ndimage

from unetseg.body import find_box, find_void, measure_contrast, meet, widen
from unetseg.digits import significant
from unetseg.orientation import (
    NOWHERE,
    RARE,
    choose_mirror_axes,
    choose_rotation,
    describe_position,
)
from unetseg.pieces import find_structures, measure_gap

# Of a patch: what the recipe was formed with; a step takes a fraction of a second on two cores.
# Scans looked at once in larger ones had lower Dice after as many steps (results/recipe.md).
PATCH_VOXELS = 100_000
BYTES_PER_VOXEL = 3000  # of a patch in training: twice what `make benchmark` measures
FEW_SLICES = 8  # low-resolution slices; fewer cannot be halved into something useful
LIKE = 1.2  # ratio of the voxel's sides up to which slices across both are of one kind
ANISOTROPIC = 2.999  # times the other spacings: an axis of low resolution (3 in nnU-Net)
OUTLIERS = 20  # standard deviations; brighter voxels would set the scale of a z-score
ASTRAY = 0.001  # share of a label's voxels that may lie anywhere by a slip of the hand
MARGIN = 0.3  # around the structures on each side, in sizes of their box
SEEN = 0.75  # share of a typical scan that a patch holds; with less it is looked at twice
TIGHT = 0.5  # share of a scan that every structure spans, above which none has a place of its own
LARGE = 0.9  # of the scans are not larger than what is seen at a first look
OUTSIZE = 1.5  # times the median: larger scans do not set what is seen at a first look
FILLING = 0.9  # share of the scan: structures that take it tell nothing of the field of view
NO_REGION = {
    "region": None,
    "structures": None,
    "region_contrast": np.inf,
    "scattered": False,
    "gap": 0.0,
}
ENOUGH = 10  # cases with masks, to tell how much their sizes vary
FEW_CASES, VARIOUS = 60, 0.12  # up to and from which patches are changed most
ALIKE = 0.8  # of the spread in mm: structures that are so much more alike in voxels
VARIED = 0.1  # spread of the logarithm of the size in mm, under which all are alike
COARSE_VOXELS, LEAST_VOXELS = 30, 5  # that all structures, and each, must have at a first look


def settle(value, choose, *facts):
    """Keep a value that is given, or choose one: ``choose(*facts)``."""
    return choose(*facts) if value is None else value


def plan(wanted, facts, most_voxels):
    """Choose every setting of a preprocessor that is not given.

    Parameters
    ----------
    wanted : Preprocessor
    facts : list of dict
        As `describe_case` returns them.
    most_voxels : int
        That a patch may have.

    Returns
    -------
    dict
        All settings.
    """
    assumed = () if wanted.spacing_mm and wanted.assumed_mm is None else wanted.assumed_mm
    assumed = settle(assumed, choose_assumed_spacing, facts)
    facts = [_assume(fact, assumed) for fact in facts] if assumed else facts
    shapes = np.array([fact["shape"] for fact in facts])
    spacings = np.array([fact["spacing_mm"] for fact in facts])
    spacing = settle(wanted.spacing_mm, choose_spacing, np.median(shapes, axis=0), spacings)
    shape = resampled_shape(shapes, spacings, spacing)
    flat = wanted.patch, wanted.planes, wanted.neighbours
    dimensions = settle(wanted.dimensions, choose_dimensions, shape, spacing, *flat)
    patch, coarse, margin = _choose_looks(wanted, facts, shape, spacing, dimensions, most_voxels)
    labels = settle(wanted.labels, choose_labels, facts)
    slices = _choose_slices(wanted, shape, spacing, patch, dimensions)
    grid = {"spacing_mm": spacing, "patch": patch, "coarse_mm": coarse, "assumed_mm": assumed}
    return {
        **grid,
        **slices,
        "labels": labels,
        "dimensions": dimensions,
        "channels": settle(wanted.channels, choose_channels, facts),
        "normalisation": settle(wanted.normalisation, choose_normalisation, facts),
        "mirror_axes": settle(wanted.mirror_axes, choose_mirror_axes, facts, labels, patch),
        "empty_space": settle(wanted.empty_space, choose_empty_space, facts),
        "least_contrast": settle(wanted.least_contrast, choose_least_contrast, facts, coarse),
        "margin": settle(wanted.margin, lambda: margin),
        "gap_mm": settle(wanted.gap_mm, choose_gap, facts, () if wanted.ignore else coarse),
        "rotation_deg": settle(wanted.rotation_deg, choose_rotation, facts),
        "strength": settle(wanted.strength, choose_strength, facts, dimensions),
        "ignore": settle(wanted.ignore, lambda: 0),
        "regions": settle(wanted.regions, dict),
    }


def _assume(fact, spacing_mm):
    longer = np.max(np.divide(spacing_mm, fact["spacing_mm"]))
    return {**fact, "spacing_mm": spacing_mm, "gap": longer * fact["gap"]}


def _choose_looks(wanted, facts, shape, spacing_mm, dimensions, most_voxels):
    # The patch, the voxel size of the first of two looks or nothing, and the second one's margin.
    cut = dimensions, wanted.planes, most_voxels
    patch = settle(wanted.patch, choose_patch, shape, spacing_mm, *cut)
    region = region_shape(facts, shape, spacing_mm)
    if wanted.patch is None and _has_slices_without(patch, shape, region):
        once = False
    else:
        once = holds_much(patch, np.where(np.equal(patch, 1), 1, shape))
    # Where something was not drawn the box of what was tells no place.
    if wanted.coarse_mm is None and (once or wanted.ignore):
        return patch, (), 0.0
    closer = settle(wanted.patch, choose_patch, region, spacing_mm, *cut)
    # Of what is too small for a first look in such patches more around it may be looked at.
    for size, margin in ((closer, MARGIN), (patch, _fill(patch, region))):
        coarse = settle(wanted.coarse_mm, choose_coarse_spacing, facts, spacing_mm, size)
        if coarse:
            return size, coarse, margin
    return patch, (), 0.0


def _fill(patch, region):
    # The margin with which the region, which has the usual one, is as large as a patch.
    times = (np.prod(patch) / np.prod(region)) ** (1 / 3)
    return significant(max(MARGIN, (times * (1 + 2 * MARGIN) - 1) / 2), 2)


def _has_slices_without(patch, shape, region):
    # Whether a network of slices sees many in which nothing is sought, and would draw it there.
    return 1 in patch and 1 not in shape and np.prod(region) <= TIGHT * np.prod(shape)


def _choose_slices(wanted, shape, spacing_mm, patch, dimensions):
    several = has_several_slices(shape, patch, dimensions)
    look = shape, spacing_mm, patch, dimensions
    return {
        "neighbours": settle(wanted.neighbours, choose_neighbours, several),
        "planes": settle(wanted.planes, choose_planes, *look),
    }


def describe_case(image, mask, body, spacing_mm, margin=MARGIN):
    """Facts of a case from which settings are chosen.

    Parameters
    ----------
    image : (x, y, z, channel) ndarray
    mask : (x, y, z) ndarray of int32, or None
    body : (x, y, z) ndarray of bool
        As `unetseg.body.find_body` returns it.
    spacing_mm : (3,) ndarray
    margin : float, default 0.3
        Of the region around the structures, in sizes of their box.

    Returns
    -------
    dict
        ``shape`` of the box of the body; ``spacing_mm``; number of ``channels``;
        ``brightest_sd``, by how many standard deviations the brightest voxel of a channel lies
        above its mean; what `unetseg.orientation.describe_position` tells of the mask;
        ``most_in_void``, the largest share of a label's voxels that lies where nothing has signal;
        ``contrast`` that 99.9 % of the voxels of every label exceed, 0 without a mask; ``region``,
        the shape of the box around all structures with its margin, and ``structures``, without
        it, None without a mask; ``spans``, by label, the share of the body's box that its own box
        with the margin takes; ``region_contrast``, the same contrast if the region were all of the
        scan; ``scattered``, whether pieces lie outside of the box of the large ones with its
        margin; ``gap``, how far they lie apart in mm (`unetseg.pieces.measure_gap`); ``voxels`` by
        label.
    """
    voxels = image[body] if body.any() else image.reshape(-1, image.shape[3])
    labelled = mask is not None and mask.any()
    counts = _count_voxels(mask) if labelled else {}
    return {
        "shape": body[find_box(body)].shape,
        "spacing_mm": spacing_mm,
        "channels": image.shape[3],
        "brightest_sd": max(_brightest_sd(channel) for channel in voxels.T),
        **(describe_position(mask, body) if labelled else NOWHERE),
        "most_in_void": _most_in_void(mask, body, spacing_mm) if labelled else 0.0,
        "contrast": _least_contrast(mask, image, body, spacing_mm) if labelled else 0.0,
        **(_describe_region(image, mask, body, spacing_mm, margin) if labelled else NO_REGION),
        "voxels": counts,
        "spans": _measure_spans(mask, counts, body, margin) if labelled else {},
    }


def _describe_region(image, mask, body, spacing_mm, margin):
    inner = find_box(mask != 0)
    box = widen(inner, margin, mask.shape)
    contrast = _least_contrast(mask[box], image[box], body[box], spacing_mm)
    shapes = {"region": mask[box].shape, "structures": mask[inner].shape}
    structures = find_structures(mask)
    large = widen(find_box(structures), margin, mask.shape)
    gap = measure_gap(structures, spacing_mm)
    apart = {"scattered": meet(inner, large) != inner, "gap": gap}
    return {**shapes, **apart, "region_contrast": contrast}


def _count_voxels(mask):
    values, counts = np.unique(mask[mask != 0], return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _measure_spans(mask, labels, body, margin):
    inner, values = mask[find_box(mask != 0)], sorted({0, *labels})
    boxes = ndimage.find_objects(np.searchsorted(values, inner) + 1)
    whole = np.prod(body[find_box(body)].shape)
    spans = {}
    for label in labels:
        sides = np.array(inner[boxes[values.index(label)]].shape)
        wide = np.minimum(sides * (1 + 2 * margin), mask.shape)
        spans[label] = float(np.prod(wide) / whole)
    return spans


def _brightest_sd(voxels):
    spread = voxels.std()
    return (voxels.max() - voxels.mean()) / spread if spread > 0 else 0.0


def _most_in_void(mask, body, spacing_mm):
    labelled = mask[find_void(body, spacing_mm)]
    values, counts = np.unique(labelled[labelled != 0], return_counts=True)
    shares = [n / np.count_nonzero(mask == v) for v, n in zip(values, counts, strict=True)]
    return max(shares, default=0.0)


def _least_contrast(mask, image, body, spacing_mm):
    contrast = measure_contrast(image, body, spacing_mm)
    values = np.unique(mask[mask != 0])
    return min(float(np.quantile(contrast[mask == value], ASTRAY)) for value in values)


def choose_normalisation(facts):
    """How intensities are normalised.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    {"zscore", "percentile"}
        Percentiles if in the median case voxels lie more than 20 standard deviations above the
        mean.
    """
    far = np.median([fact["brightest_sd"] for fact in facts])
    return "percentile" if far > OUTLIERS else "zscore"


def choose_empty_space(facts):
    """Whether space without signal is background, or the network is asked about it.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    {"background", "outside"}
        As for `unetseg.preprocessing.Preprocessor`.
    """
    labelled = max(fact["most_in_void"] for fact in facts) > ASTRAY
    return "outside" if labelled else "background"


def choose_least_contrast(facts, coarse_mm):
    """Contrast under which a voxel is background.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.
    coarse_mm : tuple of float
        As `choose_coarse_spacing` returns it.

    Returns
    -------
    float
        Half of what every label had in every case, of two looks at each of them; 0 if that is
        not known, as without masks.
    """
    labelled = _with_masks(facts)
    least = [fact["contrast"] for fact in labelled]
    if coarse_mm:
        least += [fact["region_contrast"] for fact in labelled]
    return round(min(least, default=0.0) / 2, 4)


def coarse_axis(spacing_mm):
    """Find the axis of low resolution.

    Parameters
    ----------
    spacing_mm : sequence of 3 float

    Returns
    -------
    int or None
        The axis that is at least three times coarser than the median one; None if there is none.
    """
    coarse = np.array(spacing_mm) >= ANISOTROPIC * np.median(spacing_mm)
    return int(np.argmax(coarse)) if coarse.any() else None


def choose_spacing(shape, spacings_mm):
    """Choose the common voxel size of all cases.

    Parameters
    ----------
    shape : (3,) ndarray
        The median shape.
    spacings_mm : (case, 3) ndarray of float

    Returns
    -------
    tuple of 3 float
        The median over the cases; along an axis of low resolution with few slices the 10th
        percentile, but nothing finer than the other axes (Isensee et al. 2021).
    """
    spacing = np.median(spacings_mm, axis=0)
    coarse = int(np.argmax(spacing))
    finer = np.delete(spacing, coarse).max()
    few = ANISOTROPIC * shape[coarse] <= np.delete(shape, coarse).min()
    if spacing[coarse] >= ANISOTROPIC * finer and few:
        spacing[coarse] = max(np.percentile(spacings_mm[:, coarse], 10), finer)
    return tuple(round(mm, 4) if mm >= 0.1 else significant(mm, 4) for mm in spacing.tolist())


def choose_assumed_spacing(facts):
    """Voxel size that every scan is taken to have, where fields of view were fitted to patients.

    Hearts of small children are as large as those of adults if they are counted in voxels.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    tuple of 3 float
        The median, if the boxes around all structures differ less in voxels than in mm: by the
        standard deviation of the logarithm of their sides' geometric mean, less than 0.8 times
        that in mm, which must be 0.1 or more. Else, or with less than 10 masks, empty: each scan
        has its own. Axes along which structures fill nine tenths of the median scan do not count:
        there they are as long as the field of view.
    """
    labelled = _with_masks(facts)
    if len(labelled) < ENOUGH:
        return ()
    spacings = np.array([fact["spacing_mm"] for fact in labelled])
    filled = [np.divide(fact["structures"], fact["shape"]) for fact in labelled]
    axes = np.median(filled, axis=0) < FILLING
    if not axes.any():
        return ()
    in_mm = _measure_spread(facts, axes)
    in_voxels = _measure_spread([{**fact, "spacing_mm": (1, 1, 1)} for fact in facts], axes)
    if in_mm < VARIED or in_voxels > ALIKE * in_mm:
        return ()
    return tuple(significant(mm, 4) for mm in np.median(spacings, axis=0).tolist())


def _with_masks(facts):
    return [fact for fact in facts if fact["structures"]]


def _measure_spread(facts, axes=slice(None)):
    # Standard deviation of the logarithm of the mean side of the box around all structures.
    labelled = _with_masks(facts)
    sides = [np.multiply(fact["structures"], fact["spacing_mm"])[axes] for fact in labelled]
    return float(np.std(np.log(sides).mean(axis=1))) if labelled else np.inf


def resampled_shape(shapes, spacings_mm, spacing_mm):
    """Voxels along each axis of a typical case at the common spacing.

    Parameters
    ----------
    shapes : (case, 3) ndarray
        Of the boxes of the bodies.
    spacings_mm : (case, 3) ndarray
    spacing_mm : tuple of 3 float

    Returns
    -------
    (3,) ndarray of int
        Of the median extent, at least 1.
    """
    extent = np.median(spacings_mm * shapes, axis=0)
    return np.maximum(1, np.round(extent / spacing_mm)).astype(int)


def choose_dimensions(shape, spacing_mm, patch=None, planes=None, neighbours=None):
    """Whether the network is 2-D or 3-D.

    Parameters
    ----------
    shape : (3,) ndarray of int
        As `resampled_shape` returns it.
    spacing_mm : tuple of 3 float
    patch, planes, neighbours
        Settings of `unetseg.preprocessing.Preprocessor` that are given, or None.

    Returns
    -------
    {2, 3}
        As the patch says; without one 2 if slices are asked for by `planes` or `neighbours`, if a
        case has one slice, or fewer than 8 of low resolution.
    """
    if patch:
        return 2 if 1 in patch else 3
    coarse = coarse_axis(spacing_mm)
    few = coarse is not None and shape[coarse] < FEW_SLICES
    return 2 if 1 in shape or few or planes or neighbours else 3


def limit_patch(memory_gb):
    """Voxels that a patch may have: 100,000 if half of the memory bears them.

    Parameters
    ----------
    memory_gb : float
        Of what computes.

    Returns
    -------
    int
    """
    return min(int(memory_gb * 1e9 / 2 / BYTES_PER_VOXEL), PATCH_VOXELS)


def choose_patch(shape, spacing_mm, dimensions, planes, most_voxels):
    """Voxels that the network sees at once.

    Parameters
    ----------
    shape : (3,) ndarray of int
        As `resampled_shape` returns it.
    spacing_mm : tuple of 3 float
    dimensions : {2, 3}
    planes : tuple of {0, 1, 2}, or None
        For slices the first is the axis across them; else that of the largest spacing (z if they
        are equal).
    most_voxels : int

    Returns
    -------
    tuple of 3 int
        The shape, rounded up to what can be halved three times (short axes less often), cut along
        its longest side in mm until it is small enough, or no axis has more than 8 voxels.
    """
    shape = np.array(shape)
    if dimensions == 2 and 1 not in shape:
        across = planes[0] if planes else 2 - int(np.argmax(spacing_mm[::-1]))
        shape[across] = 1
    halvings = np.log2(np.maximum(shape, 4) / 4).astype(int)
    multiple = 2 ** np.clip(halvings, 0, 3)
    patch = -(-shape // multiple) * multiple
    shortest = np.minimum(patch, 8)
    while np.prod(patch) > most_voxels:
        lengths_mm = np.where(patch - multiple >= shortest, patch * spacing_mm, 0)
        if not lengths_mm.any():
            break
        axis = np.argmax(lengths_mm)
        patch[axis] -= multiple[axis]
    return tuple(patch.tolist())


def region_shape(facts, shape, spacing_mm):
    """Voxels along each axis of the typical region around all structures.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.
    shape : (3,) ndarray of int
        Of a typical case, which is taken if there are no masks.
    spacing_mm : tuple of 3 float

    Returns
    -------
    (3,) ndarray of int
    """
    labelled = _with_masks(facts)
    if not labelled:
        return shape
    regions = np.array([fact["region"] for fact in labelled])
    spacings = np.array([fact["spacing_mm"] for fact in labelled])
    return resampled_shape(regions, spacings, spacing_mm)


def choose_coarse_spacing(facts, spacing_mm, patch):
    """Voxel size of a first look, at the whole scan.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.
    spacing_mm : tuple of 3 float
        Of the second look.
    patch : tuple of 3 int
        Voxels of both looks.

    Returns
    -------
    tuple of 3 float
        With which a patch holds 90 % of the scans, or of their slices, but not what is more than
        half larger than the median; nothing finer than `spacing_mm`, and across slices that. Empty
        without masks; if the box of every structure, such as grey matter, takes more than half of
        the typical scan, so that where it lies tells nothing; if a first look would overlook
        structures, as all together would have less than 30 voxels in more than a tenth of the
        cases, one of them less than 5 in half of them, or all together would not span two voxels
        along an axis; or if in more than a tenth of the cases (more than one of 4 to 10) small
        pieces lie apart from the large ones, as a second look would miss them. Labels of a tenth of
        the cases or less are left out, as they may be slips of the hand.
    """
    labelled = _with_masks(facts)
    scattered = sum(fact["scattered"] for fact in facts)
    if not labelled or scattered > max(RARE * len(facts), min(1, len(facts) // 4)):
        return ()
    if min(_list_medians([fact["spans"] for fact in labelled]), default=1) > TIGHT:
        return ()
    extents = [np.multiply(fact["shape"], fact["spacing_mm"]) for fact in facts]
    most = np.minimum(np.quantile(extents, LARGE, axis=0), OUTSIZE * np.median(extents, axis=0))
    coarse = np.maximum(np.where(np.equal(patch, 1), 0, most / patch), spacing_mm)
    left = [_count_left(fact, coarse) for fact in labelled]
    together = np.quantile([sum(counts.values()) for counts in left], RARE)
    if together < COARSE_VOXELS or min(_list_medians(left), default=0) < LEAST_VOXELS:
        return ()
    sides = [np.multiply(fact["structures"], fact["spacing_mm"]) for fact in labelled]
    flat = np.median(sides, axis=0) < 2 * coarse
    if (flat & (coarse > spacing_mm)).any():
        return ()
    return tuple(significant(mm, 3) for mm in coarse.tolist())


def _count_left(fact, coarse_mm):
    # Voxels of each label at a first look.
    share = np.prod(fact["spacing_mm"]) / np.prod(coarse_mm)
    return {label: share * count for label, count in fact["voxels"].items()}


def _list_medians(numbers):
    # Of each label that more than a tenth of the cases hold; a dict by label of each case.
    by_label = {}
    for of_case in numbers:
        for label, number in of_case.items():
            by_label.setdefault(label, []).append(number)
    usual = [of_label for of_label in by_label.values() if len(of_label) > RARE * len(numbers)]
    return [float(np.median(of_label)) for of_label in usual]


def choose_gap(facts, coarse_mm):
    """How far pieces of the structures may lie apart at a first look.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.
    coarse_mm : tuple of float
        As `choose_coarse_spacing` returns it.

    Returns
    -------
    float
        Millimetres: the gap that nine of ten cases do not exceed, at least a voxel. 0, no limit,
        for one look, if more than a tenth of the cases have scattered pieces, or with less than 10
        masks: a second lesion, say, might be missing by chance.
    """
    labelled = _with_masks(facts)
    scattered = sum(fact["scattered"] for fact in labelled)
    if not coarse_mm or len(labelled) < ENOUGH or scattered > RARE * len(labelled):
        return 0.0
    finest = np.median([np.min(fact["spacing_mm"]) for fact in labelled])
    usual = np.quantile([fact["gap"] for fact in labelled], 1 - RARE)
    return significant(max(usual, finest), 3)


def holds_much(patch, shape):
    """Whether a patch holds at least three quarters of a typical scan."""
    return np.prod(np.minimum(patch, shape)) >= SEEN * np.prod(shape)


def choose_strength(facts, dimensions):
    """How strongly patches are changed: what cases show or share need not be made up.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.
    dimensions : {2, 3}

    Returns
    -------
    float
        1 for slices, which are many and alike; and up to 60 cases of various sizes. Less in
        proportion for more cases, or if of 10 and more the logarithm of the size of all
        structures together has a standard deviation under 0.12; but at least 0.75 for more than
        60 cases, which are trained for longer, and 0.5 for fewer.
    """
    if dimensions == 2:
        return 1.0
    share = FEW_CASES / len(facts)
    if len(facts) >= ENOUGH:
        share = min(share, _measure_spread(facts) / VARIOUS)
    least = 0.75 if len(facts) > FEW_CASES else 0.5
    return round(min(1.0, max(least, share)), 3)


def choose_labels(facts):
    """Value and name of every label that a mask holds, without the background."""
    values = sorted({value for fact in facts for value in fact["sides"]})
    return {value: f"label {value}" for value in values}


def choose_channels(facts):
    """Count the channels of the first case."""
    return facts[0]["channels"]


def has_several_slices(shape, patch, dimensions):
    """Whether a typical case has more than the one slice that a 2-D network segments."""
    return dimensions == 2 and bool(shape[patch.index(1)] > 1)


def choose_neighbours(several):
    """Slices that a network sees on each side: 2 where there are several, else 0."""
    return 2 if several else 0


def choose_planes(shape, spacing_mm, patch, dimensions):
    """Axes across which the slices of a 2-D network lie.

    Parameters
    ----------
    shape : (3,) ndarray of int
        As `resampled_shape` returns it.
    spacing_mm, patch : tuple of 3 numbers
    dimensions : {2, 3}

    Returns
    -------
    tuple of int
        That of the patch's 1; and of those along which voxels are as long (up to 1.2 times) the
        one that changes the slices' size least, if there are several slices. None in 3-D.
    """
    if dimensions == 3:
        return ()
    flat, spacing = patch.index(1), np.array(spacing_mm)
    ratio = np.maximum(spacing, spacing[flat]) / np.minimum(spacing, spacing[flat])
    alike = (ratio <= LIKE) & (np.array(patch) > 1)
    if not alike.any() or not has_several_slices(shape, patch, dimensions):
        return (flat,)
    change = np.where(alike, abs(np.array(patch) - shape[flat]), np.inf)
    return (flat, int(change.argmin()))
