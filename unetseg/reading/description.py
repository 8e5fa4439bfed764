"""What a data set says of itself: its dataset.json, as the Decathlon or nnU-Net writes it."""

import re
from pathlib import Path

from unetseg._base import refuse_any
from unetseg.reading.contents import read_json

IGNORE = re.compile(r"ignored?([ _-]?(label|value|region|area|mask|voxels?))?", re.IGNORECASE)
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
        Without the background; empty if nothing is declared.

    Raises
    ------
    ValueError
        If a label has no whole number of its own, 0 is not the background, or names have a
        meaning that is not supported: ``ignore``, and regions of several values. Says which, and
        what to do.
    """
    path = Path(folder) / "dataset.json"
    content = read_description(Path(folder))
    _refuse_regions(path, content)
    pairs = _number_labels(path, content.get("labels", {}))
    _refuse_background(path, pairs)
    names = {value: name for value, name in pairs if value}
    if len(names) < len([value for value, _ in pairs if value]):
        twice = [name for value, name in pairs if [v for v, _ in pairs].count(value) > 1]
        problem = "labels share a value with another"
        refuse_any(twice, f"{path}:", problem, "Give each a value of its own, in the masks too.")
    given = [*names.values()]
    twice = sorted({name for name in given if given.count(name) > 1})
    refuse_any(twice, f"{path}:", "names stand for several labels", "Give each its own name.")
    refuse_ignored(names, f"{path}:")
    return names


def refuse_special_labels(folder):
    """Stop if labels have a meaning that is not supported, whatever else is wrong with them.

    Parameters
    ----------
    folder : str or Path
        May hold a ``dataset.json``.

    Raises
    ------
    ValueError
        If it declares regions of several values, or voxels to ignore.
    """
    path, content = Path(folder) / "dataset.json", read_description(Path(folder))
    _refuse_regions(path, content)
    labels = content.get("labels", {})
    if isinstance(labels, dict):
        by_name = not all(str(key).isdecimal() for key in labels)
        names = {value: name for name, value in labels.items()} if by_name else labels
        refuse_ignored(names, f"{path}:")


def _refuse_regions(path, content):
    labels = content.get("labels", {})
    items = labels.items() if isinstance(labels, dict) else ()
    regions = [f"{name!r} = {value}" for name, value in items if isinstance(value, list | dict)]
    if "regions_class_order" in content:
        regions.append("'regions_class_order'")
    advice = "They are not supported yet: give each value one whole number and a name of its own, "
    advice += "and remove 'regions_class_order'; add the values up after the prediction."
    refuse_any(regions, f"{path}:", "entries declare regions of several labels", advice)


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


def refuse_ignored(names, subject):
    """Stop if a label marks voxels that nobody annotated.

    Parameters
    ----------
    names : mapping of int to str
        Of labels.
    subject : str
        What declares them, the first words of the message.

    Raises
    ------
    ValueError
        If a label is named ``ignore``, however it is written: it would be learnt as a structure.
    """
    ignored = [f"{n!r} = {v}" for v, n in names.items() if IGNORE.fullmatch(str(n).strip())]
    advice = "This is not supported yet, and they would be learnt as a structure: annotate these "
    advice += "voxels, crop scans and masks to what is annotated, or take these cases out; "
    advice += "then remove the label."
    refuse_any(ignored, subject, "labels mark voxels to ignore", advice)


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
