"""Promises about the project as a whole: its size, its imports, its layout."""

import ast
import json
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pandas as pd
import pytest

import unetseg

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "unetseg").glob("*.py"))
LIGHT = ["cases", "metrics", "nifti", "plots", "scores", "splits", "workspace"]
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.ENCODING,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def docstring_lines(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            yield from range(node.body[0].lineno, node.body[0].end_lineno + 1)


def code_lines(path):
    with path.open("rb") as file:
        tokens = [t for t in tokenize.tokenize(file.readline) if t.type not in NO_CODE]
    lines = {n for t in tokens for n in range(t.start[0], t.end[0] + 1)}
    return len(lines - set(docstring_lines(ast.parse(path.read_text(encoding="utf-8")))))


def test_code_lines_are_counted_without_blanks_comments_and_docstrings(tmp_path):
    path = tmp_path / "example.py"
    path.write_text('"""Two\nlines."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc."""\n')
    assert code_lines(path) == 4  # three of the tuple, one of the def


def test_the_package_stays_under_2200_lines_of_code():
    assert sum(map(code_lines, MODULES)) < 2200


def test_no_module_is_longer_than_250_lines_of_code():
    assert {path.name: n for path in MODULES if (n := code_lines(path)) > 250} == {}


def test_every_module_has_its_tests():
    names = {path.stem for path in MODULES} - {"__init__"}
    assert {name for name in names if not (ROOT / "tests" / f"test_{name}.py").exists()} == set()


def test_import_takes_under_half_a_second_and_no_keras():
    code = (
        "import sys, time; t = time.perf_counter(); import unetseg;"
        "assert time.perf_counter() - t < 0.5; assert 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", LIGHT)
def test_these_modules_do_not_import_keras(name):
    code = f"import sys, unetseg; unetseg.{name}; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_an_unknown_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        _ = unetseg.metric


PUBLISHED = {"hippocampus": "3-D", "hippocampus_2d": "2-D"}


@pytest.mark.parametrize(("folder", "title"), PUBLISHED.items())
def test_the_numbers_in_the_readme_are_those_of_the_published_runs(folder, title):
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    results = ROOT / "results" / folder
    summary = pd.read_csv(results / "summary.csv").set_index(["name", "metric"])
    for first, name in ((f"| {title} |", "Anterior"), ("| |", "Posterior")):
        row = [name]
        for metric, digits in (("dice", 4), ("hausdorff_mm", 2), ("hd95_mm", 2)):
            part = summary.loc[(name, metric)]
            row.append(f"{part['mean']:.{digits}f} ({part['sd']:.{digits}f})")
        counts = summary.loc[name]
        row += [f"{counts['n'].max()}", f"{counts['nan'].max()}, {counts['inf'].max()}"]
        assert f"{first} {' | '.join(row)} |" in readme
    experiment = json.loads((results / "experiment.json").read_text(encoding="utf-8"))
    mean = summary.xs("dice", level="metric")["mean"].mean()
    epochs = experiment["settings"]["recipe"]["epochs"]
    about = f"{title}: mean Dice {mean:.4f}, {epochs} epochs, {experiment['minutes']:.0f} minutes"
    assert f"{about} for all five folds and their predictions" in readme
    hardware = experiment["hardware"]
    machine = f"on {hardware['cores']} cores of an {hardware['processor']}"
    precision = experiment["precision"].removeprefix("mixed_")
    assert f"{machine}, computing in {precision}." in readme


def test_the_readme_tells_how_much_faster_than_the_fastest_peer_the_metrics_are():
    rows = json.loads((ROOT / "results" / "benchmark.json").read_text(encoding="utf-8"))["rows"]
    named = "fastest peer / unetseg"
    ratios = [f"{row['value']:.0f}" for row in rows if named in row["setting"]]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"{ratios[0]}, {ratios[1]} and {ratios[2]} times faster than the fastest" in readme


def test_every_published_case_is_scored_once_by_the_model_that_did_not_see_it():
    for folder in PUBLISHED:
        results = ROOT / "results" / folder
        folds = json.loads((results / "splits.json").read_text(encoding="utf-8"))
        scores = pd.read_csv(results / "scores.csv")
        assert len(scores) == 2 * 208
        for number, fold in enumerate(folds):
            assert set(scores.loc[scores["fold"] == number, "case"]) == set(fold["val"])
            assert not set(fold["train"]) & set(fold["val"])


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) < 150
    links = re.findall(r"\]\((?!http)([^)]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_scan_and_no_weights_are_among_the_published_results():
    tracked = subprocess.run(
        ["git", "ls-files", "results", "data"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert {Path(name).suffix for name in tracked} <= {".json", ".csv", ".png", ".md"}
