"""What the documents say: their numbers are those of the result files, their examples run."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import unetseg

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
DOCUMENTS = ["README.md", "SECURITY.md", "data/README.md", "notebooks/README.md"]
DOCUMENTS += ["results/recipe.md", "results/hippocampus/reliability.md"]
# Of each published run: what the README calls it, how many cases it has, its labels' names there.
PUBLISHED = {
    "hippocampus": ("hippocampus", 208, {"Anterior": "Anterior", "Posterior": "Posterior"}),
    "promise12": ("PROMISE12", 35, {"label 1": "prostate"}),
    "chd_lvrv": ("CHD_LVRV", 46, {"LV": "left ventricle", "RV": "right ventricle"}),
    "chd_lvrv_average": ("averaged", 46, {"LV": "left ventricle", "RV": "right ventricle"}),
}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def read_line(name):
    """Read a document as one line, so that it does not matter where its lines end."""
    return " ".join(read(name).split())


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", PUBLISHED)
def test_the_scores_in_the_readme_are_those_of_the_published_runs(folder):
    lines, (title, _, names) = read("README.md").splitlines(), PUBLISHED[folder]
    summary = pd.read_csv(RESULTS / folder / "summary.csv").set_index(["name", "metric"])
    scores = pd.read_csv(RESULTS / folder / "scores.csv")
    for label, name in names.items():
        row = [name]
        for metric, digits in (("dice", 4), ("hausdorff_mm", 2), ("hd95_mm", 2)):
            part = summary.loc[(label, metric)]
            row.append(f"{part['mean']:.{digits}f} ({part['sd']:.{digits}f})")
        assert not summary.loc[label, ["nan", "inf"]].any(axis=None)
        part = scores[scores["name"] == label]
        failures = (part["dice"] < 0.5) | (part["hd95_mm"] > 30)
        row += [f"{summary.loc[label, 'n'].max()}", f"{failures.sum()}"]
        (line,) = (line for line in lines if f"| {' | '.join(row)} |" in line)
        assert line.startswith(f"| {title}" if label == min(names) else "| |")


def test_the_peers_in_the_readme_are_those_of_their_table():
    lines, rows = read("README.md").splitlines(), read_json(RESULTS / "peers.json")
    assert {row["system"] for row in rows} == {"unetseg", "UNet", "DynUNet"}
    shown = [row for row in rows if row["system"] != "unetseg"]
    for row in shown:
        cells = [f"{row['dice']:.4f} ({row['dice_sd']:.4f})"]
        cells += [f"{row[m]:.2f} ({row[f'{m}_sd']:.2f})" for m in ("hausdorff_mm", "hd95_mm")]
        cells += [f"{row['n']}", f"{row['failures']}"]
        (line,) = (line for line in lines if f"| {' | '.join(cells)} |" in line)
        first = row["label"] == "label 1"
        assert line.startswith(f"| MONAI's {row['system']}" if first else "| | ")
        assert line.endswith(f"| {row['minutes']:.0f} |" if first else "| |")
        assert row["without_distance"] == 0
    assert sum("MONAI's" in line and "|" in line for line in lines) == len(
        {(row["data"], row["system"]) for row in shown}
    )


def test_the_mean_dice_of_the_hippocampus_in_the_readme_is_that_of_its_run():
    alone, averaged = (
        pd.read_csv(RESULTS / folder / "summary.csv").query("metric == 'dice'")["mean"].mean()
        for folder in ("hippocampus", "hippocampus_average")
    )
    assert f"over both labels {alone:.4f}" in read_line("README.md")
    minutes = [
        read_json(RESULTS / folder / "experiment.json")["minutes"]
        for folder in ("hippocampus_average", "hippocampus")
    ]
    more = f"{minutes[0] - minutes[1]:.0f} minutes more"
    assert f"{more}, {averaged:.4f}." in read_line("README.md")


def test_the_phases_of_the_heart_in_the_readme_are_those_of_its_run():
    scores = pd.read_csv(RESULTS / "chd_lvrv_average" / "scores.csv")
    phase, said = scores["case"].str.endswith("_ses-ED"), []
    for name, part in (("end-diastole", scores[phase]), ("end-systole", scores[~phase])):
        first, second = part.groupby("label")["dice"].mean()
        said += [f"{first:.3f} and {second:.3f} at {name} (n {len(part) // 2})"]
    assert f"CHD_LVRV, averaged: {', '.join(said)};" in read_line("README.md")


@pytest.mark.parametrize("folder", PUBLISHED)
def test_the_minutes_in_the_readme_are_those_of_the_published_runs(folder):
    readme = read_line("README.md")
    experiment = read_json(RESULTS / folder / "experiment.json")
    lines = read("README.md").splitlines()
    row = next(line for line in lines if line.startswith(f"| {PUBLISHED[folder][0]}"))
    assert row.endswith(f"| {experiment['minutes']:.0f} |")
    assert experiment["settings"]["recipe"]["epochs"] == 12
    hardware = experiment["hardware"]
    assert hardware["gpu"] is None
    machine = f"on {hardware['cores']} cores of an {hardware['processor']} without a GPU"
    precision = experiment["precision"].removeprefix("mixed_")
    assert f"{machine}, computing in {precision}" in readme


def test_the_readme_tells_how_much_faster_than_the_fastest_peer_the_metrics_are():
    rows = read_json(RESULTS / "benchmark.json")["rows"]
    compared = [row for row in rows if "fastest peer / unetseg" in row["setting"]]
    ratios = [f"{row['value']:.0f}" for row in compared]
    assert [row["repeats"] for row in compared] == [7, 7, 7]
    faster = f"{ratios[0]}, {ratios[1]} and {ratios[2]} times faster than the fastest of"
    assert faster in read_line("README.md")
    assert "medians of 7" in read_line("README.md")


def test_the_log_of_the_recipe_shows_the_rows_of_its_table():
    text = read("results/recipe.md").replace("*", "")
    table = pd.read_csv(RESULTS / "recipe.csv")
    assert len(table) >= 6
    for row in table.itertuples():
        assert f"| {row.dice:.4f} | {row.hd95_mm:.1f} | {row.failures} |" in text


def test_the_log_of_the_recipe_shows_the_means_of_many_structures():
    text = read("results/recipe.md").replace("*", "")
    table = pd.read_csv(RESULTS / "recipe_structures.csv")
    assert table["what"].nunique() == 4
    for what, part in table.groupby("what"):
        looks, dice_of = re.fullmatch(r"(one|two) looks?, Dice of (.+)", what).groups()
        assert len(part) == 29
        undrawn = np.isinf(part["hd95_mm"])
        cells = [looks, dice_of, f"{part['steps'].iloc[0]}", f"{part['minutes'].iloc[0]:.1f}"]
        cells += [f"{part['dice'].mean():.4f}", f"{part['dice'].min():.3f}"]
        cells += [f"{part.loc[~undrawn, 'hd95_mm'].mean():.1f}", f"{undrawn.sum()}"]
        cells += [f"{part['failures'].sum()}"]
        assert f"| {' | '.join(cells)} |" in text
        assert part["n"].sum() == 116


def test_the_study_of_held_out_cases_is_told_as_it_was_found():
    text = read_line("results/hippocampus/reliability.md")
    found = read_json(RESULTS / "hippocampus" / "reliability.json")
    for name in ("as scanned", "as scanned and made worse"):
        part = found[name]
        cells = []
        for label in ("Anterior", "Posterior"):
            rho, low, high = part["rank_correlation"][label]
            cells.append(f"{rho:.2f} ({low:.2f} to {high:.2f})")
        cells += [str(part["dice_below_0.7"]), str(part["flagged_of_these"])]
        cells.append(f"{part['flagged']} of {part['labels']}")
        assert f"n = {part['labels'] // 2} | {' | '.join(cells)} |" in text
    before, after = found["expected_calibration_error"].values()
    assert f"falls from {before:.4f} to {after:.4f}" in text
    first, second = found["temperatures"].values()
    assert f"{first:.2f} for fold 0, {second:.2f} for fold 1" in text


def test_the_study_was_of_the_validation_cases_of_its_folds():
    table = pd.read_csv(RESULTS / "hippocampus" / "reliability.csv", keep_default_na=False)
    folds = read_json(RESULTS / "hippocampus" / "splits.json")
    for fold, part in table.groupby("fold"):
        assert set(part["case"]) == set(folds[fold]["val"])


def test_every_published_case_is_scored_once_by_the_model_that_did_not_see_it():
    for folder, (_, cases, names) in PUBLISHED.items():
        folds = read_json(RESULTS / folder / "splits.json")
        scores = pd.read_csv(RESULTS / folder / "scores.csv")
        assert len(scores) == cases * len(names)
        for number, fold in enumerate(folds):
            assert set(scores.loc[scores["fold"] == number, "case"]) == set(fold["val"])
            assert not set(fold["train"]) & set(fold["val"])


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 130


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    folder = (ROOT / name).parent
    targets = re.findall(r"\]\((?!http)([^)]+)\)", read(name))
    targets += re.findall(r'src="(?!http)([^"]+)"', read(name))
    pairs = [target.partition("#")[::2] for target in targets]
    assert [target for target, _ in pairs if not (folder / target).exists()] == []
    for target, heading in pairs:
        if heading:  # as GitHub makes it of a title
            document = (
                folder / target / "README.md" if (folder / target).is_dir() else folder / target
            )
            titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles]


def test_every_document_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\((?!http)([^)]+)\)", read("README.md")))
    assert {*DOCUMENTS} - {"README.md"} <= linked


def list_calls(text):
    """List the calls of the package in a text: every expression in backticks with ``us.`` in it."""
    for expression in re.findall(r"`([^`\n]*\bus\.[^`\n]+)`", text):
        for node in ast.walk(ast.parse(expression)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("us."):
                yield node


def resolve(call):
    """Return the function of the package that a call names."""
    named = ast.unparse(call.func)
    if named.startswith("us.") and "(" not in named:
        value = unetseg
        for name in named.split(".")[1:]:
            value = getattr(value, name)
        return value
    return None  # a method of what another call returns


def test_every_call_in_the_readme_is_one_that_the_package_understands():
    calls = [call for call in list_calls(read("README.md")) if resolve(call)]
    assert len(calls) >= 14
    for call in calls:
        named = {word.arg: None for word in call.keywords}
        inspect.signature(resolve(call)).bind(*call.args, **named)


# The example as a user types it trains for minutes; here on scans of a few voxels.
TYPED = "epochs=12"
SHORT = 'epochs=1, steps=2, n_splits=2, model_args={"filters": 4, "depth": 2}'


def test_the_example_in_the_readme_runs(make_data, tmp_path):
    make_data(4, name="data/my_scans")
    scans = make_data(1, name="other") / "imagesTr"
    (scans / "case_00.nii.gz").rename(scans / "new_00.nii.gz")
    scans.rename(tmp_path / "data" / "new_scans")
    (example,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    assert example.count(TYPED) == 1
    (tmp_path / "example.py").write_text(example.replace(TYPED, SHORT), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    call = [sys.executable, "example.py"]
    done = subprocess.run(call, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    dice, distance = done.stdout.splitlines()[:2]
    assert f"b == 1))  # {float(dice):.3f}\n" in example
    assert f"(2, 1, 1)))  # {float(distance):.1f}, as" in example
    assert (tmp_path / "results/mine/new_scans/monday/labels/new_00.nii.gz").is_file()
