import subprocess
import sys

import numpy as np
import pytest

from unetseg import memory
from unetseg.preprocessing import Preprocessor

LABELS = {k: str(k) for k in range(1, 33)}


def test_more_voxels_classes_models_and_maps_take_more():
    def need(shape=(64, 64, 64), spacing_mm=(1, 1, 1), count=2, labels=2, **more):
        some = {k: LABELS[k] for k in range(1, labels + 1)}
        return memory.prediction_bytes(
            Preprocessor((1, 1, 1), (16, 16, 16), some, 1),
            shape,
            spacing_mm,
            n_models=count,
            **more,
        )

    assert need(shape=(128, 64, 64)) > need()
    assert need(spacing_mm=(2, 2, 2)) > need()  # the network sees eight times the voxels
    assert need(labels=20) > need(labels=2)
    assert need(shape=(256,) * 3, count=9) > need(shape=(256,) * 3)
    assert need(maps=["probabilities"], labels=20) > need(labels=20)


def test_a_head_of_95_labels_takes_less_than_8_gb():
    many = {k: str(k) for k in range(1, 96)}
    preprocessor = Preprocessor((1, 1, 1), (48, 48, 40), many, 1)
    need = memory.prediction_bytes(preprocessor, (256, 256, 256), (1, 1, 1), n_models=5)
    assert 4.5e9 < need < 6.5e9  # two maps of a block and a few of the scan; a map has 6.4e9


def test_the_axes_are_those_of_the_scan_however_it_is_stored(tmp_path, write_case):
    image = np.ones((40, 30, 20), np.float32)
    preprocessor = Preprocessor((4, 1, 1), (16, 16, 8), {1: "a"}, 1)
    needs = {
        memory.foretell(write_case(tmp_path, codes, image, codes=codes), preprocessor)
        for codes in ("RAS", "PSL", "IRA")
    }
    assert len(needs) == 1
    assert needs.pop() > 0


def test_a_file_without_a_readable_header_is_left_to_others(tmp_path, write_case):
    case = write_case(tmp_path, "a", np.ones((4, 4, 4), np.float32))
    case.image.write_bytes(b"no scan")
    assert memory.foretell(case, Preprocessor((1, 1, 1), (4, 4, 4), {1: "a"}, 1)) == 0


MEASURE = """
import re, sys
from pathlib import Path
import numpy as np
from unetseg import cases, ensemble, inference, memory, windows
from unetseg.preprocessing import Preprocessor

class Flat:
    def predict_on_batch(self, batch):
        return np.full((*batch.shape[:-1], 33), 1 / 33, np.float32)

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

labels = {k: str(k) for k in range(1, 33)}
preprocessor = Preprocessor((1.0, 1.0, 1.0), (32, 32, 32), labels, 1, "none", planes=())
ensemble.BLOCK_BYTES, windows.BATCH_VOXELS = int(sys.argv[2]), 2**15
case = cases.Case("a", sys.argv[1])
need = memory.foretell(case, preprocessor, n_models=2)
Path("/proc/self/clear_refs").write_text("5")  # the peak is what is taken now
before = peak()
inference.predict_case([Flat(), Flat()], case, preprocessor, probabilities=False)
print(need, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("most_bytes", [2**27, 2**24])
def test_what_is_foretold_is_about_what_is_taken(most_bytes, tmp_path, write_case):
    image = np.random.default_rng(0).normal(100, 9, (80, 80, 80)).astype(np.float32)
    scan = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1)).image
    command = [sys.executable, "-c", MEASURE, str(scan), str(most_bytes)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    need, taken = map(int, said.split())
    assert 0.8 * taken < need < 2 * taken
