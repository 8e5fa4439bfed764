"""What a results folder holds is not trusted: its JSON files have types and ranges."""

import copy
import json

import pytest

from unetseg import _base
from unetseg.run import layout

RECIPE = {"epochs": 12, "steps": None, "warmup": 0.05, "augment": True, "precision": "auto"}
PREPROCESSOR = {
    "spacing_mm": [1.0, 1.0, 3.0],
    "patch": [40, 56, 40],
    "labels": {"1": "front", "200": "back"},
    "channels": 1,
    "normalisation": "zscore",
    "dimensions": 3,
    "mirror_axes": [0],
    "neighbours": 0,
    "planes": [],
}
UNET = {"filters": 16, "depth": 1, "dropout": 0.0, "strides": [[2, 2, 2]], "kernels": [[3, 3, 3]]}
SETTINGS = {"model_args": UNET, "preprocessor": PREPROCESSOR, "recipe": RECIPE, "seed": 1}
FINGERPRINT = {"sha256": "0" * 64, "bytes": 5, "mtime_ns": 10**18}
FILES = {
    "preprocessor.json": PREPROCESSOR,
    "experiment.json": {
        "settings": {"builder": "unetseg.model.build_unet", **SETTINGS},
        "precision": "float32",
        "batch_size": 1,
        "versions": {"keras": "3.15.1"},
        "hardware": {"cores": 2, "gpu": None},
    },
    "splits.json": [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}],
    "done.json": {
        "weights_sha256": "0" * 64,
        "minutes": 1.5,
        "temperature": 1.2,
        "train": ["a"],
        "val": ["c"],
        "predictions_sha256": {"c.nii.gz": "0" * 64},
        "masks_sha256": {"c.nii.gz": "0" * 64},
        "inputs": {"a": {"scan": [FINGERPRINT, FINGERPRINT], "mask": FINGERPRINT}},
    },
    "fitted_on.json": {"a": {"scan": ["0" * 64], "mask": None}},
    "hashes.json": {"fold_0/model.weights.h5": "0" * 64},
    "source.json": {"source": "my scans/images"},
    "running.json": {"host": "here", "pid": 5, "time": 1.5e9},
}
NUMBERS = {"volume_ml": 0.288, "volume_sd_ml": None, "agreement": 0.9, "seconds": 2}
PREDICTION = {  # of one scan; the file is named after it
    "about": {"models": ["0" * 64], "maps": [], "settings": {"overlap": 0.5}, "scan": ["1" * 64]},
    "labels_sha256": "2" * 64,
    "rows": [{"case": "a b", "label": 5, "name": "five", "problem": "", **NUMBERS}],
}


def change(value, place, new):
    """Put something else at a place such as ``settings.recipe.epochs``; None in `new` drops it."""
    value = copy.deepcopy(value)
    *folders, last = place.split(".") if place else [None]
    inner = value
    for name in folders:
        inner = inner[int(name) if name.isdecimal() else name]
    if last is None:
        return new
    inner[int(last) if last.isdecimal() else last] = new
    return value


@pytest.mark.parametrize("name", FILES)
def test_what_a_run_writes_is_read(name, tmp_path):
    (tmp_path / name).write_text(json.dumps(FILES[name]))
    assert layout.read_json(tmp_path / name) == FILES[name]


