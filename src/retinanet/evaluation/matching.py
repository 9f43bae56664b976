"""Match detections with objects as COCO does, for all images and classes of a dataset at once.

Every number of an analysis comes from this one matching, so that the numbers agree with each other. hotcoco computes
the COCO metrics (:mod:`retinanet.evaluation.coco_ap`), but it does not say which detection has which error, can leave
out objects only by their area, and counts detections in ignore regions as confusions.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from retinanet.data.dataset import NO_CLASS, Dataset
from retinanet.evaluation.coco_ap import Predictions

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# COCO's: IoUs to match at, and detections that count in an image and class.
THRESHOLDS = np.linspace(0.5, 0.95, 10)
LIMIT = 100

# Two boxes that overlap less have nothing to do with each other (TIDE's threshold of background).
LEAST_OVERLAP = 0.1


@dataclass(frozen=True, eq=False)
class Scene:
    """The objects of a dataset, the detections that count, and how they overlap.

    D detections lie in the order in which COCO looks at them: best score first, equal scores by image id, then as
    given.

    Attributes:
        dataset: its M boxes are the objects and ignore regions.
        owner: int64 ``(M,)``, the image of each.
        images: int64 ``(D,)``, the image of each detection.
        boxes: float64 ``(D, 4)``, ``xyxy``.
        scores: float64 ``(D,)``.
        labels: int64 ``(D,)``.
        found: int64 ``(P,)``, the detection of each pair whose IoU is at least ``LEAST_OVERLAP``.
        objects: int64 ``(P,)``, the object of each pair.
        overlaps: float64 ``(P,)``, IoU; for an ignore region, the share of the detection inside it.
    """

    dataset: Dataset
    owner: Ints
    images: Ints
    boxes: Floats
    scores: Floats
    labels: Ints
    found: Ints
    objects: Ints
    overlaps: Floats

    def totals(self, out: Bools | None = None) -> Ints:
        """Objects of each class, ``(K,)``: those that are neither ignored nor ``out`` ``(M,)``."""
        counted = ~self.dataset.ignore if out is None else ~(self.dataset.ignore | out)
        return np.bincount(self.dataset.labels[counted], minlength=len(self.dataset.classes))


@dataclass(frozen=True, eq=False)
class Matching:
    """What becomes of D detections at T IoU thresholds.

    Attributes:
        objects: int64 ``(T, D)``, the object or ignore region that each is matched to, −1 for none.
        right: bool ``(T, D)``, it finds an object.
        wrong: bool ``(T, D)``, it finds none. A detection that is neither does not count.
    """

    objects: Ints
    right: Bools
    wrong: Bools


def make_scene(dataset: Dataset, predictions: Predictions, limit: int = LIMIT) -> Scene:
    """Order the detections, keep the best ``limit`` of each image and class, and compute the overlaps."""
    by_id = np.empty(len(dataset), dtype=np.int64)
    by_id[np.argsort(dataset.image_ids)] = np.arange(len(dataset))
    scores = predictions.scores.astype(np.float64)
    order = np.lexsort((by_id[predictions.images], -scores))  # stable
    group = predictions.images[order] * len(dataset.classes) + predictions.labels[order]
    order = order[_ranks(group) < limit]
    images, boxes = predictions.images[order], predictions.boxes[order].astype(np.float64)
    found, objects, overlaps = _overlapping(dataset, images, boxes)
    return Scene(
        dataset=dataset,
        owner=np.repeat(np.arange(len(dataset)), np.diff(dataset.offsets)),
        images=images,
        boxes=boxes,
        scores=scores[order],
        labels=predictions.labels[order],
        found=found,
        objects=objects,
        overlaps=overlaps,
    )


def match(
    scene: Scene,
    thresholds: Floats = THRESHOLDS,
    out: Bools | None = None,
    outside: Bools | None = None,
    any_class: bool = False,
) -> Matching:
    """Give each detection, best score first, the free object that it overlaps most, as COCO does.

    With ``any_class``, of objects that it overlaps equally, it takes one of its class.

    Args:
        scene: objects and detections.
        thresholds: ``(T,)``, the least IoU of a match.
        out: bool ``(M,)``, objects that do not count; a detection prefers one that does.
        outside: bool ``(D,)``, detections that do not count if they find nothing.
        any_class: let a detection find objects of other classes, too.
    """
    crowd = scene.dataset.ignore
    ignored = crowd if out is None else crowd | out
    labels = scene.dataset.labels[scene.objects]
    own = labels == scene.labels[scene.found]
    use = own | (labels == NO_CLASS)
    if any_class:  # ignore regions forgive only their class, as they do elsewhere
        use |= ~crowd[scene.objects]
    use &= scene.overlaps >= min(thresholds)
    found, objects, overlaps, own = scene.found[use], scene.objects[use], scene.overlaps[use], own[use]
    groups = scene.images if any_class else scene.images * len(scene.dataset.classes) + scene.labels
    rank = _ranks(groups)[found]
    # The pairs of a detection lie together, the most wanted last: objects that count, then IoU, then (where
    # two classes are annotated with the same box) the own class, then the later one.
    order = np.lexsort((objects, own & any_class, overlaps, ~ignored[objects], found, rank))
    found, objects, rank = found[order], objects[order], rank[order]
    enough = overlaps[order] >= np.minimum(thresholds, 1 - 1e-10)[:, None]  # (T, P)

    matched = np.full((len(thresholds), len(scene.scores)), -1, dtype=np.int64)
    taken = np.zeros((len(thresholds), len(crowd)), dtype=np.bool_)
    starts = np.flatnonzero(np.diff(rank, prepend=-1))
    # Detections of one rank compete for nothing: each is of another image or class.
    for start, end in pairwise([*starts.tolist(), len(rank)]):
        mine = objects[start:end]
        free = enough[:, start:end] & (crowd[mine] | ~taken[:, mine])
        firsts = np.flatnonzero(np.diff(found[start:end], prepend=-1))
        best = np.maximum.reduceat(np.where(free, np.arange(end - start), -1), firsts, axis=1)  # (T, detections)
        chosen = np.where(best >= 0, mine[best], -1)
        matched[:, found[start:end][firsts]] = chosen
        level, column = np.nonzero(best >= 0)
        taken[level, chosen[level, column]] = True
    hit = matched >= 0
    counts = hit & ~ignored[matched] if len(ignored) else hit
    missed = ~hit if outside is None else ~hit & ~outside
    return Matching(matched, counts, missed)


def neighbour_overlaps(scene: Scene) -> tuple[Floats, Floats]:
    """The second highest IoU that each object ``(M,)`` and each detection ``(D,)`` has with the objects of its image.

    The highest is the object itself, or what a detection is about. IoUs below ``LEAST_OVERLAP`` are given as 0.
    """
    keep = ~scene.dataset.ignore[scene.objects]
    detections = _second(scene.found[keep], scene.overlaps[keep], len(scene.scores))
    rows = np.flatnonzero(~scene.dataset.ignore)
    boxes = scene.dataset.boxes.astype(np.float64)
    objects = np.zeros(len(boxes))
    for group in np.split(rows, np.flatnonzero(np.diff(scene.owner[rows])) + 1):
        if len(group) > 1:
            overlaps = iou(boxes[group], boxes[group], np.zeros(len(group), dtype=np.bool_))
            np.fill_diagonal(overlaps, 0)
            objects[group] = overlaps.max(axis=1)
    return np.where(objects < LEAST_OVERLAP, 0, objects), detections


def iou(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """IoU ``(D, G)`` of ``boxes`` ``(D, 4)`` and ``others`` ``(G, 4)``; for a crowd, the share of the box inside it."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas, other_areas = ((b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others))
    union = np.where(crowd, areas[:, None], areas[:, None] + other_areas - shared)
    result: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return result


