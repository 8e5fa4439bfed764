"""Voxels that nobody drew: told by the name of their label, neither learnt nor scored."""

import numpy as np
import pytest

from unetseg import annotation

NAMES = ["ignore", "Ignore", "IGNORE", " ignore ", "ignored", "ignore_label", "Ignore region"]


@pytest.mark.parametrize("name", NAMES)
def test_the_label_to_ignore_is_known_by_its_name(name):
    assert annotation.split_ignored({1: "lesion", 4: name}) == ({1: "lesion"}, 4)


@pytest.mark.parametrize("name", ["ignorance", "not to ignore", "void"])
def test_other_names_are_labels(name):
    assert annotation.split_ignored({1: name}) == ({1: name}, 0)


@pytest.mark.parametrize("labels", [None, [1, 2], {}])
def test_without_names_nothing_is_ignored(labels):
    assert annotation.split_ignored(labels) == (labels, 0)


def test_two_labels_to_ignore_are_refused():
    with pytest.raises(ValueError, match=r"2 mark voxels to ignore: 'ignore' = 2, 'Ignored' = 3"):
        annotation.split_ignored({1: "lesion", 2: "ignore", 3: "Ignored"})


def test_what_nobody_drew_becomes_background():
    mask = np.array([[[0, 1, 4]]], np.int32)
    dropped = annotation.drop_ignored(mask, 4)
    assert dropped.tolist() == [[[0, 1, 0]]]
    assert dropped.dtype == mask.dtype
    assert annotation.drop_ignored(mask, 0) is mask
