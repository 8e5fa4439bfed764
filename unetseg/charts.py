"""Charts of tables: what was found of all cases. A label keeps its colour."""

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from unetseg.plots import COLOURS, NOTHING, add_legend, colour_of, new_figure

BOXES = {"dice": "Dice", "hausdorff_mm": "Hausdorff distance", "hd95_mm": "HD95"}
WIDEST = 12  # inches of a figure; what is wider cannot be read on a page
ACROSS = 3  # panels beside one another
LEGEND = 0.3  # of an axis' length, below what is drawn
SIZES = 5  # groups of lesions
MARKERS = "os^Dv*P"
LETTER = 0.09  # inches of a letter of a label's name


def _jitter(n):
    return np.random.default_rng(0).uniform(-0.2, 0.2, n)


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
    figure, axes = new_figure(1, 4, 12, 3)
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
    matplotlib.figure.Figure or str
        Words if there is no history.
    """
    if not histories:
        return NOTHING
    figure, axes = new_figure(1, 3, 12, 3.5)
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
    add_legend(figure, legend)
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
    width = min(max(6, 2 + 0.35 * len(labels) * (len(folds) + 1)), WIDEST)
    figure, axes = new_figure(3, 1, width, 9)
    room = (width - 1) / len(labels)  # inches
    crowded = max(map(len, labels.values())) * LETTER > room
    for ax, metric in zip(axes[:, 0], BOXES, strict=True):
        lost = 0
        for (label, fold), part in scores.groupby(["label", "fold"]):
            values = part[metric].to_numpy(float)
            finite = values[np.isfinite(values)]
            lost += len(values) - len(finite)
            place = list(labels).index(label) * (len(folds) + 1) + folds.index(fold)
            _draw_box(ax, place, finite, colour_of(label, labels))
        _name_boxes(ax, folds, labels, crowded=crowded)
        _set_heights(ax, metric, scores[metric])
        without = f"; {lost} values are NaN or inf and not drawn" if lost else ""
        title = f"{BOXES[metric]} (n = {scores['case'].nunique()} cases{without})"
        ax.set_title(title, fontsize="medium")
    return figure


def lesion_sensitivity(lesions, labels):
    """Show of true lesions of every size how many were found.

    Parameters
    ----------
    lesions : pandas.DataFrame or None
        As `unetseg.lesions.find_lesions` returns it.
    labels : dict of int to str
        Value and name of every label.

    Returns
    -------
    matplotlib.figure.Figure or str
        Up to five sizes with equally many lesions each; words if there is no lesion.
    """
    true = None if lesions is None else lesions[lesions["lesion"].isin(["found", "missed"])]
    if true is None or true.empty:
        return NOTHING
    figure, axes = new_figure(1, 1, 7, 3.5)
    ax = axes[0, 0]
    for label, part in true.groupby("label"):
        ordered = part.sort_values("volume_ml", kind="stable")
        groups = np.array_split(ordered.to_numpy(), min(SIZES, len(ordered)))
        volume, kind = (ordered.columns.get_loc(name) for name in ("volume_ml", "lesion"))
        sizes = [np.median(group[:, volume].astype(float)) for group in groups]
        shares = [(group[:, kind] == "found").mean() for group in groups]
        name = f"{labels[label]} (n = {len(part)} lesions)"
        look = {"color": colour_of(label, labels), "marker": _marker_of(label, labels)}
        ax.plot(sizes, shares, "-", label=name, **look)
    ax.set(xscale="log", xlabel="volume of the lesion, ml", ylabel="share found", ylim=(0, 1.05))
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.legend(loc="lower right")
    return figure


def _marker_of(label, labels):
    # Another one where the colours of labels begin again.
    return MARKERS[[*labels].index(label) // len(COLOURS) % len(MARKERS)]


def _draw_box(ax, place, values, colour):
    points = {"s": 18, "color": colour, "alpha": 0.9, "linewidths": 0}
    ax.scatter(place + _jitter(values.size), values, zorder=3, **points)
    lines = {name: {"color": "0.6"} for name in ("boxprops", "whiskerprops", "capprops")}
    median = {"color": "k", "zorder": 4}
    ax.boxplot(values, positions=[place], widths=0.6, sym="", medianprops=median, **lines)


def _name_boxes(ax, folds, labels, *, crowded):
    # Below each box its fold, above those of a label its name.
    starts = np.arange(len(labels)) * (len(folds) + 1)
    places = starts[:, None] + range(len(folds))
    ax.set_xticks(places.ravel(), folds * len(labels))
    ax.set_xlabel("fold")
    above = ax.secondary_xaxis("top")
    turn = {"rotation": 30, "ha": "left"} if crowded else {}
    above.set_xticks(places.mean(axis=1), labels.values(), **turn)
    above.tick_params(length=0)


def _set_heights(ax, metric, values):
    if metric == "dice":
        ax.set(ylabel="Dice, 0 to 1", ylim=(None, 1))
        return
    highest = values[np.isfinite(values.astype(float))].max()
    top = 1.05 * highest if highest > 0 else 1
    ax.set(ylabel=f"{BOXES[metric]}, mm", ylim=(0, top))


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
        it (dashed), over all cases that have the label in either mask (Bland and Altman 1986).
    """
    columns = min(ACROSS, len(labels))
    rows = -(-len(labels) // columns)
    figure, axes = new_figure(rows, columns, max(5, 4 * columns), 3.4 * rows)
    panels = list(axes.ravel())
    for ax in panels[len(labels) :]:
        ax.remove()
    for ax, (label, name) in zip(panels, labels.items(), strict=False):
        part = scores[scores["label"] == label]
        part = part[part[["volume_true_ml", "volume_pred_ml"]].any(axis=1)]
        ax.set(xlabel="mean of true and predicted volume, ml", ylabel="predicted - true, ml")
        ax.set_title(f"{name} (n = {len(part)})")
        if part.empty:
            continue
        difference = part["volume_difference_ml"]
        mean, sd = difference.mean(), difference.std()
        middle = (part["volume_true_ml"] + part["volume_pred_ml"]) / 2
        ax.scatter(middle, difference, s=12, color=colour_of(label, labels), alpha=0.7)
        ax.axhline(mean, color="k", label=f"mean {mean:+.4g} ml")
        if len(part) > 1:
            low, high = mean - 1.96 * sd, mean + 1.96 * sd
            ax.axhline(low, color="k", ls="dashed", label=f"limits {low:+.4g} to {high:+.4g} ml")
            ax.axhline(high, color="k", ls="dashed")
        bottom, top = ax.get_ylim()
        ax.set_ylim(bottom - LEGEND * (top - bottom), top)
        ax.legend(loc="lower center", fontsize="small")
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
    figure, axes = new_figure(1, 1, 7, 4)
    for label, name in labels.items():
        part = scores[scores["label"] == label]
        look = {"s": 12, "alpha": 0.7, "marker": _marker_of(label, labels)}
        look["color"] = colour_of(label, labels)
        axes[0, 0].scatter(part["volume_true_ml"], part["dice"], label=name, **look)
    axes[0, 0].set(xlabel="true volume, ml", ylabel="Dice, 0 to 1", ylim=(None, 1.01))
    lost = int(scores["dice"].isna().sum())
    without = f"; {lost} values are NaN and not drawn" if lost else ""
    axes[0, 0].set_title(f"Dice and size (n = {scores['case'].nunique()} cases{without})")
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
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
    figure, axes = new_figure(1, 1, side, 0.9 * side)
    axes[0, 0].imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        text = f"{100 * share:.1f} %\n{counts.iloc[row, column]:,}"
        colour = "w" if share > 0.5 else "k"
        axes[0, 0].text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    ticks = range(len(counts))
    turn = {"rotation": 45, "ha": "right"} if len(counts) > 5 else {}
    axes[0, 0].set_xticks(ticks, counts.columns, **turn)
    axes[0, 0].set_yticks(ticks, counts.index)
    axes[0, 0].set(xlabel="predicted", ylabel="true", title=f"Voxels (n = {n_cases} cases)")
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
    matplotlib.figure.Figure or str
        On the dashed line a voxel is right as often as the prediction is sure of it; below it
        the prediction is too sure. Words if there is no table.
    """
    if not tables:
        return "Trained before this was counted."
    figure, (axes, below) = new_figure(2, 1, 5, 6)
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
