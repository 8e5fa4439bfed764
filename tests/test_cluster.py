"""Folds on a Dask cluster of separate processes, against the same folds one after another."""

import json
import os
import signal
import threading
import time

import h5py
import joblib
import numpy as np
import pytest
from dask.distributed import Client, LocalCluster

from unetseg.preprocessing import Preprocessor
from unetseg.training import cross_validate

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster():
    """Two workers of one thread; each is a process under a nanny that replaces it if it dies."""
    workers = {"n_workers": 2, "threads_per_worker": 1, "processes": True}
    place = {"dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(**workers, **place) as made, Client(made) as client:
        yield client


def train(scans, results, **settings):
    cross_validate(
        scans,
        results,
        preprocessor=Preprocessor(patch=(8, 8, 4)),
        model_args={"filters": 4, "depth": 1, "dropout": 0.3},
        n_splits=2,
        epochs=6,
        steps=4,
        batch_size=2,
        **settings,
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory, scans):
    results = tmp_path_factory.mktemp("expected") / "results"
    train(scans, results)
    return results


@pytest.fixture(scope="module")
def scans(tmp_path_factory, write_case):
    folder = tmp_path_factory.mktemp("scans")
    cases = []
    for number in range(4):
        mask = np.zeros((8, 10, 6), np.uint8)
        mask[2:5, 3:7, 1:4], mask[5:7, 3:7, 1:4] = 1, 2
        noise = np.random.default_rng(number).integers(0, 100, mask.shape)
        cases.append(write_case(folder, f"c{number}", (noise + 200 * mask).astype(np.int16), mask))
    return cases


def arrays(path):
    found = {}

    def note(name, item):
        if hasattr(item, "dtype"):
            found[name] = item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def assert_same(results, expected):
    names = [
        sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
        for folder in (results, expected)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        if name.endswith((".nii.gz", "history.csv", "splits.json")):
            assert (results / name).read_bytes() == (expected / name).read_bytes()
        if name.endswith(".h5"):
            assert arrays(results / name) == arrays(expected / name)


def test_a_cluster_gives_what_the_folds_give_one_after_another(cluster, scans, expected, tmp_path):
    with joblib.parallel_config(backend="dask"):
        train(scans, tmp_path / "results")
    assert_same(tmp_path / "results", expected)


def test_the_fold_of_a_killed_worker_is_finished_by_another_from_its_last_epoch(
    cluster, scans, expected, tmp_path, capsys
):
    results, killed = tmp_path / "results", {}

    def kill():
        while not killed:
            for path in results.glob("fold_*/history.csv"):
                if not path.with_name("done.json").exists():
                    worker = json.loads(path.with_name("running.json").read_text())["pid"]
                    os.kill(worker, signal.SIGKILL)
                    killed[path.parent.name] = len(path.read_text().splitlines()) - 1
                    return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    with joblib.parallel_config(backend="dask"):
        train(scans, results)
    thread.join()
    [(fold, epochs)] = killed.items()
    assert 1 <= epochs < 6
    assert_same(results, expected)
    said = capsys.readouterr().out
    for epoch in range(1, 7):  # each once: no epoch was trained again
        assert said.count(f"{fold.replace('_', ' ')} epoch {epoch}/6") == 1
