"""Colab or laptop: where the scans and the results of an experiment are, and kept."""

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from unetseg._base import require
from unetseg._base import sha256 as sha256  # for those who look for it here
from unetseg.run import drive
from unetseg.run.drive import base_dir, in_colab, project_dir

DRIVE, LOCAL = drive.DRIVE, drive.LOCAL  # of Colab; set them here for another mount


class Workspace(NamedTuple):
    """Folders of one experiment.

    ``data``: the scans, on a local disk. ``results``: what the notebooks write, on a local disk.
    ``backup``: the same on Google Drive, or None outside Colab.
    """

    data: Path
    results: Path
    backup: Path | None


def install_missing():
    """Install what the project needs and the runtime lacks; touch no package that is there.

    Does nothing outside Colab.

    Returns
    -------
    list of str
        Names of the packages that were installed.

    Raises
    ------
    subprocess.CalledProcessError
        If pip fails.
    """
    if not in_colab():
        return []
    text = (project_dir() / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)
    missing = [name for name in names if not any(importlib.metadata.distributions(name=name))]
    if missing:
        pip = [sys.executable, "-m", "pip"]
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder) / "present.txt"  # pip then takes versions that go with these
            pins.write_bytes(subprocess.check_output([*pip, "list", "--format=freeze"]))
            subprocess.check_call([*pip, "install", "-q", "-c", str(pins), *missing])
    return missing


def prepare(data, experiment, results="results", *, need_data=True):
    """Make the folders of an experiment ready on the local disk.

    On a laptop the folders are used where they are. In Colab the scans are copied from Drive to
    the local disk once, and earlier results of the experiment are fetched from Drive.

    Parameters
    ----------
    data : str or Path
        Folder of the scans: absolute, or relative to the project (in Colab: to
        ``MyDrive/unetseg``). The word ``sample`` stands for the embedded data set.
    experiment : str
        Name of the experiment's own folder among the results.
    results : str or Path, default "results"
        Folder of all results, absolute or relative like `data`.
    need_data : bool, default True
        Whether a missing data folder is an error.

    Returns
    -------
    Workspace

    Raises
    ------
    ValueError
        If `experiment` is not a plain name.
    FileNotFoundError
        If there is no such data folder and it is needed.
    """
    drive.DRIVE, drive.LOCAL = DRIVE, LOCAL
    plain = re.fullmatch(r"[\w.-]*\w[\w.-]*", experiment)
    require("EXPERIMENT", experiment, plain, "a plain name of letters, digits, '.', '_' and '-'")
    base, here = base_dir(), LOCAL if in_colab() else project_dir()
    sample = str(data) == "sample"
    folder = here / "data" / "sample" if sample else base / Path(data).expanduser()
    if need_data and not sample and not folder.is_dir():
        allowed = f"the folder of your scans, absolute or relative to {base}, or to 'sample'"
        raise FileNotFoundError(f"{folder}: no such folder. Set DATA (or SCANS) to {allowed}.")
    kept = base / Path(results).expanduser() / experiment
    if not in_colab():
        return Workspace(folder, kept, None)
    local = folder if sample else LOCAL / "data" / folder.relative_to(folder.anchor)
    usual = kept.parent == base / "results"
    other = Path("other_results") / kept.parent.relative_to(kept.anchor)
    place = Workspace(local, LOCAL / ("results" if usual else other) / experiment, kept)
    if not sample:
        drive.fetch_data(folder, place.data)
    if place.backup.is_dir():
        drive.copy_new(place.backup, place.results, overwrite=False)
        drive.copy_new(place.backup, place.results, ["splits.json"])  # it may be edited there
    return place
