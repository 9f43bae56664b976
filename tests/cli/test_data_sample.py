"""``retinanet data sample``."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic, sleep

import pytest

from commands import Command, next_command


def test_data_sample(run: Command, tmp_path: Path) -> None:
    out = tmp_path / "my parts"
    said = run("data", "sample", out, "--images", 7, "--size", 64)
    assert said.code == 0
    assert len(list((out / "images").glob("*.jpg"))) == 7
    assert next_command(said.out)[:2] == ["train", str(out)]
    assert str(out) in run.fails("data", "sample", out)
    assert "images is 1" in run.fails("data", "sample", tmp_path / "other", "--images", 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_sample_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "retinanet", "data", "sample", "set", "--images", "100000"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        end = monotonic() + 60
        while monotonic() < end and not any(tmp_path.glob(".set.*/images/*.jpg")):
            sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "stopped"
    assert list(tmp_path.iterdir()) == []
