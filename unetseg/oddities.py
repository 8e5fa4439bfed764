"""What looks wrong in a data set and may be right: named case by case, and not refused."""

import numpy as np
import pandas as pd

from unetseg.annotation import split_ignored
from unetseg.digits import significant
from unetseg.orientation import RARE
from unetseg.planning import coarse_axis

FEW = 3  # cases, of fewer none is odd
IN_AIR, USUAL = 0.5, 0.1  # share of a label where the scan has no signal: odd, and in most cases
OTHER_SIZE = 4  # times as long, or as short, as the sides of most scans
MANY = 10  # cases with a label, of which hardly all but one lie on one side by chance
ASIDE = 0.1  # of the foreground's width, that a label with a side lies from its middle
MOST_NAMED = 5


def describe_checked(seen, declared=None):
    """Say what is left of a data set without a problem, and what in it looks wrong all the same.

    Parameters
    ----------
    seen, declared
        As for `list_oddities`.

    Returns
    -------
    list of str
        The first names the cases whose masks are empty, if that is allowed; then the warnings of
        `list_oddities`.
    """
    empty = seen.table.loc[seen.table["labels"].map(len) == 0, "case"]
    said = f"No problem found in {len(seen.table)} cases."
    if len(empty):
        said += f" {len(empty)} masks are empty, taken for those of controls: {', '.join(empty)}."
    return [said, *list_oddities(seen, declared)]


def list_oddities(seen, declared=None):
    """List what looks wrong and may be right.

    Parameters
    ----------
    seen : unetseg.survey.Survey
        Of cases without a problem.
    declared : dict of int to str, optional
        Labels that are declared, without the background.

    Returns
    -------
    list of str
        Each begins with ``WARNING``: a label that no mask holds; masks that are the same, that lie
        in the air, or have left and right exchanged; one structure under two values; scans of
        another size, or with slices across another axis, than most.
    """
    table = seen.table
    odd = [*_compare_labels(table, declared or {}), *_find_same_masks(seen)]
    if len(table) >= FEW:
        odd += [*_compare_sizes(table), *_compare_slices(table)]
    if seen.facts:
        by_id = dict(zip(table["case"], seen.facts, strict=True))
        odd += [*_find_in_air(by_id), *_find_exchanged(by_id)]
    return [f"WARNING: {line}" for line in odd]


def _compare_labels(table, declared):
    held = [set(labels) for labels in table["labels"] if labels]
    declared, _ = split_ignored(declared)  # what nobody drew need not be there
    there = set().union(*held)
    for value, name in declared.items():
        if value not in there:
            yield f"no mask holds {name} ({value}): it is not learnt."
    counts = pd.Series([value for labels in held for value in labels]).value_counts()
    alone = all(len(labels) == 1 for labels in held)
    if not declared and alone and len(counts) > 1 and counts.min() > 1:
        named = " or ".join(f"{value} (in {counts[value]})" for value in sorted(counts.index))
        yield f"every mask holds one label alone, {named}. Is it one structure under two values?"


def _find_same_masks(seen):
    # Of one scan under two names `unetseg.splits.find_leaks` tells; scans of one patient may
    # well share a mask.
    patient = dict(zip(seen.table["case"], seen.table["group"], strict=True))
    by_digest = {}
    for case_id, digest in seen.masks.items():
        by_digest.setdefault(digest, []).append(case_id)
    for ids in by_digest.values():
        scans = {seen.samples[case_id].digest for case_id in ids}
        patients = {patient[case_id] or case_id for case_id in ids}
        if len(scans) > 1 and len(patients) > 1:
            yield f"{_name(ids)} have the same mask on different scans. Is one of them a copy?"


def _compare_sizes(table):
    # A wrong unit makes all sides longer, or shorter; a slice is thin along one.
    extents = np.array([*table["shape"]]) * np.array([*table["spacing_mm"]])
    times = np.sort(extents) / np.median(np.sort(extents), axis=0)
    for place in np.flatnonzero((times > OTHER_SIZE).all(1) | (times < 1 / OTHER_SIZE).all(1)):
        row, many = table.iloc[place], _describe([np.cbrt(times[place].prod())])
        voxel, size = _describe(row["spacing_mm"]), _describe(extents[place])
        finding = f"voxels of {voxel} mm make it {size} mm, {many} times as large as most scans"
        yield f"{row['case']}: {finding}. Is its unit right?"


def _compare_slices(table):
    axes = table["spacing_mm"].map(coarse_axis).dropna()
    counts = axes.value_counts()
    if len(counts) > 1 and 2 * counts.iloc[0] >= len(table):
        odd = table.loc[axes.index[axes != counts.index[0]], "case"]
        finding = f"thick slices lie across {'xyz'[int(counts.index[0])]} in most scans"
        advice = "No one voxel size suits both: resample these, or train on them apart"
        yield f"{finding}, across another axis in {_name([*odd])}. {advice}."


def _find_in_air(by_id):
    shares = pd.Series(
        {case_id: fact["most_in_void"] for case_id, fact in by_id.items() if fact["voxels"]}
    )
    if len(shares) >= FEW and shares.median() <= USUAL:
        for case_id, share in shares[shares > IN_AIR].items():
            finding = f"{share:.0%} of a label lies where the scan has no signal"
            yield f"{case_id}: {finding}. Is its mask flipped, or that of another scan?"


def _find_exchanged(by_id):
    # Alone a label is all the foreground, and has no side.
    sides = {i: fact["sides"] for i, fact in by_id.items() if len(fact["sides"]) > 1}
    offsets = pd.DataFrame.from_dict(sides, orient="index")  # a column per label
    usual = offsets.median()
    odd = (offsets * usual < 0) & (offsets.abs() >= ASIDE)
    counts = offsets.count()
    clear = (counts >= MANY) & (usual.abs() >= ASIDE) & (odd.sum() <= RARE * counts)
    sided = offsets.columns[clear]
    exchanged = 2 * odd[sided].sum(axis=1) > offsets[sided].count(axis=1)
    for case_id in offsets.index[exchanged]:
        labels = ", ".join(str(value) for value in sorted(sided[odd.loc[case_id, sided]]))
        finding = f"labels {labels} lie on the other side than in the others"
        yield f"{case_id}: {finding}. Are left and right exchanged?"


def _describe(sides):
    return " x ".join(f"{significant(side, 3):,.12g}" for side in sides)


def _name(ids):
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return f"{', '.join(ids[:MOST_NAMED])}{more}"
