"""Fields of a recipe."""

import json

import pytest

from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe, make_plan, plan_batch, record_settings
from unetseg.training import cross_validate


def test_the_defaults_fit():
    assert (Recipe().epochs, Recipe().precision) == (12, "auto")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("learning_rate", 0.0),
        ("learning_rate", -1.0),
        ("weight_decay", -1.0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("averaging", 1.5),
        ("foreground", -0.5),
        ("precision", "float16"),
    ],
)
def test_a_bad_field_of_the_recipe_is_refused_by_name_before_anything_is_read(
    tmp_path, field, value
):
    words = rf"{field} must be .*Received: {field}='?{value}'?"
    with pytest.raises(ValueError, match=words):
        Recipe(**{field: value})
    with pytest.raises(ValueError, match=words):
        cross_validate([], tmp_path / "results", **{field: value})
    assert not (tmp_path / "results").exists()


def test_a_misspelt_field_of_the_recipe_is_refused(cases, tmp_path):
    with pytest.raises(TypeError, match="epoch"):
        cross_validate(cases, tmp_path / "results", epoch=3)


def test_a_plan_lists_its_levels_from_the_finest_down():
    settings = Preprocessor((1, 1, 3), (40, 40, 10), {1: "a"}, 1, "none", 3, ())
    model_args = {"strides": [(2, 2, 1), (2, 2, 2)], "kernels": [(3, 3, 1)] + 2 * [(3, 3, 3)]}
    levels = make_plan(settings, model_args=model_args).list_levels()
    assert levels["kernel"].tolist() == model_args["kernels"]
    assert levels["then shrunk by"].tolist() == [*model_args["strides"], None]


@pytest.mark.parametrize(
    ("patch", "budget", "batch"),
    [
        ((40, 56, 40), 10**9, 1),  # 89,600 voxels
        ((40, 56, 1), 10**9, 22),  # 2,240: 22 of them have 49,280
        ((40, 56, 1), 25_000, 11),  # what little memory bears
        ((128, 128, 128), 10**9, 1),
    ],
)
def test_small_patches_make_larger_batches(patch_budget, patch, budget, batch):
    patch_budget(budget)
    assert plan_batch(patch) == batch


@pytest.mark.parametrize(("count", "batch"), [(0, 11), (1, 11), (2, 12), (4, 12), (16, 16)])
def test_the_automatic_batch_is_a_multiple_of_the_gpus(gpus, patch_budget, count, batch):
    patch_budget(25_000)
    gpus(count)
    assert plan_batch((40, 56, 1)) == batch


@pytest.mark.parametrize("field", ["warmup", "averaging", "foreground"])
def test_shares_may_be_0(field):
    assert getattr(Recipe(**{field: 0}), field) == 0


SETTINGS = {"epochs": 15, "model": {"filters": 16, "patch": (8, 16, 8)}, "labels": {1: "a"}}
RUN = {"precision": "float32"}


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "settings.json"  # of a name that has no schema
    record_settings(path, SETTINGS, RUN)
    return path


def test_settings_are_written_down_beside_the_run(experiment):
    assert json.loads(experiment.read_text()) == {
        "settings": {
            "epochs": 15,
            "model": {"filters": 16, "patch": [8, 16, 8]},
            "labels": {"1": "a"},
        },
        "precision": "float32",
    }


@pytest.mark.parametrize("patch", [(8, 16, 8), [8, 16, 8]])
def test_the_same_settings_are_accepted_and_the_file_is_kept(experiment, patch):
    before = experiment.read_bytes()
    again = {**SETTINGS, "model": {"patch": patch, "filters": 16}}
    record_settings(experiment, again, {"precision": "mixed_bfloat16"})
    assert experiment.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epochs": 30}, "epochs: 15 there, 30 now"),
        ({"model": {**SETTINGS["model"], "filters": 8}}, "model.filters: 16 there, 8 now"),
        ({"labels": {1: "b"}}, "labels.1: a there, b now"),
        (
            {"model": {**SETTINGS["model"], "patch": (8, 8, 8)}},
            "model.patch: [8, 16, 8] there, [8, 8, 8] now",
        ),
        ({"seed": 3}, "seed: None there, 3 now"),
    ],
)
def test_other_settings_are_refused_with_what_differs_and_nothing_else(experiment, change, line):
    before = experiment.read_bytes()
    with pytest.raises(ValueError) as error:
        record_settings(experiment, SETTINGS | change, RUN)
    listed = [row.strip() for row in str(error.value).splitlines()[1:-1]]
    assert listed == [line]
    assert str(experiment) in str(error.value)
    assert experiment.read_bytes() == before


def test_a_setting_that_is_gone_is_listed(experiment):
    fewer = {key: value for key, value in SETTINGS.items() if key != "epochs"}
    with pytest.raises(ValueError, match="epochs: 15 there, None now"):
        record_settings(experiment, fewer, RUN)
