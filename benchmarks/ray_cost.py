"""What a run of ``retinanet detect --ray`` costs, up to 10⁹ images, and what limits its speed.

``python benchmarks/ray_cost.py`` measures the processor time that an image takes in each stage, runs 400 images on one
and two workers, and compares the processor time of these workers with the sum of their stages. A simulation of the
stages, with buffers of limited size and times that vary, checks the formula of ``docs/scaling.md``. The numbers are
processor time, which depends little on what else runs. They are written to ``benchmarks/results/ray_cost.json``.
"""

from __future__ import annotations

import argparse
import heapq
import os
import pickle
import tempfile
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from time import process_time, sleep
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

import retinanet
from retinanet.detection.batching import Task
from retinanet.detection.detector import Detector
from retinanet.detection.input_images import InputImage
from retinanet.detection.record import Entry, Record
from retinanet.detection.sources import SourceList
from retinanet.files import write_json
from retinanet.machine import cores, processor
from retinanet.scale.cluster import joined
from retinanet.scale.detection import RunBatches
from retinanet.scale.options import LOCAL, ScaleOptions
from retinanet.scale.work import ModelSource, NumberedResult, WorkerSettings
from retinanet.scale.worker import Worker, weights_digest

RESULTS = Path(__file__).parent / "results" / "ray_cost.json"

# Bytes per second of the storage that is assumed: 10 Gbit/s.
_STORAGE = 1.25e9

# Images of a row, rows that are listed ahead, and rows that may wait for the command.
_ROW, _AHEAD, _WAITING = 32, 4, 16


