"""How far a prediction can be trusted: trained range, agreement of the folds, calibration."""

import itertools

import numpy as np
import pandas as pd
from scipy import ndimage, optimize

from unetseg.digits import read_numbers, short
from unetseg.metrics import dice
from unetseg.reading import intensities
from unetseg.run.layout import Run

NEAR = 3  # voxels around the structures in which calibration is looked at
AGREEMENT = 0.8  # Dice between the folds that is usual where no score is known
# Of the trained values, how far beyond them still counts as like them.
MARGINS = {"spacing, mm,": (0.9, 1.1), "field of view, mm,": (0.8, 1.25), "brightness": (0.5, 2)}
SMOOTHNESS = "smoothness (0 is noise)"
NOT_KNOWN = [np.nan] * len(intensities.PERCENTILES)
# The percentiles of a channel vary by so much of its range, and the range by so much of itself,
# even if few cases tell.
USUAL_SPREAD = np.array([0.05] * (len(intensities.PERCENTILES) - 2) + [0.3])


def compare_with_training(table, trained):
    """Say which scans differ from those that the models were trained on, and how.

    Parameters
    ----------
    table, trained : pandas.DataFrame
        As `unetseg.cases.check_cases` returns it, of the new scans and of the training cases;
        the latter may have been read from ``cases.csv``.

    Returns
    -------
    pandas.Series of str
        By case: what lies outside of the trained range, empty if nothing does. Spacing and field
        of view are compared along x, y and z, with a margin of 10 and of 25 %; brightness is the
        99th percentile of the intensities (half to double); contrast is where the median lies
        between the 1st and the 99th (0.1 beyond, of one of several channels 0.2); smoothness is
        the correlation of neighbouring voxels, which noise does not have (0.2 beyond, or half);
        and the order in which the voxels are stored must have occurred, as left and right are
        told by the header alone. Several channels are compared one by one, and with one another:
        those that fit the training better in another order are told. What ``cases.csv`` of an
        earlier version lacks is not compared.
    """
    by_channel = _describes_channels(trained) and _describes_channels(table)
    known, new = _facts(trained, by_channel), _facts(table, by_channel)
    outside = pd.Series("", index=table["case"].astype(str), name="outside")
    for column in known.columns.intersection(new.columns, sort=False).drop("stored"):
        outside += _describe_outliers(new[column], known[column], column)
    outside += _describe_strange_orders(new["stored"], known["stored"])
    if by_channel:
        profiles = [_read_channels(cell) for cell in trained["intensities"]]
        outside += [_find_exchanged(cell, profiles) for cell in table["intensities"]]
    return outside.str.strip()


def _describe_outliers(values, trained, column):
    low, high = trained.min(), trained.max()
    if pd.isna(low):
        return [""] * len(values)
    least, most = _limits(column, low, high)
    seen = f"trained on {short(low)} to {short(high)}. "
    words = []
    for value in values:
        usual = pd.isna(value) or least <= value <= most
        words.append("" if usual else f"{column} is {short(value)}, {seen}")
    return words


def _describe_strange_orders(orders, trained):
    seen = sorted(set(trained.dropna()))
    words = []
    for order in orders:
        usual = pd.isna(order) or order in seen
        advice = f"in training as {', '.join(seen)}: check left and right. "
        words.append("" if usual else f"voxels are stored as {order}, {advice}")
    return words


def _limits(column, low, high):
    if column.startswith("contrast"):
        room = 0.2 if "channel" in column else 0.1  # without the background it varies more
        return low - room, high + room
    if column == SMOOTHNESS:
        return low - min(0.2, abs(low) / 2), high + 0.2
    below, above = next((m for start, m in MARGINS.items() if column.startswith(start)), (1, 1))
    return low - (1 - below) * abs(low), high + (above - 1) * abs(high)


def _describes_channels(table):
    if "intensities" not in table:
        return False
    return any(len(_read_channels(cell)) > 1 for cell in table["intensities"])


def _read_channels(cell):
    # (channel, percentile), from memory or from a file; without a row if nothing is known.
    numbers, n = read_numbers(cell), len(intensities.PERCENTILES)
    return np.reshape(numbers if len(numbers) % n == 0 else [], (-1, n))


