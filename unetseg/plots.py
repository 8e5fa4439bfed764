"""Figures from arrays and tables. Every function returns a Figure; a label keeps its colour."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

# Okabe and Ito's colours, told apart by colour-blind readers and on grey.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#0072B2", "#F0E442")
PLANES = (("sagittal", 0, "A", "S"), ("coronal", 1, "R", "S"), ("axial", 2, "R", "A"))
STYLES = ("solid", "dashed")


def _figure(rows, columns, width, height, **kwargs):
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), layout="constrained", squeeze=False, **kwargs
    )
    plt.close(figure)  # else a notebook shows it twice
    return figure, axes


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
        for ax, (plane, axis, right, up) in zip(line, PLANES, strict=True):
            at = _fullest_slice(masks[0] != 0, axis)
            size = np.delete(spacing, axis) * np.delete(image.shape, axis)
            low, high = np.percentile(image, (0.5, 99.5))
            picture = np.take(image, at, axis).T
            kwargs = {"origin": "lower", "extent": (0, size[0], 0, size[1])}
            ax.imshow(picture, cmap="gray", vmin=low, vmax=high, **kwargs)
            for mask, style in zip(masks, STYLES, strict=False):
                _draw_contours(ax, np.take(mask, at, axis).T, labels, style, size)
            ax.set(title=f"{plane}, slice {at}", xticks=[], yticks=[])
            kwargs = {"color": "w", "transform": ax.transAxes, "bbox": {"fc": "k", "pad": 1}}
            ax.text(0.99, 0.5, right, ha="right", va="center", **kwargs)
            ax.text(0.5, 0.99, up, ha="center", va="top", **kwargs)
    lines = [Line2D([], [], color=colour_of(v, labels), label=n) for v, n in labels.items()]
    if len(names) > 1:
        styles = zip(names, STYLES, strict=True)
        lines += [Line2D([], [], color="k", linestyle=style, label=name) for name, style in styles]
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))
    return figure


def colour_of(label, labels):
    """Colour of a label, the same in every figure of a data set."""
    return COLOURS[list(labels).index(label) % len(COLOURS)]


def _fullest_slice(mask, axis):
    others = tuple(a for a in range(3) if a != axis)
    area = mask.sum(axis=others)
    return int(area.argmax()) if area.any() else mask.shape[axis] // 2


def _draw_contours(ax, mask, labels, style, size):
    across = (np.arange(mask.shape[1]) + 0.5) * size[0] / mask.shape[1]
    up = (np.arange(mask.shape[0]) + 0.5) * size[1] / mask.shape[0]
    for label in labels:
        inside = mask == label
        if inside.any() and min(mask.shape) > 1:
            ax.contour(
                *(across, up, inside),
                levels=[0.5],
                colors=[colour_of(label, labels)],
                linestyles=style,
                linewidths=1.2,
            )


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
        for axis in range(3):
            jitter = np.random.default_rng(0).uniform(-0.2, 0.2, len(values))
            ax.plot(axis + jitter, values[:, axis], "o", ms=3, color="0.4", alpha=0.6)
        ax.set(xticks=range(3), xticklabels="xyz", xlabel="axis", ylabel=unit)
        ax.set_ylim(0, 1.1 * values.max())
        ax.set_title(f"{column.split('_')[0]} (n = {len(values)})")
    order = np.arange(len(table))
    for column, style, colour in zip(("p99", "median", "p1"), "vo^", COLOURS, strict=False):
        values = table[f"intensity_{column}"]
        axes[0, 2].plot(order, values, style, ms=3, color=colour, label=column)
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
        for colour, (name, history) in zip(
            itertools.cycle(COLOURS), histories.items(), strict=False
        ):
            epochs = history["epoch"] + 1
            ax.plot(epochs, history[metric], color=colour, linestyle="dashed", alpha=0.6)
            ax.plot(epochs, history[f"val_{metric}"], color=colour, label=name)
        ax.set(title=f"{metric} (n = {len(histories)} folds)", xlabel="epoch", ylabel=metric)
        ax.xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].set_yscale("log")
    handles = [
        *axes[0, 0].get_legend_handles_labels()[0],
        Line2D([], [], color="0.3", label="validation"),
        Line2D([], [], color="0.3", linestyle="dashed", label="training"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
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
            jitter = np.random.default_rng(0).uniform(-0.18, 0.18, drawn.size)
            colour = colour_of(label, labels)
            ax.scatter(place + jitter, drawn, s=10, color=colour, alpha=0.6, linewidths=0)
            box = ax.boxplot(drawn, positions=[place], widths=0.5, showfliers=False)
            plt.setp(box["medians"], color="k")
        ax.set(xticks=range(len(labels)), xticklabels=labels.values())
        ax.set_ylabel("Dice, 0 to 1" if metric == "dice" else "mm")
        without = f", {lost} without a number" if lost else ""
        ax.set_title(f"{title} (n = {scores['case'].nunique()} cases{without})")
    axes[0, 0].set_ylim(top=1)
    for ax in axes[0, 1:]:
        ax.set_ylim(bottom=0)
    return figure
