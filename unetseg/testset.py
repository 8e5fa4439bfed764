"""A labelled test set: scored as cross-validation was, and held against what that claimed."""

import contextlib
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import ttest_ind

from unetseg import charts, earlier, lesions, report, scores
from unetseg._base import write_table
from unetseg.cases import view
from unetseg.plots import show_cases
from unetseg.preprocessing import Preprocessor
from unetseg.reading.tables import read_results
from unetseg.run import batches, drive
from unetseg.run.layout import FINAL, Run, list_hashes, read_json
from unetseg.splits import COLUMNS, TRAINED
from unetseg.survey import look_through

CLAIMED = ("dice", "hd95_mm")
FINE = 100  # dots per inch
DECIMALS = 6
TEST = "test"  # in the place of a fold
BETTER = {"dice": 1, "hd95_mm": -1}  # whether more is better


class Tested(NamedTuple):
    """What a labelled test set says; see `score_batch`.

    ``said``: sentences. ``scores`` and ``summary``: as of `unetseg.scores`. ``claim``: as of
    `compare_with_claim`. The last three are None if nothing could be scored.
    """

    said: str
    scores: pd.DataFrame | None
    summary: pd.DataFrame | None
    claim: pd.DataFrame | None


def score_batch(results_dir, batch, scans, *, simulated=False):
    """Score the predictions of new scans that have masks, on their native grid.

    Parameters
    ----------
    results_dir : str or Path
        The experiment.
    batch : unetseg.run.layout.Batch
        Predictions of all its models together. Gets ``scores.csv``, ``summary.csv``,
        ``claim.csv``, figures and ``report.html``, and ``lesions.csv`` if the experiment has it,
        by the same rule.
    scans : sequence of Case
        As `unetseg.cases.find_scans` returns them. Those without a mask are passed over. Named and
        not counted are those that are not segmented, whose mask is not sound, that the models
        were trained on, or what they started from (told by the values of the voxels), and whose
        labels a person corrected since. Other scans of patients with the names of trained ones
        are named, and count: elsewhere these may be other people.
    simulated : bool, default False
        Whether the report is to say that these are no scans of people.

    Returns
    -------
    Tested
    """
    run, labelled = Run(results_dir), [scan for scan in scans if scan.mask]
    if not labelled:
        return Tested("No masks beside these scans: nothing to score.", None, None, None)
    preprocessor = Preprocessor.load(run.preprocessor)
    notes, tested = _leave_out(run, batch, labelled, preprocessor)
    notes += _describe_models(run, batch, tested)
    said = [f"{len(labelled)} of {len(scans)} scans have a mask.", *notes]
    if not tested:
        if batch.scores.exists():
            said.append(f"{batch.scores.name} and {batch.report.name} there are of before.")
        return Tested(" ".join(said), None, None, None)
    table = _score(run, batch, tested, preprocessor)
    summary = scores.summarise(table)
    claim = compare_with_claim(table, run)
    for path, rows in ((batch.scores, table), (batch.summary, summary), (batch.claim, claim)):
        write_table(path, rows)
    spots = _find_lesions(run, batch, tested, preprocessor)
    _draw(batch, tested, table, spots, preprocessor)
    no_leaks = pd.DataFrame(columns=COLUMNS)
    about = {"leaks": no_leaks, "compared": claim, "batch": batch, "notes": notes}
    about["simulated"] = simulated
    path = report.write_report(run.folder, table, summary, **about)
    said += [f"{len(tested)} scored.", scores.describe_failures(table), describe_claim(claim)]
    trained = read_results(run.cases)["group"] if run.cases.exists() else pd.Series(dtype=str)
    if trained.ne("").any() and not any(case.group for case in tested):
        said.append("In training patients were known; here each scan counts as one (GROUPS).")
    said.append(f"More: {drive.origin(path)}")
    return Tested(" ".join(said), table, summary, claim)