def _facts(table, by_channel):
    # A column per fact that is compared; what a table does not tell is left out.
    shape, spacing = (table[name].map(read_numbers) for name in ("shape", "spacing_mm"))
    stored = table["orientation"].where(
        table["orientation"] != ""
    )  # of a file that is not readable
    facts = pd.DataFrame({"stored": stored, "number of channels": table["channels"]})
    for axis, letter in enumerate("xyz"):
        mm = spacing.str[axis].astype(float)
        mm = mm.where(mm > 0)  # earlier versions rounded 0.0004 to 0
        facts[f"spacing, mm, along {letter}"] = mm
        facts[f"field of view, mm, along {letter}"] = shape.str[axis].astype(float) * mm
    if by_channel:
        _add_intensities_by_channel(facts, table)
    elif "intensity_p1" in table:
        low, middle, high = (table[name].astype(float) for name in intensities.POOLED)
        facts["brightness"] = high
        facts["contrast"] = _contrast(low, middle, high)
    if "smoothness" in table:
        facts[SMOOTHNESS] = table["smoothness"].astype(float)
    return facts


def _add_intensities_by_channel(facts, table):
    scans = [_read_channels(cell) for cell in table["intensities"]]
    place = intensities.PERCENTILES.index(50)
    for k in range(max(map(len, scans))):
        rows = np.array([scan[k] if k < len(scan) else NOT_KNOWN for scan in scans])
        low, middle, high = rows[:, 0], rows[:, place], rows[:, -1]
        facts[f"brightness of channel {k + 1}"] = high
        facts[f"contrast of channel {k + 1}"] = _contrast(low, middle, high)


def _contrast(low, middle, high):
    with np.errstate(divide="ignore", invalid="ignore"):  # of a constant scan
        return (middle - low) / (high - low)


def _find_exchanged(cell, trained):
    # Words for channels that look more like others of training than like their own.
    scan = _read_channels(cell)
    alike = [profile for profile in trained if len(profile) == len(scan)]
    if len(scan) < 2 or not alike:
        return ""
    if not all(np.ptp(profile, axis=1).all() for profile in (scan, *alike)):
        return ""
    known = np.array([_features(profile) for profile in alike])  # (case, channel, feature)
    spread = np.maximum(known.std(axis=0), USUAL_SPREAD)
    away = (_features(scan)[:, None] - known.mean(axis=0)) / spread
    cost = (away**2).mean(axis=-1)  # of a channel of the scan (row) as one of training (column)
    rows, best = optimize.linear_sum_assignment(cost)
    as_is, exchanged = np.diag(cost).mean(), cost[rows, best].mean()
    if as_is < 1 or exchanged > as_is / 2:  # in order, as_is is about 1 and the least of all
        return ""
    moved = [str(k + 1) for k in rows if best[k] != k]
    if len(moved) == 2:
        return f"channels {' and '.join(moved)} look exchanged: check their order. "
    order = ", ".join(str(k + 1) for k in np.argsort(best))
    return f"channels look as if they belonged in the order {order}: check it. "


def _features(profile):
    # None depends on the unit: where the percentiles of a channel lie between its lowest and its
    # highest, and how wide its range is (as a logarithm) beside that of the other channels.
    width = np.ptp(profile, axis=1)
    inner = (profile[:, 1:-1] - profile[:, :1]) / width[:, None]
    wide = np.log(width) - np.log(width).mean()
    return np.column_stack([inner, wide])


def describe_votes(votes, labels, voxel_ml):
    """Say how far the models of an ensemble agree on one scan.

    Parameters
    ----------
    votes : (model, x, y, z) ndarray of integers
        Class numbers by each model alone, as in `unetseg.prediction.Prediction`.
    labels : dict of int to str
        Value and name of the labels, in the order of their class numbers 1, 2 ...
    voxel_ml : float
        Volume of a voxel.

    Returns
    -------
    list of dict
        Per label: ``label``, ``name``; ``agreement``, the mean Dice between two models over all
        pairs, in [0, 1], NaN for a single model or if all pairs are empty (Roy et al. 2019); and
        ``volume_mean_ml``, ``volume_sd_ml`` (n - 1; NaN for a single model), ``volume_min_ml``
        and ``volume_max_ml`` over the models.
    """
    boxes = ndimage.find_objects(votes.any(axis=0).astype(np.uint8))
    box = boxes[0] if boxes else (slice(0, 1),) * 3
    votes = votes[(slice(None), *box)]
    rows = []
    for number, (label, name) in enumerate(labels.items(), start=1):
        masks = [vote == number for vote in votes]
        pairs = [dice(a, b) for a, b in itertools.combinations(masks, 2)]
        volumes = pd.Series([np.count_nonzero(mask) * voxel_ml for mask in masks])
        rows.append(
            {
                "label": label,
                "name": name,
                "agreement": pd.Series(pairs, dtype=float).mean(),
                "volume_mean_ml": volumes.mean(),
                "volume_min_ml": volumes.min(),
                "volume_max_ml": volumes.max(),
                "volume_sd_ml": volumes.std(),
            }
        )
    return rows


