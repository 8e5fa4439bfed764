"""Colab or laptop: where the scans and the results of an experiment are, and kept."""

import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from unetseg import cases, earlier, nifti, reliability, scores, settings, sharing
from unetseg._base import require, write_json, write_table
from unetseg._base import sha256 as sha256  # for those who look for it here, as the next one
from unetseg.packages import install_missing as install_missing
from unetseg.pieces import keep_largest
from unetseg.preprocessing import Preprocessor
from unetseg.reading import folders
from unetseg.reading.tables import read_results
from unetseg.run import batches, drive, inputs, machine
from unetseg.run.drive import base_dir, in_colab, project_dir
from unetseg.run.layout import Batch, Run, read_json

DRIVE, LOCAL = drive.DRIVE, drive.LOCAL  # of Colab; set them here for another mount
FINE = 100  # dots per inch of a figure that is saved


@dataclass(frozen=True)
class Workspace:
    """Folders of one experiment, and what a notebook does with its files.

    Parameters
    ----------
    data : Path
        The scans, on a local disk.
    results : Path
        What the notebooks write, on a local disk.
    backup : Path or None
        The same on Google Drive; None outside Colab.
    simulated : bool
        Whether the scans are those of the embedded sample, which is made when it is needed.
    """

    data: Path
    results: Path
    backup: Path | None = None
    simulated: bool = False

    @property
    def run(self):
        """Where each file of the results lies: a `unetseg.run.layout.Run`."""
        return Run(self.results)

    @property
    def cache(self):
        """Folder for preprocessed cases on the local disk, removed when this session ends."""
        return Path(_open_session().name)

    def find_cases(self, *, group_by=None):
        """Find the cases; as `unetseg.cases.find_cases`, by the patients as they were claimed."""
        self._make_sample(self.data)
        batches.refuse_other_groups(self.results, group_by)
        return cases.find_cases(self.data, group_by=group_by)

    def claim_cases(self, *, group_by=None):
        """Find the cases, and note that this experiment is made from them.

        Parameters
        ----------
        group_by
            As for `unetseg.cases.find_cases`.

        Returns
        -------
        list of Case

        Raises
        ------
        ValueError
            If the experiment was trained on others.
        """
        self._make_sample(self.data)
        found = cases.find_cases(self.data, group_by=group_by)
        batches.claim(self.results, self.data, found, group_by)
        return found

    def find_scored(self):
        """Find the cases that were trained on, and say so if their scans are not here.

        Returns
        -------
        list of Case
            As `unetseg.cases.find_scored`.
        """
        self._make_sample(self.data)
        found = cases.find_scored(self.data, self.results)
        if not all(case.image for case in found):
            print("The scans are not here: masks and predictions are scored; no scan is shown.")
        return found

    def find_scans(self, channels=1, group_by=None):
        """Find new scans: as `unetseg.cases.find_scans`, in the folder that is not of training."""
        self._make_sample(self._new_scans, n_cases=3, seed=1)  # of other people than in training
        return cases.find_scans(self._new_scans, channels, group_by)

    def average(self, names):
        """Make this experiment the average of two others, if two are named.

        Parameters
        ----------
        names : list of str
            The setting ``AVERAGE_OF``: two experiments beside this one, or none.

        Returns
        -------
        str
            What was chosen.
        """
        if not names:
            return "This experiment is no average of others."
        from unetseg import averaging  # here, as Keras takes seconds

        parents = [self._find_other(name) for name in names]
        self._make_sample(self.data)
        found = cases.find_scored(self.data, parents[0])
        return averaging.describe(averaging.average(parents, self.results, found))

    def _find_other(self, name, setting="AVERAGE_OF", what="trained experiment"):
        others = (self.backup or self.results).parent
        runs = [Run(path) for path in others.glob("*") if path.name != self.results.name]
        ready = [run for run in runs if run.list_finished() and not run.average.exists()]
        settings.find_name(setting, name, [run.folder.name for run in ready], what)
        return others / name

    def find_start(self, name):
        """Find the results of an earlier experiment from which training starts.

        Parameters
        ----------
        name : str
            The setting ``START_FROM``: an experiment beside this one, or the path of a file that
            `unetseg.sharing.pack` wrote, absolute or relative like ``DATA``. Empty for none.

        Returns
        -------
        Path or None
            A packed file is opened in a folder of this session. Its SHA-256 is said.

        Raises
        ------
        ValueError
            If there is no such experiment or file, or it has no finished fold.
        """
        if not name:
            return None
        packed = base_dir() / Path(name).expanduser()
        if packed.suffix == ".tar" and packed.is_file():
            digest = sha256(packed)
            folder = self.cache / f"start_{digest[:16]}"
            print(f"{packed.name}: SHA-256 {digest}; compare it with what the sender told.")
            if not folder.exists():
                sharing.unpack(packed, folder, digest)
            allowed = "no average of two experiments; pack one of these"
            require("START_FROM", name, not Run(folder).average.exists(), allowed)
            return folder
        return self._find_other(name, "START_FROM", "trained experiment, or a packed file")

    def adopt_settings(self, name, wanted):
        """Take over how the scans of an earlier experiment were prepared, if one is named.

        Parameters
        ----------
        name : str
            As for `find_start`.
        wanted : Preprocessor

        Returns
        -------
        Preprocessor
            As of `unetseg.earlier.adopt_settings`.
        """
        start = self.find_start(name)
        return earlier.adopt_settings(wanted, start) if start else wanted

    def note_start(self, name, found, seen):
        """Note from which experiment training is to start, and keep its folds.

        Parameters
        ----------
        name : str
            As for `find_start`.
        found : sequence of Case
        seen : unetseg.survey.Survey
            What `unetseg.survey.look_through` saw of them.

        Returns
        -------
        str
            What notebook 2 will do.
        """
        start = self.find_start(name)
        if not start:
            return self._start_from_nothing()
        write_json(self.run.start, {"from": name})
        known = earlier.match_cases(start, found, seen.samples)
        said = f"Training will start from {name}, which knows {len(known)} of {len(found)} cases."
        said += earlier.describe_doubts(start, found, known)
        labels_of = dict(zip(seen.table["case"], seen.table["labels"], strict=True))
        folds = earlier.extend_folds(start, found, known, labels_of=labels_of)
        if folds is None:
            return said
        if self.run.splits.exists() and read_json(self.run.splits) != folds:
            return f"{said} splits.json is there already and stays as it is."
        write_json(self.run.splits, folds)
        return f"{said} They stay in their folds, and the others are shared out: splits.json."

    def _start_from_nothing(self):
        places = [self.run, *([Run(self.backup)] if self.backup else [])]
        noted = [place.start for place in places if place.start.exists()]
        for path in noted:
            path.unlink()
        said = "Training will start from nothing."
        if noted and self.run.splits.exists():
            said += " The folds stay those of before; for others remove splits.json."
        return said

    def read_start(self):
        """Find the experiment that `note_start` noted; None if there is none."""
        noted = self.run.start
        return self.find_start(read_json(noted)["from"]) if noted.exists() else None

    def describe_start(self, net, plan):
        """Say what a network takes over from the experiment that training starts from.

        Parameters
        ----------
        net : keras.Model
            Gets these weights.
        plan : unetseg.recipe.Plan
            By which it was built.

        Returns
        -------
        str
        """
        start = self.read_start()
        if start is None:
            return "All weights are new."
        from unetseg.transfer import describe_start  # here, as Keras takes seconds

        return describe_start(net, plan, start)

    def add_corrected(self, scans, batch, folder):
        """Make cases of new scans whose labels a person corrected.

        Parameters
        ----------
        scans : sequence of Case
        batch : unetseg.run.layout.Batch
            As `find_scans` and `choose_batch` return both. Labels that are not any more what was
            predicted are taken for corrected.
        folder : str
            The setting ``ADD_TO``: a data set, absolute or relative like ``DATA``, which gets
            copies of these scans and labels. Empty to be told of them alone.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If corrected labels are not sound masks, other files have these names there, or a
            ``dataset.json`` lists the cases there. Nothing is copied then.
        """
        corrected = batches.list_corrected(batch.folder, scans)
        if not corrected:
            return "No labels were corrected."
        names = ", ".join(case.id for case in corrected)
        said = f"Labels of {len(corrected)} scans were corrected: {names}."
        if not folder:
            return said
        known = Preprocessor.load(self.run.preprocessor)
        rules = {"labels": known.labels, "ignore": known.ignore, "allow_empty": True}
        advice = f"Correct these labels once more, in {batch.labels}; none was added."
        cases.refuse_problems(cases.check_cases(corrected, **rules), advice)
        target = base_dir() / Path(folder).expanduser()
        new = "" if target.is_dir() else ", A FOLDER THAT WAS NOT THERE BEFORE"
        added = folders.add_cases(target, corrected)
        name = self.run.list_members()[0].folder.name
        advice = f"Train with DATA={folder}, START_FROM={name} and another EXPERIMENT; GROUPS, if "
        advice += "it is set, must find the patients of these too."
        return f"{said} {added} are new in {target}{new}. {advice}"

    def choose_batch(self, scans):
        """Choose where the predictions of the new scans go.

        Parameters
        ----------
        scans : sequence of Case
            As `find_scans` returns them.

        Returns
        -------
        unetseg.run.layout.Batch
            As `unetseg.run.batches.choose_folder` chooses it.
        """
        return Batch(batches.choose_folder(self.results, self._new_scans, scans))

    @property
    def _new_scans(self):
        return self.data.with_name("sample_others") if self.simulated else self.data

    def _make_sample(self, folder, **settings):
        if self.simulated:
            from unetseg.sample import make_sample  # here, as it takes seconds

            print("These brains are simulated.")
            make_sample(folder, **settings)

    def save_preprocessor(self, preprocessor, found):
        """Save a preprocessor, and note from which files it was chosen.

        Parameters
        ----------
        preprocessor : Preprocessor
            Fitted.
        found : sequence of Case
            On which it was fitted.
        """
        preprocessor.save(self.run.preprocessor)
        inputs.note_inputs(self.run.fitted_on, found)

    def load_preprocessor(self):
        """Load the preprocessor of the experiment.

        Returns
        -------
        Preprocessor

        Raises
        ------
        FileNotFoundError
            If there is none yet.
        ValueError
            If it was made for the scans of another folder, and nothing is trained yet.
        """
        batches.refuse_other_source(self.results, self.data)
        return Preprocessor.load(self.run.preprocessor)

    def read_folds(self):
        """Read the folds that are written down, as in ``splits.json``; None if none are."""
        return read_json(self.run.splits) if self.run.splits.exists() else None

    def read_experiment(self):
        """Read what is written down of the training, as in ``experiment.json``."""
        return read_json(self.run.experiment)

    def describe_training(self):
        """Tell how the models were trained, and on what machine.

        Returns
        -------
        pandas.DataFrame
            A row per setting that is known.
        """
        experiment = self.read_experiment()
        facts = {"folds": len(read_json(self.run.splits)), **experiment["settings"]["recipe"]}
        if parents := experiment["settings"].get("parents"):
            facts["average of"] = ", ".join(parents)
        if start := self.run.name_start(experiment):
            facts["started from"] = start
        facts.update(experiment["hardware"])
        facts.update(experiment["versions"])
        planned = facts.pop("minutes", None)
        if planned is not None:
            facts["minutes a fold, as asked"] = planned
        for name in ("steps", "minutes", "batch_size", "precision", "backend", "device"):
            facts[name] = experiment.get(name, facts.get(name))
        texts = {name: str(value) for name, value in facts.items() if value is not None}
        return pd.Series(texts, name=self.results.name).to_frame()

    def read_histories(self):
        """Read the history of every finished fold: tables by the names of the folds."""
        finished = [fold for fold in self.run.list_finished() if fold.history.exists()]
        return {f"fold {fold.number}": pd.read_csv(fold.history) for fold in finished}

    def read_last_epochs(self):
        """Read loss, accuracy and Dice after the last epoch: a row for every finished fold."""
        names = [f"{part}{name}" for name in ("loss", "accuracy", "dice") for part in ("", "val_")]
        last = {name: history.iloc[-1] for name, history in self.read_histories().items()}
        return pd.DataFrame(last, index=names).T

    def load_other_scores(self, name):
        """Load the scores of another experiment beside this one.

        Parameters
        ----------
        name : str
            The setting ``COMPARE_WITH``; empty for none.

        Returns
        -------
        pandas.DataFrame or None

        Raises
        ------
        ValueError
            If there is no such experiment, or it is not scored.
        """
        others = (self.backup or self.results).parent
        scored = [path for path in others.glob("*") if Run(path).scores.is_file()]
        settings.find_name("COMPARE_WITH", name, [p.name for p in scored], "scored experiment")
        return scores.load_scores(Run(others / name).scores) if name else None

    def backup_of(self, folder):
        """Folder on Drive that keeps a folder of the results; None outside Colab."""
        return self.backup and self.backup / Path(folder).relative_to(self.results)

    def view_scored(self, found, examples):
        """Open cases with their mask and their prediction, to be looked at.

        Parameters
        ----------
        found : sequence of Case
            As `find_scored` returns them.
        examples : pandas.DataFrame
            As `unetseg.scores.choose_examples` returns it.

        Returns
        -------
        dict of str to View
            By id; empty if the scans are not here.
        """
        by_id = {case.id: case for case in found if case.image}
        largest = self.run.read_components()["cases"]
        ignore = self.load_preprocessor().ignore
        views = {}
        for row in examples[examples["case"].isin(by_id)].itertuples():
            case = by_id[row.case]
            drawn, _ = nifti.load_mask(self.run.prediction(case.id))
            prediction = keep_largest(drawn, largest.get(case.id, []))
            title = f"{row.which}: {row.case}\nmean Dice {row.mean_dice:.3f}"
            masks = case.mask, prediction
            views[case.id] = cases.view(case, *masks, title=title, ignore=ignore)
        return views

    def view_labelled(self, scans, batch, ids, *, most=3, also=""):
        """Open new scans with their predicted labels, to be looked at.

        Parameters
        ----------
        scans : sequence of Case
        batch : unetseg.run.layout.Batch
            As `find_scans` returns both.
        ids : iterable of str
            The first of them that are segmented are opened, by the models as they are now.
        most : int, default 3
            How many.
        also : str
            Id of one more.

        Returns
        -------
        dict of str to View
            By id. If `also` is not segmented that is said.
        """
        failed = batches.list_failed(batch)  # which may have labels by earlier models
        labelled = [i for i in ids if batch.label(i).exists() and i not in failed]
        if also and also not in labelled:
            print(f"{also} was not segmented.")
        chosen = [i for n, i in enumerate(labelled) if n < most or i == also]
        by_id = {scan.id: scan for scan in scans}
        return {i: cases.view(by_id[i], batch.label(i)) for i in chosen}

    def update_table(self, path, table):
        """Write a table of scans; what the file says of others stays, and what a person noted.

        Parameters
        ----------
        path : Path
        table : pandas.DataFrame
            As of `unetseg.run.batches.update_table`.
        """
        batches.update_table(path, table, notes=True)

    def save_scores(self, table):
        """Save the scores; an older summary, which is not of these, is emptied."""
        if self.run.summary.exists():
            write_table(self.run.summary, read_results(self.run.summary).iloc[:0])
        write_table(self.run.scores, table)

    def save_summary(self, summary):
        """Save the summary of the scores."""
        write_table(self.run.summary, summary)

    def figure(self, figure, name):
        """Save a figure, and hand it on to be shown.

        Parameters
        ----------
        figure : matplotlib.figure.Figure, page with ``save_as_html``, or str
            Words, which some functions return where there is nothing to show, are not saved.
        name : str or Path
            Of a picture among those of the experiment, or where else to save it.

        Returns
        -------
        object
            `figure`.
        """
        if isinstance(figure, str):
            return figure
        path = self.run.figure(name) if isinstance(name, str) else name
        path.parent.mkdir(parents=True, exist_ok=True)
        if hasattr(figure, "savefig"):
            figure.savefig(path, dpi=FINE)
        else:
            figure.save_as_html(path)
        return figure

    def compare_scans(self, batch, scans=None):
        """Compare new scans with those of the training, by what is written down of both.

        Parameters
        ----------
        batch : unetseg.run.layout.Batch
            As `choose_batch` returns it; its scans are segmented.
        scans : sequence of Case, optional
            Others that were in the folder before are passed over.

        Returns
        -------
        outside : pandas.Series
            As of `unetseg.reliability.compare_with_training`.
        trained : pandas.DataFrame
            What is known of the cases of the training.
        """
        trained, checked = read_results(self.run.cases), read_results(batch.scans)
        if self.load_preprocessor().ignore:  # of what was drawn alone
            trained["volume_ml"] = float("nan")
        if scans is not None:
            checked = checked[checked["case"].isin([scan.id for scan in scans])]
        return reliability.compare_with_training(checked, trained), trained

    def keep(self, folder=None):
        """Copy to Drive what is new there, and say where the results are.

        Parameters
        ----------
        folder : Path, optional
            Of the results, that is to be named; by default all of them.
        """
        folder = folder or self.results
        if self.backup is None:
            print(f"Everything is in {drive.origin(folder)}.")
            return
        # What was edited there counts, also if that was just now.
        drive.copy_new(self.backup, self.results, [self.run.splits.name])
        drive.fetch_corrected(self.results, self.backup)
        count = drive.copy_new(self.results, self.backup)
        where = drive.origin(self.backup_of(folder))
        print(f"Everything is on Drive, in {where}; {count} files are new there.")


