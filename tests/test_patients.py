import pytest

from unetseg.reading.patients import find_groups

IDS = ["p1_a", "p1_b", "p2_a"]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        (None, [None, None, None]),
        (" ", [None, None, None]),
        (r"^(p\d)_", ["p1", "p1", "p2"]),
        (lambda case_id: case_id[-1], ["a", "b", "a"]),
        (lambda case_id: float("nan"), [None, None, None]),
        ({"p1_a": " eve ", "p1_b": "eve", "p2_a": 7}, ["eve", "eve", "7"]),
        ("who.csv:who", ["eve", "eve", "NA"]),
    ],
)
def test_every_case_gets_its_patient(group_by, expected, tmp_path):
    (tmp_path / "who.csv").write_text("id,who\np2_a,NA\np1_a.nii, eve\np1_b,eve\n")
    problems = []
    assert find_groups(tmp_path, group_by, IDS, problems) == dict(zip(IDS, expected, strict=True))
    assert problems == []


@pytest.mark.parametrize("missing", ["", "n/a", "N/A", "#N/A"])
def test_a_case_without_a_patient_is_a_problem(missing, tmp_path):
    (tmp_path / "who.csv").write_text(f"id,who\np1_a,eve\np1_b,{missing}\np2_a,ben\n")
    for group_by in ("who.csv:who", {"p1_a": "eve", "p1_b": missing, "p2_a": "ben"}):
        problems = []
        groups = find_groups(tmp_path, group_by, IDS, problems)
        assert groups == {"p1_a": "eve", "p1_b": None, "p2_a": "ben"}
        assert [line.startswith("p1_b: no patient by group_by; add it") for line in problems] == [1]
