"""The report of an experiment: one HTML file, to be read, printed and sent to others."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd

from unetseg import components
from unetseg._base import write_file
from unetseg.charts import reliability_curves
from unetseg.digits import short
from unetseg.lesions import count_lesions, describe_rule, recall_lesions
from unetseg.reliability import expected_calibration_error, read_calibration
from unetseg.run.inputs import CORRECTED
from unetseg.run.layout import Run, read_json
from unetseg.scores import describe_controls

NO_NUMBER = "-"
SCORED = "Each case was scored once, on its own grid, by the model without it."
TESTED = "A test set: each scan was scored on its own grid, by models that had seen none of them."
LOWEST = 10
MOST_NAMED = 3  # labels of a case
MOST_CASES = 20  # named before the figures; all are in the table of every case
BESIDE = 4  # labels whose boxes can be read on half of the page
NEGLIGIBLE = 1e-6  # of a mean: what is less is of the last digits of sums
TITLES = {
    "dice": "Dice",
    "surface_dice": "surface Dice",
    "hausdorff_mm": "Hausdorff, mm",
    "hd95_mm": "HD95, mm",
    "assd_mm": "ASSD, mm",
    "sensitivity": "sensitivity",
    "precision": "precision",
    "volume_true_ml": "true volume, ml",
    "volume_pred_ml": "predicted volume, ml",
    "volume_difference_ml": "volume difference, ml",
}
SHARES = ("dice", "surface_dice", "sensitivity", "precision")
SHOWN = ("dice", "surface_dice", "hd95_mm", "hausdorff_mm", "volume_difference_ml")
CAPTIONS = {
    "scores": "All scores: a point per case, a box per fold. The spread between folds is what "
    "another split of the same data would change.",
    "examples": "Cases that failed, or else the worst one, and the median and the best one by mean "
    "Dice. The truth is solid, the prediction dashed; below each is where the two disagree.",
    "volumes": "True against predicted volume (Bland-Altman). A mean difference far from zero: "
    "the label is drawn too large or too small.",
    "dice_by_size": "Dice against the true volume. The same error of the contour costs a small "
    "structure more Dice.",
    "confusion": "What was predicted where a label is, in shares of its voxels.",
    "lesions": "Share of the true lesions that was found, by their size: up to five points for a "
    "label, of equally many lesions.",
    "learning_curves": "Training dashed, validation on patches solid. For watching the training "
    "only: they choose nothing.",
}
CALIBRATION = (
    "How often voxels are right against how sure the prediction is of them. Below the dashed line "
    "it is too sure."
)


def write_report(
    results_dir,
    table,
    summary,
    *,
    leaks,
    compared=None,
    viewer=None,
    title="",
    examples=True,
    simulated=False,
    batch=None,
    notes=(),
):
    """Write the report of an evaluated experiment, or of a test set that it segmented.

    The figures are those that notebook 03 has saved beside it; that of the calibration is drawn
    from what the training has counted, if it has.

    Parameters
    ----------
    results_dir : str or Path
        The experiment. Gets ``report.html``: figures and styles are inside, nothing is fetched
        from elsewhere.
    table : pandas.DataFrame
        As `unetseg.scores.score_predictions` returns it.
    summary : pandas.DataFrame
        As `unetseg.scores.summarise` returns it.
    leaks : pandas.DataFrame
        As `unetseg.splits.find_leaks` returns it.
    compared : pandas.DataFrame, optional
        As `unetseg.scores.compare` returns it; words are passed over.
    viewer : nilearn.plotting.html_stat_map.StatMapView, optional
        As `unetseg.plots.view_case` returns it; words are passed over.
    title : str
        Of the case in the viewer.
    examples : bool, default True
        Whether the saved picture of single cases is one of these scores: without the scans none
        was made, and an older one may be there.
    simulated : bool, default False
        Whether the scans are those of the embedded sample.
    batch : unetseg.run.layout.Batch, optional
        The test set, which then gets the report; its figures are shown, and `compared` is what
        `unetseg.testset.compare_with_claim` returns.
    notes : sequence of str
        Sentences on what is not in the scores.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FileNotFoundError, ValueError
        If a file that every training leaves is missing or damaged.
    """
    import jinja2  # here, as only this needs it

    run, place, tested = Run(results_dir), batch or Run(results_dir), batch is not None
    experiment, folds = read_json(run.experiment), read_json(run.splits)
    labels = experiment["settings"]["preprocessor"]["labels"]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    source = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(source).render(
        name=run.folder.resolve().name + (f": {batch.folder.name}" if batch else ""),
        simulated=simulated,
        tested=tested,
        notes=[*notes, describe_controls(table, map(int, labels))],
        **_describe_experiment(table, folds, experiment, run.name_start(experiment), tested=tested),
        **_tabulate_all(table, summary, leaks, compared),
        **_tabulate_lesions(place.lesions),
        pictures={
            **_read_pictures(place, examples, table["case"].nunique(), len(folds)),
            **({} if batch else _draw_calibration(run)),
        },
        viewer=_embed(viewer),
        viewer_title=title.replace("\n", ", "),
    )
    write_file(place.report, page.encode())
    return place.report


def _describe_experiment(table, folds, experiment, start, *, tested):
    scored = TESTED if tested else SCORED
    return {
        "trained_on": _describe_data(table, [] if tested else folds),
        "trained_how": _describe_training(experiment, start),
        "scored_how": f"{scored} {components.describe(table)}".strip(),
        "unit": "patients" if table["group"].notna().any() else "cases",
        "beside": table["label"].nunique() <= BESIDE,
        "tolerance": _say_tolerances(table),
        "settings": _list_settings(experiment),
    }


def _say_tolerances(table):
    known = table.drop_duplicates(["name", "tolerance_mm"])
    if known["tolerance_mm"].nunique() == 1:
        return f"{short(known['tolerance_mm'].iloc[0])} mm"
    pairs = known[["name", "tolerance_mm"]].itertuples(index=False, name=None)
    return ", ".join(f"{short(tolerance)} mm ({name})" for name, tolerance in pairs)


def _tabulate_all(table, summary, leaks, compared):
    return {
        "main": _tabulate_main(summary),
        "missed": _list_missed(table),
        "most_cases": MOST_CASES,
        "corrected": _list_corrected(table),
        "lowest": _tabulate_cases(table.nsmallest(LOWEST, "dice")),
        "leaks": _tabulate_text(leaks),
        "compared": _tabulate_comparison(compared),
        "measures": _tabulate_measures(summary),
        "cases": _tabulate_cases(table.sort_values(["case", "label"], kind="stable")),
        "no_number": NO_NUMBER,
    }


def _describe_data(table, folds):
    cases, known = table["case"].nunique(), table["group"].notna()
    alone = table.loc[~known, "case"].nunique()  # each a patient of its own
    patients = table["group"].nunique() + alone
    whose = f"{cases} cases of {patients} patients" if known.any() else f"{cases} cases"
    labels = ", ".join(map(str, table["name"].unique()))
    where = f" in {len(folds)} folds" if folds else ""
    return f"{whose}{where}; labels: {labels}."


def _describe_training(experiment, start):
    settings, hardware = experiment["settings"], experiment.get("hardware", {})
    patch = settings["preprocessor"]["patch"]
    sides = " x ".join(str(side) for side in patch)
    builder = settings["builder"].rpartition(".")[2]
    network = "U-Net" if builder == "build_unet" else f"network of {builder}"
    kind = "2-D" if 1 in patch else "3-D"
    looks = ", in two looks" if settings["preprocessor"].get("coarse_mm") else ""
    epochs = settings["recipe"]["epochs"]
    parents = " and ".join(settings.get("parents", []))
    chosen = "or one of both where the other folds score it better; of the first"
    average = f"The average of {parents}, {chosen}: " if parents else ""
    words = f"{average}A {kind} {network} on patches of {sides} voxels{looks}, {epochs} epochs"
    if "minutes" in experiment:
        words += f", {experiment['minutes']:.0f} minutes for all folds"
    fast = {"gpu": hardware.get("gpu"), "tpu": "a TPU"}.get(experiment.get("device", "gpu"))
    if machine := fast or hardware.get("processor"):
        cores = "" if fast else f"{hardware.get('cores')} cores of "
        words += f" on {cores}{machine}"
    return f"{words}, from the weights of {start}." if start else f"{words}."


def _list_corrected(table):
    # Scores of an earlier version do not tell which mask was scored.
    return sorted(set(table.loc[table["mask"] == CORRECTED, "case"])) if "mask" in table else []


def _list_missed(table):
    # Cases with a label whose Dice is 0, and which.
    missed = []
    for case, part in table[table["dice"] == 0].groupby("case"):
        names = part["name"].astype(str).tolist()
        labels = ", ".join(names) if len(names) <= MOST_NAMED else f"{len(names)} labels"
        missed.append((case, labels))
    return missed


def _column(title, kind=""):
    return {"title": title, "kind": kind}


def _tabulate_main(summary):
    columns = [_column("label", "label")]
    for metric in ("dice", "hd95_mm"):
        columns += [_column(f"{TITLES[metric]} (SD)"), _column("95 % interval"), _column("n")]
    columns += [_column("in neither"), _column("in one only"), _column("failures")]
    rows = []
    for _, part in summary.groupby("label", sort=False):
        by_metric = part.set_index("metric")
        row = [part["name"].iloc[0]]
        for metric in ("dice", "hd95_mm"):
            numbers = by_metric.loc[metric]
            mean, interval, sd = _say_mean(numbers, metric)
            in_mean = numbers["n"] - numbers["nan"] - numbers["inf"]
            row += [f"{mean} ({sd})", interval, int(in_mean)]
        distance = by_metric.loc["hd95_mm"]
        failures = distance["failures"]
        failed = len(failures.split("; ")) if isinstance(failures, str) and failures else 0
        rows.append([*row, int(distance["nan"]), int(distance["inf"]), failed])
    return {"columns": columns, "rows": rows}


def _say_mean(row, metric):
    low, high = _say(row["ci_low"], metric), _say(row["ci_high"], metric)
    interval = NO_NUMBER if low == NO_NUMBER else f"{low} to {high}"
    spread = 0.0 if row["sd"] <= NEGLIGIBLE * abs(row["mean"]) else row["sd"]
    return [_say(row["mean"], metric), interval, _say(spread, metric)]


def _say(value, metric):
    if pd.isna(value):
        return NO_NUMBER
    if np.isinf(value):
        return "∞"
    return f"{value:.3f}" if metric in SHARES else short(float(value))


def _tabulate_measures(summary):
    columns = [_column("label", "label"), _column("measure", "text"), _column("mean")]
    columns += [_column("95 % interval"), _column("SD"), _column("median")]
    columns += [_column("quartiles"), _column("n"), _column("undefined"), _column("∞")]
    rows = []
    for row in summary.to_dict("records"):
        metric = row["metric"]
        quartiles = f"{_say(row['q1'], metric)} to {_say(row['q3'], metric)}"
        cells = [*_say_mean(row, metric), _say(row["median"], metric), quartiles]
        in_mean = row["n"] - row["nan"] - row["inf"]
        counts = [int(number) for number in (in_mean, row["nan"], row["inf"])]
        rows.append([row["name"], TITLES[metric], *cells, *counts])
    return {"columns": columns, "rows": rows}


def _tabulate_cases(table):
    columns = [_column("case", "text"), _column("fold"), _column("label", "label")]
    columns += [_column(TITLES[metric]) for metric in SHOWN]
    rows = []
    for row in table.to_dict("records"):
        numbers = [_say(row[metric], metric) for metric in SHOWN]
        rows.append([row["case"], row["fold"], row["name"], *numbers])
    return {"columns": columns, "rows": rows}


def _tabulate_text(table):
    ids = ("case", "other")
    columns = [_column(name, "text" if name in ids else "words") for name in table.columns]
    rows = [["" if pd.isna(cell) else cell for cell in row] for row in table.to_numpy().tolist()]
    return {"columns": columns, "rows": rows}


def _tabulate_comparison(compared):
    if not isinstance(compared, pd.DataFrame):
        return None
    if "held" in compared:
        return _tabulate_claim(compared)
    both = [*compared.columns[4:6]]  # named by the experiments
    columns = [_column("label", "label"), _column("measure", "text")]
    columns += map(_column, (*both, "difference", "95 % interval", "p", "n", "left out"))
    rows = []
    for row in compared.to_dict("records"):
        metric = row["metric"]
        interval = f"{_say(row['ci_low'], metric)} to {_say(row['ci_high'], metric)}"
        numbers = [_say(row[name], metric) for name in (*both, "difference")]
        p = NO_NUMBER if pd.isna(row["p"]) else short(row["p"], 2)
        counts = [int(row["n"]), int(row["left_out"])]
        rows.append([row["name"], TITLES[metric], *numbers, interval, p, *counts])
    return {"columns": columns, "rows": rows}


def _tabulate_claim(claim):
    columns = [_column("label", "label"), _column("measure", "text")]
    columns += map(_column, ("here", "n", "left out", "claimed", "n", "difference"))
    columns += [_column("95 % interval"), _column("held", "words")]
    rows = []
    for row in claim.to_dict("records"):
        metric = row["metric"]
        here, there = (_say(row[name], metric) for name in ("here", "claimed"))
        difference, low, high = (_say(row[name], metric) for name in ("difference", "low", "high"))
        n, left_out, claimed_n = (int(row[name]) for name in ("n", "left_out", "claimed_n"))
        numbers = [here, n, left_out, there, claimed_n, difference]
        rows.append([row["name"], TITLES[metric], *numbers, f"{low} to {high}", row["held"]])
    return {"columns": columns, "rows": rows}


def _tabulate_lesions(path):
    found, rule = recall_lesions(path)
    if found is None:
        return {"lesions": None}
    columns = [_column("label", "label")]
    columns += [_column(name) for name in ("cases", "lesions", "found", "missed", "false")]
    columns += [_column(name) for name in ("sensitivity", "precision", "F1")]
    columns += [_column("cases without"), _column("of these with false ones")]
    counts, rows = count_lesions(found), []
    for row in counts.head(counts["name"].nunique()).to_dict("records"):
        numbers = [row[name] for name in ("cases", "lesions", "found", "missed", "false")]
        shares = [_say(row[name], "sensitivity") for name in ("sensitivity", "precision", "f1")]
        healthy = [row["controls"], row["controls_with_false"]]
        rows.append([row["name"], *numbers, *shares, *healthy])
    drawn = bool(counts["lesions"].any())
    table = {"columns": columns, "rows": rows}
    return {"lesions": table, "lesion_rule": describe_rule(rule), "lesions_drawn": drawn}


def _read_pictures(run, examples, n_cases, n_folds):
    pictures = {}
    for name, caption in CAPTIONS.items():
        path = run.figure(name)
        shown = examples or name != "examples"
        if shown and path.is_file():
            counted = f"{n_folds} folds" if name == "learning_curves" else f"{n_cases} cases"
            pictures[name] = _describe_picture(path.read_bytes(), caption, counted)
    return pictures


def _draw_calibration(run):
    tables = read_calibration(run.folder)
    if not tables:
        return {}
    errors = {name: expected_calibration_error(table) for name, table in tables.items()}
    voxels = max(table["n"].sum() for table in tables.values())
    file = io.BytesIO()
    reliability_curves(tables, errors).savefig(file, format="png", dpi=110)
    counted = f"{voxels:,} voxels"
    return {"calibration": _describe_picture(file.getvalue(), CALIBRATION, counted)}


def _describe_picture(content, caption, counted):
    return {
        "address": f"data:image/png;base64,{base64.b64encode(content).decode()}",
        "caption": caption,
        "counted": counted,
        "alt": caption.partition(".")[0],
    }


def _embed(viewer):
    # What nilearn makes is a page of its own, as an iframe of the size that it needs.
    return viewer.get_iframe() if hasattr(viewer, "get_iframe") else ""


def _list_settings(experiment):
    content = {**experiment["settings"], **experiment.get("hardware", {})}
    content.update(experiment.get("versions", {}))
    for name in ("minutes", "batch_size", "precision", "backend", "device"):
        content[name] = experiment.get(name)
    flat = pd.json_normalize(content, max_level=1).astype(object).iloc[0]
    return [(key, str(value)) for key, value in flat.items() if value is not None]
