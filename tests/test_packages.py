"""What the set-up cell of the notebooks installs."""

import subprocess
import sys
from pathlib import Path

import pytest
from files import fill

from unetseg import packages
from unetseg.run import drive

REQUIREMENTS = b"""# Floors only: absent-package, another
present-package>=1.3
absent-package
Other.Absent>=0.12  # not in Colab
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Record what pip is called with, where nothing is installed beside present-package."""
    installed = tmp_path / "site" / "Present_Package-1.0.dist-info"
    installed.mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: Present_Package\nVersion: 1.0\n"
    (installed / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    calls = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: calls.append(command))
    return calls


def test_on_a_laptop_nothing_is_installed(local, pip):
    fill(local, requirements_txt=REQUIREMENTS)
    assert packages.install_missing() == []
    assert pip == []


def test_in_colab_only_what_is_missing_is_installed(colab, pip):
    fill(drive.project_dir(), requirements_txt=REQUIREMENTS)
    missing = ["absent-package", "Other.Absent"]
    assert packages.install_missing() == missing
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[4:6] == ["-q", "-c"]  # a list of what is there, which pip must keep
    assert command[7:] == missing


def test_in_colab_pip_is_not_called_if_all_is_there(colab, pip):
    fill(drive.project_dir(), requirements_txt=b"present-package>=1.3\n")
    assert packages.install_missing() == []
    assert pip == []


def test_in_colab_a_package_that_lost_its_metadata_does_no_harm(colab, pip, tmp_path):
    (tmp_path / "site" / "broken-1.0.dist-info").mkdir()
    fill(drive.project_dir(), requirements_txt=REQUIREMENTS)
    assert packages.install_missing() == ["absent-package", "Other.Absent"]


def test_a_failing_pip_stops_the_cell(colab, pip, monkeypatch):
    def failing(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "check_call", failing)
    fill(drive.project_dir(), requirements_txt=REQUIREMENTS)
    with pytest.raises(subprocess.CalledProcessError):
        packages.install_missing()


@pytest.mark.parametrize(
    ("there", "installed"), [(["jax"], ["nibabel"]), ([], ["nibabel", "tensorflow"])]
)
def test_in_colab_no_tensorflow_comes_where_keras_has_another_backend(
    colab, pip, monkeypatch, there, installed
):
    monkeypatch.setattr(packages, "list_backends", lambda: there)
    monkeypatch.setattr(packages.importlib.metadata, "distributions", lambda name: [])
    fill(drive.project_dir(), requirements_txt=b"nibabel>=5.3\ntensorflow>=2.20\n")
    assert packages.install_missing() == installed


BARE = """
import sys
LACKING = {"nibabel", "nilearn", "loky", "tensorflow", "keras", "jsonschema", "jinja2", "sklearn"}
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in LACKING:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Lacking())
from unetseg import packages
print(packages.install_missing())
"""


def test_the_set_up_needs_none_of_what_it_installs():
    code = [sys.executable, "-c", BARE]
    root = Path(__file__).parents[1]
    assert subprocess.run(code, capture_output=True, text=True, cwd=root).stdout == "[]\n"
