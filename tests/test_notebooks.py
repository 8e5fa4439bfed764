"""The notebooks: their form, their run from top to bottom, and their set-up in Colab."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html import unescape
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
from browser import open_in_browser
from nbformat.v4 import new_code_cell, new_output
from papermill.exceptions import PapermillExecutionError
from tools.refresh_notebooks import clean

from unetseg import _base, sample

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_load_data", "02_train_kfold", "03_evaluate", "04_predict_new_scans"]
REPORTED = ("learning_curves", "scores", "volumes", "dice_by_size", "confusion", "examples")
FIGURES = ("cases", "masks", *REPORTED)


def count_lines(lines):
    return len([line for line in lines if line.strip() and not line.strip().startswith("#")])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_the_notebooks_are_all_there():
    assert [path.stem for path in NOTEBOOKS] == NAMES


def test_a_notebook_is_valid_and_small(notebook):
    nbformat.validate(notebook)
    assert len(json.dumps(notebook)) < 1_000_000


def test_a_notebook_opens_with_its_question_and_what_it_reads_and_writes(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    for word in ("Question", "Reads", "Writes", "Takes"):
        assert f"**{word}" in first.source


def test_a_notebook_is_executed_from_top_to_bottom(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))


def test_a_notebook_shows_no_error_and_no_log(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"] == []


def test_a_notebook_shows_a_result_in_most_cells(notebook):
    cells = code_cells(notebook)
    assert 12 <= len(cells) <= 20
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) - 4


def test_a_notebook_defines_nothing_and_stays_short(notebook):
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert [line for line in lines if re.match(r"\s*(async\s+)?(def|class)\s", line)] == []
    assert count_lines(lines) <= 80


def test_a_notebook_names_no_absolute_path_outside_the_set_up(notebook):
    cells = [cell for cell in notebook.cells if "packages.install_missing()" not in cell.source]
    text = json.dumps(cells)
    assert re.findall(r"/(?:home|root|tmp|work|content|Users)/[\w./-]*", text) == []


def test_a_notebook_leaves_files_and_safety_to_the_package(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert "unetseg.run" not in source
    assert re.findall(r"[\w/]+\.(?:json|csv|png|html|h5|nii\.gz)\b", source) == []


def test_the_metadata_hold_no_noise(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}


def cells_tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_tags_are_those_that_have_a_meaning(notebook):
    tags = {tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])}
    assert tags <= {"set-up", "parameters", "viewer"}
    for tag in ("set-up", "parameters"):
        assert len(cells_tagged(notebook, tag)) == 1
    viewers = 1 if "view_case(" in json.dumps(notebook) else 0
    assert len(cells_tagged(notebook, "viewer")) == viewers


def test_a_stored_viewer_has_no_output_but_its_text(notebook):
    outputs = [output for cell in cells_tagged(notebook, "viewer") for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream"}


def test_refreshing_drops_what_viewers_show_and_old_bars_and_keeps_logs_and_tags():
    bar = new_output("stream", name="stdout", text="0%\r100%\nmean Dice 0.8\n")
    last = new_output("stream", name="stdout", text="100%\nmean Dice 0.8\n")
    log = new_output("stream", name="stderr", text="I0000 00:00:1 port.cc:153] oneDNN\n")
    shown = new_output("execute_result", data={"text/html": "<iframe>"}, execution_count=2)
    for tags, kept in ((["viewer"], [last, log]), (["other"], [last, log, shown])):
        metadata = {"tags": tags, "execution": {}}
        cell = new_code_cell("1", metadata=metadata, outputs=[bar, log, shown])
        clean(cell)
        assert cell.outputs == kept
        assert cell.metadata == {"tags": tags}


def test_settings_are_literals_in_one_tagged_cell_with_a_form_field_each(notebook):
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        literal = r'(None|"[^"]*"|[\d.]+|True|False)'
        assert re.fullmatch(rf"[A-Z_]+ = {literal}  # @param [{{\[].*[}}\]]", line)
        assert (" = None " in line) == ('{type:"raw"}' in line)  # else a form shows no field
    names = [line.split(" = ")[0] for line in cell.source.splitlines()]
    assert names[:3] in (["DATA", "RESULTS", "EXPERIMENT"], ["SCANS", "RESULTS", "EXPERIMENT"])


def test_the_set_up_cell_is_the_same_everywhere():
    [source] = {set_up_source(path) for path in NOTEBOOKS}
    assert count_lines(source.splitlines()) <= 10


def set_up_source(path):
    notebook = nbformat.read(path, as_version=4)
    [cell] = [cell for cell in code_cells(notebook) if "install_missing()" in cell.source]
    return cell.source


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the notebooks on a small sample; return the results and the executed notebooks.

    Of the three new scans one is not readable.
    """
    folder = tmp_path_factory.mktemp("run")
    settings, executed = train(folder)
    new = sample.make_sample(folder / "new", n_cases=2, seed=1)
    (new / "imagesTr" / "broken.nii.gz").write_bytes(b"<html>quota exceeded</html>")
    settings |= {"SCANS": str(new), "PROBABILITIES": True}
    executed[NAMES[3]] = execute(NAMES[3], folder, settings)
    return folder, settings, executed


