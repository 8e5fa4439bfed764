"""What cells of the notebooks call to choose, to say and to show."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from unetseg import cases, charts, digits, nifti, plots, reliability, scores, splits, survey
from unetseg._base import write_json
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run
from unetseg.workspace import Workspace

NAN = float("nan")
LABELS = {1: "front", 2: "back"}


def table_of(dices):
    rows = [(c, label, d) for c, pair in dices.items() for label, d in zip("fb", pair, strict=True)]
    return pd.DataFrame(rows, columns=["case", "name", "dice"]).assign(hd95_mm=1.0)


DICES = {"a": (0.9, 0.5), "b": (1.0, 0.8), "c": (0.0, 0.2), "d": (NAN, NAN), "e": (0.8, NAN)}


@pytest.mark.parametrize(
    ("also", "rows"),
    [
        ("", []),
        ("c", []),
        ("a", [("also", "a", 0.7)]),
        ("d", [("also", "d", NAN)]),
    ],
)
def test_the_worst_the_median_and_the_best_case_are_chosen_and_one_more(also, rows):
    chosen = scores.choose_examples(table_of(DICES), also)
    # Means: b 0.9, e 0.8, a 0.7, c 0.1; of four the third is taken.
    first = [("failure", "c", 0.1), ("median", "a", 0.7), ("best", "b", 0.9)]
    expected = first if also == "a" else [*first, *rows]
    assert list(chosen.columns) == ["which", "case", "mean_dice"]
    assert chosen[["which", "case"]].to_numpy().tolist() == [[w, c] for w, c, _ in expected]
    np.testing.assert_allclose(chosen["mean_dice"], [dice for *_, dice in expected])


def test_of_one_case_all_examples_are_the_same_and_of_none_there_is_none():
    chosen = scores.choose_examples(table_of({"a": (0.9, 0.5)}))
    assert chosen["case"].tolist() == ["a", "a", "a"]
    assert scores.choose_examples(table_of({"a": (NAN, NAN)})).empty


def test_failures_are_counted_and_named():
    rule = "(Dice under 0.5 or HD95 over 30 mm)"
    assert scores.describe_failures(table_of({"a": (0.9, NAN)})) == f"0 failures {rule}."
    assert scores.describe_failures(table_of(DICES)) == f"2 failures {rule}: c (f), c (b)."
    both = table_of({"a": (0.49, 0.5), "b": (0.5, 0.0)})
    assert scores.describe_failures(both) == f"2 failures {rule}: a (f), b (b)."
    far = table_of({"a": (0.9, 0.8)}).assign(hd95_mm=[30, 31])
    assert scores.describe_failures(far) == f"1 failure {rule}: a (b)."


def test_without_another_experiment_there_is_nothing_to_compare():
    assert scores.compare_with(None, table_of(DICES)) == "Nothing to compare with."


def test_a_summary_is_shown_in_short_or_said_to_be_missing(tmp_path):
    known = scores.load_summary(tmp_path)
    assert scores.show_summary(known) == "Not scored yet: run notebook 3."
    rows = [("front", metric, 3, 0.5, 0.1, 0.6, 0, 1) for metric in ("dice", "assd_mm", "hd95_mm")]
    columns = ["name", "metric", "n", "mean", "sd", "median", "nan", "inf"]
    summary = pd.DataFrame(rows, columns=columns).assign(label=1)
    shown = scores.show_summary(summary)
    assert list(shown.columns) == columns
    assert shown["metric"].tolist() == ["dice", "hd95_mm"]


def test_leaks_are_counted_in_words():
    assert splits.describe_leaks(pd.DataFrame()) == "No leak found."
    words = "2 LEAKS: these scores are too good."
    assert splits.describe_leaks(pd.DataFrame({"case": ["a", "b"]})) == words


def test_cases_and_patients_of_the_folds_are_counted():
    patients = {"a": "x", "b": "x", "c": "y", "d": None}
    found = [cases.Case(case_id, None, group=who) for case_id, who in patients.items()]
    folds = [{"train": ["c"], "val": ["a", "b", "d"]}, {"train": ["a", "b", "d"], "val": ["c"]}]
    counted = splits.count_cases(folds, found)
    assert list(counted.columns) == ["train cases", "validation cases", "validation patients"]
    assert counted.to_numpy().tolist() == [[1, 3, 2], [3, 1, 1]]


def test_the_calibration_of_the_finished_folds_is_pooled(tmp_path):
    assert reliability.read_calibration(tmp_path) == {}
    assert charts.reliability_curves({}, {}) == "Trained before this was counted."
    run = Run(tmp_path)
    for number, (n, right) in enumerate(((10, 0.5), (30, 0.9), (60, 0.1))):
        fold = run.fold(number)
        fold.folder.mkdir()
        row = {"bin": 7, "n": n, "confidence": 0.75, "accuracy": right}
        rows = [{"stage": "as trained"} | row, {"stage": "calibrated"} | row | {"accuracy": 0.75}]
        pd.DataFrame(rows).to_csv(fold.calibration, index=False)
        if number < 2:
            write_json(fold.done, {})
    tables = reliability.read_calibration(tmp_path)
    assert [*tables] == ["as trained", "calibrated"]
    # 10 voxels of which 5 are right and 30 of which 27 are: 32 of 40.
    np.testing.assert_allclose(tables["as trained"].to_numpy(), [[7, 40, 0.75, 0.8]])
    np.testing.assert_allclose(tables["calibrated"].to_numpy(), [[7, 40, 0.75, 0.75]])


@pytest.fixture
def views(make_data):
    found = cases.find_cases(make_data(2))
    return {case.id: cases.view(case, case.mask) for case in found}


def test_a_view_is_picked_by_its_id_or_is_the_first(views):
    assert cases.pick(views, "case_01") is views["case_01"]
    assert cases.pick(views) is cases.pick(views, "other") is views["case_00"]


def test_without_a_view_there_are_words_in_the_place_of_pictures():
    view = cases.pick({}, "case_01")
    assert view.title == "Nothing to show."
    shown = plots.view_case(view.image, view.affine, *view.masks, LABELS)
    assert shown == plots.show_cases([], [], LABELS, maps=[]) == "Nothing to show."


def test_views_are_shown_as_they_are(views):
    spacings = [view.spacing_mm for view in views.values()]
    figure = plots.show_cases([*views.values()], spacings, LABELS)
    assert [axes.get_ylabel() for axes in figure.axes[::3]] == ["case_00", "case_01"]
    plt.close(figure)


def test_a_view_takes_masks_from_files_and_arrays(make_data):
    [case] = cases.find_cases(make_data(1))
    own = np.ones((8, 10, 6), np.uint8)
    view = cases.view(case, case.mask, own, title="a title")
    assert (view.id, view.title) == ("case_00", "a title")
    assert [np.count_nonzero(mask) for mask in view.masks] == [36 + 24, 480]
    assert view.masks[1] is own


def test_of_what_nobody_drew_no_mask_is_shown(make_data):
    [case] = cases.find_cases(make_data(1))
    truth, _ = nifti.load_mask(case.mask)
    drawn = np.full(truth.shape, 1)
    shown = cases.view(case, case.mask, drawn, ignore=2).masks
    np.testing.assert_array_equal(shown[0], truth * (truth != 2))
    np.testing.assert_array_equal(shown[1], truth != 2)
    assert not plots._differences(*shown)[truth == 2].any()


def test_what_a_network_sees_and_what_the_way_back_costs(make_data):
    found = cases.find_cases(make_data(2))
    views = [cases.view(case, case.mask) for case in found]
    fitted = Preprocessor(spacing_mm=(1, 2, 3), labels=LABELS).fit(found)
    seen, back = survey.try_out(fitted, found, views)
    assert seen.index.tolist() == back.index.tolist() == ["case_00", "case_01"]
    assert list(seen.columns) == ["shape", "mean", "SD", "lowest", "highest"]
    assert list(back.columns) == ["front", "back"]
    np.testing.assert_allclose(back, 1)  # nothing was resampled
    coarse = Preprocessor(spacing_mm=(4, 8, 12), labels=LABELS).fit(found)
    assert (survey.try_out(coarse, found, views)[1] < 1).all(axis=None)


def test_tables_are_shown_with_the_digits_that_count():
    names = "display.float_format", "display.max_colwidth"
    before = [pd.get_option(name) for name in names]
    try:
        digits.show_tables()
        shown = str(pd.DataFrame({"ml": [1234.5678, 0.0000123456], "why": ["", "words " * 20]}))
    finally:
        for name, value in zip(names, before, strict=True):
            pd.set_option(name, value)
    for text in ("1235", "0.00001235", "words " * 19 + "words"):
        assert text in shown


def test_the_training_of_a_published_experiment_is_told_from_its_own_files(tmp_path):
    place = Workspace(tmp_path, Path(__file__).parent.parent / "results" / "hippocampus")
    table = place.describe_training()
    assert table.columns.tolist() == ["hippocampus"]
    told = table["hippocampus"]
    written = json.loads((place.results / "experiment.json").read_text())
    for part in (written["settings"]["recipe"], written["hardware"], written["versions"]):
        known = {name: str(value) for name, value in part.items() if value is not None}
        known.pop("precision", None)  # "auto" was asked for
        known.pop("batch_size", None)
        assert known.items() <= told.to_dict().items()
    assert told[["folds", "minutes"]].tolist() == ["5", str(written["minutes"])]
    assert told["precision"] == written["precision"]
    assert "steps" not in told  # it was left open
    assert place.read_experiment() == written


@pytest.mark.parametrize(
    ("asked", "planned", "told"),
    [
        ({"steps": 70, "minutes": None}, {}, {"steps": "70"}),
        (
            {"steps": None, "minutes": 2.5},
            {"steps": 90},
            {"steps": "90", "minutes a fold, as asked": "2.5"},
        ),
    ],
)
def test_steps_are_told_as_they_were_asked_for_or_planned(tmp_path, asked, planned, told):
    published = Path(__file__).parent.parent / "results" / "hippocampus"
    experiment = json.loads((published / "experiment.json").read_text())
    experiment["settings"]["recipe"].update(asked)
    write_json(tmp_path / "experiment.json", experiment | planned)
    write_json(tmp_path / "splits.json", json.loads((published / "splits.json").read_text()))
    table = Workspace(tmp_path, tmp_path).describe_training().iloc[:, 0]
    assert told.items() <= table.to_dict().items()
    assert table["minutes"] == str(experiment["minutes"])


def test_the_new_scans_of_the_sample_are_of_other_people(tmp_path, capsys):
    place = Workspace(tmp_path / "sample", tmp_path / "results", simulated=True)
    scans = place.find_scans()
    assert {scan.id for scan in scans} == {"sub-101_ses-1", "sub-101_ses-2", "sub-102_ses-1"}
    assert capsys.readouterr().out == "These brains are simulated.\n"
    assert not (tmp_path / "sample").exists()
    assert place.choose_batch(scans).folder == tmp_path / "results" / "new_scans" / "sample_others"


CELL = """
import os
from unetseg import workspace
from unetseg import packages
os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)
packages.install_missing()
print(os.environ["TF_CPP_MIN_LOG_LEVEL"], workspace.name_hardware() != "")
print(*workspace.list_versions().index)
"""


def test_the_set_up_silences_tensorflow_and_versions_and_hardware_are_told():
    call = [sys.executable, "-c", CELL]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said[0] == "3 True"
    assert {"python", "keras", "numpy", "unetseg"} <= {*said[1].split()}
