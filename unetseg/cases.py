"""Cases: image and mask pairs, grouped by patient, every file checked."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from nibabel.orientations import aff2axcodes

from unetseg import nifti
from unetseg.workspace import read_json, refuse_any

SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
CHANNEL = re.compile(r"_\d{4}$")
BIDS_SUBJECT = r"^(sub-[^_]+)(_|$)"
PERCENTILES = {"intensity_p1": 1, "intensity_median": 50, "intensity_p99": 99}
COLUMNS = ["case", "group", "shape", "spacing_mm", "orientation", "channels", *PERCENTILES]
COLUMNS += ["labels", "volume_ml", "problem"]
LAYOUTS = "imagesTr and labelsTr, or images and labels, with .nii or .nii.gz files of one name"


@dataclass(frozen=True)
class Case:
    """One scan with its mask.

    Parameters
    ----------
    id : str
        Unique in the data set; predictions are named after it.
    image : Path or tuple of Path
        One file, or one per channel.
    mask : Path, optional
        Label map on the grid of the image.
    group : str, optional
        The patient. Cases of one group never part in cross-validation.
    """

    id: str
    image: Path | tuple[Path, ...]
    mask: Path | None = None
    group: str | None = None

    @property
    def files(self):
        """The files of the image, one per channel or a single one."""
        return self.image if isinstance(self.image, tuple) else (self.image,)


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
        (in `folder`; the case ids stand in its first column); a function of the id, None for no
        patient; or a mapping from the id. By default ids of the form ``sub-XX_...`` (BIDS) are
        grouped by subject if all are of that form, else no case is grouped.

    Returns
    -------
    list of Case
        Sorted by id. A scan without a mask has ``mask=None``.

    Raises
    ------
    FileNotFoundError
        If the folder or its scans are missing.
    ValueError
        If a mask has no scan, an id is not unique, or a case has no patient.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Check the path to the data.")
    pairs = _listed_pairs(folder) or _named_pairs(folder)
    if not pairs:
        raise FileNotFoundError(f"{folder}: no case found. Expected {LAYOUTS}.")
    group_of = _group_function(folder, group_by, [*pairs])
    return [Case(case_id, *pairs[case_id], group_of(case_id)) for case_id in sorted(pairs)]


def read_label_names(folder):
    """Label names that a data set declares.

    Parameters
    ----------
    folder : str or Path
        May hold a ``dataset.json`` of the Decathlon (``{"1": "Anterior"}``) or of nnU-Net
        (``{"Anterior": 1}``).

    Returns
    -------
    dict of int to str
        Without the background; empty if nothing is declared.
    """
    described = _read_description(Path(folder)).get("labels", {})
    if not all(str(key).isdecimal() for key in described):
        described = {value: name for name, value in described.items()}
    return {int(value): str(name) for value, name in described.items() if int(value)}


def check_cases(cases, *, labels=None):
    """Read every file and list what is wrong.

    Parameters
    ----------
    cases : sequence of Case
    labels : iterable of int, optional
        The declared label values, without the background; others are a problem. By default any
        non-negative value is accepted.

    Returns
    -------
    pandas.DataFrame
        A row per case, in order: ``case``, ``group``, ``shape`` (x, y, z), ``spacing_mm``,
        ``orientation`` as stored, ``channels``, ``intensity_p1``, ``intensity_median``,
        ``intensity_p99``, ``labels`` (the values present, without the background),
        ``volume_ml`` (all labels together) and ``problem`` (empty if none was found).

    See Also
    --------
    refuse_problems : turns the problems into one error.
    """
    table = pd.DataFrame([_check_case(case, labels) for case in cases], columns=COLUMNS)
    repeated = table["case"].duplicated(keep=False)
    table.loc[repeated, "problem"] += "this id stands for more than one case. "
    for usual in table["channels"].mode().head(1):
        odd = table["channels"].notna() & (table["channels"] != usual)
        table.loc[odd, "problem"] += f"not {usual:.0f} channels, as most cases have. "
    table["problem"] = table["problem"].str.strip()
    return table


def refuse_problems(table):
    """Stop with one error that lists every problem.

    Parameters
    ----------
    table : pandas.DataFrame
        As `check_cases` returns it.

    Raises
    ------
    ValueError
        If any case has a problem.
    """
    bad = table[table["problem"] != ""]
    if len(bad):
        lines = "\n".join(f"  {row.case}: {row.problem}" for row in bad.itertuples())
        advice = "Repair these files, or take them out of the data folder."
        raise ValueError(f"{len(bad)} of {len(table)} cases have a problem:\n{lines}\n{advice}")


def _check_case(case, labels):
    row = {"case": case.id, "group": case.group, "problem": ""}
    try:
        row["orientation"] = "".join(aff2axcodes(nifti.read(case.files[0]).affine))
        image, affine = nifti.load_image(case.image)
        row |= _describe_image(image, affine)
        if not np.isfinite(image).all():
            row["problem"] += f"{case.files[0].name} holds NaN or infinite voxels. "
        elif image.min() == image.max():
            row["problem"] += f"{case.files[0].name} has the same value everywhere. "
        if case.mask is None:
            row["problem"] += f"no mask for {case.files[0].name}. "
        else:
            mask, mask_affine = nifti.load_mask(case.mask)
            volume = np.count_nonzero(mask) * abs(np.linalg.det(mask_affine[:3, :3])) / 1000
            row["labels"] = tuple(int(value) for value in np.unique(mask) if value)
            row["volume_ml"] = round(volume, 3)
            mismatch = nifti.describe_grid_mismatch(image.shape, affine, mask.shape, mask_affine)
            row["problem"] += _mask_problem(case.mask.name, mismatch, row["labels"], labels)
    except (ValueError, OSError) as error:
        row["problem"] += f"{error} "
    return row


def _describe_image(image, affine):
    with np.errstate(invalid="ignore"):  # infinite voxels; check_cases tells of them
        values = np.percentile(image, [*PERCENTILES.values()]).round(3)
    spacing = tuple(voxel_sizes(affine).round(3).tolist())
    row = {"shape": image.shape[:3], "spacing_mm": spacing, "channels": (*image.shape, 1)[3]}
    return row | dict(zip(PERCENTILES, values, strict=True))


def _mask_problem(name, mismatch, present, labels):
    if mismatch:
        return f"{name}: its {mismatch} of the scan; resample it to the scan's grid. "
    if not present:
        return f"{name} is empty: it labels no voxel. "
    undeclared = [str(v) for v in present if (v not in labels if labels else v < 0)]
    if not undeclared:
        return ""
    allowed = sorted(labels) if labels else "values of zero or more"
    advice = f"declared: {allowed}. Correct the mask or declare the label. "
    return f"{name} holds label {', '.join(undeclared)}; {advice}"


def _by_name(folder, files, values):
    names = pd.Series([SUFFIX.sub("", path.name) for path in files], dtype=str)
    repeated, advice = names[names.duplicated()].tolist(), "Rename or remove one."
    refuse_any(repeated, f"{folder}:", "names stand for more than one scan", advice)
    return dict(zip(names, values, strict=True))


def _files(folder):
    found = [path for path in sorted(folder.glob("[!.]*")) if SUFFIX.search(path.name)]
    return _by_name(folder, found, found)


def _read_description(folder):
    path = folder / "dataset.json"
    return read_json(path) if path.exists() else {}


def _listed_pairs(folder):
    listed = _read_description(folder).get("training", [])
    pairs = [(folder / entry["image"], folder / entry["label"]) for entry in listed]
    missing = [str(image) for image, _ in pairs if not image.exists()]
    if len(missing) == len(pairs):
        return {}  # nnU-Net lists the scans without their channel numbers
    subject, advice = f"{folder}/dataset.json:", "Copy them or remove them from the list."
    refuse_any(missing, subject, "listed scans are not there", advice, FileNotFoundError)
    pairs = [(image, mask if mask.exists() else None) for image, mask in pairs]
    return _by_name(folder, [image for image, _ in pairs], pairs)


def _named_pairs(folder):
    images = _files(folder / "imagesTr") or _files(folder / "images")
    masks = _files(folder / "labelsTr") or _files(folder / "labels")
    numbered = [CHANNEL.search(i) and CHANNEL.sub("_0000", i) in images for i in images]
    if images and all(numbered) and not set(images) & set(masks):
        channels = pd.Series(images).groupby(lambda name: CHANNEL.sub("", name))
        images = channels.agg(tuple).to_dict()
    orphans = sorted(set(masks) - set(images))
    refuse_any(orphans, f"{folder}:", "masks have no scan of this name", f"Expected {LAYOUTS}.")
    return {name: (image, masks.get(name)) for name, image in images.items()}


def _group_function(folder, group_by, ids):
    if group_by is None or (isinstance(group_by, str) and not group_by):
        bids = all(re.search(BIDS_SUBJECT, case_id) for case_id in ids)
        group_by = BIDS_SUBJECT if bids else "()"  # which finds the empty group: no patient
    if isinstance(group_by, str) and re.search(r"\.[ct]sv:[^:]+$", group_by):
        name, column = group_by.rsplit(":", 1)
        table = pd.read_csv(folder / name, sep=None, engine="python", dtype=str)
        if column not in table:
            raise ValueError(f"{folder / name}: no column {column!r}; it has {[*table.columns]}.")
        group_by = dict(zip(table.iloc[:, 0], table[column], strict=True))
    if isinstance(group_by, str):
        pattern = re.compile(group_by)
        if not pattern.groups:
            raise ValueError(f"group_by needs a bracket around the patient. Received: {group_by!r}")
        group_by = {i: found.group(1) for i in ids if (found := pattern.search(i))}
    if not callable(group_by):
        missing = [case_id for case_id in ids if pd.isna(group_by.get(case_id))]
        advice = "Extend the table or correct the pattern."
        refuse_any(missing, "group_by tells no patient for", "cases", advice)
        group_by = group_by.__getitem__
    return lambda case_id: None if (group := group_by(case_id)) in (None, "") else str(group)