def _leave_out(run, batch, labelled, preprocessor):
    # Sentences on the scans that are not scored, and the others.
    missing = {scan.id for scan in labelled if not batch.label(scan.id).exists()}
    missing |= batches.list_failed(batch)  # which may have labels by earlier models
    there = [scan for scan in labelled if scan.id not in missing]
    rules = {"labels": preprocessor.labels, "allow_empty": True}
    seen = look_through(there, preprocessor=preprocessor, **rules)
    bad = seen.table[seen.table["problem"] != ""]
    for row in bad.itertuples():
        print(f"{row.case}: {row.problem}")
    sound = [scan for scan in there if scan.id not in {*bad["case"]}]
    trained, named = _find_trained(run, sound, seen.samples)
    corrected = {scan.id for scan in batches.list_corrected(batch.folder, sound)} - trained
    said = []
    for why, ids in (
        ("NOT SEGMENTED, so without a score", missing),
        ("Masks that cannot be scored", {*bad["case"]}),
        ("Trained on, so not counted", trained),
        ("Labels corrected by hand, so not counted", corrected),
        ("NAMED AS PATIENTS OF THE TRAINING: take them out if they are these", named - corrected),
    ):
        if ids:
            said.append(f"{why}: {', '.join(sorted(ids))}.")
    return said, [scan for scan in sound if scan.id not in trained | corrected]


def _find_trained(run, scans, samples):
    # Scans that were trained on, and others of patients with the names of trained ones.
    trained, named = {*earlier.match_cases(run.folder, scans, samples)}, set()
    for member in run.list_members():
        for start in earlier.list_starts(member.folder).values():
            for scan_id, kind in earlier.find_seen(start, scans, samples).items():
                (trained if kind == TRAINED else named).add(scan_id)
    return trained, named - trained


def _describe_models(run, batch, tested):
    # Which models drew the labels, as the notes beside these tell it.
    known = {
        "the models of the folds": _list_weights(run),
        "the model on all cases": _list_weights(run, [FINAL]),
    }
    kinds = set()
    for scan in tested:
        with contextlib.suppress(OSError, ValueError, KeyError):
            drawn_by = read_json(batch.note(scan.id), "prediction")["about"]["models"]
            fitting = [kind for kind, models in known.items() if models == drawn_by]
            kinds.add(fitting[0] if fitting else "other models than are here now")
    return [f"Segmented by {' and '.join(sorted(kinds))}."] if kinds else []


def _list_weights(run, folds=None):
    with contextlib.suppress(OSError, ValueError):
        return list_hashes(run.list_members(), folds)
    return None


def _score(run, batch, tested, preprocessor):
    about = {"ignore": preprocessor.ignore, "unions": preprocessor.unions, "largest": {}}
    where = tested, *_describe_where(batch, tested), preprocessor.labels
    about["tolerance_mm"] = _recall_tolerances(run, preprocessor.targets)
    return scores.score_predictions(*where, **about).assign(fold=TEST)


def _find_lesions(run, batch, tested, preprocessor):
    _, rule = lesions.recall_lesions(run.lesions)
    rule["ignore"] = preprocessor.ignore
    where = tested, *_describe_where(batch, tested), preprocessor.labels
    return lesions.evaluate(batch.lesions, *where, **rule)


def _draw(batch, tested, table, spots, preprocessor):
    where = _describe_where(batch, tested)
    labels, targets = preprocessor.labels, preprocessor.targets
    counts = scores.count_confusion(tested, *where, labels, ignore=preprocessor.ignore)
    by_id, views = {case.id: case for case in tested}, []
    examples = scores.choose_examples(table).drop_duplicates("case")
    for row in examples.itertuples():
        title = f"{row.which}: {row.case}\nmean Dice {row.mean_dice:.3f}"
        case = by_id[row.case]
        about = {"title": title, "ignore": preprocessor.ignore}
        views.append(view(case, case.mask, batch.label(case.id), **about))
    spacings, names = [one.spacing_mm for one in views], ("truth", "prediction")
    figures = {
        "scores": charts.score_boxes(table, targets),
        "volumes": charts.volume_agreement(table, targets),
        "dice_by_size": charts.dice_by_size(table, targets),
        "confusion": charts.confusion(counts, len(tested)),
        "lesions": charts.lesion_sensitivity(spots, labels),
        "examples": show_cases(views, spacings, labels, names=names, differences=True),
    }
    batch.figures.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        batch.figure(name).unlink(missing_ok=True)
        if not isinstance(figure, str):
            figure.savefig(batch.figure(name), dpi=FINE)


