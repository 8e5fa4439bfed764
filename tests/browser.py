"""A page in headless Chromium: what a reader would see of it."""

import json
import re
import shutil
import subprocess
from html import unescape

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const look = page => ({
    images: [...page.images].map(image => image.naturalWidth),
    tables: [...page.querySelectorAll("table")].map(table => table.rows.length),
    canvases: [...page.querySelectorAll("canvas")].map(canvas => {
      const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      const colours = new Set(new Uint32Array(data.buffer));
      return [canvas.width, canvas.height, colours.size];
    }),
    width: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    fetched: page.defaultView.performance.getEntriesByType("resource").map(entry => entry.name)
      .filter(name => !name.startsWith("data:")),
  });
  const frames = [...document.querySelectorAll("iframe")].map(f => look(f.contentDocument));
  const found = JSON.stringify({...look(document), frames, text: document.body.innerText});
  document.body.textContent = found;
}, 3000));</script>"""


def find_browser():
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def open_in_browser(page, folder, *, width=1100):
    """Open a page in headless Chromium and tell what became of it."""
    browser = find_browser()
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    before, end, after = page.rpartition("</body>")
    (folder / "probed.html").write_text(before + PROBE + end + after, encoding="utf-8")
    quiet = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking"
    quiet += " --disable-component-update --disable-sync --virtual-time-budget=20000 --dump-dom"
    quiet += f" --window-size={width},1400"
    address = (folder / "probed.html").as_uri()
    command = [browser, *quiet.split(), f"--user-data-dir={folder / 'browser'}", address]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    body = re.search(r"<body[^>]*>(\{.*\})\s*</body>", done.stdout, re.DOTALL)
    assert body, done.stderr[-2000:]
    return json.loads(unescape(body[1]))
