"""Shared by the experiments: the datasets, a resumable queue, and the log with a line of JSON for each run.

Every run is a process with one thread, and several run in parallel. On a shared machine this is faster than threads
that wait for each other.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Set:
    """A dataset: its path, its held-out split, and the epochs and images of its trainings."""

    path: str
    held_out: str
    epochs: int
    screening_images: int
    screening_epochs: int


SETS = {
    "bccd": Set("bccd/BCCD", "val", 30, 205, 8),
    "deeppcb": Set("deeppcb", "test", 8, 400, 4),
    "coco_person": Set("coco_person", "val", 4, 400, 4),
}

# Limits of the shorter and the longer side of the input, for both sides of every comparison.
SIZE, MAX_SIZE = 320, 426

# glibc keeps freed memory instead of returning it to the system: a step of Faster R-CNN takes 0.9 times as long.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(4 * 10**9), "MALLOC_TRIM_THRESHOLD_": str(8 * 10**9)}


def load_sets(data: Path, name: str, screening: bool) -> tuple[Any, Any]:
    """Data for training and evaluation. For screening, both are parts (3:1) of a fixed subset of train."""
    from retinanet.data.formats.open_dataset import read_split

    spec = SETS[name]
    train = read_split(data / spec.path, "train")
    if not screening:
        return train, read_split(data / spec.path, spec.held_out).with_classes(train.classes)
    if len(train) > spec.screening_images:
        _, train = train.split(spec.screening_images / len(train), seed=0)
    return train.split(0.25, seed=0)


def fitted_anchors(config: Any, train_set: Any) -> dict[str, Any]:
    """The anchor settings that ``retinanet data anchors`` writes."""
    from retinanet.inspection.anchor_coverage import ScaledBoxes
    from retinanet.inspection.anchor_search import class_weights, search_anchors

    objects = ~train_set.ignore
    boxes: Any = ScaledBoxes.of(train_set, config.data)[objects]
    weights = class_weights(train_set.labels[objects])
    fit = search_anchors(boxes, config.anchors, threshold=config.assign.foreground, weights=weights)
    return {**config.to_dict()["anchors"], **{k: getattr(fit.spec, k) for k in ("sizes", "scales", "ratios")}}


def run_queue(script: Path, specs: Sequence[dict[str, Any]], log: Path, jobs: int, arguments: Iterable[str]) -> None:
    """Run ``script --one SPEC`` for every spec without a result in ``log`` (JSON lines), ``jobs`` at a time."""
    from retinanet.reproduce.queue import Ended, Task, run_tasks

    done = [line["spec"] for line in read_log(log)]
    waiting = [spec for spec in specs if spec not in done]
    print(f"{len(specs) - len(waiting)} of {len(specs)} runs are done", flush=True)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as the command line does
    for name, value in KEEP_MEMORY.items():
        os.environ.setdefault(name, value)
    command = (sys.executable, str(script), *arguments, "--one")

    def note(ended: Ended) -> None:
        spec = json.loads(ended.task.name)
        if ended.code != 0:
            print(f"FAILED {spec}\n{ended.errors[-1500:]}", flush=True)
            return
        outcome = json.loads(ended.output.splitlines()[-1])
        with log.open("a") as file:
            file.write(json.dumps({"spec": spec, **outcome}) + "\n")
        print(f"{ended.seconds:6.0f} s  {spec}  AP {outcome['AP']:.4f}  AP50 {outcome['AP50']:.4f}", flush=True)

    words = [json.dumps(spec) for spec in waiting]
    run_tasks([Task(word, (*command, word)) for word in words], jobs, note, one_thread=True)


def read_log(log: Path) -> list[dict[str, Any]]:
    """The results in the log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
