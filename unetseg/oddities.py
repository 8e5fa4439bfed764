"""What looks wrong in a data set and may be right: named case by case, and not refused."""

import numpy as np
import pandas as pd

from unetseg.annotation import split_ignored
from unetseg.orientation import PAIRED, RARE
from unetseg.planning import coarse_axis

FEW = 3  # cases, of fewer none is odd
IN_AIR, USUAL = 0.5, 0.1  # share of a label where the scan has no signal: odd, and in most cases
OTHER_SIZE = 4  # times as large, or as small, as most scans are, in mm
ASIDE = 0.1  # of the foreground's width, that a label with a side lies from its middle
MOST_NAMED = 5


def describe_checked(seen, declared=None):
    """Say what is left of a data set without a problem, and what in it looks wrong all the same.

    Parameters
    ----------
    seen : unetseg.survey.Survey
        Of cases without a problem.
    declared : dict of int to str, optional
        Labels that are declared, without the background.

    Returns
    -------
    list of str
        The first names the cases whose masks are empty, if that is allowed. Each further one
        begins with ``WARNING``: a label that no mask holds; masks that are the same, that lie in
        the air, or have left and right exchanged; one structure under two values; scans of
        another size, or with slices across another axis, than most.
    """
    table = seen.table
    empty = table.loc[table["labels"].map(len) == 0, "case"]
    said = f"No problem found in {len(table)} cases."
    if len(empty):
        said += f" {len(empty)} masks are empty, taken for those of controls: {', '.join(empty)}."
    odd = [*_compare_labels(table, declared or {}), *_find_same_masks(seen)]
    if len(table) >= FEW:
        odd += [*_compare_sizes(table), *_compare_slices(table)]
    if seen.facts:
        odd += _compare_places(dict(zip(table["case"], seen.facts, strict=True)))
    return [said, *(f"WARNING: {line}" for line in odd)]


def _compare_labels(table, declared):
    held = [set(labels) for labels in table["labels"] if labels]
    declared, _ = split_ignored(declared)  # what nobody drew need not be there
    there = set().union(*held)
    for value, name in declared.items():
        if value not in there:
            yield f"no mask holds {name} ({value}): it is not learnt. Correct dataset.json."
    counts = pd.Series([value for labels in held for value in labels]).value_counts()
    alone = all(len(labels) == 1 for labels in held)
    if not declared and alone and len(counts) > 1 and counts.min() > 1:
        named = " or ".join(f"{value} (in {counts[value]})" for value in sorted(counts.index))
        yield f"every mask holds one label alone, {named}. Is it one structure under two values?"


def _find_same_masks(seen):
    # Of one scan under two names `unetseg.splits.find_leaks` tells.
    by_digest = {}
    for case_id, digest in seen.masks.items():
        by_digest.setdefault(digest, []).append(case_id)
    for ids in by_digest.values():
        if len({seen.samples[case_id].digest for case_id in ids}) > 1:
            yield f"{_name(ids)} have the same mask on different scans. Is one of them a copy?"


def _compare_sizes(table):
    extents = np.array([*table["shape"]]) * np.array([*table["spacing_mm"]])
    sizes = np.cbrt(extents.prod(axis=1))
    times = sizes / np.median(sizes)
    for place in np.flatnonzero((times > OTHER_SIZE) | (times < 1 / OTHER_SIZE)):
        row, size = table.iloc[place], " x ".join(f"{side:.3g}" for side in extents[place])
        voxel = " x ".join(f"{side:.3g}" for side in row["spacing_mm"])
        finding = f"voxels of {voxel} mm make it {size} mm, {times[place]:.2g} times as most scans"
        yield f"{row['case']}: {finding}. Has it another unit?"


def _compare_slices(table):
    axes = table["spacing_mm"].map(coarse_axis).dropna()
    for usual in axes.mode().head(1):
        odd = table.loc[axes.index[axes != usual], "case"]
        if len(odd):
            finding = f"thick slices lie across {'xyz'[int(usual)]} in most scans"
            advice = "one voxel size suits not both. Train on each kind by itself"
            yield f"{finding}, not in {_name(odd)}: {advice}."


def _compare_places(by_id):
    shares = pd.Series({case_id: fact["most_in_void"] for case_id, fact in by_id.items()})
    if len(shares) >= FEW and shares.median() <= USUAL:
        for case_id, share in shares[shares > IN_AIR].items():
            finding = f"{share:.0%} of a label lies where the scan has no signal"
            yield f"{case_id}: {finding}. Is its mask flipped, or that of another scan?"
    exchanged = set()
    for label in {label for fact in by_id.values() for label in fact["sides"]}:
        exchanged |= _find_exchanged(label, by_id)
    for case_id in sorted(exchanged):
        yield f"{case_id}: a label lies on the other side than in the others. Left for right?"


def _find_exchanged(label, by_id):
    # Alone a label is all the foreground, and has no side.
    sides = {i: fact["sides"] for i, fact in by_id.items() if len(fact["sides"]) > 1}
    offsets = pd.Series({i: of[label] for i, of in sides.items() if label in of}, dtype=float)
    odd = offsets[(offsets * offsets.median() < 0) & (offsets.abs() >= ASIDE)]
    rare = len(odd) <= max(1, RARE * len(offsets))
    clear = len(offsets) >= PAIRED and abs(offsets.median()) >= ASIDE
    return set(odd.index) if clear and rare else set()


def _name(ids):
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return f"{', '.join(ids[:MOST_NAMED])}{more}"
