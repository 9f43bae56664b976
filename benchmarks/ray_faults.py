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
import http.client
import json
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

import retinanet
from retinanet.config import Config
from retinanet.data.images import read_image
from retinanet.detection.batching import Task
from retinanet.detection.pipeline import PipelineOptions
from retinanet.detection.sources import SourceList
from retinanet.files import write_json
from retinanet.machine import cores, processor
from retinanet.model import RetinaNet
from retinanet.model_info import ModelInfo
from retinanet.scale.detection import ClusterRunner, cluster_runner
from retinanet.scale.options import LOCAL, ScaleOptions
from retinanet.scale.work import ModelSource
from retinanet.serve.answers import rounded_rows
from retinanet.zoo.weights import save_weights
from serve_load import Process

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


def ray_processes(name: str, parent: int | None = None) -> list[psutil.Process]:
    """The processes below this one (or ``parent``) whose title starts with a name of Ray."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
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


def serve_part(folder: Path, weights: Path, seconds: float) -> dict[str, Any]:
    """Send requests to a server with two replicas, and kill one of them."""
    if not (folder / "images").exists():
        write_images(folder / "images", 30)
    paths = sorted((folder / "images").iterdir())[:30]
    detector = retinanet.load(weights)
    expected = {path: rounded_rows(found) for path in paths for found in detector.detect([read_image(path)], 0.05)}
    server = Process([str(weights), "--score", "0.05", "--ray", "--scale.workers", "2"])
    try:

        def replicas() -> list[psutil.Process]:
            return ray_processes("ray::ServeReplica", server.process.pid)

        load = Load(server.port, expected)
        clients = [threading.Thread(target=load.run, args=(number,)) for number in range(24)]
        for client in clients:
            client.start()
        sleep(seconds / 3)  # the second replica starts
        before, first = len(replicas()), replicas()[0].pid
        os.kill(first, signal.SIGKILL)
        sleep(seconds * 2 / 3)
        load.ended.set()
        for client in clients:
            client.join(60)
        return {
            "seconds": seconds,
            "clients": len(clients),
            "replicas_before_the_kill": before,
            "replicas_at_the_end": len(replicas()),
            "answers": {str(status): count for status, count in sorted(load.statuses.items())},
            "wrong_answers": load.wrong,
            "broken_connections": load.broken,
            "slowest_answer_seconds": round(load.slowest, 1),
            "exit_code_after_sigterm": server.stop(),
        }
    finally:
        server.process.kill()


class Load:
    """Clients that send images one after another and compare the answers."""

    def __init__(self, port: int, expected: dict[Path, Any]) -> None:
        self.ended = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.wrong = self.broken = 0
        self.slowest = 0.0
        self._port, self._expected = port, expected
        self._lock = threading.Lock()

    def run(self, number: int) -> None:
        """Send requests until the end."""
        paths = list(self._expected)
        while not self.ended.is_set():
            number += 1
            path = paths[number % len(paths)]
            begin = monotonic()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
                connection.request("POST", "/v1/detect", path.read_bytes(), {"content-type": "image/png"})
                answer = connection.getresponse()
                body = answer.read()
            except (OSError, http.client.HTTPException):
                with self._lock:
                    self.broken += 1
                continue
            with self._lock:
                self.statuses[answer.status] += 1
                self.slowest = max(self.slowest, monotonic() - begin)
                self.wrong += answer.status == 200 and not same(json.loads(body)["detections"], self._expected[path])


def same(answered: list[dict[str, Any]], expected: Any) -> bool:
    """Whether detections are the expected ones, up to a unit of the last digit: their order may differ at ties."""
    ours = np.array([[*each["box"], each["score"], each["class_id"]] for each in answered]).reshape(-1, 6)
    theirs = np.array([[*box, score, label] for box, score, label in expected]).reshape(-1, 6)
    return ours.shape == theirs.shape and bool(np.allclose(ours, theirs, atol=0.0101))


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
    parser.add_argument("--serve-seconds", type=float, default=120)
    given = parser.parse_args()
    parts = given.parts or ["detect", "memory", "serve"]
    content = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    content["machine"] = {"processor": processor(), "cores": cores(), "load_average_at_the_start": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights = Path(temporary), Path(temporary) / "tiny.safetensors"
        write_weights(weights)
        if "detect" in parts:
            content["detect"] = detect_part(folder, weights, given.images)
            print(json.dumps(content["detect"]))
        if "memory" in parts:
            content["memory"] = memory_part(folder, weights, given.seconds)
        if "serve" in parts:
            content["serve"] = serve_part(folder, weights, given.serve_seconds)
            print(json.dumps(content["serve"]))
    write_json(RESULTS, content, indent=2)


if __name__ == "__main__":
    main()
