import csv
import io

import pandas as pd
import pytest

from unetseg.reading import tables

ROWS = [
    ["id", "Name", "weight, kg", "patient"],
    ["001", "Müller; Hans", "71,5", "NA"],
    ["1e5", 'Zoë "Z"', "60,25", "007"],
    ["NA", "O'Neil, A.", "", "n/a"],
]


def as_text(rows, separator, line_end="\r\n"):
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator=line_end).writerows(rows)
    return file.getvalue()


@pytest.fixture
def write(tmp_path):
    """Return a function that writes bytes, or rows in some encoding, and returns the path."""

    def make(content, separator=",", encoding="utf-8", line_end="\r\n", name="patients.csv"):
        if isinstance(content, list):
            content = as_text(content, separator, line_end)
        if isinstance(content, str):
            content = content.encode(encoding)
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_cells_are_read_as_text_however_they_were_written(encoding, separator, line_end, write):
    table = tables.read_table(write(ROWS, separator, encoding, line_end))
    assert table.columns.tolist() == ROWS[0]
    assert table.to_numpy().tolist() == ROWS[1:]


FORMS = {
    "blank lines": "\nid;patient\n\na;p\n;\n  ; \n\n",
    "blank columns": "id;patient;;\na;p;;\n",
    "short lines": "id;patient;note;more\na;p\n",
    "spaces": " id ; patient\u00a0;note\n a;\tp ;\n",
    "quotes": '"id";"patient"\n"a";"p"\n',
    "Excel's separator": "sep=;\nid;patient\na;p\n",
    "formulas that keep text": 'id;patient\n"=""a""";="p"\n',
    "a separator in a title": "id;patient;one,two,three\na;p;x\n",
    "decimal commas": "id;patient;x;y\na;p;1,5;2,5\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_a_table_is_read_whatever_its_form(form, write):
    table = tables.read_table(write(FORMS[form]), ("id", "patient"))
    assert table[["id", "patient"]].to_numpy().tolist() == [["a", "p"]]
    assert "" not in table.columns


REFUSED = {
    "an Excel workbook": (b"PK\x03\x04xl/workbook", "it is a zip archive"),
    "a page": (b"<html><title>Sign in</title>", "an HTML page titled 'Sign in'"),
    "nothing": (b"", r"empty \(0 bytes\)"),
    "blank": (b"\n \n;;\n", "the table has no line"),
    "another encoding": (
        b"id,patient\na\x81,p",
        "(no text|no table of text) in UTF-8.*Save it as UTF-8",
    ),
    "no such column": (b"id,who\na,p\n", r"no column 'patient'; it has \['id', 'who'\]"),
    "column twice": (b"patient,id,patient\na,b,c\n", "columns stand there twice: 'patient'"),
    "more cells": (b"id,patient\na,p,1\nb,p\n", r"1 lines have more cells.*: 2\. The columns are"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_table_is_refused_by_name(case, write):
    content, words = REFUSED[case]
    path = write(content)
    with pytest.raises(ValueError, match=words) as error:
        tables.read_table(path, ["patient"])
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["patients.xlsx", "patients.xls", "patients.ODS"])
def test_a_workbook_is_refused_with_what_to_do(name, write):
    with pytest.raises(ValueError, match=f"{name}: only tables of text.*save.*as 'CSV UTF-8'"):
        tables.read_table(write(b"PK\x03\x04", name=name))


def test_a_table_that_is_not_there_is_named_with_those_that_are(write, tmp_path):
    write(ROWS)
    with pytest.raises(
        FileNotFoundError, match=r"patient\.csv: no such table; beside it: patients"
    ):
        tables.read_table(tmp_path / "patient.csv")


def test_results_keep_ids_as_text_and_numbers_as_numbers(write):
    cells = {
        "case": ["001", "1e5", "NA"],
        "group": ["", "007", "1.0"],
        "shape": ["(8, 10, 6)"] * 3,
        "channels": ["1", "1", "1"],
        "volume_ml": ["0.1", "0.30000000000000004", ""],
        "dice": ["nan", "inf", "1e-05"],
    }
    table = tables.read_results(write(pd.DataFrame(cells).to_csv(index=False)))
    for name in ("case", "group", "shape"):
        assert table[name].tolist() == cells[name]
    assert table["channels"].tolist() == [1, 1, 1]
    assert table["channels"].dtype == int
    assert table["volume_ml"].tolist()[:2] == [0.1, 0.1 + 0.2]
    assert table["volume_ml"].isna().tolist() == [False, False, True]
    assert table["dice"].tolist()[1:] == [float("inf"), 1e-5]


def test_results_that_excel_saved_with_decimal_commas_are_read(write):
    rows = [["case", "label", "dice"], ["01", "1", "0,875"], ["02", "2", ""]]
    table = tables.read_results(write(rows, ";", "utf-8-sig"))
    assert table["case"].tolist() == ["01", "02"]
    assert table["label"].tolist() == [1, 2]
    assert table["dice"].tolist()[0] == 0.875


def test_results_without_rows_have_their_columns(write):
    table = tables.read_results(write("kind,case,fold\n"))
    assert (len(table), table.columns.tolist()) == (0, ["kind", "case", "fold"])


def test_ids_are_found_as_people_write_them():
    written = ["a.nii.gz", "images/b.NII", "c_0000.nii.gz", "c_0001", "x", "d_0001", "d"]
    found = tables.match_ids(written, ["a", "b", "c", "d_0001", "d", "e"])
    assert found == {"a": [0], "b": [1], "c": [2, 3], "d_0001": [5], "d": [6], "e": []}


@pytest.mark.parametrize(
    ("case_id", "like"), [("001", "1"), ("1e5", "1,00E+05"), ("a", None), ("2", None)]
)
def test_an_id_that_excel_made_a_number_of_is_found(case_id, like):
    assert tables.find_like_number(case_id, ["x", "1", "1,00E+05"]) == like
