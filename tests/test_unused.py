"""Which files of a data folder are named as used by no case."""

from unetseg.cases import find_cases, find_scans


def test_files_that_are_of_no_case_are_named(touch, capsys):
    names = ["images/a.nii.gz", "labels/a.nii.gz", "images/more/b.nii", "images/c.nii (1).gz"]
    folder = touch(*names, "old/labels/a.nii.gz", "imagesTs/d.nii.gz", "notes.csv.gz", ".e.nii")
    assert [case.id for case in find_cases(folder)] == ["a"]
    named = "images/c.nii (1).gz, images/more/b.nii, old/labels/a.nii.gz"
    assert f"{folder}: files that are not used: {named}. Scans" in capsys.readouterr().out
    assert [case.id for case in find_scans(folder)] == ["d"]
    assert "files that are not used: old/labels/a.nii.gz. Scans" in capsys.readouterr().out


def test_scans_beside_those_that_are_read_are_named(touch, capsys):
    folder = touch("a.nii.gz", "images/b.nii.gz", "imagesTs/c.nii.gz", "imagesTs/d.nii.xz")
    assert [case.id for case in find_scans(folder)] == ["c"]
    assert "not used: a.nii.gz, imagesTs/d.nii.xz. Scans" in capsys.readouterr().out


def test_of_many_five_are_named(touch, capsys):
    folder = touch("images/a.nii.gz", *(f"more/{number}.nii" for number in range(8)))
    find_cases(folder)
    assert "more/3.nii, more/4.nii and 3 more. Scans" in capsys.readouterr().out


def test_where_every_file_is_of_a_case_or_of_an_experiment_nothing_is_said(touch, capsys):
    folder = touch("images/a_0000.nii.gz", "images/a_0001.nii.gz", "labels/a.nii.gz")
    touch("results/mine/experiment.json", "results/mine/a.nii.gz", "other/experiment.json")
    touch("other/predictions/a.nii.gz")
    (folder / "linked").symlink_to(folder / "images")
    assert len(find_cases(folder)) == 1
    assert capsys.readouterr().out == ""
