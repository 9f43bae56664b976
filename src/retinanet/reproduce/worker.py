"""Train one run in its own process: ``python -m retinanet.reproduce.worker FOLDER``. The folder contains ``run.json``.

Besides the files of the training, the worker writes ``failure.json`` if the loss became NaN or infinite, and
``seconds.json`` with the total duration (``null`` if a process was killed).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from retinanet.config import Config
from retinanet.errors import NonFiniteLossError, RetinaNetError
from retinanet.files import write_json
from retinanet.reproduce.plan import DataSource
from retinanet.training.log import read_lines

SPEC, FAILURE, SECONDS = "run.json", "failure.json", "seconds.json"


def main(folder: Path) -> int:
    """Start or resume the training; returns the exit code."""
    threading.Thread(target=_stop_with_the_queue, daemon=True).start()
    from retinanet.training.loop import train_on
    from retinanet.training.stopping import TrainingStopped

    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    with _locked(folder), _timed(folder / SECONDS):
        if (folder / FAILURE).exists():
            return 0
        try:
            train_set, val_set = DataSource(**spec["source"]).read()
            config = Config.from_dict(spec["config"], where=str(folder / SPEC))
            train_on(config, train_set, val_set, folder, resume=True)
        except NonFiniteLossError as error:
            write_json(folder / FAILURE, {"step": last_step(folder) + 1, "message": str(error)})
        except (RetinaNetError, TrainingStopped) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def last_step(folder: Path) -> int:
    """The last step in ``metrics.jsonl``, or 0 if there is none."""
    path = folder / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    return int(lines[-1]["step"]) if lines else 0


def _stop_with_the_queue() -> None:
    """Send SIGTERM to this process when its parent process ends, so that the training saves its state."""
    os.read(sys.stdin.fileno(), 1)  # blocks until the other end of the pipe closes
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the run; wait while another queue holds it."""
    import fcntl

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _timed(path: Path) -> Iterator[None]:
    before: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    write_json(path, None)
    began = time.monotonic()
    try:
        yield
    finally:
        write_json(path, None if before is None else round(before + time.monotonic() - began, 1))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
