"""``import retinanet``: its functions, which no module of the package may hide."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import retinanet


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_no_module_has_the_name_of_a_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules([str(Path(retinanet.__file__).parent)])}
    assert modules & set(retinanet.__all__) == set()


@pytest.mark.parametrize("name", ["evaluate", "compare", "load"])
def test_functions_stay_functions_after_every_module_is_imported(name: str) -> None:
    code = (
        "import pkgutil, importlib, retinanet\n"
        "for module in pkgutil.iter_modules(retinanet.__path__):\n"
        "    if module.name != '__main__': importlib.import_module('retinanet.' + module.name)\n"
        "import retinanet.evaluation.coco_ap, retinanet.detection.detector\n"
        f"print(callable(retinanet.{name}))"
    )
    assert python(code) == "True"


def test_importing_the_package_loads_no_torch() -> None:
    assert python("import retinanet, sys; print('torch' in sys.modules)") == "False"


@pytest.mark.parametrize(
    "module",
    [
        "retinanet.report.evaluation_page",
        "retinanet.report.comparison_page",
        "retinanet.report.terminal",
        "retinanet.evaluation.model_comparison",
    ],
)
def test_code_that_handles_results_loads_no_torch(module: str) -> None:
    assert python(f"import {module}, sys; print('torch' in sys.modules)") == "False"
