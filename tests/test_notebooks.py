"""The notebooks: their form, their run from top to bottom, and their set-up in Colab."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from unetseg import sample

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["01_load_data", "02_train_kfold", "03_evaluate"]


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
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 120


def test_a_notebook_names_no_absolute_path_outside_the_set_up(notebook):
    cells = [cell for cell in notebook.cells if "workspace.install_missing()" not in cell.source]
    text = json.dumps(cells)
    assert re.findall(r"/(?:home|root|tmp|work|content|Users)/[\w./-]*", text) == []


def test_the_metadata_hold_no_noise(notebook):
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags"}


def test_settings_are_literals_in_one_tagged_cell_with_a_form_field_each(notebook):
    [cell] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    for line in cell.source.splitlines():
        assert re.fullmatch(r'[A-Z_]+ = ("[^"]*"|[\d.]+|True|False)  # @param [{\[].*[}\]]', line)
    names = [line.split(" = ")[0] for line in cell.source.splitlines()]
    assert names[:3] == ["DATA", "RESULTS", "EXPERIMENT"]


def test_the_set_up_cell_is_the_same_everywhere():
    assert len({set_up_source(path) for path in NOTEBOOKS}) == 1


def set_up_source(path):
    notebook = nbformat.read(path, as_version=4)
    [cell] = [cell for cell in code_cells(notebook) if "install_missing()" in cell.source]
    return cell.source


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the three notebooks on a small sample; return the results and the executed notebooks."""
    folder = tmp_path_factory.mktemp("run")
    data = sample.make_sample(folder / "scans", n_cases=5)
    settings = {"DATA": str(data), "RESULTS": str(folder / "results"), "EXPERIMENT": "small"}
    settings |= {"FOLDS": 2, "EPOCHS": 2, "STEPS": 3, "FILTERS": 4, "DEPTH": 2}
    executed = {name: execute(name, folder, settings) for name in NAMES}
    return folder, settings, executed


def execute(name, folder, settings):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    known = {k: v for k, v in settings.items() if re.search(rf"^{k} = ", source_of(path), re.M)}
    return papermill.execute_notebook(
        path, folder / path.name, parameters=known, cwd=path.parent, progress_bar=False
    )


def source_of(path):
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)


def test_a_run_leaves_what_the_design_lists(run):
    folder, *_ = run
    results = folder / "results" / "small"
    expected = {
        *("cases.csv", "experiment.json", "preprocessor.json", "scores.csv", "splits.json"),
        *("summary.csv", "figures/cases.png", "figures/examples.png", "figures/masks.png"),
        *("figures/learning_curves.png", "figures/scores.png"),
        *(
            f"fold_{k}/{n}"
            for k in (0, 1)
            for n in ("done.json", "history.csv", "model.weights.h5")
        ),
        *(f"predictions/{p.name}" for p in (folder / "scans" / "imagesTr").iterdir()),
    }
    written = {str(p.relative_to(results)) for p in results.rglob("*") if p.is_file()}
    assert written == expected


def test_the_scores_have_a_row_for_every_case_and_label(run):
    folder, *_ = run
    rows = (folder / "results" / "small" / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 5 * 2


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


def test_colab_finds_the_project_on_drive(colab):
    root, drive, run_set_up = colab
    (drive / "unetseg").mkdir()
    (drive / "unetseg" / "unetseg").symlink_to(ROOT / "unetseg")
    (drive / "unetseg" / "requirements.txt").write_text("numpy>=1\n")
    done = run_set_up("MyDrive/unetseg", SHOW_PACKAGE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().startswith(str(root / "drive" / "MyDrive" / "unetseg"))


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