def train(folder):
    """Train and evaluate on a small sample with the first three notebooks.

    Returns their settings and the executed notebooks. The results are in ``results/small``.
    """
    data = sample.make_sample(folder / "scans", n_cases=5)
    settings = {"DATA": str(data), "RESULTS": str(folder / "results"), "EXPERIMENT": "small"}
    settings |= {"FOLDS": 2, "EPOCHS": 2, "STEPS": 3, "FILTERS": 4, "DEPTH": 2}
    return settings, {name: execute(name, folder, settings) for name in NAMES[:3]}


def execute(name, folder, settings):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    known = {k: v for k, v in settings.items() if re.search(rf"^{k} = ", source_of(path), re.M)}
    notes = folder / f"{name}.reads"
    notes.unlink(missing_ok=True)
    places = [str(ROOT / "tests" / "reads"), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("READS", str(notes))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
        return papermill.execute_notebook(
            path, folder / path.name, parameters=known, cwd=path.parent, progress_bar=False
        )


def source_of(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def test_a_run_leaves_what_the_design_lists(run):
    folder, *_ = run
    results = folder / "results" / "small"
    expected = {
        *(
            "cases.csv",
            "components.json",
            "experiment.json",
            "leaks.csv",
            "preprocessor.json",
            "report.html",
        ),
        *("fitted_on.json", "scores.csv", "source.json", "splits.json", "summary.csv"),
        *(f"figures/{name}.png" for name in FIGURES),
        *(
            f"fold_{k}/{n}"
            for k in (0, 1)
            for n in ("calibration.csv", "done.json", "history.csv", "model.weights.h5")
        ),
        *(
            f"{kind}/{p.name}"
            for p in (folder / "scans" / "imagesTr").iterdir()
            for kind in ("predictions", "masks")
        ),
    }
    ids = ("sub-101_ses-1", "sub-101_ses-2")
    kinds = ("labels", "uncertainty", "disagreement", "probabilities")
    expected |= {f"new_scans/new/{kind}/{i}.nii.gz" for kind in kinds for i in ids}
    expected |= {f"new_scans/new/done/{i}.json" for i in ids}
    tables = ("predictions.csv", "look_at.csv", "scans.csv", "scores.csv", "summary.csv")
    tables += ("claim.csv", "report.html")  # as they have masks
    charts = ("scores", "volumes", "dice_by_size", "confusion", "examples")
    expected |= {f"new_scans/new/figures/{name}.png" for name in charts}
    expected |= {f"new_scans/new/{n}" for n in (*tables, "montage.png", "source.json")}
    expected |= {"MODEL_CARD.md", "hashes.json", "small.tar"}
    written = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    assert {name for name in written if not re.fullmatch(r"new_scans/new/sub-.*\.html", name)} == (
        expected
    )


# Notebook 1 checks a scan, shows it, and prepares three to foretell the minutes of notebook 2.
# Notebook 4 predicts and shows it; with a mask it is compared with those of the training, and the
# test set's report shows it.
@pytest.mark.parametrize(("name", "most"), [*zip(NAMES, (3, 2, 1, 4), strict=True)])
def test_no_scan_is_unpacked_more_often_than_is_needed(name, most, run):
    folder, *_ = run
    files = [Path(line) for line in (folder / f"{name}.reads").read_text().splitlines()]
    counts = Counter(path.name for path in files if path.parent.name == "imagesTr")
    assert max(counts.values()) == most


def test_new_scans_are_segmented_and_a_broken_one_is_reported(run):
    folder, _, executed = run
    out = folder / "results" / "small" / "new_scans" / "new"
    table = pd.read_csv(out / "predictions.csv", keep_default_na=False)
    assert set(table["case"]) == {"broken", "sub-101_ses-1", "sub-101_ses-2"}
    assert "cannot be read as NIfTI" in table.set_index("case").loc["broken", "problem"]
    first = pd.read_csv(out / "look_at.csv").iloc[0]
    assert (first["case"], "cannot be read" in first["look_at"]) == ("broken", True)
    said = text_of(executed["04_predict_new_scans"])
    assert "3 scans: 1 with a problem" in said
    assert "2 of 3 scans are segmented." in said
    assert re.search(r"small\.tar: [\d.]+ MB, hash [0-9a-f]{64}", said)


def test_new_scans_that_are_finished_are_not_predicted_again(run, tmp_path):
    folder, settings, _ = run
    out = folder / "results" / "small" / "new_scans" / "new"
    path = out / "labels" / "sub-101_ses-1.nii.gz"
    before = path.stat().st_mtime_ns
    (out / "labels" / "sub-101_ses-2.nii.gz").unlink()
    execute("04_predict_new_scans", tmp_path, settings)
    assert path.stat().st_mtime_ns == before
    assert (out / "labels" / "sub-101_ses-2.nii.gz").exists()


def test_new_scans_are_predicted_by_models_that_were_not_scored(run, tmp_path):
    folder, settings, _ = run
    results = copy_results(folder, tmp_path)
    for name in ("scores.csv", "summary.csv", "report.html"):
        (results / name).unlink()
    again = execute("04_predict_new_scans", tmp_path, settings | {"RESULTS": str(results.parent)})
    assert "Not scored yet: run notebook 3." in text_of(again)
    assert "2 of 3 scans are segmented." in text_of(again)


def test_two_folders_of_new_scans_of_one_name_are_kept_apart(run, tmp_path):
    folder, settings, _ = run
    results = copy_results(folder, tmp_path)
    before = {path: path.read_bytes() for path in (results / "new_scans").rglob("*.nii.gz")}
    tables = (results / "new_scans" / "new" / "predictions.csv").read_bytes()
    other = sample.make_sample(tmp_path / "elsewhere" / "new", n_cases=2, seed=2)
    settings = settings | {"RESULTS": str(results.parent), "SCANS": str(other)}
    text = text_of(execute("04_predict_new_scans", tmp_path, settings))
    assert "go to elsewhere_new" in text
    assert {path: path.read_bytes() for path in before} == before
    assert (results / "new_scans" / "new" / "predictions.csv").read_bytes() == tables
    table = pd.read_csv(results / "new_scans" / "elsewhere_new" / "predictions.csv")
    assert set(table["case"]) == {"sub-201_ses-1", "sub-201_ses-2"}


@pytest.mark.parametrize(
    ("name", "setting", "value", "words"),
    [
        ("01_load_data", "PATCH", "16,16", "PATCH must be three numbers"),
        ("01_load_data", "PLANES", "0", "planes must be first the axis across the patch's slices"),
        ("03_evaluate", "COMPARE_WITH", "other", "COMPARE_WITH must be the name of a scored exp"),
        ("03_evaluate", "LOOK_AT", "sub-99", "LOOK_AT must be the name of a case, of 5"),
        ("04_predict_new_scans", "LOOK_AT", "sub-99", "LOOK_AT must be the name of a scan, of 3"),
    ],
)
def test_a_setting_that_will_not_do_is_refused_before_anything_is_computed(
    name, setting, value, words, run, tmp_path
):
    _, settings, _ = run
    wrong = {setting: value} | ({"PATCH": "8 x 8 x 1"} if setting == "PLANES" else {})
    with pytest.raises(PapermillExecutionError, match=words):
        execute(name, tmp_path, settings | {"EXPERIMENT": "small"} | wrong)
    ran = nbformat.read(tmp_path / f"{name}.ipynb", as_version=4)
    shown = "".join(cell.source for cell in code_cells(ran) if cell.execution_count)
    assert not re.search(r"score_predictions|predict_scans|look_through", shown)


def test_the_scores_have_a_row_for_every_case_and_label(run):
    folder, *_ = run
    rows = (folder / "results" / "small" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 2


def text_of(notebook):
    """What the cells of an executed notebook print and say."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs]
    return "\n".join(texts)


def test_the_evaluation_shows_no_log_while_it_writes_the_report(run):
    *_, executed = run
    outputs = [o for cell in code_cells(executed["03_evaluate"]) for o in cell.outputs]
    assert [o.text for o in outputs if o.get("name") == "stderr"] == []


def test_the_report_shows_its_figures_tables_and_viewer_in_a_browser(run, tmp_path):
    folder, *_ = run
    page = (folder / "results" / "small" / "report.html").read_text(encoding="utf-8")
    seen = open_in_browser(page, tmp_path)
    assert len(seen["images"]) == len(REPORTED) + 1  # and that of the calibration
    assert min(seen["images"]) > 300  # pixels; 0 is an image that could not be decoded
    # With their headers: 2 labels; the ten lowest; 2 labels with 10 metrics each; 5 cases with 2
    # labels each.
    assert seen["tables"] == [3, 11, 21, 11]
    assert seen["width"] <= 0  # nothing to scroll to at the right
    [frame] = seen["frames"]
    [[width, height, colours]] = frame["canvases"]
    assert width > 300
    assert height > 100
    assert colours > 50  # greys of the scan and the labels on it
    assert seen["fetched"] == frame["fetched"] == []
    for text in (
        "5 cases of 4 patients in 2 folds",
        "Where does it fail?",
        "No leak found",
        "Appendix: settings",
    ):
        assert text in seen["text"]
    for text in ("import ", "print(", "On the sample", "Settings.", "Keep it"):
        assert text not in seen["text"]


def test_the_report_holds_no_address_that_a_browser_would_fetch(run):
    folder, *_ = run
    page = (folder / "results" / "small" / "report.html").read_text(encoding="utf-8")
    # Of a frame a browser fetches no icon.
    tags = r"""<(?!link[^>]*rel="icon")[a-z]+\b[^>]*\s(?:src|href|data)=["']?(?:https?:)?//"""
    fetched = tags + r"""|@import|url\(["']?(?:https?:)?//"""
    assert re.findall(fetched, page) == re.findall(fetched, unescape(page)) == []


def copy_results(folder, target):
    return shutil.copytree(folder / "results", target / "results") / "small"


def test_the_evaluation_runs_again_elsewhere_without_the_scans(run, tmp_path):
    folder, settings, _ = run
    results = copy_results(folder, tmp_path)
    (results / "scores.csv").unlink()
    settings = settings | {"DATA": str(tmp_path / "nowhere"), "RESULTS": str(results.parent)}
    text = text_of(execute("03_evaluate", tmp_path, settings | {"REPORT": False}))
    first = (folder / "results" / "small" / "scores.csv").read_bytes()
    assert (results / "scores.csv").read_bytes() == first
    assert "The scans are not here: masks and predictions are scored" in text
    assert text.count("Nothing to show.") == 4  # figures, title and page of the viewer
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture
def planted(run, tmp_path):
    """A copy of the run in which one scan stands on both sides of a split, as of two patients."""
    folder, settings, _ = run
    results = copy_results(folder, tmp_path)
    scans = shutil.copytree(folder / "scans", tmp_path / "scans")
    known, new = "sub-02_ses-1", "sub-09_ses-1"
    for place in (scans / "imagesTr", scans / "labelsTr", results / "predictions"):
        shutil.copy(place / f"{known}.nii.gz", place / f"{new}.nii.gz")
    description = json.loads((scans / "dataset.json").read_text())
    pair = {kind: f"./{kind}sTr/{new}.nii.gz" for kind in ("image", "label")}
    description["training"].append(pair)
    (scans / "dataset.json").write_text(json.dumps(description))
    folds = json.loads((results / "splits.json").read_text())
    for fold in folds:
        fold["train" if known in fold["val"] else "val"].append(new)
    (results / "splits.json").write_text(json.dumps(folds))
    for number, fold in enumerate(folds):  # as if the folds had been trained so
        path = results / f"fold_{number}" / "done.json"
        done = json.loads(path.read_text()) | fold
        if new in fold["val"]:
            name = f"{new}.nii.gz"
            done["predictions_sha256"][name] = _base.sha256(results / "predictions" / name)
        path.write_text(json.dumps(done))
    table = pd.read_csv(results / "cases.csv", dtype=str)
    row = table[table["case"] == known].assign(case=new, group="sub-09")
    pd.concat([table, row]).to_csv(results / "cases.csv", index=False)
    return results, settings | {"DATA": str(scans), "RESULTS": str(results.parent)}


def test_training_stops_at_a_planted_leak_and_names_both_cases(planted, tmp_path):
    results, settings = planted
    before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
    with pytest.raises(
        PapermillExecutionError, match="2 leaks: of these cases one would be validated"
    ) as error:
        execute("02_train_kfold", tmp_path, settings)
    assert "sub-02_ses-1 and sub-09_ses-1: identical scan" in str(error.value)
    assert "sub-09_ses-1 and sub-02_ses-1: identical scan" in str(error.value)
    assert "ALLOW_LEAKS" in str(error.value)
    assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before


def test_the_evaluation_says_wherever_it_scores_that_a_leak_was_allowed(planted, tmp_path):
    _, settings = planted
    text = text_of(execute("03_evaluate", tmp_path, settings | {"REPORT": False}))
    # Above the leaks, the scores and the summary.
    assert text.count("2 LEAKS: these scores are too good.") == 3
    assert "No leak found." not in text
    assert "identical scan" in text


def test_training_shows_a_line_for_every_epoch_with_the_time_left(run):
    *_, executed = run
    text = json.dumps(executed["02_train_kfold"])
    assert re.findall(r"fold (\d) epoch (\d)/2 .*?min left", text) == [
        *(("0", "1"), ("0", "2"), ("1", "1"), ("1", "2"))
    ]


def test_a_second_run_of_the_training_trains_nothing(run):
    folder, settings, _ = run
    weights = sorted((folder / "results").rglob("*.h5"))
    before = [path.stat().st_mtime_ns for path in weights]
    again = execute("02_train_kfold", folder, settings)
    assert "2 of 2 folds are finished." in json.dumps(again)
    assert [path.stat().st_mtime_ns for path in weights] == before


STAND_IN = """
import os
from pathlib import Path

def mount(point, force_remount=False, timeout_ms=120000, readonly=False):
    root = Path(point)
    if (root / "MyDrive").is_dir():
        print("Drive already mounted")
        return
    if root.exists() and any(root.iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    root.mkdir(parents=True, exist_ok=True)
    (root / "MyDrive").symlink_to(os.environ["STAND_IN_DRIVE"])
"""


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A stand-in for a Colab machine: returns its root, its Drive, and how to run code there."""
    package = tmp_path / "site" / "google" / "colab"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "drive.py").write_text(STAND_IN)
    root, drive = tmp_path / "content", tmp_path / "drive"
    root.mkdir()
    drive.mkdir()
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_20260819")
    monkeypatch.setenv("STAND_IN_DRIVE", str(drive))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))

    def run_set_up(project, then=""):
        source = set_up_source(NOTEBOOKS[0]).replace("/content", str(root))
        source = re.sub(r'PROJECT = "[^"]*"', f'PROJECT = "{project}"', source, count=1)
        return subprocess.run(
            [sys.executable, "-P", "-c", f"{source}\n{then}"],
            capture_output=True,
            text=True,
            cwd=root,
        )

    return root, drive, run_set_up


SHOW_PACKAGE = "import unetseg; print(unetseg.__file__)"


@pytest.mark.parametrize("name", ["unetseg", "my ünet's (1)/seg é"])
def test_colab_finds_the_project_on_drive(name, colab):
    root, drive, run_set_up = colab
    (drive / name).mkdir(parents=True)
    (drive / name / "unetseg").symlink_to(ROOT / "unetseg")
    (drive / name / "requirements.txt").write_text("numpy>=1\n")
    done = run_set_up(f"MyDrive/{name}", SHOW_PACKAGE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(root / "drive" / "MyDrive" / name))


def test_colab_clones_the_project_from_a_git_address_and_still_mounts_drive(colab, tmp_path):
    root, _, run_set_up = colab
    origin = tmp_path / "origin"
    (origin / "unetseg").mkdir(parents=True)
    for path in (ROOT / "unetseg").glob("*.py"):
        (origin / "unetseg" / path.name).write_text(path.read_text())
    (origin / "requirements.txt").write_text("numpy>=1\n")
    git = ["git", "-C", str(origin), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "all"], check=True)
    for _ in range(2):  # running the cell again is harmless
        done = run_set_up(f"file://{origin}", SHOW_PACKAGE)
        assert done.returncode == 0, done.stderr
        assert str(root / "unetseg" / "unetseg") in done.stdout
    assert (root / "drive" / "MyDrive").is_dir()


def test_colab_says_where_the_project_was_looked_for(colab):
    *_, run_set_up = colab
    done = run_set_up("MyDrive/elsewhere")
    assert "MyDrive/elsewhere: copy the project there, or correct PROJECT." in done.stderr


def test_on_a_laptop_the_set_up_mounts_installs_and_moves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    code = set_up_source(NOTEBOOKS[0]) + "\nprint(sys.path == before)"
    code = "import sys; before = list(sys.path)\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.stdout.strip(), done.returncode) == ("True", 0), done.stderr
    assert list(tmp_path.iterdir()) == []