def write_images(folder: Path, count: int) -> None:
    """Write JPEG files of 640 × 480 pixels."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 480)).save(folder / f"{number:06d}.jpg", quality=90)


def seconds_of(work: Callable[[], object]) -> float:
    """Processor time of a function, of all threads of this process."""
    begin = process_time()
    work()
    return process_time() - begin


def measure_stages(folder: Path, model: ModelSource) -> dict[str, float]:
    """Return milliseconds of processor time for an image in each stage, and bytes of a file and of a result."""
    images = list(SourceList([str(folder)]))
    detector = retinanet.load(model.weights)
    settings = WorkerSettings(model, weights_digest(detector), Path.cwd(), 0.3)
    worker = Worker(settings, detector)
    batches = RunBatches([Task(image) for image in images], detector.input_sizes, 8)
    worker.results(list(batches)[:1])  # the first use takes longer
    listing = seconds_of(lambda: pickle.dumps(list(RunBatches(SourceTasks(folder), detector.input_sizes, 8))))
    found: list[NumberedResult] = []
    both = seconds_of(lambda: found.extend(worker.results(list(batches)))) / len(images)
    reading = seconds_of(lambda: [scaled(detector, image) for image in images]) / len(images)
    sent = pickle.dumps(found)
    record = Record.start(folder.parent, detector.classes, {})
    driver = seconds_of(lambda: receive(sent, record))
    record.close()
    per_image = 1000 / len(images)
    return {
        "list_ms": listing * per_image,
        "read_ms": 1000 * reading,
        "network_ms": 1000 * (both - reading),
        "record_ms": driver * per_image,
        "file_bytes": sum(path.stat().st_size for path in folder.iterdir()) / len(images),
        "result_bytes": len(sent) / len(images),
    }


def scaled(detector: Detector, image: InputImage) -> object:
    """Read and scale an image as a worker does."""
    pixels = image.read()
    return detector.resize(pixels, detector.scaled_size(*pixels.shape[:2]))


class SourceTasks:
    """The tasks of a folder, listed anew each time."""

    def __init__(self, folder: Path) -> None:
        self.images = SourceList([str(folder)])

    def __iter__(self) -> Any:
        """List the images."""
        return map(Task, self.images)


def receive(sent: bytes, record: Record) -> None:
    """Do what the command does with results."""
    for each in pickle.loads(sent):
        size, found = each.result.size, each.result.found
        record.append(Entry.of(each.result.image.address, str(each.number), size, found))


def measure_workers(folders: tuple[Path, Path], model: ModelSource, workers: int) -> float:
    """Return milliseconds of the workers' processor time per image on a cluster.

    It is the difference between a run over more and a run over fewer images, so the start of the workers cancels out.
    """
    (fewer, less), (more, longer) = sorted(measure_run(folder, model, workers) for folder in folders)
    return 1000 * (longer - less) / (more - fewer)


def measure_run(folder: Path, model: ModelSource, workers: int) -> tuple[int, float]:
    """Return the number of images, and the seconds of the workers' processor time."""
    detector = retinanet.load(model.weights)
    settings = WorkerSettings(model, weights_digest(detector), Path.cwd(), 0.3)
    times: dict[int, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            for process in psutil.Process().children(recursive=True):
                try:
                    if (process.cmdline() or [""])[0].startswith("ray::MapWorker"):
                        used = process.cpu_times()
                        times[process.pid] = used.user + used.system
                except psutil.Error:
                    continue
            sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    with joined(LOCAL, ScaleOptions(workers)) as cluster:
        batches = RunBatches(SourceTasks(folder), detector.input_sizes, 8)
        count = sum(1 for _ in cluster.run(batches, settings))
        ended.set()
    return count, sum(times.values())


def simulated_rate(stages: dict[str, float], workers: int, rows: int) -> float:
    """Return images per second of a simulated run: one lister, one storage, workers of one core, and one command.

    Rows are listed only a few ahead, results are taken in order, and the time of a row varies by a fifth.
    """
    rng = np.random.default_rng(0)
    work = _ROW * (stages["read_ms"] + stages["network_ms"]) / 1000 * rng.lognormal(-0.02, 0.2, rows)
    free = [0.0] * workers
    listed = stored = recorded = 0.0
    started: deque[float] = deque([0.0] * (workers + _AHEAD), maxlen=workers + _AHEAD)
    taken: deque[float] = deque([0.0] * (2 * workers + _WAITING), maxlen=2 * workers + _WAITING)
    half = 0.0
    for row in range(rows):
        listed = max(listed, started[0]) + _ROW * stages["list_ms"] / 1000
        stored = max(stored, listed) + _ROW * stages["file_bytes"] / _STORAGE
        begin = max(stored, heapq.heappop(free), taken[0])
        heapq.heappush(free, begin + work[row])
        started.append(begin)
        recorded = max(recorded, begin + work[row]) + _ROW * stages["record_ms"] / 1000
        taken.append(recorded)
        if row == rows // 2:
            half = recorded
    return _ROW * (rows - 1 - rows // 2) / (recorded - half)


def formula(stages: dict[str, float], workers: int) -> tuple[float, str]:
    """Return images per second, and what limits them."""
    limits = {
        "workers": workers * 1000 / (stages["read_ms"] + stages["network_ms"]),
        "list": 1000 / stages["list_ms"],
        "record": 1000 / stages["record_ms"],
        "storage": _STORAGE / stages["file_bytes"],
    }
    name = min(limits, key=limits.__getitem__)
    return limits[name], name


def main() -> None:
    """Measure, simulate and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="person")
    parser.add_argument("--images", type=int, default=400)
    given = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": cores(), "load_average": os.getloadavg()[0]},
        "model": given.model,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary) / "images", ModelSource(given.model)
        write_images(folder, given.images)
        write_images(fewer := Path(temporary) / "fewer", given.images // 4)
        tries = [measure_stages(folder, model) for _ in range(2)]
        content["stages"] = stages = {name: min(each[name] for each in tries) for name in tries[0]}
        measured = {str(n): round(measure_workers((fewer, folder), model, n), 1) for n in (1, 2)}
        content["workers_measured_ms"] = measured
    content["workers_expected_ms"] = round(stages["read_ms"] + stages["network_ms"], 1)
    content["stages"] = {name: round(value, 3) for name, value in stages.items()}
    content["clusters"] = []
    for workers in (1, 2, 16, 100, 1000, 4000):
        rate, limit = formula(stages, workers)
        content["clusters"].append(
            {
                "workers": workers,
                "images_per_second": round(rate, 1),
                "simulated": round(simulated_rate(stages, workers, 4000 + 20 * workers), 1),
                "limited_by": limit,
                "hours_for_1e6": round(1e6 / rate / 3600, 2),
                "hours_for_1e9": round(1e9 / rate / 3600, 1),
            }
        )
    write_json(RESULTS, content, indent=2)


if __name__ == "__main__":
    main()
