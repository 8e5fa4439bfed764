import json

import pytest

from unetseg import cases
from unetseg.preprocessing import Preprocessor
from unetseg.reading import description


def describe(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("dialect", ["nnU-Net", "Decathlon"])
def test_the_label_to_ignore_is_among_the_names(dialect, tmp_path):
    labels = {"background": 0, "lesion": 1, "ignore": 2}
    if dialect == "Decathlon":
        labels = {str(value): key for key, value in labels.items()}
    describe(tmp_path, labels=labels)
    names = description.read_label_names(tmp_path)
    assert names == {1: "lesion", 2: "ignore"}
    preprocessor = Preprocessor(labels=names)
    assert (preprocessor.labels, preprocessor.ignore) == ({1: "lesion"}, 2)


BRATS = {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}


@pytest.mark.parametrize("more", [{}, {"regions_class_order": [1, 2, 3]}])
def test_regions_are_sets_of_labels(more, tmp_path):
    """As nnU-Net's documentation writes those of BraTS."""
    describe(tmp_path, labels={**BRATS, "ignore": 4}, **more)
    regions = {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert description.read_regions(tmp_path) == regions
    names = description.read_label_names(tmp_path)
    assert names == {1: "label 1", 2: "label 2", 3: "enhancing", 4: "ignore"}


def test_what_a_data_set_declares_is_found_beside_the_masks_of_its_cases(make_data):
    first, second = (make_data(2, name=name) for name in ("first", "second"))
    found = cases.find_cases(first)
    assert description.read_declared(found) == {}
    describe(first, labels=BRATS)
    declared = description.read_declared(found)
    assert declared["labels"] == {1: "label 1", 2: "label 2", 3: "enhancing"}
    assert declared["regions"]["core"] == (2, 3)
    assert description.read_declared([*found, *cases.find_cases(second)]) == {}


def test_without_lists_there_are_no_regions(tmp_path):
    assert description.read_regions(tmp_path) == {}
    describe(tmp_path, labels={"background": 0, "core": 1})
    assert description.read_regions(tmp_path) == {}


@pytest.mark.parametrize("values", [[0, 1], ["1"], [1.5], [True]])
def test_a_region_of_something_else_is_refused_by_name(values, tmp_path):
    describe(tmp_path, labels={"background": 0, "tumour": values, "core": 2})
    with pytest.raises(ValueError, match=r"dataset\.json: 'tumour' = .*whole numbers above 0"):
        description.read_regions(tmp_path)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({"background": 1, "lesion": 0}, "value of the background: 'lesion' = 0"),
        ({"lesion": 0, "core": 1}, "'lesion' = 0. Value 0 is always the background"),
        ({"0": "lesion", "1": "core"}, "'lesion' = 0"),
        ({"background": 1, "lesion": 2}, "named as the background, but not 0: 'background' = 1"),
        ({"0": "background", "1": "Background"}, "'Background' = 1"),
        ({"background": 0, "lesion": 1, "core": 1}, "share a value.*: lesion, core. Give each"),
        ({"1": "lesion", "2": "lesion"}, "names stand for several labels: lesion"),
        ({"lesion": 1.5}, "one whole number each"),
        ({"lesion": True}, "one whole number each"),
        ({"lesion": None}, "one whole number each"),
        ({"lesion": "1.9"}, "one whole number each"),
    ],
)
def test_labels_that_contradict_are_refused_by_name(labels, words, tmp_path):
    describe(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{words}"):
        description.read_label_names(tmp_path)


def test_a_label_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": {"lesion": 1, "lesion": 2}}')
    with pytest.raises(ValueError, match=r"dataset\.json: .*'lesion' stands there twice"):
        description.read_label_names(tmp_path)


@pytest.mark.parametrize("zero", ["background", "Background", "BG", "Clear Label", "unlabeled"])
@pytest.mark.parametrize("value", [4, "4", 4.0])
def test_the_background_may_be_called_as_usual(zero, value, tmp_path):
    describe(tmp_path, labels={zero: 0, "lesion": value})
    assert description.read_label_names(tmp_path) == {4: "lesion"}
    describe(tmp_path, labels={"0": zero, "4": "lesion"})
    assert cases.read_label_names(tmp_path) == {4: "lesion"}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"channel_names": {"1": "FLAIR", "0": "T1"}}, ["T1", "FLAIR"]),
        ({"channel_names": {str(k): f"c{k}" for k in range(11)}}, [f"c{k}" for k in range(11)]),
        ({"modality": {"0": "MRI"}}, ["MRI"]),
        ({"modality": ["T1", "T2"]}, ["T1", "T2"]),
        ({"modality": "MRI"}, []),
        ({}, []),
    ],
)
def test_channel_names_come_in_the_order_of_their_numbers(content, expected, tmp_path):
    describe(tmp_path, **content)
    assert description.read_channel_names(tmp_path) == expected


@pytest.mark.parametrize(("ending", "words"), [(".nii.gz", ""), (".NII", ""), (".png", "'.png'")])
def test_files_that_are_no_nifti_are_said(ending, words):
    found = description.describe_format({"file_ending": ending})
    assert bool(found) == bool(words)
    assert words in found
    assert not words or "convert the files to .nii.gz" in found
