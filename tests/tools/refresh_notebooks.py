"""Execute the notebooks with their own settings and write them back, without noise.

python -m tests.tools.refresh_notebooks                 after a change; takes minutes
python -m tests.tools.refresh_notebooks 03_evaluate     one alone, on the results that are there
"""

import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"


def clean(cell):
    cell.metadata = {k: v for k, v in cell.metadata.items() if k == "tags"}
    joined = []
    for output in cell.get("outputs", []):
        if joined and output.get("name") and output.get("name") == joined[-1].get("name"):
            joined[-1].text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.get("name") == "stdout":  # a progress bar as it was at last
            output.text = re.sub(r"[^\n]*\r", "", output.text)
    if "outputs" in cell:
        cell.outputs = joined
    if "viewer" in cell.metadata.get("tags", []):  # megabytes, and scripts that few places run
        cell.outputs = [o for o in cell.outputs if o.output_type == "stream"]


def main():
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for path in [FOLDER / f"{name}.ipynb" for name in names]:
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, resources={"metadata": {"path": FOLDER}}, timeout=None)
        client.record_timing = False
        client.execute()
        for cell in notebook.cells:
            clean(cell)
        notebook.metadata.pop("widgets", None)
        notebook.metadata["language_info"] = {"name": "python"}
        nbformat.write(notebook, path)
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
