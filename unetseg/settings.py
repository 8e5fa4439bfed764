"""Settings of the notebooks, as people type them: understood, or refused by their name."""

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from unetseg._base import require
from unetseg.reading.patients import TABLE

PLAIN = r"[\w.-]*\w[\w.-]*"  # a name that is a folder's everywhere
QUOTES = ("''", '""', "``", "\u2018\u2019", "\u201c\u201d")
TRUE, FALSE = ("true", "yes", "on", "1", "1.0"), ("false", "no", "off", "0", "0.0", "none", "")
AUTO = ("", "auto", "automatic", "default")
NONE = "None"  # as Python writes what is left open
AXES = {"x": 0, "y": 1, "z": 2}


@dataclass(frozen=True)
class Text:
    """Any words; ``plain`` for a name without spaces and slashes."""

    examples: tuple
    plain: bool = False
    needed: bool = False

    def read(self, text):
        """Take it as it is."""
        if self.needed and not text:
            raise ValueError("given")
        if self.plain and not re.fullmatch(PLAIN, text):
            raise ValueError("a plain name of letters, digits, '.', '_' and '-'")
        return text


@dataclass(frozen=True)
class Groups:
    """A pattern with a bracket, or a column of a table; empty for none."""

    examples: tuple

    def read(self, text):
        """Take it as it is."""
        if not text or TABLE.fullmatch(text):
            return text
        try:
            brackets = re.compile(text).groups
        except re.error as error:
            raise ValueError(f"a regular expression (this is none: {error})") from None
        if not brackets:
            raise ValueError("a pattern with a bracket around the patient")
        return text


@dataclass(frozen=True)
class Flag:
    """True or False."""

    examples: tuple = ("True", "False")

    def read(self, text):
        """Understand yes and no."""
        word = text.casefold()
        if word not in (*TRUE, *FALSE):
            raise ValueError("yes or no")
        return word in TRUE


@dataclass(frozen=True)
class Choice:
    """One word of several."""

    words: tuple
    examples: tuple
    auto: bool = True
    knows_none: bool = True

    def read(self, text):
        """Forgive case and hyphens."""
        word = re.sub(r"[\W_]", "", text.casefold())
        if word not in self.words:
            raise ValueError(f"one of {', '.join(self.words)}")
        return word


@dataclass(frozen=True)
class Precision(Choice):
    """A kind of numbers, by its short name or Keras'."""

    def read(self, text):
        """Give Keras' name of it."""
        word = super().read(re.sub("^mixed", "", text.strip(), flags=re.IGNORECASE))
        return word if word == "float32" else f"mixed_{word}"


@dataclass(frozen=True)
class Number:
    """A number from ``least`` to ``most``; a whole one unless ``whole`` is False."""

    examples: tuple
    least: float = 1
    most: float = math.inf
    below: float = math.inf
    whole: bool = True
    auto: bool = False

    def read(self, text):
        """Understand 5, 5.0, 1e2 and 0,5."""
        value = _number(text, self.whole)
        if not (self.least <= value <= self.most and value < self.below):
            raise ValueError(self.allowed)
        return value

    @property
    def allowed(self):
        """Say it."""
        kind = "a whole number" if self.whole else "a number"
        bounds = [f"of at least {self.least:g}"]
        bounds += [f"at most {self.most:g}"] if self.most < math.inf else []
        bounds += [f"below {self.below:g}"] if self.below < math.inf else []
        return f"{kind} {' and '.join(bounds)}"


@dataclass(frozen=True)
class Jobs:
    """Processes at once: 1 and more, or -1 and less for all but a few cores."""

    examples: tuple = ("1", "-1")

    def read(self, text):
        """Refuse 0, with which nothing would run."""
        value = _number(text, True)
        if value == 0:
            raise ValueError("a whole number other than 0")
        return value


