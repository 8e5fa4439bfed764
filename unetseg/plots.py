"""Pictures of scans with their masks. A label keeps its colour; large scans are made smaller."""

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from nibabel.affines import voxel_sizes

from unetseg._base import require

# Okabe and Ito's colours, told apart by colour-blind readers and on grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
PLANES = (("sagittal", 0, "A", "S"), ("coronal", 1, "R", "S"), ("axial", 2, "R", "A"))
GREY = plt.get_cmap("gray", 64)  # levels: more are not seen, and double the file
VIEWED = 3_000_000  # voxels that the viewer takes in a few seconds
DRAWN = 1000  # pixels along a side of a picture; a panel of a figure has fewer
STYLES = ("solid", "dashed")
DIFFERENCES = {"missed": "#0000FF", "added": "#FFFF00", "other label": "#FF00FF"}  # no label's
NOTHING = "Nothing to show."
AT_ONCE = 2**21  # voxels that are looked at together, so that memory stays small
SAMPLED = 10**6  # voxels that tell the range of the intensities


def new_figure(rows, columns, width, height):
    """Make a figure with a grid of axes; it is not shown by itself."""
    kwargs = {"figsize": (width, height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **kwargs)
    plt.close(figure)  # else a notebook shows it twice
    return figure, axes


def add_legend(figure, entries):
    """Add a legend below a figure; `entries` are pairs of name and line style."""
    lines = [Line2D([], [], label=name, **style) for name, style in entries]
    columns = min(len(lines), int(figure.get_figwidth() / 1.6))  # inches an entry
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)


def show_cases(rows, spacing_mm, labels, *, names=("mask",), differences=False, maps=None):
    """Show cases in three planes with the contours of their masks.

    Parameters
    ----------
    rows : sequence of (title, image, masks)
        ``image`` is (x, y, z) or (x, y, z, channel), in RAS+; of several channels the first is
        shown. ``masks`` are one or two (x, y, z) label maps, drawn solid and dashed. The planes
        go through the slices that hold most of the first mask.
    spacing_mm : sequence of 3 float
        Size of a voxel, in mm; or one such sequence per row.
    labels : dict of int to str
        Value and name of every label.
    names : sequence of str
        What the masks are.
    differences : bool, default False
        Whether to show every case twice: with its contours, and with the voxels where the second
        mask disagrees with the first: missed, added, or of another label.
    maps : sequence of (x, y, z) ndarray, optional
        One per row, in [0, 1], such as an uncertainty: shown below the contours, from 0.05 on.

    Returns
    -------
    matplotlib.figure.Figure
        Or words if there is no row.
    """
    if not rows:
        return NOTHING
    pairs = all(len(masks) == 2 for *_, masks in rows)
    allowed = "False, but for rows of two masks"
    require("differences", differences, pairs or not differences, allowed)
    require("maps", maps, not (maps and differences), "None where differences are shown")
    second_line = differences or maps is not None
    lines, side = (2, 2.1) if second_line else (1, 3)  # inches
    figure, axes = new_figure(lines * len(rows), 3, 3 * side, side * lines * len(rows))
    spacings = np.broadcast_to(spacing_mm, (len(rows), 3))
    for number, ((title, image, masks), spacing) in enumerate(zip(rows, spacings, strict=True)):
        image = image if image.ndim == 3 else image[..., 0]
        look = image, masks, spacing, _busiest_slices(masks[0]), grey_range(image)
        own = axes[lines * number : lines * (number + 1)]
        longest = max(map(len, title.splitlines()), default=1)
        own[0][0].set_ylabel(title, fontsize=min(10, 120 * side / longest))  # long ids in full
        _show_planes(own[0], *look, labels)
        if second_line:
            own[1][0].set_ylabel("uncertainty" if maps else "where they disagree")
            shown = _show_planes(own[1], *look, {}, maps[number] if maps else None)
    if maps:
        figure.colorbar(shown, ax=axes, shrink=0.5 / len(rows), label="uncertainty, 0 to 1")
    add_legend(figure, _list_legend(labels, names, differences))
    return figure


def _list_legend(labels, names, differences):
    entries = [(name, {"color": colour_of(label, labels)}) for label, name in labels.items()]
    if len(names) > 1:
        for name, style in zip(names, STYLES, strict=True):
            entries.append((name, {"color": "k", "linestyle": style}))
    if differences:
        entries += [(name, {"color": colour}) for name, colour in DIFFERENCES.items()]
    return entries


