"""One training of a queue, as a process: ``python -m retinanet.reproduce.worker FOLDER``, with ``run.json`` in it.

Other files it leaves there besides those of the training: ``failure.json`` if the loss became NaN or infinite, which is
a result, and ``seconds.json``, how long it took in all (``null`` once a process ended without being able to say).
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
from retinanet.reproduce.plan import Source
from retinanet.training.log import read_lines

SPEC, FAILURE, SECONDS = "run.json", "failure.json", "seconds.json"


def main(folder: Path) -> int:
    """Train, or go on training; returns the exit code."""
    threading.Thread(target=_stop_with_the_queue, daemon=True).start()
    from retinanet.training.loop import train_on
    from retinanet.training.stopping import TrainingStopped

    spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    with _alone(folder), _clock(folder / SECONDS):
        if (folder / FAILURE).exists():
            return 0
        try:
            train_set, val_set = Source(**spec["source"]).read()
            config = Config.from_dict(spec["config"], where=str(folder / SPEC))
            train_on(config, train_set, val_set, folder, resume=True)
        except NonFiniteLossError as error:
            write_json(folder / FAILURE, {"step": last_step(folder) + 1, "message": str(error)})
        except (RetinaNetError, TrainingStopped) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def last_step(folder: Path) -> int:
    """The newest step in ``metrics.jsonl``; 0 if there is none yet."""
    path = folder / "metrics.jsonl"
    lines = read_lines(path) if path.exists() else []
    return int(lines[-1]["step"]) if lines else 0


def _stop_with_the_queue() -> None:
    """Ask this training to save its state and stop when the process that started it is gone."""
    os.read(sys.stdin.fileno(), 1)  # nothing is ever written: this returns when the pipe ends
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait while another queue works on this run."""
    import fcntl

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _clock(path: Path) -> Iterator[None]:
    before: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    write_json(path, None)
    began = time.monotonic()
    try:
        yield
    finally:
        write_json(path, None if before is None else round(before + time.monotonic() - began, 1))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