def _describe_where(batch, tested):
    # The folder of the predictions, and one fold of them all.
    return batch.labels, [{"train": [], "val": [scan.id for scan in tested]}]


def _recall_tolerances(run, targets):
    # Those of the cross-validation, by label.
    if not run.scores.exists():
        return 1.0
    known = scores.load_scores(run.scores).groupby("label")["tolerance_mm"].first().to_dict()
    return {number: known.get(number, 1.0) for number in targets}


def compare_with_claim(table, run):
    """Hold the scores of a test set against those of the cross-validation.

    Parameters
    ----------
    table : pandas.DataFrame
        Of the test set, as `unetseg.scores.score_predictions` returns it.
    run : unetseg.run.layout.Run
        The experiment, scored.

    Returns
    -------
    pandas.DataFrame
        A row per label, for Dice and HD95: ``name``, ``metric``; ``n`` patients and their mean
        ``here``, of finite values, of which ``left_out`` cases had none; ``claimed_n`` and
        ``claimed``; their ``difference`` with ``low`` and ``high``, the 95 % interval of Welch's
        t-test on the means of patients, NaN for a single one; and ``held``:
        "yes" unless the interval lies on the worse side of 0, "no" if it does, "not known" without
        an interval, or if distances are infinite here. Without a row if the experiment was not
        scored.
    """
    columns = ["name", "metric", "n", "here", "left_out", "claimed_n", "claimed"]
    columns += ["difference", "low", "high", "held"]
    known = run.scores.exists() and not scores.find_stale(run.folder)
    claimed = scores.load_scores(run.scores) if known else table.iloc[:0]
    rows = []
    for (label, name), part in table.groupby(["label", "name"], sort=False):
        before = claimed[claimed["label"] == label]
        for metric in CLAIMED if len(before) else ():
            here, there = (_means(one, metric) for one in (part, before))
            # Less than a nanometre is what floating point leaves of nothing.
            difference = round(here.mean() - there.mean(), DECIMALS)
            low, high = np.round(_interval(here, there), DECIMALS)
            worse = high < 0 if BETTER[metric] > 0 else low > 0
            unknown = np.isnan(low) or np.isinf(part[metric].astype(float)).any()
            held = "no" if worse else "not known" if unknown else "yes"
            lost = int((~np.isfinite(part[metric].astype(float))).sum())
            numbers = len(here), here.mean(), lost, len(there), there.mean(), difference, low, high
            rows.append((name, metric, *numbers, held))
    return pd.DataFrame(rows, columns=columns)


def _means(part, metric):
    values = part[metric].astype(float)
    finite = np.isfinite(values)
    return values[finite].groupby(scores.list_patients(part)[finite]).mean()


def _interval(here, there):
    if min(len(here), len(there)) < 2:
        return np.nan, np.nan
    if max(np.ptp(here), np.ptp(there)) < 10**-DECIMALS:
        return (here.mean() - there.mean(),) * 2
    with warnings.catch_warnings():  # of one that is constant: that does no harm
        warnings.simplefilter("ignore", RuntimeWarning)
        return tuple(ttest_ind(here, there, equal_var=False).confidence_interval(0.95))


def describe_claim(claim):
    """Say whether cross-validation promised what the test set shows.

    Parameters
    ----------
    claim : pandas.DataFrame
        As `compare_with_claim` returns it.

    Returns
    -------
    str
    """
    if claim.empty:
        return "The models as they are now are not scored (notebook 3): nothing to compare with."
    broken = claim[claim["held"] == "no"]
    unknown = claim[claim["held"] == "not known"]
    said = []
    if len(broken):
        said.append(f"WORSE THAN CROSS-VALIDATION CLAIMED: {_name(broken)}.")
    elif len(unknown) < len(claim):
        said.append("What cross-validation claimed held, as far as so many patients can tell.")
    if len(unknown):
        reason = "too few patients, or distances that are infinite"
        said.append(f"Whether what it claimed holds is not known of {_name(unknown)}: {reason}.")
    return " ".join(said)


def _name(claim):
    return ", ".join(f"{name} ({metric})" for name, metric in claim[["name", "metric"]].to_numpy())
