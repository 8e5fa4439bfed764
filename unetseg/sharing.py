"""What is passed on to others: the report of an experiment."""

import logging
from pathlib import Path

from unetseg.workspace import project_dir, write_file

# nbconvert's page without the scripts that it would fetch from elsewhere.
REPORT = "{% extends 'lab/index.html.j2' %}" + "".join(
    f"{{% block html_head_js{name} %}}{{% endblock %}}" for name in ("", "_mathjax", "_mermaidjs")
)


def write_report(notebook, path, **settings):
    """Execute a notebook of the project and write what it shows as one HTML file, without code.

    Parameters
    ----------
    notebook : str
        Name of a notebook in the folder ``notebooks``, such as ``"03_evaluate"``.
    path : str or Path
        The HTML file: figures and styles are inside, nothing is fetched from elsewhere.
    **settings
        Take the place of those in the notebook's cell tagged ``parameters``; its cells tagged
        ``set-up`` are not executed, those tagged ``no-report`` not shown.

    Raises
    ------
    FileNotFoundError
        If there is no such notebook beside the package.
    nbclient.exceptions.CellExecutionError
        If a cell fails.
    """
    import nbformat  # these here, as only notebooks need them
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    folder = project_dir() / "notebooks"
    content = nbformat.read(folder / f"{notebook}.ipynb", as_version=4)
    for cell in content.cells:
        if "set-up" in cell.metadata.get("tags", []):
            paths = f"import sys\nsys.path.insert(0, {str(project_dir())!r})"
            cell.source = f"{paths}\nfrom unetseg import workspace"
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in settings.items())
    resources = {"metadata": {"path": str(folder)}}
    quiet = ["--log-level=ERROR"]
    NotebookClient(content, timeout=None, resources=resources, extra_arguments=quiet).execute()
    log = logging.getLogger("unetseg")  # else it warns in the notebook that figures lack a text
    log.setLevel(logging.ERROR)
    shown = {"exclude_input": True, "exclude_output_prompt": True, "raw_template": REPORT}
    exporter = HTMLExporter(**shown, log=log)
    exporter.register_preprocessor(TagRemovePreprocessor(remove_cell_tags={"no-report"}), True)
    for cell in [cell for cell in content.cells if cell.cell_type == "code"]:
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    name = {"metadata": {"name": Path(path).stem}}
    write_file(path, exporter.from_notebook_node(content, name)[0].encode())
