"""The loss's kernel as an H100 would run it: it compiles, and memory, not arithmetic, sets its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_instructions.py"


def test_the_memory_is_the_limit(tmp_path: Path) -> None:
    out = tmp_path / "instructions.json"
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert len(rows) == 4 * 2 + 2 + 1
    for row in rows:
        # a logit cannot be read, computed with and written in a handful
        assert 20 < row["instructions_per_logit"] < row["while_memory_moves_one"], row
