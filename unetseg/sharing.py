"""What is passed on and received: reports, models with their card, data sets that are fetched."""

import logging
import lzma
import os
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

import pandas as pd

from unetseg import disk, provenance, scores, workspace
from unetseg.digits import read_numbers
from unetseg.tables import read_table
from unetseg.workspace import DONE, project_dir, read_json, refuse_any, require, write_file

# nbconvert's page without the scripts that it would fetch from elsewhere.
REPORT = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block html_head_js{name} %}}{{% endblock %}}" for name in ("", "_mathjax", "_mermaidjs")
)

SETTINGS = ("experiment.json", "preprocessor.json", "splits.json")
TABLES, TRIPLES = ("leaks.csv", "scores.csv", "summary.csv"), ("shape", "spacing_mm")
WEIGHTS, CARD, HASHES = "model.weights.h5", "MODEL_CARD.md", "hashes.json"
FOLD = (WEIGHTS, "history.csv", "calibration.csv", DONE)
PLAIN = {"mtime": 0, "mode": 0o644, "uid": 0, "gid": 0, "uname": "", "gname": "", "deep": False}
MAX_FILES = 1_000_000  # of a data set that is fetched
RANGES = ["intensity_p1", "intensity_median", "intensity_p99", "volume_ml"]


def write_report(notebook, path, **settings):
    """Execute a notebook of the project and write what it shows as one HTML file, without code.

    Parameters
    ----------
    notebook : str
        Name of a notebook in the folder ``notebooks``, such as ``"03_evaluate"``.
    path : str or Path
        The HTML file: figures and styles are inside, nothing is fetched from elsewhere.
    **settings
        Take the place of those in the notebook's cell tagged ``parameters``; its cells tagged
        ``set-up`` are not executed, those tagged ``no-report`` not shown.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook beside the package.
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    import nbformat  # these here, as only notebooks need them
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    folder = project_dir() / "notebooks"
    content = nbformat.read(folder / f"{notebook}.ipynb", as_version=4)
    for cell in content.cells:
        if "set-up" in cell.metadata.get("tags", []):
            paths = f"import sys\nsys.path.insert(0, {str(project_dir())!r})"
            cell.source = f"{paths}\nfrom unetseg import workspace"
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    resources = {"metadata": {"path": str(folder)}}
    quiet = ["--log-level=ERROR"]
    NotebookClient(content, timeout=None, resources=resources, extra_arguments=quiet).execute()
    log = logging.getLogger("unetseg")  # else it warns in the notebook that figures lack a text
    log.setLevel(logging.ERROR)
    shown = {"exclude_input": True, "exclude_output_prompt": True, "raw_template": REPORT}
    exporter = HTMLExporter(**shown, log=log)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"no-report"}), True)
    for cell in [cell for cell in content.cells if cell.cell_type == "code"]:
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    name = {"metadata": {"name": Path(path).stem}}
    write_file(path, exporter.from_notebook_node(content, name)[0].encode())


def write_model_card(results_dir):
    """Write down what the models of an experiment are, for those who get them.

    Parameters
    ----------
    results_dir : str or Path
        Results of an experiment, finished or not, scored or not.

    Returns
    -------
    Path
        ``MODEL_CARD.md`` in that folder: training data, splits, scores with intervals, leaks,
        intended use, limits, versions. Cases that failed or leaked are named by their ids.

    Raises
    ------
    FileNotFoundError
        If a file is missing that every run leaves.
    ValueError
        If a file is not as a run writes it.
    """
    import jinja2  # here, as only this needs it

    results_dir = Path(results_dir).resolve()
    about = {Path(name).stem: read_json(results_dir / name) for name in SETTINGS}
    about["folds"] = {p.parent.name: read_json(p) for p in results_dir.glob(f"fold_*/{DONE}")}
    about["weights"] = sum((results_dir / fold / WEIGHTS).is_file() for fold in about["folds"])
    text = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    card = jinja2.Template(text, finalize=_escape, undefined=jinja2.StrictUndefined)
    try:
        cases = read_table(results_dir / "cases.csv")
        triples = [pd.DataFrame(cases[name].map(read_numbers).tolist()) for name in TRIPLES]
        spans = pd.concat([*triples, cases[RANGES]], axis=1).astype(float).agg(["min", "max"])
        about |= {"cases": cases.to_dict("records"), "spans": spans.T.to_numpy().tolist()}
        for path in [results_dir / name for name in TABLES]:
            about[path.stem] = read_table(path).to_dict("records") if path.is_file() else None
        about |= _describe_content(results_dir, about["scores"])
        about["number"] = lambda value: float(value or "nan")  # NaN is written as ""
        text = card.render(name=results_dir.name, **about)
    except (ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
        problem = f"{results_dir}: a file is not as a run writes it ({error!r})"
        raise ValueError(f"{problem}. Fetch it again, or make it anew.") from error
    write_file(results_dir / CARD, f"{text}\n".encode())
    return results_dir / CARD


def _describe_content(results_dir, scored):
    corrected = [row["case"] for row in scored or () if row.get("mask") == provenance.CORRECTED]
    return {
        "unknown": provenance.Trained(results_dir).unknown,
        "corrected": sorted({*corrected}),
        "stale": scores.find_stale(results_dir),
    }


def _escape(value):  # what strangers named stays text on its line of Markdown
    shown = "".join(filter(str.isprintable, " ".join(str(value).split())))
    return re.sub(r"([\\`*<>\[\]|~$&])", r"\\\1", shown)


def pack(results_dir, path):
    """Pack the finished folds of an experiment into one file, to be opened by `unpack`.

    Weights, settings, splits, tables and a new model card are packed; scans, masks, predictions
    and figures are not. **The ids of cases and patients are**, in most of these files: if they
    name patients, train under other ids first.

    Parameters
    ----------
    results_dir : str or Path
        Results of an experiment. Gets ``MODEL_CARD.md``, and ``hashes.json`` with the SHA-256 of
        every other file that is packed.
    path : str or Path
        The ``.tar`` file, written in one step. The same results give the same bytes.

    Returns
    -------
    str
        SHA-256 of the file. Tell it to the receiver by another way than the file goes.

    Raises
    ------
    FileNotFoundError
        If no fold is finished, or a file is missing.
    ValueError
        If weights, a JSON file or a table are damaged. Nothing is packed then.
    """
    results_dir, path = Path(results_dir).resolve(), Path(path)
    finished = _check(results_dir)
    write_model_card(results_dir)
    files = [results_dir / name for name in (*SETTINGS, "cases.csv", *TABLES, CARD)]
    files += [folder / name for folder in finished for name in FOLD]
    hashes = _hash_files(results_dir, files)
    workspace.write_json(results_dir / HASHES, hashes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    need = sum((results_dir / name).stat().st_size for name in hashes)
    disk.require_room(path.parent, need, f"the files in {path.name}")
    full = disk.explain_full(path.parent, path.name)
    with full, tarfile.open(part, "w", dereference=True) as packed:
        for name in sorted([*hashes, HASHES]):
            member = f"{results_dir.name.lstrip('.')}/{name}"
            packed.add(results_dir / name, member, filter=lambda one: one.replace(**PLAIN))
    part.replace(path)
    return workspace.sha256(path)


def unpack(path, results_dir, sha256):
    """Open what `pack` wrote, after checking all of it.

    Parameters
    ----------
    path : str or Path
    results_dir : str or Path
        The new results folder; all or nothing.
    sha256 : str
        Of the file, as `pack` returned it to the sender.

    Returns
    -------
    Path
        `results_dir`.

    Raises
    ------
    FileExistsError
        If there is such a folder already; it is left as it is.
    ValueError
        If the file has another hash, is not a sound tar file, or files in it are missing, too
        many, changed or not valid.
    """
    path, results_dir = Path(path), Path(results_dir)
    if results_dir.exists():
        raise FileExistsError(f"{results_dir}: is there already. Choose another, or move it away.")
    allowed = f"that of {path}; if the sender told this one, fetch the file again"
    require("sha256", sha256, sha256.lower() == workspace.sha256(path), allowed)
    results_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=results_dir.parent, prefix=".part-") as temporary:
        stored_gb = path.stat().st_size / 1e9  # more than that cannot come out
        folder = unpack_tar(path, Path(temporary) / "unpacked", path, max_gb=stored_gb)
        try:
            listed = read_json(folder / HASHES).items()
            differ = dict(listed ^ _hash_files(folder, folder.rglob("*")).items())
            refuse_any(sorted(differ), f"{HASHES} does not fit", "files", "Ask for another.")
            _check(folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}".replace(str(folder), folder.name)) from error
        folder.rename(results_dir)
    return results_dir


def _hash_files(folder, files):
    files = [file for file in files if file.is_file() and file != folder / HASHES]
    return {file.relative_to(folder).as_posix(): workspace.sha256(file) for file in files}


def _check(results_dir):
    for path in (*results_dir.glob("*.json"), *[results_dir / name for name in SETTINGS]):
        read_json(path)
    finished = workspace.read_folds(results_dir)
    for folder, about in finished.items():
        path = folder / WEIGHTS
        if not path.is_file() or workspace.sha256(path) != about["weights_sha256"]:
            problem = f"missing, or damaged as its SHA-256 is not the one in {DONE}"
            raise ValueError(f"{path}: {problem}. Fetch it again, or train the fold again.")
    return finished


def download(url, folder, file_hash, *, max_gb=100):
    """Fetch a data set that is packed as a tar file, such as a task of the Decathlon.

    Parameters
    ----------
    url : str
        Of a ``.tar``, ``.tar.gz``, ``.tar.bz2`` or ``.tar.xz`` file.
    folder : str or Path
        Gets what the file holds, without a folder around all of it; all or nothing. If it is
        there already it is left as it is and nothing is fetched.
    file_hash : str
        SHA-256 or MD5 of the file, as published with it.
    max_gb : float, default 100
        Unpacked size above which the file is refused.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    OSError
        If the file cannot be fetched.
    ValueError
        If it has another hash, or is not a tar file of plain files that stay in the folder.
    """
    import keras  # here, as it takes seconds

    folder = Path(folder)
    if folder.exists():
        return folder
    fits = re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", file_hash)
    require("file_hash", file_hash, fits, "the SHA-256 or MD5 of the file, in hexadecimal digits")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as temporary:
        place = {"cache_dir": temporary, "cache_subdir": "fetched"}
        try:
            with disk.explain_full(folder.parent, url):
                packed = keras.utils.get_file("packed", url, file_hash=file_hash, **place)
        except ValueError as error:
            raise ValueError(f"{url}: {error} Fetch it again, or correct file_hash.") from error
        except Exception as error:  # get_file has no class of its own for this
            raise OSError(f"{url}: cannot be fetched ({error}). Check the address.") from error
        unpacked = unpack_tar(packed, Path(temporary) / "unpacked", url, max_gb=max_gb)
        os.replace(unpacked, folder)
    return folder


def unpack_tar(path, folder, source, *, max_gb=100):
    """Unpack a tar file that may come from a stranger.

    Parameters
    ----------
    path : str or Path
    folder : Path
        Gets what the file holds.
    source : str or Path
        What errors call the file: its path, or where it was fetched from.
    max_gb : float, default 100
        Unpacked size above which the file is refused.

    Returns
    -------
    Path
        `folder`, or the only folder in it.

    Raises
    ------
    ValueError
        If it is not a sound tar file of plain files that stay in the folder.
    """
    members, size = [], 0
    try:
        with tarfile.open(path) as packed:
            for member in packed:
                size += member.size
                if size > max_gb * 1e9 or len(members) > MAX_FILES:
                    raise tarfile.TarError(f"over max_gb={max_gb} or over {MAX_FILES} files")
                if not (member.isfile() or member.isdir()):
                    raise tarfile.TarError(f"{member.name} is no plain file")
                members.append(member)
            disk.require_room(folder, size, f"the files in {source}")
            packed.extractall(folder, members, filter="data")  # refuses what leads out of it
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{source}: not a sound tar file ({error}). Do not use it.") from error
    inside = list(folder.glob("[!.]*"))
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
