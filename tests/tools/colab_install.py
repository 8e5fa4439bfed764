"""Show that the notebooks' set-up changes no package of a Colab runtime.

Run it with the Python of an environment that holds what Colab holds and no more. It asks pip what
the set-up cell would install, and fails if that touches a package that is there.
"""

import importlib.metadata
import json
import os
import subprocess

from unetseg import packages


def main():
    os.environ["COLAB_RELEASE_TAG"] = "stand-in"
    reports = []

    def plan(command):
        dry = [*command, "--dry-run", "--report", "-"]
        reports.append(json.loads(subprocess.check_output(dry, text=True)))

    subprocess.check_call = plan
    missing = packages.install_missing()
    assert missing, "nothing is missing: this environment is not Colab's"
    planned = {item["metadata"]["name"].lower() for item in reports[0]["install"]}
    present = {d.name.lower() for d in importlib.metadata.distributions()}
    assert set(missing) <= planned, f"pip would not install {missing}"
    assert not planned & present, f"pip would change {sorted(planned & present)}"
    print(f"The set-up would add {sorted(planned)} and change none of {len(present)} packages.")


if __name__ == "__main__":
    main()
