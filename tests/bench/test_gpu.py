"""The GPU benchmark, tried on the CPU: a lent GPU is too dear to find out there that the script does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment)


def test_every_section_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run("--device", "cpu", "--quick", "--out", str(out))
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text(encoding="utf-8"))
    assert content["gpu"].startswith("none")
    rows = {row["what"].split(",")[0]: row for row in content["rows"]}
    assert not any("error" in row for row in rows.values())
    assert {"ceilings", "focal loss", "training step R-50", "detection R-50"} <= set(rows)
    assert rows["ceilings"]["copy_tb_per_second"] > 0
    compared = [row for row in content["rows"] if "torchvision" in row.get("median_ms", {})]
    assert len(compared) == 6 + 3 + 1 + 1 + 1
    for row in compared:
        ours, theirs = row["median_ms"]["ours"], row["median_ms"]["torchvision"]
        assert (
            row["times_faster"]["ours"] == round(theirs / ours, 2)
            or abs(row["times_faster"]["ours"] - theirs / ours) < 0.02
        )
    detection = rows["detection R-50"]["detections"]
    assert detection["ours"] == detection["torchvision"] > 0
    profiles = [row for row in content["rows"] if row["what"].startswith("profile")]
    assert [len(row["top"]) for row in profiles] == [25, 25]


def test_a_missing_gpu_is_said() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    assert "there is no GPU here" in done.stderr
