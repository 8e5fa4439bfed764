"""Which folder of scans a folder of results belongs to: nothing is mixed, and no row is lost."""

import contextlib
import itertools
import os
from dataclasses import replace
from pathlib import Path

import pandas as pd

from unetseg._base import refuse_any, sha256, write_file, write_json
from unetseg.reading.folders import fold_name
from unetseg.reading.tables import read_table
from unetseg.run import drive
from unetseg.run.drive import origin
from unetseg.run.layout import Batch, Run, read_json

_NO_ROWS = pd.DataFrame(columns=["case"])
MOST_BYTES = 200  # of a name; file systems allow 255, and what is temporary is named longer


def choose_folder(results_dir, source, scans):
    """Choose where the predictions of a folder of new scans go.

    A folder of scans keeps its folder of results, by whatever path it is given and in whatever
    session, and shares it with no other. The first of a name gets ``new_scans/<name>``; the next
    has that of its parent before it, or a number after it.

    Parameters
    ----------
    results_dir : str or Path
        The experiment.
    source : str or Path
        Folder of the scans.
    scans : sequence of Case
        What is in it. Results without a note of their source, or whose source has moved, are
        known by the content of the scans.

    Returns
    -------
    Path
        Gets ``source.json``, the note of `origin`.
    """
    root, place = Run(results_dir).new_scans, origin(source)
    there = sorted(path for path in root.glob("*") if path.is_dir())
    noted = [folder for folder in there if _read_note(folder) == place]
    if noted:
        return noted[0]
    taken = {fold_name(folder.name): folder for folder in there}
    for name in _names(Path(place)):
        folder = taken.get(fold_name(name), root / name)
        if _is_free(folder) or _belongs(folder, Path(source), scans):
            break
    write_json(Batch(folder).source, {"source": place})
    if folder.name != Path(place).name:
        print(f"Scans of another folder have that name: those of {place} go to {folder.name}.")
    return folder


def _names(place):
    name = place.name or "scans"
    long = f"{place.parent.name}_{name}"
    names = [name, long] if place.parent.name else [name]
    yield from (each for each in names if len(each.encode()) <= MOST_BYTES)
    short = name.encode()[: MOST_BYTES - 10].decode(errors="ignore")
    yield from (f"{short}_{number}" for number in itertools.count(2))


def _is_free(folder):
    return not any(path.is_file() for path in folder.rglob("*"))


def _read_note(folder):
    return _read_source(folder).get("source")


def _read_source(folder):
    with contextlib.suppress(FileNotFoundError, ValueError):  # Drive may have lost its content
        return read_json(Batch(folder).source)
    return {}


def _belongs(folder, source, scans):
    if _other_source(folder, source):
        return False
    noted = _read_note(folder)
    if noted and (drive.base_dir() / noted).exists():
        return True  # by another spelling
    same = [_is_same(folder, scan) for scan in scans]
    return True in same and False not in same


def _is_same(folder, scan):
    # Whether what is predicted there under the id of a scan is of that scan; None for nothing.
    with contextlib.suppress(OSError, ValueError):
        marker = read_json(Batch(folder).note(scan.id), "prediction")
        if marker.get("source") == origin(scan.files[0]):
            return True
        return marker["about"].get("scan") == [sha256(file) for file in scan.files]
    return None


def claim(results_dir, source, cases, group_by=None):
    """Note which data set an experiment is made from, unless it was trained on another.

    Parameters
    ----------
    results_dir : str or Path
        The experiment.
    source : str or Path
        Folder of the data set.
    cases : sequence of Case
        What is in it. Experiments of earlier versions are known by their ids.
    group_by : str, optional
        How patients were told, for `refuse_other_groups`.

    Raises
    ------
    ValueError
        If the experiment was trained on another folder, which is still there, or on cases of
        which none is here.
    """
    run, source = Run(results_dir), Path(source)
    if run.experiment.exists():
        advice = "Choose another EXPERIMENT for these scans."
        if other := _other_source(run.folder, source):
            problem = f"this experiment was trained on {other}, not on {origin(source)}"
            raise ValueError(f"{run.folder}: {problem}. {advice}")
        trained = _read_rows(run.cases)
        ids = [case.id for case in cases]
        if trained is not None and len(trained) and not trained["case"].isin(ids).any():
            problem = f"this experiment was trained on other cases than are in {origin(source)}"
            raise ValueError(f"{run.folder}: {problem}. {advice}")
    groups = {"group_by": group_by or ""} if _is_typed(group_by) else {}
    write_json(run.source, {"source": origin(source), **groups})


def _is_typed(group_by):
    # Not a function or a mapping of a program.
    return group_by is None or isinstance(group_by, str)