@dataclass(frozen=True)
class Tolerances:
    """A number of mm, or one for each label: ``liver: 2, tumour: 1``."""

    examples: tuple = ("1.0", "liver: 2, tumour: 1")

    def read(self, text):
        """Understand 1, 1.5 and pairs of a label's name or value and a number."""
        if ":" not in text:
            return Number(("1",), least=0, whole=False).read(text)
        pairs = [pair.rpartition(":") for pair in re.split(r"[,;]", text.strip("{} ")) if pair]
        named = {name.strip(" '\""): _number(value.strip(), False) for name, _, value in pairs}
        if "" in named or min(named.values()) < 0:
            raise ValueError("0 or more, for each label")
        return {int(name) if name.isdecimal() else name: mm for name, mm in named.items()}


@dataclass(frozen=True)
class Names:
    """Two experiments, or none."""

    examples: tuple = ("first_run, first_run_2d",)

    def read(self, text):
        """Part them at the comma."""
        parts = [name.strip(" '\"") for name in re.split(r"[,;]", text.strip("[]() "))]
        names = [name for name in parts if name]
        if len(names) not in (0, 2):
            raise ValueError("the names of two experiments, with a comma between them")
        return names


@dataclass(frozen=True)
class Models:
    """The models of all folds, or the one that was trained on all cases."""

    examples: tuple = ("folds", "final")
    auto: bool = True

    def read(self, text):
        """Give None for all folds, else ``["final"]``."""
        word = text.strip("[]' ").casefold()
        if word not in self.examples:
            raise ValueError("folds or final")
        return None if word == "folds" else ["final"]


@dataclass(frozen=True)
class Dimensions:
    """2 or 3."""

    examples: tuple = ("2", "3", "auto")
    auto: bool = True

    def read(self, text):
        """Understand 3D and 2-d."""
        found = re.fullmatch(r"([23])(\.0)?[ -]?d?", text.casefold())
        if not found:
            raise ValueError("2 or 3")
        return int(found[1])


@dataclass(frozen=True)
class Triple:
    """Three numbers along x, y and z."""

    examples: tuple
    whole: bool = False
    auto: bool = True

    def read(self, text):
        """Understand [64, 64, 48], 64x64x48, and 1,5; 1,5; 3."""
        between = re.search(r"\d,\d", text) and re.search(r"\d,?[\s;]+\d", text)
        decimal = between and not self.whole and "." not in text
        parts = _split(text, commas=not decimal)
        values = [_number(part, self.whole) for part in parts]
        if len(values) != 3 or min(values) <= 0:
            raise ValueError("three numbers above 0, along x, y, z")
        return tuple(values)


@dataclass(frozen=True)
class Axes:
    """Some of the axes 0, 1, 2."""

    examples: tuple
    least: int = 0
    most: int = 3
    auto: bool = True

    @property
    def knows_none(self):
        """Whether none at all is an answer."""
        return self.least == 0

    def read(self, text):
        """Understand [0, 1], 0 1, x y and none."""
        word = text.casefold()
        if re.search(r"\d\d", word):  # 01 would be read as 1
            raise ValueError("axes among 0, 1, 2, with a comma between them")
        parts = () if word == "none" else _split(re.sub(r"(?<=[xyz])(?=[xyz])", " ", word), x=False)
        axes = tuple(AXES[part] if part in AXES else _number(part, True) for part in parts)
        if not ({*axes} <= {0, 1, 2} and self.least <= len(axes) <= self.most):
            raise ValueError("axes among 0, 1, 2")
        if len({*axes}) < len(axes):
            raise ValueError("axes among 0, 1, 2, each once")
        return axes


