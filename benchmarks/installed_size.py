"""Sum the sizes of the packages that a server without PyTorch needs.

``python benchmarks/installed_size.py`` installs ``retinanet[serve,runtime]`` in a new virtual environment, with the
versions of ``constraints.txt``, and writes the sizes to ``benchmarks/results/installed_size.json``. The image of
``deploy/Dockerfile`` has these packages and its base image.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from retinanet.files import write_json

ROOT = Path(__file__).resolve().parents[1]

# Prints the bytes of each installed package, as its list of files says.
_SIZES = """
import importlib.metadata, json
sizes = {}
for package in importlib.metadata.distributions():
    paths = [file.locate() for file in package.files or ()]
    sizes[package.metadata["Name"]] = sum(path.stat().st_size for path in paths if path.is_file())
print(json.dumps(sizes))
"""


def main() -> None:
    """Install, sum and write."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary) / "venv"
        venv.create(environment)
        python = str(environment / "bin" / "python")
        constraint = str(ROOT / "constraints.txt")
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", python, "install"]
        subprocess.run([*pip, "--no-compile", "--constraint", constraint, f"{ROOT}[serve,runtime]"], check=True)
        sizes = json.loads(subprocess.run([python, "-c", _SIZES], capture_output=True, check=True).stdout)
    megabytes = {name: round(size / 1e6, 2) for name, size in sorted(sizes.items(), key=lambda each: -each[1])}
    total = round(sum(sizes.values()) / 1e6, 1)
    write_json(ROOT / "benchmarks" / "results" / "installed_size.json", {"megabytes": total, "packages": megabytes}, 2)
    print(f"{total} MB in {len(sizes)} packages")


if __name__ == "__main__":
    main()
