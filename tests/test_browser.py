"""A notebook as its user sees it: in JupyterLab, run from top to bottom in a real browser.

What the browser shows is left as pictures in ``tests/artefacts``.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from types import SimpleNamespace
from urllib.parse import urlsplit

import nbformat
import pytest
from browser import BROWSERS, find_browser
from playwright.sync_api import expect, sync_playwright
from test_notebooks import NAMES, ROOT, cells_tagged, code_cells, train

from unetseg import sample

pytestmark = pytest.mark.long

ARTEFACTS = ROOT / "tests" / "artefacts"
NAME = f"notebooks/{NAMES[3]}.ipynb"
SCANS = ["sub-101_ses-1", "sub-101_ses-2", "sub-102_ses-1"]
WIDE, HIGH = 1400, 1000  # pixels of the window
PATIENCE = 300  # seconds for any one thing to happen; it takes a fraction of this


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder as a user has it: trained, with new scans, and set in notebook 4."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "unetseg"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    train(folder)
    sample.make_sample(folder / "data" / "new", n_cases=3, seed=1)
    notebook = nbformat.read(folder / NAME, as_version=4)
    for cell in code_cells(notebook):  # what stands there comes from the browser's run alone
        cell.outputs, cell.execution_count = [], None
    [cell] = cells_tagged(notebook, "parameters")
    for name, value in (("SCANS", "data/new"), ("EXPERIMENT", "small")):
        cell.source, n = re.subn(rf'(?m)^{name} = "[^"]*"', f'{name} = "{value}"', cell.source)
        assert n == 1
    nbformat.write(notebook, folder / NAME)
    return folder


@pytest.fixture(scope="module")
def address(project, tmp_path_factory):
    """The notebook's address at a JupyterLab that knows no settings but its own."""
    own = tmp_path_factory.mktemp("jupyter")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "IPYTHON"))}
    env |= {f"JUPYTER_{kind}_DIR": str(own / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    token = secrets.token_hex()
    env |= {"IPYTHONDIR": str(own), "JUPYTER_TOKEN": token, "PYTHONPATH": str(project)}
    news = {"@jupyterlab/apputils-extension:announcements": True}  # asks before it fetches
    page_config = own / "CONFIG" / "labconfig" / "page_config.json"
    page_config.parent.mkdir(parents=True)
    page_config.write_text(json.dumps({"disabledExtensions": news, "buildCheck": False}))
    port = free_port()
    options = f"--no-browser --allow-root --ServerApp.ip=127.0.0.1 --port={port}"
    options += " --ServerApp.port_retries=0 --LabApp.extension_manager=readonly"
    command = [sys.executable, "-m", "jupyterlab", *options.split()]
    with (own / "log.txt").open("w+") as log:
        server = subprocess.Popen(
            command, cwd=project, env=env, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            wait_for(server, port, own / "log.txt")
            yield f"http://127.0.0.1:{port}/lab/tree/{NAME}?token={token}"
        finally:
            server.terminate()  # it then ends its kernels
            server.wait(PATIENCE)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(server, port, log):
    for _ in range(10 * PATIENCE):
        assert server.poll() is None, f"JupyterLab ended at once:\n{log.read_text()}"
        try:
            with socket.create_connection(("127.0.0.1", port)):
                return
        except ConnectionError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}")


# Whatever the progress bar says, and how many cells wait while it says so.
RECORD = """() => {
  window.progress = [];
  new MutationObserver(() => {
    for (const output of document.querySelectorAll(".jp-OutputArea-output pre")) {
      const [bar] = output.textContent.match(/\\d+%\\|.*scan.*/) ?? [];
      const waiting = [...document.querySelectorAll(".jp-InputPrompt")]
        .filter(prompt => prompt.textContent === "[*]:").length;
      if (bar && bar !== window.progress.at(-1)?.[0]) window.progress.push([bar, waiting]);
    }
  }).observe(document.body, {childList: true, subtree: true, characterData: true});
}"""


@pytest.fixture(scope="module")
def browser():
    if path := find_browser():
        return path
    names = ", ".join(BROWSERS)
    pytest.fail(f"No browser: none of {names} is installed. On Debian: apt-get install chromium")


@pytest.fixture(scope="module")
def seen(browser, address):  # the browser first: nothing is trained where there is none
    """The page once all cells have run, what was asked of the network, and the progress."""
    ARTEFACTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        page = chromium.new_page(viewport={"width": WIDE, "height": HIGH})
        page.set_default_timeout(1000 * PATIENCE)
        expect.set_options(timeout=1000 * PATIENCE)
        asked = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        try:
            page.goto(address)
            run_all_cells(page)
            progress = page.evaluate("window.progress")
            yield SimpleNamespace(page=page, asked=asked, progress=progress)
        finally:
            photograph(page)
            chromium.close()


def run_all_cells(page):
    expect(page.locator(".jp-CodeCell").last).to_be_attached()
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()
    page.evaluate(RECORD)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    predicting = cell_with(page, "predict_scans(")
    bar = predicting.locator("pre", has_text="%|")
    expect(bar.or_(red(page).filter(has_text="Traceback")).first).to_be_attached()
    predicting.scroll_into_view_if_needed()
    page.screenshot(path=ARTEFACTS / "predicting.png")
    expect(page.locator(".jp-InputPrompt", has_text="[*]")).to_have_count(0)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible()


def cell_with(page, code):
    return page.locator(".jp-CodeCell").filter(has=page.locator(".cm-content", has_text=code))


def red(page):  # what JupyterLab shows on red: logs, warnings, and tracebacks too
    return page.locator('[data-mime-type="application/vnd.jupyter.stderr"]')


END_OF_NOTEBOOK = """[...document.querySelectorAll(".jp-Cell")].at(-1)
  ?.getBoundingClientRect().bottom"""


def photograph(page):
    # In a window that holds all of the notebook, then in one that ends with it.
    height = 12_000
    for _ in range(2):
        page.set_viewport_size({"width": WIDE, "height": height})
        page.wait_for_timeout(1000)  # for what was out of sight to be drawn
        page.evaluate("document.querySelector('.jp-Cell')?.scrollIntoView()")
        height = int(page.evaluate(f"{END_OF_NOTEBOOK} ?? {HIGH}")) + 50
    page.screenshot(path=ARTEFACTS / "notebook_04.png")


def test_every_cell_runs_in_its_order(seen):
    prompts = seen.page.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    n_cells = len(code_cells(nbformat.read(ROOT / NAME, as_version=4)))
    assert prompts == [f"[{n}]:" for n in range(1, n_cells + 1)]


def test_no_cell_shows_an_error_or_a_log_and_jupyterlab_asks_nothing(seen):
    logs = [text.strip() for text in red(seen.page).all_text_contents()]
    assert [text for text in logs if text] == []
    assert seen.page.locator(".jp-Dialog, .Toastify__toast").count() == 0


def test_the_progress_moves_while_the_scans_are_predicted_and_ends_at_all_of_them(seen):
    bars, waiting = zip(*seen.progress, strict=True)
    assert re.match(r"0%\|.*\| 0/3 \[", bars[0])
    assert re.match(r"100%\|█+\| 3/3 \[", bars[-1])
    assert waiting[0] > 1  # cells that had not run when it appeared, its own among them
    output = cell_with(seen.page, "predict_scans(").locator(".jp-OutputArea-output").first
    output.scroll_into_view_if_needed()
    expect(output).to_be_visible()
    # One line, not one per step.
    need, *others = output.text_content().splitlines()
    assert re.fullmatch(r"A scan takes up to [\d.]+ GB of memory, [\d.]+ GB are free\.", need)
    assert others == [bars[-1], "3 of 3 scans are segmented."]


def test_the_figures_appear(seen):
    images = seen.page.locator(".jp-OutputArea-output img")
    assert images.count() == 2  # the first scans, calibration
    for image in images.all():
        image.scroll_into_view_if_needed()
        expect(image).to_be_visible()
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") > 300


PIXELS = """canvas => [...new Uint32Array(
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)]"""


def test_the_viewer_is_drawn_and_a_click_moves_its_slices(seen):
    frame = seen.page.locator(".jp-OutputArea-output iframe")
    frame.scroll_into_view_if_needed()
    canvas = frame.content_frame.locator("canvas")
    expect(canvas).to_be_visible()
    size = canvas.bounding_box()
    assert size["width"] > 300
    before = canvas.evaluate(PIXELS)
    assert len(set(before)) > 50  # greys of the scan and the labels on it
    sagittal = {"x": 0.2 * size["width"], "y": 0.4 * size["height"]}
    canvas.click(position=sagittal)
    after = canvas.evaluate(PIXELS)
    seen.page.screenshot(path=ARTEFACTS / "viewer.png")
    changed = sum(old != new for old, new in zip(before, after, strict=True))
    assert changed > 0.1 * len(before)  # more than the coordinates below the slices


def test_the_table_of_volumes_has_a_row_for_every_scan_and_label(seen):
    rows = cell_with(seen.page, 'predicted.drop(columns=["label"').locator("tbody tr")
    texts = rows.all_text_contents()
    assert len(texts) == 2 * len(SCANS)
    for scan in SCANS:
        for label in ("grey matter", "white matter"):
            assert sum(scan in text and label in text for text in texts) == 1


def test_no_output_is_cut_off_at_its_side(seen):
    outputs = seen.page.locator(".jp-OutputArea-output")
    wider = outputs.evaluate_all(
        "all => all.filter(one => one.scrollWidth > one.clientWidth).map(one => one.textContent)"
    )
    assert wider == []


def test_the_page_fetches_nothing_from_elsewhere(seen):
    hosts = {urlsplit(url).hostname for url in seen.asked}
    assert hosts - {None} == {"127.0.0.1"}  # None: images and frames that are in the page
