"""Folders of scans and masks: which files there are, and which belong together."""

import re
from unicodedata import normalize

import pandas as pd

from unetseg._base import refuse_any, require, sha256, write_file
from unetseg.reading.description import read_description

SUFFIX = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
NOT_READ = re.compile(r"\.(hdr|img|mg[hz]|mh[ad]|nrrd|dcm|nii\.(zip|bz2))(\.gz)?$", re.IGNORECASE)
ARCHIVE = re.compile(r"\.(zip|7z|rar|tar|tgz|tar\.\w+)$", re.IGNORECASE)
UNFINISHED = re.compile(r"\.nii(\.gz)?\.(crdownload|download|partial)$", re.IGNORECASE)
CHANNEL = re.compile(r"_\d{4}$")
COPY = re.compile(r" ?\(\d+\)$")  # as Drive and browsers name a second download
OUTSIDE = re.compile(r"^[/\\]|^\w:|(^|[/\\])\.\.([/\\]|$)")
IMAGES, MASKS = ("imagesTr", "images"), ("labelsTr", "labels")
LAYOUTS = "imagesTr and labelsTr, or images and labels, with .nii or .nii.gz files of one name"


def list_files(folder, problems):
    """List the NIfTI files of a folder.

    Parameters
    ----------
    folder : Path
        Perhaps not there.
    problems : list of str
        Gets a line for every file that should be a scan and cannot be read as one.

    Returns
    -------
    dict of str to Path
        By id: the name of the file without its suffix.
    """
    paths = sorted(folder.glob("[!.]*"))
    scans = [path for path in paths if SUFFIX.search(path.name)]
    for path in paths:
        if NOT_READ.search(path.name):
            problems.append(f"{path}: convert it to .nii.gz{_find_half(path)}")
        elif UNFINISHED.search(path.name):
            problems.append(f"{path}: its download never ended; download it again")
        elif ARCHIVE.search(path.name) and not scans:
            problems.append(f"{path}: an archive; unpack it here")
    return _by_id([(path, path) for path in scans], problems)


def find_first(folders, problems):
    """List the files of the first of some folders that holds any; parameters as `list_files`."""
    for folder in folders:
        files = list_files(folder, problems)
        if files:
            return files
    return {}


def find_listed_pairs(folder, problems):
    """Find the pairs that a ``dataset.json`` lists.

    Parameters
    ----------
    folder : Path
    problems : list of str
        Gets a line for every entry that is no pair of files.

    Returns
    -------
    dict of str to (Path, Path or None)
        Scan and mask by id; empty if none is listed, or none of the listed scans is there.
    """
    pairs = []
    for entry in read_description(folder).get("training", []):
        names = [isinstance(entry, dict) and entry.get(key) for key in ("image", "label")]
        if all(isinstance(name, str) and not OUTSIDE.search(name) for name in names):
            pairs.append([_locate(folder / name) for name in names])
        else:
            problems.append(f"dataset.json: {entry} is no pair of files in the folder; correct it")
    missing = [image for image, _ in pairs if not image.exists()]
    if len(missing) == len(pairs):
        return {}  # nnU-Net lists the scans without their channel numbers
    for image in missing:
        problems.append(f"{image}: listed in dataset.json, not there; copy it or correct it")
    there = [(image, (image, mask if mask.exists() else None)) for image, mask in pairs]
    return _by_id(there, problems)


def find_named_pairs(folder, problems):
    """Pair scans and masks of one name; parameters and result as of `find_listed_pairs`."""
    scans = find_first([folder / name for name in IMAGES], problems)
    masks = find_first([folder / name for name in MASKS], problems)
    if scans.keys().isdisjoint(masks):
        scans = join_channels(scans)
    orphans = [case_id for case_id in sorted(masks) if case_id not in scans]
    for case_id in orphans:
        problems.append(f"{masks[case_id]}: no scan is named {case_id}; rename or remove one")
    if orphans:
        for case_id in sorted(scans):
            if case_id not in masks:
                problems.append(f"{case_id}: this scan has no mask; rename or remove one")
    return {case_id: (scan, masks.get(case_id)) for case_id, scan in scans.items()}


def join_channels(scans):
    """Join files numbered 0000, 0001 ... without a gap to tuples of files, if all are.

    Parameters
    ----------
    scans : dict of str to Path

    Returns
    -------
    dict of str to tuple of Path
        Or `scans` as they are.
    """
    if not scans or not all(_is_numbered(name, scans) for name in scans):
        return scans
    channels = pd.Series(scans).sort_index().groupby(lambda name: CHANNEL.sub("", name))
    return channels.agg(tuple).to_dict()


