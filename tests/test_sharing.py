"""The report that is sent to others."""

import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from unetseg import sharing


def content_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def tagged(source, *tags):
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})


def make_project(folder, *cells):
    """A project with one notebook, x, beside the package."""
    (folder / "notebooks").mkdir(parents=True)
    (folder / "unetseg").symlink_to(Path(sharing.__file__).parent)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebooks" / "x.ipynb")
    return folder


FIGURE = """import matplotlib.pyplot as plt
figure, axes = plt.subplots()
plt.close(figure)
figure"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A small notebook as it was before and after, its report, and what was logged meanwhile."""
    project = make_project(
        tmp_path_factory.mktemp("report") / "it's a project",
        nbformat.v4.new_markdown_cell("# A title\n\nA sentence with `code` and $x^2$."),
        tagged("raise RuntimeError('the set-up was executed')", "set-up"),
        nbformat.v4.new_markdown_cell("How to set it", metadata={"tags": ["no-report"]}),
        tagged("COUNT = 1  # @param\nNAME, KEPT = 'default', 'kept'", "parameters"),
        tagged("print('count', COUNT + 1, NAME, KEPT, workspace.__name__)"),
        tagged("from pathlib import Path\nprint('in', Path.cwd().name)"),
        tagged("import pandas as pd\npd.DataFrame({'column': [1, 2]})"),
        tagged(FIGURE),
        tagged("print('not shown')", "no-report"),
    )
    notebook = (project / "notebooks" / "x.ipynb").read_bytes()
    path, errors = project / "results" / "new" / "report.html", project / "errors.txt"
    call = "from pathlib import Path; from unetseg import sharing; "
    call += f"sharing.project_dir = lambda: Path({str(project)!r}); "
    call += f"sharing.write_report('x', {str(path)!r}, COUNT=41, NAME='it\\'s \\\\given')"
    paths = {"PYTHONPATH": str(project)}
    with open(errors, "w", encoding="utf-8") as file:
        subprocess.run(
            [sys.executable, "-c", call], stderr=file, check=True, env=os.environ | paths
        )
    after = (project / "notebooks" / "x.ipynb").read_bytes()
    logged = errors.read_text(encoding="utf-8")
    return notebook == after, path, unescape(path.read_text(encoding="utf-8")), logged


def test_a_report_shows_the_results_of_the_given_settings(report):
    unchanged, path, page, _ = report
    assert unchanged
    assert "count 42 it's \\given kept unetseg.workspace" in page
    assert "in notebooks" in page
    assert "<title>report</title>" in page
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


def test_a_report_shows_text_tables_and_figures_but_no_code(report):
    page = report[2]
    assert ">A title" in page
    assert "<code>code</code>" in page
    assert re.search(r"<th>column</th>", page)
    assert len(re.findall(r'<img\b[^>]*src="data:image/png;base64,[\w+/=\s]{1000,}"', page)) == 1
    for code in ("COUNT", "RuntimeError", "import", "print(", "subplots"):
        assert code not in re.sub(r"<style.*?</style>", "", page, flags=re.DOTALL)


def test_a_report_leaves_out_the_cells_tagged_so(report):
    assert "not shown" not in report[2]
    assert "How to set it" not in report[2]


def test_a_report_fetches_nothing_and_runs_no_script(report):
    tags = r"""<[a-z]+\b[^>]*\s(?:src|href|data)=["']?(?:https?:)?//|@import|<script"""
    assert re.findall(tags + r"""|url\(["']?(?:https?:)?//""", report[2]) == []


def test_a_report_is_written_without_noise(report):
    logged = report[3]
    assert "IPKernelApp" not in logged
    assert "WARNING" not in logged


def test_an_error_in_a_notebook_is_raised_and_leaves_the_old_report(tmp_path, monkeypatch):
    project = make_project(tmp_path, tagged("1 / 0"))
    monkeypatch.setattr(sharing, "project_dir", lambda: project)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.html").write_bytes(b"old")
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        sharing.write_report("x", tmp_path / "out" / "report.html")
    assert content_of(tmp_path / "out") == {"report.html": b"old"}


def test_a_notebook_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "project_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"y\.ipynb"):
        sharing.write_report("y", tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
