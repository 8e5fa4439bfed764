"""The report of an experiment: what it says, that it fits, and that it needs nothing else."""

import base64
import functools
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from unetseg import plots, report
from unetseg.report import write_report
from unetseg.scores import METRICS, compare, summarise

NAN, INF = float("nan"), float("inf")
LABELS = {1: "front", 2: "back"}
NO_LEAKS = pd.DataFrame(columns=["kind", "case", "other", "fold", "detail"])
PUBLISHED = Path(__file__).parent.parent / "results" / "hippocampus"


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def results(tmp_path):
    """What a run on four cases of three patients in two folds leaves."""
    folder = tmp_path / "first run"
    folder.mkdir()
    for name in ("experiment.json", "preprocessor.json"):
        shutil.copy(PUBLISHED / name, folder)
    change_json(folder / "preprocessor.json", labels={"1": "front", "2": "back"})
    halves = ["c0", "c1"], ["c2", "c3"]
    folds = [{"train": train, "val": val} for train, val in (halves[::-1], halves)]
    (folder / "splits.json").write_text(json.dumps(folds))
    rows = ["case,group,problem", "c0,A,", "c1,A,", "c2,B,", "c3,,", "unused,Z,no mask"]
    (folder / "cases.csv").write_text("\n".join(rows))
    return folder


NAMES, GROUPS = ("c0", "c1", "c2", "c3"), ("A", "A", "B", None)


