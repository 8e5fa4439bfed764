import json

import pytest

from unetseg import cases
from unetseg.preprocessing import Preprocessor
from unetseg.reading import description


def describe(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


IGNORED = ["ignore", "Ignore", "IGNORE", " ignore ", "ignored", "ignore_label", "Ignore region"]


@pytest.mark.parametrize("name", IGNORED)
@pytest.mark.parametrize("dialect", ["nnU-Net", "Decathlon"])
def test_voxels_to_ignore_are_refused_by_name(name, dialect, tmp_path):
    labels = {"background": 0, "lesion": 1, name: 2}
    if dialect == "Decathlon":
        labels = {str(value): key for key, value in labels.items()}
    describe(tmp_path, labels=labels)
    with pytest.raises(ValueError, match=r"dataset\.json: .*not supported yet.*annotate") as error:
        description.read_label_names(tmp_path)
    assert f"{name!r} = 2" in str(error.value)
    with pytest.raises(ValueError, match=r"dataset\.json: .*not supported yet.*annotate"):
        cases.find_cases(tmp_path)  # for who does not ask for the names


@pytest.mark.parametrize("name", IGNORED)
def test_voxels_to_ignore_are_not_learnt_whoever_names_them(name):
    preprocessor = Preprocessor(labels={1: "lesion", 2: name})
    with pytest.raises(ValueError, match=r"Preprocessor\(labels=\.\.\.\): .*ignore.*supported"):
        preprocessor.fit([])


@pytest.mark.parametrize("name", ["ignorance", "not to ignore", "void"])
def test_other_names_are_labels(name, tmp_path):
    describe(tmp_path, labels={"background": 0, name: 1})
    assert description.read_label_names(tmp_path) == {1: name}


# As nnU-Net's documentation writes regions of BraTS.
REGIONS = {
    "lists": {"labels": {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3]}},
    "a list of one": {"labels": {"background": 0, "whole tumour": [1]}},
    "Decathlon": {"labels": {"0": "background", "1": ["whole tumour", "core"]}},
    "order": {"labels": {"background": 0, "core": 1}, "regions_class_order": [1]},
}


@pytest.mark.parametrize("case", REGIONS)
def test_regions_are_refused_by_name(case, tmp_path):
    describe(tmp_path, **REGIONS[case])
    with pytest.raises(ValueError, match=r"regions of several labels.*one whole number") as error:
        description.read_label_names(tmp_path)
    with pytest.raises(ValueError, match=r"regions of several labels"):
        cases.find_cases(tmp_path)
    named = "'regions_class_order'" if case == "order" else "whole tumour"
    assert named in str(error.value)


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