@dataclass(frozen=True)
class Sizes:
    """A list of sizes, each of two or three whole numbers."""

    examples: tuple
    auto: bool = True

    def read(self, text):
        """Understand [[2, 2, 1], [2, 2, 2]], (2, 2, 1), (2, 2, 2), and 2x2x1; 2x2x2."""
        inner = re.findall(r"[\[(]([^\[\]()]+)[\])]", text)
        rest = re.sub(r"[\[(][^\[\]()]+[\])]", "", text)
        if inner and rest.strip("[]() ,;"):
            raise ValueError("a list of lists of whole numbers and nothing else")
        parts = inner or re.split(r";|(?<=\d)\s+(?=\d+\s*[x\u00d7*])", text)
        sizes = [[_number(value, True) for value in _split(part)] for part in parts]
        lengths = {len(size) for size in sizes}
        if lengths not in ({2}, {3}) or min(map(min, sizes)) < 1:
            raise ValueError("a list of lists of two or three whole numbers")
        return sizes


FOLDER = Text(("my_scans", "sample"), needed=True)
SETTINGS = {
    "DATA": FOLDER,
    "SCANS": FOLDER,
    "RESULTS": Text(("results",), needed=True),
    "EXPERIMENT": Text(("first_run",), plain=True),
    "GROUPS": Groups((r"(patient\d+)_", "patients.csv:patient")),
    "COMPARE_WITH": Text(("first_run",)),
    "LOOK_AT": Text(("sub-01_ses-1",)),
    "DIMENSIONS": Dimensions(),
    "SPACING_MM": Triple(("[1, 1, 1.5]", NONE)),
    "PATCH": Triple(("[64, 64, 48]", NONE), whole=True),
    "NORMALISATION": Choice(("zscore", "percentile", "none"), ("zscore", "auto")),
    "MIRROR_AXES": Axes(("[0]", "[0, 1]", "none", "auto")),
    "NEIGHBOURS": Number(("2", NONE), least=0, auto=True),
    "PLANES": Axes(("[2]", "[0, 2]", NONE), least=1, most=2),
    "FOLDS": Number(("5",), least=2),
    "SEED": Number(("12345",), least=0, most=2**32 - 1),
    "EPOCHS": Number(("12",)),
    "STEPS": Number(("250", NONE), auto=True),
    "MINUTES": Number(("12", NONE), least=0.1, whole=False, auto=True),
    "BATCH_SIZE": Number(("2", NONE), auto=True),
    "PRECISION": Precision(("float32", "bfloat16", "float16"), ("bfloat16", "auto")),
    "FILTERS": Number(("16",)),
    "DEPTH": Number(("3", NONE), auto=True),
    "STRIDES": Sizes(("[[2, 2, 1], [2, 2, 2]]", NONE)),
    "KERNELS": Sizes(("[[3, 3, 1], [3, 3, 3], [3, 3, 3]]", NONE)),
    "DROPOUT": Number(("0.1",), least=0, below=1, whole=False),
    "N_JOBS": Jobs(),
    "RETRAIN": Flag(),
    "ALLOW_LEAKS": Flag(),
    "START_FROM": Text(("first_run", "theirs.tar")),
    "ALLOW_EMPTY": Flag(),
    "FINAL": Flag(),
    "MODELS": Models(),
    "AVERAGE_OF": Names(),
    "ADD_TO": Text(("data/corrected",)),
    "LESIONS": Number(("0", "0.5", NONE), least=0, below=1, whole=False, auto=True),
    "LESION_ML": Number(("0.01",), least=0, whole=False),
    "TOLERANCE_MM": Tolerances(),
    "REPORT": Flag(),
    "PROBABILITIES": Flag(),
}


def read(name, value):
    """Understand one setting.

    Parameters
    ----------
    name : str
        One of `SETTINGS`.
    value : object
        As typed into a form or after papermill's ``-p``, or a Python value.

    Returns
    -------
    object
        What is meant: text, a bool, a number, a tuple or a list; None for what is left to be
        chosen: ``auto`` or a Python None, and the text None where it cannot mean "not at all".
        What was understood is understood again, so a cell may be run twice.

    Raises
    ------
    ValueError
        If it is not understood; names the setting, what is allowed and an example.
    """
    kind, text = SETTINGS[name], _strip(value, SETTINGS[name])
    if getattr(kind, "auto", False) and (value is None or _is_left_open(kind, text)):
        return None
    try:
        if isinstance(value, bool) and not isinstance(kind, Flag | Text):
            raise ValueError("something else than yes or no")
        return kind.read(text)
    except ValueError as error:
        example = f"for example {' or '.join(kind.examples)}"
        raise ValueError(f"{name} must be {error}, {example}. Received: {value!r}") from None


