"""What is passed on and received: models, with their card."""

import lzma
import re
import tarfile
import tempfile
import zlib
from pathlib import Path

import pandas as pd

from unetseg import scores
from unetseg._base import explain_full, refuse_any, require, write_file, write_json
from unetseg._base import sha256 as hash_file
from unetseg.digits import read_numbers
from unetseg.reading.tables import read_table
from unetseg.run.inputs import CORRECTED, Trained
from unetseg.run.layout import FINAL, Run, read_json
from unetseg.run.machine import require_room

PLAIN = {"mtime": 0, "mode": 0o644, "uid": 0, "gid": 0, "uname": "", "gname": "", "deep": False}
TRIPLES = ("shape", "spacing_mm")
MAX_FILES = 1_000_000  # of a data set that is fetched
RANGES = ["intensity_p1", "intensity_median", "intensity_p99", "volume_ml"]


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

    run = Run(Path(results_dir).resolve())
    finished = run.list_finished()
    used = run.list_members()
    content = {path.stem: read_json(path) for path in _list_settings(run)}
    content |= {path.stem: read_json(path) for path in (used[0].experiment, used[0].preprocessor)}
    own = read_json(run.experiment)
    content["parents"], content["start"] = own["settings"].get("parents", []), run.name_start(own)
    content["used"] = [place.folder.name for place in used]
    content["folds"] = {fold.folder.name: read_json(fold.done) for fold in finished}
    folds = [fold for place in used for fold in place.list_finished()]
    content["weights"] = sum(fold.weights.is_file() for fold in folds)
    template = Path(__file__).with_name("model_card.md").read_text(encoding="utf-8")
    card = jinja2.Template(template, finalize=_escape, undefined=jinja2.StrictUndefined)
    try:
        content.update(_describe_cases(run))
        for path in _list_tables(run):
            rows = read_table(path).to_dict("records") if path.is_file() else None
            content[path.stem] = rows if rows or path == run.leaks else None
        content.update(_describe_content(run, content["scores"]))
        text = card.render(name=run.folder.name, number=_read_number, **content)
    except (ValueError, TypeError, KeyError, jinja2.TemplateError) as error:
        problem = f"{run.folder}: a file is not as a run writes it ({error!r})"
        raise ValueError(f"{problem}. Fetch it again, or make it anew.") from error
    write_file(run.card, f"{text}\n".encode())
    return run.card


def _describe_cases(run):
    # The rows of cases.csv, and of shape, spacing, intensities and volume the lowest and highest.
    cases = read_table(run.cases)
    columns = [pd.DataFrame(cases[name].map(read_numbers).tolist()) for name in TRIPLES]
    spans = pd.concat([*columns, cases[RANGES]], axis=1).astype(float).agg(["min", "max"])
    return {"cases": cases.to_dict("records"), "spans": spans.T.to_numpy().tolist()}


def _read_number(text):
    return float(text or "nan")  # NaN is written as ""


def _list_settings(run):
    return run.experiment, run.preprocessor, run.splits


def _list_tables(run):
    return run.leaks, run.scores, run.summary


def _describe_content(run, scored):
    corrected = [row["case"] for row in scored or () if row.get("mask") == CORRECTED]
    return {
        "largest": run.read_components()["new_scans"],
        "final": run.fold(FINAL).done.is_file(),
        "unknown": Trained(run.folder).unknown,
        "corrected": sorted({*corrected}),
        "stale": scores.find_stale(run.folder),
    }


def _escape(value):  # what strangers named stays text on its line of Markdown
    shown = "".join(filter(str.isprintable, " ".join(str(value).split())))
    return re.sub(r"([\\`*<>\[\]|~$&])", r"\\\1", shown)


def pack(results_dir, path):
    """Pack the finished models of an experiment into one file, to be opened by `unpack`.

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
    run, path = Run(Path(results_dir).resolve()), Path(path)
    _check(run)
    write_model_card(run.folder)
    hashes = _hash_files(run, [*list_packed(run), run.card])
    write_json(run.hashes, hashes)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    need = sum((run.folder / name).stat().st_size for name in hashes)
    require_room(path.parent, need, f"the files in {path.name}")
    full = explain_full(path.parent, path.name)
    with full, tarfile.open(part, "w", dereference=True) as packed:
        for name in sorted([*hashes, run.hashes.name]):
            member = f"{run.folder.name.lstrip('.')}/{name}"
            packed.add(run.folder / name, member, filter=_make_plain)
    part.replace(path)
    return hash_file(path)


def list_packed(run):
    """List the files of an experiment that are packed, whether they are there or not.

    Parameters
    ----------
    run : unetseg.run.layout.Run
        Of an average those of its parents too.

    Returns
    -------
    list of Path
    """
    files = [*_list_settings(run), run.cases, *_list_tables(run), run.components, run.average]
    for fold in run.read_models():
        files += [fold.weights, fold.history, fold.calibration, fold.done]
    for parent in run.list_parents():
        files += list_packed(parent)
    return files


def _make_plain(member):
    return member.replace(**PLAIN)


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
    require("sha256", sha256, sha256.lower() == hash_file(path), allowed)
    results_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=results_dir.parent, prefix=".part-") as temporary:
        stored_gb = path.stat().st_size / 1e9  # more than that cannot come out
        folder = unpack_tar(path, Path(temporary) / "unpacked", path, max_gb=stored_gb, mode="r:")
        try:
            run = Run(folder)
            listed = read_json(run.hashes).items()
            differ = dict(listed ^ _hash_files(run, folder.rglob("*")).items())
            subject = f"{run.hashes.name} does not fit"
            refuse_any(sorted(differ), subject, "files", "Ask for another.")
            _check(run)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: {error}".replace(str(folder), folder.name)) from error
        folder.rename(results_dir)
    return results_dir


def _hash_files(run, files):
    files = [file for file in files if file.is_file() and file != run.hashes]
    return {file.relative_to(run.folder).as_posix(): hash_file(file) for file in files}


def _check(run):
    for path in (*run.folder.glob("*.json"), *_list_settings(run)):
        read_json(path)
    run.read_finished()
    for place in run.list_members():
        for fold, done in place.read_models().items():
            path = fold.weights
            if not path.is_file() or hash_file(path) != done["weights_sha256"]:
                problem = f"missing, or damaged as its SHA-256 is not the one in {fold.done.name}"
                raise ValueError(f"{path}: {problem}. Fetch it again, or train the fold again.")


def unpack_tar(path, folder, source, *, max_gb=100, mode="r"):
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
        with tarfile.open(path, mode) as packed:
            for member in packed:
                size += member.size
                if size > max_gb * 1e9 or len(members) > MAX_FILES:
                    raise tarfile.TarError(f"over max_gb={max_gb} or over {MAX_FILES} files")
                if not (member.isfile() or member.isdir()):
                    raise tarfile.TarError(f"{member.name} is no plain file")
                members.append(member)
            require_room(folder, size, f"the files in {source}")
            packed.extractall(folder, members, filter="data")  # refuses what leads out of it
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{source}: not a sound tar file ({error}). Do not use it.") from error
    inside = list(folder.glob("[!.]*"))
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder
