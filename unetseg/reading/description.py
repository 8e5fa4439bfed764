"""What a data set says of itself: its dataset.json, as the Decathlon or nnU-Net writes it."""

import re
from pathlib import Path

from unetseg._base import refuse_any
from unetseg.annotation import is_ignored, split_ignored
from unetseg.reading.contents import read_json

BACKGROUND = (  # in some of the languages that people name it in
    "background",
    "back ground",
    "bg",
    "backgr",
    "back",
    "unlabeled",
    "unlabelled",
    "clear label",
    "none",
    "nothing",
    "empty",
    "air",
    "outside",
    "other",
    "rest",
    "",
    "hintergrund",
    "fond",
    "arrière-plan",
    "fondo",
    "sfondo",
    "achtergrond",
    "背景",
)
ENDINGS = (".nii", ".nii.gz")


def read_description(folder):
    """Read the ``dataset.json`` of a data set.

    Parameters
    ----------
    folder : Path

    Returns
    -------
    dict
        Empty if there is none.

    Raises
    ------
    ValueError
        If it is no JSON, not in braces, or its ``training`` is no list; names the file.
    """
    path = folder / "dataset.json"
    content = read_json(path) if path.exists() else {}
    if not isinstance(content, dict) or not isinstance(content.get("training", []), list):
        raise ValueError(f"{path}: not in braces, or 'training' is no list. Correct or remove it.")
    return content


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
        Without the background; empty if nothing is declared. The one that is named ``ignore``
        marks voxels that nobody drew. Values that stand in regions alone (`read_regions`) are
        named after their number.

    Raises
    ------
    ValueError
        If a label has no whole number of its own, or 0 is not the background. Says which, and
        what to do.
    """
    path = Path(folder) / "dataset.json"
    content = read_description(Path(folder))
    pairs = _number_labels(path, _part_regions(content.get("labels", {}), read_regions(folder)))
    _refuse_background(path, pairs)
    names = {value: name for value, name in pairs if value}
    if len(names) < len([value for value, _ in pairs if value]):
        twice = [name for value, name in pairs if [v for v, _ in pairs].count(value) > 1]
        problem = "labels share a value with another"
        refuse_any(twice, f"{path}:", problem, "Give each a value of its own, in the masks too.")
    given = [*names.values()]
    twice = sorted({name for name in given if given.count(name) > 1})
    refuse_any(twice, f"{path}:", "names stand for several labels", "Give each its own name.")
    split_ignored(names)  # there is one at most
    return names


def read_regions(folder):
    """Regions of several labels that a data set declares.

    Parameters
    ----------
    folder : str or Path
        May hold a ``dataset.json`` of nnU-Net, ``{"whole tumour": [1, 2, 3], "core": [2, 3]}``.
        Its ``regions_class_order`` is not needed: networks tell labels apart, and regions are
        their sums.

    Returns
    -------
    dict of str to tuple of int
        The values of each, single labels among them; empty if no entry has several.

    Raises
    ------
    ValueError
        If a value of a list is no whole number above 0.
    """
    path = Path(folder) / "dataset.json"
    content = read_description(Path(folder))
    labels, regions = content.get("labels", {}), {}
    if not isinstance(labels, dict) or not any(isinstance(v, list) for v in labels.values()):
        return {}
    for name, listed in labels.items():
        values = listed if isinstance(listed, list) else [listed]
        whole = all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values)
        if not whole or (isinstance(listed, list) and 0 in values):
            raise ValueError(f"{path}: {name!r} = {listed}; whole numbers above 0. Correct it.")
        if 0 not in values and not is_ignored(name):
            regions[name] = tuple(sorted(values))
    return regions


def read_declared(cases):
    """Labels and regions that the data set of some cases declares.

    Parameters
    ----------
    cases : sequence of Case

    Returns
    -------
    dict
        ``labels`` and ``regions`` as settings of a `unetseg.preprocessing.Preprocessor`, as far as
        the folder above that of the masks declares them; empty if masks lie in several folders.

    Raises
    ------
    ValueError
        As `read_label_names` and `read_regions`.
    """
    folders = {Path(case.mask).absolute().parent.parent for case in cases if case.mask}
    if len(folders) != 1:
        return {}
    (folder,) = folders
    declared = {"labels": read_label_names(folder), "regions": read_regions(folder)}
    return {name: values for name, values in declared.items() if values}


def _part_regions(labels, regions):
    # Of regions the single labels: by their own name, or "label 2".
    if not regions:
        return labels
    alone = {values[0]: name for name, values in regions.items() if len(values) == 1}
    parts = sorted({value for values in regions.values() for value in values})
    others = {name: value for name, value in labels.items() if name not in regions}
    return others | {alone.get(value, f"label {value}"): value for value in parts}


def _number_labels(path, labels):
    # Pairs of value and name, in either dialect, the background included.
    problem = f"{path}: {labels}; one whole number each. Correct it."
    if not isinstance(labels, dict):
        raise ValueError(problem)
    items = [*labels.items()]
    if not all(str(key).isdecimal() for key in labels):
        items = [(value, name) for name, value in items]
    pairs = []
    for value, name in items:
        if isinstance(value, bool) or not re.fullmatch(r"-?\d{1,10}(\.0+)?", str(value)):
            raise ValueError(problem)
        pairs.append((int(float(value)), str(name)))
    return pairs


def _refuse_background(path, pairs):
    advice = "Value 0 is always the background: give the label another value, in the masks too, "
    advice += "or name 0 'background'."
    wrong = [f"{name!r} = 0" for value, name in pairs if not value and not _is_background(name)]
    refuse_any(wrong, f"{path}:", "labels have the value of the background", advice)
    wrong = [f"{name!r} = {value}" for value, name in pairs if value and _is_named(name)]
    refuse_any(wrong, f"{path}:", "labels are named as the background, but not 0", advice)


def _is_background(name):
    return name.strip().lower() in BACKGROUND


def _is_named(name):
    return name.strip().lower() == "background"


def read_channel_names(folder):
    """Names of the channels that a data set declares.

    Parameters
    ----------
    folder : str or Path
        May hold a ``dataset.json`` with ``channel_names`` (nnU-Net) or ``modality`` (Decathlon).

    Returns
    -------
    list of str
        In the order of their numbers; empty if nothing is declared.
    """
    content = read_description(Path(folder))
    declared = content.get("channel_names") or content.get("modality")
    if isinstance(declared, dict):
        numbered = all(str(key).isdecimal() for key in declared)
        keys = sorted(declared, key=int) if numbered else declared
        return [str(declared[key]) for key in keys]
    return [str(name) for name in declared] if isinstance(declared, list) else []


def describe_format(content):
    """Say if the files that a ``dataset.json`` describes are not NIfTI; empty if they are."""
    ending = content.get("file_ending", ENDINGS[0])
    if str(ending).lower() in ENDINGS:
        return ""
    return f"dataset.json: 'file_ending' is {ending!r}; convert the files to .nii.gz and correct it"
