"""Load a server with many clients, and compare its speed and its detections with ``retinanet detect``.

    python benchmarks/serve_load.py FOLDER [--model person] [--clients 8] [--requests 2000] [--overload 60] [--out FILE]

FOLDER holds the images. The server is a process of its own. The script measures, one after another: detection in the
files of the folder, one client that sends one request after another, many clients, overload (five times as many
clients as the queue holds requests), and SIGTERM in the middle of the load. All processes share the cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np

from retinanet.detection.loading import load
from retinanet.detection.pipeline import detect_in_files
from retinanet.detection.sources import find_images
from retinanet.files import write_json
from retinanet.machine import cores, processor
from retinanet.serve.answers import rounded_rows


class Process:
    """A server in a process of its own."""

    def __init__(self, words: Sequence[str]) -> None:
        command = [sys.executable, "-m", "retinanet", "serve", *words, "--port", "0"]
        begin = perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if "serving" not in line:
            raise SystemExit(f"the server did not start: {line}")
        self.seconds_to_start = perf_counter() - begin
        self.port = int(line.split("/ (")[0].rpartition(":")[2])

    def memory_mb(self) -> float:
        """Resident memory in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000

    def stop(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@dataclass
class Load:
    """The answers to the requests of several clients.

    Attributes:
        statuses: number of answers of each status; ``error`` for connections that broke.
        times: seconds of each answer with status 200.
        answers: the last answer for each image.
        refused: connections that were not accepted.
        seconds: from the first request to the last answer.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)
    refused: int = 0
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The figures."""
        times = np.array(self.times or [0.0])
        return {
            "images_per_second": round(len(self.times) / self.seconds, 2),
            "p50_ms": round(1000 * float(np.quantile(times, 0.5)), 1),
            "p99_ms": round(1000 * float(np.quantile(times, 0.99)), 1),
            "statuses": dict(self.statuses),
            "connections_refused": self.refused,
            "seconds": round(self.seconds, 1),
        }


class Clients:
    """Clients that send images over connections that stay open, each one request after another."""

    def __init__(self, port: int, images: dict[str, bytes]) -> None:
        self._port, self._images = port, list(images.items())
        self._lock = threading.Lock()
        self._left = 0
        self._end = 0.0
        self.stopping = threading.Event()

    def run(self, clients: int, requests: int = 10**9, seconds: float = 1e9) -> Load:
        """Send a number of requests, or for a number of seconds."""
        found = Load()
        self._left, self._end = requests, perf_counter() + seconds
        threads = [threading.Thread(target=self._client, args=(found,)) for _ in range(clients)]
        begin = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found.seconds = perf_counter() - begin
        return found

    def _client(self, found: Load) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while True:
            with self._lock:
                self._left -= 1
                number = self._left
            if number < 0 or perf_counter() > self._end:
                break
            name, content = self._images[number % len(self._images)]
            begin = perf_counter()
            try:
                connection.request("POST", "/v1/detect", content, {"Content-Type": "image/jpeg"})
                response = connection.getresponse()
                body = response.read()
            except ConnectionRefusedError:  # not accepted, so nothing is lost
                with self._lock:
                    found.refused += 1
                if self.stopping.is_set():
                    break
                continue
            except (OSError, http.client.HTTPException):
                with self._lock:
                    found.statuses["error"] += 1
                connection.close()
                continue
            with self._lock:
                found.statuses[str(response.status)] += 1
                if response.status == 200:
                    found.times.append(perf_counter() - begin)
                    found.answers[name] = json.loads(body)
            if response.status != 200:
                sleep(0.05)  # a real client waits for Retry-After
        connection.close()


def differences(answers: dict[str, Any], expected: dict[str, list[tuple[list[float], float, int]]]) -> dict[str, Any]:
    """Compare the answers with the detections of ``detect``: numbers of images and largest differences."""
    other, box, score = 0, 0.0, 0.0
    for name, answer in answers.items():
        ours, theirs = answer["detections"], expected[name]
        if [each["class_id"] for each in ours] != [label for _, _, label in theirs]:
            other += 1
            continue
        for one, (theirs_box, theirs_score, _) in zip(ours, theirs, strict=True):
            box = max(box, float(np.abs(np.subtract(one["box"], theirs_box)).max()))
            score = max(score, abs(one["score"] - theirs_score))
    return {"images": len(answers), "other_detections": other, "largest_box_px": box, "largest_score": round(score, 6)}


def overload(process: Process, images: dict[str, bytes], clients: int, seconds: float) -> dict[str, Any]:
    """Load the server with too many clients; note its memory, and how soon it answers afterwards."""
    memory = [process.memory_mb()]
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(2):
            memory.append(process.memory_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    load_of_all = Clients(process.port, images).run(clients, seconds=seconds)
    begin = perf_counter()
    after = Clients(process.port, images).run(1, requests=1)
    recovered = perf_counter() - begin
    watching.set()
    watcher.join()
    third = len(memory) // 3
    return load_of_all.summary() | {
        "clients": clients,
        "answer_after_it_seconds": round(recovered, 3),
        "status_after_it": dict(after.statuses),
        "memory_mb": {
            "start": memory[0],
            "first_third": max(memory[: third + 1]),
            "last_third": max(memory[-third - 1 :]),
        },
    }


def terminated(process: Process, images: dict[str, bytes], clients: int) -> dict[str, Any]:
    """Send SIGTERM while clients send requests. Each request that was sent must be answered."""
    sender = Clients(process.port, images)

    def end() -> None:
        sleep(5)
        sender.stopping.set()
        process.process.send_signal(signal.SIGTERM)

    threading.Thread(target=end).start()
    found = sender.run(clients, seconds=30)
    return found.summary() | {"exit_code": process.process.wait(60)}


def main() -> None:
    """Measure everything and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--model", default="person")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--overload", type=float, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    files = find_images([given.folder])[: given.images]
    images = {str(file.path): file.path.read_bytes() for file in files}
    detector = load(given.model)
    list(detect_in_files(detector, files[:16], 0.3))
    begin = perf_counter()
    expected = {
        each.image.address: rounded_rows(each.found)
        for each in detect_in_files(detector, files, 0.3)
        if each.found is not None
    }
    rows: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": cores(), "load": os.getloadavg()[0]},
        "model": given.model,
        "detect_images_per_second": round(len(files) / (perf_counter() - begin), 2),
    }
    print(rows, flush=True)
    process = Process([given.model])
    rows["seconds_to_start"] = round(process.seconds_to_start, 2)
    clients = Clients(process.port, images)
    clients.run(given.clients, 50)
    rows["one_at_a_time"] = clients.run(1, min(given.requests, len(images))).summary()
    print(rows["one_at_a_time"], flush=True)
    many = clients.run(given.clients, given.requests)
    rows["many_clients"] = many.summary() | differences(many.answers, expected)
    print(rows["many_clients"], flush=True)
    if given.overload:
        rows["overload"] = overload(process, images, 5 * 64, given.overload)
        print(rows["overload"], flush=True)
    rows["sigterm"] = terminated(process, images, given.clients)
    print(rows["sigterm"], flush=True)
    if given.out:
        write_json(given.out, rows, indent=1)


if __name__ == "__main__":
    main()
