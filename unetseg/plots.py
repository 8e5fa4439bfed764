"""Figures from arrays and tables. Every function returns a Figure; a label keeps its colour."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers and on grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
PLANES = (("sagittal", 0, "A", "S"), ("coronal", 1, "R", "S"), ("axial", 2, "R", "A"))
STYLES = ("solid", "dashed")


def _figure(rows, columns, width, height):
    kwargs = {"figsize": (width, height), "layout": "constrained", "squeeze": False}
    figure, axes = plt.subplots(rows, columns, **kwargs)
    plt.close(figure)  # else a notebook shows it twice
    return figure, axes


def _add_legend(figure, entries):
    lines = [Line2D([], [], label=name, **style) for name, style in entries]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


def _jitter(n):
    return np.random.default_rng(0).uniform(-0.2, 0.2, n)


def show_cases(rows, spacing_mm, labels, *, names=("mask",)):
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

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure, axes = _figure(len(rows), 3, 9, 3 * len(rows))
    spacings = np.broadcast_to(spacing_mm, (len(rows), 3))
    for line, (title, image, masks), spacing in zip(axes, rows, spacings, strict=True):
        line[0].set_ylabel(title)
        image = image if image.ndim == 3 else image[..., 0]
        for ax, plane in zip(line, PLANES, strict=True):
            _show_plane(ax, plane, image, masks, spacing, labels)
    legend = [(name, {"color": colour_of(label, labels)}) for label, name in labels.items()]
    if len(names) > 1:
        styles = zip(names, STYLES, strict=True)
        legend += [(name, {"color": "k", "linestyle": style}) for name, style in styles]
    _add_legend(figure, legend)
    return figure


def colour_of(label, labels):
    """Colour of a label, the same in every figure of a data set."""
    return COLOURS[list(labels).index(label) % len(COLOURS)]


def _show_plane(ax, plane, image, masks, spacing, labels):
    name, axis, right, up = plane
    area = (masks[0] != 0).sum(axis=tuple({0, 1, 2} - {axis}))
    at = int(area.argmax()) if area.any() else len(area) // 2
    size = np.delete(spacing * image.shape, axis)
    low, high = np.percentile(image, (0.5, 99.5))
    place = {"origin": "lower", "extent": (0, size[0], 0, size[1])}
    ax.imshow(np.take(image, at, axis).T, cmap="gray", vmin=low, vmax=high, **place)
    for mask, style in zip(masks, STYLES, strict=False):
        flat = np.take(mask, at, axis).T
        for label in labels:
            inside = flat == label
            if inside.any() and min(inside.shape) > 1:
                line = {"linestyles": style, "linewidths": 1.2, **place}
                ax.contour(inside, levels=[0.5], colors=[colour_of(label, labels)], **line)
    ax.set(title=f"{name}, slice {at}", xticks=[], yticks=[])
    box = {"color": "w", "transform": ax.transAxes, "bbox": {"fc": "k", "pad": 1}}
    ax.text(0.99, 0.5, right, ha="right", va="center", **box)
    ax.text(0.5, 0.99, up, ha="center", va="top", **box)


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
    axes[0, 3].hist(volumes, bins="auto", color="0.5")
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
    """Show Dice, Hausdorff distance and HD95 per label: box plots with a point per case.

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
    figure, axes = _figure(1, 3, 12, 4)
    titles = {"dice": "Dice", "hausdorff_mm": "Hausdorff distance", "hd95_mm": "HD95"}
    for ax, (metric, title) in zip(axes[0], titles.items(), strict=True):
        lost = 0
        for place, label in enumerate(labels):
            values = scores.loc[scores["label"] == label, metric].to_numpy(float)
            drawn = values[np.isfinite(values)]
            lost += values.size - drawn.size
            points = {"s": 10, "color": colour_of(label, labels), "alpha": 0.6, "linewidths": 0}
            ax.scatter(place + _jitter(drawn.size), drawn, **points)
            ax.boxplot(drawn, positions=[place], widths=0.5, sym="", medianprops={"color": "k"})
        ax.set(xticks=range(len(labels)), xticklabels=labels.values())
        share = metric == "dice"
        ax.set(ylabel="Dice, 0 to 1" if share else "mm", ylim=(None, 1) if share else (0, None))
        without = f", {lost} without a number" if lost else ""
        ax.set_title(f"{title} (n = {scores['case'].nunique()} cases{without})")
    return figure