def _overlapping(dataset: Dataset, images: Ints, boxes: Floats) -> tuple[Ints, Ints, Floats]:
    """Detection, object and IoU of each pair that overlaps enough."""
    order = np.argsort(images, kind="stable")
    bounds = np.searchsorted(images[order], np.arange(len(dataset) + 1))
    truth = dataset.boxes.astype(np.float64)
    none = np.zeros(0, dtype=np.int64)
    parts = [(none, none, np.zeros(0))]
    for image in np.flatnonzero((np.diff(bounds) > 0) & (np.diff(dataset.offsets) > 0)).tolist():
        rows, mine = dataset.rows(image), order[bounds[image] : bounds[image + 1]]
        overlaps = iou(boxes[mine], truth[rows], dataset.ignore[rows])
        detection, thing = np.nonzero(overlaps >= LEAST_OVERLAP)
        parts.append((mine[detection], thing + rows.start, overlaps[detection, thing]))
    found, objects, values = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, objects, values


def _ranks(groups: Ints) -> Ints:
    """The place of each element among those of its group, from 0, in the order given."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    ranks = np.empty(len(groups), dtype=np.int64)
    ranks[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(np.append(starts, len(groups))))
    return ranks


def _second(groups: Ints, values: Floats, count: int) -> Floats:
    """The second highest of the values of each of ``count`` groups; 0 where there is none."""
    order = np.lexsort((-values, groups))
    second = order[_ranks(groups[order]) == 1]
    result = np.zeros(count)
    result[groups[second]] = values[second]
    return result