def flag(predicted, outside, trained, usual=None):
    """Say which predictions a person should look at first, and why.

    Parameters
    ----------
    predicted : pandas.DataFrame
        As `unetseg.inference.predict_scans` returns it.
    outside : pandas.Series of str
        As `compare_with_training` returns it.
    trained : pandas.DataFrame
        Of the training cases, with ``volume_ml``.
    usual : mapping of int to float, optional
        Per label, the mean Dice in cross-validation (`unetseg.scores.list_means`); 0.8 for others.

    Returns
    -------
    pandas.DataFrame
        A row per scan: ``case``, ``agreement`` (the lowest of its labels), ``volume_ml`` (of all
        labels), and ``look_at``: why, empty if there is no reason. Reasons are a problem of the
        file, a label that was not found, folds that agree less with one another than they usually
        do with the truth, a volume of less than half or more than twice of what was seen in
        training, and what is `outside`. Files with a problem come first, then the scans with the
        most reasons, then those with the lowest agreement, or of a single model the highest
        uncertainty.
    """
    usual, rows = {} if usual is None else dict(usual), []
    for case, part in predicted.groupby("case", sort=False):
        broken = [text.rstrip(".") for text in part["problem"].unique() if text]
        known = part["volume_ml"].mask(_is_rounded_away(part, usual))
        part = part.assign(volume_ml=known)
        reasons = [*broken, *_doubt_labels(part, usual), *_doubt_volume(part, trained)]
        if outside.get(case):
            reasons.append(outside[case].rstrip("."))
        row = {
            "case": case,
            "agreement": part["agreement"].min(),
            "volume_ml": part["volume_ml"].sum(min_count=1),
            "look_at": "; ".join(reasons),
        }
        unsure = part["uncertainty"].max() if "uncertainty" in part else 0.0
        order = -len(broken), -len(reasons), row["agreement"], -unsure
        rows.append((order, row))
    rows.sort(key=lambda row: tuple(np.nan_to_num(row[0], nan=2.0)))
    return pd.DataFrame([row for _, row in rows])


def _doubt_labels(part, usual):
    reasons = []
    for row in part.dropna(subset=["volume_ml"]).itertuples():
        if row.volume_ml == 0:
            reasons.append(f"no {row.name} was found")
        elif row.agreement < usual.get(row.label, AGREEMENT):
            reasons.append(f"the folds agree by a Dice of {row.agreement:.2f} on {row.name}")
    return reasons


def _doubt_volume(part, trained):
    low, high = trained["volume_ml"].min(), trained["volume_ml"].max()
    total = part["volume_ml"].sum(min_count=1)
    # Earlier versions rounded the volumes of small voxels to 0: then nothing is known.
    if not high > 0 or not (total < low / 2 or total > 2 * high):
        return []
    return [f"{short(total)} ml are labelled, trained on {short(low)} to {short(high)}"]


def _is_rounded_away(predicted, usual):
    # Tables of earlier versions tell the volumes of small voxels as 0. Where folds agree on a
    # label there is one.
    least = [usual.get(label, AGREEMENT) for label in predicted.get("label", predicted["case"])]
    return (predicted["volume_ml"] == 0) & (predicted["agreement"] >= least)


def sample_voxels(probabilities, truth, rng, most=20_000):
    """Draw voxels of a case to look at the calibration of its probabilities.

    Far from the structures everything is background with certainty, and would hide the rest.

    Parameters
    ----------
    probabilities : (x, y, z, class) ndarray of float32
    truth : (x, y, z) ndarray of integers
        Class numbers.
    rng : numpy.random.Generator
    most : int, default 20000

    Returns
    -------
    probabilities : (n, class) ndarray of float32
    truth : (n,) ndarray of integers
        Of at most so many voxels within 3 voxels of where the truth or the prediction has a label.
    """
    chosen = choose_voxels(truth, probabilities.argmax(axis=-1), rng=rng, most=most)
    return probabilities.reshape(-1, probabilities.shape[-1])[chosen], truth.ravel()[chosen]