@functools.cache
def _open_session():
    return tempfile.TemporaryDirectory(prefix="unetseg-")


def list_versions():
    """List the versions of Python and of the packages that matter, as a pandas.DataFrame."""
    return pd.Series(machine.describe_machine()["versions"], name="version").to_frame()


def name_hardware():
    """Name what is computed on: the GPU or TPU, if Keras has one, or else the processor."""
    from unetseg.run import devices  # here, as Keras takes seconds

    hardware, there = machine.describe_hardware(), devices.list_devices()
    kind, count = there[0], len(there)
    if kind == "cpu":
        idle = f", as Keras' backend cannot use {hardware['gpu']}" if hardware["gpu"] else ""
        return f"{hardware['processor']}{idle}"
    name = (kind == "gpu" and hardware["gpu"]) or f"a {kind.upper()}"
    if count <= max(1, len(devices.list_gpus())):
        return name
    return f"{name}, one of {count}, as a training shares several GPUs on TensorFlow alone"


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
    plain = settings.read("EXPERIMENT", experiment) == experiment
    require("EXPERIMENT", experiment, plain, "a plain name, without spaces around it")
    base, here = base_dir(), LOCAL if in_colab() else project_dir()
    sample = str(data) == "sample"
    folder = here / "data" / "sample" if sample else base / Path(data).expanduser()
    if need_data and not sample and not folder.is_dir():
        allowed = f"the folder of your scans, absolute or relative to {base}, or to 'sample'"
        raise FileNotFoundError(f"{folder}: no such folder. Set DATA (or SCANS) to {allowed}.")
    kept = base / Path(results).expanduser() / experiment
    if not in_colab():
        return Workspace(folder, kept, None, sample)
    local = folder if sample else LOCAL / "data" / folder.relative_to(folder.anchor)
    usual = kept.parent == base / "results"
    other = Path("other_results") / kept.parent.relative_to(kept.anchor)
    place = Workspace(local, LOCAL / ("results" if usual else other) / experiment, kept, sample)
    if not sample:
        drive.fetch_data(folder, place.data)
    if place.backup.is_dir():
        begun = any(place.results.glob("fold_*"))
        removable = ["new_scans/*/labels/*.nii.gz", *([] if begun else ["splits.json"])]
        drive.follow_removed(place.results, place.backup, removable)
        drive.copy_new(place.backup, place.results, overwrite=False)
        drive.copy_new(place.backup, place.results, ["splits.json"])  # it may be edited there
        drive.fetch_corrected(place.results, place.backup)  # and labels be corrected
    return place
