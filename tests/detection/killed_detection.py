"""Detect, be killed, go on, and again: ``python killed_detection.py FOLDER OUT SEED`` prints the number of kills.

Each start is a fork, so that many starts do not cost as many imports.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from retinanet.detection.run import detect
from stub_detector import StubDetector


def run(folder: Path, out: Path, resume: bool) -> None:
    """Detect in all images of ``folder``."""
    detect(StubDetector(), folder, out, formats=("coco", "csv", "yolo"), resume=resume)


def without_sync(descriptor: object) -> None:
    """Do nothing in place of ``os.fsync``, which takes long and matters for power failures only."""


def main(folder: Path, out: Path, seed: int) -> None:
    """Start and kill until a run ends by itself."""
    os.fsync = without_sync  # type: ignore[assignment]
    chance, kills, started = random.Random(seed), 0, False
    while True:
        child = os.fork()
        if child == 0:
            run(folder, out, started)
            os._exit(0)
        # Longer from kill to kill, so that also a busy machine gets to the end.
        time.sleep(chance.uniform(0.02, 0.1) * (1 + kills))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            break
        kills += 1
        started = started or (out / "detections.jsonl").exists()
    print(kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