def table_of(dice=(0.9, 0.8, 0.7, 0.6), names=NAMES, groups=GROUPS):
    """Scores of cases: the Dice given of the front, and 0.05 less of the back."""
    rows = []
    for number, (case, group, value) in enumerate(zip(names, groups, dice, strict=True)):
        about = {"case": case, "group": group, "fold": number // 2}
        for label, name in LABELS.items():
            row = {**about, "name": name, "label": label, "tolerance_mm": 1.0}
            row.update(dict.fromkeys(METRICS, 1.5))
            row["dice"] = value - 0.05 * (label - 1)
            rows.append(row)
    return pd.DataFrame(rows)


def draw(inches=(4, 3)):
    figure = plt.figure(figsize=inches)
    plt.close(figure)
    figure.add_subplot().plot([0, 1])
    return figure


class _Page(HTMLParser):
    # Text by section, rows of tables, tags with their attributes, and whether all tags are closed.
    EMPTY = ("meta", "img", "link", "br")

    def __init__(self, page):
        super().__init__()
        self.tags, self.opened, self.tables, self.text, self.hidden = [], [], [], [], 0
        self.feed(page)
        assert self.opened == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.opened.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if "style" in self.opened:
            return
        self.text.append(data)
        if self.opened and self.opened[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data

    @property
    def words(self):
        return " ".join("".join(self.text).split())

    def images(self):
        return [attrs for tag, attrs in self.tags if tag == "img"]


def read(path):
    return _Page(path.read_text(encoding="utf-8"))


@functools.cache
def usual_summary():
    return summarise(table_of())


def make(results, table=None, **kwargs):
    summary = usual_summary() if table is None else summarise(table)
    table = table_of() if table is None else table
    given = {"figures": {}, "leaks": NO_LEAKS} | kwargs
    return read(write_report(results, table, summary, **given))


def test_the_report_is_written_where_a_run_has_it(results):
    table = table_of()
    path = write_report(str(results), table, summarise(table), figures={}, leaks=NO_LEAKS)
    assert path == results / "report.html"
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert ("html", {"lang": "en"}) in read(path).tags


def test_two_sentences_tell_what_was_trained_on_what(results):
    words = make(results).words
    assert (
        "A 3-D network (build_unet) learned to label front, back by cross-validation in 2 folds "
        "over 4 cases of 3 patients: every case is scored by the network that had not seen it. "
        "It took 37.8 minutes on 2 cores (AMD EPYC), computing in bfloat16, for 12 epochs in "
        "every fold and the predictions."
    ) in words


def test_the_machine_is_told_as_it_is_known(results):
    change_json(results / "experiment.json", hardware={"gpu": "Tesla T4", "cores": 2})
    change_json(results / "preprocessor.json", patch=[8, 8, 1])
    words = make(results).words
    assert "minutes on a GPU (Tesla T4)," in words
    assert "A 2-D network" in words


def test_what_an_earlier_version_did_not_record_is_said(results):
    path = results / "experiment.json"
    experiment = json.loads(path.read_text())
    for name in ("versions", "hardware", "minutes"):
        del experiment[name]
    path.write_text(json.dumps(experiment))
    words = make(results).words
    assert "It took a time that is not recorded on a machine that is not recorded, comp" in words


def test_without_patients_that_is_said_and_counted_by_case(results):
    (results / "cases.csv").write_text("case,group\nc0,\nc1,\nc2,\nc3,\n")
    words = make(results, table_of(groups=[None] * 4)).words
    assert "over 4 cases (the patients are not known, so each case counts as one):" in words
    assert "bootstrap over cases, as the patients are not known" in words
    assert "bootstrap over patients" in make(results).words


def test_the_first_table_has_dice_and_hd95_of_every_label_by_hand(results):
    first = make(results).tables[0]
    assert first[0] == ["Label", "Score", "Mean", "95 % interval", "SD", "n", *first[0][6:]]
    assert first[0][6:] == ["Failures", "NaN", "inf"]
    assert [len(row) for row in first] == [9, 9, 8, 9, 8]  # the label spans two rows
    # 0.9, 0.8, 0.7, 0.6: mean 0.75, SD sqrt(0.05 / 3) = 0.1291.
    label, score, mean, _, *rest = first[1]
    assert (label, score, mean, rest) == ("front", "Dice", "0.75", ["0.1291", "4", "0", "0", "0"])
    assert first[2] == ["HD95, mm", "1.5", "1.5 to 1.5", "0", "4", "", "0", "0"]
    assert first[3][:3] == ["back", "Dice", "0.7"]


def test_failures_are_counted_and_named_and_what_has_no_number_is_counted(results):
    table = table_of()
    table.loc[0, ["dice", "hd95_mm"]] = 0, INF  # c0, the front
    table.loc[3, ["dice", "hd95_mm"]] = NAN  # c1, the back
    page = make(results, table)
    first = page.tables[0]
    assert first[1][-4:] == ["4", "1", "0", "0"]
    assert first[2][-4:] == ["4", "", "0", "1"]
    assert first[3][-4:] == ["4", "0", "1", "0"]
    assert first[4][-4:] == ["4", "", "1", "0"]
    assert "Failures have a Dice of 0: front in c0." in page.words
    assert page.tables[-2][1][:6] == ["c0", "0", "front", "0", "1.5", "inf"]
    assert page.tables[-2][4][:6] == ["c1", "0", "back", "NaN", "1.5", "NaN"]


def test_the_ten_lowest_scores_stand_before_all_of_them(results):
    dice = np.linspace(0.3, 0.9, 8)
    names = [f"c{k}" for k in range(8)]
    lowest, every = make(results, table_of(dice, names, [None] * 8)).tables[1:3]
    assert len(lowest) == 1 + 10
    assert len(every) == 1 + 16
    values = [float(row[3]) for row in lowest[1:]]
    assert values == sorted(values)
    assert values == pytest.approx(sorted([*dice, *(dice - 0.05)])[:10], abs=1e-4)
    titles = ["Case", "Fold", "Label", "Dice", "Surface Dice", "HD95, mm", "Hausdorff, mm"]
    assert lowest[0] == every[0] == [*titles, "Volume difference, ml"]


def test_figures_are_in_the_page_with_a_text_and_a_caption_that_counts(results):
    figures = {name: draw() for name in report.FIGURES}
    page = make(results, figures=figures)
    assert len(page.images()) == len(report.FIGURES) == 7
    for image in page.images():
        assert image["alt"]
        assert image["width"] == "384"  # 4 inches
        kind, _, data = image["src"].partition(",")
        assert kind == "data:image/png;base64"
        assert plt.imread(io.BytesIO(base64.b64decode(data))).shape[:2] == (450, 600)
    captions = re.findall(r"\(n = [^)]*\)|n = 4 cases", page.words)
    assert captions.count("(n = 2 folds)") == 1
    assert len([text for text in captions if "4 cases" in text]) >= 6
    order = [page.words.index(text) for text in ("All scores:", "Worst, median", "Where does it")]
    assert order == sorted(order)


def test_a_wide_figure_has_no_more_pixels_than_are_seen(results):
    [image] = make(results, figures={"scores": draw((20, 2))}).images()
    data = base64.b64decode(image["src"].partition(",")[2])
    assert plt.imread(io.BytesIO(data)).shape[:2] == (160, 1600)


def test_words_take_the_place_of_a_figure_and_what_is_not_given_is_left_out(results):
    page = make(results, figures={"examples": plots.NOTHING, "volumes": draw()})
    assert "Worst, median and best Nothing to show." in page.words
    assert len(page.images()) == 1
    for title in ("Size", "Labels taken for one another", "How the training went"):
        assert title not in page.words


def test_a_figure_of_another_name_is_refused(results):
    with pytest.raises(ValueError, match=r"figures must be named as in .*Received: .*'score'"):
        make(results, figures={"score": draw()})
    assert not (results / "report.html").exists()


def test_leaks_are_told_at_the_top_and_listed(results):
    leaks = pd.DataFrame([("one patient", "c0", "c2", 0, "of A")], columns=NO_LEAKS.columns)
    page = make(results, leaks=leaks)
    assert page.words.index("1 LEAKS") < page.words.index("A 3-D network")
    titles, row = page.tables[2]
    assert titles == ["Validated", "Trained on", "Fold", "What", "Detail"]
    assert row == ["c0", "c2", "0", "one patient", "of A"]
    words = make(results).words
    assert "LEAKS" not in words
    assert "Leaks No leak found." in words


def test_a_comparison_has_its_main_scores(results):
    table = table_of()
    page = make(results, table, compared=compare(table.assign(dice=table["dice"] - 0.1), table))
    [compared] = [rows for rows in page.tables if "Second" in rows[0]]
    assert len(compared) == 1 + 2 * len(report.SCORES)
    # The other's mean is 0.65 of the front, and this one's 0.75.
    assert compared[1][:5] == ["front", "Dice", "0.65", "0.75", "0.1"]
    for nothing in (None, "Nothing to compare with."):
        assert "Compared" not in make(results, compared=nothing).words


def test_simulated_brains_notes_and_corrected_masks_are_told(results):
    words = make(results).words
    assert "simulated" not in words
    assert "corrected" not in words
    table = table_of()
    table["mask"] = ["corrected since"] * 2 + ["as in training"] * 6
    words = make(results, table, simulated=True, predictions_note="Fold 1 is older.").words
    assert "These brains are simulated. Fold 1 is older. A 3-D network" in words
    assert "1 masks were corrected since training: c0." in words


def test_the_settings_stand_at_the_end_as_names_and_values(results):
    settings = dict(make(results).tables[-1])
    assert settings["recipe.epochs"] == "12"
    assert settings["recipe.steps"] == "null"
    assert settings["model_args.strides"] == "[[2, 2, 2], [2, 2, 2], [2, 2, 2]]"
    assert settings["preprocessor.labels.1"] == "front"
    assert settings["hardware.processor"] == "AMD EPYC"
    assert settings["versions.keras"] == "3.15.1"
    assert settings["minutes"] == "37.8"


def test_the_viewer_is_in_the_page_and_not_printed(results, case, affine):
    image, mask = case
    view = plots.view_case(image, affine, mask, np.roll(mask, 1, axis=1), {1: "front", 4: "back"})
    page = make(results, viewer=view)
    [frame] = [attrs for tag, attrs in page.tags if tag == "iframe"]
    assert "<canvas" in frame["srcdoc"]
    assert ("div", {"class": "viewer"}) in page.tags
    text = (results / "report.html").read_text(encoding="utf-8")
    printed = re.search(r"@media print \{(.*?)\n\}", text, re.DOTALL)[1]
    assert ".viewer { display: none; }" in printed
    fetched = r"""<(?!link[^>]*rel="icon")[a-z]+\b[^>]*\s(?:src|href|data)=["']?(?:https?:)?//"""
    fetched += r"""|@import|url\(["']?(?:https?:)?//"""
    assert re.findall(fetched, text) == re.findall(fetched, frame["srcdoc"]) == []
    for nothing in (None, plots.NOTHING):
        assert "iframe" not in [tag for tag, _ in make(results, viewer=nothing).tags]


@pytest.fixture
def case(make_arrays):
    return make_arrays(labels=(1, 4))


def test_the_page_runs_no_script_of_its_own(results):
    page = make(results, figures={"scores": draw()})
    assert {"script", "link"} & {tag for tag, _ in page.tags} == set()


def test_what_strangers_named_stays_text(results):
    name = "<script>alert(1)</script>&{{ 7 * 7 }}"
    table = table_of(names=[name, "c1", "c2", "c3"]).replace({"name": {"front": name}})
    table.loc[0, "dice"] = 0
    change_json(results / "preprocessor.json", labels={"1": name})
    leaks = pd.DataFrame([(name, name, name, 0, name)], columns=NO_LEAKS.columns)
    page = make(results, table, leaks=leaks, predictions_note=name)
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.tables[1][1][:3] == [name, "0", name]


def test_ids_are_not_broken(results):
    table = table_of(names=["sub-0001_ses-baseline_acq-highres_run-01", "c1", "c2", "c3"])
    page = make(results, table)
    assert page.tables[2][1][0] == "sub-0001_ses-baseline_acq-highres_run-01"
    cells = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "id"]
    assert len(cells) == 2 * 8  # of the lowest, and of all
    text = (results / "report.html").read_text(encoding="utf-8")
    assert ".id, .n { white-space: nowrap; }" in text
    assert "@page { size: A4; margin: 15mm; }" in text
    assert "thead { display: table-header-group; }" in text


def test_an_error_leaves_the_old_report(results):
    (results / "report.html").write_bytes(b"old")
    (results / "splits.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"splits\.json"):
        make(results)
    assert (results / "report.html").read_bytes() == b"old"


def test_the_template_is_in_what_is_installed():
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert '"report.html.j2"' in project
    assert Path(report.__file__).with_name("report.html.j2").is_file()
