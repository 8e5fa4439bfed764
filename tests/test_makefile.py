"""The Makefile with paths as people have them; a stand-in for Python notes what it is asked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ["My Drive é", "it's", "a $HOME $$ 50%", "(1) & 2; [x]", "-dash"]
STEPS = ["01_load_data", "02_train_kfold", "03_evaluate"]
PYTHON = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
call = sys.argv[1:]
if call[0] == "-c":
    sys.path.insert(0, {str(ROOT)!r})
    sys.argv = call[:1] + call[2:]
    exec(call[1])
else:
    with open({{noted!r}}, "a") as file:
        file.write(json.dumps(call) + "\\n")
    if call[1] == "papermill" and "03" in call[2]:
        (Path(call[3]).parents[1] / "summary.csv").write_text("name,mean\\ndice,0.51234\\n")
"""


@pytest.fixture
def make(tmp_path):
    """Return a function that runs make in a copy of the project, and what Python was asked."""

    def run(target, name="project", venv=".venv", **settings):
        home, noted = tmp_path / name, tmp_path / "noted"
        (home / "notebooks").mkdir(parents=True, exist_ok=True)
        for file in ("Makefile", "requirements.txt", "pyproject.toml"):
            shutil.copy2(ROOT / file, home)
        place = home / venv / "bin"
        place.mkdir(parents=True, exist_ok=True)
        (place / "python").write_text(PYTHON.format(noted=str(noted)))
        (place / "pip").write_text("#!/bin/sh\n")
        for file in place.iterdir():
            file.chmod(0o755)
        given = [f"{key}={value}" for key, value in settings.items()]
        call = ["make", target, f"VENV={venv}", *given]
        quiet = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
        done = subprocess.run(call, cwd=home, env=quiet, capture_output=True, text=True)
        asked = noted.read_text().splitlines() if noted.exists() else []
        noted.unlink(missing_ok=True)
        return home, done, [json.loads(line) for line in asked]

    return run


USUAL = {"RESULTS": "results"}


def settings_of(call):
    return {call[n + 1]: call[n + 2] for n, word in enumerate(call) if word in ("-r", "-p")}


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_will_do(name, make, tmp_path):
    data = tmp_path / name / "my scans"
    data.mkdir(parents=True)
    venv = f"env {name}".replace(";", "")  # with which make begins a command
    home, done, asked = make("notebooks", name, venv, DATA=data, EXPERIMENT="mine")
    assert done.returncode == 0, done.stderr
    [pip, *calls] = asked
    assert pip[:3] == ["-m", "pip", "install"]
    assert (home / venv / ".ready").exists()
    assert [call[2] for call in calls] == [f"notebooks/{step}.ipynb" for step in STEPS]
    assert [call[3] for call in calls] == [f"results/mine/notebooks/{s}.ipynb" for s in STEPS]
    for call in calls:
        assert settings_of(call) == USUAL | {"DATA": str(data), "EXPERIMENT": "mine"}
    assert "0.512" in done.stdout
    assert "Scores: results/mine/scores.csv." in done.stdout
    _, done, asked = make("notebooks", name, venv, DATA=data, EXPERIMENT="mine")
    assert asked == calls  # what is ready is not installed again


@pytest.mark.parametrize(
    ("folder", "experiment"),
    [("Task04", "Task04"), ("Task 04/", "Task_04"), ("hôpital", "hôpital"), ("it's", "it_s")],
)
def test_an_experiment_without_a_name_has_that_of_its_data_made_plain(folder, experiment, make):
    home, *_ = make("test")
    (home / folder).mkdir()
    _, done, calls = make("notebooks", DATA=folder)
    assert done.returncode == 0, done.stderr
    settings = USUAL | {"DATA": str(home / folder.rstrip("/")), "EXPERIMENT": experiment}
    assert [settings_of(call) for call in calls] == [settings] * 3


def test_a_name_that_will_not_do_is_refused_before_anything_is_made(make):
    home, done, asked = make("notebooks", EXPERIMENT="my run")
    assert done.returncode != 0
    assert "EXPERIMENT must be a plain name" in done.stderr
    assert [call[1] for call in asked] == ["pip"]
    assert not (home / "results").exists()


def test_a_folder_that_is_missing_stops_at_once(make):
    home, done, asked = make("predict", SCANS="no such", EXPERIMENT="mine")
    assert done.returncode != 0
    assert "SCANS=no such: no such folder. Check the path." in done.stderr
    assert [call[1] for call in asked] == ["pip"]
    assert not (home / "results").exists()


def test_new_scans_and_other_settings_go_on_as_typed(make):
    home, *_ = make("test")
    (home / "-new $scans").mkdir()
    more = "-p N_JOBS 2 -p LOOK_AT 'a b'"
    _, done, [call] = make("predict", SCANS="-new $scans", PARAMETERS=more)
    assert done.returncode == 0, done.stderr
    settings = USUAL | {"SCANS": str(home / "-new $scans"), "EXPERIMENT": "sample"}
    assert settings_of(call) == settings | {"N_JOBS": "2", "LOOK_AT": "a b"}
    assert "results/sample/new_scans" in done.stdout
    assert "results/sample/sample.tar" in done.stdout


def test_the_demo_runs_all_on_the_sample(make):
    _, done, asked = make("demo", "My Drive")
    assert done.returncode == 0, done.stderr
    calls = [call for call in asked if call[1] == "papermill"]
    assert len(calls) == 4
    short = {"DATA": "sample", "EXPERIMENT": "sample", "FOLDS": "3", "EPOCHS": "5", "STEPS": "50"}
    assert settings_of(calls[0]) == USUAL | short
    assert settings_of(calls[3]) == USUAL | {"SCANS": "sample", "EXPERIMENT": "sample"}


def test_results_may_go_elsewhere(make):
    make("test")
    _, done, [call] = make("predict", EXPERIMENT="mine", RESULTS="other place")
    assert done.returncode == 0, done.stderr
    assert settings_of(call)["RESULTS"] == "other place"
    assert "other place/mine/new_scans" in done.stdout


@pytest.mark.parametrize("setting", ["RESULTS /big", "EXPERIMENT mine"])
def test_what_make_must_know_is_not_given_behind_its_back(setting, make):
    _, done, asked = make("notebooks", PARAMETERS=f"-p EPOCHS 5 -p {setting} -p FOLDS 3")
    assert done.returncode != 0
    assert "RESULTS=path EXPERIMENT=name" in done.stdout
    assert "papermill" not in [call[1] for call in asked]


def test_the_tests_run_in_a_folder_with_spaces_and_with_constraints(make):
    _, done, asked = make("test", "My Drive/ünet seg", CONSTRAINTS="my pins.txt")
    assert done.returncode == 0, done.stderr
    pip, *calls = asked
    assert pip[pip.index("-c") + 1] == "my pins.txt"
    assert [call[1] for call in calls] == ["ruff", "ruff", "pytest"]
