"""Where each file of an experiment lies: the only place that spells their names."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from unetseg._base import write_json
from unetseg.reading import contents

DONE = "done.json"  # in the folder of a fold: it is finished
FINAL = "final"  # folder of the model that is trained on all cases
LOCK = "running.json"  # in any folder: somebody works in it


def _named(name):
    return property(lambda place: place.folder / name, doc=name)


@dataclass(frozen=True, order=True)
class Fold:
    """The files of one fold.

    Parameters
    ----------
    folder : Path
        ``fold_<number>`` of an experiment.
    """

    folder: Path

    weights = _named("model.weights.h5")
    history = _named("history.csv")
    calibration = _named("calibration.csv")
    done = _named(DONE)
    lock = _named(LOCK)

    @property
    def number(self):
        """Its number, from 0."""
        return int(self.folder.name.removeprefix("fold_"))

    @property
    def key(self):
        """Its number, or ``final``: with which `Run.fold` finds it."""
        return FINAL if self.folder.name == FINAL else self.number

    def state(self, turn):
        """File of the state of a training, of which there are two by turns: 0 and 1."""
        return self.folder / f"{turn}.state"

    def list_states(self):
        """States of a training that are there, with what is left of their writing."""
        return sorted(self.folder.glob("?.state*"))


@dataclass(frozen=True)
class Batch:
    """The files that come of one folder of new scans.

    Parameters
    ----------
    folder : Path
    """

    folder: Path

    source = _named("source.json")
    scans = _named("scans.csv")
    predictions = _named("predictions.csv")
    look_at = _named("look_at.csv")
    scores = _named("scores.csv")
    summary = _named("summary.csv")
    claim = _named("claim.csv")
    lesions = _named("lesions.csv")
    report = _named("report.html")
    figures = _named("figures")
    montage = _named("montage.png")
    labels = _named("labels")
    notes = _named("done")

    def label(self, case_id):
        """Labels of a scan."""
        return self.labels / _mask_name(case_id)

    def map(self, kind, case_id):
        """Map of a scan, such as of its ``uncertainty``."""
        return self.folder / kind / _mask_name(case_id)

    def figure(self, name):
        """Picture of a figure."""
        return self.figures / f"{name}.png"

    def note(self, case_id):
        """Note of what was predicted of a scan, and how."""
        return self.notes / f"{case_id}.json"

    def draft(self, case_id):
        """Labels of a scan before its note is there; never copied to Drive."""
        return self.notes / f".part-{_mask_name(case_id)}"

    def view(self, case_id):
        """Page on which a scan can be looked through."""
        return self.folder / f"{case_id}.html"


@dataclass(frozen=True)
class Run:
    """The files of one experiment, whether they are there or not.

    Parameters
    ----------
    folder : Path
        ``results/<experiment>``.
    """

    folder: Path

    experiment = _named("experiment.json")
    preprocessor = _named("preprocessor.json")
    splits = _named("splits.json")
    source = _named("source.json")
    fitted_on = _named("fitted_on.json")
    cases = _named("cases.csv")
    start = _named("start.json")
    average = _named("average.json")
    parents = _named("parents")
    leaks = _named("leaks.csv")
    components = _named("components.json")
    scores = _named("scores.csv")
    summary = _named("summary.csv")
    lesions = _named("lesions.csv")
    report = _named("report.html")
    card = _named("MODEL_CARD.md")
    hashes = _named("hashes.json")
    figures = _named("figures")
    predictions = _named("predictions")
    masks = _named("masks")
    new_scans = _named("new_scans")
    lock = _named(LOCK)

    def __post_init__(self):
        """Accept text."""
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def packed(self):
        """The file in which the models are passed on."""
        return self.folder / f"{self.folder.name}.tar"

    def figure(self, name):
        """Picture of a figure."""
        return self.figures / f"{name}.png"

    def prediction(self, case_id):
        """Prediction of a case by the fold that did not see it."""
        return self.predictions / _mask_name(case_id)

    def mask(self, case_id):
        """Copy of the mask of a case."""
        return self.masks / _mask_name(case_id)

    def fold(self, number):
        """Files of a fold, or of the model on all cases, whose number is ``final``."""
        return Fold(self.folder / (FINAL if number == FINAL else f"fold_{number}"))

    def batch(self, name):
        """Files of a folder of new scans."""
        return Batch(self.new_scans / name)

    def list_finished(self):
        """Folds that have their ``done.json``, in the order of their numbers."""
        folds = [Fold(path.parent) for path in self.folder.glob(f"fold_*/{DONE}")]
        return sorted(folds, key=lambda fold: fold.number)

    def read_finished(self, numbers=None):
        """Read what the finished folds say of themselves.

        Parameters
        ----------
        numbers : iterable of int, optional
            By default every fold that is finished.

        Returns
        -------
        dict of Fold to dict
            The ``done.json`` of each, in the order of their numbers.

        Raises
        ------
        FileNotFoundError
            If no fold is finished, or one that was asked for is not.
        ValueError
            If a ``done.json`` is damaged.
        """
        folds = self.list_finished()
        if numbers is not None:
            folds = [self.fold(number) for number in numbers]
        missing = [fold.folder.name for fold in folds if not fold.done.is_file()]
        if missing or not folds:
            which = f"{', '.join(missing)} is not finished" if missing else "no fold is finished"
            final = ", with FINAL" if FINAL in missing else ""
            raise FileNotFoundError(f"{self.folder}: {which}. Run 02_train_kfold{final} first.")
        return {fold: read_json(fold.done) for fold in folds}

    def name_start(self, experiment):
        """Name the experiment from whose weights training started; '' if it started anew.

        Parameters
        ----------
        experiment : dict
            What is in ``experiment.json``.

        Returns
        -------
        str
        """
        if not experiment["settings"].get("starts"):
            return ""
        noted = read_json(self.start) if self.start.exists() else {}
        return noted.get("from", "an earlier experiment")

    def read_models(self):
        """Read what the finished folds, and the model on all cases if there is one, say.

        Returns
        -------
        dict of Fold to dict
            As of `read_finished`, whose errors it raises.
        """
        final = [FINAL] if self.fold(FINAL).done.exists() else []
        return self.read_finished([*(fold.number for fold in self.list_finished()), *final])

    def list_parents(self):
        """Experiments whose probabilities new scans get, if this is the average of two."""
        if not self.average.is_file():
            return []
        chosen = read_json(self.average)
        names = [chosen["new_scans"]]
        names = names if names[0] in chosen["parents"] else chosen["parents"]
        return [Run(self.parents / name) for name in names]

    def list_members(self):
        """Experiments whose models segment new scans: this one, unless it is an average."""
        return self.list_parents() or [self]

    def read_components(self):
        """Read of which labels only the largest piece counts.

        Returns
        -------
        dict
            ``cases``, a list of labels by case id, and ``new_scans``, a list of labels: as
            `unetseg.components.decide` wrote them, or empty.
        """
        there = self.components.exists()
        return read_json(self.components) if there else {"cases": {}, "new_scans": []}


def _mask_name(case_id):
    return f"{case_id}.nii.gz"


def list_hashes(runs, folds=None):
    """List the SHA-256 of the weights of all finished folds, or of some, of several runs."""
    finished = [run.read_finished(folds) for run in runs]
    return [done["weights_sha256"] for one in finished for done in one.values()]


def read_json(path, kind=None):
    """Read a JSON file, and check what is in it if it is one that a run leaves.

    Parameters
    ----------
    path : str or Path
    kind : str, optional
        Which file it is, such as ``"splits.json"``; by default its own name. ``schemas.json``
        beside this module tells the types and ranges of each.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or holds something else than such a file does; says where.
    """
    path = Path(path)
    name = kind or path.name
    value = contents.read_json(path, by_hand=name not in _load_schemas()["$defs"])
    check_json(path, value, name)
    return value


def check_json(path, value, name):
    """Check the content of a JSON file that a run leaves, such as before it is written.

    Parameters
    ----------
    path : Path
    value : dict or list
        In JSON's types.
    name : str
        Which file it is; others than those of a run are not checked.

    Raises
    ------
    ValueError
        If it is not what such a file holds; says where.
    """
    import jsonschema  # here, as it takes a tenth of a second

    schemas = _load_schemas()
    if name not in schemas["$defs"]:
        return
    validator = jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{name}"})
    if error := jsonschema.exceptions.best_match(validator.iter_errors(value)):
        finding = f"at {error.json_path}: {error.message[:300]}"
        raise ValueError(f"{path}: {finding}. Correct it, or fetch it again.")


def write_checked(path, value):
    """Write a JSON file that a run leaves; what could not be read again is refused instead.

    Parameters
    ----------
    path : Path
    value : dict or list

    Raises
    ------
    ValueError
        As `check_json`.
    """
    check_json(path, json.loads(json.dumps(value)), path.name)
    write_json(path, value)


@functools.cache
def _load_schemas():
    return json.loads(Path(__file__).with_name("schemas.json").read_text(encoding="utf-8"))
