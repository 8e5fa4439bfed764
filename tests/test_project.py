"""Promises about the project as a whole: its size, its imports, its layout."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from radon.complexity import cc_visit
from radon.visitors import Function
from tools.measure_code import measure

import unetseg

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "unetseg").rglob("*.py"))
CORE = ("nifti", "model", "metrics", "plots")
# Each module imports only from those that stand before it: no circle, and one direction.
ORDER = (
    *("_base", *CORE, "digits", "annotation"),
    *("reading.contents", "reading.description", "reading.tables", "reading.folders"),
    *("reading.patients", "reading.intensities"),
    *(
        "run.layout",
        "run.lock",
        "run.machine",
        "run.backend",
        "run.devices",
        "run.fingerprints",
        "run.inputs",
    ),
    *("run.drive", "run.batches", "run.state", "run.processes"),
    "reading.unused",
    *(
        "packages",
        "settings",
        "sample",
        "cases",
        "splits",
        "body",
        "pieces",
        "grids",
        "prepared",
        "orientation",
        "planning",
        "rules",
        "interpolation",
        "augmentation",
    ),
    *(
        "preprocessing",
        "earlier",
        "advice",
        "survey",
        "oddities",
        "patches",
        "windows",
        "ensemble",
        "memory",
        "reliability",
    ),
    *(
        "prediction",
        "losses",
        "optimizers",
        "recipe",
        "fitting",
        "inference",
        "transfer",
        "validation",
        "training",
        "scores",
        "components",
        "lesions",
        "charts",
    ),
    *("report", "testset", "sharing", "averaging", "workspace"),
)
KERAS = ("model", "patches", "prediction", "recipe", "fitting", "inference", "training")
KERAS += ("losses", "optimizers", "run.devices", "run.state", "ensemble", "memory")
KERAS += ("transfer", "validation", "averaging", "windows")


def code_lines(path):
    lines, *_ = measure(path)
    return lines


def test_code_lines_are_counted_without_blanks_comments_and_docstrings(tmp_path):
    path = tmp_path / "example.py"
    path.write_text('"""Two\nlines."""\n\n# why\nx = (\n    1,\n)\n\n\ndef f():\n    """Doc."""\n')
    assert code_lines(path) == 4  # three of the tuple, one of the def


def test_no_module_is_longer_than_300_lines_of_code():
    assert {path.name: n for path in MODULES if (n := code_lines(path)) >= 300} == {}


def test_the_core_is_small():
    files = [ROOT / "unetseg" / f"{name}.py" for name in ("_base", *CORE)]
    assert sum(map(code_lines, files)) < 750


MOST_COMPLEX = 15


def name_of(path):
    """Name of a module within the package, such as ``run.layout``."""
    return ".".join(path.relative_to(ROOT / "unetseg").with_suffix("").parts)


def imports_of(path):
    """Modules of the package that a module imports, wherever in it."""
    names = {name_of(path) for path in MODULES}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("unetseg.") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "unetseg":
            base = node.module.removeprefix("unetseg").lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                yield inner if inner in names else base


def test_every_module_has_its_place_and_imports_only_what_stands_before_it():
    files = {name_of(path): path for path in MODULES if path.stem != "__init__"}
    assert sorted(files) == sorted(ORDER)
    for name, path in files.items():
        before = ORDER[: ORDER.index(name)]
        upward = [other for other in imports_of(path) if other in ORDER and other not in before]
        # What is not a scan is told by a module that the core does without.
        assert upward == (["reading.contents"] if name == "nifti" else []), name


@pytest.mark.parametrize("name", ["_base", *CORE])
def test_the_core_stands_alone(name, tmp_path):
    (tmp_path / "unetseg").mkdir()
    (tmp_path / "unetseg" / "__init__.py").touch()
    for part in ("_base", *CORE):
        shutil.copy(ROOT / "unetseg" / f"{part}.py", tmp_path / "unetseg")
    code = f"import unetseg.{name}, sys; print(*[m for m in sys.modules if 'unetseg.' in m])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert set(done.stdout.split()) == {"unetseg._base", f"unetseg.{name}"}, done.stderr


def function_names(path):
    """Map the line of every function of a module to its name, that of its class before it."""
    names = {}

    def visit(node, prefix):
        for child in ast.iter_child_nodes(node):
            inside = prefix
            if isinstance(child, ast.ClassDef | ast.FunctionDef):
                inside = f"{prefix}.{child.name}"
                names[child.lineno] = inside
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8")), path.stem)
    return names


def test_functions_are_simple_by_the_measure_of_ruff():
    # At most 10 branches (C901), 15 locals (PLR0914) and 40 statements (PLR0915): pyproject.toml.
    gates = ["--select", "C901,PLR0914,PLR0915", "--preview", "--output-format", "json"]
    call = [sys.executable, "-m", "ruff", "check", "--exit-zero", *gates, "unetseg"]
    answer = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    offenders = set()
    for finding in json.loads(answer):
        names = function_names(Path(finding["filename"]))
        offenders.add(f"{names[finding['location']['row']]}: {finding['code']}")
    assert offenders == set()


def test_functions_are_simple_by_the_measure_of_radon():
    offenders = set()
    for path in MODULES:
        blocks = cc_visit(path.read_text(encoding="utf-8"))
        functions = [block for block in blocks if isinstance(block, Function)]
        offenders |= {
            f"{path.stem}.{block.fullname}"
            for block in functions
            if block.complexity > MOST_COMPLEX
        }
    assert offenders == set()


def test_every_module_has_its_tests():
    names = {path.stem.lstrip("_") for path in MODULES if path.stem != "__init__"}
    assert {name for name in names if not (ROOT / "tests" / f"test_{name}.py").exists()} == set()


def test_import_brings_in_nothing_else():
    code = (
        "import sys; import importlib, pathlib; before = {*sys.modules}; import unetseg;"
        "assert {*sys.modules} - before == {'unetseg'}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", [name for name in ORDER if name not in KERAS])
def test_these_modules_do_not_import_keras(name):
    code = f"import sys, unetseg.{name}; assert 'keras' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_public_names_are_those_of_their_modules_and_are_completed():
    source = ast.parse((ROOT / "unetseg" / "__init__.py").read_text(encoding="utf-8"))
    written = {}
    for node in ast.walk(source):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("unetseg."):
            for alias in node.names:
                written[alias.name] = node.module.removeprefix("unetseg.")
    assert written == unetseg._MODULE_OF
    assert sorted(written) == unetseg.__all__
    for name, module in written.items():
        assert getattr(unetseg, name) is getattr(getattr(unetseg, module), name)
        assert name in dir(unetseg)


def test_an_unknown_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'metric'"):
        _ = unetseg.metric


def test_no_scan_and_no_weights_are_among_the_published_results():
    tracked = subprocess.run(
        ["git", "ls-files", "results", "data"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout.split()
    assert {Path(name).suffix for name in tracked} <= {".json", ".csv", ".png", ".md"}


BUILT_IN = {"eval", "exec", "compile", "__import__"}
RUNS_CODE = {"pickle", "dill", "marshal", "shelve", "yaml", "read_pickle", "Lambda", "load_model"}
RUNS_CODE |= {"model_from_json", "from_config", "deserialize", "enable_unsafe_deserialization"}
DELETES_FOLDERS = {"rmtree", "removedirs", "rmdir"}


def names_in(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute) and node.attr not in BUILT_IN:  # re.compile
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_nothing_that_a_file_holds_is_executed_and_no_folder_is_deleted(path):
    assert sorted({*names_in(path)} & (BUILT_IN | RUNS_CODE | DELETES_FOLDERS)) == []


def test_arrays_are_loaded_without_pickle():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for word in node.keywords if isinstance(node, ast.Call) else ():
                assert word.arg != "allow_pickle" or word.value.value is False


def test_the_security_notes_name_the_lowest_versions_that_are_allowed():
    notes = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    required = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert re.search(r"^keras>=(.+)$", required, re.MULTILINE)[1] in notes


def test_the_package_needs_what_requirements_list_but_for_tensorflow_which_is_an_extra():
    listed = re.findall(r"^[a-z].*$", (ROOT / "requirements.txt").read_text("utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extra = project["optional-dependencies"]["tensorflow"]
    assert sorted(listed) == sorted([*project["dependencies"], *extra])


WATCHED = """
import os, sys
from unetseg import cases, nifti, scores, training
from unetseg.preprocessing import Preprocessor

WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink"}

def watch(event, details):
    if event in CHANGES and details[-1] < 0:  # else it is a name within an opened folder
        print("changed", *[os.path.abspath(path) for path in details[:2] if type(path) is str])
    if event == "open" and details[2] & WRITE and type(details[0]) is str:
        print("changed", os.path.abspath(details[0]))

found = cases.find_cases("data")
arguments = {"filters": 4, "depth": 1}
settings = {"epochs": 1, "steps": 1, "n_splits": 2, "model_args": arguments}
sys.addaudithook(watch)
folds = training.cross_validate(
    found, "results/x", preprocessor=Preprocessor(patch=(8, 8, 8)), backup_dir="drive", **settings
)
scores.score_predictions(found, "results/x/predictions", folds, {1: "one", 2: "two"})
"""


def test_a_run_writes_in_its_results_its_back_up_and_temporary_folders_alone(make_data, tmp_path):
    make_data(4)
    elsewhere = {"TMPDIR": str(tmp_path / "temporary"), "HOME": str(tmp_path / "home")}
    (tmp_path / "temporary").mkdir()
    environment = os.environ | elsewhere | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    said = subprocess.run(
        [sys.executable, "-c", WATCHED], cwd=tmp_path, env=environment, capture_output=True
    ).stdout.decode()
    changed = {path for line in said.splitlines() for path in line.split()[1:] if "changed" in line}
    assert f"{tmp_path}/results/x/fold_1/done.json" in changed
    allowed = ("results", "drive", "temporary")
    inside = tuple(f"{tmp_path}/{name}" for name in allowed)
    assert [p for p in changed if not p.startswith(inside) and p != "/dev/null"] == []
