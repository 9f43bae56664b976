"""Objects that move, cross and vanish; their imperfect detections; and IDF1, the measure of kept ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from retinanet.detections import Detections
from retinanet.overlaps import pair_iou

Boxes = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """Times of the frames in seconds; the boxes and ids of the visible objects of each frame; the class of each id."""

    times: list[float]
    boxes: list[Boxes]
    ids: list[Ids]
    label_of: dict[int, int]


def scene(
    seed: int, objects: int = 8, frames: int = 90, size: int = 480, rate: float = 30, variable: bool = False
) -> Scene:
    """Objects of two classes that cross the image from the left and from the right.

    Every third object is hidden for half a second.
    """
    rng = np.random.default_rng(seed)
    steps = rng.uniform(0.5, 2.5, frames) if variable else np.ones(frames)
    times = (np.cumsum(steps) - steps[0]) / rate
    duration = times[-1] + 1 / rate
    start, end = rng.uniform(0, size - 40, (2, objects, 2))
    start[:, 0] = np.where(np.arange(objects) % 2, 0, size - 60)
    end[:, 0] = size - 60 - start[:, 0]
    sides = rng.uniform(30, 60, (objects, 2))
    labels = rng.integers(0, 2, objects)
    hidden = rng.uniform(0.2, 0.6, objects) * duration
    boxes, ids = [], []
    for time in times:
        corner = start + (end - start) * time / duration
        visible = np.array([k % 3 != 0 or not hidden[k] <= time < hidden[k] + 0.5 for k in range(objects)])
        boxes.append(np.concatenate([corner, corner + sides], axis=1)[visible])
        ids.append(np.flatnonzero(visible))
    return Scene(times.tolist(), boxes, ids, dict(enumerate(labels.tolist())))


def imperfect(
    truth: Scene, seed: int, misses: float = 0.05, noise: float = 0.03, false: float = 0.2
) -> list[Detections]:
    """Detections of each frame: noisy boxes, some of low score, some missing, and false positives."""
    rng = np.random.default_rng(seed)
    result = []
    for boxes, ids in zip(truth.boxes, truth.ids, strict=True):
        seen = rng.uniform(size=len(ids)) >= misses
        sides = np.tile(boxes[seen, 2:] - boxes[seen, :2], 2)
        noisy = boxes[seen] + rng.normal(0, noise, sides.shape) * sides
        scores = np.where(rng.uniform(size=len(noisy)) < 0.15, 0.15, rng.uniform(0.4, 0.95, len(noisy)))
        labels = np.array([truth.label_of[k] for k in ids[seen].tolist()], dtype=np.int64)
        wrong = rng.uniform(0, 400, (rng.poisson(false), 2))
        noisy = np.concatenate([noisy, np.concatenate([wrong, wrong + 40], axis=1)])
        scores = np.concatenate([scores, rng.uniform(0.05, 0.5, len(wrong))])
        labels = np.concatenate([labels, rng.integers(0, 2, len(wrong))])
        order = np.argsort(-scores, kind="stable")
        result.append(
            Detections.of_one_image(
                noisy[order].astype(np.float32), scores[order].astype(np.float32), labels[order].astype(np.int64)
            )
        )
    return result


def idf1(truth: Scene, found: Sequence[npt.NDArray[np.floating]], ids: Sequence[Ids], least: float = 0.5) -> float:
    """IDF1 (Ristani et al. 2016): F1 of the frames in which an object has the one id that fits it best.

    Each object is matched with at most one track for the whole video, so that the number of frames in which their
    boxes have an IoU of at least ``least`` is the largest possible.
    """
    objects = sorted({k for each in truth.ids for k in each.tolist()})
    tracks = sorted({k for each in ids for k in each.tolist()})
    common = np.zeros((len(objects), len(tracks)))
    for boxes, own, others, track in zip(truth.boxes, truth.ids, found, ids, strict=True):
        for box, k in zip(boxes, own.tolist(), strict=True):
            overlap = pair_iou(np.repeat(box[None], len(others), axis=0), others.astype(np.float64))
            for j in np.flatnonzero(overlap >= least).tolist():
                common[objects.index(k), tracks.index(int(track[j]))] += 1
    matched = common[linear_sum_assignment(common, maximize=True)].sum()
    return float(2 * matched / (sum(map(len, truth.ids)) + sum(map(len, ids))))
