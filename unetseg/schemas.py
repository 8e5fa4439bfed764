"""The JSON files of a run: read, and checked against what they may hold."""

import functools
import json
from pathlib import Path

from unetseg.contents import read_text


def read_json(path, kind=None):
    """Read a JSON file, and check what is in it if it is one that a run leaves.

    Parameters
    ----------
    path : str or Path
    kind : str, optional
        Which file it is, such as ``"splits.json"``; by default its own name. ``schemas.json``
        beside this module tells the types and ranges of each.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or holds something else than such a file does; says where.
    """
    import jsonschema  # here, as it takes a tenth of a second

    path = Path(path)
    schemas, name = _load_schemas(), kind or path.name
    by_hand = name not in schemas["$defs"]
    text = read_text(path, "not valid JSON")
    try:
        hook = _refuse_twice if by_hand else None
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Correct or remove it.") from error
    if not by_hand:
        validator = jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{name}"})
        if error := jsonschema.exceptions.best_match(validator.iter_errors(value)):
            found = f"at {error.json_path}: {error.message[:300]}"
            raise ValueError(f"{path}: {found}. Correct it, or fetch it again.")
    return value


@functools.cache
def _load_schemas():
    return json.loads(Path(__file__).with_name("schemas.json").read_text(encoding="utf-8"))


def _refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


def _refuse_twice(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found