@pytest.mark.parametrize(
    ("name", "place", "new"),
    [
        ("preprocessor.json", "", []),
        ("preprocessor.json", "spacing_mm", "1, 1, 1"),
        ("preprocessor.json", "spacing_mm", [1.0, 1.0]),
        ("preprocessor.json", "spacing_mm", [1.0, 0, 1.0]),
        ("preprocessor.json", "patch", [40, 56, 0.5]),
        ("preprocessor.json", "patch", [10**9, 56, 40]),
        ("preprocessor.json", "labels", ["front"]),
        ("preprocessor.json", "labels.0", "background"),
        ("preprocessor.json", "labels.one", "front"),
        ("preprocessor.json", "labels.1", {"name": "front"}),
        ("preprocessor.json", "channels", True),
        ("preprocessor.json", "normalisation", "__import__('os')"),
        ("preprocessor.json", "mirror_axes", [3]),
        ("preprocessor.json", "mirror_axes", [0, 0]),
        ("preprocessor.json", "neighbours", -1),
        ("preprocessor.json", "unknown", 1),
        ("experiment.json", "settings", None),
        ("experiment.json", "settings.recipe.epochs", 0),
        ("experiment.json", "settings.recipe.warmup", 1),
        ("experiment.json", "settings.recipe.unknown", 1),
        ("experiment.json", "settings.recipe.precision", "float128"),
        ("experiment.json", "settings.model_args.filters", 10**6),
        ("experiment.json", "settings.model_args.depth", 10**6),
        ("experiment.json", "settings.model_args.strides", [[2, 2, 2]] * 17),
        ("experiment.json", "settings.model_args.name", "x"),
        ("experiment.json", "settings.preprocessor.channels", 0),
        ("experiment.json", "settings.seed", -1),
        ("experiment.json", "minutes", -1),
        ("experiment.json", "minutes", "10"),
        ("experiment.json", "versions.keras", ["3.15.1"]),
        ("experiment.json", "batch_size", 2**40),
        ("splits.json", "", {}),
        ("splits.json", "", []),
        ("splits.json", "0", ["a"]),
        ("splits.json", "0", {"train": ["a"]}),
        ("splits.json", "0.val", "c"),
        ("splits.json", "0.val", []),
        ("splits.json", "0.val", [1]),
        ("splits.json", "0.val", ["c", "c"]),
        ("splits.json", "0.val", ["../../elsewhere/c"]),
        ("splits.json", "0.val", ["/etc/c"]),
        ("splits.json", "0.val", ["..\\c"]),
        ("splits.json", "0.val", ["c\n"]),
        ("splits.json", "0.val", ["c\0"]),
        ("splits.json", "0.val", [""]),
        ("done.json", "weights_sha256", None),
        ("done.json", "weights_sha256", "0" * 64 + "\n"),
        ("done.json", "minutes", None),
        ("done.json", "train", ["../a"]),
        ("done.json", "steps", 0.5),
        ("done.json", "temperature", 0),
        ("done.json", "temperature", "1"),
        ("done.json", "predictions_sha256", ["0" * 64]),
        ("done.json", "masks_sha256.c", 7),
        ("done.json", "inputs", []),
        ("done.json", "inputs.a", {"scan": [FINGERPRINT]}),
        ("done.json", "inputs.a.scan", []),
        ("done.json", "inputs.a.scan.0", "0" * 64),
        ("done.json", "inputs.a.mask.bytes", -1),
        ("done.json", "inputs.a.mask.mtime_ns", "1"),
        ("done.json", "inputs.a.mask.sha256", "x"),
        ("fitted_on.json", "a.scan", []),
        ("fitted_on.json", "a.mask", "x"),
        ("hashes.json", "", ["0" * 64]),
        ("hashes.json", "cases_csv", "0" * 63),
        ("hashes.json", "cases_csv", None),
        ("running.json", "pid", -1),
        ("running.json", "pid", "5"),
        ("running.json", "time", None),
    ],
)
def test_what_no_run_writes_is_refused_with_file_and_place(name, place, new, tmp_path):
    (tmp_path / name).write_text(json.dumps(change(FILES[name], place, new)))
    with pytest.raises(ValueError) as caught:
        layout.read_json(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: at $")
    assert len(str(caught.value)) < 700
    assert str(caught.value).endswith("Correct it, or fetch it again.")


@pytest.mark.parametrize("missing", ["settings", "precision", "batch_size"])
def test_an_experiment_without_what_is_needed_is_refused(missing, tmp_path):
    path = tmp_path / "experiment.json"
    path.write_text(json.dumps({k: v for k, v in FILES[path.name].items() if k != missing}))
    with pytest.raises(ValueError, match=f"experiment.json: at .*{missing}"):
        layout.read_json(path)


def test_the_arguments_of_another_builder_are_its_own(tmp_path):
    own = change(FILES["experiment.json"], "settings.builder", "mine.build")
    own["settings"]["model_args"] = {"width": 10**6}
    (tmp_path / "experiment.json").write_text(json.dumps(own))
    assert layout.read_json(tmp_path / "experiment.json") == own


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"minutes": NaN}', '{"minutes": -Infinity}', "\ufeff"]
)
def test_what_is_no_json_is_refused_by_name(text, tmp_path):
    path = tmp_path / "any.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"any\.json: not valid JSON"):
        layout.read_json(path)