def colour_of(label, labels):
    """Colour of a label, the same in every figure of a data set."""
    return COLOURS[list(labels).index(label) % len(COLOURS)]


def _busiest_slices(mask):
    # Along each axis the slice that holds most of the mask; the middle if it is empty.
    areas = [np.zeros(length, int) for length in mask.shape]
    for part, _ in slabs(mask):
        inside = mask[part] != 0
        for axis, area in enumerate(areas):
            area[part[axis]] += inside.sum(axis=tuple({0, 1, 2} - {axis}))
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def _show_planes(axes, image, masks, spacing, places, grey, labels, heat=None):
    for ax, plane, at in zip(axes, PLANES, places, strict=True):
        cut = (slice(None),) * plane[1] + (at,)  # a view; np.take may copy the whole volume
        seen, hot, *flat = (v if v is None else v[cut].T for v in (image, heat, *masks))
        shown = _show_plane(ax, seen, flat, np.delete(spacing, plane[1])[::-1], grey, labels, hot)
        _name_plane(ax, plane, at)
    return shown


def _show_plane(ax, image, masks, spacing, grey, labels, heat):
    # All are slices of one shape (rows, columns); labels is empty to show where masks disagree.
    factors = [-(-length // DRAWN) for length in image.shape]
    picture = pool_mean(image, factors)
    height, width = spacing * picture.shape * factors
    place = {"origin": "lower", "extent": (0, width, 0, height)}
    sharp = {"interpolation": "nearest", **place}
    ax.imshow(picture, cmap=GREY, vmin=grey[0], vmax=grey[1], **sharp)
    shown = None
    if heat is not None:
        hot = np.ma.masked_less(pool_max(heat, factors), 0.05)
        shown = ax.imshow(hot, cmap="plasma", vmin=0, vmax=1, **sharp)
    elif not labels:
        colours = ListedColormap(list(DIFFERENCES.values()))
        kinds = pool_rarest(_differences, masks, factors)
        ax.imshow(np.ma.masked_equal(kinds, 0), cmap=colours, vmin=1, vmax=3, **sharp)
    for mask, style in zip(masks, STYLES, strict=False):
        for label in labels:
            inside = pool_max(mask == label, factors)
            if inside.any() and min(inside.shape) > 1:
                line = {"linestyles": style, "linewidths": 1.2, **place}
                ax.contour(inside, levels=[0.5], colors=[colour_of(label, labels)], **line)
    return shown


def _name_plane(ax, plane, at):
    name, _, right, up = plane
    ax.set(title=f"{name}, slice {at}", xticks=[], yticks=[])
    box = {"color": "w", "transform": ax.transAxes, "bbox": {"fc": "k", "pad": 1}}
    ax.text(0.99, 0.5, right, ha="right", va="center", **box)
    ax.text(0.5, 0.99, up, ha="center", va="top", **box)


def _differences(true, pred):
    # 1 missed, 2 added, 3 other label, as in DIFFERENCES; 0 where they agree
    kinds = [np.uint16(kind) for kind in range(4)]
    return np.select([true == pred, pred == 0, true == 0], kinds[:3], kinds[3])


def view_case(image, affine, mask_true, mask_pred, labels):
    """Look through a case slice by slice, in a browser or a notebook, without widgets.

    Parameters
    ----------
    image : (x, y, z) or (x, y, z, channel) ndarray
        In RAS+; of several channels the first is shown. None for no scan.
    affine : (4, 4) ndarray
        From indices to mm.
    mask_true, mask_pred : (x, y, z) ndarray of integers
        Where they agree a label has its colour; elsewhere "missed", "added" and "other label"
        have theirs, as in `show_cases`.
    labels : dict of int to str
        Value and name of every label.

    Returns
    -------
    nilearn.plotting.html_stat_map.StatMapView
        Shows itself in a notebook; ``save_as_html(path)`` writes one self-contained file. Of
        scans of more than three million voxels (in cubes of their shortest side) blocks are shown
        as one voxel, as the title says: by their mean, and by the label or difference in them
        that is rarest in the scan, so that none vanishes. Words if there is no scan.
    """
    if image is None:
        return NOTHING
    from nilearn import plotting  # here, as it takes seconds
    from nilearn.image import resample_img

    image = image if image.ndim == 3 else image[..., 0]
    factors, side = choose_factors(image.shape, affine, VIEWED)
    affine = thin_affine(affine, factors)
    places = {label: place for place, label in enumerate(labels, start=4)}
    masks = mask_true, mask_pred
    kinds = pool_rarest(lambda t, p: _kinds(t, p, places), masks, factors)
    images = [(_grey(image, factors), "linear"), (kinds, "nearest")]
    grid = {"target_affine": np.eye(3) * side}  # cubes, else it is squeezed
    scan, overlay = (
        resample_img(nib.Nifti1Image(a.astype(np.float32), affine), interpolation=how, **grid)
        for a, how in images
    )
    colours = [*DIFFERENCES.values(), *(colour_of(label, labels) for label in labels)]
    look = {"cmap": ListedColormap(colours), "vmin": 0.5, "vmax": len(colours) + 0.5}
    look |= {"symmetric_cmap": False, "colorbar": False, "threshold": 0, "opacity": 0.6}
    look |= {"resampling_interpolation": "nearest", "black_bg": True, "dim": 0, "width_view": 800}
    look["draw_cross"] = False  # a voxel wide, it hides small structures
    if not kinds.any():  # then nilearn finds no place to cut
        look["cut_coords"] = nib.affines.apply_affine(affine, np.array(kinds.shape) // 2)
    if max(factors) > 1:
        block = " x ".join(map(str, factors))
        look["title"] = f"thinned: {block} voxels are shown as one, by their rarest label"
    return plotting.view_img(overlay, bg_img=scan, **look)


def _grey(image, factors):
    low, high = grey_range(image)
    scale = 1000 / (max(abs(low), abs(high)) or 1)  # to nilearn 0.000001 is background
    return np.clip(pool_mean(image, factors), low, high) * scale


def _kinds(true, pred, places):
    # 1 to 3 as in DIFFERENCES; where the masks agree the place of the label; 0 elsewhere
    kinds = np.zeros(true.shape, np.uint16)
    labelled = (true != 0) | (pred != 0)
    true, pred = true[labelled], pred[labelled]
    found = _differences(true, pred)
    values = np.array(sorted(places))
    numbers = np.array([places[value] for value in values.tolist()])
    agreed = true[found == 0]
    at = np.minimum(np.searchsorted(values, agreed), len(values) - 1)
    found[found == 0] = np.where(values[at] == agreed, numbers[at], 0)
    kinds[labelled] = found
    return kinds


def choose_factors(shape, affine, most):
    """Choose how many voxels are shown as one, so that cubes of one size are few enough.

    Parameters
    ----------
    shape : tuple of 3 int
    affine : (4, 4) ndarray
        From indices to mm. The size of voxels along an axis of length 1 has no influence.
    most : int
        Cubes that may fill the box, upright in mm, around the scan.

    Returns
    -------
    factors : tuple of int
        Per axis; all 1 if the scan is small.
    side_mm : float
        Of the cubes: the shortest side of the voxels shown, so that none falls between them.
    """
    shape, spacing = np.array(shape), voxel_sizes(affine)
    several = shape > 1 if (shape > 1).any() else shape > 0
    box_mm = np.abs(affine[:3, :3]) @ shape
    most *= np.prod(shape * spacing) / np.prod(box_mm)  # fewer if the scan stands aslant in it
    target = spacing[several].min()
    while True:
        factors = np.minimum(np.ceil(target / spacing * (1 - 1e-9)).astype(int), shape)
        factors = np.maximum(factors, 1)
        side = (spacing * factors)[several].min()
        cubes = np.prod(np.ceil(-(-shape // factors) * factors * spacing / side)[several])
        if cubes <= most or (factors == shape).all():
            return tuple(factors.tolist()), float(side)
        target *= 1.05


def thin_affine(affine, factors):
    """Affine of the voxels shown, each at the middle of those that it stands for.

    Parameters
    ----------
    affine : (4, 4) ndarray
    factors : tuple of 3 int

    Returns
    -------
    (4, 4) ndarray
    """
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (np.array(factors) - 1) / 2
    return affine @ step


def pool_mean(array, factors):
    """Mean of every block of voxels.

    Parameters
    ----------
    array : (...) ndarray of numbers
    factors : tuple of int
        Voxels of a block along each axis; the last block of an axis may hold fewer.

    Returns
    -------
    (...) ndarray of float32
    """
    total = _pool(np.add, lambda part: array[part].astype(np.float32), array, factors)
    for axis, (length, factor) in enumerate(zip(array.shape, factors, strict=True)):
        sizes = np.diff(np.arange(0, length, factor), append=length)
        total /= np.expand_dims(
            sizes.astype(np.float32), [a for a in range(array.ndim) if a != axis]
        )
    return total


def pool_max(array, factors):
    """Largest value of every block of voxels; parameters as of `pool_mean`."""
    return _pool(np.maximum, lambda part: array[part], array, factors)


def pool_rarest(kinds_of, arrays, factors):
    """Of every block of voxels the kind that is rarest in the whole scan, so that none vanishes.

    Parameters
    ----------
    kinds_of : callable
        Makes (...) uint16 kinds of a part of each of the arrays; 0 is nothing, shown only where a
        block holds nothing else.
    arrays : sequence of (...) ndarray
        Of one shape.
    factors : tuple of int
        As for `pool_mean`.

    Returns
    -------
    (...) ndarray of uint16
    """
    if set(factors) == {1}:
        return kinds_of(*arrays)
    every = tuple(slice(None, None, factor) for factor in factors)
    counts = np.bincount(kinds_of(*(array[every] for array in arrays)).ravel(), minlength=2**16)
    counts[0] = counts.max() + 1  # first of all, as the most frequent
    by_rank = np.argsort(-counts, kind="stable").astype(np.uint16)
    rank_of = np.argsort(by_rank).astype(np.uint16)

    def ranks(part):
        return rank_of[kinds_of(*(array[part] for array in arrays))]

    return by_rank[_pool(np.maximum, ranks, arrays[0], factors)]


def slabs(array, factors=None):
    """Cut an array, whatever its order in memory, into parts that are small; whole blocks each.

    Parameters
    ----------
    array : (...) ndarray
    factors : tuple of int, optional
        Voxels of a block along each axis; by default 1.

    Yields
    ------
    part, place : tuple of slice
        Of the array, and of the blocks.
    """
    factors = factors or (1,) * array.ndim
    axis = int(np.argmax(np.abs(array.strides) * (np.array(array.shape) > 1)))  # the slowest
    layer = array.size // array.shape[axis] * factors[axis]
    blocks = max(1, AT_ONCE // layer)
    whole = [slice(None)] * array.ndim
    for first in range(0, -(-array.shape[axis] // factors[axis]), blocks):
        part, place = list(whole), list(whole)
        place[axis] = slice(first, first + blocks)
        part[axis] = slice(first * factors[axis], (first + blocks) * factors[axis])
        yield tuple(part), tuple(place)


def _pool(ufunc, load, array, factors):
    pooled = None
    for part, place in slabs(array, factors):
        block = load(part)
        for axis, factor in enumerate(factors):
            if factor > 1:
                block = ufunc.reduceat(block, np.arange(0, block.shape[axis], factor), axis=axis)
        if pooled is None:
            shape = [-(-n // factor) for n, factor in zip(array.shape, factors, strict=True)]
            pooled = np.empty(shape, block.dtype)
        pooled[place] = block
    return pooled


def grey_range(image):
    """Intensities to show as black and white: percentiles 0.5 and 99.5.

    Parameters
    ----------
    image : (...) ndarray
        Of large ones every n-th voxel along each axis is looked at.

    Returns
    -------
    tuple of float
        (0, 1) if no voxel is finite; the lowest and the highest if both percentiles are the same.
    """
    long = sum(n > 1 for n in image.shape) or 1
    step = int(np.ceil((image.size / SAMPLED) ** (1 / long)))
    values = image[(slice(None, None, step),) * image.ndim]
    values = values[np.isfinite(values)]
    seen = np.percentile(values, (0.5, 99.5)) if values.size else (0, 1)
    if seen[0] == seen[1]:  # nearly all of it is air: what is not may have been passed over
        seen = np.quantile(image[np.isfinite(image)], (0, 1))
    return tuple(map(float, seen))
