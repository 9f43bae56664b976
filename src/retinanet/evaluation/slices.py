"""Average precision on groups of objects: by size, shape, number of objects in the image, neighbors and position.

Objects outside a group count neither as found objects nor as false negatives, like objects of other sizes in COCO's
AP by size. An unmatched detection counts in the group that its own box belongs to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retinanet.evaluation.curves import average_precisions, mean
from retinanet.evaluation.matching import Bools, Floats, Scene, match, neighbour_overlaps

# A box whose distance from the image border is at most this many pixels may be cut off by the border.
_BORDER = 2.0


@dataclass(frozen=True)
class Slice:
    """A detector's results on one group of objects.

    Attributes:
        group: the property that divides the objects, e.g. ``"size"``.
        name: the objects in this group, e.g. ``"medium, 32² to 96² px"``.
        objects: number of objects.
        detections: number of true and false positives at an IoU of 0.5.
        AP: mean over IoUs and classes; NaN without objects.
        AP50: at an IoU of 0.5; NaN without objects.
        AP_by_object: mean over IoUs and objects, where each object has the AP of its class in this group. Unlike in
            ``AP``, a class with a single object has little weight.
        AP_elsewhere: computed like ``AP_by_object``, but with the AP of each class over all objects of the dataset.
        recall: fraction of the objects that are found at an IoU of 0.5 with at least the chosen score threshold.
    """

    group: str
    name: str
    objects: int
    detections: int
    AP: float
    AP50: float
    AP_by_object: float
    AP_elsewhere: float
    recall: float

    def to_dict(self) -> dict[str, Any]:
        """Convert to the form of ``metrics.json``."""
        values = asdict(self)
        recall = values.pop("recall")
        return {**values, "found": recall}


@dataclass(frozen=True, eq=False)
class _Part:
    group: str
    name: str
    objects: Bools
    detections: Bools


def slice_by_everything(scene: Scene, score: float, class_aps: Floats) -> list[Slice]:
    """Measure every group that has objects.

    Args:
        scene: objects and detections.
        score: the score threshold for ``recall``.
        class_aps: ``(K,)``, AP of each class over all objects; NaN without objects.
    """
    counted = ~scene.dataset.ignore
    parts = [part for part in _parts(scene) if (part.objects & counted).any()]
    return [_slice(scene, part, score, class_aps) for part in parts]


def _slice(scene: Scene, part: _Part, score: float, class_aps: Floats) -> Slice:
    totals = scene.totals(~part.objects)
    matching = match(scene, out=~part.objects, outside=~part.detections)
    values = average_precisions(scene, matching, totals)
    tp, fp = matching.tp[0], matching.fp[0]
    here = totals > 0
    return Slice(
        group=part.group,
        name=part.name,
        objects=int(totals.sum()),
        detections=int((tp | fp).sum()),
        AP=mean(values.mean(axis=0)),
        AP50=mean(values[0]),
        AP_by_object=float(np.average(values.mean(axis=0)[here], weights=totals[here])),
        AP_elsewhere=float(np.average(class_aps[here], weights=totals[here])),
        recall=float((tp & (scene.scores >= score)).sum() / totals.sum()),
    )


def _parts(scene: Scene) -> Iterator[_Part]:
    dataset = scene.dataset
    boxes = dataset.boxes.astype(np.float64)
    yield from _by_size(dataset.areas.astype(np.float64), (scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(axis=1))
    shapes = [
        "over 3 × as tall as wide",
        "1.5–3 × as tall",
        "about square",
        "1.5–3 × as wide",
        "over 3 × as wide as tall",
    ]
    yield from _bands("shape", shapes, [1 / 3, 1 / 1.5, 1.5, 3], _wideness(boxes), _wideness(scene.boxes))
    per_image = np.bincount(scene.object_images[~dataset.ignore], minlength=len(dataset)).astype(np.float64)
    crowds = ["1 object in the image", "2–4 objects", "5–9 objects", "10–19 objects", "20 objects and more"]
    # Images without objects are in the first group, so that their detections are counted in a group.
    yield from _bands("crowdedness", crowds, [2, 5, 10, 20], per_image[scene.object_images], per_image[scene.images])
    near = ["apart from others", "IoU 0.1–0.3 with another", "IoU over 0.3 with another"]
    yield from _bands("neighbours", near, [0.1, 0.3], *neighbour_overlaps(scene))
    places = ["in the middle", "towards the edge", "touching the border"]
    sizes = dataset.sizes.astype(np.float64)
    where = _places(boxes, sizes[scene.object_images]), _places(scene.boxes, sizes[scene.images])
    yield from _bands("position", places, [1, 2], *where)


def _by_size(objects: Floats, detections: Floats) -> Iterator[_Part]:
    """COCO's size groups. An object whose size is on a border belongs to both groups."""
    names = ["small, under 32² px", "medium, 32² to 96² px", "large, over 96² px"]
    for name, low, high in zip(names, (0, 32**2, 96**2), (32**2, 96**2, 1e10), strict=True):
        yield _Part("size", name, *((low <= areas) & (areas <= high) for areas in (objects, detections)))


def _bands(group: str, names: list[str], borders: list[float], objects: Floats, detections: Floats) -> Iterator[_Part]:
    """Groups between ``borders`` of a measure; a group includes its lower border."""
    bands = [np.searchsorted(borders, values, side="right") for values in (objects, detections)]
    for number, name in enumerate(names):
        yield _Part(group, name, bands[0] == number, bands[1] == number)


def _wideness(boxes: Floats) -> Floats:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-9)
    return np.asarray(sides[:, 0] / sides[:, 1])


def _places(boxes: Floats, sizes: Floats) -> Floats:
    """Classify positions: 0 for a center in the middle half of width and height, 2 for a box at the border, else 1."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2 / np.maximum(sizes, 1)
    outer = (np.abs(centers - 0.5) > 0.25).any(axis=1)
    border = (boxes[:, :2] <= _BORDER).any(axis=1) | (boxes[:, 2:] >= sizes - _BORDER).any(axis=1)
    return np.where(border, 2.0, np.where(outer, 1.0, 0.0))