def read_all(typed):
    """Understand all settings of a notebook.

    Parameters
    ----------
    typed : mapping of str to object
        Such as ``globals()``: what is not a setting is passed over.

    Returns
    -------
    dict of str to object
        The settings that are there, as `read` returns them.

    Raises
    ------
    ValueError
        If one is not understood, or a name is nearly that of a setting.
    """
    for name in typed:
        near = difflib.get_close_matches(name, SETTINGS, 1, 0.8) if name.isupper() else []
        if near and name not in SETTINGS:
            raise ValueError(f"{name}: no such setting. Did you mean {near[0]}?")
    return {name: read(name, typed[name]) for name in SETTINGS if name in typed}


def update(typed):
    """Put in the place of every setting that was typed what is meant.

    Parameters
    ----------
    typed : dict of str to object
        ``globals()`` of a notebook; changed in place.

    Raises
    ------
    ValueError
        As `read_all`; nothing is changed then.
    """
    typed.update(read_all(typed))


def name_experiment(experiment, data):
    """Check the name of an experiment, or derive one from the folder of its scans.

    Parameters
    ----------
    experiment : str
        Empty to derive it.
    data : str
        The setting ``DATA``.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If it is no plain name, or none can be derived; names EXPERIMENT.
    """
    name = experiment or re.sub(r"[^\w.-]", "_", Path(data).expanduser().resolve().name)
    return read("EXPERIMENT", name)


def find_name(setting, value, names, what):
    """Check a setting that names one of several.

    Parameters
    ----------
    setting : str
        What it is called.
    value : str
        Empty for none.
    names : iterable of str
        What there is.
    what : str
        What they are, such as ``"case"``.

    Returns
    -------
    str
        `value`.

    Raises
    ------
    ValueError
        If there is no such name; tells the nearest.
    """
    names = sorted(names)
    near = difflib.get_close_matches(value, names, 5, 0.4) or names[:5]
    there = ", ".join(near) or "none"
    allowed = f"the name of a {what}, of {len(names)}, for example: {there}"
    require(setting, value, not value or value in names, allowed)
    return value


def _is_left_open(kind, text):
    if text == NONE:
        return not getattr(kind, "knows_none", False)
    return text.casefold() in AUTO


def _strip(value, kind):
    if value is None and isinstance(kind, Text | Groups | Flag):
        return ""
    text = str(value).strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    return text


def _split(text, *, commas=True, x=True):
    text = text.strip().strip("[](){}")
    between = r"[\s;,]+" if commas else r"[,\s]*[\s;]+[,\s]*"
    text = re.sub(r"(?<=[\d.])\s*[x\u00d7*]\s*(?=[\d.])", " ", text) if x else text
    return [part for part in re.split(between, text.strip(" ,;")) if part]


def _number(text, whole):
    # Of 1,000 nobody knows what is meant; 1,5 is what half of the world writes for 1.5.
    pattern = r"[+-]?(\d+\.?0?|\d+e\d+)" if whole else r"[+-]?(\d*[.,]?\d+|\d+\.)(e[+-]?\d+)?"
    clear = re.fullmatch(pattern, text.casefold()) and not re.fullmatch(r".*\d,\d{3}", text)
    value = float(text.replace(",", ".")) if clear else math.nan
    if not math.isfinite(value):
        raise ValueError("a whole number" if whole else "a number")
    return int(value) if whole else value
