"""Intensities of a scan, channel by channel: what tells kinds of scans, and noise, apart."""

import numpy as np

from unetseg.digits import significant

POOLED = {"intensity_p1": 1, "intensity_median": 50, "intensity_p99": 99}
PERCENTILES = (1, 10, 25, 50, 75, 90, 99)
COLUMNS = (*POOLED, "intensities", "smoothness")
FLAT = 0.05  # of the voxels: a value that so many have is no tissue but what lies around it
SAMPLED = 10**6  # voxels or pairs of neighbours; more would change no digit that is looked at


def describe(channels):
    """Describe the intensities of a scan, by every n-th voxel if there are over two million.

    Parameters
    ----------
    channels : (channel, x, y, z) ndarray

    Returns
    -------
    dict
        ``intensity_p1``, ``intensity_median`` and ``intensity_p99``, percentiles of all channels
        together; ``intensities``, per channel a tuple of percentiles 1, 10, 25, 50, 75, 90 and 99
        without a background of one value (`find_background`), or None if voxels are not finite;
        and ``smoothness``, as `measure_smoothness`.
    """
    step = channels.size // SAMPLED | 1  # odd, as most sides are not
    samples = [channel.ravel(order="K")[::step].copy() for channel in channels]  # no whole copies
    backgrounds = [find_background(values) for values in samples]
    with np.errstate(over="ignore", invalid="ignore"):  # huge and infinite voxels
        pooled = significant(np.percentile(samples, [*POOLED.values()]))
        facts = dict(zip(POOLED, pooled.tolist(), strict=True))
        facts["intensities"] = None
        if np.isfinite(samples).all():
            pairs = zip(samples, backgrounds, strict=True)
            facts["intensities"] = tuple(_percentiles(*pair) for pair in pairs)
        facts["smoothness"] = measure_smoothness(channels, backgrounds)
    return facts


def _percentiles(values, background):
    values = values[values != background]
    return tuple(significant(np.percentile(values, PERCENTILES)).tolist())


def find_background(values):
    """Find the value that fills what lies around the body, as after skull-stripping.

    Parameters
    ----------
    values : (n,) ndarray of float

    Returns
    -------
    float
        The most frequent value, if 5 % of the voxels or more have it, but not all; otherwise NaN.
    """
    ordered = np.sort(values[np.isfinite(values)])
    starts = np.flatnonzero(np.diff(ordered, prepend=np.nan))  # of runs of equal values
    if starts.size < 2:
        return np.nan
    lengths = np.diff(starts, append=ordered.size)
    longest = lengths.argmax()
    return ordered[starts[longest]] if lengths[longest] >= FLAT * ordered.size else np.nan


def measure_smoothness(channels, backgrounds):
    """Correlation of the intensities of neighbouring voxels: of noise 0, of anatomy 0.5 to 1.

    Parameters
    ----------
    channels : (channel, x, y, z) ndarray
    backgrounds : (channel,) sequence of float
        As `find_background` tells them.

    Returns
    -------
    float
        In [-1, 1]: Pearson's correlation over pairs of neighbours, at most a million along each
        axis, on average over the axes; of several channels the lowest. Neither axes of length 1
        nor a background of one value count. NaN if there is no pair, or all voxels are equal.
    """
    smoothness = []
    for channel, background in zip(channels, backgrounds, strict=True):
        axes = [axis for axis, length in enumerate(channel.shape) if length > 1]
        along = [_correlate(*_neighbours(channel, axis, axes), background) for axis in axes]
        known = [correlation for correlation in along if not np.isnan(correlation)]
        smoothness.append(np.mean(known) if known else np.nan)
    return significant(np.fmin.reduce(smoothness), 4)


def _neighbours(channel, axis, axes):
    others = len(axes) - 1
    step = int(np.ceil((channel.size / SAMPLED) ** (1 / others))) if others else 1
    rows = [slice(None, None, step)] * channel.ndim
    pair = []
    for part in (slice(None, -1), slice(1, None)):
        rows[axis] = part
        pair.append(channel[tuple(rows)].ravel().astype(float))
    return pair


def _correlate(first, second, background):
    tissue = (first != background) & (second != background)
    tissue &= np.isfinite(first) & np.isfinite(second)
    first, second = first[tissue], second[tissue]
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan
    return np.corrcoef(first, second)[0, 1]
