"""What was planned for some data, in words, and what of it one should know."""

import numpy as np

from unetseg.orientation import USUAL_DEG
from unetseg.planning import coarse_axis

FORMED_ON = "scans of one channel with one or two structures, 15 cases and more"
FEW_CASES = 15
NARROW = 0.25  # share of a scan that a patch sees
AIR = -900  # and less: Hounsfield units, as of CT


def describe_plan(preprocessor, table, facts=None):
    """Say how a network will see the scans, and why.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    table : pandas.DataFrame
        What `unetseg.cases.check_cases` or `check_headers` says of the cases.
    facts : list of dict, optional
        What `Preprocessor.describe` tells of each: without them the empty space around a body
        counts as scan.

    Returns
    -------
    list of str
        A sentence or two each; what `warn` says is not among them.
    """
    spacing = np.array(preprocessor.spacing_mm)
    extent, patch = _typical_extent(preprocessor, table, facts), preprocessor.patch * spacing
    lines = [f"A typical scan is {_size(extent)} mm; a voxel of the network {_size(spacing)} mm."]
    seen = f"a patch spans {_size(patch)} mm, {_share(patch, extent):.0%} of the scan"
    if preprocessor.coarse:
        first = f"first whole, in voxels of {_size(preprocessor.coarse_mm)} mm"
        then = "then closer, around what was found there"
        lines.append(f"It is looked at twice, {first}, {then}; {seen}.")
        if preprocessor.reach_mm:
            far = f"{preprocessor.reach_mm:.3g} mm from the rest"
            reason = "as in nine of ten cases no structure lies so far"
            lines.append(f"What is found more than {far} is left out, {reason}.")
    else:
        lines.append(f"It is looked at once: {seen}.")
    axis = coarse_axis(spacing)
    if axis is not None and preprocessor.dimensions == 3:
        times = spacing[axis] / np.delete(spacing, axis).max()
        lines.append(f"Slices are {times:.1f} times as thick as their pixels: they are not tilted.")
        second = "a second experiment with DIMENSIONS 2, averaged with this one in notebook 3"
        lines.append(f"With time for it, {second}, may draw odd cases better.")
    lines += _describe_turning(preprocessor)
    if preprocessor.dimensions == 2:
        lines.append("The network sees slices, as there are few, or as it was asked to (2-D).")
    if preprocessor.ignore:
        lines.append(f"Voxels of {preprocessor.ignore} are not drawn: neither learnt nor scored.")
    for name, values in preprocessor.unions.values():
        lines.append(f"Scored too, and learnt as one: {name} = {' + '.join(map(str, values))}.")
    return lines


def _describe_turning(preprocessor):
    sampling, reason = preprocessor.sampling, "as the structures lie turned from case to case"
    turned = []
    for axis, (degrees, usual) in enumerate(zip(sampling.rotation_deg, USUAL_DEG, strict=True)):
        if degrees > usual and sampling.across in (None, axis):
            turned.append(f"{degrees * sampling.strength:.0f} degrees about {'xyz'[axis]}")
    return [f"Patches are turned by up to {', '.join(turned)}, {reason}."] if turned else []


def warn(preprocessor, table, facts=None):
    """Say what makes good scores less likely, each beginning with ``WARNING``; empty if nothing.

    Parameters
    ----------
    preprocessor, table, facts
        As for `describe_plan`.

    Returns
    -------
    list of str
    """
    lines = []
    if preprocessor.assumed_mm:
        size = _size(preprocessor.assumed_mm)
        reason = "structures are more alike in voxels than in mm, as if fitted to the patient"
        danger = "A scan of another matrix would be seen in a wrong size"
        lines.append(f"Every scan is taken to have voxels of {size} mm: {reason}. {danger}.")
    share = _share(
        preprocessor.patch * np.array(preprocessor.spacing_mm),
        _typical_extent(preprocessor, table, facts),
    )
    if preprocessor.dimensions == 3 and not preprocessor.coarse and share < NARROW:
        danger = "what lies far off and looks alike may be taken for a structure"
        remedy = "A larger SPACING_MM, or a larger PATCH where memory bears it, lets it see more"
        lines.append(f"A patch sees {share:.0%} of a typical scan: {danger}. {remedy}.")
    if "intensity_p1" in table and table["intensity_p1"].median() <= AIR:
        danger = "each is normalised by itself, which suits MRI and blurs what these units tell"
        remedy = "Clip the scans to the window of your organ first"
        lines.append(f"Intensities begin at -1000, as of CT: {danger}. {remedy}.")
    unlike = []
    if len(table) < FEW_CASES:
        unlike.append(f"{len(table)} cases")
    if len(preprocessor.labels) > 2:
        unlike.append(f"{len(preprocessor.labels)} structures")
    if preprocessor.channels > 1:
        unlike.append(f"{preprocessor.channels} channels")
    if unlike:
        lines.append(f"Here: {', '.join(unlike)}. The defaults were formed on {FORMED_ON}.")
    return [f"WARNING: {line}" for line in lines]


def _typical_extent(preprocessor, table, facts):
    table = table.dropna(subset=["shape"])  # of files that cannot be read others tell
    taken = [preprocessor.take_spacing(spacing) for spacing in table["spacing_mm"]]
    shapes = table["shape"] if facts is None else [fact["shape"] for fact in facts]
    extents = [np.multiply(*pair) for pair in zip(shapes, taken, strict=True)]
    return np.median(extents, axis=0)


def _share(patch, extent):
    return np.prod(np.minimum(patch, extent) / extent)


def _size(values):
    return " x ".join(f"{value:.3g}" for value in values)