def _is_numbered(name, scans):
    # It ends in a number, and the file with the number before it is there.
    number = CHANNEL.search(name)
    if not number:
        return False
    before = max(1, int(number[0][1:])) - 1
    return f"{CHANNEL.sub('', name)}_{before:04d}" in scans


def _id(path):
    name = SUFFIX.sub("", path.name).strip()  # as tables give it back
    return normalize("NFC", name)  # a Mac may spell letters in another way


def _by_id(pairs, problems):
    values, first = {}, {}
    for path, value in sorted(pairs, key=lambda pair: (len(pair[0].name), pair[0])):
        key = _id(path).casefold()
        twin = first.get(key) or first.get(COPY.sub("", key))
        if twin:
            problems.append(f"{path}: of the same id as {twin.name}; rename or remove one")
        values[_id(path)], first[key] = value, path
    return values


def _find_half(path):
    name = re.sub(r"\.hdr(\.gz)?$", "", path.name, flags=re.IGNORECASE)
    halves = [path.with_name(name + end) for end in (".img", ".img.gz", ".IMG", ".IMG.GZ")]
    if name == path.name or any(half.exists() for half in halves):
        return ""
    return f"; it is a header alone: copy its {name}.img to it before"


def _locate(path):
    if path.exists() or path.name.isascii():
        return path
    for twin in path.parent.glob("*"):
        if normalize("NFC", twin.name) == normalize("NFC", path.name):
            return twin
    return path


def add_cases(folder, cases):
    """Copy scans and masks into a data set, where none of them is replaced.

    Parameters
    ----------
    folder : Path
        Is made if needed, with ``images`` and ``labels``; ``imagesTr`` and ``labelsTr`` are used if
        they are there.
    cases : sequence of Case

    Returns
    -------
    int
        How many cases are new there.

    Raises
    ------
    ValueError
        If other files of these names are there, its ``dataset.json`` lists the cases, or it holds
        scans without such folders. Nothing is copied then.
    """
    if read_description(folder).get("training"):
        advice = "Take 'training' out of it, or choose another folder."
        raise ValueError(f"{folder}: its dataset.json lists the cases one by one. {advice}")
    images, labels = (_choose_folder(folder, names) for names in (IMAGES, MASKS))
    there = [list_files(place, []) for place in (images, labels)]
    if list_files(folder, []) and not there[0]:
        advice = f"Move them to {images}, or choose another folder."
        raise ValueError(f"{folder}: scans lie there that would not be found any more. {advice}")
    copies = _plan_copies(images, labels, cases, *there)
    names = {(path.parent, _fold(path)) for files in there for path in files.values()}
    new = [path for path, source in copies.items() if not _is_copied(source, path)]
    other = sorted(path.name for path in new if (path.parent, _fold(path)) in names)
    advice = "Rename the scans, predict them again, or choose another folder."
    refuse_any(other, f"{folder}:", "other files have these names", advice)
    for path in new:
        write_file(path, copies[path].read_bytes())
    return len([path for path in new if path.parent == labels])


def _plan_copies(images, labels, cases, scans, masks):
    # The file that each new one is a copy of; numbered like the scans that are there.
    numbered = bool(scans) and all(CHANNEL.search(name) for name in scans)
    numbered = numbered and scans.keys().isdisjoint(masks)
    allowed = "one file each, as the scans that are there; join the channels of these"
    copies = {}
    for case in cases:
        several = len(case.files) > 1
        require("cases", case.id, numbered or not several or not scans, allowed)
        for channel, path in enumerate(case.files):
            number = f"_{channel:04d}" if several or numbered else ""
            copies[images / f"{case.id}{number}{_suffix(path)}"] = path
        copies[labels / f"{case.id}{_suffix(case.mask)}"] = case.mask
    return copies


def _is_copied(source, path):
    return path.exists() and sha256(path) == sha256(source)


def fold_name(name):
    """Give names one form that are one on disks of Mac and Windows: these know no upper case.

    Nor how an accent is coded.
    """
    return normalize("NFC", name).casefold()


def _fold(path):
    return fold_name(SUFFIX.sub("", path.name))


def _choose_folder(folder, names):
    there = [folder / name for name in names if (folder / name).is_dir()]
    used = [place for place in there if list_files(place, [])]
    return [*used, *there, folder / names[-1]][0]


def _suffix(path):
    return SUFFIX.search(path.name)[0].lower()