def refuse_other_groups(results_dir, group_by):
    """Stop if patients are told in another way than when the experiment was claimed.

    Cases would be checked for leaks by the one and shared out by the other.

    Parameters
    ----------
    results_dir : str or Path
        The experiment.
    group_by : str, callable, mapping or None
        Functions and mappings of programs are not compared.

    Raises
    ------
    ValueError
        If what was noted by `claim` is another.
    """
    noted = _read_source(Path(results_dir)).get("group_by")
    if noted is None or not _is_typed(group_by) or noted == (group_by or ""):
        return
    problem = f"GROUPS = {group_by or ''!r} here, but 01_load_data was run with {noted!r}"
    raise ValueError(f"{problem}. Type the same in both, or run 01_load_data again.")


def refuse_other_source(results_dir, source):
    """Stop if the preprocessing of an experiment was chosen for another data set.

    Once it is trained, training itself compares the cases and settings with its own.

    Parameters
    ----------
    results_dir, source : str or Path
        As for `claim`, by which it was noted.

    Raises
    ------
    ValueError
        If nothing is trained yet, and the folder that was noted is still there and another one.
    """
    trained = Run(results_dir).experiment.exists()
    other = _other_source(Path(results_dir), Path(source))
    if other and not trained:
        problem = f"preprocessor.json was made for {other}, not for {origin(source)}"
        advice = "Choose another EXPERIMENT, or run 01_load_data on these scans again."
        raise ValueError(f"{results_dir}: {problem}. {advice}")


def _other_source(folder, source):
    # The folder that is noted, if it is there and not this one.
    noted = _read_note(folder)
    if noted is None or noted == origin(source):
        return None
    there = drive.base_dir() / noted
    if not there.exists() or (source.exists() and os.path.samefile(there, source)):
        return None  # it has moved, or is another spelling
    return noted


def refuse_other_scans(folder, scans):
    """Stop if a folder holds predictions of other scans that have the same ids.

    Parameters
    ----------
    folder : str or Path
        As for `unetseg.inference.predict_scans`.
    scans : sequence of Case
        A scan that was corrected in its place is not another one.

    Raises
    ------
    ValueError
        Lists the ids.
    """
    others = [scan.id for scan in scans if _is_same(Path(folder), scan) is False]
    advice = "Predict these scans into another folder, or rename them."
    refuse_any(others, f"{folder}: holds predictions of other scans with", "of these ids", advice)


def list_corrected(folder, scans):
    """List the scans whose labels somebody changed after they were predicted.

    Parameters
    ----------
    folder : str or Path
        As for `unetseg.inference.predict_scans`.
    scans : sequence of Case

    Returns
    -------
    list of Case
        With these labels as masks.
    """
    batch, corrected = Batch(Path(folder)), []
    for scan in scans:
        label = batch.label(scan.id)
        if drive.is_corrected(label):
            corrected.append(replace(scan, mask=label))
    return corrected


def list_failed(batch):
    """List the scans that were not segmented when it was last tried.

    Parameters
    ----------
    batch : unetseg.run.layout.Batch

    Returns
    -------
    set of str
        Their ids. Labels by earlier models may be there.
    """
    table = _read_rows(batch.predictions)
    return (
        set()
        if table is None or "problem" not in table
        else {*table.loc[table["problem"] != "", "case"]}
    )


def update_table(path, table, *, notes=False):
    """Write a table of scans; what the file says of scans that are not in it stays.

    Parameters
    ----------
    path : str or Path
        A CSV file, perhaps saved by Excel since. What cannot be read as such a table is kept beside
        it as ``<name>.old``.
    table : pandas.DataFrame
        Its column ``case`` names the scans. Its rows come first, those of other scans after them.
    notes : bool, default False
        Whether columns that the table lacks are notes of a person, and stay for its scans too.
    """
    path = Path(path)
    old = _read_rows(path)
    if old is None:
        names = (path.with_name(f"{path.name}.old{number or ''}") for number in itertools.count())
        kept = next(name for name in names if not name.exists())
        print(f"{path}: not a table of scans; kept as {kept.name}.")
        path.replace(kept)
        old = _NO_ROWS
    if notes:
        typed = old.drop_duplicates("case").set_index("case")
        table = table.join(typed[typed.columns.difference(table.columns, sort=False)], on="case")
    old = old[~old["case"].isin(table["case"].astype(str))]
    columns = [*table.columns, *(name for name in old.columns if name not in table)]
    columns = columns if len(old) else table.columns
    text = table.reindex(columns=columns).to_csv(index=False)
    text += old.reindex(columns=columns, fill_value="").to_csv(index=False, header=False)
    write_file(path, text.encode())


def _read_rows(path):
    # None for what is no such table.
    if not path.exists():
        return _NO_ROWS
    with contextlib.suppress(ValueError):  # of which pandas' own errors are
        rows = read_table(path)
        if "case" in rows:
            return rows
    return None
