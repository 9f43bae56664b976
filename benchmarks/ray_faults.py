"""Kill workers of a Ray cluster, and watch their memory.

``python benchmarks/ray_faults.py [detect] [memory] [serve]`` runs the named parts (all, if none is named) on workers of
this machine, and writes their numbers to ``benchmarks/results/ray_faults.json``:

* ``detect``: objects in 5,000 images are detected by two workers, one of which is killed in mid-run. The record must be
  byte for byte that of a run without Ray.
* ``memory``: two workers run for ten minutes. Their resident memory must stay flat.
* ``serve``: a replica of the server is killed under load. Every answer must be right, or a 503.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

import retinanet
from retinanet.config import Config
from retinanet.detection.batching import Task
from retinanet.detection.pipeline import PipelineOptions
from retinanet.detection.sources import SourceList
from retinanet.machine import cores, processor
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.scale.detection import ClusterRunner, cluster_runner
from retinanet.scale.options import LOCAL, ScaleOptions
from retinanet.scale.work import ModelSource
from retinanet.zoo.weights import save_weights

RESULTS = Path(__file__).parent / "results" / "ray_faults.json"

TWO = ScaleOptions(workers=2)


def write_images(folder: Path, count: int) -> None:
    """Write small images of three sizes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = ((64, 96), (96, 64), (96, 96))[number % 3]
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height)).save(folder / f"{number:06d}.png")


def write_weights(path: Path) -> None:
    """Write a small network with random weights that finds something in every image."""
    config = Config.from_dict(
        {"model": {"backbone": "tf_efficientnet_lite0", "channels": 32, "subnet_depth": 1}, "data": {"size": 96}}
    )
    torch.manual_seed(0)
    model = RetinaNet.from_config(config.model, config.anchors, 3)
    torch.nn.init.normal_(model.classification.predict.weight, std=0.06)
    torch.nn.init.constant_(model.classification.predict.bias, -5.0)  # type: ignore[arg-type]
    save_weights(path, dict(model.state_dict()), ModelInfo.of(model, ("a", "b", "c"), config))


def ray_processes(name: str) -> list[psutil.Process]:
    """The processes below this one whose title starts with a name of Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (process.cmdline() or [""])[0].startswith(name):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_later(name: str, ready: threading.Event, killed: list[int]) -> None:
    """Kill a process of Ray with SIGKILL as soon as ``ready`` is set."""
    ready.wait(600)
    for process in ray_processes(name)[:1]:
        killed.append(process.pid)
        os.kill(process.pid, signal.SIGKILL)


def detect_part(folder: Path, weights: Path, count: int) -> dict[str, Any]:
    """Detect objects with and without Ray, with a killed worker."""
    write_images(folder / "images", count)
    begin = monotonic()
    retinanet.detect(str(weights), folder / "images", folder / "alone", score=0.05, draw=False)
    alone = monotonic() - begin
    record = folder / "cluster" / "detections.jsonl"
    ready, killed = threading.Event(), list[int]()

    def watch() -> None:
        while not record.exists() or record.read_bytes().count(b"\n") < count * 2 // 5:
            sleep(0.2)
        ready.set()

    threading.Thread(target=watch, daemon=True).start()
    threading.Thread(target=kill_later, args=("ray::MapWorker", ready, killed), daemon=True).start()
    begin = monotonic()
    runner = cluster_runner(LOCAL, TWO, ModelSource(str(weights)))
    retinanet.detect(str(weights), folder / "images", folder / "cluster", score=0.05, draw=False, make_runner=runner)
    lines = record.read_text().splitlines()
    return {
        "images": count,
        "killed_workers": len(killed),
        "records": len(lines),
        "records_of_different_images": len({json.loads(line)["path"] for line in lines}),
        "detections": sum(len(json.loads(line)["detections"]) for line in lines),
        "same_bytes_as_without_ray": record.read_bytes() == (folder / "alone" / "detections.jsonl").read_bytes(),
        "seconds_without_ray": round(alone, 1),
        "seconds_with_ray_and_a_kill": round(monotonic() - begin, 1),
    }


def memory_part(folder: Path, weights: Path, seconds: float) -> dict[str, Any]:
    """Sample the memory of the workers, of the process that lists, and of this one."""
    images = folder / "images"
    if not images.exists():
        write_images(images, 3000)
    detector = retinanet.load(weights)
    runner = ClusterRunner(LOCAL, TWO, ModelSource(str(weights)), detector, PipelineOptions(0.05, keep_pixels=False))
    samples: list[dict[str, float]] = []
    done = threading.Event()
    begin = monotonic()

    def sample() -> None:
        while not done.wait(10):
            workers = sorted(process.memory_info().rss / 1e6 for process in ray_processes("ray::MapWorker"))
            own = psutil.Process().memory_info().rss / 1e6
            samples.append(
                {"second": round(monotonic() - begin), "driver": round(own)}
                | {f"worker{i}": round(rss) for i, rss in enumerate(workers)}
            )
            print(samples[-1], file=sys.stderr, flush=True)

    threading.Thread(target=sample, daemon=True).start()
    count = 0
    for _ in runner.run(Repeated(SourceList([str(images)]))):
        count += 1
        if monotonic() - begin > seconds:
            break
    done.set()
    return {"seconds": round(monotonic() - begin), "images": count, "megabytes": samples}


class Repeated:
    """The images of some sources again and again, without an end."""

    def __init__(self, images: SourceList) -> None:
        self.images = images

    def __iter__(self) -> Any:
        """List the images."""
        while True:
            yield from map(Task, self.images)


def main() -> None:
    """Run the parts that are named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=600)
    given = parser.parse_args()
    parts = given.parts or ["detect", "memory"]
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content["machine"] = {"processor": processor(), "cores": cores()}
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary), Path(temporary) / "tiny.safetensors"
        write_weights(weights)
        if "detect" in parts:
            content["detect"] = detect_part(folder, weights, given.images)
            print(json.dumps(content["detect"]))
        if "memory" in parts:
            content["memory"] = memory_part(folder, weights, given.seconds)
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