def choose_voxels(truth, predicted, *, rng, most, ignore=0):
    """Draw the voxels of `sample_voxels`, for which the probabilities need not be known.

    Parameters
    ----------
    truth, predicted : (x, y, z) ndarray of integers
        Class numbers or labels; 0 is the background.
    rng : numpy.random.Generator
    most : int
    ignore : int, default 0
        Value of voxels that nobody drew, of which none is taken.

    Returns
    -------
    (n,) ndarray of int64
        Flat indices.
    """
    drawn = truth != ignore if ignore else np.True_
    structures = ((truth != 0) | (predicted != 0)) & drawn
    near = np.flatnonzero(ndimage.binary_dilation(structures, iterations=NEAR) & drawn)
    return rng.choice(near, min(most, near.size), replace=False)


def soften(probabilities, temperature):
    """Divide the logits of probabilities by a temperature (Guo et al. 2017).

    Parameters
    ----------
    probabilities : (..., class) ndarray of float
    temperature : float
        Above 1 makes them less certain, below 1 more; the most probable class stays.

    Returns
    -------
    (..., class) ndarray of float32
        Sum to 1.
    """
    logits = np.log(np.maximum(probabilities, 1e-7)) / temperature  # as in the loss
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (raised / raised.sum(axis=-1, keepdims=True)).astype(np.float32)


def fit_temperature(probabilities, truth):
    """Find the temperature under which the true classes are most probable (Guo et al. 2017).

    Parameters
    ----------
    probabilities : (n, class) ndarray of float
    truth : (n,) ndarray of integers
        Class numbers.

    Returns
    -------
    float
        From 0.05 to 20.
    """

    def cross_entropy(log):
        softened = soften(probabilities, np.exp(log))
        right = np.take_along_axis(softened, truth[:, None], axis=-1)
        return -np.log(np.maximum(right, 1e-7)).mean()

    limits = np.log((0.05, 20))
    return float(np.exp(optimize.minimize_scalar(cross_entropy, bounds=limits).x))


def calibration_table(probabilities, truth, n_bins=10):
    """Compare how certain a prediction is with how often it is right.

    Parameters
    ----------
    probabilities : (n, class) ndarray of float
    truth : (n,) ndarray of integers
        Class numbers.
    n_bins : int, default 10
        Of equal width, of the probability of the predicted class.

    Returns
    -------
    pandas.DataFrame
        A row per bin that holds any voxel: its number ``bin``, ``n`` voxels, ``confidence``,
        their mean probability of the predicted class, and ``accuracy``, the share that is right.
    """
    confidence, right = probabilities.max(axis=-1), probabilities.argmax(axis=-1) == truth
    place = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    voxels = {"bin": place, "n": 1, "confidence": confidence.astype(float), "accuracy": right * 1.0}
    return pool_calibration(pd.DataFrame(voxels))


def pool_calibration(tables):
    """Put calibration tables together, such as those of all folds.

    Parameters
    ----------
    tables : pandas.DataFrame
        Rows as of `calibration_table`.

    Returns
    -------
    pandas.DataFrame
        The same with one row per ``bin``: means over all ``n`` voxels.
    """
    numbers = tables[["confidence", "accuracy"]].mul(tables["n"], axis=0)
    sums = numbers.assign(n=tables["n"]).groupby(tables["bin"]).sum()
    means = sums[["confidence", "accuracy"]].div(sums["n"], axis=0)
    return means.assign(n=sums["n"]).reset_index()[["bin", "n", "confidence", "accuracy"]]


def read_calibration(results_dir):
    """Read how honest the probabilities of an experiment were in cross-validation.

    Parameters
    ----------
    results_dir : str or Path

    Returns
    -------
    dict of str to pandas.DataFrame
        A table as of `calibration_table`, over all finished folds, of the probabilities ``as
        trained`` and ``calibrated``; empty if it was not counted.
    """
    files = [fold.calibration for fold in Run(results_dir).list_finished()]
    parts = [pd.read_csv(path) for path in files if path.exists()]
    if not parts:
        return {}
    stages = pd.concat(parts).groupby("stage", sort=False)
    return {stage: pool_calibration(part) for stage, part in stages}


def expected_calibration_error(table):
    """Mean difference of confidence and accuracy over the voxels, bin by bin (Naeini et al. 2015).

    Parameters
    ----------
    table : pandas.DataFrame
        As `calibration_table` returns it.

    Returns
    -------
    float
        In [0, 1]; 0 if every voxel is right as often as it is sure.
    """
    gap = (table["confidence"] - table["accuracy"]).abs()
    return float(np.average(gap, weights=table["n"]))
