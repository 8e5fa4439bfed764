"""Cases: image and mask pairs, grouped by patient, every file checked."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes

from unetseg import nifti
from unetseg._base import refuse_any
from unetseg.annotation import drop_ignored, is_same, split_ignored
from unetseg.digits import significant
from unetseg.reading import intensities
from unetseg.reading.description import (
    describe_format,
    read_channel_names,
    read_description,
    read_label_names,  # noqa: F401  users call it as cases.read_label_names
    read_regions,  # noqa: F401  the same
)
from unetseg.reading.folders import (
    IMAGES,
    LAYOUTS,
    MASKS,
    find_first,
    find_listed_pairs,
    find_named_pairs,
    join_channels,
    list_files,
)
from unetseg.reading.patients import (
    describe_patients,  # noqa: F401  users call it as cases.describe_patients
    find_groups,
)
from unetseg.reading.tables import read_table
from unetseg.reading.unused import say_unused_files
from unetseg.run.layout import Run

# Where masks of new scans may be, by where these are.
BESIDE = {"imagesTs": ["labelsTs"], "imagesTr": ["labelsTr"], "images": ["labels"]}
BESIDE[""] = ["labelsTs", "labelsTr", "labels"]
HUGE = 1e18  # the square still fits float32
MAX_LABELS = 254  # a byte tells them, the background and what nobody drew apart
COLUMNS = ["case", "group", "shape", "spacing_mm", "orientation", "channels"]
COLUMNS += [*intensities.COLUMNS, "labels", "volume_ml", "problem"]


@dataclass(frozen=True)
class Case:
    """One scan with its mask.

    Parameters
    ----------
    id : str
        Unique in the data set; predictions are named after it.
    image : Path or tuple of Path
        One file, or one per channel. None if the scan is not at hand, for evaluation alone.
    mask : Path, optional
        Label map on the grid of the image.
    group : str, optional
        The patient. Cases of one group never part in cross-validation.
    """

    id: str
    image: Path | tuple[Path, ...] | None
    mask: Path | None = None
    group: str | None = None

    def __post_init__(self):
        """Refuse an id that leads out of the folder of the predictions."""
        if not re.fullmatch(r"[^/\\\x00-\x1f]+", str(self.id)):
            raise ValueError(f"{self.id!r} cannot be an id: files are named after it. Rename it.")

    @property
    def files(self):
        """The files of the image, one per channel or a single one."""
        return self.image if isinstance(self.image, tuple) else (self.image,)


@dataclass(frozen=True)
class View:
    """A scan with its masks, opened once to be looked at; unpacks as a row of `plots.show_cases`.

    Parameters
    ----------
    id, title : str
    image : (x, y, z) or (x, y, z, channel) ndarray of float32
        In RAS+.
    affine : (4, 4) ndarray
        From indices to mm.
    spacing_mm : tuple of 3 float
    masks : tuple of (x, y, z) ndarray of integers
    """

    id: str
    title: str
    image: np.ndarray
    affine: np.ndarray
    spacing_mm: tuple
    masks: tuple

    def __iter__(self):
        """Give title, image and masks."""
        return iter((self.title, self.image, self.masks))


def view(case, *masks, title=None, ignore=0):
    """Open a scan and its masks to look at them.

    Parameters
    ----------
    case : Case
        With a scan.
    *masks : str, Path or (x, y, z) ndarray of integers
        Files, or arrays in RAS+.
    title : str, optional
        By default the id.
    ignore : int, default 0
        Value of the voxels that nobody drew, if there is one: where a mask has it none is shown.

    Returns
    -------
    View
    """
    image, affine = nifti.load_image(case.image)
    opened = [m if isinstance(m, np.ndarray) else nifti.load_mask(m)[0] for m in masks]
    if ignore:
        drawn = ~np.any([mask == ignore for mask in opened], axis=0)
        opened = [mask * drawn for mask in opened]
    spacing = tuple(voxel_sizes(affine).tolist())
    return View(case.id, title or case.id, image, affine, spacing, tuple(opened))


def pick(views, case_id=""):
    """Pick the view of a case.

    Parameters
    ----------
    views : dict of str to View
        By the id of the case.
    case_id : str
        By default, and if it is not among them, the first is taken.

    Returns
    -------
    View
        One without a scan if there are none.
    """
    if not views:
        return View("", "Nothing to show.", None, None, None, (None, None))
    return views.get(case_id, next(iter(views.values())))


def find_cases(folder, *, group_by=None):
    r"""Find the cases of a data set.

    Parameters
    ----------
    folder : str or Path
        Holds ``imagesTr`` and ``labelsTr``, or ``images`` and ``labels``. Either every scan is
        named like its mask (also 4-D files), or it has one file per channel, numbered ``_0000``,
        ``_0001`` ... as for nnU-Net. A Decathlon ``dataset.json`` that lists the training pairs
        is followed.
    group_by : str, callable or mapping, optional
        How to tell the patient of a case: a regular expression whose first group is found in the
        id, such as ``r"(patient\d+)_"``; a column of a table, as ``"patients.csv:patient"``
        (in `folder`; the case ids, or the names of their files, stand in its first column;
        `unetseg.reading.tables.read_table` tells which tables are read); a function of the id,
        None for no patient; or a mapping from the id. By default ids of the form ``sub-XX_...``
        (BIDS) are grouped by subject if all are of that form, else no case is grouped.

    Returns
    -------
    list of Case
        Sorted by id. A scan without a mask has ``mask=None``. Files that look like NIfTI and are
        of no case are named.

    Raises
    ------
    FileNotFoundError
        If the folder or its scans are missing.
    ValueError
        With every problem of the names in one list: a mask without a scan, two files of one id
        (``x.nii`` and ``x.nii.gz``, ``X`` and ``x``, Drive's ``x (1)``), channel numbers with a
        gap or of another number than ``dataset.json`` declares, files of another format, listed
        files that are missing or outside the folder, a case without a patient or of two.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Check the path to the data.")
    found = _find_pairs(folder, group_by)
    say_unused_files(folder, found, apart={"imagesTs", "labelsTs"})
    return found


def _find_pairs(folder, group_by):
    problems = []
    pairs = find_listed_pairs(folder, problems) or find_named_pairs(folder, problems)
    if other_format := describe_format(read_description(folder)):
        problems.append(other_format)
    problems += _contradicted_channels(pairs, read_channel_names(folder))
    groups = find_groups(folder, group_by, [*pairs], problems)
    _refuse_listed(folder, problems)
    if not pairs:
        raise FileNotFoundError(f"{folder}: no case found. Expected {LAYOUTS}.")
    return [Case(case_id, *pairs[case_id], groups[case_id]) for case_id in sorted(pairs)]


def _contradicted_channels(pairs, declared):
    words = f"dataset.json declares {len(declared)} channels ({', '.join(declared)})"
    return [
        f"{case_id}: has {len(files)} files of channels, {words}; add what is lacking or correct it"
        for case_id, (files, _) in pairs.items()
        if isinstance(files, tuple) and declared and len(files) != len(declared)
    ]


def find_scans(folder, channels=1, group_by=None):
    """Find scans that are to be segmented.

    Parameters
    ----------
    folder : str or Path
        Holds the scans, or has them in ``imagesTs``, ``imagesTr`` or ``images``.
    channels : int, default 1
        Of the network: if there are so many files ``_0000``, ``_0001`` ... of every name (of
        any, if there are several), they are the channels of one scan. Otherwise, or if masks have
        the names of the files, every file is a scan.
    group_by : str, callable or mapping, optional
        How to tell the patient of a scan, as for `find_cases`.

    Returns
    -------
    list of Case
        Sorted by id. With masks where the folder beside (``labelsTs`` of ``imagesTs``, ``labelsTr``
        of ``imagesTr``, ``labels`` of ``images``, also if it is this that was named; any of them of
        scans in the folder itself) holds some of the same names: nothing needs them, but they can
        be scored.

    Raises
    ------
    FileNotFoundError
        If the folder or its scans are missing.
    ValueError
        As for `find_cases`.
    """
    folder, problems = Path(folder), []
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Check the path to the scans.")
    scans = find_first([folder / place for place in BESIDE], problems)
    _refuse_listed(folder, problems)
    if not scans:
        raise FileNotFoundError(f"{folder}: no scan found. Expected .nii or .nii.gz files.")
    place = next(place for place in BESIDE if list_files(folder / place, []))
    around = [folder / name for name in BESIDE[place]]
    if not place:
        around += [folder.parent / name for name in BESIDE.get(folder.name, ())]
    masks = find_first(around, [])
    joined = join_channels(scans) if scans.keys().isdisjoint(masks) else scans
    if _have_channels(joined, channels):
        scans = joined
    groups = find_groups(folder, group_by, [*scans], problems)
    _refuse_listed(folder, problems)
    found = [Case(i, scans[i], masks.get(i), groups[i]) for i in sorted(scans)]
    say_unused_files(folder, found, apart={*IMAGES, *MASKS} if place not in IMAGES else set())
    return found


def _have_channels(scans, channels):
    # Of several channels one whole scan is enough: check_cases names what lacks one.
    whole = [isinstance(files, tuple) and len(files) == channels for files in scans.values()]
    return any(whole) if channels > 1 else all(whole)


def find_scored(folder, results_dir):
    """Find the cases of an experiment for its evaluation, with or without their scans.

    Parameters
    ----------
    folder : str or Path
        The data set as for `find_cases`. If it holds no scans, or is not there, the masks are
        taken from its ``labelsTr`` or ``labels`` or else from the experiment's own copies.
    results_dir : str or Path
        Holds ``cases.csv``, which tells the patients, and ``masks``.

    Returns
    -------
    list of Case
        Sorted by id; without scans every ``image`` is None.

    Raises
    ------
    FileNotFoundError
        If ``cases.csv`` or the masks are missing.
    """
    folder, run = Path(folder), Run(results_dir)
    table = read_table(run.cases, ("case", "group"))
    groups = dict(zip(table["case"], table["group"], strict=True))
    if find_listed_pairs(folder, []) or find_first([folder / name for name in IMAGES], []):
        return _find_pairs(folder, groups.get)
    masks, problems = {}, []
    for path in (run.masks, *(folder / name for name in reversed(MASKS))):
        masks.update(list_files(path, problems))
    _refuse_listed(folder, problems)
    missing = [case_id for case_id in sorted(groups) if case_id not in masks]
    advice = f"Point DATA to the data set, or copy its masks to {run.masks}."
    refuse_any(missing, f"{folder}: no mask for", "cases", advice, FileNotFoundError)
    return [Case(i, None, masks[i], groups[i] or None) for i in sorted(groups)]


def read_labels(cases, *, ignore=0):
    """Read which labels the masks hold.

    Parameters
    ----------
    cases : sequence of Case
        With masks.
    ignore : int, default 0
        Value of voxels that nobody drew.

    Returns
    -------
    dict of str to tuple of int
        By case id the values that are in its mask, without the background.

    Raises
    ------
    ValueError
        If masks cannot be read; lists them all.
    """
    labels, problems = {}, []
    for case in cases:
        if case.mask is None:
            problems.append(f"{case.id}: no mask")
        elif mask := _attempt(problems, nifti.load_mask, case.mask):
            labels[case.id] = tuple(v for v in _values(mask[0]) if v not in (0, ignore))
    lines = [f"\n  {problem}" for problem in problems]
    refuse_any(lines, "Labels are unknown:", "masks cannot be read", "Repair or remove them.")
    return labels


def check_cases(
    cases,
    *,
    labels=None,
    need_masks=True,
    channels=(),
    visit=None,
    ignore=0,
    allow_empty=False,
):
    """Read every file and list what is wrong.

    Parameters
    ----------
    cases : sequence of Case
    labels : iterable of int, optional
        The declared label values, without the background; others are a problem. By default any
        non-negative value is accepted. Of a dict the one that is named ``ignore`` counts as
        `ignore`.
    need_masks : bool, default True
        Whether a case without a mask is a problem.
    channels : sequence of str, optional
        Names of the channels that are declared; another number of them is a problem.
    visit : callable, optional
        Called as ``visit(case, image, affine, mask, problem)`` with what was read of every case
        whose scan is readable (``mask`` is None if it is not, or not there; ``problem`` is empty
        if none was found): for whoever else needs to see the voxels, so that no file is read
        twice.
    ignore : int, default 0
        Value of voxels that nobody drew; 0 for none.
    allow_empty : bool, default False
        Whether a mask without any label is that of a healthy person, and no problem.

    Returns
    -------
    pandas.DataFrame
        A row per case, in order: ``case``, ``group``, ``shape`` (x, y, z), ``spacing_mm``,
        ``orientation`` as stored, ``channels``, ``intensity_p1``, ``intensity_median``,
        ``intensity_p99``, ``intensities``, ``smoothness`` (as
        `unetseg.reading.intensities.describe`), ``labels`` (the values present, without the
        background and what nobody drew), ``volume_ml`` (all labels together) and ``problem``
        (empty if none was found).
        Numbers keep six digits that count.

    See Also
    --------
    refuse_problems : turns the problems into one error.
    """
    labels, named = split_ignored(labels)
    expected = _Expected(labels, ignore or named, need_masks, allow_empty)
    rows = []
    for case in cases:
        row, scan, mask = _check_case(case, expected)
        rows.append(row)
        if visit and scan:
            visit(case, *scan, mask, row["problem"])
    return _compare_rows(pd.DataFrame(rows, columns=COLUMNS), channels)


def check_scan(scan):
    """Read a scan that is to be segmented, and list what is wrong with it.

    Parameters
    ----------
    scan : Case
        Its mask is not looked at.

    Returns
    -------
    row : dict
        As of `check_cases`.
    image : (x, y, z) or (x, y, z, channel) ndarray of float32, or None
    affine : (4, 4) ndarray, or None
        None if it cannot be read.
    """
    expected = _Expected(None, 0, need_masks=False, allow_empty=False)
    row, loaded, _ = _check_case(Case(scan.id, scan.image), expected)
    row["problem"] = row["problem"].strip()
    image, affine = loaded or (None, None)
    return row, image, affine


def check_headers(scans, channels=(), expected=None):
    """List what the headers of scans tell, without reading their voxels.

    Parameters
    ----------
    scans : sequence of Case
    channels : sequence of str, optional
        As for `check_cases`.
    expected : int, optional
        Channels that the network has.

    Returns
    -------
    pandas.DataFrame
        As of `check_cases`, with the columns ``case``, ``shape``, ``spacing_mm``,
        ``orientation``, ``channels`` and ``problem``.
    """
    rows = [_check_header(scan) for scan in scans]
    columns = ["case", "shape", "spacing_mm", "orientation", "channels", "problem"]
    table = _compare_rows(pd.DataFrame(rows, columns=columns), channels)
    if expected is not None:
        other = table["channels"].notna() & (table["channels"] != expected)
        words = (
            "has {:.0f} channels, the network has {}; leave it out, or take the one that is meant."
        )
        counts = table.loc[other, "channels"]
        table.loc[other, "problem"] = [words.format(count, expected) for count in counts]
    return table


def _check_header(scan):
    problems = []
    headers = [_attempt(problems, nifti.read, path, voxels=False) for path in scan.files]
    row = {"case": scan.id}
    if not problems:
        row["shape"], spacing = nifti.canonical_grid(headers[0])
        row["spacing_mm"] = tuple(significant(spacing).tolist())
        row["orientation"] = "".join(aff2axcodes(headers[0].get_best_affine()))
        row["channels"] = max(len(headers), *headers[0].get_data_shape()[3:], 1)
    return row | {"problem": _join(problems)}


def _compare_rows(table, channels):
    # Adds to the problems of each case those that only all together tell.
    repeated = table["case"].duplicated(keep=False)
    table.loc[repeated, "problem"] += "this id stands for more than one case; rename one. "
    for usual in table["channels"].mode().head(1):
        odd = table["channels"].notna() & (table["channels"] != usual)
        table.loc[odd, "problem"] += f"not {usual:.0f} channels, as most cases have. "
    if channels:
        other = table["channels"].notna() & (table["channels"] != len(channels))
        declared = f"not {len(channels)} channels, as dataset.json declares ({', '.join(channels)})"
        advice = "correct it, or add the files that are lacking. "
        table.loc[other, "problem"] += f"{declared}; {advice}"
    table["problem"] = table["problem"].str.strip()
    return table


def refuse_problems(table, advice="Repair these files, or take them out of the data folder."):
    """Stop with one error that lists every problem.

    Parameters
    ----------
    table : pandas.DataFrame
        As `check_cases` returns it.
    advice : str
        What to do then.

    Raises
    ------
    ValueError
        If any case has a problem.
    """
    bad = table[table["problem"] != ""]
    if len(bad):
        lines = "\n".join(f"  {row.case}: {row.problem}" for row in bad.itertuples())
        raise ValueError(f"{len(bad)} of {len(table)} cases have a problem:\n{lines}\n{advice}")


def _refuse_listed(folder, problems):
    refuse_any([f"\n  {p}" for p in problems], f"{folder}:", "problems", f"Expected {LAYOUTS}.")


class _Expected(NamedTuple):
    """What masks may hold, and whether there must be one."""

    labels: Iterable | None
    ignore: int
    need_masks: bool
    allow_empty: bool


def _check_case(case, expected):
    # Its row, and what was loaded of it: the scan as a pair with its affine, and the mask.
    row, problems, mask = {"case": case.id, "group": case.group}, [], None
    header = _attempt(problems, nifti.read, case.files[0], voxels=False)
    scan = _attempt(problems, nifti.load_image, case.image)
    if scan:
        row["orientation"] = "".join(aff2axcodes(header.get_best_affine()))
        row.update(_check_voxels(problems, case.files, *scan))
    else:
        for path in case.files[1:]:
            _attempt(problems, nifti.load_image, path)
    if case.mask:
        mask = _attempt(problems, nifti.load_mask, case.mask)
    elif expected.need_masks:
        problems.append(f"no mask for {case.files[0].name}; add it, or take the scan out.")
    if mask:
        row.update(_check_mask(problems, case.mask.name, *mask, expected, scan))
    row["problem"] = _join(problems)
    return row, scan, mask and mask[0]


def _join(problems):
    return "".join(f"{problem} " for problem in dict.fromkeys(problems))


def _attempt(problems, load, *args, **kwargs):
    try:
        return load(*args, **kwargs)
    except (ValueError, OSError, MemoryError) as error:
        return problems.append(str(error))


def _check_voxels(problems, files, image, affine):
    channels = np.moveaxis(image.reshape(*image.shape[:3], -1), 3, 0)
    for k, channel in enumerate(channels):
        name, low, high = files[k % len(files)].name, channel.min(), channel.max()
        if not np.abs([low, high]).max() < HUGE:
            problems.append(f"{name} holds NaN, infinite or huge voxels; replace them.")
        elif low == high:
            problems.append(f"{name} has the same value everywhere; export it again.")
    spacing = tuple(significant(voxel_sizes(affine)).tolist())
    row = {"shape": image.shape[:3], "spacing_mm": spacing, "channels": len(channels)}
    return row | intensities.describe(channels)


def _check_mask(problems, name, mask, affine, expected, scan):
    present = tuple(value for value in _values(mask) if value not in (0, expected.ignore))
    problems += _find_label_problems(name, present, expected)
    if scan:
        image, scan_affine = scan
        mismatch = nifti.describe_grid_mismatch(image.shape, scan_affine, mask.shape, affine)
        if mismatch:
            advice = "If it was drawn on this scan, save it with the scan's affine and unit"
            problems.append(f"{name}: its {mismatch} of the scan. {advice}; else resample it.")
        elif is_same(image, mask):
            problems.append(f"{name} holds the values of the scan; put the mask there.")
    volume = (
        np.count_nonzero(drop_ignored(mask, expected.ignore))
        * abs(np.linalg.det(affine[:3, :3]))
        / 1000
    )
    return {"labels": present, "volume_ml": significant(volume)}


def _find_label_problems(name, present, expected):
    labels = expected.labels
    if not present and not expected.allow_empty:
        advice = "Draw it, or take the case out; ALLOW_EMPTY takes it for a healthy person"
        return [f"{name} is empty: it labels no voxel. {advice}."]
    if len(present) > MAX_LABELS:
        return [f"{name} holds {len(present)} labels, {MAX_LABELS} at most. Is it a scan?"]
    if labels:
        odd = [value for value in present if value not in labels]
        known = f"declared: {sorted(labels)}"
    else:
        odd = [value for value in present if value < 0]
        known = "allowed: values of zero or more"
    if not odd:
        return []
    listed = ", ".join(map(str, odd))
    return [f"{name} holds label {listed}; {known}. Correct or declare it."]


def _values(mask):
    low = int(mask.min())
    if int(mask.max()) - low >= 2**16:
        return np.unique(mask).tolist()
    return (np.flatnonzero(np.bincount(mask.ravel(order="K") - low)) + low).tolist()  # no sorting
