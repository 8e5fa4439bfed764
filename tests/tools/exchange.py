"""Write an experiment with one version of Keras, open it with another.

python -m tests.tools.exchange write FOLDER   trains a tiny fold and notes what it predicts
python -m tests.tools.exchange read FOLDER    loads it and compares
"""

import sys
from pathlib import Path

import keras
import numpy as np

from unetseg import cases, inference, sample, training
from unetseg.preprocessing import Preprocessor


def write(folder):
    found = cases.find_cases(sample.make_sample(folder / "data", n_cases=3))
    preprocessor = Preprocessor(patch=(16, 16, 16)).fit(found)
    training.cross_validate(
        found,
        folder / "results",
        preprocessor=preprocessor,
        model_args={"filters": 4, "depth": 2, "dropout": 0.1},
        n_splits=2,
        epochs=1,
        steps=20,
        precision="float32",
    )
    np.save(folder / "probabilities.npy", predict(folder))


def predict(folder):
    case = cases.find_cases(folder / "data")[0]
    preprocessor = Preprocessor.load(folder / "results" / "preprocessor.json")
    models = inference.load_models(folder / "results")
    return inference.predict_case(models, case, preprocessor).probabilities


def read(folder):
    difference = np.abs(predict(folder) - np.load(folder / "probabilities.npy")).max()
    assert difference < 1e-3, f"predictions differ by {difference}"
    print(f"Keras {keras.__version__} opens {folder}; largest difference {difference:.1e}")


if __name__ == "__main__":
    keras.config.set_dtype_policy("float32")
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
