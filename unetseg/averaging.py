"""Two experiments averaged, such as a 3-D and a 2-D one: an experiment of its own."""

import hashlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from unetseg import memory, nifti, splits
from unetseg._base import refuse_any, require, write_json, write_table
from unetseg.inference import list_hashes, load_models
from unetseg.metrics import dice
from unetseg.prediction import combine, predict_case
from unetseg.preprocessing import Preprocessor
from unetseg.reading.tables import read_results
from unetseg.recipe import recall_plan
from unetseg.run import machine, processes, state
from unetseg.run.inputs import Trained
from unetseg.run.layout import Run, read_json
from unetseg.run.lock import only_run
from unetseg.sharing import list_packed
from unetseg.validation import Sampler, calibrate

AVERAGE = "average"
COLUMNS = (AVERAGE, "fold", "chosen")  # of the table, beside the names of both
CLEAR = 2  # standard errors by which an experiment is better alone


def average(parents, results_dir, cases):
    """Average the probabilities of two experiments on the same folds, unless one is better alone.

    For the cases of a fold the Dice of the *other* folds decides between the average and either
    experiment; for new scans that of all folds. The average stays unless an experiment has more by
    twice the standard error of the difference by case: smaller ones are chance, and what chance
    makes better on the other folds is worse on this one.

    Parameters
    ----------
    parents : sequence of str or Path
        Results of two experiments: finished, with the same folds and labels.
    results_dir : str or Path
        Gets what an experiment leaves, ``average.json`` (what was chosen for which fold), and in
        ``parents`` a copy of what `unetseg.sharing.pack` packs of both: it predicts new scans as
        any other. Left as it is if it is the average of these already.
    cases : sequence of Case
        That both were trained on.

    Returns
    -------
    pandas.DataFrame
        A row per fold, and one for new scans: mean Dice on the cases that decided of each
        experiment and of their average, and which was ``chosen``.

    Raises
    ------
    ValueError
        If folds, labels or files differ, a fold is not finished, or the folder holds another
        experiment.
    """
    run, sources = Run(results_dir), [Run(path) for path in parents]
    names = [source.folder.name for source in sources]
    if run.experiment.exists():
        there = read_json(run.average) if run.average.exists() else {}
        known = there.get("parents") == names and there["weights"] == list_hashes(sources)
        allowed = "the average of these as they are now, or a new folder; choose another EXPERIMENT"
        require("results_dir", str(run.folder), known, allowed)
        table = pd.DataFrame(read_json(run.average)["table"])
        return table.astype(dict.fromkeys((*names, AVERAGE), float))
    folds = _refuse_unlike(sources, cases)
    _warn_of_lack(sources, cases)
    by_id = {case.id: case for case in cases}
    with only_run(run.folder, None), tempfile.TemporaryDirectory() as drafts:
        for path in run.parents.rglob("*"):  # of an average that was interrupted
            if path.is_file():
                path.unlink()
        for source, name in zip(sources, names, strict=True):
            _copy(source, run.parents / name)
        drafts = Drafts(run, tuple(names), Path(drafts))
        try:
            temperatures = []
            for number, parts in enumerate(folds):
                val = [by_id[i] for i in parts["val"]]
                temperatures.append(processes.call_apart(_predict_fold, drafts, number, val))
        finally:
            processes.end_calls()
        return _finish(drafts, sources, folds, by_id, temperatures)


def _refuse_unlike(sources, cases):
    allowed = f"two experiments of different names, none of them one of {COLUMNS}"
    names = [source.folder.name for source in sources]
    require("parents", names, len({*names} - {*COLUMNS}) == 2 == len(names), allowed)
    without = sorted(case.id for case in cases if case.image is None)
    refuse_any(without, "DATA:", "no scan of cases", "Point DATA to the folder with the scans.")
    folds = [read_json(source.splits) for source in sources]
    require("parents", names, folds[0] == folds[1], "of the same folds (splits.json)")
    require("parents", names, len(folds[0]) > 1, "of two folds at least: others choose for each")
    labels = [Preprocessor.load(source.preprocessor).labels for source in sources]
    require("parents", names, labels[0] == labels[1], "of the same labels")
    for source in sources:
        source.read_finished(range(len(folds[0])))
        Trained(source.folder).refuse_stale(cases)
    return folds[0]


def _warn_of_lack(sources, cases):
    # Of a case the probabilities of both are there at a time.
    settings, maps = [recall_plan(source.folder).seen for source in sources], ("probabilities",)
    needs = [sum(memory.foretell(case, one, maps=maps) for one in settings) for case in cases]
    if lack := memory.describe_lack(max(needs), machine.available_bytes()):
        largest = cases[int(np.argmax(needs))].id
        warnings.warn(f"{largest}, predicted by two experiments at once: {lack}", stacklevel=3)


