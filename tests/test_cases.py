"""The cases of ``../shared/cases``: inputs of users, and what each command should do with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
NAMES = sorted(file.parent.name for file in CASES.glob("*/case.json"))


@pytest.mark.skipif(not NAMES, reason=f"no cases at {CASES}")
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_case_ends_as_its_user_expects(name: str) -> None:
    program = f"{sys.executable} -m retinanet"
    command = [sys.executable, str(CASES / "run_cases.py"), str(CASES / name), "--retinanet", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
