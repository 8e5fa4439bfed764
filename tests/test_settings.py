import re
from pathlib import Path

import nbformat
import pytest

from unetseg import settings

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))

UNDERSTOOD = [
    (
        "PATCH",
        (16, 16, 8),
        ["16,16,8", "(16, 16, 8)", "[16 16 8]", "16x16x8", "16 \u00d7 16 \u00d7 8", "16;16;8"],
    ),
    (
        "PATCH",
        (16, 16, 8),
        [[16, 16, 8], (16, 16, 8.0), ' "16, 16, 8" ', "16*16*8"],
    ),
    ("PATCH", None, ["auto", "AUTO", " Auto ", "", "'auto'", None, "None"]),
    ("PLANES", None, ["auto", None]),
    ("DIMENSIONS", None, ["auto", None]),
    ("MIRROR_AXES", None, ["auto", "Auto", None]),
    ("KERNELS", None, ["auto", None]),
    ("SPACING_MM", (1.5, 1.5, 3.0), ["1.5 1.5 3", "[1.5, 1.5, 3]", "1,5; 1,5; 3", "1,5 1,5 3"]),
    ("SPACING_MM", (1.5, 1.5, 3.0), ["1,5, 1,5, 3", "1.5x1.5x3", [1.5, 1.5, 3], "1.5,1.5, 3.0"]),
    ("SPACING_MM", (0.05, 0.05, 0.0004), [".05 .05 4e-4", "0.05,0.05,0.0004"]),
    ("MIRROR_AXES", (), ["none", "None", "[]", "()", []]),
    ("MIRROR_AXES", (0,), ["[0]", "0", 0, "x", "X", (0,)]),
    ("MIRROR_AXES", (0, 1), ["[0, 1]", "0 1", "x, y", "xy", "0;1"]),
    ("PLANES", (2, 0), ["[2, 0]", "z x"]),
    ("DIMENSIONS", 3, ["3", 3, 3.0, "3D", "3d", "3-D", "3 D"]),
    ("DIMENSIONS", 2, ["2d"]),
    ("NORMALISATION", "zscore", ["zscore", "Z-score", "z score"]),
    ("NORMALISATION", None, ["auto", None]),
    ("NORMALISATION", "none", ["none", "None"]),
    ("PRECISION", "mixed_bfloat16", ["bfloat16", "mixed_bfloat16", "BFloat16"]),
    ("PRECISION", "float32", ["float32", "Float-32"]),
    ("PRECISION", None, ["auto", None]),
    ("MODELS", None, ["folds", "Folds", None]),
    ("MODELS", ["final"], ["final", "Final"]),
    ("AVERAGE_OF", ["a_run", "b_run"], ["a_run, b_run", "a_run; b_run"]),
    ("AVERAGE_OF", [], ["", []]),
    ("STEPS", 100, ["100", 100, 100.0, "1e2", "1E2", " 100 "]),
    ("STEPS", None, ["auto", None]),
    ("NEIGHBOURS", 0, ["0", 0]),
    ("FOLDS", 5, ["5", 5, "5.0"]),
    ("DROPOUT", 0.25, ["0.25", "0,25", 0.25, ".25"]),
    ("N_JOBS", -1, ["-1", -1]),
    ("STRIDES", [[2, 2, 1], [2, 2, 2]], ["[[2, 2, 1], [2, 2, 2]]", "(2,2,1), (2,2,2)"]),
    ("STRIDES", [[2, 2, 1], [2, 2, 2]], ["2x2x1 2x2x2", "2,2,1; 2,2,2", [[2, 2, 1], (2, 2, 2)]]),
    ("KERNELS", [[3, 3]], ["[[3, 3]]", "3x3", "3 3"]),
    ("RETRAIN", False, ["false", "False", "FALSE", "no", "off", "0", 0, False, "", None]),
    ("RETRAIN", True, ["true", "True", "yes", "Yes ", "on", "1", 1, True]),
    ("EXPERIMENT", "2024", [2024, "2024", " 2024 "]),
    ("EXPERIMENT", "hirn_é.1-b", ["hirn_é.1-b"]),
    ("DATA", "my scans/Task 04", ["my scans/Task 04 ", "'my scans/Task 04'", "“my scans/Task 04”"]),
    ("GROUPS", r"(patient\d+)_", [r"(patient\d+)_", r'"(patient\d+)_"']),
    ("GROUPS", "my table.csv:patient", ["my table.csv:patient"]),
    ("GROUPS", "patients.txt:who", ["patients.txt:who"]),
    ("GROUPS", "patients.xlsx", ["patients.xlsx"]),  # what is wrong with it its reader says
    ("GROUPS", "", ["", None]),
    ("LOOK_AT", "7", [7, "7"]),
    ("COMPARE_WITH", "", ["", None, " "]),
]


