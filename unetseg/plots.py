"""Figures from arrays and tables. Every function returns a Figure; a label keeps its colour."""

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D

from unetseg import thinning
from unetseg._base import require

# Okabe and Ito's colours, told apart by colour-blind readers and on grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
PLANES = (("sagittal", 0, "A", "S"), ("coronal", 1, "R", "S"), ("axial", 2, "R", "A"))
GREY = plt.get_cmap("gray", 64)  # levels: more are not seen, and double the file
VIEWED = 3_000_000  # voxels that the viewer takes in a few seconds
DRAWN = 1000  # pixels along a side of a picture; a panel of a figure has fewer
STYLES = ("solid", "dashed")
NOTHING = "Nothing to show."
DIFFERENCES = {"missed": "#0000FF", "added": "#FFFF00", "other label": "#FF00FF"}  # no label's


def _figure(rows, columns, width, height):
    kwargs = {"figsize": (width, height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **kwargs)
    plt.close(figure)  # else a notebook shows it twice
    return figure, axes


def _add_legend(figure, entries):
    lines = [Line2D([], [], label=name, **style) for name, style in entries]
    columns = min(len(lines), int(figure.get_figwidth() / 1.6))  # inches an entry
    figure.legend(handles=lines, loc="outside lower center", ncols=columns)


def _jitter(n):
    return np.random.default_rng(0).uniform(-0.2, 0.2, n)


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
    require(
        "differences", differences, pairs or not differences, "False, but for rows of two masks"
    )
    require("maps", maps, not (maps and differences), "None where differences are shown")
    repeats = 1 + (differences or maps is not None)
    side = 2.1 if repeats == 2 else 3  # inches
    figure, axes = _figure(repeats * len(rows), 3, 3 * side, side * repeats * len(rows))
    spacings = np.broadcast_to(spacing_mm, (len(rows), 3))
    below = "uncertainty" if maps else "where they disagree"
    for number, ((title, image, masks), spacing) in enumerate(zip(rows, spacings, strict=True)):
        image = image if image.ndim == 3 else image[..., 0]
        seen = _busiest_slices(masks[0]), thinning.grey_range(image)
        for line, drawn in zip(axes[repeats * number :], (labels, {})[:repeats], strict=False):
            line[0].set_ylabel(title if drawn else below)
            heat = maps[number] if maps and not drawn else None
            shown = _show_planes(line, image, masks, spacing, seen, drawn, heat)
    if maps:
        figure.colorbar(shown, ax=axes, shrink=0.5 / len(rows), label="uncertainty, 0 to 1")
    legend = [(name, {"color": colour_of(label, labels)}) for label, name in labels.items()]
    if len(names) > 1:
        styles = zip(names, STYLES, strict=True)
        legend += [(name, {"color": "k", "linestyle": style}) for name, style in styles]
    _add_legend(figure, legend + [(n, {"color": c}) for n, c in DIFFERENCES.items()] * differences)
    return figure


def colour_of(label, labels):
    """Colour of a label, the same in every figure of a data set."""
    return COLOURS[list(labels).index(label) % len(COLOURS)]


def _busiest_slices(mask):
    # Along each axis the slice that holds most of the mask; the middle if it is empty.
    areas = [np.zeros(length, int) for length in mask.shape]
    for part, _ in thinning.slabs(mask):
        inside = mask[part] != 0
        for axis, area in enumerate(areas):
            area[part[axis]] += inside.sum(axis=tuple({0, 1, 2} - {axis}))
    return [int(area.argmax()) if area.any() else len(area) // 2 for area in areas]


def _show_planes(axes, image, masks, spacing, seen, labels, heat):
    places, grey = seen
    for ax, plane, at in zip(axes, PLANES, places, strict=True):
        cut = (slice(None),) * plane[1] + (at,)  # a view; np.take may copy the whole volume
        flat = [volume[cut].T for volume in (image, *masks)]
        hot = None if heat is None else heat[cut].T
        sides = np.delete(spacing, plane[1])[::-1]
        shown = _show_plane(ax, flat[0], flat[1:], sides, grey, labels, hot)
        _name_plane(ax, plane, at)
    return shown


def _show_plane(ax, image, masks, spacing, grey, labels, heat):
    # All are slices of one shape (rows, columns); labels is empty to show where masks disagree.
    factors = [-(-length // DRAWN) for length in image.shape]
    picture = thinning.pool_mean(image, factors)
    height, width = spacing * picture.shape * factors
    place = {"origin": "lower", "extent": (0, width, 0, height)}
    sharp = {"interpolation": "nearest", **place}
    ax.imshow(picture, cmap=GREY, vmin=grey[0], vmax=grey[1], **sharp)
    shown = None
    if heat is not None:
        hot = np.ma.masked_less(thinning.pool_max(heat, factors), 0.05)
        shown = ax.imshow(hot, cmap="plasma", vmin=0, vmax=1, **sharp)
    elif not labels:
        colours = ListedColormap(list(DIFFERENCES.values()))
        kinds = thinning.pool_rarest(_differences, masks, factors)
        ax.imshow(np.ma.masked_equal(kinds, 0), cmap=colours, vmin=1, vmax=3, **sharp)
    for mask, style in zip(masks, STYLES, strict=False):
        for label in labels:
            inside = thinning.pool_max(mask == label, factors)
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
    factors, side = thinning.choose_factors(image.shape, affine, VIEWED)
    affine = thinning.thin_affine(affine, factors)
    places = {label: place for place, label in enumerate(labels, start=4)}
    masks = mask_true, mask_pred
    kinds = thinning.pool_rarest(lambda t, p: _kinds(t, p, places), masks, factors)
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
    low, high = thinning.grey_range(image)
    scale = 1000 / (max(abs(low), abs(high)) or 1)  # to nilearn 0.000001 is background
    return np.clip(thinning.pool_mean(image, factors), low, high) * scale


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


def cases_overview(table):
    """Show shape, spacing, intensity and labelled volume of all cases.

    Parameters
    ----------
    table : pandas.DataFrame
        As `unetseg.cases.check_cases` returns it.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _figure(1, 4, 12, 3)
    table = table.dropna(subset=["shape"])
    for column, unit, ax in (("shape", "voxels", axes[0, 0]), ("spacing_mm", "mm", axes[0, 1])):
        values = np.array(table[column].tolist())
        places = range(3) + _jitter(len(values))[:, None]
        ax.plot(places, values, "o", ms=3, color="0.4", alpha=0.6)
        ax.set(xticks=range(3), xticklabels="xyz", xlabel="axis", ylabel=unit)
        ax.set(title=f"{column.split('_')[0]} (n = {len(values)})", ylim=(0, 1.1 * values.max()))
    for column, style, colour in zip(("p99", "median", "p1"), "vo^", COLOURS, strict=False):
        values = table[f"intensity_{column}"].tolist()
        axes[0, 2].plot(values, style, ms=3, color=colour, label=column)
    axes[0, 2].set(title=f"intensity (n = {len(table)})", xlabel="case", ylabel="stored units")
    axes[0, 2].legend()
    volumes = table["volume_ml"].dropna().astype(float)
    middle = volumes.mean()
    alike = len(volumes) and np.ptp(volumes) <= 1e-6 * middle  # else the bar would be 1 ml wide
    bins = {"bins": 1, "range": (0.9 * middle, 1.1 * middle)} if alike else {"bins": "auto"}
    axes[0, 3].hist(volumes, color="0.5", **bins)
    axes[0, 3].set(title=f"labelled volume (n = {len(volumes)})", xlabel="ml", ylabel="cases")
    return figure


def learning_curves(histories):
    """Show loss, accuracy and Dice of training and validation over the epochs of all folds.

    Parameters
    ----------
    histories : dict of str to pandas.DataFrame
        Per fold the table ``history.csv``.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _figure(1, 3, 12, 3.5)
    for ax, metric in zip(axes[0], ("loss", "accuracy", "dice"), strict=True):
        for name, history in histories.items():
            epochs, colour = history["epoch"] + 1, colour_of(name, histories)
            ax.plot(epochs, history[metric], color=colour, linestyle="dashed", alpha=0.6)
            ax.plot(epochs, history[f"val_{metric}"], color=colour)
        ax.set(title=f"{metric} (n = {len(histories)} folds)", xlabel="epoch", ylabel=metric)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    legend = [(name, {"color": colour_of(name, histories)}) for name in histories]
    legend += [("validation", {"color": "0.3"}), ("training", {"color": "0.3", "linestyle": "--"})]
    _add_legend(figure, legend)
    return figure


def score_boxes(scores, labels):
    """Show Dice, Hausdorff distance and HD95 per label and fold: boxes with a point per case.

    Parameters
    ----------
    scores : pandas.DataFrame
        As `unetseg.scores.score_predictions` returns it.
    labels : dict of int to str
        Value and name of every label.

    Returns
    -------
    matplotlib.figure.Figure
        What is NaN or inf cannot be drawn; the titles count it.
    """
    folds = sorted(scores["fold"].unique())
    figure, axes = _figure(3, 1, 3 + 0.6 * len(labels) * (len(folds) + 1), 9)
    titles = {"dice": "Dice", "hausdorff_mm": "Hausdorff distance", "hd95_mm": "HD95"}
    starts = np.arange(len(labels)) * (len(folds) + 1)
    for ax, (metric, title) in zip(axes[:, 0], titles.items(), strict=True):
        lost = int((~np.isfinite(scores[metric].astype(float))).sum())
        for (label, fold), part in scores.groupby(["label", "fold"]):
            drawn = part[metric].to_numpy(float)
            drawn = drawn[np.isfinite(drawn)]
            place = starts[list(labels).index(label)] + folds.index(fold)
            points = {"s": 18, "color": colour_of(label, labels), "alpha": 0.9, "linewidths": 0}
            ax.scatter(place + _jitter(drawn.size), drawn, zorder=3, **points)
            lines = {name: {"color": "0.6"} for name in ("boxprops", "whiskerprops", "capprops")}
            lines["medianprops"] = {"color": "k", "zorder": 4}
            ax.boxplot(drawn, positions=[place], widths=0.6, sym="", **lines)
        places = starts[:, None] + range(len(folds))
        ax.set_xticks(places.ravel(), [f"fold {fold}" for fold in folds] * len(labels))
        above = ax.secondary_xaxis("top")
        above.set_xticks(places.mean(axis=1), labels.values())
        above.tick_params(length=0)
        share = metric == "dice"
        ax.set(ylabel="Dice, 0 to 1" if share else f"{title}, mm")
        highest = scores[metric][np.isfinite(scores[metric].astype(float))].max()
        ax.set_ylim((None, 1) if share else (0, 1.05 * highest if highest > 0 else 1))
        without = f"; {lost} values are NaN or inf and not drawn" if lost else ""
        ax.set_title(f"{title} (n = {scores['case'].nunique()} cases{without})")
    return figure


def volume_agreement(scores, labels):
    """Bland-Altman plot of the volumes: a panel per label.

    Parameters
    ----------
    scores, labels
        As for `score_boxes`.

    Returns
    -------
    matplotlib.figure.Figure
        The mean difference (predicted - true, solid) and the limits of agreement, 1.96 SD around
        it (dashed), over all cases (Bland and Altman 1986).
    """
    figure, axes = _figure(1, len(labels), max(5, 4 * len(labels)), 4)
    for ax, (label, name) in zip(axes[0], labels.items(), strict=True):
        part = scores[scores["label"] == label]
        difference = part["volume_difference_ml"]
        mean, sd = difference.mean(), difference.std()
        middle = (part["volume_true_ml"] + part["volume_pred_ml"]) / 2
        ax.scatter(middle, difference, s=12, color=colour_of(label, labels), alpha=0.7)
        ax.axhline(mean, color="k", label=f"mean {mean:+.4g} ml")
        if len(part) > 1:
            low, high = mean - 1.96 * sd, mean + 1.96 * sd
            ax.axhline(low, color="k", ls="dashed", label=f"limits {low:+.4g} to {high:+.4g} ml")
            ax.axhline(high, color="k", ls="dashed")
        ax.set(xlabel="mean of true and predicted volume, ml", ylabel="predicted - true, ml")
        ax.set_title(f"{name} (n = {len(part)})")
        ax.legend(loc="best", fontsize="small")
    return figure


def dice_by_size(scores, labels):
    """Show Dice against the true volume: small structures score lower for the same contour error.

    Parameters
    ----------
    scores, labels
        As for `score_boxes`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _figure(1, 1, 6, 4)
    for label, name in labels.items():
        part = scores[scores["label"] == label]
        look = {"s": 12, "color": colour_of(label, labels), "alpha": 0.7}
        axes[0, 0].scatter(part["volume_true_ml"], part["dice"], label=name, **look)
    axes[0, 0].set(xlabel="true volume, ml", ylabel="Dice, 0 to 1", ylim=(None, 1.01))
    lost = int(scores["dice"].isna().sum())
    without = f"; {lost} values are NaN and not drawn" if lost else ""
    axes[0, 0].set_title(f"Dice and size (n = {scores['case'].nunique()} cases{without})")
    axes[0, 0].legend()
    return figure


def confusion(counts, n_cases):
    """Show what was predicted where a label is: shares of the voxels of each true label.

    Parameters
    ----------
    counts : pandas.DataFrame
        As `unetseg.scores.count_confusion` returns it.
    n_cases : int

    Returns
    -------
    matplotlib.figure.Figure
    """
    shares = counts.div(counts.sum(axis=1).replace(0, 1), axis=0)
    side = 2.5 + 0.8 * len(counts)
    figure, axes = _figure(1, 1, side, 0.9 * side)
    axes[0, 0].imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        text = f"{100 * share:.1f} %\n{counts.iloc[row, column]:,}"
        colour = "w" if share > 0.5 else "k"
        axes[0, 0].text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(counts))
    axes[0, 0].set_xticks(ticks, counts.columns)
    axes[0, 0].set_yticks(ticks, counts.index)
    axes[0, 0].set(xlabel="predicted", ylabel="true", title=f"Voxels (n = {n_cases} cases)")
    return figure


def quality_estimate(estimate, dices, labels, *, rho):
    """Show how well an estimate of quality, such as the agreement of the folds, foretells Dice.

    Parameters
    ----------
    estimate, dices : dict of int to (n,) array of float
        Per label, a number per case.
    labels : dict of int to str
        Value and name of every label.
    rho : dict of int to (rho, low, high)
        As `unetseg.reliability.rank_correlation` returns it, per label.

    Returns
    -------
    matplotlib.figure.Figure
        Pairs in which either is not finite are neither drawn nor counted.
    """
    figure, axes = _figure(1, len(labels), max(5, 4 * len(labels)), 4)
    for ax, (label, name) in zip(axes[0], labels.items(), strict=True):
        pairs = np.array([estimate[label], dices[label]], float)
        pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
        ax.scatter(*pairs, s=16, color=colour_of(label, labels), alpha=0.7)
        ax.set(xlabel="mean Dice between the folds", ylabel="Dice with the truth")
        for values, set_limits in zip(pairs, (ax.set_xlim, ax.set_ylim), strict=True):
            if values.size:  # a few thousandths are not drawn as if they were much
                half = max(0.05, 0.55 * np.ptp(values))
                set_limits((values.min() + values.max()) / 2 + np.array([-half, half]))
        middle, low, high = rho[label]
        title = f"{name}: rank correlation {middle:.2f}\n({low:.2f} to {high:.2f}, "
        title = f"{name}: no rank correlation\n(" if np.isnan(middle) else title
        ax.set_title(f"{title}n = {pairs.shape[1]})")
    return figure


def reliability_curves(tables, errors):
    """Show how often voxels are right against how sure the prediction is of them.

    Parameters
    ----------
    tables : dict of str to pandas.DataFrame
        As `unetseg.reliability.calibration_table` returns them, such as before and after.
    errors : dict of str to float
        The expected calibration error of each.

    Returns
    -------
    matplotlib.figure.Figure
        On the dashed line a voxel is right as often as the prediction is sure of it; below it
        the prediction is too sure.
    """
    figure, (axes, below) = _figure(2, 1, 5, 6)
    for (name, table), colour in zip(tables.items(), COLOURS, strict=False):
        look = {"color": colour, "label": f"{name}: expected error {errors[name]:.4f}"}
        axes[0].plot(table["confidence"], table["accuracy"], "o-", **look)
        below[0].plot(table["confidence"], table["n"], "o-", color=colour)
    axes[0].plot([0, 1], [0, 1], "k--", linewidth=1, label="right as often as sure")
    voxels = max(table["n"].sum() for table in tables.values())
    axes[0].set(ylabel="share that is right", title=f"{voxels:,} voxels near the structures")
    axes[0].legend()
    below[0].set(xlabel="probability of the predicted class", ylabel="voxels", yscale="log")
    for ax in (axes[0], below[0]):
        ax.set_xlim(0, 1.02)
    return figure
