"""The report of an experiment: one page to be read and printed, the scores first."""

import base64
import io
import json
from pathlib import Path

import pandas as pd

from unetseg._base import require, write_file
from unetseg.digits import show
from unetseg.reading.tables import read_table
from unetseg.run.inputs import CORRECTED
from unetseg.run.layout import Run, read_json
from unetseg.splits import describe_leaks

SCORES = {
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "hd95_mm": "HD95, mm",
    "hausdorff_mm": "Hausdorff, mm",
    "volume_difference_ml": "Volume difference, ml",
}
FIGURES = (
    *("examples", "scores", "volumes", "dice_by_size", "confusion", "learning_curves"),
    "calibration",
)
WIDTH = 1600  # pixels of the widest picture
LOWEST = 10  # scores that tell where it fails


def write_report(
    results_dir,
    table,
    summary,
    *,
    figures,
    leaks,
    compared=None,
    viewer=None,
    simulated=False,
    predictions_note="",
):
    """Write what came of an experiment as one page of HTML, for those who read it elsewhere.

    Everything is in the file and nothing is fetched from elsewhere. **The ids of cases are in it,
    and pictures of scans may be.**

    Parameters
    ----------
    results_dir : str or Path
        Results of an experiment: what was trained on what is read from its files.
    table : pandas.DataFrame
        As `unetseg.scores.score_predictions` returns it.
    summary : pandas.DataFrame
        As `unetseg.scores.summarise` returns it.
    figures : dict of str to matplotlib.figure.Figure or str
        Figures, or words in the place of one, by the names in `FIGURES`; what is not there is
        left out.
    leaks : pandas.DataFrame
        As `unetseg.splits.find_leaks` returns it.
    compared : pandas.DataFrame or str, optional
        As `unetseg.scores.compare_with` returns it; words are left out.
    viewer : nilearn.plotting.html_stat_map.StatMapView or str, optional
        As `unetseg.plots.view_case` returns it; words are left out. Not printed.
    simulated : bool, default False
        Whether the scans are, which is said first.
    predictions_note : str
        What a reader has to know of the predictions, such as that some are of an earlier training.

    Returns
    -------
    Path
        ``report.html`` in that folder.

    Raises
    ------
    FileNotFoundError
        If a file is missing that every run leaves.
    ValueError
        If a figure has another name.
    """
    unknown = sorted(set(figures) - set(FIGURES))
    require("figures", unknown, not unknown, f"named as in {FIGURES}")
    run = Run(Path(results_dir).resolve())
    page = _load_template().render(
        title=run.folder.name,
        training=_describe_training(run),
        labels=_list_labels(summary),
        counts=_count(table),
        figures={name: _draw(figure) for name, figure in figures.items()},
        lowest=_list_scores(table.nsmallest(LOWEST, "dice")),
        rows=_list_scores(table),
        leaks={"words": describe_leaks(leaks), "rows": leaks.to_dict("records")},
        compared=_list_compared(compared),
        viewer=viewer.get_iframe() if hasattr(viewer, "get_iframe") else "",
        simulated=simulated,
        note=predictions_note,
        settings=_list_settings(run),
    )
    write_file(run.report, page.encode())
    return run.report


def _load_template():
    import jinja2  # here, as only this needs it

    options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    environment = jinja2.Environment(autoescape=True, **options)
    environment.filters["number"] = _show_number
    path = Path(__file__).with_name("report.html.j2")
    return environment.from_string(path.read_text(encoding="utf-8"))


def _show_number(value):
    if pd.isna(value):
        return "NaN"
    return show(value).replace("-", "\N{MINUS SIGN}")


def _describe_training(run):
    experiment, folds = read_json(run.experiment), read_json(run.splits)
    preprocessor, hardware = read_json(run.preprocessor), experiment.get("hardware", {})
    used = {case_id for fold in folds for part in ("train", "val") for case_id in fold[part]}
    cases = read_table(run.cases)
    groups = cases.loc[cases["case"].isin(used), "group"]
    named = groups[groups != ""]
    return {
        "dimensions": 2 if 1 in preprocessor["patch"] else 3,
        "labels": list(preprocessor["labels"].values()),
        "builder": experiment["settings"]["builder"].rpartition(".")[2],
        "epochs": experiment["settings"]["recipe"]["epochs"],
        "precision": experiment.get("precision", "").removeprefix("mixed_"),
        "minutes": experiment.get("minutes"),
        "machine": _describe_machine(hardware),
        "folds": len(folds),
        "cases": len(used),
        "patients": named.nunique() + len(used) - len(named) if len(named) else None,
    }


def _describe_machine(hardware):
    if hardware.get("gpu"):
        return f"a GPU ({hardware['gpu']})"
    if "cores" not in hardware:
        return "a machine that is not recorded"
    return f"{hardware['cores']} cores ({hardware.get('processor', 'not recorded')})"


def _count(table):
    corrected = table.loc[table["mask"] == CORRECTED, "case"] if "mask" in table else ()
    return {
        "cases": table["case"].nunique(),
        "patients": table["group"].nunique(),
        "scores": len(table),
        "corrected": sorted({*corrected}),
        "tolerances_mm": sorted(table["tolerance_mm"].unique()),
    }


def _list_labels(summary):
    """List per label its name, the rows of Dice and HD95, and the cases in which it failed."""
    labels = []
    for name, part in summary.groupby("name", sort=False):
        rows = part.set_index("metric").loc[["dice", "hd95_mm"]].reset_index()
        failures = [case for case in str(rows["failures"].iloc[0]).split("; ") if case]
        labels.append({"name": name, "rows": rows.to_dict("records"), "failures": failures})
    return labels


def _list_scores(table):
    rows = table[["case", "fold", "name", *SCORES]].to_dict("records")
    return [{**row, "scores": [row[metric] for metric in SCORES]} for row in rows]


def _list_compared(compared):
    if not isinstance(compared, pd.DataFrame):
        return []
    rows = compared[compared["metric"].isin(SCORES)].to_dict("records")
    return [{**row, "title": SCORES[row["metric"]]} for row in rows]


def _draw(figure):
    """Draw a figure as the text of a PNG, with its width on the page; words stay words."""
    if isinstance(figure, str):
        return {"words": figure}
    inches = figure.get_figwidth()
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=min(150, WIDTH / inches))
    return {"png": base64.b64encode(file.getvalue()).decode(), "width": round(96 * inches)}


def _list_settings(run):
    """List all settings, the machine and the versions as pairs of name and text."""
    experiment = read_json(run.experiment)
    settings = dict(experiment.pop("settings"))
    settings["preprocessor"] = read_json(run.preprocessor)
    return [*_flatten(settings), *_flatten(experiment)]


def _flatten(settings, prefix=""):
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)