@pytest.mark.parametrize(
    ("name", "meant", "typed"),
    [(n, meant, typed) for n, meant, all_ in UNDERSTOOD for typed in all_],
)
def test_settings_are_understood_as_people_type_them(name, meant, typed):
    value = settings.read(name, typed)
    assert value == meant
    assert type(value) is type(meant)


@pytest.mark.parametrize(
    ("name", "typed"), [(name, typed) for name, _, all_ in UNDERSTOOD for typed in all_]
)
def test_what_was_understood_is_understood_again_as_a_cell_may_run_twice(name, typed):
    meant = settings.read(name, typed)
    again = settings.read(name, meant)
    assert again == meant
    assert type(again) is type(meant)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_settings_of_a_notebook_are_understood_twice_alike(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    (form,) = [cell for cell in cells if re.search(r"^EXPERIMENT = ", cell, re.M)]
    typed = {}
    exec(form, typed)  # of the notebook, which would be run
    settings.update(typed)
    once = dict(typed)
    settings.update(typed)
    assert typed == once


REFUSED = [
    ("PATCH", ["16", "16,16", "16,16,16,16", "16,16,0", "a,b,c", "16.5,16,16", "none", -1, True]),
    ("SPACING_MM", ["1,5 2", "1,1,-1", "1", "1,000 1,000 1", "nan 1 1", "inf,1,1", "none"]),
    ("MIRROR_AXES", ["3", "-1", "0,0", "left", "0.5", True, "[0, 1, 2, 0]", "01"]),
    ("PLANES", ["none", "[]", "0 1 2"]),
    ("DIMENSIONS", ["4", "2.5", "both", 1]),
    ("NORMALISATION", ["min-max", "1"]),
    ("PRECISION", ["half", "16", "none"]),
    ("STEPS", ["many", "1,000", "1.000", "1.5", 0, "-3", "none", True, "1e400"]),
    ("BATCH_SIZE", [0, "two"]),
    ("DEPTH", ["0", "deep"]),
    ("NEIGHBOURS", [-1, "none"]),
    ("FOLDS", [1, "one", "", "auto", "5 folds", None, True, "2.5"]),
    ("SEED", [-1, 2**32, "x"]),
    ("EPOCHS", [0, "-5", ""]),
    ("FILTERS", [0, "auto"]),
    ("DROPOUT", [1, -0.1, "much", "nan"]),
    ("N_JOBS", [0, "all", ""]),
    ("TOLERANCE_MM", [-1, "1 mm", "1,000", float("inf")]),
    ("STRIDES", ["2", "[[2, 2, 1], [2, 2]]", "[[0, 2, 2]]", "a [2,2,2]", "[]"]),
    ("KERNELS", ["3", "[3]", "none"]),
    ("RETRAIN", ["maybe", "2", "folds"]),
    ("ALLOW_LEAKS", ["perhaps"]),
    ("REPORT", ["html"]),
    ("PROBABILITIES", ["some"]),
    ("EXPERIMENT", ["", "my run", "a/b", "..", "a\\b", "-"]),
    ("DATA", ["", None, "  "]),
    ("SCANS", [""]),
    ("RESULTS", [""]),
    ("GROUPS", ["patient", "(patient", "[a-z", "*"]),
]


@pytest.mark.parametrize(("name", "typed"), [(n, typed) for n, all_ in REFUSED for typed in all_])
def test_what_is_not_understood_is_refused_by_its_name_with_an_example(name, typed):
    words = f"{name} must be .*, for example .*{re.escape(repr(typed))}"
    with pytest.raises(ValueError, match=words):
        settings.read(name, typed)


@pytest.mark.parametrize("name", settings.SETTINGS)
def test_the_examples_are_understood(name):
    for example in settings.SETTINGS[name].examples:
        settings.read(name, example)


def parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    [cell] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    names = {}
    exec(cell.source, names)  # literals alone, as another test makes sure
    return {name: value for name, value in names.items() if name.isupper()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_setting_of_a_notebook_is_known_and_read_before_anything_else(path):
    typed = parameters(path)
    assert {*settings.read_all(typed)} == {*typed}
    cells = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    [number] = [n for n, source in enumerate(cells) if "settings.update(globals())" in source]
    assert number == 2  # after the set-up and the settings
    assert cells[2].index("settings.update(") < cells[2].index("workspace.prepare(")


def test_no_setting_is_known_that_no_notebook_has():
    assert set().union(*(parameters(path) for path in NOTEBOOKS)) == {*settings.SETTINGS}


def test_other_names_are_passed_over_but_not_one_that_is_nearly_a_setting():
    typed = {"EPOCHS": "5", "PROJECT": "MyDrive/unetseg", "pd": re, "In": [], "X": 1}
    assert settings.read_all(typed) == {"EPOCHS": 5}
    for wrong, right in (
        ("EPOCH", "EPOCHS"),
        ("MIRROR_AXIS", "MIRROR_AXES"),
        ("LOOKAT", "LOOK_AT"),
    ):
        with pytest.raises(ValueError, match=f"{wrong}: no such setting. Did you mean {right}"):
            settings.read_all(typed | {wrong: 1})


def test_what_was_typed_is_replaced_in_place_or_not_at_all():
    typed = {"EPOCHS": "5", "PATCH": "16x16x8", "other": "5"}
    settings.update(typed)
    assert typed == {"EPOCHS": 5, "PATCH": (16, 16, 8), "other": "5"}
    wrong = {"EPOCHS": "5", "FOLDS": "one"}
    with pytest.raises(ValueError, match="FOLDS must be a whole number"):
        settings.update(wrong)
    assert wrong == {"EPOCHS": "5", "FOLDS": "one"}


@pytest.mark.parametrize(
    ("experiment", "data", "name"),
    [
        ("", "sample", "sample"),
        ("", "/scans/Task04/", "Task04"),
        ("", "/my scans é/Task 04", "Task_04"),
        ("", "/a/it's (1) $x", "it_s__1___x"),
        ("", "/a/hôpital", "hôpital"),
        ("mine", "/scans/Task04", "mine"),
    ],
)
def test_an_experiment_is_named_after_its_data_if_it_has_no_name(experiment, data, name):
    assert settings.name_experiment(experiment, data) == name


@pytest.mark.parametrize(("experiment", "data"), [("my run", "sample"), ("", "/")])
def test_a_name_that_will_not_do_is_refused(experiment, data):
    with pytest.raises(ValueError, match="EXPERIMENT must be a plain name"):
        settings.name_experiment(experiment, data)


def test_a_name_that_is_not_there_is_refused_with_the_nearest():
    names = ["sub-01_ses-1", "sub-01_ses-2", "other"]
    assert settings.find_name("LOOK_AT", "other", names, "case") == "other"
    assert settings.find_name("LOOK_AT", "", [], "case") == ""
    with pytest.raises(
        ValueError, match=r"LOOK_AT must be the name of a case, of 3, .*sub-01_ses-1"
    ):
        settings.find_name("LOOK_AT", "sub-01", names, "case")
    with pytest.raises(ValueError, match="of 0, for example: none"):
        settings.find_name("COMPARE_WITH", "x", [], "scored experiment")