def test_bytes_that_are_no_text_are_refused_by_name(tmp_path):
    path = tmp_path / "any.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"any\.json: not valid JSON"):
        layout.read_json(path)


def test_a_file_is_checked_as_what_it_is_said_to_be(tmp_path):
    path = tmp_path / "renamed.json"
    path.write_text("[]")
    assert layout.read_json(path) == []
    with pytest.raises(ValueError, match=r"renamed\.json: at \$"):
        layout.read_json(path, "preprocessor.json")


def test_what_was_predicted_is_read(tmp_path):
    path = tmp_path / "a b.json"
    _base.write_json(path, PREDICTION)
    assert layout.read_json(path, "prediction") == PREDICTION


@pytest.mark.parametrize(
    ("place", "new"),
    [
        ("", []),
        ("", {}),
        ("", {key: PREDICTION[key] for key in ("about", "rows")}),
        ("about", None),
        ("about", ["0" * 64]),
        ("labels_sha256", None),
        ("labels_sha256", ""),
        ("labels_sha256", "x" * 64),
        ("rows", None),
        ("rows", []),
        ("rows", {}),
        ("rows", PREDICTION["rows"] * 256),
        ("rows.0", "a"),
        ("rows.0", {"case": "a", "problem": "gone"}),
        ("rows.0.case", "../a"),
        ("rows.0.case", 7),
        ("rows.0.label", "5"),
        ("rows.0.label", 5.5),
        ("rows.0.label", None),
        ("rows.0.name", None),
        ("rows.0.problem", None),
        ("rows.0.volume_ml", "0.288"),
        ("rows.0.agreement", [0.9]),
        ("rows.0.seconds", True),
        ("rows.0.unknown", {}),
    ],
)
def test_what_was_not_predicted_is_refused_with_file_and_place(place, new, tmp_path):
    path = tmp_path / "a b.json"
    path.write_text(json.dumps(change(PREDICTION, place, new)))
    with pytest.raises(ValueError) as caught:
        layout.read_json(path, "prediction")
    assert str(caught.value).startswith(f"{path}: at $")
    assert str(caught.value).endswith("Correct it, or fetch it again.")


def test_finished_folds_are_read_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "read_json", lambda path: json.loads(path.read_text()))
    run = layout.Run(tmp_path)
    for number in (10, 9, 2):
        run.fold(number).folder.mkdir()
        run.fold(number).done.write_text(f"{number}")
    run.fold(3).folder.mkdir()
    run.fold(3).history.write_text("not finished")
    assert [*run.read_finished().items()] == [(run.fold(n), n) for n in (2, 9, 10)]
    assert [*run.read_finished([10, 2]).values()] == [10, 2]
    with pytest.raises(FileNotFoundError, match=r"fold_3, fold_4 is not finished\. Run 02"):
        run.read_finished([2, 3, 4])
    with pytest.raises(FileNotFoundError, match=r"final is not finished\. .*, with FINAL first"):
        run.read_finished(["final"])