def _copy(source, target):
    for path in list_packed(source):
        if path.is_file():
            copy = target / path.relative_to(source.folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


class Drafts(NamedTuple):
    """Where the average goes, whose it is, and where all predictions lie until one is chosen."""

    run: Run
    names: tuple
    folder: Path

    def path(self, name, case_id):
        """Labels of a case by one of the experiments, or by their average."""
        return self.folder / name / f"{case_id}.nii.gz"


def _predict_fold(drafts, number, val):
    # Labels by each experiment and by their average; the temperature of the average.
    run, members = drafts.run, [_load(drafts, name, number) for name in drafts.names]
    preprocessor = members[0][1]
    sampler = Sampler(preprocessor, len(val))
    for case in val:
        each = [predict_case(model, case, own) for model, own in members]
        for name, said in zip(drafts.names, each, strict=True):
            nifti.save_mask(drafts.path(name, case.id), said.labels, case.files[0])
        both = combine(each, preprocessor)
        nifti.save_mask(drafts.path(AVERAGE, case.id), both.labels, case.files[0])
        truth, _ = nifti.load_mask(case.mask)
        nifti.save_mask(run.mask(case.id), truth, case.mask)
        chosen = sampler.choose(truth, both.labels)
        listed = both.probabilities.reshape(-1, preprocessor.num_classes)
        sampler.add(truth, chosen, listed[chosen])
    return calibrate(sampler.sampled, run.fold(number).calibration)


def _load(drafts, name, number):
    parent = Run(drafts.run.parents / name)
    return load_models(parent.folder, folds=[number]), recall_plan(parent.folder).seen


def _finish(drafts, sources, folds, by_id, temperatures):
    run, scores = drafts.run, _score(drafts, folds, by_id)
    rows = [_choose(scores[scores["fold"] != number], drafts) for number in range(len(folds))]
    rows.append(_choose(scores, drafts))
    table = pd.DataFrame(rows).assign(fold=[*map(str, range(len(folds))), "new scans"])
    chosen = table["chosen"].tolist()
    run.predictions.mkdir(exist_ok=True)
    for number, parts in enumerate(folds):
        for case_id in parts["val"]:
            shutil.copyfile(drafts.path(chosen[number], case_id), run.prediction(case_id))
        _mark_done(run, sources, number, parts, temperatures[number])
    about = {"parents": [*drafts.names], "folds": chosen[:-1], "new_scans": chosen[-1]}
    about["weights"] = list_hashes(sources)
    rows = table.astype(object).where(table.notna(), None)  # NaN is no number of JSON
    write_json(run.average, {**about, "table": rows.to_dict("records")})
    _write_settings(run, sources, [*drafts.names])
    return table


def _score(drafts, folds, by_id):
    # A row per case, label and kind of prediction.
    parent = Run(drafts.run.parents / drafts.names[0])
    preprocessor, rows = Preprocessor.load(parent.preprocessor), []
    for number, parts in enumerate(folds):
        for case_id in parts["val"]:
            truth, _ = nifti.load_mask(by_id[case_id].mask)
            drawn = truth != preprocessor.ignore if preprocessor.ignore else np.True_
            for name in (*drafts.names, AVERAGE):
                labels, _ = nifti.load_mask(drafts.path(name, case_id))
                for value in preprocessor.labels:
                    score = dice(truth == value, (labels == value) & drawn)
                    rows.append((number, case_id, name, score))
    return pd.DataFrame(rows, columns=["fold", "case", "name", "dice"])


def describe(table):
    """Say what was chosen.

    Parameters
    ----------
    table : pandas.DataFrame
        As `average` returns it.

    Returns
    -------
    str
    """
    *_, last = table.to_dict("records")
    kinds = [name for name in table.columns if name not in ("fold", "chosen")]
    means = ", ".join(f"{name} {last[name]:.4f}" for name in kinds)
    folds = [row["chosen"] for row in table.to_dict("records")[:-1]]
    counts = ", ".join(f"{name} in {folds.count(name)} folds" for name in sorted({*folds}))
    return f"Mean Dice: {means}. Chosen: {counts}; for new scans {last['chosen']}."


def _choose(scores, drafts):
    # The average, unless one of both is clearly better alone.
    means = scores.groupby("name")["dice"].mean()
    row = {name: float(means[name]) for name in (*drafts.names, AVERAGE)}
    by_case = scores.groupby(["case", "name"])["dice"].mean().unstack()
    gains = by_case[[*drafts.names]].sub(by_case[AVERAGE], axis="index")
    clear = gains.mean() > CLEAR * gains.sem()
    alone = [name for name in drafts.names if clear[name]]
    return {**row, "chosen": max(alone or [AVERAGE], key=row.get)}


def _mark_done(run, sources, number, parts, temperature):
    before = [read_json(source.fold(number).done) for source in sources]
    digests = "".join(done["weights_sha256"] for done in before)
    done = {
        "weights_sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "minutes": round(sum(done["minutes"] for done in before), 2),
        "temperature": temperature,
        "inputs": before[0].get("inputs", {}),
        **parts,
        **state.hash_masks(run, parts["val"]),
    }
    write_json(run.fold(number).done, done)


def _write_settings(run, sources, names):
    source = sources[0]
    for path in (source.preprocessor, source.splits, source.cases):
        shutil.copyfile(path, run.folder / path.name)
    leaks = pd.DataFrame(columns=splits.COLUMNS)
    for one in sources:
        if one.leaks.exists():  # not of an earlier version
            leaks = splits.join_leaks(leaks, read_results(one.leaks))
    write_table(run.leaks, leaks)
    experiment = read_json(source.experiment)
    experiment["settings"]["parents"] = names
    minutes = sum(done["minutes"] for done in run.read_finished().values())
    write_json(run.experiment, {**experiment, "minutes": round(minutes, 1)})
