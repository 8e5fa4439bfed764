"""Tables as people and Excel write them: read as text, whatever their encoding and separator."""

import csv
import io
import re
from pathlib import Path

import pandas as pd

from unetseg._base import refuse_any
from unetseg.reading.contents import read_text

SEPARATORS = (",", ";", "\t", "|")
SHEETS = re.compile(r"\.(xlsx?|xlsm|ods|numbers)$", re.IGNORECASE)
SAVE_AS = "save the sheet as 'CSV UTF-8' and name that file"
DECIMAL_COMMA = re.compile(r"(-?\d+),(\d+)")
# Columns of results that stay text, whatever stands in them.
TEXT = {"case", "other", "group", "name", "metric", "kind", "detail", "orientation", "problem"}
TEXT |= {"digest"}


def read_table(path, columns=()):
    """Read a table of text: in UTF-8, UTF-16 or cp1252, separated by comma, semicolon, tab or bar.

    Parameters
    ----------
    path : str or Path
        Its first line that is not blank names the columns. Excel's "CSV", "CSV UTF-8" and
        "Unicode text" are read.
    columns : iterable of str, optional
        Columns that must be there.

    Returns
    -------
    pandas.DataFrame
        All cells as text without spaces around them, so that ids such as 001, 1e5 and NA stay as
        they are; "" where nothing stands. Without blank lines, and without columns that have
        neither name nor content.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no text, has no line, a line with more cells than columns, a column twice, or
        lacks one that must be there. Names the file, and the columns that there are.
    """
    path = Path(path)
    if not path.is_file():
        beside = [p.name for p in path.parent.glob("*.[ct]sv")] if path.parent.is_dir() else []
        there = f"; beside it: {', '.join(sorted(beside)[:10])}" if beside else ""
        raise FileNotFoundError(f"{path}: no such table{there}. Check the spelling.")
    if SHEETS.search(path.name):
        raise ValueError(f"{path}: only tables of text are read; {SAVE_AS}.")
    names, *lines = _split(path, read_text(path, "no table of text"), set(columns))
    width = len(names)
    long = [str(k) for k, row in enumerate(lines, 2) if any(row[width:])]
    advice = f"The columns are {names}. Put cells with separators in quotes, or save it as .xlsx "
    advice += "and from there as 'CSV UTF-8'."
    refuse_any(long[:10], f"{path}:", "lines have more cells than there are columns", advice)
    lines = [(row + [""] * width)[:width] for row in lines]
    table = pd.DataFrame(lines, columns=names, dtype=str)
    table = table.loc[:, [bool(name) or any(table.iloc[:, k]) for k, name in enumerate(names)]]
    _check_columns(path, [*table.columns], columns)
    return table


def _split(path, text, wanted):
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r'"?sep=(.)"?\s*', first)  # Excel's own way to say the separator
    if told:
        text = rest
    best, rows = (), []
    for separator in told[1] if told else SEPARATORS:
        parsed = _parse(path, text, separator)
        if not parsed:
            raise ValueError(f"{path}: the table has no line. Save it again.")
        width = len(parsed[0])
        alike = sum(len(row) == width for row in parsed)
        holds_wanted = all(name in parsed[0] for name in wanted)
        fit = (holds_wanted, width > 1, alike, width)
        if fit > best:
            best, rows = fit, parsed
    return rows


def _parse(path, text, separator):
    try:
        rows = [*csv.reader(io.StringIO(text, newline=""), delimiter=separator)]
    except csv.Error as error:
        raise ValueError(f"{path}: no table ({error}). Save it as 'CSV UTF-8'.") from error
    rows = [[_clean(cell) for cell in row] for row in rows]
    return [row for row in rows if any(row)]


def _clean(cell):
    # Excel writes ="001" so that a number stays text.
    cell = cell.strip()
    quoted = re.fullmatch(r'="(.*)"', cell)
    return quoted[1].strip() if quoted else cell


def _check_columns(path, names, wanted):
    twice = sorted({repr(name) for name in names if names.count(name) > 1})
    refuse_any(twice, f"{path}:", "columns stand there twice", "Rename or remove one of each.")
    missing = [repr(name) for name in wanted if name not in names]
    if missing:
        raise ValueError(f"{path}: no column {', '.join(missing)}; it has {names}. Correct one.")


def read_results(path, columns=()):
    """Read a table that a run left, perhaps opened and saved by Excel since.

    Parameters
    ----------
    path, columns
        As for `read_table`.

    Returns
    -------
    pandas.DataFrame
        Columns of numbers as numbers, NaN where nothing stands. Ids, patients and names stay text.

    Raises
    ------
    FileNotFoundError, ValueError
        As for `read_table`.
    """
    table = read_table(path, columns)
    for name in set(table.columns) - TEXT:
        numbers = _to_numbers(table[name])
        if numbers is not None:
            table[name] = numbers
    return table


def _to_numbers(cells):
    try:
        values = [float(DECIMAL_COMMA.sub(r"\1.\2", cell) or "nan") for cell in cells]
    except ValueError:
        return None
    whole = all(re.fullmatch(r"-?\d{1,18}", cell) for cell in cells)
    return [int(cell) for cell in cells] if whole and len(cells) else values


def match_ids(table_ids, case_ids):
    """Find the row of a table for every case.

    Parameters
    ----------
    table_ids : iterable of str
        As people write them: perhaps a file's name with its folder, its suffix ``.nii.gz``, or
        the number of a channel.
    case_ids : iterable of str

    Returns
    -------
    dict of str to list of int
        By case id the places in `table_ids` that mean it, none if it is not there.
    """
    places = {case_id: [] for case_id in case_ids}
    for place, written in enumerate(table_ids):
        name = re.split(r"[/\\]", written)[-1]
        bare = re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)
        for form in (written, bare, re.sub(r"_\d{4}$", "", bare)):
            if form in places:
                places[form].append(place)
                break
    return places


def find_like_number(case_id, table_ids):
    """Find an id that Excel made a number of, such as 1 of 001 or 1.00E+05 of 1e5; or None."""
    number = _to_number(case_id)
    return next((i for i in table_ids if number is not None and _to_number(i) == number), None)


def _to_number(text):
    try:
        return float(text.replace(",", "."))
    except ValueError:
        return None
